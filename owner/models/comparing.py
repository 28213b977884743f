"""Which of two models predicts documents better, by how much, and whether that is decided.

The same bytes for both, in bits per byte, so that tokenizers may differ. The difference is taken by document
and its interval drawn over documents: what both find hard cancels.
"""

import math
from dataclasses import asdict
from typing import Any

from owner.documents.intervals import ratio_interval
from owner.models.evaluating import describe, interval_text, score
from owner.models.loading import LanguageModel
from owner.models.texts import Texts


def compare(one: LanguageModel, other: LanguageModel, texts: Texts) -> dict[str, Any]:
    """Return both models' figures and the difference `one - other`: below 0, `one` is better."""
    ours, theirs = score(one, texts.texts, "score A"), score(other, texts.texts, "score B")
    difference = ratio_interval((ours.nats - theirs.nats) / math.log(2), ours.n_bytes)
    winner = None
    if not difference.covers_zero:
        winner = "a" if difference.value < 0 else "b"
    return {
        "a": describe(one, texts, ours),
        "b": describe(other, texts, theirs),
        "bits_per_byte_a_minus_b": asdict(difference),
        "better": winner,
        "documents_a_is_better_on": int((ours.nats < theirs.nats).sum()),
    }


def summarize_comparison(found: dict[str, Any]) -> list[str]:
    """Return the lines that `owner compare` prints."""
    lines = []
    for letter in ("a", "b"):
        figures = found[letter]
        lines.append(
            f"{letter.upper()}  {interval_text(figures['bits_per_byte'], 4)} bits/byte · {figures['model']}"
        )
        if figures["unknown_tokens"]:
            lines.append(f"   warning: {figures['unknown_tokens']:,} tokens stand for unknown text")
    difference = found["bits_per_byte_a_minus_b"]
    n = found["a"]["documents"]
    kind = "held-out documents" if found["a"]["are_heldout"] else "documents"
    lines.append(
        f"A - B  {interval_text(difference, 4)} bits/byte · {n:,} {kind},"
        f" A better on {found['documents_a_is_better_on']:,}"
    )
    if found["better"] is None:
        why = (
            "too few documents" if difference["low"] is None else "the interval of the difference covers zero"
        )
        lines.append(f"not decided: {why}")
    else:
        better, worse = ("a", "b") if found["better"] == "a" else ("b", "a")
        share = abs(difference["value"]) / found[worse]["bits_per_byte"]["value"]
        lines.append(f"{better.upper()} is better: {share:.1%} fewer bits per byte than {worse.upper()}")
    return lines
