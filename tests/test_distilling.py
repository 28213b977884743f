"""The distillation loss against a slow reference (§2.2)."""

import math

import pytest
import torch

from owner.training.distilling import distillation_loss
from shared.batches import IGNORED, collate, pack_rows
from shared.losses import sum_nats
from shared.sizes import PRESETS
from shared.slm import build_slm
from tests.conftest import make_windows


@pytest.fixture
def case():
    windows = make_windows([10, 15, 7, 20])
    batch = collate(windows, pack_rows(windows, 32), [0, 1])
    torch.manual_seed(1)
    return build_slm(PRESETS["test"]), build_slm(PRESETS["test"]), batch


def slow(student, teacher, batch, teacher_weight):
    """Token by token, probability by probability."""
    total = 0.0
    with torch.no_grad():
        ours, theirs = (
            m(input_ids=batch.input_ids, position_ids=batch.position_ids).logits for m in (student, teacher)
        )
    for row in range(len(batch.labels)):
        for place, label in enumerate(batch.labels[row].tolist()):
            if label == IGNORED:
                continue
            p, q = (torch.softmax(logits[row, place].double(), 0) for logits in (ours, theirs))
            target = teacher_weight * q
            target[label] += 1 - teacher_weight
            total -= sum(float(target[v]) * math.log(float(p[v])) for v in range(len(p)))
    return total


@pytest.mark.parametrize("teacher_weight", [0.0, 0.3, 1.0])
def test_it_is_the_cross_entropy_with_the_mixture_of_text_and_teacher(case, teacher_weight):
    student, teacher, batch = case
    loss = distillation_loss(teacher, teacher_weight)(student, {}, batch).detach()
    assert float(loss) == pytest.approx(slow(student, teacher, batch, teacher_weight), rel=1e-5)


def test_without_the_teacher_it_is_the_plain_loss(case):
    student, teacher, batch = case
    loss = distillation_loss(teacher, 0.0)(student, {}, batch).detach()
    assert float(loss) == pytest.approx(float(sum_nats(student, {}, batch).detach()), rel=1e-6)


def test_only_the_student_gets_a_gradient(case):
    student, teacher, batch = case
    distillation_loss(teacher, 0.5)(student, {}, batch).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_a_student_that_is_its_teacher_is_at_the_minimum(case):
    _, teacher, batch = case
    distillation_loss(teacher, 1.0)(teacher, {}, batch).backward()
    largest = max(float(p.grad.abs().max()) for p in teacher.parameters() if p.grad is not None)
    assert largest < 1e-3
