"""The owner's story in one function: verify, read, select, adapt, save."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from owner.adapting import Replay, adapt, check_pack, check_teacher, finetune_teacher
from owner.candidates import SLM, check_method
from owner.documents import read_documents
from owner.finetuning import FinetuneConfig
from owner.isolation import Walls
from owner.opening import open_embedder, open_tokenizer, open_trusted
from owner.places import unfinished_folder
from owner.replaying import ReplayConfig
from owner.saving import REPORT_FILE, save_specialized
from owner.selecting import Selection, embed_windows, select_expert
from owner.unfinished import check_space, discard_work, finished_report, open_work
from owner.vouching import read_trust
from owner.walking import Skipped
from owner.windows import PrivateWindows, split_documents, window_documents
from shared.bundle import Bundle
from shared.device import choose_device
from shared.files import locked, make_folder, write_json
from shared.replay import replay_windows
from shared.training import Say

SELECTION_FILE = "selection.json"


@dataclass(frozen=True)
class SpecializeConfig:
    """What an owner decides about a run; what it needs beyond the bundle."""

    select: str = "most-frequent"
    """One of owner.methods.METHODS; the paper's is the most frequent cluster (§4.3)."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    replay_path: Path | None = None
    """A replay pack to continue pretraining on before fine-tuning."""
    teacher_path: Path | None = None
    """A bundle whose model, fine-tuned first, teaches (SLM-d)."""
    stale_reason: str | None = None
    """Why trust files may be used past their expiry; None: they may not. The report keeps it."""

    def result_fields(self) -> dict[str, Any]:
        """Return what decides the result, without the paths: files are named by their digests."""
        return {
            "select": self.select,
            "finetune": asdict(self.finetune),
            "replay": asdict(self.replay) if self.replay_path else None,
        }


