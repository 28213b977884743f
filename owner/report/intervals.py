"""How far a held-out perplexity would move with other documents: a bootstrap over those that were held out.

Whole documents are drawn with replacement (Efron 1979, the percentile interval), since the tokens of one
document are alike; the same draws for every model, so that a difference of two is a paired one. Few documents
make any such interval too narrow.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

RESAMPLES = 2_000
"""Draws of documents; Efron and Tibshirani 1993 ask for 1,000 or more for an interval."""
LEVEL = 0.95


def perplexity_intervals(
    tokens_U: np.ndarray,
    nats_U: Mapping[str, np.ndarray],
    pairs: Mapping[str, tuple[str, str]],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return perplexity and its interval by name, and of each pair the ratio of the first to the second.

    `nats_U` are sums over the tokens of each unit (a document). Of one unit there is no interval: None.
    Cost: RESAMPLES * u.
    """
    names = list(nats_U)
    sums_UN = np.stack([tokens_U.astype(np.float64), *(nats_U[name] for name in names)], axis=1)
    n_units = len(sums_UN)
    generator = np.random.default_rng(seed)
    drawn_RN = np.empty((RESAMPLES if n_units > 1 else 0, len(names)))
    for row in drawn_RN:
        times = np.bincount(generator.integers(0, n_units, n_units), minlength=n_units)
        total = times @ sums_UN
        row[:] = total[1:] / total[0]
    whole = sums_UN.sum(0)
    loss = dict(zip(names, whole[1:] / whole[0], strict=True))
    column = {name: place for place, name in enumerate(names)}
    found: dict[str, dict[str, Any]] = {
        name: _entry(loss[name], drawn_RN[:, column[name]], "perplexity") for name in names
    }
    for name, (one, other) in pairs.items():
        drawn = drawn_RN[:, column[one]] - drawn_RN[:, column[other]]
        found[name] = _entry(loss[one] - loss[other], drawn, "ratio")
    return found


def _entry(loss: float, drawn: np.ndarray, what: str) -> dict[str, Any]:
    """Return the exponential of a loss, and of the interval of its draws."""
    tail = (1 - LEVEL) / 2
    interval = [math.exp(q) for q in np.quantile(drawn, [tail, 1 - tail])] if len(drawn) else None
    return {what: math.exp(loss), "interval_95": interval}
