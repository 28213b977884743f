"""k-means as a release fits it, against scikit-learn's MiniBatchKMeans and faiss: seconds and inertia.

  python benchmarks/kmeans_speed.py [--vectors 100000] [--clusters 1024]

Unit vectors around random directions, of the embedder's width; one start each. Inertia is the mean
squared distance to the nearest centroid, by our own assignment for all.
"""

import time
from argparse import Namespace
from collections.abc import Callable

import numpy as np
from side_by_side import Compare, Figures, options_of, require, take_turns
from sklearn.cluster import MiniBatchKMeans

from provider.clustering import fit_centroids
from shared.clusters import assign_clusters
from shared.embedder import WIDTH

SPREAD = 0.05
"""Standard deviation of each component around its direction; a component of a direction has about as much."""


def _vectors(options: Namespace) -> np.ndarray:
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((2 * options.clusters, WIDTH), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = directions[generator.integers(0, len(directions), options.vectors)]
    vectors += SPREAD * generator.standard_normal(vectors.shape, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _measure(options: Namespace, fit: Callable[[np.ndarray], np.ndarray]) -> Figures:
    vectors = _vectors(options)
    start = time.perf_counter()
    centroids = fit(vectors)
    seconds = time.perf_counter() - start
    nearest = centroids[assign_clusters(vectors, centroids)]
    return {"seconds": seconds, "inertia": float(np.square(vectors - nearest).sum(1).mean())}


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
    import faiss as library

    library.omp_set_num_threads(options.threads)

    def fit(vectors: np.ndarray) -> np.ndarray:
        # Its default of 256 vectors for each centroid at most is lifted: all take the same data.
        found = library.Kmeans(
            WIDTH, options.clusters, niter=25, seed=1, max_points_per_centroid=len(vectors)
        )
        found.train(vectors)
        centroids: np.ndarray = found.centroids
        return centroids

    return _measure(options, fit)


def main() -> None:
    options = options_of(
        __doc__,
        ("--vectors", {"type": int, "default": 100_000}),
        ("--clusters", {"type": int, "default": 1024}),
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
