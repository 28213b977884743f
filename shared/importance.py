"""Cluster-based importance sampling (paper §2.4): how often to draw from each cluster of a generic corpus.

Both parties resample: the provider its corpus for one owner who asked (SLM-is), the owner a replay pack
on its own machine. Drawing rows with these weights is the sampler's business (shared/batches.py).
"""

from dataclasses import dataclass

import numpy as np

from shared.errors import PlanearlyError


def importance_weights(spec_K: np.ndarray, generic_K: np.ndarray) -> np.ndarray:
    """Return w_c = P(c | spec) / P(c | generic), (K,) float64, from two histograms of windows (§2.4).

    A cluster that the generic corpus lacks has weight 0: there is nothing to draw, and its share goes to
    the others. Raises PlanearlyError when no cluster has windows in both, or lengths differ.
    """
    spec_K, generic_K = np.asarray(spec_K, np.float64), np.asarray(generic_K, np.float64)
    if spec_K.shape != generic_K.shape or spec_K.ndim != 1:
        raise PlanearlyError(f"a histogram of {spec_K.shape} clusters for {generic_K.shape} clusters")
    shared_K = np.where(generic_K > 0, spec_K, 0.0)
    if not np.isfinite(spec_K).all() or spec_K.min(initial=0) < 0 or shared_K.sum() <= 0:
        raise PlanearlyError("no cluster has windows in both histograms", hint="use fewer clusters")
    share_K = shared_K / shared_K.sum()
    generic_share_K = generic_K / generic_K.sum()
    return np.divide(share_K, generic_share_K, out=np.zeros_like(share_K), where=generic_K > 0)


def entropy(histogram_K: np.ndarray) -> float:
    """Return the entropy of a histogram in nats (Table 10)."""
    share_K = np.asarray(histogram_K, np.float64)
    share_K = share_K[share_K > 0] / share_K.sum()
    return float(-(share_K * np.log(share_K)).sum())


def top_share(histogram_K: np.ndarray) -> float:
    """Return the share of the most frequent cluster (Table 9)."""
    histogram_K = np.asarray(histogram_K, np.float64)
    return float(histogram_K.max() / histogram_K.sum())


def effective_sample_size(weights_K: np.ndarray, generic_K: np.ndarray) -> float:
    """Return (sum_x w)^2 / sum_x w^2 over the generic windows: how many equal ones the resampling is worth.

    Source: Kish 1965; Owen, Monte Carlo theory, 9.3. It is N when all weights are equal.
    """
    generic_K = np.asarray(generic_K, np.float64)
    return float((generic_K * weights_K).sum() ** 2 / (generic_K * weights_K**2).sum())


@dataclass(frozen=True)
class Resampling:
    """What a resampled run draws from (App. D.1): how concentrated it is, and how often windows repeat."""

    n_clusters: int
    """Clusters with windows to draw."""
    effective_windows: float
    """`effective_sample_size` of the generic windows."""
    largest_weight: float
    mean_passes: float
    """Passes over a row, averaged over the rows drawn from."""
    most_passes: float
    """Passes over the rows of the cluster that repeats most."""


def describe_resampling(weights_K: np.ndarray, generic_K: np.ndarray, passes: dict[int, float]) -> Resampling:
    """Return the report of a run whose sampler goes through each cluster's rows `passes` times."""
    mass = {c: float(weights_K[c]) * float(generic_K[c]) for c in passes}
    total = sum(mass.values()) or 1.0
    return Resampling(
        n_clusters=len(passes),
        effective_windows=effective_sample_size(weights_K, generic_K),
        largest_weight=float(np.max(weights_K)),
        mean_passes=sum(passes[c] * mass[c] for c in passes) / total,
        most_passes=max(passes.values()),
    )
