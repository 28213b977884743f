"""Perplexity before and after fine-tuning, for each system in some bundles on each domain of a folder.

  python benchmarks/domains.py --bundle pn16.st --bundle mix16.st --key provider.pub --data domains/ \
      --out domains.jsonl

A domain is a folder with train.jsonl.gz, valid.jsonl.gz and test.jsonl.gz. Fine-tuned is on the first
--tokens of train, stopped on the first --valid-tokens of valid; reported is the loss on test (all of it, or
the first --test-tokens), which nothing else looks at. The expert is chosen on the first --select-tokens.
Expert choice, materialization and fine-tuning are the owner's own functions.
Results are appended one by one; those in the file are not computed again.
"""

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from owner.documents import read_documents
from owner.finetuning import FinetuneConfig, finetune, train_config
from owner.selecting import select_expert
from owner.windows import Split, window_documents
from provider.pretraining import WEIGHTS_FILE
from shared.batches import Windows, all_microbatches
from shared.bundle import Bundle, open_bundle
from shared.checkpoints import load_checkpoint
from shared.device import choose_device, make_deterministic
from shared.embedding import find_embedder_files, load_embedder
from shared.losses import evaluate
from shared.materializing import comparison_slm, materialize
from shared.signature import read_public_key
from shared.tokenizer import build_tokenizer, read_pieces


def first_tokens(windows: Windows, tokens: int) -> Windows:
    """Return the first windows that hold about so many tokens."""
    return windows.take(np.cumsum(windows.length) <= tokens)


def table(path: Path) -> str:
    """Return the results as a Markdown table: before -> after, by domain and system."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    systems = list(dict.fromkeys(row["system"] for row in rows))
    lines = ["| domain | train tokens | " + " | ".join(systems) + " |", "|---|---:|" + "---:|" * len(systems)]
    for domain in dict.fromkeys(row["domain"] for row in rows):
        found = {row["system"]: row for row in rows if row["domain"] == domain}
        cells = [
            f"{found[s]['before']:.1f} -> {found[s]['after']:.2f}" if s in found else "" for s in systems
        ]
        lines.append(f"| {domain} | {next(iter(found.values()))['tokens']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, action="append", default=[])
    parser.add_argument("--key", type=Path)
    parser.add_argument("--mix", type=Path, help="a mixture's stage folder: its experts, as far as trained")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--domains", nargs="*", help="these folders of --data only")
    parser.add_argument("--systems", nargs="*", help="these systems only")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--valid-tokens", type=int, default=100_000)
    parser.add_argument("--test-tokens", type=int, default=1 << 40)
    parser.add_argument("--select-tokens", type=int, default=1 << 40)
    parser.add_argument("--epochs", type=int, default=FinetuneConfig.max_epochs)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    done = set()
    if options.out.exists():
        done = {(r["domain"], r["system"]) for r in map(json.loads, options.out.read_text().splitlines())}
    domains = options.domains or (sorted(p.name for p in options.data.iterdir()) if options.data else [])
    for bundle_path in options.bundle:
        with open_bundle(bundle_path, [read_public_key(options.key)]) as bundle:
            systems = [bundle.manifest.kind, *bundle.manifest.comparison, *["mix"] * bool(options.mix)]
            systems = [system for system in systems if system in (options.systems or systems)]
            for domain in domains:
                for system in systems:
                    if (domain, system) not in done:
                        row = measure(bundle, options.data / domain, system, options, device)
                        with options.out.open("a") as out:
                            out.write(json.dumps(row) + "\n")
                        print(json.dumps(row), flush=True)
    print(table(options.out))


def measure(
    bundle: Bundle, folder: Path, system: str, options: argparse.Namespace, device: torch.device
) -> dict[str, object]:
    """Select, materialize, fine-tune and measure one system on one domain."""
    start = time.monotonic()
    manifest = bundle.manifest
    context = manifest.model.context_tokens
    tokenizer = build_tokenizer(read_pieces(bundle.file("tokenizer.json"), manifest.model.vocab_size))
    splits = {
        name: window_documents(read_documents(folder / f"{name}.jsonl.gz", []), tokenizer, context).windows
        for name in ("train", "valid", "test")
    }
    split = Split(
        first_tokens(splits["train"], options.tokens),
        first_tokens(splits["valid"], options.valid_tokens),
        "files",
    )
    test = first_tokens(splits["test"], options.test_tokens)
    expert = None
    if system == "slm" and manifest.kind != "slm":
        model = comparison_slm(bundle)
    else:
        embedder = load_embedder(*find_embedder_files(), device)
        selection = select_expert(
            first_tokens(split.train, options.select_tokens),
            tokenizer,
            embedder,
            bundle.tensor("clusters.centroids").numpy(),
        )
        expert = selection.expert if manifest.n_experts > 1 else 0
        model = materialize(bundle, expert)
        if system == "mix" and options.mix:
            # The same clusters, tokenizer and sizes; an unfinished mixture has no bundle yet.
            trained = load_checkpoint(options.mix / f"expert-{selection.expert:05}" / WEIGHTS_FILE).tensors
            model.load_state_dict({n.removeprefix("shared."): t for n, t in trained.items()}, strict=False)
    assert model is not None
    model.to(device)  # type: ignore[arg-type]

    def test_perplexity() -> float:
        return evaluate(model, None, all_microbatches(test, context, 8)).perplexity

    before = test_perplexity()
    config = replace(FinetuneConfig(), max_epochs=options.epochs)
    training = manifest.raw["training"]
    settings = train_config(config, split, context, training["learning_rate"], training["rows_per_step"])
    make_deterministic(config.seed)
    with tempfile.TemporaryDirectory() as work:
        result = finetune(
            model, split, context, settings, config.seed, Path(work), lambda line: None, inputs=""
        )
    return {
        "domain": folder.name,
        "system": system,
        "before": before,
        "after": test_perplexity(),
        "valid_after": math.exp(result.heldout_loss),
        "expert": expert,
        "best_step": result.step,
        "steps": result.steps_run,
        "tokens": split.train.n_tokens,
        "bundle": f"{manifest.name} {manifest.version}",
        "device": str(device),
        "seconds": round(time.monotonic() - start),
    }


if __name__ == "__main__":
    main()
