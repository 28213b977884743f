"""Canaries: random token sequences planted in the training text, to measure what a model learns by heart.

Each is a document of its own, so that differential privacy for documents covers it like any other; its
repeats are windows, so that none is seen beside another. Source: Carlini et al. 2019, "The Secret Sharer".
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from owner.documents.windows import Split
from shared.batches import Windows
from shared.errors import PlanearlyError
from shared.slm import EOS_ID

PREFIX_TOKENS, SECRET_TOKENS = 8, 8
REPEATS = 8
"""Windows with the same canary in its document, each seen once in a pass."""
FIRST_PIECE = EOS_ID + 257
"""Pieces below are special or single bytes; canaries are made of the others, where there are any."""
_STREAM = 0xCA7A21E5


@dataclass(frozen=True)
class Canary:
    """What is planted: a prefix to ask with, and the secret that should not come back."""

    prefix: tuple[int, ...]
    secret: tuple[int, ...]


def draw_canaries(n: int, vocab_size: int, seed: int) -> list[Canary]:
    """Return n canaries, their tokens independent and equally likely: no text that anyone wrote."""
    lowest = FIRST_PIECE if vocab_size > FIRST_PIECE else EOS_ID + 1
    drawn = np.random.default_rng([_STREAM, seed]).integers(
        lowest, vocab_size, (n, PREFIX_TOKENS + SECRET_TOKENS)
    )
    return [Canary(tuple(row[:PREFIX_TOKENS]), tuple(row[PREFIX_TOKENS:])) for row in drawn.tolist()]


def plant_canaries(split: Split, canaries: list[Canary]) -> Split:
    """Return the split with each canary as a further training document of REPEATS equal windows."""
    if not canaries:
        return split
    train = split.train
    tokens = np.asarray([canary.prefix + canary.secret for canary in canaries], np.uint32)
    n, length = tokens.shape
    windows = n * REPEATS
    first = int(max(split.train_document.max(), split.heldout_document.max())) + 1
    planted = Windows(
        streams=[*train.streams, tokens.ravel()],
        stream=np.concatenate([train.stream, np.full(windows, len(train.streams), np.int32)]),
        start=np.concatenate([train.start, np.repeat(np.arange(n, dtype=np.int64) * length, REPEATS)]),
        length=np.concatenate([train.length, np.full(windows, length, np.int32)]),
        cluster=np.concatenate([train.cluster, np.zeros(windows, np.int32)]),
    )
    documents = np.repeat(np.arange(first, first + n, dtype=np.int32), REPEATS)
    return replace(split, train=planted, train_document=np.concatenate([split.train_document, documents]))


def canaries_file(canaries: list[Canary]) -> dict[str, Any]:
    """Return what `OUT/canaries.json` holds: token ids of the model's tokenizer."""
    return {"repeats": REPEATS, "canaries": [asdict(canary) for canary in canaries]}


def read_canaries(path: Path) -> tuple[list[Canary], int]:
    """Return what such a file holds, and the repeats. Raises PlanearlyError when it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        canaries = [Canary(tuple(one["prefix"]), tuple(one["secret"])) for one in found["canaries"]]
        return canaries, int(found["repeats"])
    except (ValueError, KeyError, TypeError) as error:
        raise PlanearlyError(
            f"{path}: damaged ({type(error).__name__})", hint="plant canaries in a new run"
        ) from None
