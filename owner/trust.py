"""The public keys that this owner has pinned, and the newest version seen of each bundle.

A key is pinned by hand, from a file received over a channel that the owner trusts; nothing is trusted
on first use. The version record refuses an older bundle with a valid signature (rollback); it cannot
know of a newer one that never arrived.
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import BundleError, PlanearlyError, SignatureError
from shared.files import write_atomic, write_json
from shared.signature import PublicKey, public_key_pem, read_public_key

HOME_VARIABLE = "PLANEARLY_HOME"
STATE_FILE = "state.json"
STATE_FORMAT = "planearly-trust/v1"
MAX_STATE_BYTES = 16 << 20
KEY_ID = re.compile(r"[0-9a-f]{16}")


def trust_home() -> Path:
    """Return $PLANEARLY_HOME, else $XDG_CONFIG_HOME/planearly, else ~/.config/planearly."""
    if own := os.environ.get(HOME_VARIABLE):
        return Path(own)
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "planearly"


def trust_folder() -> Path:
    """Return the folder that holds one `<key id>.pub` per pinned key."""
    return trust_home() / "trust"


def pin_key(path: Path, name: str = "") -> PublicKey:
    """Trust the key in a PEM file from now on; `name` is a note for people, shown by `key_name`.

    Pinning a key again changes nothing but a name that is given. Raises SignatureError for a file that
    is no Ed25519 public key.
    """
    key = read_public_key(path)
    with _locked():
        trust_folder().mkdir(mode=0o700, exist_ok=True)
        with write_atomic(trust_folder() / f"{key.key_id}.pub") as file:
            file.write(public_key_pem(key))
        if name:
            state = _read_state()
            state["names"][key.key_id] = name
            write_json(trust_home() / STATE_FILE, state)
    return key


def trusted_keys() -> list[PublicKey]:
    """Return the pinned keys, ordered by key id; none at all is an empty list.

    Raises SignatureError, naming the file, when one is damaged or holds another key than its name says.
    """
    keys = []
    for path in sorted(trust_folder().glob("*.pub")):
        try:
            key = read_public_key(path)
        except SignatureError as error:
            raise SignatureError(
                f"pinned key {error}", hint=f"remove it and pin it again: rm {path}"
            ) from None
        if path.name != f"{key.key_id}.pub":
            raise SignatureError(
                f"pinned key {path}: holds key {key.key_id}, expected the one in its name",
                hint=f"remove it and pin it again: rm {path}",
            )
        keys.append(key)
    return keys


def forget_key(key_id: str) -> None:
    """Stop trusting a key; what was seen of its bundles is kept, should it be pinned again.

    Raises SignatureError when no such key is pinned.
    """
    path = trust_folder() / f"{key_id}.pub"
    if not KEY_ID.fullmatch(key_id) or not path.exists():
        raise SignatureError(f"key {key_id} is not pinned", hint="owner keys lists those that are")
    path.unlink()


def key_name(key_id: str) -> str:
    """Return the note given when the key was pinned, or an empty one."""
    return str(_read_state()["names"].get(key_id, ""))


def check_not_rolled_back(key_id: str, name: str, version: int) -> None:
    """Raise BundleError when this owner has seen a newer version of the bundle by the same key."""
    seen = _read_state()["versions"].get(key_id, {}).get(name, 0)
    if version < seen:
        raise BundleError(
            f"{name} version {version} by key {key_id} is older than version {seen}, seen here before",
            hint=f"get the newest; to go back on purpose, lower the number in {trust_home() / STATE_FILE}",
        )


def remember_version(key_id: str, name: str, version: int) -> None:
    """Record a version as seen; the highest stays, whatever the order of calls."""
    with _locked():
        state = _read_state()
        versions = state["versions"].setdefault(key_id, {})
        if versions.get(name, 0) < version:
            versions[name] = version
            write_json(trust_home() / STATE_FILE, state)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Keep other processes of this owner from changing the folder meanwhile."""
    trust_home().mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(trust_home(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_state() -> dict[str, Any]:
    path = trust_home() / STATE_FILE
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_STATE_BYTES + 1)
    except FileNotFoundError:
        return {"format": STATE_FORMAT, "names": {}, "versions": {}}
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        state = None
    if not _is_state(state) or len(text) > MAX_STATE_BYTES:
        raise PlanearlyError(
            f"{path}: is damaged",
            hint="it records the versions seen; without it, older bundles are accepted once more",
        )
    return dict(state)


def _is_state(state: Any) -> bool:
    """Return whether it is what `write_json` was last given, as far as a reader depends on it."""
    return (
        isinstance(state, dict)
        and state.get("format") == STATE_FORMAT
        and isinstance(state.get("names"), dict)
        and isinstance(state.get("versions"), dict)
        and all(
            isinstance(bundles, dict) and all(type(version) is int for version in bundles.values())
            for bundles in state["versions"].values()
        )
    )
