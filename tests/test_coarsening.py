"""Merged clusters: which are merged, what is kept, and when they are worth it."""

import numpy as np
import pytest

from owner.choice.coarsening import expected_error, merge_clusters, share_out
from owner.choice.requesting import describe_errors, noisy_request
from shared.errors import PlanearlyError
from shared.request import centroids_digest, read_request, write_request


def test_merging_is_wards_as_scipy_has_it():
    from scipy.cluster.hierarchy import fcluster, linkage

    centroids = np.random.default_rng(0).normal(size=(37, 6))
    for n in (2, 5, 17, 37):
        found = merge_clusters(centroids, np.ones(37), n)
        theirs = fcluster(linkage(centroids, "ward"), n, "maxclust")
        assert len(set(found.tolist())) == n
        assert len(set(zip(found.tolist(), theirs.tolist(), strict=True))) == n


def test_a_heavy_cluster_is_merged_later_than_a_light_one():
    centroids = np.asarray([[0.0], [1.0], [2.1]])
    assert merge_clusters(centroids, np.asarray([1, 1, 1]), 2).tolist() == [0, 0, 1]
    assert merge_clusters(centroids, np.asarray([900, 900, 1]), 2).tolist() == [0, 1, 1]


def test_shared_out_counts_keep_their_sums_and_follow_the_generic_corpus():
    groups, generic = np.asarray([0, 1, 0, 0, 1]), np.asarray([10, 0, 30, 60, 0])
    assert share_out(np.asarray([10, 7]), groups, generic).tolist() == [1, 4, 3, 6, 3]
    assert share_out(np.asarray([-4, 0]), groups, generic).sum() == 0
    for count in range(30):
        assert share_out(np.asarray([count, 0]), groups, generic).sum() == count


def test_merging_lowers_the_noise_and_costs_detail():
    generator = np.random.default_rng(0)
    centroids, generic = generator.normal(size=(256, 4)), np.full(256, 50)
    groups = [merge_clusters(centroids, generic, n) for n in (256, 64, 16)]
    # What private documents are about: some neighbouring clusters.
    share = np.exp(-0.7 * np.square(centroids - centroids[7]).sum(1))
    few, many = (generator.multinomial(n, share / share.sum()) for n in (200, 200_000))
    noise, every = zip(*(expected_error(few, group, generic, 1.0) for group in groups), strict=True)
    assert noise[0] == every[0] > 2 * noise[1] > 4 * noise[2]
    noise, every = zip(*(expected_error(many, group, generic, 1.0) for group in groups), strict=True)
    assert noise[0] < 0.01 < every[1] < every[2]


def test_the_error_without_noise_is_that_of_merging_alone():
    groups, generic, votes = np.asarray([0, 0, 1]), np.asarray([1, 1, 1]), np.asarray([80, 0, 20])
    assert expected_error(votes, groups, generic, 50.0) == pytest.approx((0.0, 0.4))


def test_errors_are_told_for_this_file_and_for_coarser_ones():
    centroids, generic = np.random.default_rng(0).normal(size=(70, 4)), np.full(70, 50)
    lines = describe_errors(np.full(70, 9), centroids, generic, 1.0, 23).split("\n")
    assert [line.split()[1].strip(":") for line in lines[2:]] == ["70", "23", "17", "4"]
    assert ["(this file)" in line for line in lines[2:]] == [False, True, False, False]
    assert "for your eyes" in lines[1]


def test_a_merged_request_is_a_request_of_the_same_clustering(tmp_path):
    centroids, generic = np.random.default_rng(0).normal(size=(20, 8)), np.arange(20)
    request = noisy_request(np.full(20, 500), centroids, 1.0, generic, 4)
    write_request(tmp_path / "r.json", request)
    found, _ = read_request(tmp_path / "r.json")
    assert found.centroids_sha256 == centroids_digest(centroids)
    assert len(found.counts) == 20
    assert sum(found.counts) == pytest.approx(10_000, abs=100)
    assert "4 merged clusters" in found.mechanism
    with pytest.raises(PlanearlyError, match="21 clusters are asked for, expected at most 20"):
        noisy_request(np.ones(20), centroids, 1.0, generic, 21)