class _Clock:
    """Seconds per stage of this run; what an interrupted run had spent is not in them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 3)


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
    """Turn a signed bundle and private documents into `out/model/` and `out/report.json`.

    Paper §2.5, §4.3. Returns the report. Killed at any moment, the same call finishes the job; on CPU
    the model is then bit for bit that of an undisturbed run. Until the last rename everything lies in a
    folder beside `out` that only its owner can read, and that is removed at the end.
    Raises BundleError, SignatureError, DocumentsError, PlanearlyError, OSError; no `out` is left then.
    """
    clock = _Clock()
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
        tokenizer = open_tokenizer(bundle)
        skipped: list[Skipped] = []
        finetune = config.finetune
        with clock.stage("read"):
            private = window_documents(
                read_documents(data, skipped), tokenizer, manifest.model.context_tokens
            )
            split = split_documents(private, finetune.heldout_fraction, finetune.seed)
        n_skipped = sum(item.n for item in skipped)
        say(
            f"documents    {private.n_documents:,} documents · {private.windows.n_tokens:,} tokens ·"
            f" {split.heldout.n_tokens:,} held out · {n_skipped} skipped"
            + (f" (see {REPORT_FILE})" if n_skipped else "")
        )
        run = _run_digest([bundle, pack, teacher_bundle], private, config, device)
        if out.exists():
            return finished_report(out, run, work, say)
        check_space(out.parent, manifest.model, _count_trainings(config, bundle))
        make_folder(work, 0o700)
        stack.enter_context(locked(work))
        if out.exists():  # finished by another process meanwhile
            return finished_report(out, run, work, say)
        open_work(work, run, say)
        with clock.stage("select"):
            selection, replay_histogram = _select(
                bundle, pack, private, tokenizer, embedder_folder, device, work
            )
        say(f"expert       {_describe(selection, manifest.n_experts)}")
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
                split,
                selection,
                config.select,
                finetune,
                device,
                work,
                run,
                say,
                replay,
                cast(nn.Module, teacher) if teacher is not None else None,
            )
        figures = adapted.figures
        perplexity = {when: figures[adapted.chosen.name][when] for when in ("before", "after")}
        if SLM in figures:
            perplexity |= {f"slm_{when}": figures[SLM][when] for when in ("before", "after")}
        report: dict[str, Any] = {
            "perplexity": perplexity,
            "result": _result(figures[adapted.chosen.name]),
            "select": config.select,
            "chosen": adapted.chosen.name,
            "starts": [_without_vector(start) for start in adapted.starts],
            "expert": selection.expert if manifest.n_experts > 1 else 0,
            "histogram": selection.histogram,
            "histogram_windows": selection.n_windows,
            "tokens": private.windows.n_tokens,
            "heldout_tokens": split.heldout.n_tokens,
            "split": split.by,
            "documents": private.n_documents,
            "skipped": [asdict(item) for item in skipped],
            "finetuning": figures,
            "config": config.result_fields(),
            "bundle": _name(bundle),
            "replay_pack": _name(pack) if pack else None,
            "teacher": _name(teacher_bundle) if teacher_bundle else None,
            "trust": vouchers,
            "device": str(device),
            "isolation": asdict(walls) if walls else None,
            "seconds": clock.seconds,
            "run": run,
        }
        say(f"result       {report['result']}")
        save_specialized(work / "result", out, adapted.model.cpu(), tokenizer, report)
        discard_work(work)
        return report


def _name(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "key_id": bundle.key_id,
        "file": bundle.path.name,
    }


def _result(figures: dict[str, Any]) -> str:
    """Say in words what the model folder holds."""
    if figures["after"] < figures["before"]:
        text = f"fine-tuned, as after step {figures['best_step']} of {figures['steps']}"
    else:
        text = "as it was before fine-tuning: no step was better on the held-out text"
    return text + (f"; stopped early: {figures['diverged']}" if figures["diverged"] else "")


def _without_vector(start: Any) -> dict[str, Any]:
    return {"name": start.name, "heldout_loss": start.heldout_loss}


def _run_digest(
    bundles: list[Bundle | None], private: PrivateWindows, config: SpecializeConfig, device: torch.device
) -> str:
    """Return the digest of all that decides the result; saved state of another run is not used."""
    manifests = [bundle.manifest.raw if bundle else None for bundle in bundles]
    parts = [manifests, private.digest(), config.result_fields(), device.type]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _select(
    bundle: Bundle,
    pack: Bundle | None,
    private: PrivateWindows,
    tokenizer: Tokenizer,
    embedder_folder: Path | None,
    device: torch.device,
    work: Path,
) -> tuple[Selection, list[int]]:
    """Return the selection, and the histogram over the pack's clusters ([] without one); embeds once."""
    saved = work / SELECTION_FILE
    if saved.exists():
        found = json.loads(saved.read_text())
        return Selection(**found["selection"]), found["replay_histogram"]
    embedder = open_embedder(bundle, embedder_folder, device)
    embeddings = embed_windows(private.windows, tokenizer, embedder)
    selection = select_expert(embeddings, bundle.tensor("clusters.centroids").numpy())
    replay_histogram = (
        select_expert(embeddings, pack.tensor("clusters.centroids").numpy()).histogram if pack else []
    )
    write_json(saved, {"selection": asdict(selection), "replay_histogram": replay_histogram})
    return selection, replay_histogram


def _count_trainings(config: SpecializeConfig, bundle: Bundle) -> int:
    """Return how many trainings of models of the bundle's size leave files, at most."""
    starts = bundle.manifest.n_experts if config.select == "best-fine-tuned" else 1
    per_start = 2 if config.replay_path is not None else 1
    return starts * per_start + len(bundle.manifest.comparison) * per_start


def _describe(selection: Selection, n_experts: int) -> str:
    if n_experts == 1:
        return "the bundle holds one model"
    text = f"{selection.expert} of {n_experts} · holds {selection.share:.0%} of windows"
    if selection.runner_up is not None and selection.runner_up[1] > 0:
        text += f" · next is {selection.runner_up[0]} with {selection.runner_up[1]:.0%}"
    return text
