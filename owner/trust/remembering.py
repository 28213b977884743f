"""What this owner has seen, so that nothing older is accepted: versions of bundles and trust files, the time.

One `state.json`, written whole or not at all, under a lock. It cannot know of a newer version that never
arrived, nor of a clock that was never right.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.errors import BundleError, PlanearlyError
from shared.files import write_json
from shared.names import check_time, read_time, write_time
from shared.strict_json import Malformed

HOME_VARIABLE = "PLANEARLY_HOME"
STATE_FILE = "state.json"
STATE_FORMAT = "planearly-trust/v1"
MAX_STATE_BYTES = 16 << 20
EMPTY: dict[str, Any] = {"names": {}, "versions": {}, "time": "", "trust_files": {}}
"""Fields of the record beside `format`; a record of before there were trust files lacks the last two."""


@dataclass(frozen=True)
class SeenFile:
    """The highest version seen of one provider's trust file."""

    version: int
    digest: str
    """SHA-256 of its payload."""
    roots: str
    """Fingerprint of its roots."""
    is_stored: bool
    """False once it was removed; what was seen stays."""


def trust_home() -> Path:
    """Return $PLANEARLY_HOME, else $XDG_CONFIG_HOME/planearly, else ~/.config/planearly."""
    if own := os.environ.get(HOME_VARIABLE):
        return Path(own)
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "planearly"


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Keep other processes of this owner from changing the folder meanwhile."""
    trust_home().mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(trust_home(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def key_name(key_id: str) -> str:
    """Return the note given when the key was pinned, or an empty one."""
    return str(read_state()["names"].get(key_id, ""))


def remember_name(key_id: str, name: str) -> None:
    """Keep a note for people beside a key; the caller holds the lock."""
    state = read_state()
    state["names"][key_id] = name
    _write_state(state)


def check_not_rolled_back(key_ids: Collection[str], name: str, version: int) -> None:
    """Raise BundleError when this owner has seen a newer version of the bundle by one of these keys."""
    versions = read_state()["versions"]
    for key_id in key_ids:
        seen = versions.get(key_id, {}).get(name, 0)
        if version < seen:
            raise BundleError(
                f"{name} version {version} is older than version {seen} by key {key_id}, seen here before",
                hint="get the newest; to go back on purpose, lower the number in"
                f" {trust_home() / STATE_FILE}",
            )


def remember_version(key_id: str, name: str, version: int) -> None:
    """Record a version as seen; the highest stays, whatever the order of calls."""
    with locked():
        state = read_state()
        versions = state["versions"].setdefault(key_id, {})
        if versions.get(name, 0) < version:
            versions[name] = version
            _write_state(state)


def read_clock() -> datetime:
    """Return this machine's time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def latest_time() -> datetime:
    """Return the clock's time or the latest it ever showed here, whichever is later; remember it.

    It is remembered only where a trust file is stored: nothing else is judged by time.
    """
    now, state = read_clock(), read_state()
    seen = read_time(state["time"]) if state["time"] else now
    if now >= seen and any(file["is_stored"] for file in state["trust_files"].values()):
        with locked():
            state = read_state()
            state["time"] = max(state["time"], write_time(now))
            _write_state(state)
    return max(now, seen)


def seen_files() -> dict[str, SeenFile]:
    """Return the highest version seen of each trust file, by its provider's name."""
    return {name: SeenFile(**file) for name, file in read_state()["trust_files"].items()}


def remember_file(name: str, file: SeenFile) -> None:
    """Record a trust file as the highest seen; the caller holds the lock and has compared versions."""
    state = read_state()
    state["trust_files"][name] = asdict(file)
    _write_state(state)


def read_state() -> dict[str, Any]:
    """Return the record; an empty one where there is none. Raises PlanearlyError when it is damaged."""
    path = trust_home() / STATE_FILE
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_STATE_BYTES + 1)
    except FileNotFoundError:
        return json.loads(json.dumps({"format": STATE_FORMAT, **EMPTY}))
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        state = None
    if isinstance(state, dict):
        state = EMPTY | state
    if not _is_state(state) or len(text) > MAX_STATE_BYTES:
        raise PlanearlyError(
            f"{path}: is damaged",
            hint="it records the versions seen; without it, older bundles are accepted once more",
        )
    return state


def _write_state(state: dict[str, Any]) -> None:
    write_json(trust_home() / STATE_FILE, state)


def _is_state(state: Any) -> bool:
    """Return whether it is what `write_json` was last given, as far as a reader depends on it."""
    return (
        isinstance(state, dict)
        and state.get("format") == STATE_FORMAT
        and isinstance(state["names"], dict)
        and isinstance(state["versions"], dict)
        and all(
            isinstance(bundles, dict) and all(type(version) is int for version in bundles.values())
            for bundles in state["versions"].values()
        )
        and _is_time(state["time"])
        and isinstance(state["trust_files"], dict)
        and all(_is_seen_file(file) for file in state["trust_files"].values())
    )


def _is_time(text: Any) -> bool:
    try:
        return text == "" or bool(check_time(text, "time"))
    except Malformed:
        return False


def _is_seen_file(file: Any) -> bool:
    types = {"version": int, "digest": str, "roots": str, "is_stored": bool}
    return isinstance(file, dict) and {name: type(value) for name, value in file.items()} == types
