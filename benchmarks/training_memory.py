"""Memory of training a projected network against the bytes counted on paper.

  python benchmarks/training_memory.py [--clusters 4]

Counted are, in float32: every parameter, its gradient and Adam's two moments (16 bytes a parameter), as
the goal says; told beside it is the count with the dense weights of a step's clusters and their gradients
(8 bytes a weight and cluster), which the projection needs too. Measured is how much the resident peak grows
over three steps, from before the model is built. Sizes are such that the state outweighs the activations.
"""

import gc
from argparse import Namespace
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from side_by_side import Compare, Figures, forget_peak, options_of, peak_bytes, take_turns

from shared.batches import Sampler, Windows
from shared.device import keep_freed_memory, make_deterministic
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.sizes import PRESETS, SlmConfig
from shared.slm import EOS_ID, build_slm, count_parameters
from shared.training import train_step, trained_parameters


def _sizes(options: Namespace) -> tuple[SlmConfig, int]:
    """Return the model's sizes and the capacity."""
    if options.toy:
        return PRESETS["test"], 3
    return replace(PRESETS["laptop"], width=512, n_heads=8, ffn_width=1408), options.capacity


def paper(options: Namespace) -> Figures:
    sizes, capacity = _sizes(options)
    model = build_slm(sizes, "meta")
    projected = sum(model.get_parameter(f"{n}.weight").numel() for n in feed_forward_linears(model))
    trained = count_parameters(model) - projected + capacity * projected
    state = 16 * trained
    return {"bytes": state, "with_dense_bytes": state + 8 * options.clusters * projected}


def measured(options: Namespace) -> Figures:
    sizes, capacity = _sizes(options)
    keep_freed_memory()
    make_deterministic(0)
    # A first product makes the libraries take what they keep for themselves.
    (torch.ones(256, 256, requires_grad=True) @ torch.ones(256, 256)).sum().backward()
    gc.collect()
    before = forget_peak()
    model = cast(torch.nn.Module, build_slm(sizes))
    n, length = options.clusters, sizes.context_tokens
    linears = feed_forward_linears(model)
    network = ProjectedNetwork(model, linears, n, 16, capacity)
    parameters = list(trained_parameters(model, network).values())
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    generator = np.random.default_rng(0)
    stream = generator.integers(EOS_ID + 1, sizes.vocab_size, n * length).astype(np.uint16)
    clusters = np.arange(n, dtype=np.int32)
    starts, lengths = clusters.astype(np.int64) * length, np.full(n, length, np.int32)
    windows = Windows([stream], np.zeros(n, np.int32), starts, lengths, clusters)
    sampler = Sampler(windows, length, n, 1, 0)
    for step in range(3):
        optimizer.zero_grad(set_to_none=True)
        train_step(model, network, sampler.step(step))
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
    grown = peak_bytes() - before
    return {"bytes": grown, "with_dense_bytes": grown}


def main() -> None:
    options = options_of(
        __doc__,
        ("--clusters", {"type": int, "default": 4}),
        ("--capacity", {"type": int, "default": 16}),
        rounds=2,
    )
    systems = {"measured": measured, "paper": paper}
    compares = [
        Compare("measured", "paper", "bytes", 1.15),
        Compare("measured", "paper", "with_dense_bytes", 1.15),
    ]
    take_turns("memory of PN training", systems, compares, options)


if __name__ == "__main__":
    main()
