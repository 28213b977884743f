"""How well a model predicts documents: perplexity, and bits per byte, in which any two models compare.

A document longer than the model's context is scored in windows that overlap by half, so that every token
but the first has what came before it, half a window at least where there is as much; each window begins with
<s>, and each token of the text is scored once (the strided windows of transformers' guide "Perplexity of
fixed-length models"). The end of text is not scored: it is no byte. The held-out loss of a run's report is
another figure, shown beside it: windows do not overlap there, and the end of text counts.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from owner.documents.intervals import Interval, ratio_interval
from owner.models.loading import LanguageModel, read_run
from owner.models.texts import Texts
from shared.batches import IGNORED
from shared.progress import per_second, show, stage

WINDOW_TOKENS = 2048
"""Longest window, <s> included, for models with a longer context too: bounds memory. Ours."""
BATCH_TOKENS = 2048
"""Tokens that go through the model together, padding included; one window at least. Ours."""


@dataclass(frozen=True)
class Scores:
    """Each document's sums under one model: (n_documents,) each."""

    nats: np.ndarray
    tokens: np.ndarray
    n_bytes: np.ndarray
    unknown_tokens: int
    """Tokens that stand for text that the tokenizer has no word for: such text costs nothing to predict."""
    window_tokens: int

    @property
    def bits_per_byte(self) -> Interval:
        """Of UTF-8 text."""
        return ratio_interval(self.nats / math.log(2), self.n_bytes)

    @property
    def nats_per_token(self) -> Interval:
        """The loss, of this model's own tokens."""
        return ratio_interval(self.nats, np.maximum(self.tokens, 1))


@dataclass(frozen=True)
class _Window:
    document: int
    input_ids: list[int]
    labels: list[int]


def cut_overlapping(
    ids: list[int], begin_id: int, window_tokens: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (inputs, labels) that score every id once; labels of what is context alone are IGNORED."""
    stride = max(1, window_tokens // 2)
    end = scored = 0
    while scored < len(ids):
        end = min(len(ids), max(window_tokens, scored + stride))
        start = max(0, end - window_tokens)
        labels = [IGNORED] * (scored - start) + ids[scored:end]
        yield [begin_id, *ids[start : end - 1]], labels
        scored = end


@torch.no_grad()
def score(model: LanguageModel, texts: list[str], name: str = "score") -> Scores:
    """Return how well the model predicts each text, a stage of this name.

    Cost: two passes over a long text, one over a short.
    """
    window_tokens = min(WINDOW_TOKENS, model.context_tokens or WINDOW_TOKENS)
    windows: list[_Window] = []
    tokens = np.zeros(len(texts))
    unknown = 0
    for document, text in enumerate(texts):
        ids = model.encode(text)
        tokens[document] = len(ids)
        unknown += ids.count(model.unknown_id) if model.unknown_id is not None else 0
        windows += [_Window(document, *pair) for pair in cut_overlapping(ids, model.begin_id, window_tokens)]
    nats = np.zeros(len(texts))
    windows.sort(key=lambda window: len(window.input_ids))
    run = scored = 0
    total = sum(len(window.input_ids) for window in windows)
    with stage(name):
        began_s = time.monotonic()
        for batch in _batches(windows):
            for window, found in zip(batch, _nats(model, batch), strict=True):
                nats[window.document] += found
                run += len(window.input_ids)
                scored += sum(label != IGNORED for label in window.labels)
            rate = per_second(run, began_s) / 1000
            show(run, total, "tokens", f"{nats.sum() / scored:.3f} nats/token · {rate:.1f}k tokens/s")
    n_bytes = np.asarray([len(text.encode()) for text in texts], np.float64)
    return Scores(nats, tokens, n_bytes, unknown, window_tokens)


def _batches(windows: list[_Window]) -> Iterator[list[_Window]]:
    """Yield windows of rising length together, BATCH_TOKENS at a time."""
    batch: list[_Window] = []
    for window in windows:
        if batch and (len(batch) + 1) * len(window.input_ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _nats(model: LanguageModel, batch: list[_Window]) -> list[float]:
    """Return each window's sum, in float64. Padding comes last, where no token looks."""
    longest = len(batch[-1].input_ids)
    inputs = torch.full((len(batch), longest), model.begin_id)
    labels = torch.full((len(batch), longest), IGNORED)
    for row, window in enumerate(batch):
        inputs[row, : len(window.input_ids)] = torch.tensor(window.input_ids)
        labels[row, : len(window.labels)] = torch.tensor(window.labels)
    logits = model.module(input_ids=inputs.to(model.model.device), use_cache=False).logits
    per_token = cross_entropy(
        logits.transpose(1, 2), labels.to(logits.device), ignore_index=IGNORED, reduction="none"
    )
    return per_token.double().sum(1).tolist()


def evaluate(model: LanguageModel, texts: Texts) -> dict[str, Any]:
    """Return a model's figures on texts, for JSON, and beside them what its run's report says of the same."""
    report = read_run(model.folder) if texts.are_heldout else None
    found = describe(model, texts, score(model, texts.texts))
    return found | {"report_perplexity": report["perplexity"]["after"] if report else None}


def describe(model: LanguageModel, texts: Texts, scores: Scores) -> dict[str, Any]:
    """Return scores as figures with their intervals."""
    loss = scores.nats_per_token
    return {
        "model": model.name,
        "documents": len(texts.texts),
        "are_heldout": texts.are_heldout,
        "are_trained_on": texts.is_seen,
        "bytes": int(scores.n_bytes.sum()),
        "tokens": int(scores.tokens.sum()),
        "unknown_tokens": scores.unknown_tokens,
        "window_tokens": scores.window_tokens,
        "nats_per_token": asdict(loss),
        "perplexity": asdict(loss.map(math.exp)),
        "bits_per_byte": asdict(scores.bits_per_byte),
    }


def interval_text(interval: dict[str, Any], digits: int) -> str:
    """Return a figure with its interval, in words."""
    value = f"{interval['value']:.{digits}f}"
    if interval["low"] is None:
        return f"{value} (too few documents for an interval)"
    return f"{value} (95 %: {interval['low']:.{digits}f} to {interval['high']:.{digits}f})"


def summarize(found: dict[str, Any]) -> list[str]:
    """Return the lines that `owner evaluate` prints."""
    kind = "held-out documents of its own run" if found["are_heldout"] else "documents"
    lines = [
        f"scored       {found['documents']:,} {kind} · {found['tokens']:,} tokens · {found['bytes']:,} bytes",
        f"perplexity   {interval_text(found['perplexity'], 2)}",
        f"nats/token   {interval_text(found['nats_per_token'], 4)}",
        f"bits/byte    {interval_text(found['bits_per_byte'], 4)}",
    ]
    if found["report_perplexity"] is not None:
        lines.append(
            f"report       perplexity {found['report_perplexity']:.2f} of the same documents: in windows that"
            " do not overlap, with ends of text"
        )
    if found["unknown_tokens"]:
        lines.append(
            f"warning      {found['unknown_tokens']:,} tokens stand for unknown text: bits/byte flatters it"
        )
    return lines
