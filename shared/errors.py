"""The one error a person reads, and its few children.

A message says what, where, and found against expected; the hint is one thing the reader can do about
it. Neither ever quotes private text. Only the two `cli.py` files catch these, print them and exit.
"""


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


def error_lines(error: PlanearlyError | OSError | KeyboardInterrupt) -> list[str]:
    """Return what a command prints of an expected error before it exits with 1: message, then hint."""
    if isinstance(error, PlanearlyError):
        return [f"error: {error}"] + ([f"hint: {error.hint}"] if error.hint else [])
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return [f"error: {where}{error.strerror or error}"]
    return ["interrupted; the same command goes on from here"]
