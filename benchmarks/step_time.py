"""Seconds per optimizer step of the projected network against the plain model, side by side.

  python benchmarks/step_time.py examples/demo/pn16.toml
  python benchmarks/step_time.py --rows-per-step 128        # 32,768 tokens per step

Steps of the two alternate in one process on the same random rows; the result is the median of the
ratios of neighbouring steps. Without a recipe it is the demo's. --return-memory leaves the C library as
it is, which gives freed pages back after every step.
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from side_by_side import options_of, tell

from provider.recipe import read_recipe
from shared.batches import Sampler, Windows
from shared.device import choose_device, keep_freed_memory, make_deterministic
from shared.pieces import EOS_ID
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.training import train_step, trained_parameters

DEMO = Path(__file__).parent.parent / "examples" / "demo" / "pn16.toml"
WARMUP = 2
"""Pairs of steps that are not counted."""


def main() -> None:
    options = options_of(
        __doc__,
        ("recipe", {"type": Path, "nargs": "?", "default": DEMO}),
        ("--rows-per-step", {"type": int, "default": 0, "help": "instead of the recipe's"}),
        ("--device", {"default": "cpu"}),
        ("--return-memory", {"action": "store_true"}),
        rounds=20,
    )
    if not options.return_memory:
        keep_freed_memory()
    recipe = read_recipe(options.recipe)
    assert recipe.projection is not None
    device = choose_device(options.device)
    sizes, config, k = recipe.model, recipe.pretraining, recipe.clustering.n_clusters
    if options.rows_per_step:
        config = replace(config, rows_per_step=options.rows_per_step)
    if options.toy:
        sizes, config = PRESETS["test"], replace(config, rows_per_step=8)
    n_rows = 4 * config.rows_per_step
    generator = np.random.default_rng(0)
    stream = generator.integers(EOS_ID + 1, sizes.vocab_size, n_rows * sizes.context_tokens)
    zeros = np.zeros(n_rows, np.int32)
    lengths = np.full(n_rows, sizes.context_tokens, np.int32)
    starts = np.arange(n_rows, dtype=np.int64) * sizes.context_tokens
    windows = Windows([stream], zeros, starts, lengths, np.arange(n_rows, dtype=np.int32) % k)
    sampler = Sampler(windows, sizes.context_tokens, config.rows_per_step, config.rows_per_microbatch, 0)
    systems = {}
    for name in ("slm", "pn"):
        make_deterministic(0)
        model = cast(torch.nn.Module, build_slm(sizes)).to(device)
        network = None
        if name == "pn":
            linears = feed_forward_linears(model, recipe.projection.layers)
            network = ProjectedNetwork(
                model, linears, k, recipe.projection.expert_size, recipe.projection.capacity
            ).to(device)
        parameters = list(trained_parameters(model, network).values())
        optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
        systems[name] = (model, network, parameters, optimizer)
    seconds: dict[str, list[float]] = {"slm": [], "pn": []}
    for pair in range(options.rounds + WARMUP):
        batches = sampler.step(pair)
        for name, (model, network, parameters, optimizer) in systems.items():
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            train_step(model, network, batches)
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if pair >= WARMUP:
                seconds[name].append(time.perf_counter() - start)
    ratios = [pn / slm for pn, slm in zip(seconds["pn"], seconds["slm"], strict=True)]
    tokens = config.rows_per_step * sizes.context_tokens
    facts = {f"{name}_tokens_per_s": round(tokens / statistics.median(seconds[name])) for name in seconds}
    facts |= {"step_tokens": tokens, "device": str(device)}
    tell("PN training step", "PN / SLM, seconds per step", 1.1, ratios, options, facts)


if __name__ == "__main__":
    main()
