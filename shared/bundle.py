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

import numpy as np

from shared.contents import Values, check_tensors, expected_tensors
from shared.envelope import MEDIA_TYPE, header_bytes, parse_envelope, parse_header
from shared.errors import BundleError, SignatureError, UnknownKeyError
from shared.manifest import DTYPES, Manifest, TensorEntry, parse_manifest
from shared.signature import PublicKey, pae
from shared.strict_json import Malformed, quote

__all__ = ["Bundle", "Manifest", "expected_tensors", "open_bundle"]

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

Progress = Callable[[int, int], None]
Take = Callable[[np.ndarray, int], None]
"""(part of a tensor, flat and typed as in DTYPES; the position of its first element)."""


@contextlib.contextmanager
def step(path: Path, step: str) -> Iterator[None]:
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

    def array(self, name: str) -> np.ndarray:
        """Read one tensor into memory of its own, its digest and values checked; bfloat16 as its bits.

        Raises BundleError when there is none of that name, or it is not what was signed.
        """
        entry = self._entry(name)
        room = np.empty(entry.end - entry.start, np.uint8)
        self._check(name, lambda start, end: room.data[start:end])
        return room.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def file(self, name: str) -> bytes:
        """Return a carried file's verified bytes by its plain name, as `tokenizer.json`."""
        return self.array(f"files.{name}").tobytes()

    def verify_all(self, progress: Progress | None = None) -> None:
        """Check every tensor as `array` does, some at a time, in CHUNK_BYTES of memory for each.

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
            take(np.frombuffer(part, dtype), start // dtype.itemsize)

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
        with step(self.path, "values"):
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
        with step(path, "header"):
            envelope = parse_header(header)
        with step(path, "envelope"):
            payload, key_id, signature = parse_envelope(envelope)
        check_signature(path, payload, key_id, signature, trusted)
        with step(path, "manifest"):
            manifest = parse_manifest(payload)
        with step(path, "tensors"):
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


def _ignore(part: np.ndarray, position: int) -> None:
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


def check_signature(
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
