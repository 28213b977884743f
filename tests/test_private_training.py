"""Differential privacy: gradients per document, noise, sampling, accounting, resuming, what is kept."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from owner.documents.windows import PrivateWindows, Split
from owner.privacy.accounting import PrivacyConfig, PrivacyPlan, noise_multiplier, plan_privacy, spent_epsilon
from owner.privacy.canaries import REPEATS, draw_canaries, plant_canaries
from owner.privacy.private_noise import NOISE, SAMPLING, Stream, run_secret
from owner.privacy.private_training import (
    DocumentSampler,
    clip_gradients,
    document_gradients,
    document_losses,
    finetune_privately,
    private_gradient,
    private_settings,
)
from owner.training.lora import add_lora, merge_lora
from shared.batches import Rows, all_microbatches, collate
from shared.errors import CheckpointError, PlanearlyError
from shared.losses import evaluate
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.train_config import TrainConfig
from tests.conftest import make_windows

SECRET = bytes(range(32))
PLAN = PrivacyPlan(12, 0.1, 0.9, 1e-3, 0.5, 0.25, 12, 0.1)
SETTINGS = TrainConfig(steps=1, rows_per_step=2, rows_per_microbatch=2, learning_rate=3e-3, warmup_steps=2)


def make_split(n_train=24, n_heldout=6, vocab_size=12):
    """Two windows a document, of few words, so that a few steps learn something."""
    windows = make_windows([32] * (n_train + n_heldout), vocab_size=vocab_size)
    numbers = np.arange(len(windows), dtype=np.int32)
    train = numbers < n_train
    return Split(windows.take(train), windows.take(~train), "documents", numbers[train] // 2, numbers[~train])


def model_of(architecture="llama"):
    torch.manual_seed(0)
    return build_slm(replace(PRESETS["test"], architecture=architecture))


def rows(windows, chosen):
    n = len(windows)
    return collate(windows, Rows(np.arange(n), np.arange(n + 1), np.zeros(n, np.int32)), chosen)


@pytest.mark.parametrize("architecture", ["llama", "starcoder2"])
def test_each_documents_gradient_is_that_of_the_document_alone(architecture):
    """Tied embeddings, RMSNorm or LayerNorm, rotary positions, rows of unequal length."""
    model, windows = model_of(architecture), make_windows([9, 31, 17, 32, 5])
    parameters = list(model.parameters())
    alone = []
    for row in range(5):
        document_losses(model, rows(windows, [row])).sum().backward()
        alone.append([p.grad.clone() for p in parameters])
        model.zero_grad()
    norms = torch.stack([torch.cat([g.flatten() for g in each]).norm() for each in alone])
    clip_norm = float(norms.median())
    with document_gradients(model):
        document_losses(model, rows(windows, range(5))).sum().backward()
        together = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in parameters]).norm(dim=0)
        torch.testing.assert_close(together, norms, rtol=1e-5, atol=0)
        clipped = clip_gradients(parameters, clip_norm)
    for index, found in enumerate(clipped):
        by_hand = sum(
            each[index] * min(1.0, clip_norm / float(norm)) for each, norm in zip(alone, norms, strict=True)
        )
        torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-7)
    assert not any(hasattr(p, "grad_sample") and p.grad_sample is not None for p in parameters)


def test_low_rank_matrices_have_gradients_of_their_own_too():
    torch.manual_seed(1)
    model, windows = add_lora(model_of(), 2), make_windows([9, 31, 17])
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_()
    alone = []
    for row in range(3):
        document_losses(model, rows(windows, [row])).sum().backward()
        alone.append(torch.cat([p.grad.flatten() for p in parameters]).norm())
        model.zero_grad()
    with document_gradients(model):
        document_losses(model, rows(windows, range(3))).sum().backward()
        together = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in parameters]).norm(dim=0)
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=0)
    merge_lora(model)


def test_one_document_moves_the_sum_by_no_more_than_the_clipping_norm():
    model, windows = model_of(), make_windows([32] * 6)
    quiet = replace(PLAN, noise_multiplier=0.0, sampling_rate=1.0, n_documents=1)
    sums = []
    with document_gradients(model):
        for chosen in (range(6), range(5)):
            private_gradient(model, [rows(windows, chosen)], quiet, Stream(SECRET, 0, NOISE))
            sums.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert float((sums[0] - sums[1]).norm()) == pytest.approx(PLAN.clip_norm, rel=1e-4)


def test_a_step_that_drew_nobody_is_noise_of_the_planned_size():
    model = model_of()
    private_gradient(model, [], PLAN, Stream(SECRET, 3, NOISE))
    noise = torch.cat([p.grad.flatten() for p in model.parameters()])
    scale = PLAN.noise_multiplier * PLAN.clip_norm / (PLAN.sampling_rate * PLAN.n_documents)
    assert float(noise.std()) == pytest.approx(scale, rel=5 / np.sqrt(2 * len(noise)))
    assert abs(float(noise.mean())) < 5 * scale / np.sqrt(len(noise))


def test_numbers_are_normal_and_depend_on_secret_step_and_purpose_alone():
    found = Stream(SECRET, 7, NOISE).normal(100_001)
    assert np.array_equal(found, Stream(SECRET, 7, NOISE).normal(100_001))
    others = [Stream(SECRET, 8, NOISE), Stream(SECRET, 7, SAMPLING), Stream(bytes(32), 7, NOISE)]
    for other in others:
        assert abs(np.corrcoef(found, other.normal(100_001))[0, 1]) < 5 / np.sqrt(len(found))
    from scipy.stats import kstest

    assert kstest(found, "norm").pvalue > 1e-3
    assert kstest(Stream(SECRET, 7, SAMPLING).uniform(100_000), "uniform").pvalue > 1e-3


def test_a_secret_comes_from_the_system_once_and_only_its_owner_can_read_it(tmp_path):
    one = run_secret(tmp_path / "a")
    assert run_secret(tmp_path / "a") == one
    assert run_secret(tmp_path / "b") != one
    assert len(one) == 32
    assert os.stat(tmp_path / "a" / "secret.json").st_mode & 0o777 == 0o600


def test_every_document_is_drawn_at_the_same_rate_and_gives_one_window():
    windows = make_windows([8] * 30)
    document = np.repeat(np.arange(10, dtype=np.int32), [1, 5] * 5)
    sampler = DocumentSampler(PrivateWindows(windows, document, 10), 32, 0.3, 4, SECRET)
    by_tokens = {tuple(windows.tokens(w).tolist()): w for w in range(30)}
    counts = np.zeros(30)
    for step in range(1000):
        batches = sampler.step(step)
        drawn = [by_tokens[tuple(row.tolist())] for batch in batches for row in batch.labels]
        assert len({document[window] for window in drawn}) == len(drawn)
        assert all(len(batch.labels) <= 4 for batch in batches)
        counts[drawn] += 1
    per_document = np.bincount(document, counts)
    assert np.abs(per_document - 300).max() < 5 * np.sqrt(1000 * 0.3 * 0.7)
    assert np.abs(counts[document % 2 == 1] - 60).max() < 5 * np.sqrt(1000 * 0.06 * 0.94)


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps", "delta"),
    [(0.9, 0.25, 64, 3e-4), (2.7, 0.0256, 195, 1e-5), (7.2, 0.25, 64, 3e-4)],
)
def test_epsilon_is_that_of_googles_accountant_within_one_percent(epsilon, rate, steps, delta):
    noise = noise_multiplier(epsilon, delta, rate, steps)
    spent = spent_epsilon(noise, rate, steps, delta)
    other = PLDAccountant()
    other.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)), steps)
    assert spent == pytest.approx(other.get_epsilon(delta), rel=0.01)
    assert 0.98 * epsilon < spent <= epsilon


def test_a_plan_spends_what_was_asked_and_little_less():
    config, split = PrivacyConfig(4.0), make_split()
    plan = plan_privacy(config, 5, split, epochs=2)
    assert plan.epsilon_selection == pytest.approx(0.4)
    assert 0.98 * 4.0 < plan.epsilon <= 4.0
    assert plan.delta == pytest.approx(1 / 120)
    assert (plan.n_documents, plan.sampling_rate, plan.steps) == (12, 0.25, config.least_steps)
    assert plan_privacy(config, 1, split, epochs=2).epsilon_selection == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"delta": 1.0}, "delta is 1.0"),
        ({"delta": 0.5}, "one over 12 training documents"),
    ],
)
def test_promises_that_say_nothing_are_refused(change, message):
    with pytest.raises(PlanearlyError, match=message):
        plan_privacy(replace(PrivacyConfig(1.0), **change), 1, make_split(), 1)


def test_a_single_document_cannot_be_hidden():
    split = make_split()
    with pytest.raises(PlanearlyError, match="one document cannot be hidden"):
        plan_privacy(PrivacyConfig(1.0), 1, replace(split, train_document=split.train_document * 0), 1)


def run(folder, plan=PLAN, settings=SETTINGS):
    model = model_of()
    settings = private_settings(settings, plan)
    result = finetune_privately(model, make_split(), 32, plan, settings, folder, lambda line: None, "inputs")
    return model, result


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_with_noise_lowers_the_loss_and_takes_the_planned_steps(tmp_path):
    model, result = run(tmp_path, replace(PLAN, steps=40))
    assert result.steps_run == result.step == 40
    assert result.heldout_loss < result.history[0]["heldout_loss"]
    found = evaluate(model, None, all_microbatches(make_split().heldout, 32, 2)).mean
    assert found == pytest.approx(result.heldout_loss)


def test_a_result_that_is_worse_than_its_start_is_undone(tmp_path):
    model, result = run(tmp_path, replace(PLAN, noise_multiplier=50.0), replace(SETTINGS, learning_rate=0.3))
    assert result.step == 0
    assert result.history[-1]["heldout_loss"] > result.heldout_loss == result.history[0]["heldout_loss"]
    assert torch.equal(weights_of(model), weights_of(model_of()))


KILLED = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from dataclasses import replace
from tests import test_private_training as t
t.run(Path({folder!r}), t.LONG, t.OFTEN)
"""
LONG, OFTEN = replace(PLAN, steps=30), replace(SETTINGS, checkpoint_every_s=0.05)


