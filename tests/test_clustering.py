import numpy as np
from sklearn.cluster import KMeans

from provider.clustering import fit_centroids, sample_windows
from shared.clusters import assign_clusters, cluster_histogram, most_frequent


def test_the_nearest_centroid_is_that_of_a_plain_loop_and_of_scikit_learn():
    generator = np.random.default_rng(0)
    points = generator.normal(size=(211, 7)).astype(np.float32)
    fitted = KMeans(5, n_init=1, random_state=0).fit(points)
    centroids = fitted.cluster_centers_.astype(np.float32)
    slow = [int(np.argmin([np.sum((x - c) ** 2) for c in centroids])) for x in points]
    found = assign_clusters(points, centroids)
    assert found.tolist() == slow == fitted.predict(points).tolist()
    assert cluster_histogram(found, 5).tolist() == [slow.count(i) for i in range(5)]


def test_ties_go_to_the_lowest_index():
    centroids = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], np.float32)
    assert assign_clusters(np.array([[0.0, 1.0], [2.0, 0.0]], np.float32), centroids).tolist() == [0, 0]
    assert most_frequent(np.array([1, 3, 3])) == 1
    assert assign_clusters(np.zeros((0, 2), np.float32), centroids).shape == (0,)


def test_fitting_twice_gives_the_same_centroids():
    points = np.random.default_rng(0).normal(size=(300, 384)).astype(np.float32)
    assert np.array_equal(fit_centroids(points, 3, 2, seed=1), fit_centroids(points, 3, 2, seed=1))


def test_a_sample_holds_only_training_windows_in_corpus_order():
    parts = []
    for number in range(3):
        values = np.arange(10, dtype=np.float32)[:, None] + 100 * number
        parts.append((values, np.arange(10) % 3 == 0))
    everything = sample_windows(parts, 100, seed=0)[:, 0]
    assert len(everything) == 18
    assert not set(everything % 100) & {0, 3, 6, 9}
    some = sample_windows(parts, 7, seed=0)[:, 0]
    assert len(some) == 7
    assert sorted(some) == some.tolist()
    assert set(some) <= set(everything)
    assert sample_windows(parts, 7, seed=0)[:, 0].tolist() == some.tolist()
