"""How far a figure could lie in another sample of such documents: the bootstrap by document.

Tokens of one document are alike, so documents are drawn again, with replacement, and never tokens (Efron and
Tibshirani 1993, the percentile method; Koehn 2004 for paired differences). A figure is a ratio of sums, as
nats over tokens. Its interval says nothing about documents of another kind, and with few documents it is
too narrow: from LEAST_DOCUMENTS on there is one at all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
"""Draws of as many documents as there are. Ours; Efron and Tibshirani ask for a thousand or more."""
LEAST_DOCUMENTS = 5
"""Of fewer there is no interval. Ours."""


@dataclass(frozen=True)
class Interval:
    """A figure, and the ends of its interval of LEVEL; None where there are too few documents."""

    value: float
    low: float | None
    high: float | None
    n_documents: int

    def map(self, rising: Callable[[float], float]) -> "Interval":
        """Return the interval of a function that only rises, as math.exp: of a perplexity from nats/token."""
        low, high = (None if end is None else rising(end) for end in (self.low, self.high))
        return Interval(rising(self.value), low, high, self.n_documents)

    @property
    def covers_zero(self) -> bool:
        """Whether the sign is open: of a difference, which one is better. True without an interval."""
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high


def ratio_interval(parts: np.ndarray, wholes: np.ndarray, seed: int = 0) -> Interval:
    """Return sum(parts) / sum(wholes) with its interval; both (n_documents,), wholes above 0.

    A loss: each document's nats, and its tokens. A paired difference of two models on the same documents:
    the differences of nats as parts. The same arguments give the same bits. Cost: RESAMPLES * n_documents.
    """
    parts, wholes = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    n = len(parts)
    value = float(parts.sum() / wholes.sum())
    if n < LEAST_DOCUMENTS:
        return Interval(value, None, None, n)
    generator = np.random.default_rng(seed)
    drawn = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        chosen = generator.integers(0, n, n)
        drawn[number] = parts[chosen].sum() / wholes[chosen].sum()
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Interval(value, low, high, n)
