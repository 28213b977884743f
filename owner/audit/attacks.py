"""What somebody with a model in hand can try: was this text trained on, does it recite, where did it start.

Every attack is a pure function of the model and token windows, and returns numbers only. Greedy decoding is
read off one forward pass: it writes the true text for as long as each true token is the likeliest.
"""

import math
import time
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from owner.privacy.canaries import SECRET_TOKENS, Canary, draw_canaries
from shared.batches import Rows, Windows, collate
from shared.bundle import Bundle
from shared.losses import logits_of
from shared.materializing import comparison_slm, materialize
from shared.progress import per_second, show

ROWS = 8
"""Windows that go through the model together."""
PREFIX_TOKENS = 32
"""Tokens of a window that the model is given before it must go on by itself."""
CANDIDATES = 1024
"""Secrets that a canary's is ranked among, itself included: an exposure is at most log2 of it. Ours."""
FALSE_POSITIVE_RATE = 0.01
"""Carlini et al. 2022: an attack counts by what it is sure of."""
Z = 1.96
"""Of a two-sided interval of 95 %."""


@dataclass(frozen=True)
class TokenFigures:
    """Of one window: each token's loss, and whether it was the likeliest; both (n,)."""

    nats: np.ndarray
    is_likeliest: np.ndarray


@torch.no_grad()
def token_figures(model: PreTrainedModel, windows: Windows) -> list[TokenFigures]:
    """Return every window's figures under the model, ROWS windows at a time."""
    module = cast(nn.Module, model).eval()
    n, began_s = len(windows), time.monotonic()
    run, total = 0, int(windows.length.sum())
    rows = Rows(np.arange(n), np.arange(n + 1), np.zeros(n, np.int32))
    found: list[TokenFigures] = []
    for start in range(0, n, ROWS):
        chosen = list(range(start, min(n, start + ROWS)))
        batch = collate(windows, rows, chosen)
        logits = logits_of(module, {}, batch).view(*batch.labels.shape, -1)
        labels = batch.labels.clamp(min=0).to(logits.device)
        nats = -logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1).cpu()
        is_likeliest = (logits.argmax(-1) == labels).cpu()
        for row, window in enumerate(chosen):
            length = int(windows.length[window])
            found.append(TokenFigures(nats[row, :length].numpy(), is_likeliest[row, :length].numpy()))
            run += length
        show(run, total, "tokens", f"{per_second(run, began_s) / 1000:.1f}k tokens/s")
    return found


def rank_auc(members: np.ndarray, others: np.ndarray) -> float:
    """Return how often a member's score is below another's, ties counting half (Mann and Whitney 1947)."""
    ordered = np.sort(others)
    above = len(others) - np.searchsorted(ordered, members, "right")
    ties = len(others) - above - np.searchsorted(ordered, members, "left")
    return float((above + ties / 2).mean() / len(others))


def auc_interval(auc: float, n_members: int, n_others: int) -> tuple[float, float]:
    """Return a 95 % interval that keeps its width at 0 and 1. Source: Newcombe 2006, method 5."""
    mean_n = (n_members + n_others) / 2

    def deviation(true: float) -> float:
        spread = 1 + (mean_n - 1) * ((1 - true) / (2 - true) + true / (1 + true))
        return Z * math.sqrt(true * (1 - true) * spread / (n_members * n_others))

    def bound(outer: float) -> float:
        """Bisect between the estimate and an end for the value whose deviation reaches the estimate."""
        inner = auc
        for _ in range(60):
            middle = (inner + outer) / 2
            if abs(middle - auc) <= deviation(middle):
                inner = middle
            else:
                outer = middle
        return inner

    return bound(0.0), bound(1.0)


def sure_fraction(members: np.ndarray, others: np.ndarray) -> float:
    """Return the members found where at most FALSE_POSITIVE_RATE of the others are mistaken for one."""
    threshold = np.sort(others)[int(FALSE_POSITIVE_RATE * len(others))]
    return float((members < threshold).mean())


@dataclass(frozen=True)
class Recital:
    """How far a model goes on word for word after PREFIX_TOKENS tokens of a window."""

    windows: int
    longest_tokens: int
    mean_tokens: float


def recite(figures: list[TokenFigures]) -> Recital:
    """Return the longest and the mean exact continuation of the windows that are long enough to ask."""
    runs = [
        int(np.argmin(np.append(one.is_likeliest[PREFIX_TOKENS:], False)))
        for one in figures
        if len(one.nats) > PREFIX_TOKENS
    ]
    return Recital(len(runs), max(runs, default=0), float(np.mean(runs)) if runs else 0.0)


@dataclass(frozen=True)
class Exposure:
    """Of planted canaries: log2(CANDIDATES) - log2(rank of the secret), and whether decoding writes it."""

    bits: list[float]
    completed: int

    @property
    def mean_bits(self) -> float:
        """About 1.44 for a model that never saw them."""
        return float(np.mean(self.bits))


def expose(model: PreTrainedModel, canaries: list[Canary], seed: int) -> Exposure:
    """Rank each secret by its loss among random ones after the same prefix. Source: Carlini et al. 2019."""
    vocab_size = model.config.vocab_size
    bits, completed = [], 0
    for number, canary in enumerate(canaries):
        drawn = draw_canaries(CANDIDATES - 1, vocab_size, seed + 1 + number)
        rows = [canary.prefix + one.secret for one in (canary, *drawn)]
        figures = token_figures(model, _as_windows(np.asarray(rows, np.uint32)))
        losses = np.asarray([one.nats[-SECRET_TOKENS:].sum() for one in figures])
        bits.append(math.log2(CANDIDATES) - math.log2(1 + int((losses[1:] <= losses[0]).sum())))
        completed += bool(figures[0].is_likeliest[-SECRET_TOKENS:].all())
    return Exposure(bits, completed)


def _as_windows(tokens: np.ndarray) -> Windows:
    n, length = tokens.shape
    zeros = np.zeros(n, np.int32)
    return Windows([tokens.ravel()], zeros, np.arange(n) * length, np.full(n, length, np.int32), zeros)


def distances(model: PreTrainedModel, bundle: Bundle) -> dict[str, float]:
    """Return how far the model's weights lie from each model of the bundle (Euclidean), nearest first.

    Cost: one materialization for each expert.
    """
    found: dict[str, float] = {}
    for expert in range(bundle.manifest.n_experts):
        show(expert, bundle.manifest.n_experts, "experts compared")
        found[f"expert-{expert}"] = _distance(model, materialize(bundle, expert))
    plain = comparison_slm(bundle)
    if plain is not None:
        found["slm"] = _distance(model, plain)
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


@torch.no_grad()
def _distance(one: PreTrainedModel, other: PreTrainedModel) -> float:
    others = dict(cast(nn.Module, other).named_parameters())
    squares = [
        float((p.double() - others[name].double()).square().sum())
        for name, p in cast(nn.Module, one).named_parameters()
    ]
    return math.sqrt(sum(squares))


def as_figures(found: Recital | Exposure) -> dict[str, object]:
    """Return the numbers for JSON."""
    return asdict(found) | ({"mean_bits": found.mean_bits} if isinstance(found, Exposure) else {})
