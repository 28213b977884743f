"""What a specialized model gives away about its documents, measured by its owner before anyone else can.

The split is derived again from report.json; nothing of the text is printed or written, only figures. An
attack that fails here proves nothing; one that succeeds shows what the next one can do at least.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from owner.audit.attacks import (
    CANDIDATES,
    PREFIX_TOKENS,
    TokenFigures,
    as_figures,
    auc_interval,
    distances,
    expose,
    rank_auc,
    recite,
    sure_fraction,
    token_figures,
)
from owner.choice.candidates import Start
from owner.documents.duplicates import read_distinct
from owner.documents.windows import Split, split_documents
from owner.privacy.canaries import read_canaries
from owner.training.saving import AUDIT_FILE, CANARIES_FILE, MODEL_FOLDER, REPORT_FILE
from owner.trust.opening import open_trusted
from owner.trust.vouching import read_trust
from shared.batches import Windows
from shared.bundle import Bundle
from shared.device import make_deterministic
from shared.errors import DocumentsError, PlanearlyError
from shared.files import write_json
from shared.pieces import build_tokenizer, read_pieces
from shared.progress import Say, show, stage

MOST_DOCUMENTS, WINDOWS_PER_DOCUMENT = 500, 4
"""Documents of each side that are scored at most, and evenly spaced windows of each. Ours."""


@dataclass(frozen=True)
class _Side:
    """Training or held-out documents that are scored: windows, and the first window of each document."""

    figures: list[TokenFigures]
    bounds: np.ndarray

    def losses(self) -> np.ndarray:
        """Return each document's loss in nats/token."""
        nats = np.asarray([one.nats.sum() for one in self.figures])
        tokens = np.asarray([len(one.nats) for one in self.figures])
        return np.add.reduceat(nats, self.bounds) / np.add.reduceat(tokens, self.bounds)


def audit(
    folder: Path, data: Path, bundle_path: Path | None, say: Say, stale_reason: str | None = None
) -> dict[str, Any]:
    """Attack the model of `owner specialize`'s out folder; return the figures and write `audit.json` there.

    The bundle, given or found beside the folder, gives the start to compare with. Raises PlanearlyError when
    the folder is none, DocumentsError when the documents are not those of the run, BundleError, OSError.
    """
    report = read_report(folder)
    make_deterministic(0)
    disable_progress_bar()
    with stage("load"):
        show(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder / MODEL_FOLDER, dtype=torch.float32, local_files_only=True
        )
    with stage("read"):
        split = derive_split(folder, data, report, model.config.max_position_embeddings)
    n_trained, n_heldout = (len(np.unique(d)) for d in (split.train_document, split.heldout_document))
    say(f"documents    {n_trained:,} trained on · {n_heldout:,} held out")
    with ExitStack() as stack:
        with stage("verify"):
            bundle = _open_start(folder, bundle_path, report, stack, say, stale_reason)
        start = None
        if bundle is not None:
            start = Start.from_dict(report["start"] | {"heldout_loss": None}).materialize(bundle)
            say(f"start        {report['start']['name']} of {bundle.path.name}")
        else:
            say("start        no bundle given or found: losses are not compared with it (--bundle)")
        is_whole = split.by == "documents"
        sides = {
            "trained": _chosen(split.train, split.train_document if is_whole else None),
            "heldout": _chosen(split.heldout, split.heldout_document if is_whole else None),
        }
        with stage("recite"):
            ours = {name: _Side(token_figures(model, w), bounds) for name, (w, bounds) in sides.items()}
            theirs = {
                name: _Side(token_figures(start, w), bounds) for name, (w, bounds) in sides.items() if start
            }
        say("recited and compared; canaries and experts next")
        found: dict[str, Any] = {
            "privacy": {key: report["privacy"][key] for key in ("epsilon", "delta")}
            if report["privacy"]
            else None,
            "membership": _membership(ours, theirs, split),
            "verbatim": {
                "prefix_tokens": PREFIX_TOKENS,
                "model": {name: as_figures(recite(side.figures)) for name, side in ours.items()},
                "start": {name: as_figures(recite(side.figures)) for name, side in theirs.items()} or None,
            },
            "canaries": _canaries(folder, model, start, report["config"]["finetune"]["seed"]),
            "start": _start(model, bundle, report) if bundle else None,
        }
    write_json(folder / AUDIT_FILE, found)
    return found


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report of an out folder. Raises PlanearlyError when it is none that can be audited."""
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = None
    needed = ("documents_sha256", "start", "config", "bundle", "privacy")
    if not isinstance(report, dict) or any(key not in report for key in needed):
        raise PlanearlyError(
            f"{folder}: no {REPORT_FILE} that can be audited",
            hint="give the out folder of `owner specialize`, made by this version",
        )
    return report


def derive_split(folder: Path, data: Path, report: dict[str, Any], context_tokens: int) -> Split:
    """Return the run's split. Raises DocumentsError when these are other documents."""
    private, _ = read_distinct(data, [], _tokenizer_of(folder), context_tokens)
    expected = report["documents_sha256"]
    if private.digest() != expected:
        raise DocumentsError(
            f"{data}: its documents have digest {private.digest()[:16]}..., expected {expected[:16]}... as in"
            f" {folder / REPORT_FILE}",
            hint="give the documents that the model was made from, unchanged",
        )
    finetune = report["config"]["finetune"]
    return split_documents(private, finetune["heldout_fraction"], finetune["seed"])


