"""How one model is trained, as data; its learning rate at each step."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from shared.errors import PlanearlyError
from shared.optimizers import check_optimizer


@dataclass(frozen=True)
class TrainConfig:
    """How one model is trained. The defaults are Table 6's, for parity with the paper."""

    steps: int
    """Optimizer steps, at most."""
    rows_per_step: int = 128
    """Rows of context_tokens tokens per optimizer step, a multiple of rows_per_microbatch. Ours: the paper
    gives no batch size; 128 rows of 1,024 tokens lie among what Table 8's steps and hours imply."""
    rows_per_microbatch: int = 4
    """Rows of one cluster, or one point between some, that go through the model together; sets memory."""
    learning_rate: float = 1e-4
    """Peak, per optimizer step; Table 6."""
    optimizer: str = "adam"
    """"adam" as in Table 6, or "muon" (shared/optimizers.py). Recorded in the bundle, so that the owner
    fine-tunes with what pretrained: a change of family costs quality (arXiv 2605.10468)."""
    final_lr_fraction: float = 1.0
    """Share of the peak reached at the last step, by a cosine; 1: constant, as in Table 6."""
    warmup_steps: int = 1000
    """Steps of linear warm-up; Table 6."""
    clip_norm: float = 5.0
    """Largest global gradient norm; Table 6."""
    eval_every_steps: int = 1000
    """Optimizer steps between held-out losses."""
    patience_evals: int = 0
    """Held-out losses in a row that are no better than the best before stopping; 0: never stop.
    With a patience, the best step's weights are the result, of a run that diverges too; without, the last
    step's, and to diverge is an error."""
    diverged_nats: float = 3.0
    """A run has diverged whose training and held-out loss are both this far above the held-out loss before
    the first step: perplexity times 20. The held-out loss alone may only show too little text. 0: never.
    Ours."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints; does not change the result."""
    compile: bool = False
    """Whether the layers go through torch.compile, which wants a C++ compiler and a minute or more. Other
    kernels round otherwise, so that it belongs to the result."""

    def __post_init__(self) -> None:
        for name in ("steps", "rows_per_step", "rows_per_microbatch", "eval_every_steps"):
            if getattr(self, name) < 1:
                raise PlanearlyError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.rows_per_step % self.rows_per_microbatch:
            raise PlanearlyError(
                f"rows_per_step is {self.rows_per_step}, expected a multiple of rows_per_microbatch,"
                f" {self.rows_per_microbatch}"
            )
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise PlanearlyError(f"{name} is {getattr(self, name)}, expected more than 0")
        check_optimizer(self.optimizer)
        if not 0 <= self.final_lr_fraction <= 1:
            raise PlanearlyError(f"final_lr_fraction is {self.final_lr_fraction}, expected 0 to 1")

    def result_fields(self) -> dict[str, Any]:
        """Return the fields that decide the result, for a run's digest."""
        return {key: value for key, value in asdict(self).items() if key != "checkpoint_every_s"}


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of step `step`, from 0: linear warm-up, then a cosine to its final fraction."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)
