"""Seconds per optimizer step of the projected network against the plain model, side by side.

  python benchmarks/step_time.py examples/demo/pn16.toml
  python benchmarks/step_time.py --rows-per-step 128        # 32,768 tokens per step

Steps of the two alternate in one process on the same random rows; the result is the median of the
ratios of neighbouring steps. Without a recipe it is the demo's. --return-memory leaves the C library as
it is, which gives freed pages back after every step.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from side_by_side import DEVICE, NotInstalled, options_of, tell, wait_for
from transformers.modeling_utils import PreTrainedModel

from provider.recipe import Recipe, read_recipe
from shared.batches import Microbatch, Sampler, Windows
from shared.compiling import compile_layers
from shared.device import choose_device, keep_freed_memory, make_deterministic
from shared.optimizers import Optimizer
from shared.pieces import EOS_ID
from shared.prefetching import rows_of_steps
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.ranks import ONE_PROCESS
from shared.sizes import PRESETS, SlmConfig
from shared.slm import build_slm
from shared.training import train_step, trained_parameters

DEMO = Path(__file__).parent.parent / "examples" / "demo" / "pn16.toml"
WARMUP = 2
"""Pairs of steps that are not counted."""


@dataclass
class Steps:
    """What the steps of one system took."""

    seconds: list[float] = field(default_factory=list)
    gigabytes: float | None = None
    """Most that was allocated on a GPU in a step, without the other system; None elsewhere."""

    def rate(self, tokens: int) -> int:
        """Return tokens per second, of the median step."""
        return round(tokens / statistics.median(self.seconds))


def toy(recipe: Recipe) -> Recipe:
    """Return a recipe of the smallest sizes, of as many experts."""
    projection, config = recipe.projection, recipe.pretraining
    assert projection is not None
    return replace(
        recipe,
        model=PRESETS["test"],
        projection=replace(projection, layers=()),
        pretraining=replace(config, rows_per_step=8, rows_per_microbatch=4),
    )


def random_windows(sizes: SlmConfig, n_rows: int, n_clusters: int) -> Windows:
    """Rows of full length, one window each, of uniformly random tokens, of one cluster after the other."""
    generator = np.random.default_rng(0)
    length = sizes.context_tokens
    stream = generator.integers(EOS_ID + 1, sizes.vocab_size, n_rows * length).astype(np.uint16)
    return Windows(
        [stream],
        stream=np.zeros(n_rows, np.int32),
        start=np.arange(n_rows, dtype=np.int64) * length,
        length=np.full(n_rows, length, np.int32),
        cluster=np.arange(n_rows, dtype=np.int32) % n_clusters,
    )


class System:
    """A plain or projected model in training."""

    def __init__(self, recipe: Recipe, is_projected: bool, device: torch.device) -> None:
        """Raises NotInstalled where it should be compiled and cannot."""
        make_deterministic(0)
        self.clip_norm, self.device = recipe.pretraining.clip_norm, device
        self.model = cast(torch.nn.Module, build_slm(recipe.model)).to(device)
        self.network = None
        if is_projected:
            projection = recipe.projection
            assert projection is not None
            linears = feed_forward_linears(self.model, projection.layers)
            sizes = (recipe.clustering.n_clusters, projection.expert_size, projection.capacity)
            self.network = ProjectedNetwork(self.model, linears, *sizes).to(device)
        said: list[str] = []
        if recipe.pretraining.compile and not compile_layers(cast(PreTrainedModel, self.model), said.append):
            raise NotInstalled(said[0])
        self.parameters = trained_parameters(self.model, self.network)
        self.optimizer = Optimizer(recipe.pretraining.optimizer, self.parameters)
        self.learning_rate = recipe.pretraining.learning_rate

    def step(self, batches: list[Microbatch]) -> float:
        """Take one optimizer step as training does; return its seconds."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        train_step(self.model, self.network, batches)
        ONE_PROCESS.clip(self.parameters, self.clip_norm)
        self.optimizer.step(self.learning_rate)
        wait_for(self.device)
        return time.perf_counter() - start


def measure(recipe: Recipe, device: torch.device, rounds: int) -> tuple[Steps, Steps]:
    """Return the steps of the plain and of the projected model, taken in turns on the same rows."""
    sizes, config = recipe.model, recipe.pretraining
    windows = random_windows(sizes, 4 * config.rows_per_step, recipe.clustering.n_clusters)
    sampler = Sampler(windows, sizes.context_tokens, config.rows_per_step, config.rows_per_microbatch, 0)
    systems = System(recipe, False, device), System(recipe, True, device)
    found = Steps(), Steps()
    for pair, batches in enumerate(rows_of_steps(sampler.step, range(rounds + WARMUP), device)):
        for system, steps in zip(systems, found, strict=True):
            seconds = system.step(batches)
            if pair >= WARMUP:
                steps.seconds.append(seconds)
    if device.type == "cuda":
        for system, other, steps in zip(systems, systems[::-1], found, strict=True):
            steps.gigabytes = _peak(system, other, sampler.step(0)) / 1e9
    return found


def _peak(system: System, other: System, batches: list[Microbatch]) -> int:
    """Return the bytes allocated at most in a step, without what the other system holds."""
    other.optimizer.zero_grad()
    held = [*other.model.parameters(), *other.optimizer.tensors().values()]
    held += [] if other.network is None else other.network.parameters()
    torch.cuda.reset_peak_memory_stats(system.device)
    system.step(batches)
    return torch.cuda.max_memory_allocated(system.device) - sum(tensor.nbytes for tensor in held)


def main() -> None:
    options = options_of(
        __doc__,
        ("recipe", {"type": Path, "nargs": "?", "default": DEMO}),
        ("--rows-per-step", {"type": int, "default": 0, "help": "instead of the recipe's"}),
        DEVICE,
        ("--return-memory", {"action": "store_true"}),
        rounds=20,
    )
    if not options.return_memory:
        keep_freed_memory()
    recipe = read_recipe(options.recipe)
    if options.rows_per_step:
        config = replace(recipe.pretraining, rows_per_step=options.rows_per_step)
        recipe = replace(recipe, pretraining=config)
    if options.toy:
        recipe = toy(recipe)
    device = choose_device(options.device)
    slm, pn = measure(recipe, device, options.rounds)
    tokens = recipe.pretraining.rows_per_step * recipe.model.context_tokens
    facts = {"slm_tokens_per_s": slm.rate(tokens), "pn_tokens_per_s": pn.rate(tokens)}
    facts |= {"step_tokens": tokens, "device": str(device)}
    tell("PN training step", "PN / SLM, seconds per step", 1.1, ratios(slm, pn), options, facts)


def ratios(slm: Steps, pn: Steps) -> Sequence[float]:
    """Return what the projection costs, pair by pair."""
    return [ours / plain for ours, plain in zip(pn.seconds, slm.seconds, strict=True)]


if __name__ == "__main__":
    main()
