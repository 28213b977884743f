import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.batches import IGNORED, OPEN_ROWS, Sampler, all_microbatches, collate, pack_rows
from shared.losses import sum_nats
from shared.pieces import BOS_ID
from shared.sizes import PRESETS
from shared.slm import build_slm
from tests.conftest import make_windows


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 32), min_size=1, max_size=60),
    n_clusters=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_packing_keeps_every_window_whole_once_and_in_rows_of_one_cluster(lengths, n_clusters, seed):
    clusters = np.random.default_rng(seed).integers(0, n_clusters, len(lengths))
    windows = make_windows(lengths, clusters)
    rows = pack_rows(windows, 32)
    assert sorted(rows.windows.tolist()) == list(range(len(lengths)))
    for row in range(len(rows)):
        members = rows.windows[rows.bounds[row] : rows.bounds[row + 1]]
        assert windows.length[members].sum() <= 32
        assert set(windows.cluster[members]) == {rows.cluster[row]}


def slow_rows(windows, context_tokens):
    """First fit over the last OPEN_ROWS rows with room, one window after the other."""
    rows, owners, open_rows = [], [], []
    order = sorted(range(len(windows)), key=lambda i: (windows.cluster[i], -windows.length[i], i))
    for window in order:
        cluster, length = int(windows.cluster[window]), int(windows.length[window])
        if owners and cluster != owners[-1]:
            open_rows = []
        for row in open_rows:
            if length + sum(windows.length[i] for i in rows[row]) <= context_tokens:
                rows[row].append(window)
                break
        else:
            rows.append([window])
            owners.append(cluster)
            if length < context_tokens:
                open_rows = [*open_rows, len(rows) - 1][-OPEN_ROWS:]
    return rows, owners


@pytest.mark.parametrize(
    ("n", "context_tokens", "mean"), [(1, 7, 3), (997, 31, 4), (997, 67, 40), (499, 5, 2)]
)
@pytest.mark.parametrize("is_sorted", [False, True])
def test_rows_are_those_of_first_fit_one_window_after_the_other(n, context_tokens, mean, is_sorted):
    generator = np.random.default_rng(n)
    lengths = np.minimum(context_tokens, 1 + generator.exponential(mean, n)).astype(np.int32)
    clusters = generator.integers(0, 3, n)
    windows = make_windows(lengths, np.sort(clusters) if is_sorted else clusters)
    rows = pack_rows(windows, context_tokens)
    expected, owners = slow_rows(windows, context_tokens)
    bounds = zip(rows.bounds, rows.bounds[1:], strict=False)
    assert [rows.windows[first:end].tolist() for first, end in bounds] == expected
    assert rows.cluster.tolist() == owners


def test_packing_holds_a_few_bytes_a_window():
    n = 200_000
    windows = make_windows(1 + np.random.default_rng(0).integers(0, 32, n), np.arange(n) // (n // 4))
    tracemalloc.start()
    rows = pack_rows(windows, 32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(part.nbytes for part in (rows.windows, rows.bounds, rows.cluster)) < 12 * n
    assert peak < 30 * n  # of which some 60 a window of the cluster at hand, a quarter of all


def test_every_token_is_predicted_once_from_its_own_window():
    windows = make_windows([10, 15, 7, 20, 5, 32])
    batches = list(all_microbatches(windows, 32, 2))
    labels = torch.cat([batch.labels.flatten() for batch in batches])
    predicted = sorted(labels[labels != IGNORED].tolist())
    assert predicted == sorted(windows.streams[0].tolist())
    assert sum(batch.n_tokens for batch in batches) == windows.n_tokens
    for batch in batches:
        starts = batch.position_ids == 0
        assert (batch.input_ids[starts] == BOS_ID).all()


def test_attention_does_not_cross_from_one_window_of_a_row_to_the_next(small_model):
    windows = make_windows([10, 15, 7, 20, 5, 32])
    rows = pack_rows(windows, 32)
    assert len(rows) < len(windows)
    with torch.no_grad():
        packed = float(sum_nats(small_model, {}, collate(windows, rows, list(range(len(rows))))))
        alone = 0.0
        for index in range(len(windows)):
            one = windows.take(np.array([index]))
            alone += float(sum_nats(small_model, {}, collate(one, pack_rows(one, 32), [0])))
    np.testing.assert_allclose(packed, alone, rtol=1e-5)


def test_another_documents_text_in_the_row_changes_nothing_for_starcoder2():
    from dataclasses import replace

    model = build_slm(replace(PRESETS["test"], architecture="starcoder2"))
    first, second = make_windows([12, 14], seed=1), make_windows([12, 14], seed=1)
    second.streams[0][:12] = 7
    with torch.no_grad():
        logits = []
        for windows in (first, second):
            batch = collate(windows, pack_rows(windows, 32), [0])
            out = model(input_ids=batch.input_ids, position_ids=batch.position_ids).logits
            # the 14-token window is packed first, so take it by its labels
            where = batch.labels[0] != IGNORED
            positions = [i for i in range(26) if where[i]]
            longer = (
                positions[:14] if windows.length[pack_rows(windows, 32).windows[0]] == 14 else positions[12:]
            )
            logits.append(out[0, longer])
    torch.testing.assert_close(logits[0], logits[1])


def test_the_sampler_is_a_pure_function_of_seed_and_step():
    windows = make_windows([9, 31, 17, 5] * 9, clusters=[0, 1, 2, 2] * 9)
    one, two = Sampler(windows, 32, 4, 2, seed=5), Sampler(windows, 32, 4, 2, seed=5)
    for step in (7, 0, 3):  # in another order than a run would
        two.step(step)
    for a, b in zip(one.step(3), two.step(3), strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
        assert a.cluster == b.cluster
    other = Sampler(windows, 32, 4, 2, seed=6).step(3)
    assert any(not torch.equal(a.input_ids, b.input_ids) for a, b in zip(one.step(3), other, strict=True))


def test_an_epoch_shows_every_window_once():
    windows = make_windows([9, 31, 17, 5] * 9, clusters=[0, 1, 2, 2] * 9)
    sampler = Sampler(windows, 32, 1, 1, seed=0)
    n_steps = len(sampler.rows)
    tokens = sum(batch.n_tokens for step in range(n_steps) for batch in sampler.step(step))
    assert tokens == windows.n_tokens
