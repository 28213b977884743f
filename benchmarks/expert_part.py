"""Generic held-out loss of projected networks that differ in their expert-specific part, and the plain one's.

  python benchmarks/expert_part.py benchmarks/paper/tiny-recipe.toml slm trunk 1.0 0.3 0.3+0.5 \
      --corpus generic/ --work paper-tiny/stages --steps 1200

Each argument is a run: `slm`; `trunk` (h = k, M = I, nothing shared in the projected layers); or a scale of
the mixing matrices, with `+F` for a share F of mixed microbatches. One line each; finished runs are kept in
the work folder. Held out is every fourth window of the generic held-out split.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

import shared.projection
from provider.preparing import cluster_corpus, prepare_corpus
from provider.pretraining import load_windows
from provider.recipe import Recipe, read_recipe
from shared.batches import Sampler, Windows, all_microbatches
from shared.device import choose_device, make_deterministic
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.slm import build_slm
from shared.training import train


def measure(name: str, recipe: Recipe, train_windows: Windows, heldout: Windows, folder: Path) -> float:
    """Train one run and return its held-out loss in nats/token."""
    config, projection, k = recipe.pretraining, recipe.projection, recipe.clustering.n_clusters
    assert projection is not None
    scale, _, mixed = name.partition("+")
    shared.projection.MIXING_SCALE = 1.0 if name in ("slm", "trunk") else float(scale)
    make_deterministic(recipe.seed)
    model = cast(torch.nn.Module, build_slm(recipe.model))
    network = None
    if name != "slm":
        size, capacity = (k, k) if name == "trunk" else (projection.expert_size, projection.capacity)
        linears = feed_forward_linears(model, projection.layers)
        network = ProjectedNetwork(model, linears, k, size, capacity, name == "trunk")
    sampler = Sampler(
        train_windows, recipe.model.context_tokens, config.rows_per_step, config.rows_per_microbatch,
        recipe.seed, mixed_fraction=float(mixed or 0),
    )  # fmt: skip
    batches = list(all_microbatches(heldout, recipe.model.context_tokens, 16))
    inputs = json.dumps([name, asdict(projection), recipe.model.to_dict()])
    return train(model, network, sampler, lambda: batches, config, folder, print, inputs).heldout_loss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--learning-rate", type=float)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_recipe(options.recipe)
    training = replace(recipe.pretraining, steps=options.steps, eval_every_steps=max(1, options.steps // 4))
    if options.learning_rate:
        training = replace(training, learning_rate=options.learning_rate)
    recipe = replace(recipe, pretraining=training)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer, cut, n_parts = prepare_corpus(recipe, options.corpus, options.work, print)
    device = str(choose_device("cpu"))
    _, stage = cluster_corpus(
        recipe.clustering, recipe.seed, options.work, tokenizer, cut, n_parts, device, None, print
    )
    windows = {s: load_windows(stage.folder, s, recipe.clustering.n_clusters) for s in ("train", "heldout")}
    heldout = windows["heldout"].take(np.arange(len(windows["heldout"])) % 4 == 0)
    for name in options.runs:
        folder = options.work / "expert-part" / f"{name}-{options.steps}-{training.learning_rate}"
        loss = measure(name, recipe, windows["train"], heldout, folder)
        print(f"{name} · rate {training.learning_rate} · {options.steps} steps · {loss:.3f} nats/token")


if __name__ == "__main__":
    main()
