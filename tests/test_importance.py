"""Importance sampling against its definition (§2.4), from a hand-made histogram to the rows drawn."""

from collections import Counter

import numpy as np
import pytest

from shared.batches import Sampler
from shared.errors import PlanearlyError
from shared.importance import (
    describe_resampling,
    effective_sample_size,
    entropy,
    importance_weights,
    top_share,
)
from tests.conftest import make_windows


def test_the_weights_are_the_papers_ratio():
    weights = importance_weights(np.array([3, 1, 0, 0]), np.array([10, 20, 10, 0]))
    np.testing.assert_allclose(weights, [0.75 / 0.25, 0.25 / 0.5, 0, 0])


def test_the_resampled_corpus_has_the_owners_histogram():
    spec, generic = np.array([5, 3, 2]), np.array([100, 700, 200])
    resampled = importance_weights(spec, generic) * generic
    np.testing.assert_allclose(resampled / resampled.sum(), spec / spec.sum())


def test_a_cluster_that_the_corpus_lacks_gives_its_share_to_the_others():
    weights = importance_weights(np.array([1, 1, 2]), np.array([5, 5, 0]))
    np.testing.assert_allclose(weights, [1, 1, 0])


@pytest.mark.parametrize(
    ("spec", "generic"), [([0, 0], [1, 1]), ([1, 0], [0, 5]), ([-1, 2], [1, 1]), ([1, 1, 1], [1, 1])]
)
def test_histograms_that_give_no_weights_are_refused(spec, generic):
    with pytest.raises(PlanearlyError):
        importance_weights(np.array(spec), np.array(generic))


def test_the_effective_sample_size_is_kishs_over_all_windows():
    generic, weights = np.array([3, 2]), np.array([0.5, 1.75])
    w = np.repeat(weights, generic)  # window by window
    assert effective_sample_size(weights, generic) == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert effective_sample_size(np.ones(2), generic) == pytest.approx(5)


def test_entropy_and_top_share_are_those_of_tables_9_and_10():
    assert entropy(np.array([1, 1, 0, 2])) == pytest.approx(0.5 * np.log(4) + 0.5 * np.log(2))
    assert entropy(np.array([7])) == 0
    assert top_share(np.array([1, 1, 2])) == 0.5


CLUSTERS = [0] * 40 + [1] * 120 + [2] * 40


def drawn(weights, n_steps, **more):
    """Draw steps of one-window rows; return the sampler and the clusters drawn."""
    windows = make_windows([32] * len(CLUSTERS), clusters=CLUSTERS)
    sampler = Sampler(windows, 32, 4, 2, seed=3, weights=weights, **more)
    return sampler, [batch for step in range(n_steps) for batch in sampler.step(step)]


def test_rows_are_drawn_in_proportion_to_weight_times_size():
    weights = importance_weights(np.array([6, 3, 1]), np.array([40, 120, 40]))
    sampler, batches = drawn(weights, 2048)  # one epoch of LEAST_BLOCKS blocks
    counts = Counter(batch.cluster for batch in batches)
    shares = [counts[c] / len(batches) for c in range(3)]
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=0.001)
    passes = sampler.passes(2048)
    np.testing.assert_allclose(
        [passes[c] for c in range(3)], [counts[c] * 2 / (40, 120, 40)[c] for c in range(3)]
    )
    report = describe_resampling(weights, np.array([40, 120, 40]), passes)
    assert report.most_passes == max(passes.values())
    assert report.n_clusters == 3
    assert report.effective_windows < 200


def test_a_cluster_of_weight_zero_is_never_drawn_and_the_others_repeat_evenly():
    _, batches = drawn(np.array([1.0, 0.0, 1.0]), 100)
    assert {batch.cluster for batch in batches} == {0, 2}
    for cluster in (0, 2):  # 40 rows, about 200 drawn: all are seen before any comes again
        rows = Counter(
            tuple(row) for batch in batches if batch.cluster == cluster for row in batch.labels.tolist()
        )
        assert len(rows) == 40
        assert max(rows.values()) - min(rows.values()) <= 1


def test_a_mixed_block_holds_windows_in_the_ratio_of_its_point():
    _, batches = drawn(None, 1500, mixed_fraction=1.0)
    assert all(2 <= len(batch.mixture) <= 4 for batch in batches)
    weight, rows = np.zeros(3), np.zeros(3)
    windows = make_windows([32] * len(CLUSTERS), clusters=CLUSTERS)
    cluster_of = {tuple(windows.tokens(i).tolist()): CLUSTERS[i] for i in range(len(CLUSTERS))}
    for batch in batches:
        assert sum(share for _, share in batch.mixture) == pytest.approx(1)
        inside = {cluster for cluster, _ in batch.mixture}
        for cluster, share in batch.mixture:
            weight[cluster] += share / len(batches)
        for row in batch.labels.tolist():
            cluster = cluster_of[tuple(row)]
            assert cluster in inside
            rows[cluster] += 1 / (2 * len(batches))
    np.testing.assert_allclose(rows, weight, atol=0.03)


def test_without_mixed_blocks_every_point_is_one_expert():
    _, batches = drawn(None, 50)
    assert all(len(batch.mixture) == 1 for batch in batches)