def test_killed_by_sigkill_it_ends_with_the_same_bits_under_its_own_secret(tmp_path, pytestconfig):
    folder = tmp_path / "killed"
    code = KILLED.format(root=str(pytestconfig.rootpath), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(folder.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    secret = (folder / "secret.json").read_bytes()
    resumed, result = run(folder, LONG, OFTEN)
    assert result.steps_run == 30
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "secret.json").write_bytes(secret)
    assert torch.equal(weights_of(resumed), weights_of(run(tmp_path / "whole", LONG)[0]))
    (folder / "secret.json").unlink()
    with pytest.raises(CheckpointError, match="belongs to another run"):
        run(folder, LONG)


def test_a_canary_is_one_more_document_whose_repeats_are_windows():
    split, canaries = make_split(), draw_canaries(3, 300, seed=5)
    planted = plant_canaries(split, canaries)
    assert planted.training_documents.n_documents == split.training_documents.n_documents + 3
    assert len(planted.train) == len(split.train) + 3 * REPEATS
    last = planted.train.tokens(len(planted.train) - 1).tolist()
    assert last == [*canaries[2].prefix, *canaries[2].secret]
    assert draw_canaries(3, 300, seed=5) == canaries != draw_canaries(3, 300, seed=6)
    assert min(min(c.prefix + c.secret) for c in canaries) >= 259
    assert plant_canaries(split, []) is split
