"""Perplexities with their intervals, and ratios of two: owner/documents/intervals.py draws the documents."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from owner.documents.intervals import Interval, ratio_interval


def perplexity_intervals(
    tokens_U: np.ndarray, nats_U: Mapping[str, np.ndarray], pairs: Mapping[str, tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """Return perplexity and its interval by name, and of each pair the ratio of the first to the second.

    `nats_U` are sums over the tokens of each unit (a document), the same units for all: a pair's difference
    is taken unit by unit. Of too few units there is no interval: None.
    """
    found = {name: _entry(ratio_interval(nats, tokens_U), "perplexity") for name, nats in nats_U.items()}
    for name, (one, other) in pairs.items():
        found[name] = _entry(ratio_interval(nats_U[one] - nats_U[other], tokens_U), "ratio")
    return found


def _entry(loss: Interval, what: str) -> dict[str, Any]:
    """Return the exponential of a loss, and of the ends of its interval."""
    found = loss.map(math.exp)
    return {what: found.value, "interval_95": None if found.low is None else [found.low, found.high]}
