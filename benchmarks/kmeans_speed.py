"""k-means as a release fits it, by default and by faiss, and MiniBatchKMeans: seconds and inertia.

  python benchmarks/kmeans_speed.py [--vectors 100000] [--clusters 1024] [--embeddings DIR]

Unit vectors around 20 random directions for each cluster, whose variances fall from component to component
about as those of real embeddings do; or real ones, of a release's stage `embeddings`. One start each. Seconds
are the processor's. Inertia is the mean squared distance to the nearest centroid, by our own assignment.
"""

import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
from side_by_side import Compare, Figures, options_of, require, take_turns
from sklearn.cluster import MiniBatchKMeans

from provider.clustering import fit_centroids
from shared.clusters import assign_clusters
from shared.embedder import WIDTH

DIRECTIONS = 20
"""For each cluster: there is more in a corpus than clusters to tell it apart."""
DECAY = 0.375
"""Component i is scaled by i ** -DECAY: 100 of them then hold 65 % of the variance; of our development text's
embeddings the first 100 principal ones hold 68 %."""
SPREAD = 0.7
"""Length of the noise around a direction, which has length 1."""
ROWS = 65_536
"""Vectors at a time, to bound memory."""


def _vectors(options: Namespace) -> np.ndarray:
    if options.embeddings is not None:
        parts = [np.load(path) for path in sorted(options.embeddings.glob("embeddings-*.npy"))]
        return np.concatenate(parts)[: options.vectors]
    generator = np.random.default_rng(0)
    scales = np.arange(1, WIDTH + 1, dtype=np.float32) ** -DECAY

    def draw(n: int) -> np.ndarray:
        return _units(scales * generator.standard_normal((n, WIDTH), dtype=np.float32))

    directions = draw(DIRECTIONS * options.clusters)
    vectors = np.empty((options.vectors, WIDTH), np.float32)
    for start in range(0, len(vectors), ROWS):
        part = vectors[start : start + ROWS]
        chosen = directions[generator.integers(0, len(directions), len(part))]
        part[:] = _units(chosen + SPREAD * draw(len(part)))
    return vectors


def _units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _measure(options: Namespace, fit: Callable[[np.ndarray], np.ndarray]) -> Figures:
    vectors = _vectors(options)
    start = time.process_time()
    centroids = fit(vectors)
    seconds = time.process_time() - start
    inertia = 0.0
    for first in range(0, len(vectors), ROWS):
        part = vectors[first : first + ROWS]
        inertia += float(np.square(part - centroids[assign_clusters(part, centroids)]).sum())
    return {"seconds": seconds, "inertia": inertia / len(vectors)}


def planearly(options: Namespace) -> Figures:
    return _measure(options, lambda vectors: fit_centroids(vectors, options.clusters, 1, 0))


def mini_batch(options: Namespace) -> Figures:
    def fit(vectors: np.ndarray) -> np.ndarray:
        # 1,024 per batch is scikit-learn's default, too few for as many centroids.
        fitted = MiniBatchKMeans(options.clusters, batch_size=8192, n_init=1, random_state=0).fit(vectors)
        return fitted.cluster_centers_.astype(np.float32)

    return _measure(options, fit)


def faiss(options: Namespace) -> Figures:
    require("faiss", "faiss-cpu")
    return _measure(options, lambda vectors: fit_centroids(vectors, options.clusters, 1, 0, "faiss"))


def main() -> None:
    options = options_of(
        __doc__,
        ("--vectors", {"type": int, "default": 100_000}),
        ("--clusters", {"type": int, "default": 1024}),
        ("--embeddings", {"type": Path, "metavar": "DIR", "help": "real ones, up to --vectors of them"}),
        rounds=1,
    )
    if options.toy:
        options.vectors, options.clusters = 2000, 8
    systems = {"planearly": planearly, "MiniBatchKMeans": mini_batch, "faiss": faiss}
    compares = [
        Compare("planearly", peer, figure)
        for peer in ("MiniBatchKMeans", "faiss")
        for figure in ("seconds", "inertia")
    ]
    title = f"k-means, k = {options.clusters:,}, {options.vectors:,} x {WIDTH}"
    take_turns(title, systems, compares, options)


if __name__ == "__main__":
    main()
