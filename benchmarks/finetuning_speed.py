"""An owner's fine-tuning against transformers' Trainer and TRL's SFTTrainer, each with its own packing.

  python benchmarks/finetuning_speed.py [--epochs 1]

The expert of the demo bundle on Python's language reference, a tenth of it held out by document: the same
windows, tokens per optimizer step (about: each packs in its own way), rate, clip, fused Adam and bfloat16
products for all. Trainer packs with DataCollatorWithFlattening, SFTTrainer with packing=True. Every few
steps the clock stops and our own held-out loss is taken of each. Compared are seconds per training token,
and seconds to the loss that all of them reach: the highest of their lowest.
"""

import contextlib
import io
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from peers import (
    CLIP_NORM,
    LEARNING_RATE,
    ROWS_PER_MICROBATCH,
    WARMUP_STEPS,
    Clock,
    callback_of,
    figures_of,
    run_trainer,
    settings_of,
)
from side_by_side import DEVICE, Compare, Figures, options_of, require, take_turns

from owner.documents.reading import Document
from owner.documents.windows import Split, split_documents, window_documents
from shared.batches import Microbatch, Sampler, all_microbatches
from shared.bundle import open_bundle
from shared.device import choose_device, make_deterministic
from shared.materializing import materialize
from shared.pieces import build_tokenizer, read_pieces
from shared.signature import read_public_key
from shared.tokenizer import as_pretrained
from shared.train_config import TrainConfig
from shared.training import train

DEMO = Path(__file__).parent.parent / "examples" / "demo"
EXPERT = 3
"""The one that the demo selects."""
ROWS_PER_STEP = 8
EVALS = 8
HELDOUT_ROWS = 16


def _prepare(options: Namespace) -> tuple[Any, Any, Split, int]:
    """Return the expert, the tokenizer, the split windows and the context."""
    with open_bundle(DEMO / "pn16.st", [read_public_key(DEMO / "provider.pub")]) as bundle:
        sizes = bundle.manifest.model
        tokenizer = build_tokenizer(read_pieces(bundle.file("tokenizer.json"), sizes.vocab_size))
        model: Any = materialize(bundle, EXPERT)
    names = sorted(topics)[: 6 if options.toy else None]
    documents = [Document(name, 0, topics[name]) for name in names]
    private = window_documents(documents, tokenizer, sizes.context_tokens)
    make_deterministic(0)
    split = split_documents(private, 0.1, 0)
    return model.to(choose_device(options.device)), tokenizer, split, sizes.context_tokens


def _clock(split: Split, context: int) -> Clock:
    heldout = list(all_microbatches(split.heldout, context, ROWS_PER_MICROBATCH))
    n_steps = split.train.n_tokens // (ROWS_PER_STEP * context)
    return Clock(heldout[: HELDOUT_ROWS // ROWS_PER_MICROBATCH], max(1, n_steps // EVALS))


def planearly(options: Namespace) -> Figures:
    model, _, split, context = _prepare(options)
    clock = _clock(split, context)

    class Timed(Sampler):
        def step(self, step: int) -> list[Microbatch]:
            clock.step(model)
            return super().step(step)

    sampler = Timed(split.train, context, ROWS_PER_STEP, ROWS_PER_MICROBATCH, 0)
    steps = options.epochs * max(1, len(sampler.rows) // ROWS_PER_STEP)
    config = TrainConfig(
        steps=steps,
        rows_per_step=ROWS_PER_STEP,
        rows_per_microbatch=ROWS_PER_MICROBATCH,
        learning_rate=LEARNING_RATE,
        warmup_steps=min(WARMUP_STEPS, steps),
        clip_norm=CLIP_NORM,
        eval_every_steps=steps + 1,
    )
    with tempfile.TemporaryDirectory() as folder:
        done = train(model, None, sampler, lambda: clock.heldout[:1], config, Path(folder), lambda line: None)
    clock.stop(model)
    return figures_of(clock, done.tokens)


def trainer(options: Namespace) -> Figures:
    model, _, split, context = _prepare(options)
    return run_trainer(model, split, context, _clock(split, context), ROWS_PER_STEP, options)


def sft_trainer(options: Namespace) -> Figures:
    require("trl", "trl")
    require("datasets", "datasets")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer, split, context = _prepare(options)
    clock = _clock(split, context)
    windows = split.train
    data = Dataset.from_dict({"input_ids": [windows.tokens(i).tolist() for i in range(len(windows))]})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = settings_of(options, folder, ROWS_PER_MICROBATCH, ROWS_PER_STEP)
        pretrained = as_pretrained(tokenizer, context)
        pretrained.pad_token = pretrained.eos_token
        SFTTrainer(
            model,
            SFTConfig(**settings, packing=True, max_length=context, gradient_checkpointing=False),
            train_dataset=data,
            processing_class=pretrained,
            callbacks=[callback_of(clock, model)],
        ).train()
    return figures_of(clock, options.epochs * windows.n_tokens)


def seconds_to(loss: float, curve: list[tuple[float, float]]) -> float:
    """Return when a curve first comes down to a loss, on the straight line between two of its points."""
    for (t0, l0), (t1, l1) in zip(curve, curve[1:], strict=False):
        if l1 <= loss:
            return t0 + (t1 - t0) * (l0 - loss) / (l0 - l1) if l0 > loss else t0
    return curve[-1][0]


def to_common_loss(turn: dict[str, Figures]) -> None:
    """Give each system of a turn its seconds to the loss that all reach."""
    loss = max(figures["lowest_loss"] for figures in turn.values())
    for figures in turn.values():
        figures["seconds_to_loss"] = seconds_to(loss, figures.pop("curve"))
        figures["common_loss"] = loss


def main() -> None:
    options = options_of(__doc__, ("--epochs", {"type": int, "default": 1}), DEVICE, rounds=3)
    systems: dict[str, Callable[[Namespace], Figures]] = {
        "planearly": planearly,
        "Trainer": trainer,
        "SFTTrainer": sft_trainer,
    }
    compares = [
        Compare("planearly", peer, figure, goal)
        for peer in ("Trainer", "SFTTrainer")
        for figure, goal in (("seconds", 1.0), ("seconds_to_loss", 0.9))
    ]
    take_turns("owner fine-tuning", systems, compares, options, to_common_loss)


if __name__ == "__main__":
    main()
