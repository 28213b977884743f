"""A provider's own bundle, opened for a page about it, and that page written."""

from pathlib import Path

from shared.bundle import Bundle, open_bundle
from shared.errors import PlanearlyError
from shared.files import write_atomic
from shared.signature import read_public_key


def open_own(path: Path, key_file: Path) -> Bundle:
    """Open a bundle that this public key signed, every digest checked. Raises SignatureError, BundleError."""
    bundle = open_bundle(path, [read_public_key(key_file)])
    try:
        bundle.verify_all()
    except BaseException:
        bundle.close()
        raise
    return bundle


def write_page(path: Path, text: str) -> Path:
    """Write a new text file, for everyone to read; return its path. Raises PlanearlyError, OSError."""
    if path.exists():
        raise PlanearlyError(f"{path}: already exists", hint="remove it, or name another file")
    with write_atomic(path) as out:
        out.write(text.encode())
    path.chmod(0o644)
    return path
