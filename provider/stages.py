"""Stages of a release: each in a folder named by the digest of its inputs, done once.

A stage whose inputs have not changed is skipped; one that was killed goes on inside its folder, where it
keeps what is finished. Changed inputs give another folder, so nothing that took hours is overwritten.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared import progress
from shared.errors import CheckpointError
from shared.files import make_folder, remove_stale, write_json
from shared.progress import Say

DONE = "done.json"


@dataclass(frozen=True)
class Stage:
    """One stage: its folder, the digest of its inputs, what it reported when it was finished."""

    folder: Path
    digest: str
    report: dict[str, Any]
    was_done: bool


def find_stage(work: Path, name: str, inputs: dict[str, Any]) -> Stage:
    """Return the stage of these inputs as it is on disk; `was_done` says whether it is finished.

    The report of one that is not is empty. Raises CheckpointError.
    """
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    folder = work / f"{name}-{digest[:12]}"
    done = folder / DONE
    if not done.exists():
        return Stage(folder, digest, {}, was_done=False)
    try:
        return Stage(folder, digest, json.loads(done.read_text())["report"], was_done=True)
    except (ValueError, KeyError):
        raise CheckpointError(f"{done}: damaged", hint=f"delete {folder} to repeat the stage") from None


def run_stage(work: Path, name: str, inputs: dict[str, Any], run: Callable[[Path], dict[str, Any]]) -> Stage:
    """Run a stage in `work/<name>-<digest>` unless it is done there; return it.

    `run` gets the folder and returns a JSON report; it must pick up what a killed run left there.
    """
    stage = find_stage(work, name, inputs)
    if stage.was_done:
        return stage
    make_folder(stage.folder)
    remove_stale(stage.folder)
    with progress.stage(name):
        report = run(stage.folder)
    write_json(stage.folder / DONE, {"inputs": inputs, "report": report})
    return replace(stage, report=report)


def tell(say: Say, name: str, stage: Stage, text: str) -> None:
    """Print one line for a finished stage."""
    suffix = " · unchanged, skipped" if stage.was_done else ""
    say(f"{name:<12} {text.format(**stage.report)}{suffix}")
