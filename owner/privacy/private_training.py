"""Fine-tune with differential privacy for documents: DP-SGD (Abadi et al. 2016) with Opacus.

Every step draws each training document with the same small probability (Poisson sampling), and of a drawn
document one window. So a document is one example, its gradient is clipped as a whole, and Gaussian
noise of that size hides whether it was there. Steps, rates and probabilities are fixed beforehand; held-out
text decides nothing but whether the start is kept. Products are float32: the clipping bound is not blurred.
What is random comes from owner/privacy/private_noise.py, the noise's size from owner/privacy/accounting.py.
"""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from owner.documents.windows import PrivateWindows, Split
from owner.privacy.accounting import PrivacyPlan
from owner.privacy.private_noise import NOISE, SAMPLING, Stream, run_secret
from shared.batches import IGNORED, Microbatch, Rows, all_microbatches, collate
from shared.progress import Say, stage
from shared.train_config import TrainConfig
from shared.training import TrainResult, train

GRADIENT_BYTES = 1 << 30
"""Memory for gradients of single documents; sets how many go through the model together."""
MOST_ROWS = 32
"""Documents that go through the model together, at most."""


class DocumentSampler:
    """The drawn documents of each step, one window each: a pure function of (secret, step)."""

    def __init__(
        self, documents: PrivateWindows, context_tokens: int, rate: float, rows: int, secret: bytes
    ) -> None:
        self._windows, self._rate, self._rows, self._secret = documents.windows, rate, rows, secret
        bounds = np.searchsorted(documents.document, np.arange(documents.n_documents + 1))
        self._first, self._count = bounds[:-1], np.diff(bounds)
        n = len(documents.windows)
        self._as_rows = Rows(np.arange(n), np.arange(n + 1), np.zeros(n, np.int32))
        self.seed = int.from_bytes(hashlib.sha256(secret).digest()[:6], "big")
        """Names the secret in the checkpoints of a run."""

    def step(self, step: int) -> list[Microbatch]:
        """Return the step's windows, which may be none, in microbatches of at most `rows`."""
        stream = Stream(self._secret, step, SAMPLING)
        is_drawn = stream.uniform(len(self._count)) < self._rate
        places = (stream.uniform(len(self._count)) * self._count).astype(np.int64)
        drawn = (self._first + places)[is_drawn].tolist()
        return [
            collate(self._windows, self._as_rows, drawn[start : start + self._rows])
            for start in range(0, len(drawn), self._rows)
        ]


def document_losses(model: nn.Module, batch: Microbatch) -> Tensor:
    """Return each row's mean loss (nats/token), (B,) float32."""
    device = next(model.parameters()).device
    inputs, positions = batch.input_ids.to(device), batch.position_ids.to(device)
    logits = model(input_ids=inputs, position_ids=positions, use_cache=False).logits
    labels = batch.labels.to(device)
    nats = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nats.view(labels.shape).sum(1) / (labels != IGNORED).sum(1)


@contextmanager
def document_gradients(model: nn.Module) -> Iterator[None]:
    """Make every backward pass leave each row's own gradient in `.grad_sample`. Source: Opacus hooks mode.

    The layers that Opacus does not know (RMSNorm) go through functorch; a tied embedding's two parts are
    summed before the norm is taken (tests/test_private_training.py compares with rows of their own).
    """
    from opacus.grad_sample import GradSampleModule

    wrapped = GradSampleModule(model, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            yield
    finally:
        wrapped.to_standard_module()


def clip_gradients(parameters: list[nn.Parameter], clip_norm: float) -> list[Tensor]:
    """Return the rows' gradients, each scaled to at most the norm, summed over the rows; frees them."""
    samples = [cast(Tensor, p.grad_sample) for p in parameters]  # type: ignore[attr-defined]
    norms_B = torch.stack([sample.flatten(1).norm(dim=1) for sample in samples]).norm(dim=0)
    factors_B = (clip_norm / norms_B.clamp(min=1e-12)).clamp(max=1.0)
    summed = [torch.einsum("b,b...->...", factors_B, sample) for sample in samples]
    for parameter in parameters:
        parameter.grad_sample = parameter.grad = None  # type: ignore[attr-defined]
    return summed


def private_gradient(model: nn.Module, batches: list[Microbatch], plan: PrivacyPlan, noise: Stream) -> float:
    """Leave the step's clipped, noised mean in `.grad`; return the mean loss of the drawn documents."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in parameters]
    loss, n_rows = 0.0, 0
    for batch in batches:
        losses_B = document_losses(model, batch)
        losses_B.sum().backward()
        for total, clipped in zip(sums, clip_gradients(parameters, plan.clip_norm), strict=True):
            total += clipped
        loss, n_rows = loss + float(losses_B.detach().sum()), n_rows + len(losses_B)
    # Divided by the expected number: how many were drawn is nobody's business.
    expected = plan.sampling_rate * plan.n_documents
    for parameter, total in zip(parameters, sums, strict=True):
        drawn = torch.from_numpy(noise.normal(total.numel())).view_as(total).to(total.device)
        parameter.grad = (total + plan.noise_multiplier * plan.clip_norm * drawn) / expected
    return loss / max(1, n_rows)


def private_settings(settings: TrainConfig, plan: PrivacyPlan) -> TrainConfig:
    """Return the loop's settings with the plan's steps, all of them: no loss decides when to stop."""
    return replace(
        settings,
        steps=plan.steps,
        warmup_steps=min(settings.warmup_steps, plan.steps // 10),
        eval_every_steps=max(1, plan.steps // 4),
        patience_evals=0,
        diverged_nats=0.0,
    )


def finetune_privately(
    model: PreTrainedModel,
    split: Split,
    context_tokens: int,
    plan: PrivacyPlan,
    settings: TrainConfig,
    folder: Path,
    say: Say,
    inputs: str,
) -> TrainResult:
    """Fine-tune in place as planned, resuming what `folder` holds; a result worse than its start is undone.

    `settings` are `private_settings`. Raises as `shared.training.train`.
    """
    module = cast(nn.Module, model)
    parameters = [p for p in module.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    secret = run_secret(folder)
    bytes_per_row = 4 * sum(p.numel() for p in parameters)
    rows = max(1, min(MOST_ROWS, GRADIENT_BYTES // bytes_per_row))
    sampler = DocumentSampler(split.training_documents, context_tokens, plan.sampling_rate, rows, secret)

    def gradient_of(model: nn.Module, batches: list[Microbatch], step: int) -> float:
        return private_gradient(model, batches, plan, Stream(secret, step, NOISE))

    heldout = list(all_microbatches(split.heldout, context_tokens, settings.rows_per_microbatch))
    with stage("private"), document_gradients(module):
        result = train(
            module, None, sampler, lambda: heldout, settings, folder, say,
            inputs=f"{inputs} {asdict(plan)}", gradient_of=gradient_of,
        )  # fmt: skip
    before = result.history[0]["heldout_loss"]
    if result.heldout_loss < before:
        return result
    with torch.no_grad():
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
    return replace(result, step=0, heldout_loss=before)
