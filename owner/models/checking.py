"""What an exported model says beside the model it was made from: the same logits, the same greedy text."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from owner.models.loading import LanguageModel
from owner.models.running import Logits, OnnxRuntime
from shared.progress import show

WINDOWS = 16
"""Windows of documents that are compared at most, evenly spaced. Ours."""
PROMPTS, PROMPT_TOKENS, GREEDY_TOKENS = 4, 16, 24
"""Greedy continuations: how many, from how many tokens of a window, how long. Ours."""


@dataclass(frozen=True)
class Agreement:
    """Over all windows."""

    windows: int
    tokens: int
    steps: int
    """Tokens that were run once more, one at a time over kept keys and values; 0 where none are kept."""
    largest_logit_difference: float
    """Of tokens and steps."""
    same_likeliest_fraction: float
    """Of tokens, for which both find the same next token likeliest."""
    greedy_continuations: int
    greedy_same: int
    perplexity: float
    perplexity_original: float


def compare_logits(original: Logits, exported: Logits, windows: list[list[int]]) -> dict[str, Any]:
    """Run both over windows that begin with <s>; return an Agreement, for JSON."""
    largest = nats = nats_original = 0.0
    n_tokens = n_steps = n_same = greedy_same = 0
    for ids in windows:
        expected, found = original(ids), exported(ids)
        largest = max(largest, float(np.abs(expected - found).max()))
        n_same += int((expected.argmax(1) == found.argmax(1)).sum())
        n_tokens += len(ids)
        nats_original += _nats(expected, ids)
        nats += _nats(found, ids)
        show(n_tokens, sum(map(len, windows)), "tokens compared")
    prompts = windows[:: max(1, len(windows) // PROMPTS)][:PROMPTS]
    for ids in prompts:
        start, going_on = ids[:PROMPT_TOKENS], exported
        if isinstance(exported, OnnxRuntime):
            going_on = exported.begin()
            until = ids[: PROMPT_TOKENS + GREEDY_TOKENS]
            found = _in_steps(exported.begin(), until)
            largest = max(largest, float(np.abs(original(until) - found).max()))
            n_steps += len(until) - len(start)
        greedy_same += continue_greedily(original, start) == continue_greedily(going_on, start)
    n_predicted = max(1, n_tokens - len(windows))
    return asdict(
        Agreement(
            len(windows),
            n_tokens,
            n_steps,
            largest,
            n_same / n_tokens,
            len(prompts),
            greedy_same,
            math.exp(nats / n_predicted),
            math.exp(nats_original / n_predicted),
        )
    )


def _in_steps(going_on: Logits, ids: list[int]) -> np.ndarray:
    """Return the logits of a prompt in one go, and of the ids after it one at a time."""
    first = going_on(ids[:PROMPT_TOKENS])
    steps = [going_on(ids[:end]) for end in range(PROMPT_TOKENS + 1, len(ids) + 1)]
    return np.concatenate([first, *steps])


def _nats(logits: np.ndarray, ids: list[int]) -> float:
    """Return the summed negative log likelihood of all ids but the first."""
    logits = logits[:-1].astype(np.float64)
    top = logits.max(1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(1))
    return float((log_sum - logits[np.arange(len(ids) - 1), ids[1:]]).sum())


def continue_greedily(logits: Logits, ids: list[int], n_tokens: int = GREEDY_TOKENS) -> list[int]:
    """Return the n_tokens likeliest ids, one after the other."""
    written = list(ids)
    for n in range(1, n_tokens + 1):
        written.append(int(logits(written)[-1].argmax()))
        show(n, n_tokens, "tokens written")
    return written[len(ids) :]


def own_windows(model: LanguageModel, logits: Logits) -> list[list[int]]:
    """Return one window of what the model writes by itself: to compare on where no documents are given."""
    room = (model.context_tokens or PROMPT_TOKENS + GREEDY_TOKENS) - 1 - GREEDY_TOKENS
    return [[model.begin_id, *continue_greedily(logits, [model.begin_id], max(1, min(64, room)))]]


def document_windows(model: LanguageModel, texts: list[str]) -> list[list[int]]:
    """Return evenly spaced windows of documents, each <s> and up to a context of tokens."""
    room = (model.context_tokens or 1024) - 1 - GREEDY_TOKENS
    windows = [
        [model.begin_id, *ids[start : start + room]]
        for ids in map(model.encode, texts)
        for start in range(0, len(ids), room)
    ]
    return windows[:: max(1, len(windows) // WINDOWS)][:WINDOWS]
