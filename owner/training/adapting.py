"""From an open bundle and the private windows to the best fine-tuned model: choose, replay, fine-tune, keep.

Works on windows and knows no files but its work folder; owner/specializing.py reads documents, checks
trust and writes the result.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from owner.choice.candidates import SLM, Start, check_method, choose_starts
from owner.choice.learning import learn_point
from owner.choice.selecting import Selection
from owner.documents.windows import Split
from owner.privacy.accounting import PrivacyPlan
from owner.privacy.private_training import finetune_privately, private_settings
from owner.training.distilling import distillation_loss
from owner.training.finetuning import FinetuneConfig, finetune, train_config
from owner.training.lora import add_lora, merge_lora
from owner.training.replaying import ReplayConfig, continue_pretraining, replay_weights
from owner.training.scoring import heldout_nats
from shared.batches import Microbatch, Sampler, Windows, all_microbatches
from shared.bundle import Bundle
from shared.device import make_deterministic
from shared.files import write_json
from shared.losses import LossFunction, evaluate, sum_nats
from shared.progress import Say, stage
from shared.tensors import read_tensor
from shared.train_config import TrainConfig
from shared.training import TrainResult

STARTS_FILE = "starts.json"
LEARN_STEPS, LEARN_RATE = 200, 0.02
"""Steps and peak rate of learning an expert vector, whose components are about 1 in size. Ours."""
WITHOUT_DP = "without-dp"
"""Name of a fine-tuning that is measured beside one with differential privacy, and never the result."""
SHORT = 12
"""Width of a progress line's first word."""


@dataclass(frozen=True)
class Replay:
    """A replay pack's windows, the owner's histogram over its clusters, and how much to train on them."""

    windows: Windows
    histogram_K: np.ndarray
    config: ReplayConfig


@dataclass(frozen=True)
class HeldoutNats:
    """Of each held-out document, the nats before any training and after: (u,) both."""

    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class Adapted:
    """The result: a dense stock model in float32, how it came about."""

    model: PreTrainedModel
    chosen: Start
    starts: list[Start]
    """All that were considered, with the held-out losses that were measured."""
    figures: dict[str, dict[str, Any]]
    """By name of each start that was fine-tuned: perplexities, steps, settings, history."""
    nats: dict[str, HeldoutNats]
    """By the same names."""


@dataclass(frozen=True)
class _Task:
    """What every training of one owner's run shares."""

    bundle: Bundle
    split: Split
    config: FinetuneConfig
    device: torch.device
    work: Path
    run: str
    say: Say
    replay: Replay | None
    teacher: nn.Module | None
    privacy: PrivacyPlan | None = None

    @property
    def context_tokens(self) -> int:
        return self.bundle.manifest.model.context_tokens

    def settings(self) -> TrainConfig:
        """Return the fine-tuning's settings, from the bundle's rate, batch and optimizer."""
        training = self.bundle.manifest.raw["training"]
        return train_config(
            self.config,
            self.split,
            self.context_tokens,
            training["learning_rate"],
            training["rows_per_step"],
            self.bundle.manifest.optimizer,
        )

    def heldout(self) -> list[Microbatch]:
        """Return the private held-out windows as microbatches."""
        return list(
            all_microbatches(self.split.heldout, self.context_tokens, self.config.rows_per_microbatch)
        )

    def heldout_nats(self, model: PreTrainedModel) -> np.ndarray:
        """Return the nats of each held-out document, (u,)."""
        rows = self.config.rows_per_microbatch
        return heldout_nats(cast(nn.Module, model), self.split, self.context_tokens, rows)


def adapt(
    bundle: Bundle,
    split: Split,
    selection: Selection,
    method: str,
    config: FinetuneConfig,
    device: torch.device,
    work: Path,
    run: str,
    say: Say,
    replay: Replay | None = None,
    teacher: nn.Module | None = None,
    compare: bool = True,
    privacy: PrivacyPlan | None = None,
) -> Adapted:
    """Fine-tune what `method` chooses and return the best by held-out loss; resumes what `work` holds.

    `method` is one of owner.choice.methods.METHODS. With a replay, each start first continues pretraining on
    the resampled pack. With a teacher, fine-tuned already, its distributions join the loss. With
    `compare`, the bundle's plain model is fine-tuned on the same windows too, as it is, and reported. With
    a plan for differential privacy, each start is fine-tuned without it too, and that one reported only.
    Raises PlanearlyError for a method that the bundle's kind does not have; BundleError; OSError.
    """
    check_method(method, bundle)
    task = _Task(bundle, split, config, device, work, run, say, replay, teacher, privacy)
    chosen_starts, starts = _choose(task, method, selection)
    figures: dict[str, dict[str, Any]] = {}
    nats: dict[str, HeldoutNats] = {}
    if compare and SLM in bundle.manifest.comparison and SLM not in [start.name for start in chosen_starts]:
        plain = replace(task, replay=None, teacher=None, config=replace(config, lora_rank=0))
        _, figures[SLM], nats[SLM] = _train(plain, Start(SLM))
    model = None
    for start in chosen_starts:
        if privacy is not None:
            beside = replace(task, privacy=None, work=task.work / WITHOUT_DP)
            _, figures[WITHOUT_DP], nats[WITHOUT_DP] = _train(beside, start)
        model, figures[start.name], nats[start.name] = _train(task, start)
    best = min(chosen_starts, key=lambda start: figures[start.name]["after"])
    if best is not chosen_starts[-1]:
        model, _, _ = _train(task, best)  # finished: its best step is read back
    assert model is not None
    return Adapted(model, best, starts, figures, nats)


