"""The share of a step that goes into making its rows, and what reading them costs against a plain copy.

  python benchmarks/loader_share.py [--rows-per-step 32] [--steps 6]

Windows of mixed lengths lie in memory-mapped files, one for each cluster, as a release leaves them. Share:
seconds of the sampler's step over those of the whole training step (laptop preset). Copy: numpy's copy of
as many tokens from the same files, which does no more than read.
"""

import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from side_by_side import options_of, tell

from shared.batches import Sampler, Windows
from shared.device import keep_freed_memory, make_deterministic
from shared.sizes import PRESETS, SlmConfig
from shared.slm import EOS_ID, build_slm
from shared.training import train_step

CLUSTERS = 16


def mapped_windows(folder: Path, sizes: SlmConfig, n_tokens: int) -> Windows:
    """Write random windows of mixed lengths, a file for each cluster, and open them memory-mapped."""
    generator = np.random.default_rng(0)
    streams, starts, lengths, clusters = [], [], [], []
    for cluster in range(CLUSTERS):
        tokens = generator.integers(EOS_ID + 1, sizes.vocab_size, n_tokens // CLUSTERS).astype(np.uint16)
        np.save(folder / f"{cluster}.npy", tokens)
        streams.append(np.load(folder / f"{cluster}.npy", mmap_mode="r"))
        at = 0
        while at < len(tokens):
            # Half of a corpus in windows are whole ones, the ends of documents are any length.
            whole = bool(generator.integers(2))
            length = sizes.context_tokens if whole else int(generator.integers(1, sizes.context_tokens))
            length = min(length, len(tokens) - at)
            starts.append(at)
            lengths.append(length)
            clusters.append(cluster)
            at += length
    owner = np.asarray(clusters, np.int32)
    return Windows(streams, owner, np.asarray(starts), np.asarray(lengths, np.int32), owner)


def main() -> None:
    options = options_of(
        __doc__,
        ("--rows-per-step", {"type": int, "default": 32}),
        ("--steps", {"type": int, "default": 6}),
    )
    sizes = PRESETS["test" if options.toy else "laptop"]
    if options.toy:
        options.rows_per_step, options.steps = 8, 2
    keep_freed_memory()
    make_deterministic(0)
    model = cast(torch.nn.Module, build_slm(sizes))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    shares, copies, micro = [], [], []
    step_tokens = options.rows_per_step * sizes.context_tokens
    with tempfile.TemporaryDirectory() as name:
        windows = mapped_windows(Path(name), sizes, 20 * step_tokens)
        sampler = Sampler(windows, sizes.context_tokens, options.rows_per_step, 4, 0)
        sampler.step(0)
        for step in range(1, options.steps + 1):
            start = time.perf_counter()
            batches = sampler.step(step)
            drawn = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            train_step(model, None, batches)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            end = time.perf_counter()
            np.concatenate([stream[: step_tokens // CLUSTERS] for stream in windows.streams])
            copied = time.perf_counter()
            shares.append((drawn - start) / (end - start))
            copies.append((drawn - start) / (copied - end))
            micro.append(1e3 * (drawn - start))
    facts = {"sampler_ms": round(float(np.median(micro)), 3), "step_tokens": step_tokens}
    tell("reading training windows", "sampler / whole step, seconds", 0.02, shares, options, facts)
    tell("reading training windows", "sampler / mapped copy, seconds", None, copies, options, facts)


if __name__ == "__main__":
    main()
