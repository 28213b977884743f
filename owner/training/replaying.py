"""Private importance sampling (ours): continue pretraining on a replay pack, resampled at the owner's.

The paper's SLM-is (§2.4) pretrains on a generic corpus resampled to the owner's histogram, which the
provider must know for it. Here the provider publishes one sample of every cluster, the same for all, and
the histogram stays where it was made.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from shared.batches import Microbatch, Sampler, Windows
from shared.importance import Resampling, describe_resampling, importance_weights
from shared.progress import Say, stage
from shared.train_config import TrainConfig
from shared.training import TrainResult, train


@dataclass(frozen=True)
class ReplayConfig:
    """How an owner continues pretraining. All ours."""

    tokens: int = 4_000_000
    """Tokens of the pack to train on, repeats counted."""
    rate_fraction: float = 0.5
    """Peak rate as a share of the pretraining's."""
    warmup_fraction: float = 0.02
    """Share of the steps with linear warm-up."""
    evals: int = 8
    """Held-out losses on the way; the best step is kept."""


def replay_weights(histogram_K: np.ndarray, pack: Windows) -> np.ndarray:
    """Return importance weights (K,) that give the pack's rows the owner's cluster histogram (§2.4)."""
    return importance_weights(histogram_K, np.bincount(pack.cluster, minlength=len(histogram_K)))


def continue_pretraining(
    model: nn.Module,
    pack: Windows,
    weights_K: np.ndarray,
    heldout: list[Microbatch],
    context_tokens: int,
    base: TrainConfig,
    config: ReplayConfig,
    seed: int,
    folder: Path,
    say: Say,
    inputs: str,
) -> tuple[TrainResult, Resampling]:
    """Train in place on the resampled pack; the model ends with its best step on the private held-out.

    `base` gives rows and the pretraining's rate. Resumes what `folder` holds.
    """
    steps = max(1, math.ceil(config.tokens / (base.rows_per_step * context_tokens)))
    settings = TrainConfig(
        steps=steps,
        rows_per_step=base.rows_per_step,
        rows_per_microbatch=base.rows_per_microbatch,
        learning_rate=base.learning_rate * config.rate_fraction,
        final_lr_fraction=0.05,
        optimizer=base.optimizer,
        warmup_steps=max(1, round(steps * config.warmup_fraction)),
        eval_every_steps=max(1, steps // config.evals),
        patience_evals=config.evals + 1,  # never stops, always keeps the best
        checkpoint_every_s=base.checkpoint_every_s,
    )
    sampler = Sampler(
        pack, context_tokens, settings.rows_per_step, settings.rows_per_microbatch, seed, weights_K
    )
    with stage("replay"):
        result = train(model, None, sampler, lambda: heldout, settings, folder, say, inputs=inputs)
    counts_K = np.bincount(pack.cluster, minlength=len(weights_K))
    return result, describe_resampling(weights_K, counts_K, sampler.passes(steps))
