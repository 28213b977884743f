"""Muon against Adam on a corpus: held-out loss by step, and what it costs to get to where Adam ends.

  python benchmarks/optimizers.py examples/quickstart/release.toml slm:adam:1 slm:muon:1 pn:adam:1 pn:muon:1 \
      --corpus texts/ --work optimizers/ --steps 300

Each argument is a run: system, optimizer, and a factor on the recipe's learning rate. One line of JSON each,
with the held-out losses (nats/token) and the processor's seconds of training; finished runs are kept. The
last lines say of each system how many steps, and what share of Adam's seconds, Muon took to reach Adam's
last loss.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from provider.preparing import cluster_corpus, prepare_corpus
from provider.pretraining import load_windows
from provider.recipe import Recipe, read_recipe
from shared.batches import Sampler, Windows, all_microbatches
from shared.device import make_deterministic
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.slm import build_slm
from shared.training import train

EVALS = 12


def measure(name: str, recipe: Recipe, windows: Windows, heldout: Windows, folder: Path) -> dict[str, Any]:
    """Train one run; return its losses and seconds."""
    done = folder / "result.json"
    if done.exists():
        return cast(dict[str, Any], json.loads(done.read_text()))
    system, optimizer, factor = name.split(":")
    base, projection, k = recipe.pretraining, recipe.projection, recipe.clustering.n_clusters
    config = replace(base, optimizer=optimizer, learning_rate=base.learning_rate * float(factor))
    make_deterministic(recipe.seed)
    model = cast(torch.nn.Module, build_slm(recipe.model))
    network = None
    if system == "pn":
        assert projection is not None
        linears = feed_forward_linears(model, projection.layers)
        network = ProjectedNetwork(model, linears, k, projection.expert_size, projection.capacity)
    context = recipe.model.context_tokens
    sampler = Sampler(windows, context, config.rows_per_step, config.rows_per_microbatch, recipe.seed)
    batches = list(all_microbatches(heldout, context, 16))
    start = time.process_time()
    found = train(model, network, sampler, lambda: batches, config, folder, lambda line: None, name)
    result = {
        "run": name,
        "losses": {entry["step"]: round(entry["heldout_loss"], 4) for entry in found.history},
        "cpu_seconds": round(time.process_time() - start, 1),
        "tokens": found.tokens,
    }
    done.write_text(json.dumps(result))
    return result


def compare(adam: dict[str, Any], muon: dict[str, Any]) -> str:
    """Say when the second reached the last loss of the first."""
    last_step, last = [(int(step), loss) for step, loss in adam["losses"].items()][-1]
    reached = next((int(step) for step, loss in muon["losses"].items() if loss <= last), None)
    if reached is None:
        return f"{muon['run']} does not reach the {last} nats/token of {adam['run']}"
    share = reached / last_step * muon["cpu_seconds"] / adam["cpu_seconds"]
    return (
        f"{muon['run']} reaches the {last} nats/token of {adam['run']} after {reached} of {last_step} steps,"
        f" {share:.2f} of its seconds"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_recipe(options.recipe)
    every = max(1, options.steps // EVALS)
    training = replace(recipe.pretraining, steps=options.steps, eval_every_steps=every)
    recipe = replace(recipe, pretraining=training)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer, cut, n_parts = prepare_corpus(recipe, options.corpus, options.work, print)
    _, stage = cluster_corpus(
        recipe.clustering, recipe.seed, options.work, tokenizer, cut, n_parts, "cpu", None, print
    )
    windows = {s: load_windows(stage.folder, s, recipe.clustering.n_clusters) for s in ("train", "heldout")}
    results = []
    for name in options.runs:
        folder = options.work / "optimizers" / f"{name.replace(':', '-')}-{options.steps}"
        folder.mkdir(parents=True, exist_ok=True)
        results.append(measure(name, recipe, windows["train"], windows["heldout"], folder))
        print(json.dumps(results[-1]), flush=True)
    for adam in results:
        for muon in results:
            system, optimizer, _ = muon["run"].split(":")
            if adam["run"].startswith(f"{system}:adam:") and optimizer == "muon":
                print(compare(adam, muon), flush=True)


if __name__ == "__main__":
    main()
