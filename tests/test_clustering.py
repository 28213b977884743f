import importlib.util
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from sklearn.cluster import KMeans

from provider.clustering import _fill_empty, check_engine, fit_centroids, sample_windows
from provider.executors import IN_PROCESS, Executor
from provider.preparing import cluster_corpus, clustering_inputs, prepare_corpus
from provider.recipe import MAX_SEED, ClusteringConfig
from shared.clusters import assign_clusters, cluster_histogram, most_frequent
from shared.device import has_bf16
from shared.embedding import embed_texts
from shared.errors import PlanearlyError
from tests.parties import ROOT
from tests.tiny import make_inputs, quiet, tiny_recipe

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")


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


def mixture(n, n_directions, seed=0):
    """Unit vectors around random directions, as embeddings are."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(n_directions, 384))
    vectors = directions[generator.integers(0, n_directions, n)] + 0.7 * generator.normal(size=(n, 384))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def inertia(vectors, centroids):
    return float(np.square(vectors - centroids[assign_clusters(vectors, centroids)]).sum())


@needs_faiss
def test_faiss_gives_the_same_centroids_twice_nearly_as_good_as_scikit_learns():
    vectors = mixture(3001, 97)
    found = fit_centroids(vectors, 31, 2, seed=MAX_SEED, engine="faiss")
    assert found.shape == (31, 384)
    assert found.dtype == np.float32
    assert np.array_equal(found, fit_centroids(vectors, 31, 2, seed=MAX_SEED, engine="faiss"))
    assert not np.array_equal(found, fit_centroids(vectors, 31, 2, seed=2, engine="faiss"))
    assert inertia(vectors, found) < 1.03 * inertia(vectors, fit_centroids(vectors, 31, 2, seed=1))


@needs_faiss
def test_no_cluster_of_faiss_is_empty_even_among_copies():
    vectors = np.concatenate([np.repeat(mixture(1, 1), 500, axis=0), mixture(23, 23, seed=1)])
    centroids = fit_centroids(vectors, 19, 1, seed=0, engine="faiss")
    assert np.bincount(assign_clusters(vectors, centroids), minlength=19).min() > 0


def test_an_empty_cluster_takes_the_vector_farthest_from_its_centroid():
    vectors = np.array([[0.0, 0], [1, 0], [0, 9], [0, 9]], np.float32)
    centroids = np.array([[0.5, 0], [0.5, 0], [0, 8]], np.float32)
    filled = _fill_empty(vectors, centroids.copy())
    assert filled.tolist() == [[0.5, 0], [0, 9], [0, 0]]  # the third lost its vectors to the second
    few = _fill_empty(vectors[2:], centroids.copy())
    assert np.unique(assign_clusters(vectors[2:], few)).tolist() == [0]


def test_without_faiss_a_release_says_so_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(PlanearlyError, match="faiss is not installed") as caught:
        check_engine("faiss")
    assert "scikit-learn" in str(caught.value.hint)
    check_engine("scikit-learn")


def test_the_engine_decides_the_stage_and_kept_embeddings_do_not():
    clustering = ClusteringConfig(n_clusters=3)
    others = [replace(clustering, engine="faiss"), replace(clustering, keep_embeddings=False)]
    inputs, engine, kept = (clustering_inputs(one, 1, "digest") for one in (clustering, *others))
    assert set(inputs) == {"embeddings", "n_clusters", "fit_windows", "n_init", "seed"}
    assert engine == inputs | {"engine": "faiss"}
    assert kept == inputs


def test_a_sample_holds_only_training_windows_in_corpus_order():
    parts = [np.arange(10) % 3 == 0] * 3
    everything = sample_windows(parts, 100, seed=0)
    assert [part.tolist() for part in everything] == [[1, 2, 4, 5, 7, 8]] * 3
    some = sample_windows(parts, 7, seed=0)
    assert sum(map(len, some)) == 7
    for part, whole in zip(some, everything, strict=True):
        assert sorted(part) == part.tolist()
        assert set(part) <= set(whole)
    assert all(map(np.array_equal, some, sample_windows(parts, 7, seed=0)))


@pytest.fixture
def native_products(monkeypatch):
    """Those of this machine, in this process as in those that are started."""
    monkeypatch.setattr("shared.device.has_bf16", has_bf16)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A corpus, and what clustering it with kept embeddings leaves."""
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    cluster(folder, "kept", keep_embeddings=True)
    return folder


def cluster(folder, work, keep_embeddings, executor=IN_PROCESS):
    recipe = tiny_recipe(folder, "pn")
    clustering = replace(recipe.clustering, keep_embeddings=keep_embeddings, fit_windows=40)
    (folder / work).mkdir(parents=True, exist_ok=True)
    prepared = prepare_corpus(recipe, folder / "corpus", folder / work, quiet)
    cluster_corpus(clustering, recipe.seed, folder / work, *prepared, "cpu", None, quiet, executor)


def results(work):
    """Return the files of the stages that hold clusters and shards, but for logs and markers."""
    stages = [path for name in ("clusters", "sorted") for path in work.glob(f"{name}-*/*.*")]
    return {path.relative_to(work): path.read_bytes() for path in stages}


@pytest.mark.parametrize("executor", [IN_PROCESS, Executor("local", 2)])
def test_clusters_and_shards_are_the_same_without_kept_embeddings(
    inputs, native_products, tmp_path, executor
):
    expected = results(inputs / "kept")
    windows = np.load(next((inputs / "kept").glob("embeddings-*/embeddings-00000.npy")))
    assert len(windows) > 20
    assert len(expected) > 10
    cluster(inputs, tmp_path / "work", keep_embeddings=False, executor=executor)
    assert results(tmp_path / "work") == expected
    assert not list(tmp_path.glob("work/**/*embeddings*"))
    assert not list(tmp_path.glob("work/**/group-*"))


def test_killed_in_the_middle_of_a_part_it_goes_on_with_the_next_group(
    inputs, native_products, tmp_path, monkeypatch
):
    code = (
        "import sys; from pathlib import Path; from provider import clustering;"
        "clustering.GROUP_WINDOWS = 3; from tests.test_clustering import cluster;"
        "cluster(Path(sys.argv[1]), Path(sys.argv[2]), False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, inputs, tmp_path / "work"], cwd=ROOT)
    groups = "work/clusters-*/group-00000-*.npy"
    while process.poll() is None and len(list(tmp_path.glob(groups))) < 2:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob(groups)}
    assert len(done) >= 2
    assert not list(tmp_path.glob("work/clusters-*/bounds-*"))
    monkeypatch.setattr("provider.clustering.GROUP_WINDOWS", 3)
    kept = []
    monkeypatch.setattr(
        "provider.clustering.embed_texts",
        lambda embedder, texts: kept.append(len(texts)) or embed_texts(embedder, texts),
    )
    cluster(inputs, tmp_path / "work", keep_embeddings=False)
    n_windows = sum(len(np.load(path)) for path in inputs.glob("kept/embeddings-*/embeddings-*.npy"))
    assert sum(kept) <= n_windows - 3 * len(done)  # nor the sample again
    assert results(tmp_path / "work") == results(inputs / "kept")
