"""One finding of the doctor: what was looked at, how it is, and what to do about it."""

from dataclasses import dataclass
from pathlib import Path

OK, WARN, MISSING = "ok", "warn", "missing"


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, and one thing to do about it."""

    name: str
    state: str
    found: str
    hint: str = ""
    is_needed: bool = False
    """Whether `owner specialize` cannot run without it."""

    @property
    def is_in_the_way(self) -> bool:
        """Whether `owner specialize` would fail."""
        return self.is_needed and self.state == MISSING


def lines_of(path: str) -> list[str]:
    """Return a small file's lines; none where there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
