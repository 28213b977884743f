"""How cost grows: the slope of log seconds over log size, of a step, of verifying, of an owner's reading.

  python benchmarks/growth.py

1 is linear; a slope below says that something else still weighs more at these sizes. Sizes of a row take
turns in one process, after one turn that is not counted; seconds are the processor's. A step is one of a
projected network (forth, back, clip, Adam) in a laptop's model; of h, k, clusters per step and rows per
step all but one stand still. Documents are short random ones, read, tokenized, searched for duplicates and
split as an owner's; of their windows at most owner.choice.selecting.SELECT_WINDOWS are embedded.
"""

import json
import random
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from bundle_speed import KEY, SIZES, make_bundle
from side_by_side import options_of, tell

from owner.documents.duplicates import read_distinct
from owner.documents.windows import split_documents
from shared.batches import Microbatch, Rows, Windows, collate
from shared.bundle import open_bundle
from shared.device import keep_freed_memory, make_deterministic
from shared.pieces import EOS_ID, build_tokenizer, read_pieces
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.signature import read_public_key
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.training import train_step, trained_parameters

Deed = Callable[[], object]
STEP = {"h": 16, "k": 64, "clusters per step": 8, "rows per step": 32}
"""Sizes of the step where they stand still; rows are of 256 tokens."""
GROWING = {
    "h": (8, 16, 32, 64),
    "k": (32, 64, 128, 256),
    "clusters per step": (4, 8, 16),
    "rows per step": (16, 32, 64),
}
DOCUMENTS = (1_000, 10_000, 100_000)
WORDS = 60
CAPACITIES = (4, 8, 16, 32)
"""Of bundles of one model: about 0.3 to 1.6 GB of the full size."""


def step_of(sizes: dict[str, int], preset: str) -> Deed:
    """Return a function that makes one optimizer step."""
    config = PRESETS[preset]
    make_deterministic(0)
    model = build_slm(config)
    network = ProjectedNetwork(model, feed_forward_linears(model), sizes["k"], 16, sizes["h"])
    parameters = list(trained_parameters(model, network).values())
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    batches = list(_microbatches(sizes, config.vocab_size, config.context_tokens))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        train_step(model, network, batches)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def _microbatches(sizes: dict[str, int], vocab_size: int, context: int) -> Iterator[Microbatch]:
    """Yield microbatches of 2 rows, of as many clusters as the step has, evenly."""
    n_rows, n_clusters = sizes["rows per step"], sizes["clusters per step"]
    stream = np.random.default_rng(0).integers(EOS_ID + 1, vocab_size, n_rows * context)
    cluster = (np.arange(n_rows, dtype=np.int32) // 2) % n_clusters
    starts = np.arange(n_rows, dtype=np.int64) * context
    lengths = np.full(n_rows, context, np.int32)
    windows = Windows([stream], np.zeros(n_rows, np.int32), starts, lengths, cluster)
    rows = Rows(np.arange(n_rows), np.arange(n_rows + 1), cluster)
    return (collate(windows, rows, [row, row + 1]) for row in range(0, n_rows, 2))


def verify_of(path: Path) -> Deed:
    """Return a function that verifies a bundle."""

    def verify() -> None:
        with open_bundle(path, [KEY.public_key]) as bundle:
            bundle.verify_all()

    return verify


def read_of(folder: Path, n_documents: int) -> Deed:
    """Return a function that reads a folder of this many documents as an owner does."""
    generator = random.Random(0)
    words = sorted({word for text in topics.values() for word in text.split() if word.isalpha()})
    folder.mkdir()
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(n_documents):
            file.write(json.dumps({"text": " ".join(generator.choices(words, k=WORDS))}) + "\n")
    demo = Path(__file__).parent.parent / "examples" / "demo"
    with open_bundle(demo / "pn16.st", [read_public_key(demo / "provider.pub")]) as bundle:
        sizes = bundle.manifest.model
        tokenizer = build_tokenizer(read_pieces(bundle.file("tokenizer.json"), sizes.vocab_size))

    def read() -> None:
        private, _ = read_distinct(folder, [], tokenizer, sizes.context_tokens)
        assert private.n_documents == n_documents
        split_documents(private, 0.1, 0)

    return read


def slopes(deeds: dict[float, Deed], rounds: int) -> tuple[list[float], dict[str, float]]:
    """Return a slope for each round, and each size's median seconds."""
    seconds: dict[float, list[float]] = {size: [] for size in deeds}
    for turn in range(rounds + 1):
        for size, deed in deeds.items():
            start = time.process_time()
            deed()
            if turn:
                seconds[size].append(time.process_time() - start)
    logs = np.log(list(deeds))
    found = [
        float(np.polyfit(logs, np.log([seconds[size][turn] for size in deeds]), 1)[0])
        for turn in range(rounds)
    ]
    return found, {f"{size:,.0f}": round(statistics.median(times), 4) for size, times in seconds.items()}


def rows_of(options: Namespace, folder: Path) -> Iterator[tuple[str, dict[float, Deed]]]:
    """Yield each row's name and what it does at each size."""
    preset = "test" if options.toy else "laptop"
    for name, sizes in GROWING.items():
        chosen = sizes[:2] if options.toy else sizes
        yield f"step over {name}", {size: step_of(STEP | {name: size}, preset) for size in chosen}
    bundles = {}
    for capacity in CAPACITIES[:2] if options.toy else CAPACITIES:
        path = folder / f"{capacity}.st"
        preset_name, n_experts, _, layers = SIZES["toy" if options.toy else "pn32"]
        make_bundle(path, preset_name, n_experts, capacity, layers)
        bundles[path.stat().st_size] = verify_of(path)
    yield "verify over bytes", dict(bundles)
    counts = (50, 100) if options.toy else DOCUMENTS
    yield "reading over documents", {n: read_of(folder / str(n), n) for n in counts}


def main() -> None:
    options = options_of(__doc__, rounds=3)
    keep_freed_memory()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, deeds in rows_of(options, folder):
            found, seconds = slopes(deeds, options.rounds)
            tell("growth", name, 1.1, found, options, {"seconds": seconds})


if __name__ == "__main__":
    main()
