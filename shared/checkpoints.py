"""Training state on disk: one safetensors file per checkpoint, whole or not there, two kept.

A checkpoint holds tensors (parameters, Adam's two moments, the best step's parameters) and a small JSON
record (step, history, the digest of the run it belongs to). With it and the seed a run goes on exactly where
it was. Its last tensor is the SHA-256 of every byte before it: the safetensors library opens a file with a
flipped bit without a word.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import CheckpointError
from shared.files import remove, write_atomic
from shared.tensors import NAMES

RECORD, DIGEST = "planearly-checkpoint", "sha256"
DIGEST_BYTES = 32
KEPT = 2
"""Newest checkpoints kept; the older one is there in case a disk damages the newest."""
CHUNK_BYTES = 4 << 20
"""Hashed, and written or read, at a time: small enough to stay in a processor's cache."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file held: tensors by name, and the JSON record."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def save_checkpoint(
    path: Path,
    tensors: dict[str, Tensor],
    record: dict[str, Any],
    content_of: Callable[[str], Tensor] | None = None,
) -> None:
    """Write one file atomically; raises OSError (no space left) with the old file untouched.

    Nothing is copied but, from another device or out of order, one tensor at a time. `content_of` gives
    each tensor when its turn comes, in `file_order`; `tensors` then need only have its type and shape.
    """
    digest = hashlib.sha256()
    with write_atomic(path) as out:
        for part in _parts(tensors, record, content_of or tensors.__getitem__):
            digest.update(part)
            out.write(part)
        out.write(digest.digest())


def file_order(tensors: dict[str, Tensor]) -> list[str]:
    """Return names as they lie in a file.

    Wide types first, as the library writes them: every tensor is then aligned to its type.
    """
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _parts(
    tensors: dict[str, Tensor], record: dict[str, Any], content_of: Callable[[str], Tensor]
) -> Iterator[Any]:
    """Yield the bytes of a safetensors file, all but those of its digest."""
    ordered = file_order(tensors)
    entries: dict[str, Any] = {"__metadata__": {RECORD: json.dumps(record)}}
    end = 0
    for name in ordered:
        start, end = end, end + tensors[name].nbytes
        dtype, shape = NAMES[tensors[name].dtype], list(tensors[name].shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    entries[DIGEST] = {"dtype": "U8", "shape": [DIGEST_BYTES], "data_offsets": [end, end + DIGEST_BYTES]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    yield struct.pack("<Q", len(header)) + header
    for name in ordered:
        raw = content_of(name).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for at in range(0, len(raw), CHUNK_BYTES):
            yield raw[at : at + CHUNK_BYTES]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a file into memory (not mmapped); raises CheckpointError when it is damaged."""
    try:
        is_whole = _is_whole(path)
        with safe_open(path, framework="pt") as opened:
            record = json.loads((opened.metadata() or {})[RECORD])
            names = [name for name in opened.keys() if name != DIGEST]  # noqa: SIM118
            tensors = {name: opened.get_tensor(name).clone() for name in names if is_whole}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__})", hint=f"delete {path.parent} to make it again"
        ) from None
    if not is_whole:
        raise CheckpointError(
            f"{path}: damaged (its content has another digest than its last {DIGEST_BYTES} bytes)",
            hint=f"delete {path.parent} to make it again",
        )
    return Checkpoint(tensors, record)


def _is_whole(path: Path) -> bool:
    """Say whether a file ends in the digest of all that comes before."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        left = path.stat().st_size - DIGEST_BYTES
        while left > 0 and (n := file.readinto(buffer[: min(left, CHUNK_BYTES)])):
            digest.update(buffer[:n])
            left -= n
        return file.read() == digest.digest()


def _by_step(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))


def save_step(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    record: dict[str, Any],
    content_of: Callable[[str], Tensor] | None = None,
) -> None:
    """Save `step-N.safetensors` and delete all but the newest KEPT."""
    save_checkpoint(folder / f"step-{step:09}.safetensors", tensors, record, content_of)
    for old in _by_step(folder)[:-KEPT]:
        remove(old)


def load_newest(folder: Path, run: str, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest whole checkpoint, or None if there is none at all.

    Damaged newer ones are named and deleted: the next ones take their place. Raises CheckpointError when
    all are damaged, or one belongs to another run.
    """
    damaged = []
    for path in reversed(_by_step(folder)):
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            say(f"skipped {error}; going on from the one before")
            damaged.append(path)
            continue
        if checkpoint.record.get("run") != run:
            raise CheckpointError(f"{path}: belongs to another run", hint=f"delete {folder} to start again")
        for other in damaged:
            remove(other)
        return checkpoint
    if damaged:
        raise CheckpointError(f"{folder}: no checkpoint can be read", hint=f"delete {folder} to start again")
    return None
