"""The one error a person reads, and its few children.

A message says what, where, and found against expected; the hint is one thing the reader can do about
it. Neither ever quotes private text. Only the two `cli` folders catch these, print them and exit.
"""

import re


class PlanearlyError(Exception):
    """An input, a file or a machine is not as it must be; `hint` says what the reader can do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class BundleError(PlanearlyError):
    """A bundle breaks a rule of docs/bundle-format.md."""


class SignatureError(BundleError):
    """A bundle's signature is missing, wrong, or by a key that this owner has not pinned."""


class UnknownKeyError(SignatureError):
    """A bundle is signed by a key that is not among those trusted; `key_id` names it."""

    def __init__(self, path: object, key_id: str) -> None:
        super().__init__(
            f"{path}: signed by unknown key {key_id}",
            hint="if you trust its provider: owner trust add provider.pub",
        )
        self.path, self.key_id = path, key_id


class TrustError(PlanearlyError):
    """A trust file breaks a rule of docs/trust-format.md, or is not by the roots that this owner trusts."""


class DocumentsError(PlanearlyError):
    """Private documents or a generic corpus cannot be read, or hold too little text."""


class RecipeError(PlanearlyError):
    """A recipe or an option is malformed or out of range."""


class CheckpointError(PlanearlyError):
    """Saved state cannot be read, or belongs to another run."""


class IsolationError(PlanearlyError):
    """The walls around private text cannot be put up on this machine."""


EXPECTED_ERRORS = (PlanearlyError, OSError, KeyboardInterrupt, MemoryError, RuntimeError, ImportError)
"""What a command may end with, if `error_lines` has words for it."""
OUT_OF_MEMORY = re.compile(r"(out of|allocate) memory|failed to map segment|can't start new thread")
"""How torch, its devices, the loader of libraries and Python say that there is no more."""


def error_lines(error: BaseException) -> list[str]:
    """Return what a command prints of an expected error before it exits with 1: message, then hint.

    None at all for one that nobody expected: that is a bug, whose traceback is wanted.
    """
    if isinstance(error, PlanearlyError):
        return [f"error: {error}"] + ([f"hint: {error.hint}"] if error.hint else [])
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        return [
            "error: out of memory; nothing that was saved is lost",
            "hint: close other programs or raise the limit; the same command goes on from here",
        ]
    if isinstance(error, ModuleNotFoundError):
        return [
            f"error: the package {error.name} is not installed",
            "hint: install this version of the project again, with what it needs now: make setup",
        ]
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return [f"error: {where}{error.strerror or error}"]
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted; the same command goes on from here"]
    return []
