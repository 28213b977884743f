import math

import numpy as np
import pytest

from owner.documents.intervals import LEAST_DOCUMENTS, LEVEL, Interval, ratio_interval


def drawn(n, seed):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(20, 400, n)
    return tokens * generator.normal(3.0, 0.5, n), tokens


def test_the_figure_is_the_ratio_of_the_sums_and_not_a_mean_of_ratios():
    found = ratio_interval(np.asarray([1.0, 30.0, 2.0, 2.0, 5.0]), np.asarray([1, 10, 1, 1, 7]))
    assert found.value == 40.0 / 20.0
    assert found.low < found.value < found.high


def test_about_as_many_intervals_as_they_promise_hold_the_true_figure():
    held = [
        found.low <= 3.0 <= found.high
        for found in (ratio_interval(*drawn(60, 100 + seed), seed=seed) for seed in range(60))
    ]
    assert LEVEL - 0.07 <= np.mean(held) <= 1.0


def test_an_interval_repeats_bit_for_bit_and_narrows_with_the_root_of_the_documents():
    few, many = ratio_interval(*drawn(50, 1)), ratio_interval(*(np.tile(x, 100) for x in drawn(50, 1)))
    assert few == ratio_interval(*drawn(50, 1))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10, rel=0.1)


def test_a_paired_difference_is_narrower_than_two_intervals_apart():
    nats, tokens = drawn(60, 2)
    better = nats - 0.02 * tokens
    one, other = ratio_interval(nats, tokens), ratio_interval(better, tokens)
    difference = ratio_interval(nats - better, tokens)
    assert other.high > one.low
    assert difference.value == pytest.approx(0.02)
    assert not difference.covers_zero


def test_of_few_documents_there_is_no_interval_and_nothing_is_decided():
    nats, tokens = drawn(LEAST_DOCUMENTS - 1, 3)
    found = ratio_interval(nats, tokens)
    assert (found.low, found.high) == (None, None)
    assert found.covers_zero
    assert found.map(math.exp).value == math.exp(found.value)


def test_a_perplexitys_interval_is_that_of_the_loss_mapped():
    assert Interval(1.0, 0.0, 2.0, 9).map(math.exp) == Interval(math.e, 1.0, math.exp(2.0), 9)
