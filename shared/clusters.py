"""Using a clustering: the nearest centroid, the histogram, the most frequent cluster (paper §4.3).

Fitting one is the provider's; centroids are published and never re-derived.
"""

import numpy as np

ASSIGN_ROWS = 65_536
"""Embeddings compared at a time, to bound memory."""


def assign_clusters(embeddings_NW: np.ndarray, centroids_KW: np.ndarray) -> np.ndarray:
    """Return each embedding's nearest centroid, (N,) int32; ties go to the lowest index.

    Nearest is Euclidean: |x - c|^2 = |x|^2 - 2 x.c + |c|^2, whose first term is the same for all c.
    """
    half_square_K = 0.5 * np.square(centroids_KW.astype(np.float64)).sum(1)
    parts = [
        np.argmax(
            embeddings_NW[start : start + ASSIGN_ROWS].astype(np.float64) @ centroids_KW.T - half_square_K,
            axis=1,
        )
        for start in range(0, len(embeddings_NW), ASSIGN_ROWS)
    ]
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)


def cluster_histogram(assigned_N: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return how many windows fell into each cluster: (n_clusters,) int64."""
    return np.bincount(assigned_N, minlength=n_clusters).astype(np.int64)


def most_frequent(histogram_K: np.ndarray) -> int:
    """Return the most frequent cluster (paper §4.3); not in the paper: ties go to the lowest index."""
    return int(np.argmax(histogram_K))
