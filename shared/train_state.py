"""The state of one training run: what a checkpoint holds, which step was best, when it has diverged."""

import math
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from shared.errors import PlanearlyError
from shared.optimizers import Optimizer
from shared.progress import Say
from shared.ranks import Ranks
from shared.train_config import TrainConfig


class HeldoutEntry(TypedDict):
    """One held-out loss of a run; losses in nats/token, train_loss is null at step 0."""

    step: int
    train_loss: float | None
    heldout_loss: float


class DivergedError(PlanearlyError):
    """A loss or a gradient is not a number, or the held-out loss far above that of the start."""


class TrainState:
    """Where a run is: weights, moments, step, tokens, the best so far."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], config: TrainConfig, run: str, ranks: Ranks
    ) -> None:
        self.parameters, self.run, self.ranks = parameters, run, ranks
        self.keeps_best, self.diverged_nats = config.patience_evals > 0, config.diverged_nats
        self.optimizer = Optimizer(config.optimizer, parameters)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self.best_step, self.best_loss = 0, math.inf
        self.best_values: dict[str, Tensor] = {}
        self.history: list[HeldoutEntry] = []

    def goes_on(self, patience_evals: int) -> bool:
        """Say whether fewer held-out losses than the patience came after the best one."""
        after_best = sum(entry["step"] > self.best_step for entry in self.history)
        return patience_evals == 0 or after_best < patience_evals

    def take_heldout(self, train_loss: float | None, heldout_loss: float) -> None:
        """Record the held-out loss of this step; raises DivergedError."""
        self.check("the held-out loss", heldout_loss)
        self.history.append({"step": self.step, "train_loss": train_loss, "heldout_loss": heldout_loss})
        first, most = self.history[0]["heldout_loss"], self.diverged_nats
        if train_loss is not None and most and min(train_loss, heldout_loss) > first + most:
            raise DivergedError(
                f"the held-out loss after {self.step} steps is {heldout_loss:.2f} nats/token,"
                f" before the first it was {first:.2f}"
            )
        if heldout_loss < self.best_loss:
            self.best_step, self.best_loss = self.step, heldout_loss
            if self.keeps_best:
                self.best_values = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}

    def check(self, what: str, value: float) -> None:
        """Raise DivergedError unless a figure of the present weights is finite."""
        if not math.isfinite(value):
            raise DivergedError(f"{what} after {self.step} steps is not a number")

    def save(self, folder: Path) -> None:
        """Write a checkpoint of this step."""
        tensors = {name: p.detach() for name, p in self.parameters.items()}
        tensors |= {f"best.{name}": value for name, value in self.best_values.items()}
        tensors |= self.optimizer.tensors()
        record = {
            "run": self.run,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "best_step": self.best_step,
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "history": self.history,
        }
        self.ranks.save_step(folder, self.step, tensors, record)

    def load_values(self, tensors: dict[str, Tensor]) -> None:
        """Put these values into the parameters."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])

    def resume(self, folder: Path, say: Say) -> bool:
        """Take up the newest whole checkpoint of this run; say whether there was one."""
        checkpoint = self.ranks.load_newest(folder, self.run, say)
        if checkpoint is None:
            return False
        record = checkpoint.record
        self.load_values(checkpoint.tensors)
        self.step, self.tokens = record["step"], record["tokens"]
        self.seconds = record["seconds"]
        self.best_step, self.history = record["best_step"], record["history"]
        self.best_loss = math.inf if record["best_loss"] is None else record["best_loss"]
        if self.keeps_best:
            self.best_values = {name: checkpoint.tensors[f"best.{name}"] for name in self.parameters}
        self.optimizer.load(checkpoint.tensors, self.step)
        return True
