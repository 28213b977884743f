"""Coarser clusters for a histogram with noise: few documents drown in the noise of a thousand cells.

Clusters whose centroids are near are merged (Ward 1963, weighted by the generic corpus), the merged cells get
the noise, and their counts are shared out again as the generic corpus has them. All but the noise is
public, so that it costs no epsilon, and the request is of the same form and clustering as any other.
"""

import numpy as np

SIMULATIONS = 20
"""Draws of noise behind an expected error. Ours."""


def merge_clusters(centroids_KW: np.ndarray, generic_K: np.ndarray, n: int) -> np.ndarray:
    """Return each cluster's merged one, (K,) from 0 in the order of their first members; deterministic.

    Source: Ward's criterion, |a| |b| / (|a| + |b|) |a - b|^2, the smallest first; ties: the lowest pair.
    Cost: O(K^3) comparisons, about a second for 1,024 clusters.
    """
    n_clusters = len(centroids_KW)
    centers = centroids_KW.astype(np.float64)
    sizes = np.maximum(generic_K, 1).astype(np.float64)
    groups = np.arange(n_clusters)
    square = np.square(centers).sum(1)
    apart = np.maximum(square[:, None] + square - 2 * centers @ centers.T, 0.0)
    costs = sizes[:, None] * sizes / (sizes[:, None] + sizes) * apart
    np.fill_diagonal(costs, np.inf)
    for _ in range(n_clusters - n):
        one, other = sorted(np.unravel_index(int(np.argmin(costs)), costs.shape))
        total = sizes[one] + sizes[other]
        centers[one] = (sizes[one] * centers[one] + sizes[other] * centers[other]) / total
        sizes[one] = total
        groups[groups == other] = one
        costs[other] = costs[:, other] = np.inf
        row = sizes * total / (sizes + total) * np.square(centers - centers[one]).sum(1)
        row[np.isinf(costs[one])] = np.inf
        costs[one] = costs[:, one] = row
    return np.unique(groups, return_inverse=True)[1]


def share_out(counts_N: np.ndarray, groups_K: np.ndarray, generic_K: np.ndarray) -> np.ndarray:
    """Return whole counts per cluster, (K,) int64: a merged cluster's among its members, by generic counts.

    By largest remainders; sums are kept, negative counts become 0.
    """
    shares = np.maximum(generic_K, 0).astype(np.float64)
    counts = np.zeros(len(groups_K), np.int64)
    for group, count in enumerate(np.maximum(counts_N, 0).tolist()):
        members = np.flatnonzero(groups_K == group)
        share = shares[members] if shares[members].sum() else np.ones(len(members))
        exact = count * share / share.sum()
        whole = np.floor(exact).astype(np.int64)
        short = int(count) - int(whole.sum())
        whole[np.argsort(whole - exact, kind="stable")[:short]] += 1
        counts[members] = whole
    return counts


def expected_error(
    votes_K: np.ndarray, groups_K: np.ndarray, generic_K: np.ndarray, epsilon: float
) -> tuple[float, float]:
    """Return two mean total-variation distances from the true histogram to such a file's, simulated.

    The first is between the merged clusters, which the noise alone makes; the second between all clusters,
    with the detail that merging loses. They know the true votes: for the owner's eyes.
    Noise: discrete Laplace.
    """
    generator = np.random.default_rng(0)
    merged_N = np.bincount(groups_K, votes_K).astype(np.int64)
    own, every = [], []
    for _ in range(SIMULATIONS):
        up, down = generator.geometric(1 - np.exp(-epsilon), (2, len(merged_N)))
        noisy_N = np.maximum(merged_N + up - down, 0)
        own.append(_apart(noisy_N, merged_N))
        every.append(_apart(share_out(noisy_N, groups_K, generic_K), votes_K))
    return float(np.mean(own)), float(np.mean(every))


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """Return the total-variation distance of two histograms, 0 to 1."""
    return 0.5 * float(np.abs(one / max(1, one.sum()) - other / max(1, other.sum())).sum())
