"""Signing and writing a bundle: docs/bundle-format.md, under the very rules by which it is read.

A writer's mistake is found before anything is on the disk: the reader's checks run over it first.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from shared.bundle import CHUNK_BYTES, MAX_HEADER_BYTES, check_signature, step
from shared.contents import RULED, Values, check_tensors, is_finite, lay_out
from shared.envelope import MEDIA_TYPE, header_bytes
from shared.errors import BundleError
from shared.files import write_atomic
from shared.manifest import FORMAT, parse_manifest
from shared.signature import Signer, pae
from shared.strict_json import canonical_json
from shared.tensors import NAMES, TYPES

Source = torch.Tensor | Callable[[], torch.Tensor]


def _load(source: Source) -> torch.Tensor:
    tensor = source if isinstance(source, torch.Tensor) else source()
    return tensor.detach().cpu().contiguous()


def _parts(tensor: torch.Tensor) -> Iterator[memoryview]:
    raw = tensor.reshape(-1).view(torch.uint8).numpy().data
    for at in range(0, len(raw), CHUNK_BYTES):
        yield raw[at : at + CHUNK_BYTES]


def _describe(path: Path, name: str, source: Source) -> dict[str, Any]:
    """Return a tensor's manifest entry but its offsets; NaN and infinities are refused."""
    tensor = _load(source)
    if tensor.dtype not in NAMES:
        raise BundleError(f"{path}: tensors: {name} is {tensor.dtype}, expected {', '.join(TYPES)}")
    dtype = NAMES[tensor.dtype]
    digest, finite = hashlib.sha256(), True
    for part in _parts(tensor):
        digest.update(part)
        finite = finite and is_finite(part, dtype)
    if not finite:
        raise BundleError(f"{path}: values: tensor {name} holds NaN or an infinity")
    return {"dtype": dtype, "shape": list(tensor.shape), "sha256": digest.hexdigest()}


def write_bundle(path: Path, manifest: dict[str, Any], tensors: Mapping[str, Source], key: Signer) -> None:
    """Sign and write a bundle, atomically; the same input gives the same bytes.

    `manifest` is without `format` and `tensors`, which are filled in; it must pass the reader's own rules
    before anything is written. A tensor may be given as a function that makes it: it is called twice, once
    to hash and once to write, and one tensor at a time is in memory. Raises BundleError, naming the rule;
    OSError when the disk does. Nothing is left behind then, and an older file of that name stays.
    """
    path = Path(path)
    if reserved := {"format", "tensors"} & set(manifest):
        raise BundleError(f"{path}: manifest: {', '.join(sorted(reserved))} is filled in, not given")
    entries = {name: _describe(path, name, source) for name, source in sorted(tensors.items())}
    layout = lay_out({name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()})
    for name, offsets in layout.items():
        entries[name]["offsets"] = list(offsets)
    with step(path, "manifest"):
        payload = canonical_json({**manifest, "format": FORMAT, "tensors": entries})
        parsed = parse_manifest(payload)
    with step(path, "tensors"):
        check_tensors(parsed)
    with step(path, "values"):
        for name in sorted(set(RULED) & set(tensors)):
            values = Values(name, parsed.tensors[name], parsed)
            for part in _parts(_load(tensors[name])):
                values.add(part)
            values.check()
    public, signature = key.public_key, key.sign(pae(MEDIA_TYPE, payload))
    check_signature(path, payload, public.key_id, signature, [public])
    header = header_bytes(parsed, payload, public.key_id, signature)
    if len(header) > MAX_HEADER_BYTES:
        raise BundleError(
            f"{path}: header size: {len(header)} bytes, expected at most {MAX_HEADER_BYTES}",
            hint="fewer tensors, or a shorter training record",
        )
    with write_atomic(path) as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for name in layout:
            digest = hashlib.sha256()
            for part in _parts(_load(tensors[name])):
                digest.update(part)
                out.write(part)
            if digest.hexdigest() != parsed.tensors[name].sha256:
                raise BundleError(f"{path}: digest: tensor {name} changed while it was written")
