"""The owner's story in one function: verify, read, select, adapt, save."""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from owner.choice.candidates import check_method
from owner.choice.selecting import choose_expert, describe_selection
from owner.documents.duplicates import read_distinct
from owner.documents.walking import Skipped
from owner.documents.windows import PrivateWindows, split_documents
from owner.isolation.places import unfinished_folder
from owner.isolation.walls import Walls
from owner.privacy.accounting import PrivacyConfig, describe_privacy, plan_privacy
from owner.privacy.canaries import canaries_file, draw_canaries, plant_canaries
from owner.report.metering import Clock, Meter
from owner.report.recording import (
    cluster_labels,
    describe_bundle,
    describe_result,
    digests,
    perplexities,
    software,
    uncertainty,
)
from owner.report.sampling import sample, sample_finished
from owner.report.writing import add_samples, write_report
from owner.training.adapting import Replay, adapt, finetune_teacher
from owner.training.finetuning import FinetuneConfig
from owner.training.matching import check_pack, check_teacher
from owner.training.replaying import ReplayConfig
from owner.training.saving import REPORT_FILE, publish_result, stage_model
from owner.training.unfinished import check_space, discard_work, finished_report, open_work
from owner.trust.carried import open_tokenizer
from owner.trust.opening import open_trusted
from owner.trust.vouching import read_trust
from shared.bundle import Bundle
from shared.device import choose_device
from shared.errors import PlanearlyError
from shared.files import locked, make_folder
from shared.names import write_time
from shared.progress import Say, listening
from shared.replay import replay_windows


