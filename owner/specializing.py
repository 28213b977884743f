"""The owner's story in one function: verify, read, select, materialize, fine-tune, save."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from transformers.modeling_utils import PreTrainedModel

from owner.documents import read_documents
from owner.finetuning import FinetuneConfig, finetune, train_config
from owner.saving import REPORT_FILE, save_specialized
from owner.selecting import Selection, select_expert
from owner.trust import check_not_rolled_back, remember_version, trusted_keys
from owner.walking import Skipped
from owner.windows import PrivateWindows, Split, split_documents, window_documents
from shared.bundle import Bundle, open_bundle
from shared.device import choose_device, make_deterministic
from shared.embedding import WEIGHTS_SHA256, find_embedder_files, load_embedder
from shared.errors import BundleError, PlanearlyError
from shared.files import write_json
from shared.materializing import comparison_slm, materialize
from shared.slm import SlmConfig, build_slm, count_parameters
from shared.tokenizer import build_tokenizer, read_pieces
from shared.training import Say

FILES_PER_PARAMETER_BYTES = 4 * (3 * 3 + 3)
"""Float32 weights and two moments, in three checkpoints while one is being written; best step of two
systems; the result."""
RUN_FILE, SELECTION_FILE = "run.json", "selection.json"


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
    config: FinetuneConfig,
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
    with clock.stage("verify"):
        bundle = open_bundle(bundle_path, trusted_keys())
    with bundle:
        manifest = bundle.manifest
        check_not_rolled_back(bundle.key_id, manifest.name, manifest.version)
        if manifest.kind != "mix":  # of a mixture only the chosen expert is read, and checked then
            with clock.stage("verify"):
                bundle.verify_all()
        remember_version(bundle.key_id, manifest.name, manifest.version)
        say(
            f"bundle       {bundle_path.name} · signed by key {bundle.key_id} ·"
            f" {manifest.kind} · {manifest.n_experts} experts"
        )
        device = choose_device(device_name)
        tokenizer = build_tokenizer(read_pieces(bundle.file("tokenizer.json"), manifest.model.vocab_size))
        skipped: list[Skipped] = []
        with clock.stage("read"):
            private = window_documents(
                read_documents(data, skipped), tokenizer, manifest.model.context_tokens
            )
            split = split_documents(private, config.heldout_fraction, config.seed)
        n_skipped = sum(item.n for item in skipped)
        say(
            f"documents    {private.n_documents:,} documents · {private.windows.n_tokens:,} tokens ·"
            f" {split.heldout.n_tokens:,} held out · {n_skipped} skipped"
            + (f" (see {REPORT_FILE})" if n_skipped else "")
        )
        run = _run_digest(bundle, private, config, device)
        if out.exists():
            return _already_done(out, run, work, say)
        _check_space(out.parent, manifest.model)
        _open_work(work, run, say)
        with clock.stage("select"):
            selection = _select(bundle, private, tokenizer, embedder_folder, device, work)
        expert = selection.expert if manifest.n_experts > 1 else 0
        say(f"expert       {_describe(selection, manifest.n_experts)}")
        figures: dict[str, Any] = {}
        # The comparison goes first: the expert's model is then the one left in memory.
        for system in ("slm", "expert"):
            with clock.stage(f"materialize_{system}"):
                model = comparison_slm(bundle) if system == "slm" else materialize(bundle, expert)
            if model is None:
                continue
            with clock.stage(f"finetune_{system}"):
                figures[system] = _finetune(
                    model, split, bundle, config, device, work / system, run, system, say
                )
        assert model is not None
        report = {
            "perplexity": {
                f"{prefix}{when}": figures[system][when]
                for system, prefix in (("expert", ""), ("slm", "slm_"))
                if system in figures
                for when in ("before", "after")
            },
            "expert": expert,
            "histogram": selection.histogram,
            "histogram_windows": selection.n_windows,
            "tokens": private.windows.n_tokens,
            "heldout_tokens": split.heldout.n_tokens,
            "split": split.by,
            "documents": private.n_documents,
            "skipped": [asdict(item) for item in skipped],
            "finetuning": figures,
            "config": asdict(config),
            "bundle": {
                "name": manifest.name,
                "version": manifest.version,
                "key_id": bundle.key_id,
                "file": bundle_path.name,
            },
            "device": str(device),
            "egress_denied_by": list(walls),
            "seconds": clock.seconds,
            "run": run,
        }
        save_specialized(work / "result", out, model.cpu(), tokenizer, report)
        shutil.rmtree(work, ignore_errors=True)
        return report


def _run_digest(bundle: Bundle, private: PrivateWindows, config: FinetuneConfig, device: torch.device) -> str:
    """Return the digest of all that decides the result; saved state of another run is not used."""
    parts = [bundle.manifest.raw, private.digest(), asdict(config), device.type]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_space(folder: Path, sizes: SlmConfig) -> None:
    """Refuse before hours of work what the disk cannot hold: checkpoints, best step, result."""
    needed = FILES_PER_PARAMETER_BYTES * count_parameters(build_slm(sizes, "meta"))
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
    private: PrivateWindows,
    tokenizer: Any,
    embedder_folder: Path | None,
    device: torch.device,
    work: Path,
) -> Selection:
    saved = work / SELECTION_FILE
    if saved.exists():
        return Selection(**json.loads(saved.read_text()))
    if bundle.manifest.embedder.sha256 != WEIGHTS_SHA256:
        raise BundleError(
            f"{bundle.path}: its centroids belong to embedder {bundle.manifest.embedder.sha256[:16]}...,"
            f" expected {WEIGHTS_SHA256[:16]}...",
            hint="use a planearly that knows this embedder",
        )
    if bundle.manifest.embedder.embedded:
        weights = bundle.file("embedder.safetensors")
        vocabulary = bundle.file("embedder-vocab.txt")
    else:
        weights, vocabulary = find_embedder_files(embedder_folder)
    embedder = load_embedder(weights, vocabulary, device)
    centroids = bundle.tensor("clusters.centroids").numpy()
    selection = select_expert(private.windows, tokenizer, embedder, centroids)
    write_json(saved, asdict(selection))
    return selection


def _describe(selection: Selection, n_experts: int) -> str:
    if n_experts == 1:
        return "the bundle holds one model"
    text = f"{selection.expert} of {n_experts} · holds {selection.share:.0%} of windows"
    if selection.runner_up is not None and selection.runner_up[1] > 0:
        text += f" · next is {selection.runner_up[0]} with {selection.runner_up[1]:.0%}"
    return text


def _finetune(
    model: PreTrainedModel,
    split: Split,
    bundle: Bundle,
    config: FinetuneConfig,
    device: torch.device,
    folder: Path,
    run: str,
    system: str,
    say: Say,
) -> dict[str, Any]:
    """Fine-tune one model in place; return its figures. A finished fine-tuning is read back."""
    manifest = bundle.manifest
    context = manifest.model.context_tokens
    training = manifest.raw["training"]
    make_deterministic(config.seed)
    cast(torch.nn.Module, model).to(device)
    settings = train_config(config, split, context, training["learning_rate"], training["rows_per_step"])
    name = "fine-tuning" if system == "expert" else f"  {system}"
    result = finetune(
        model,
        split,
        context,
        settings,
        config.seed,
        folder,
        lambda line: say(f"{name:<12} {line}"),
        inputs=f"{run} {system}",
    )
    return {
        "before": math.exp(result.history[0]["heldout_loss"]),
        "after": math.exp(result.heldout_loss),
        "best_step": result.step,
        "steps": result.steps_run,
        "tokens": result.tokens,
        "settings": asdict(settings),
        "history": result.history,
    }
