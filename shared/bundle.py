"""The signed bundle: one safetensors file that is read in one allowed order, or refused.

docs/bundle-format.md is normative: §4 and §5 for the file, §8 for the order. Nothing
made of a tensor is used before the signature holds and the tensor's own digest has been computed over
the very bytes it was made of. A signature says who published the file, not that its weights are good.
"""

import contextlib
import errno
import hashlib
import io
import os
import stat
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.contents import RULED, Values, check_tensors, expected_tensors, is_finite, lay_out
from shared.envelope import MEDIA_TYPE, header_bytes, parse_envelope, parse_header
from shared.errors import BundleError, SignatureError, UnknownKeyError
from shared.files import write_atomic
from shared.manifest import DTYPES, FORMAT, Manifest, TensorEntry, parse_manifest
from shared.signature import PublicKey, Signer, pae
from shared.strict_json import Malformed, canonical_json, quote

__all__ = ["Bundle", "Manifest", "expected_tensors", "open_bundle", "write_bundle"]

MAX_HEADER_BYTES = 4 << 20
STEPS = (
    "file",
    "header size",
    "header",
    "envelope",
    "signature",
    "manifest",
    "tensors",
    "rebuilt header",
    "length",
    "digest",
    "values",
)
"""The steps of reading, in their order; an error message names the one that refused."""
CHUNK_BYTES = 4 << 20
"""Hashed and scanned at a time: small enough to stay in a processor's cache."""
MAX_THREADS = 4
"""Tensors verified at a time, at most: each has a digest of its own, and hashlib and numpy let other threads
run. Ours."""

Source = torch.Tensor | Callable[[], torch.Tensor]
Progress = Callable[[int, int], None]
Take = Callable[[torch.Tensor, int], None]
"""(part of a tensor, flat and as stored; the position of its first element)."""


@contextlib.contextmanager
def _step(path: Path, step: str) -> Iterator[None]:
    try:
        yield
    except Malformed as problem:
        raise BundleError(f"{path}: {step}: {problem}") from None