@dataclass(frozen=True)
class SpecializeConfig:
    """What an owner decides about a run; what it needs beyond the bundle."""

    select: str = "most-frequent"
    """One of owner.choice.methods.METHODS; the paper's is the most frequent cluster (§4.3)."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    replay_path: Path | None = None
    """A replay pack to continue pretraining on before fine-tuning."""
    teacher_path: Path | None = None
    """A bundle whose model, fine-tuned first, teaches (SLM-d)."""
    stale_reason: str | None = None
    """Why trust files may be used past their expiry; None: they may not. The report keeps it."""
    privacy: PrivacyConfig | None = None
    """Differential privacy for documents; None: without."""
    canaries: int = 0
    """Random sequences to plant for `owner audit`."""
    with_samples: bool = False
    """Whether the report shows how start and result go on with held-out text, which is private."""

    def __post_init__(self) -> None:
        others = [
            name
            for name, is_asked in (
                (f"--select {self.select}", self.select != "most-frequent"),
                ("--replay", self.replay_path),
                ("--teacher", self.teacher_path),
            )
            if is_asked
        ]
        if self.privacy and others:
            raise PlanearlyError(
                f"{others[0]} uses the documents in ways that --dp-epsilon does not account for",
                hint="leave one of the two out; with --dp-epsilon the expert is chosen by a noisy vote",
            )

    def result_fields(self) -> dict[str, Any]:
        """Return what decides the result, without the paths: files are named by their digests."""
        return {
            "select": self.select,
            "finetune": asdict(self.finetune),
            "replay": asdict(self.replay) if self.replay_path else None,
            "privacy": asdict(self.privacy) if self.privacy else None,
            "canaries": self.canaries,
        }


def specialize(
    bundle_path: Path,
    data: Path,
    out: Path,
    config: SpecializeConfig,
    say: Say,
    device_name: str = "auto",
    embedder_folder: Path | None = None,
    walls: Walls | None = None,
) -> dict[str, Any]:
    """Turn a signed bundle and private documents into `out/model/`, `out/report.json` and `out/report.html`.

    Paper §2.5, §4.3. Returns the report. Killed at any moment, the same call finishes the job; on CPU
    the model is then bit for bit that of an undisturbed run. A finished run only gets samples added, where
    they are asked for and missing. Until the last rename everything lies in a folder beside `out` that only
    its owner can read, and that is removed at the end.
    Raises BundleError, SignatureError, DocumentsError, PlanearlyError, OSError; no `out` is left then.
    """
    clock = Clock()
    work = unfinished_folder(out)
    with ExitStack() as stack:
        with clock.stage("verify"):
            trust = read_trust(config.stale_reason)
            bundle, voucher = open_trusted(bundle_path, stack, trust, say)
            vouchers = [voucher]
        manifest = bundle.manifest
        check_method(config.select, bundle)
        say(
            f"bundle       {bundle_path.name} · signed by key {bundle.key_id} ·"
            f" {manifest.kind} · {manifest.n_experts} experts"
        )
        pack = teacher_bundle = None
        if config.replay_path is not None:
            with clock.stage("verify"):
                pack, voucher = open_trusted(config.replay_path, stack, trust, say)
                vouchers.append(voucher)
            check_pack(bundle, pack)
            say(
                f"replay pack  {config.replay_path.name} · signed by key {pack.key_id} ·"
                f" {pack.manifest.replay_tokens:,} tokens · {pack.manifest.n_clusters} clusters"
            )
        if config.teacher_path is not None:
            with clock.stage("verify"):
                teacher_bundle, voucher = open_trusted(config.teacher_path, stack, trust, say)
                vouchers.append(voucher)
            check_teacher(bundle, teacher_bundle)
            say(f"teacher      {config.teacher_path.name} · signed by key {teacher_bundle.key_id}")
        device = choose_device(device_name)
        meter = Meter(device)
        stack.enter_context(listening(meter))
        tokenizer = open_tokenizer(bundle)
        skipped: list[Skipped] = []
        finetune = config.finetune
        with clock.stage("read"):
            private, duplicates = read_distinct(data, skipped, tokenizer, manifest.model.context_tokens)
            split = split_documents(private, finetune.heldout_fraction, finetune.seed)
        n_skipped = sum(item.n for item in skipped)
        say(
            f"documents    {private.n_documents:,} documents · {private.windows.n_tokens:,} tokens ·"
            f" {split.heldout.n_tokens:,} held out · {duplicates.n} copies dropped · {n_skipped} skipped"
            + (f" (see {REPORT_FILE})" if n_skipped else "")
        )
        run = _run_digest([bundle, pack, teacher_bundle], private, config, device)

        def finished() -> dict[str, Any]:
            report = finished_report(out, run, work, say)
            if config.with_samples and report["samples"] is None:
                with clock.stage("samples"):
                    samples = sample_finished(out, report, bundle, split, tokenizer)
                report = add_samples(out, report, samples)
                say("samples      added to its report, which shows private text from now on")
            return report

        if out.exists():
            return finished()
        canaries = draw_canaries(config.canaries, manifest.model.vocab_size, finetune.seed)
        planted = plant_canaries(split, canaries)
        plan = None
        if config.privacy is not None:
            plan = plan_privacy(config.privacy, manifest.n_experts, planted, finetune.max_epochs)
            say(f"privacy      {plan.describe()}")
        check_space(out.parent, manifest.model, _count_trainings(config, bundle))
        make_folder(work, 0o700)
        stack.enter_context(locked(work))
        if out.exists():  # finished by another process meanwhile
            return finished()
        open_work(work, run, say)
        epsilon = plan.epsilon_selection if plan else 0.0
        with clock.stage("select"):
            selection, replay_histogram = choose_expert(
                bundle, pack, private, split, epsilon, tokenizer, embedder_folder, device, work
            )
        of = "votes, after noise" if epsilon else "windows"
        label = manifest.label(selection.expert) if manifest.cluster_terms else ""
        say(f"expert       {describe_selection(selection, manifest.n_experts, of, label)}")
        teacher = None
        if teacher_bundle is not None:
            with clock.stage("teacher"):
                teacher = finetune_teacher(teacher_bundle, split, finetune, device, work, run, say)
        replay = None
        if pack is not None:
            replay = Replay(replay_windows(pack), np.asarray(replay_histogram), config.replay)
        with clock.stage("adapt"):
            adapted = adapt(
                bundle,
                planted,
                selection,
                config.select,
                finetune,
                device,
                work,
                run,
                say,
                replay,
                cast(nn.Module, teacher) if teacher is not None else None,
                compare=plan is None,
                privacy=plan,
            )
        perplexity = perplexities(adapted)
        report: dict[str, Any] = {
            "perplexity": perplexity,
            "uncertainty": uncertainty(adapted, split),
            "result": describe_result(adapted),
            "select": config.select,
            "chosen": adapted.chosen.name,
            "start": {
                "name": adapted.chosen.name,
                "expert": adapted.chosen.expert,
                "vector": adapted.chosen.vector,
            },
            "starts": [{"name": start.name, "heldout_loss": start.heldout_loss} for start in adapted.starts],
            "expert": selection.expert if manifest.n_experts > 1 else 0,
            "histogram": selection.histogram,
            "histogram_windows": selection.n_windows,
            "cluster_labels": cluster_labels(manifest),
            "privacy": describe_privacy(plan, perplexity) if plan else None,
            "tokens": private.windows.n_tokens,
            "heldout_tokens": split.heldout.n_tokens,
            "split": split.by,
            "documents": private.n_documents,
            "documents_sha256": private.digest(),
            "duplicates": asdict(duplicates),
            "skipped": [asdict(item) for item in skipped],
            "finetuning": adapted.figures,
            "config": config.result_fields(),
            "bundle": describe_bundle(bundle),
            "replay_pack": describe_bundle(pack) if pack else None,
            "teacher": describe_bundle(teacher_bundle) if teacher_bundle else None,
            "trust": vouchers,
            "began": write_time(trust.now),
            "device": str(device),
            "isolation": asdict(walls) if walls else None,
            "samples": None,
            "software": software(),
            "run": run,
        }
        say(f"result       {report['result']}")
        model = adapted.model.cpu()
        if config.with_samples:
            with clock.stage("samples"):
                start = adapted.chosen.materialize(bundle)
                report["samples"] = sample(start, model, split, tokenizer, manifest.model.context_tokens)
        with clock.stage("save"):
            folder = stage_model(work / "result", model, tokenizer)
            report["files"] = digests(folder)
        report |= {"seconds": clock.seconds, "cost": meter.figures()}
        write_report(folder.parent, report)
        publish_result(folder.parent, out, canaries_file(canaries) if canaries else None)
        discard_work(work)
        return report


def _run_digest(
    bundles: list[Bundle | None], private: PrivateWindows, config: SpecializeConfig, device: torch.device
) -> str:
    """Return the digest of all that decides the result; saved state of another run is not used."""
    manifests = [bundle.manifest.raw if bundle else None for bundle in bundles]
    parts = [manifests, private.digest(), config.result_fields(), device.type]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _count_trainings(config: SpecializeConfig, bundle: Bundle) -> int:
    """Return how many trainings of models of the bundle's size leave files, at most."""
    starts = bundle.manifest.n_experts if config.select == "best-fine-tuned" else 1
    per_start = 2 if config.replay_path is not None else 1
    beside = 1 if config.privacy is not None else 0
    return starts * per_start + len(bundle.manifest.comparison) * per_start + beside