def finetune_teacher(
    bundle: Bundle, split: Split, config: FinetuneConfig, device: torch.device, work: Path, run: str, say: Say
) -> PreTrainedModel:
    """Fine-tune a bundle's first model on the private windows and return it: the teacher of SLM-d (§2.2)."""
    plain = replace(config, lora_rank=0)
    task = _Task(bundle, split, plain, device, work, run, say, None, None)
    return _train(task, Start("teacher", expert=0))[0]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _choose(task: _Task, method: str, selection: Selection) -> tuple[list[Start], list[Start]]:
    """Choose once: what was chosen is kept in the work folder."""
    saved = task.work / STARTS_FILE
    if saved.exists():
        found = json.loads(saved.read_text())
        chosen, starts = ([Start.from_dict(entry) for entry in found[key]] for key in ("chosen", "starts"))
        return chosen, starts

    def measure(start: Start) -> Start:
        model = cast(nn.Module, start.materialize(task.bundle)).to(task.device)
        loss = evaluate(model, None, task.heldout()).mean
        task.say(f"{'start':<{SHORT}} {start.name} · held-out {loss:.3f} nats/token before fine-tuning")
        return replace(start, heldout_loss=loss)

    chosen, starts = choose_starts(method, task.bundle, selection, measure, lambda start: _learn(task, start))
    write_json(saved, {"chosen": [asdict(s) for s in chosen], "starts": [asdict(s) for s in starts]})
    return chosen, starts


def _learn(task: _Task, start: Start) -> Start:
    """Return the point learned from a start, by early stopping on the held-out windows."""
    settings = task.settings()
    config = replace(
        settings,
        steps=LEARN_STEPS,
        learning_rate=LEARN_RATE,
        warmup_steps=min(settings.warmup_steps, LEARN_STEPS // 10),
        eval_every_steps=LEARN_STEPS // 8,
    )
    vector_M = (
        torch.tensor(start.vector)
        if start.vector is not None
        else read_tensor(task.bundle, "experts.vectors")[start.expert or 0].float()
    )
    make_deterministic(task.config.seed)
    sampler = Sampler(
        task.split.train,
        task.context_tokens,
        config.rows_per_step,
        config.rows_per_microbatch,
        task.config.seed,
    )
    learned_M, loss = learn_point(
        task.bundle,
        vector_M,
        sampler,
        task.heldout(),
        config,
        task.work / "learned-point",
        lambda line: task.say(f"{'learning':<{SHORT}} {line}"),
        task.device,
        inputs=_digest(task.run, "learned", asdict(start)),
    )
    return Start("learned", vector=tuple(learned_M.tolist()), heldout_loss=loss)


def _train(task: _Task, start: Start) -> tuple[PreTrainedModel, dict[str, Any], HeldoutNats]:
    """Materialize, replay, fine-tune; return the model and its figures. What is finished is read back."""
    with stage(start.name):
        return _train_in_stage(task, start)


def _train_in_stage(task: _Task, start: Start) -> tuple[PreTrainedModel, dict[str, Any], HeldoutNats]:
    folder = task.work / start.name
    make_deterministic(task.config.seed)
    model = start.materialize(task.bundle)
    cast(nn.Module, model).to(task.device)
    before = task.heldout_nats(model)
    inputs = _digest(task.run, asdict(replace(start, heldout_loss=None)))
    figures: dict[str, Any] = {}
    if task.replay is not None:
        replayed, resampling = continue_pretraining(
            model,
            task.replay.windows,
            replay_weights(task.replay.histogram_K, task.replay.windows),
            task.heldout(),
            task.context_tokens,
            _base_settings(task),
            task.replay.config,
            task.config.seed,
            folder / "replay",
            lambda line: task.say(f"{'replay':<{SHORT}} {line}"),
            inputs=inputs,
        )
        figures["replay"] = _figures(replayed) | {"resampling": asdict(resampling)}
        make_deterministic(task.config.seed)
    if task.config.lora_rank:
        model = add_lora(model, task.config.lora_rank)
    loss_of: LossFunction = sum_nats
    if task.teacher is not None:
        loss_of = distillation_loss(task.teacher, task.config.teacher_weight)
    settings = task.settings()
    if task.privacy is not None:
        settings = private_settings(settings, task.privacy)
        result = finetune_privately(
            model,
            task.split,
            task.context_tokens,
            task.privacy,
            settings,
            folder,
            lambda line: task.say(f"{'private':<{SHORT}} {line}"),
            inputs=inputs,
        )
    else:
        result = finetune(
            model,
            task.split,
            task.context_tokens,
            settings,
            task.config.seed,
            folder,
            lambda line: task.say(f"{start.name:<{SHORT}} {line}"),
            inputs=inputs,
            loss_of=loss_of,
        )
    if task.config.lora_rank:
        model = merge_lora(model)
    figures = figures | _figures(result) | {"settings": asdict(settings)}
    if "replay" in figures:
        figures["before"] = figures["replay"]["before"]
    return model, figures, HeldoutNats(before, task.heldout_nats(model))


def _base_settings(task: _Task) -> TrainConfig:
    """Return the pretraining's rate and batch, with this run's rows per microbatch and checkpoints."""
    training = task.bundle.manifest.raw["training"]
    rows = task.config.rows_per_microbatch
    return TrainConfig(
        steps=1,
        rows_per_step=max(rows, training["rows_per_step"] // rows * rows),
        rows_per_microbatch=rows,
        learning_rate=training["learning_rate"],
        optimizer=task.bundle.manifest.optimizer,
        checkpoint_every_s=task.config.checkpoint_every_s,
    )


def _figures(result: TrainResult) -> dict[str, Any]:
    return {
        "before": math.exp(result.history[0]["heldout_loss"]),
        "after": math.exp(result.heldout_loss),
        "best_step": result.step,
        "steps": result.steps_run,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "history": result.history,
        "diverged": result.diverged,
    }
