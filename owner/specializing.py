"""The owner's story in one function: verify, read, select, adapt, save."""

import hashlib
import json
import shutil
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

from owner.adapting import Replay, adapt, check_same_tokenizer, finetune_teacher
from owner.candidates import SLM, check_method
from owner.documents import read_documents
from owner.finetuning import FinetuneConfig
from owner.replaying import ReplayConfig
from owner.requesting import count_votes, noisy_request
from owner.saving import REPORT_FILE, save_specialized
from owner.selecting import Selection, embed_windows, select_expert
from owner.trust import check_not_rolled_back, remember_version, trusted_keys
from owner.walking import Skipped
from owner.windows import PrivateWindows, split_documents, window_documents
from shared.bundle import Bundle, open_bundle
from shared.device import choose_device
from shared.embedding import WEIGHTS_SHA256, Embedder, find_embedder_files, load_embedder
from shared.errors import BundleError, PlanearlyError
from shared.files import write_json
from shared.replay import replay_windows
from shared.request import HistogramRequest
from shared.slm import SlmConfig, build_slm, count_parameters
from shared.tokenizer import build_tokenizer, read_pieces
from shared.training import Say

BYTES_PER_PARAMETER, BYTES_PER_TRAINING = 4, 4 * (3 * 3 + 1)
"""Float32 weights of the result; weights and two moments in three checkpoints while one is being written,
and the best step, of each training."""
RUN_FILE, SELECTION_FILE = "run.json", "selection.json"


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
    walls: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Turn a signed bundle and private documents into `out/model/` and `out/report.json`.

    Paper §2.5, §4.3. Returns the report. Killed at any moment, the same call finishes the job; on CPU
    the model is then bit for bit that of an undisturbed run. Until the last rename everything lies in a
    folder beside `out` that only its owner can read, and that is removed at the end.
    Raises BundleError, SignatureError, DocumentsError, PlanearlyError, OSError; no `out` is left then.
    """
    clock = _Clock()
    work = out.parent / f".{out.name}.unfinished"
    if not out.absolute().parent.is_dir():
        raise PlanearlyError(f"{out}: its folder does not exist", hint="make it, or choose another --out")
    with ExitStack() as stack:
        bundle = _open_trusted(bundle_path, stack, clock)
        manifest = bundle.manifest
        check_method(config.select, bundle)
        say(
            f"bundle       {bundle_path.name} · signed by key {bundle.key_id} ·"
            f" {manifest.kind} · {manifest.n_experts} experts"
        )
        pack = teacher_bundle = None
        if config.replay_path is not None:
            pack = _open_trusted(config.replay_path, stack, clock)
            check_same_tokenizer(bundle, pack)
            say(
                f"replay pack  {config.replay_path.name} · signed by key {pack.key_id} ·"
                f" {pack.manifest.replay_tokens:,} tokens · {pack.manifest.n_clusters} clusters"
            )
        if config.teacher_path is not None:
            teacher_bundle = _open_trusted(config.teacher_path, stack, clock)
            check_method("most-frequent", teacher_bundle)
            check_same_tokenizer(bundle, teacher_bundle)
            say(f"teacher      {config.teacher_path.name} · signed by key {teacher_bundle.key_id}")
        device = choose_device(device_name)
        tokenizer = build_tokenizer(read_pieces(bundle.file("tokenizer.json"), manifest.model.vocab_size))
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
            return _already_done(out, run, work, say)
        _check_space(out.parent, manifest.model, _count_trainings(config, bundle))
        _open_work(work, run, say)
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
            "device": str(device),
            "egress_denied_by": list(walls),
            "seconds": clock.seconds,
            "run": run,
        }
        save_specialized(work / "result", out, adapted.model.cpu(), tokenizer, report)
        shutil.rmtree(work, ignore_errors=True)
        return report


def _open_trusted(path: Path, stack: ExitStack, clock: _Clock) -> Bundle:
    """Open a bundle that a pinned key signed and that is no older than one seen; check every digest."""
    with clock.stage("verify"):
        bundle = stack.enter_context(open_bundle(path, trusted_keys()))
        manifest = bundle.manifest
        check_not_rolled_back(bundle.key_id, manifest.name, manifest.version)
        if manifest.kind != "mix":  # of a mixture only the chosen expert is read, and checked then
            bundle.verify_all()
        remember_version(bundle.key_id, manifest.name, manifest.version)
    return bundle


def _name(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "key_id": bundle.key_id,
        "file": bundle.path.name,
    }


def _without_vector(start: Any) -> dict[str, Any]:
    return {"name": start.name, "heldout_loss": start.heldout_loss}


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
    return starts * per_start + len(bundle.manifest.comparison) * per_start


def _check_space(folder: Path, sizes: SlmConfig, n_trainings: int) -> None:
    """Refuse before hours of work what the disk cannot hold: checkpoints, best steps, result."""
    per_parameter = BYTES_PER_PARAMETER + n_trainings * BYTES_PER_TRAINING
    needed = per_parameter * count_parameters(build_slm(sizes, "meta"))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PlanearlyError(
            f"{folder}: {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB needed while fine-tuning",
            hint="free some space, or choose an --out on another disk",
        )


def _already_done(out: Path, run: str, work: Path, say: Say) -> dict[str, Any]:
    """Return the report of a finished run of the same inputs; refuse to touch anything else."""
    try:
        report = json.loads((out / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = None
    if not isinstance(report, dict) or report.get("run") != run:
        raise PlanearlyError(f"{out}: already exists", hint="choose another --out, or move it away")
    say(f"{out}: already finished by the same command")
    shutil.rmtree(work, ignore_errors=True)
    return report


def _open_work(work: Path, run: str, say: Say) -> None:
    """Make the work folder, or keep that of the same run; state of other inputs is dropped."""
    try:
        found = json.loads((work / RUN_FILE).read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found == run:
        say("resuming the unfinished run")
        return
    if work.exists():
        if found is not None:
            say("starting over: the unfinished run had other inputs")
        shutil.rmtree(work)
    work.mkdir(mode=0o700)
    write_json(work / RUN_FILE, {"run": run})


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


def request_histogram(
    bundle_path: Path, data: Path, epsilon: float, out: Path, say: Say, embedder_folder: Path | None = None
) -> tuple[HistogramRequest, int]:
    """Return the differentially private request for these documents, and their number; writes nothing.

    Raises as `specialize`, and PlanearlyError when `out` exists: a request is never overwritten.
    """
    if out.exists():
        raise PlanearlyError(f"{out}: already exists", hint="choose another --out, or move it away")
    with ExitStack() as stack:
        bundle = _open_trusted(bundle_path, stack, _Clock())
        manifest = bundle.manifest
        device = choose_device("auto")
        tokenizer = build_tokenizer(read_pieces(bundle.file("tokenizer.json"), manifest.model.vocab_size))
        skipped: list[Skipped] = []
        private = window_documents(read_documents(data, skipped), tokenizer, manifest.model.context_tokens)
        say(f"documents    {private.n_documents:,} documents · {sum(item.n for item in skipped)} skipped")
        centroids_KW = bundle.tensor("clusters.centroids").numpy()
        embedder = open_embedder(bundle, embedder_folder, device)
        votes_K = count_votes(private, tokenizer, embedder, centroids_KW)
        return noisy_request(votes_K, centroids_KW, epsilon), private.n_documents


def open_embedder(bundle: Bundle, folder: Path | None, device: torch.device) -> Embedder:
    """Return the embedder that made a bundle's centroids, from the bundle, the folder or the package.

    Raises BundleError when the bundle names another; PlanearlyError when its files are not there.
    """
    entry = bundle.manifest.embedder
    if entry.sha256 != WEIGHTS_SHA256:
        raise BundleError(
            f"{bundle.path}: its centroids belong to embedder {entry.sha256[:16]}...,"
            f" expected {WEIGHTS_SHA256[:16]}...",
            hint="use a planearly that knows this embedder",
        )
    if entry.embedded:
        return load_embedder(bundle.file("embedder.safetensors"), bundle.file("embedder-vocab.txt"), device)
    return load_embedder(*find_embedder_files(folder), device)


def _describe(selection: Selection, n_experts: int) -> str:
    if n_experts == 1:
        return "the bundle holds one model"
    text = f"{selection.expert} of {n_experts} · holds {selection.share:.0%} of windows"
    if selection.runner_up is not None and selection.runner_up[1] > 0:
        text += f" · next is {selection.runner_up[0]} with {selection.runner_up[1]:.0%}"
    return text
