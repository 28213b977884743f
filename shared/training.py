"""The one training loop of both parties: pretraining a system, fine-tuning an expert.

A step's loss is a sum of nats over all its tokens divided by their number, whatever the microbatches.
State is parameters, the optimizer's moments, a seed and a step; the sampler is a pure function of the last
two, so a run killed at any moment goes on from its last checkpoint and, on CPU, ends with the same bits.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from shared.batches import Microbatch
from shared.compiling import compile_layers
from shared.device import keep_freed_memory
from shared.errors import PlanearlyError
from shared.files import make_folder, remove_stale
from shared.interrupts import interrupt_held
from shared.losses import LossFunction, Network, sum_nats
from shared.optimizers import Optimizer, check_optimizer
from shared.prefetching import rows_of_steps
from shared.progress import SAY_EVERY_S, Say, beat, duration, is_live, show
from shared.ranks import ONE_PROCESS, Ranks

GradientFunction = Callable[[nn.Module, list[Microbatch], int], float]
"""(model, a step's microbatches, step) to the step's mean loss, the gradient left in `.grad`."""


class Batches(Protocol):
    """What gives each step its microbatches, a pure function of (seed, step)."""

    seed: int

    def step(self, step: int) -> list[Microbatch]:
        """Return the microbatches of optimizer step `step`, counted from 0."""


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


class HeldoutEntry(TypedDict):
    """One held-out loss of a run; losses in nats/token, train_loss is null at step 0."""

    step: int
    train_loss: float | None
    heldout_loss: float


class StepEntry(TypedDict):
    """One optimizer step as it went; of step 0, before the first, only the held-out loss is known."""

    step: int
    train_loss: float | None
    """Nats/token of this step's batch, before the step."""
    heldout_loss: float | None
    """Nats/token after the step, where it was taken."""
    learning_rate: float | None
    gradient_norm: float | None
    """Before clipping."""
    tokens: int
    """Trained on so far."""
    tokens_per_s: float | None
    """Of this step alone, its held-out loss not counted."""


Record = Callable[[StepEntry], None]


@dataclass
class TrainResult:
    """How a run ended; the model holds the weights of `step`."""

    step: int
    """The step whose weights the model holds: the best, or the last."""
    steps_run: int
    heldout_loss: float
    """Nats/token at `step`."""
    tokens: int
    """Tokens trained on, repeats counted."""
    seconds: float
    """Spent, held-out losses included, over all the processes that worked on it."""
    history: list[HeldoutEntry] = field(default_factory=list)
    diverged: str | None = None
    """Why the run stopped early, in words, if its loss or a gradient was not a number or far too high."""


class _DivergedError(PlanearlyError):
    """A loss or a gradient is not a number, or the held-out loss far above that of the start."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of step `step`, from 0: linear warm-up, then a cosine to its final fraction."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


def train_step(
    model: nn.Module,
    network: Network | None,
    batches: list[Microbatch],
    loss_of: LossFunction = sum_nats,
    ranks: Ranks = ONE_PROCESS,
) -> float:
    """Leave in `.grad` the gradient of the step's mean loss; return that loss (nats/token).

    Of several ranks each leaves its part of both, to be added up.
    """
    n_tokens = sum(batch.n_tokens for batch in batches)
    batches = ranks.share(batches)
    if network is not None:
        network.begin_step(sorted({batch.mixture for batch in batches}))
    losses: list[Tensor] = []
    for batch in batches:
        weights = {} if network is None else dict(network.weights_of(batch.mixture))
        loss = loss_of(model, weights, batch) / n_tokens
        loss.backward()
        losses.append(loss.detach())
        beat()
    if network is not None:
        network.finish_step()
    return sum(map(float, losses))  # only now: a number of a GPU's waits for all that it has to do


def trained_parameters(model: nn.Module, network: Network | None) -> dict[str, nn.Parameter]:
    """Return what the optimizer moves: the model's own parameters and the projection's."""
    named = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    if network is not None:
        named |= {f"projection.{name}": p for name, p in network.named_parameters() if p.requires_grad}
    return named


class _Run:
    """The mutable state of one run: what a checkpoint holds."""

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
        """Record the held-out loss of this step; raises _DivergedError."""
        self.check("the held-out loss", heldout_loss)
        self.history.append({"step": self.step, "train_loss": train_loss, "heldout_loss": heldout_loss})
        first, most = self.history[0]["heldout_loss"], self.diverged_nats
        if train_loss is not None and most and min(train_loss, heldout_loss) > first + most:
            raise _DivergedError(
                f"the held-out loss after {self.step} steps is {heldout_loss:.2f} nats/token,"
                f" before the first it was {first:.2f}"
            )
        if heldout_loss < self.best_loss:
            self.best_step, self.best_loss = self.step, heldout_loss
            if self.keeps_best:
                self.best_values = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}

    def check(self, what: str, value: float) -> None:
        """Raise _DivergedError unless a figure of the present weights is finite."""
        if not math.isfinite(value):
            raise _DivergedError(f"{what} after {self.step} steps is not a number")

    def save(self, folder: Path) -> None:
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
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])

    def resume(self, folder: Path, say: Say) -> bool:
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


def train(
    model: nn.Module,
    network: Network | None,
    sampler: Batches,
    heldout: Callable[[], Iterable[Microbatch]],
    config: TrainConfig,
    folder: Path,
    say: Say,
    inputs: str = "",
    loss_of: LossFunction = sum_nats,
    gradient_of: GradientFunction | None = None,
    ranks: Ranks = ONE_PROCESS,
    record: Record | None = None,
) -> TrainResult:
    """Train until `config.steps` or until the held-out loss stops falling; resume what `folder` holds.

    `loss_of` is what is minimized, or `gradient_of` gives a step's gradient; held-out losses are always
    nats. `inputs` is a digest of everything else that decides the result (data, starting weights, loss): a
    checkpoint of other inputs is refused. The held-out loss is also taken before the first step. With a
    patience, the model ends with the best step's weights, step 0 included: fine-tuning never makes it worse.
    Several `ranks` all call it, each with the same; `gradient_of` is for one process. `record` is told each
    step once it is taken; after a resume, steps since the checkpoint again.
    Weights are saved once they have given a finite loss and gradient, so a run that diverges leaves its last
    good checkpoint. After Ctrl-C the step at hand comes to that point first: at most one is done again.
    Raises CheckpointError (damaged or foreign state), PlanearlyError (diverged), OSError, KeyboardInterrupt.
    """
    identity = json.dumps([inputs, sampler.seed, config.result_fields()], sort_keys=True)
    run = hashlib.sha256(identity.encode()).hexdigest()
    if ranks.is_first:
        make_folder(folder)
        remove_stale(folder)
    keep_freed_memory()
    if config.compile:
        compile_layers(cast(PreTrainedModel, model), say)
    parameters = trained_parameters(model, network)
    device = next(iter(parameters.values())).device
    state = _Run(parameters, config, run, ranks)
    saved_step = -1
    if state.resume(folder, say):
        say(f"resumed at step {state.step}/{config.steps}")
        saved_step = state.step
    loss: float | None = None
    diverged: str | None = None
    saved_s = said_s = time.monotonic()
    started_s = saved_s - state.seconds
    said_tokens = state.tokens

    def take_heldout() -> bool:
        state.take_heldout(loss, ranks.evaluate(model, network, heldout()).mean)
        return state.goes_on(config.patience_evals)

    def tell(rate: float | None, norm: float | None, tokens_per_s: float | None) -> None:
        if record is not None:
            last = state.history[-1]
            heldout_loss = last["heldout_loss"] if last["step"] == state.step else None
            record(
                {
                    "step": state.step,
                    "train_loss": loss,
                    "heldout_loss": heldout_loss,
                    "learning_rate": rate,
                    "gradient_norm": norm,
                    "tokens": state.tokens,
                    "tokens_per_s": tokens_per_s,
                }
            )

    with interrupt_held(say) as is_interrupted:
        try:
            go_on = state.goes_on(config.patience_evals) if state.history else take_heldout()
            if state.step == 0:
                tell(None, None, None)
            rows = rows_of_steps(sampler.step, range(state.step, config.steps), device)
            while go_on and state.step < config.steps:
                begun_s = time.monotonic()
                batches = next(rows)
                state.optimizer.zero_grad()
                if gradient_of is None:
                    loss = ranks.add_up(parameters, train_step(model, network, batches, loss_of, ranks))
                else:
                    loss = gradient_of(model, batches, state.step)
                gradient_norm = ranks.clip(parameters, config.clip_norm)
                state.check("the training loss", loss)
                state.check("the gradient", gradient_norm)
                now_s = time.monotonic()
                state.seconds = now_s - started_s
                stops = is_interrupted()
                if ranks.agree(stops or now_s - saved_s >= config.checkpoint_every_s):
                    if state.step != saved_step:
                        state.save(folder)
                        saved_step, saved_s = state.step, time.monotonic()
                    if ranks.agree(stops):
                        raise KeyboardInterrupt
                state.optimizer.step(learning_rate(config, state.step))
                state.step += 1
                n_tokens = sum(batch.n_tokens for batch in batches)
                state.tokens += n_tokens
                step_s = max(1e-9, time.monotonic() - begun_s)
                if state.step % config.eval_every_steps == 0 or state.step == config.steps:
                    go_on = take_heldout()
                tell(learning_rate(config, state.step - 1), gradient_norm, n_tokens / step_s)
                now_s = time.monotonic()
                rate = (state.tokens - said_tokens) / max(1e-9, now_s - said_s)
                figures = (
                    f"train {loss:.3f} · held-out {state.history[-1]['heldout_loss']:.3f} nats/token"
                    f" · {rate / 1000:.1f}k tokens/s"
                )
                show(state.step, config.steps, "steps", figures)
                is_last = state.step == config.steps or not go_on
                if is_last or (now_s - said_s >= SAY_EVERY_S and not is_live()):
                    per_step = state.tokens / state.step
                    left_s = (config.steps - state.step) * per_step / max(1.0, rate)
                    say(f"step {state.step}/{config.steps} · {figures} · {duration(left_s)} left")
                    said_s, said_tokens = now_s, state.tokens
            state.seconds = time.monotonic() - started_s
            if state.step != saved_step:
                state.save(folder)
        except _DivergedError as error:
            if not state.best_values:
                raise PlanearlyError(
                    f"{error}; good checkpoints stay in {folder}", hint="use a lower learning rate"
                ) from None
            diverged = str(error)
            say(f"stopped: {diverged}; keeping step {state.best_step}, the best on held-out text")
    if state.keeps_best:
        state.load_values(state.best_values)
    last = state.history[-1]
    return TrainResult(
        step=state.best_step if state.keeps_best else state.step,
        steps_run=state.step,
        heldout_loss=state.best_loss if state.keeps_best else last["heldout_loss"],
        tokens=state.tokens,
        seconds=round(state.seconds, 3),
        history=state.history,
        diverged=diverged,
    )
