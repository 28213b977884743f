"""Training state on disk: one safetensors file per checkpoint, whole or not there, two kept.

A checkpoint holds parameters, Adam's two moments, and a small JSON record (step, history, the digest of
the run it belongs to). With it and the seed a run goes on exactly where it was.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.errors import CheckpointError
from shared.files import sync_folder

RECORD = "planearly-checkpoint"
KEPT = 2
"""Newest checkpoints kept; the older one is there in case a disk damages the newest."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file held: tensors by name, and the JSON record."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def save_checkpoint(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write one file atomically; raises OSError (no space left) with the old file untouched."""
    temporary = path.with_name(f".{path.name}.new")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, temporary, metadata={RECORD: json.dumps(record)})
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a file into memory (not mmapped); raises CheckpointError when it is damaged."""
    try:
        with safe_open(path, framework="pt") as opened:
            record = json.loads((opened.metadata() or {})[RECORD])
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__})") from None
    return Checkpoint(tensors, record)


def _by_step(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))


def save_step(folder: Path, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Save `step-N.safetensors` and delete all but the newest KEPT."""
    save_checkpoint(folder / f"step-{step:09}.safetensors", tensors, record)
    for old in _by_step(folder)[:-KEPT]:
        old.unlink()


def load_newest(folder: Path, run: str) -> Checkpoint | None:
    """Return the newest readable checkpoint, or None if there is none at all.

    Raises CheckpointError when all are damaged, or one belongs to another run.
    """
    paths = _by_step(folder)
    for path in reversed(paths):
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError:
            continue
        if checkpoint.record.get("run") != run:
            raise CheckpointError(f"{path}: belongs to another run", hint=f"delete {folder} to start again")
        return checkpoint
    if paths:
        raise CheckpointError(f"{folder}: no checkpoint can be read", hint=f"delete {folder} to start again")
    return None