def _tokenizer_of(folder: Path) -> Tokenizer:
    """Return the tokenizer that read the private text: the saved one also knows special tokens."""
    saved = json.loads((folder / MODEL_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    return build_tokenizer(read_pieces(json.dumps(saved["model"]["vocab"]).encode()))


def _open_start(
    folder: Path,
    given: Path | None,
    report: dict[str, Any],
    stack: ExitStack,
    say: Say,
    stale_reason: str | None,
) -> Bundle | None:
    """Open the bundle of the run: the one given, or of its name beside the out folder."""
    named = report["bundle"]
    path = given or folder.absolute().parent / named["file"]
    if given is None and not path.exists():
        return None
    bundle, _ = open_trusted(path, stack, read_trust(stale_reason), say)
    manifest = bundle.manifest
    if (manifest.name, manifest.version, bundle.key_id) != (named["name"], named["version"], named["key_id"]):
        raise PlanearlyError(
            f"{path}: is {manifest.name} version {manifest.version}, expected {named['name']} version"
            f" {named['version']} by key {named['key_id']}",
            hint="give the bundle that the model was made from",
        )
    return bundle


def _chosen(windows: Windows, document: np.ndarray | None) -> tuple[Windows, np.ndarray]:
    """Return the windows to score, and which of them are the first of a document (or, of None, all)."""
    if document is None:
        document = np.arange(len(windows))
    firsts = np.flatnonzero(np.diff(document, prepend=-1))
    ends = np.append(firsts[1:], len(windows))
    places = np.unique(np.linspace(0, len(firsts) - 1, min(len(firsts), MOST_DOCUMENTS)).astype(int))
    chosen = [
        np.unique(
            np.linspace(firsts[i], ends[i] - 1, min(ends[i] - firsts[i], WINDOWS_PER_DOCUMENT)).astype(int)
        )
        for i in places
    ]
    bounds = np.cumsum([0] + [len(each) for each in chosen[:-1]])
    return windows.take(np.concatenate(chosen)), bounds


def _membership(ours: dict[str, _Side], theirs: dict[str, _Side], split: Split) -> dict[str, Any]:
    scores = {name: side.losses() / (theirs[name].losses() if theirs else 1.0) for name, side in ours.items()}
    members, others = scores["trained"], scores["heldout"]
    auc = rank_auc(members, others)
    return {
        "score": "loss ratio to the start" if theirs else "loss",
        "unit": split.by,
        "trained": len(members),
        "heldout": len(others),
        "auc": auc,
        "auc_95": list(auc_interval(auc, len(members), len(others))),
        "found_at_1_percent_false": sure_fraction(members, others),
    }


def _canaries(
    folder: Path, model: PreTrainedModel, start: PreTrainedModel | None, seed: int
) -> dict[str, Any] | None:
    path = folder / CANARIES_FILE
    if not path.exists():
        return None
    canaries, repeats = read_canaries(path)
    with stage("canaries"):
        return {
            "planted": len(canaries),
            "repeats": repeats,
            "candidates": CANDIDATES,
            "model": as_figures(expose(model, canaries, seed)),
            "start": as_figures(expose(start, canaries, seed)) if start is not None else None,
        }


def _start(model: PreTrainedModel, bundle: Bundle, report: dict[str, Any]) -> dict[str, Any]:
    with stage("experts"):
        by_distance = distances(model, bundle)
    names = list(by_distance)
    return {
        "true": report["start"]["name"],
        "nearest": names[0],
        "distance": by_distance[names[0]],
        "next": names[1] if len(names) > 1 else None,
        "next_distance": by_distance[names[1]] if len(names) > 1 else None,
    }
