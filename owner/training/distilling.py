"""Distillation (SLM-d, paper §2.2): the student learns text and teacher's distributions."""

import torch
from torch import Tensor, nn

from shared.batches import IGNORED, Microbatch
from shared.losses import LossFunction, logits_of


def distillation_loss(teacher: nn.Module, teacher_weight: float) -> LossFunction:
    """Return (1 - a) * cross entropy with the text + a * cross entropy with the teacher, in nats.

    a is teacher_weight, from 0 to 1. The paper mixes the two and names no temperature: it is 1 here. The
    teacher, on the student's device and with its tokenizer, is run beside it on the same rows, so that
    nothing is stored; one more (B * S, V) float32 array is in memory.
    """
    teacher.eval()

    def loss_of(model: nn.Module, weights: dict[str, Tensor], batch: Microbatch) -> Tensor:
        log_student = logits_of(model, weights, batch).log_softmax(1)
        labels = batch.labels.to(log_student.device).flatten()
        text = nn.functional.nll_loss(log_student, labels, ignore_index=IGNORED, reduction="sum")
        with torch.no_grad():
            likely = logits_of(teacher, {}, batch).softmax(1)
        per_token = -(likely * log_student).sum(1)
        distilled = per_token.masked_fill(labels == IGNORED, 0.0).sum()
        return (1 - teacher_weight) * text + teacher_weight * distilled

    return loss_of
