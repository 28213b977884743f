"""Where a corpus lies and a bundle goes: a folder, or a URL of an object store that fsspec knows.

Local files go by the digest of their content, counted once and remembered; objects by what their store
calls their content (the ETag). So a corpus that was copied is the same corpus. Credentials and endpoints are
the store's own (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ~/.aws); none passes through here.
"""

import gzip
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from fsspec.core import url_to_fs
from fsspec.utils import glob_translate

from shared.errors import DocumentsError, PlanearlyError
from shared.files import write_json

ETAGS = ("ETag", "etag", "md5Hash", "sha256")
"""Where fsspec's file systems keep what changes with the content: S3, Azure and HTTP, Google, the hub."""
DIGESTS_FILE = "digests.json"
FOREIGN_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
)
"""What s3fs lets through beside OSError once its own retries are used up."""


def is_url(place: Path | str) -> bool:
    """Say whether a place is a URL, and not a path of this machine."""
    return "://" in str(place)


def _system(url: str) -> tuple[Any, str]:
    try:
        return cast(tuple[Any, str], url_to_fs(url))
    except (ImportError, ValueError) as error:
        raise PlanearlyError(
            f"{url}: {error}", hint="s3:// needs the package s3fs, others their own of fsspec"
        ) from None


def _store_errors() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules[module], name) for module, name in FOREIGN_ERRORS if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, name in loaded))


@contextmanager
def store_errors_named(url: str) -> Iterator[None]:
    """Turn what a store's client raises into one error that names the URL."""
    try:
        yield
    except gzip.BadGzipFile:  # the file's own fault
        raise
    except _store_errors() as error:
        raise PlanearlyError(
            f"{url}: the store does not answer as expected ({type(error).__name__}: {error})"[:300],
            hint="check the URL, credentials and network; the same command goes on from here",
        ) from None


def find_files(place: Path | str, patterns: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the files that match a glob pattern: by name, its path or URL and ETag."""
    if not is_url(place):
        folder = Path(place)
        found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
        return {path.relative_to(folder).as_posix(): (str(path), "") for path in found}
    system, root = _system(str(place))
    expressions = [re.compile(glob_translate(pattern)) for pattern in patterns]
    with store_errors_named(str(place)):
        system.invalidate_cache()
        objects: dict[str, dict[str, Any]] = system.find(root, detail=True)
    named = {path.removeprefix(root).lstrip("/"): (path, info) for path, info in objects.items()}
    return {
        name: (system.unstrip_protocol(path), _etag(info))
        for name, (path, info) in named.items()
        if any(expression.match(name) for expression in expressions)
    }


def _etag(info: dict[str, Any]) -> str:
    for key in ETAGS:
        if info.get(key):
            return f"{info['size']}:{info[key]}"
    # a store without: its own idea of a change, which may be a time
    return f"{info['size']}:{info.get('LastModified') or info.get('created') or info.get('mtime')}"


def open_file(path: Path | str, etag: str = "") -> IO[bytes]:
    """Open a file or an object for reading; a cut connection is retried by the store's client.

    Raises DocumentsError when the object is not the one that `find_files` listed.
    """
    if not is_url(path):
        return Path(path).open("rb")
    system, name = _system(str(path))
    system.invalidate_cache()
    file = system.open(name, "rb")
    if etag and _etag(file.details) != etag:
        file.close()
        raise DocumentsError(
            f"{path}: changed since it was listed", hint="the same command lists it anew and starts from that"
        )
    return cast(IO[bytes], file)


def digest_files(paths: Sequence[str], work: Path) -> dict[str, str]:
    """Return the SHA-256 of each local file, read only if its size or times are not those of last time."""
    cache = work / DIGESTS_FILE
    try:
        known: dict[str, list[Any]] = json.loads(cache.read_text())
    except (OSError, ValueError):  # it saves time, and nothing else
        known = {}
    found: dict[str, list[Any]] = {}
    try:
        for path in paths:
            status = Path(path).stat()
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            place = str(Path(path).absolute())
            if known.get(place, [None])[0] != stamp:
                with Path(path).open("rb") as file:
                    known[place] = [stamp, hashlib.file_digest(file, "sha256").hexdigest()]
            found[place] = known[place]
    finally:
        if found:
            write_json(cache, known)
    return {path: found[str(Path(path).absolute())][1] for path in paths}


def upload(path: Path, url: str) -> str:
    """Copy a file to `<url>/<its name>` and read it back; return its URL. Raises PlanearlyError."""
    target = f"{url.rstrip('/')}/{path.name}"
    system, name = _system(target)
    with store_errors_named(target):
        system.put_file(str(path), name)
        system.invalidate_cache()
        with system.open(name, "rb") as stored, path.open("rb") as ours:
            if hashlib.file_digest(stored, "sha256").digest() != hashlib.file_digest(ours, "sha256").digest():
                raise PlanearlyError(
                    f"{target}: the store gives other bytes than it got", hint="release once more"
                )
    return target
