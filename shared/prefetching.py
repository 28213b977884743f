"""A step's rows, made while a GPU computes the step before.

On CUDA a thread packs the next step's rows and lays them in pinned memory, from which they are copied
without waiting for the kernels before. On a CPU there is no idle core to do it, and it takes less than a
thousandth of a step (docs/benchmarks.md). A sampler is a pure function of (seed, step), so rows made ahead
are those that would have been made.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from shared.batches import Microbatch

Step = Callable[[int], list[Microbatch]]


def rows_of_steps(rows_of: Step, steps: range, device: torch.device) -> Iterator[list[Microbatch]]:
    """Yield each step's microbatches, ready for the device."""
    if device.type != "cuda":
        return map(rows_of, steps)
    ahead = made_ahead(lambda step: [_each(torch.Tensor.pin_memory, batch) for batch in rows_of(step)], steps)
    return (
        [_each(lambda tensor: tensor.to(device, non_blocking=True), batch) for batch in batches]
        for batches in ahead
    )


def made_ahead(rows_of: Step, steps: range) -> Iterator[list[Microbatch]]:
    """Yield each step's rows, in order; a thread makes the next ones meanwhile. Raises what that raises."""
    with ThreadPoolExecutor(1, "rows") as thread:
        coming = thread.submit(rows_of, steps.start)
        for step in steps:
            rows = coming.result()
            if step + 1 in steps:
                coming = thread.submit(rows_of, step + 1)
            yield rows


def _each(change: Callable[[torch.Tensor], torch.Tensor], batch: Microbatch) -> Microbatch:
    return replace(
        batch,
        input_ids=change(batch.input_ids),
        position_ids=change(batch.position_ids),
        labels=change(batch.labels),
    )
