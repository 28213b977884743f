"""Fine-tune one dense model on the private windows (paper §4, App. C), with early stopping.

What is minimized may be a mixture with a teacher's distributions (owner/training/distilling.py), what is
trained low-rank matrices (owner/training/lora.py); the loop and the held-out loss are the same.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from transformers.modeling_utils import PreTrainedModel

from owner.documents.windows import Split
from shared.batches import Sampler, all_microbatches, pack_rows
from shared.errors import PlanearlyError
from shared.losses import LossFunction, sum_nats
from shared.progress import Say
from shared.train_config import TrainConfig
from shared.training import TrainResult, train


@dataclass(frozen=True)
class FinetuneConfig:
    """How an owner fine-tunes; what is not the paper's is marked as ours."""

    seed: int = 0
    """Decides the split and the order of rows."""
    heldout_fraction: float = 0.1
    """Share of the tokens held out, as whole documents. Ours; the paper has ready-made splits."""
    small_tokens: int = 2_000_000
    """Up to this many training tokens the base rate is divided by 3, as §4 does for 1M tokens."""
    rate_fraction: float = 0.0
    """Peak rate as a share of the pretraining's; 0: a third or all of it, by small_tokens."""
    lora_rank: int = 0
    """Rank of low-rank matrices to train instead of the weights (App. F: 64); 0: train the weights."""
    teacher_weight: float = 0.5
    """Share of the teacher's distributions in the loss, where there is a teacher (SLM-d, §2.2). Ours; the
    paper gives no number."""
    max_epochs: int = 5
    """Passes over the training windows, at most. Ours."""
    evals_per_epoch: int = 2
    """Held-out losses per pass. Ours."""
    patience_evals: int = 3
    """Held-out losses without a better one before stopping, 1 or more: what is worse than the start is never
    the result. Ours; the paper gives no number."""
    least_steps_per_epoch: int = 64
    """With little text the batch shrinks until a pass has this many optimizer steps. Ours."""
    rows_per_microbatch: int = 4
    """Rows that go through the model together; sets memory."""
    warmup_steps: int = 20
    """Steps of linear warm-up, never more than a pass. Ours: Table 6's 1,000 would be several passes."""
    final_lr_fraction: float = 0.1
    """Share of the peak reached at the last step, by a cosine. Ours."""
    checkpoint_every_s: float = 15.0
    """Seconds between checkpoints; does not change the result."""

    def __post_init__(self) -> None:
        if self.patience_evals < 1:
            raise PlanearlyError(f"patience_evals is {self.patience_evals}, expected 1 or more")


def train_config(
    config: FinetuneConfig,
    split: Split,
    context_tokens: int,
    base_lr: float,
    base_rows: int,
    optimizer: str,
) -> TrainConfig:
    """Return the loop's settings for this much text, from the pretraining's rate, batch and optimizer.

    Low-rank matrices are always moved by Adam: they did not take part in the pretraining.
    """
    n_rows = len(pack_rows(split.train, context_tokens))
    rows_per_step = max(1, min(base_rows, n_rows // config.least_steps_per_epoch))
    rows_per_microbatch = min(rows_per_step, config.rows_per_microbatch)
    rows_per_step -= rows_per_step % rows_per_microbatch
    steps_per_epoch = math.ceil(n_rows / rows_per_step)
    is_small = split.train.n_tokens <= config.small_tokens
    return TrainConfig(
        steps=config.max_epochs * steps_per_epoch,
        rows_per_step=rows_per_step,
        rows_per_microbatch=rows_per_microbatch,
        learning_rate=base_lr * (config.rate_fraction or (1 / 3 if is_small else 1.0)),
        final_lr_fraction=config.final_lr_fraction,
        optimizer="adam" if config.lora_rank else optimizer,
        warmup_steps=min(config.warmup_steps, steps_per_epoch),
        eval_every_steps=max(1, steps_per_epoch // config.evals_per_epoch),
        patience_evals=config.patience_evals,
        checkpoint_every_s=config.checkpoint_every_s,
    )


def finetune(
    model: PreTrainedModel,
    split: Split,
    context_tokens: int,
    config: TrainConfig,
    seed: int,
    folder: Path,
    say: Say,
    inputs: str,
    loss_of: LossFunction = sum_nats,
) -> TrainResult:
    """Fine-tune in place, resuming what `folder` holds; the model ends with its best step's weights."""
    sampler = Sampler(split.train, context_tokens, config.rows_per_step, config.rows_per_microbatch, seed)
    heldout = list(all_microbatches(split.heldout, context_tokens, config.rows_per_microbatch))
    return train(model, None, sampler, lambda: heldout, config, folder, say, inputs, loss_of)
