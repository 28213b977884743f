"""The one training loop of both parties: pretraining a system, fine-tuning an expert.

A step's loss is a sum of nats over all its tokens divided by their number, whatever the microbatches.
State is parameters, the optimizer's moments, a seed and a step; the sampler is a pure function of the last
two, so a run killed at any moment goes on from its last checkpoint and, on CPU, ends with the same bits.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypedDict, cast

from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from shared.batches import Microbatch
from shared.compiling import compile_layers
from shared.device import keep_freed_memory
from shared.errors import PlanearlyError
from shared.files import make_folder, remove_stale
from shared.interrupts import interrupt_held
from shared.losses import LossFunction, Network, sum_nats
from shared.prefetching import rows_of_steps
from shared.progress import SAY_EVERY_S, Say, beat, duration, is_live, per_second, show
from shared.ranks import ONE_PROCESS, Ranks
from shared.train_config import TrainConfig, learning_rate
from shared.train_state import DivergedError, HeldoutEntry, TrainState

GradientFunction = Callable[[nn.Module, list[Microbatch], int], float]
"""(model, a step's microbatches, step) to the step's mean loss, the gradient left in `.grad`."""


class Batches(Protocol):
    """What gives each step its microbatches, a pure function of (seed, step)."""

    seed: int

    def step(self, step: int) -> list[Microbatch]:
        """Return the microbatches of optimizer step `step`, counted from 0."""


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


class _Teller:
    """Tells a run's steps: each to its record and the live line, some to the log."""

    def __init__(self, state: TrainState, config: TrainConfig, say: Say, record: Record | None) -> None:
        self._state, self._config, self._say, self._record = state, config, say, record
        self._said_s, self._said_tokens = time.monotonic(), state.tokens

    def record(
        self,
        loss: float | None = None,
        rate: float | None = None,
        norm: float | None = None,
        tokens_per_s: float | None = None,
    ) -> None:
        if self._record is None:
            return
        last = self._state.history[-1]
        self._record(
            {
                "step": self._state.step,
                "train_loss": loss,
                "heldout_loss": last["heldout_loss"] if last["step"] == self._state.step else None,
                "learning_rate": rate,
                "gradient_norm": norm,
                "tokens": self._state.tokens,
                "tokens_per_s": tokens_per_s,
            }
        )

    def show(self, loss: float, is_last: bool) -> None:
        state, steps, now_s = self._state, self._config.steps, time.monotonic()
        rate = per_second(state.tokens - self._said_tokens, self._said_s)
        heldout_loss = state.history[-1]["heldout_loss"]
        figures = f"train {loss:.3f} · held-out {heldout_loss:.3f} nats/token · {rate / 1000:.1f}k tokens/s"
        show(state.step, steps, "steps", figures)
        if is_last or (now_s - self._said_s >= SAY_EVERY_S and not is_live()):
            left_s = (steps - state.step) * state.tokens / state.step / max(1.0, rate)
            self._say(f"step {state.step}/{steps} · {figures} · {duration(left_s)} left")
            self._said_s, self._said_tokens = now_s, state.tokens


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
    state = TrainState(parameters, config, run, ranks)
    saved_step = -1
    if state.resume(folder, say):
        say(f"resumed at step {state.step}/{config.steps}")
        saved_step = state.step
    loss: float | None = None
    diverged: str | None = None
    saved_s = time.monotonic()
    started_s = saved_s - state.seconds
    teller = _Teller(state, config, say, record)

    def take_heldout() -> bool:
        state.take_heldout(loss, ranks.evaluate(model, network, heldout()).mean)
        return state.goes_on(config.patience_evals)

    with interrupt_held(say) as is_interrupted:
        try:
            go_on = state.goes_on(config.patience_evals) if state.history else take_heldout()
            if state.step == 0:
                teller.record()
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
                tokens_per_s = per_second(n_tokens, begun_s)
                if state.step % config.eval_every_steps == 0 or state.step == config.steps:
                    go_on = take_heldout()
                teller.record(loss, learning_rate(config, state.step - 1), gradient_norm, tokens_per_s)
                teller.show(loss, state.step == config.steps or not go_on)
            state.seconds = time.monotonic() - started_s
            if state.step != saved_step:
                state.save(folder)
        except DivergedError as error:
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