@contextlib.contextmanager
def _readable(path: Path, step: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(f"{path}: {step}: cannot be read: {error.strerror}") from None


class Bundle:
    """An open bundle whose signature and structure hold; made by `open_bundle`, closed by `with`."""

    def __init__(self, path: Path, file: io.FileIO, data_start: int, manifest: Manifest, key_id: str) -> None:
        self.path, self.manifest, self.key_id = path, manifest, key_id
        self.size_bytes = data_start + max(entry.end for entry in manifest.tensors.values())
        self._file, self._data_start = file, data_start

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order in which they lie in the file."""
        return tuple(sorted(self.manifest.tensors, key=lambda name: self.manifest.tensors[name].start))

    def __enter__(self) -> "Bundle":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; tensors already read stay valid."""
        self._file.close()

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor into memory of its own, as stored, its digest and values checked.

        Raises BundleError when there is none of that name, or it is not what was signed.
        """
        entry = self._entry(name)
        room = np.empty(entry.end - entry.start, np.uint8)
        self._check(name, lambda start, end: room.data[start:end])
        return torch.frombuffer(room, dtype=DTYPES[entry.dtype]).reshape(entry.shape)

    def file(self, name: str) -> bytes:
        """Return a carried file's verified bytes by its plain name, as `tokenizer.json`."""
        return self.tensor(f"files.{name}").numpy().tobytes()

    def verify_all(self, progress: Progress | None = None) -> None:
        """Check every tensor as `tensor` does, some at a time, in CHUNK_BYTES of memory for each.

        `progress` is called after each, in file order, with the bytes checked so far and their total; the
        error of the first in file order is raised.
        """
        total = self.size_bytes - self._data_start

        def tell(name: str) -> None:
            if progress is not None:
                progress(self.manifest.tensors[name].end, total)

        self.read_parts(dict.fromkeys(self.names, _ignore), tell)

    def read_parts(self, takers: Mapping[str, Take], done: Callable[[str], None] | None = None) -> None:
        """Read tensors without ever holding one: each part goes to its tensor's taker, (part, position).

        Parts are flat, as stored, in their order, CHUNK_BYTES or less, and gone when the taker returns; some
        tensors are read at a time, each by one thread. **A taker sees bytes whose digest is not known yet**:
        what it makes of them may be used only once this call has returned. `done` is called with each name
        in its order, when its digest and values hold; the error of the first in that order is raised.
        """
        entries = {name: self._entry(name) for name in takers}
        with ThreadPoolExecutor(min(MAX_THREADS, _n_cores())) as pool:
            checks = [pool.submit(self._check_parts, name, takers[name]) for name in entries]
            try:
                for name, check in zip(entries, checks, strict=True):
                    check.result()
                    if done is not None:
                        done(name)
            finally:
                pool.shutdown(cancel_futures=True)

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.manifest.tensors:
            raise BundleError(f"{self.path}: has no tensor {quote(name)}")
        return self.manifest.tensors[name]

    def _check_parts(self, name: str, take: Take) -> None:
        entry = self._entry(name)
        scratch = memoryview(bytearray(min(entry.end - entry.start, CHUNK_BYTES)))
        dtype = DTYPES[entry.dtype]

        def took(part: memoryview, start: int) -> None:
            take(torch.frombuffer(part, dtype=dtype), start // dtype.itemsize)

        self._check(name, lambda start, end: scratch[: end - start], took)

    def _check(
        self,
        name: str,
        room: Callable[[int, int], memoryview],
        took: Callable[[memoryview, int], None] | None = None,
    ) -> None:
        """Read a tensor by parts into the room for each, hash and scan those very bytes, and check both."""
        entry = self._entry(name)
        size = entry.end - entry.start
        digest, values = hashlib.sha256(), Values(name, entry, self.manifest)
        for start in range(0, size, CHUNK_BYTES):
            part = room(start, min(start + CHUNK_BYTES, size))
            self._fill(part, self._data_start + entry.start + start)
            digest.update(part)
            values.add(part)
            if took is not None:
                took(part, start)
        if digest.hexdigest() != entry.sha256:
            raise BundleError(
                f"{self.path}: digest: tensor {name} is not what was signed",
                hint="the file was damaged or changed; get it again",
            )
        with _step(self.path, "values"):
            values.check()

    def _fill(self, part: memoryview, offset: int) -> None:
        done = 0
        while done < len(part):
            with _readable(self.path, "length"):
                count = os.preadv(self._file.fileno(), [part[done:]], offset + done)
            if not count:
                raise BundleError(f"{self.path}: length: the file was cut short while it was read")
            done += count


def open_bundle(path: Path, trusted: Collection[PublicKey]) -> Bundle:
    """Verify signature and structure in the order of STEPS, up to "length"; return the open bundle.

    Digests and values of tensors are checked as they are read. Raises SignatureError when the signature
    is wrong or by no key in `trusted`, BundleError for anything else, naming the file and the step.
    Cost: one read of the header, at most MAX_HEADER_BYTES.
    """
    file, size = _open(path)
    try:
        header = _read_header(path, file, size)
        with _step(path, "header"):
            envelope = parse_header(header)
        with _step(path, "envelope"):
            payload, key_id, signature = parse_envelope(envelope)
        _verify(path, payload, key_id, signature, trusted)
        with _step(path, "manifest"):
            manifest = parse_manifest(payload)
        with _step(path, "tensors"):
            check_tensors(manifest)
        if header_bytes(manifest, payload, key_id, signature) != header:
            raise BundleError(f"{path}: rebuilt header: differs from the file's header")
        bundle = Bundle(path, file, 8 + len(header), manifest, key_id)
        if bundle.size_bytes != size:
            raise BundleError(
                f"{path}: length: {size} bytes, expected {bundle.size_bytes}",
                hint="the file was cut short or lengthened; get it again",
            )
        return bundle
    except BaseException:
        file.close()
        raise


def _ignore(part: torch.Tensor, position: int) -> None:
    """Take a part of a tensor that is only verified."""


def _n_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open(path: Path) -> tuple[io.FileIO, int]:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except ValueError:
        raise BundleError(f"{quote(str(path))}: file: no file has a NUL in its name") from None
    except OSError as error:
        hint = "name the file itself, not a symbolic link" if error.errno == errno.ELOOP else ""
        raise BundleError(f"{path}: file: cannot be opened: {error.strerror}", hint) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BundleError(f"{path}: file: is not a regular file")
    return io.FileIO(descriptor), status.st_size


def _read_header(path: Path, file: io.FileIO, size: int) -> bytes:
    with _readable(path, "header size"):
        prefix = os.pread(file.fileno(), 8, 0)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 8 <= length <= min(MAX_HEADER_BYTES, size - 8) or length % 8:
        raise BundleError(
            f"{path}: header size: {length} bytes in a file of {size}, expected a multiple of 8,"
            f" at most {MAX_HEADER_BYTES}",
            hint="this is no bundle, or it was cut short",
        )
    with _readable(path, "header size"):
        header = os.pread(file.fileno(), length, 8)
    if len(header) != length:
        raise BundleError(f"{path}: header size: the file was cut short while it was read")
    return header


def _verify(
    path: Path, payload: bytes, key_id: str, signature: bytes, trusted: Collection[PublicKey]
) -> None:
    keys = [key for key in trusted if key.key_id == key_id]
    if not keys:
        raise UnknownKeyError(path, key_id)
    message = pae(MEDIA_TYPE, payload)
    if not any(key.verify(message, signature) for key in keys):
        raise SignatureError(
            f"{path}: signature: key {key_id} did not sign this manifest",
            hint="the file was damaged or changed; get it again",
        )


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
    types = {dtype: key for key, dtype in DTYPES.items()}
    if tensor.dtype not in types:
        raise BundleError(f"{path}: tensors: {name} is {tensor.dtype}, expected {', '.join(DTYPES)}")
    dtype = types[tensor.dtype]
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
    with _step(path, "manifest"):
        payload = canonical_json({**manifest, "format": FORMAT, "tensors": entries})
        parsed = parse_manifest(payload)
    with _step(path, "tensors"):
        check_tensors(parsed)
    with _step(path, "values"):
        for name in sorted(set(RULED) & set(tensors)):
            values = Values(name, parsed.tensors[name], parsed)
            for part in _parts(_load(tensors[name])):
                values.add(part)
            values.check()
    public, signature = key.public_key, key.sign(pae(MEDIA_TYPE, payload))
    _verify(path, payload, public.key_id, signature, [public])
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
