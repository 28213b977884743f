"""The provider's trust file: written from a plan in TOML, signed by one root after another.

Each root's holder may sign on a machine of their own, in any order; what is short of the threshold is
written all the same, and says so. docs/trust-format.md is the format.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from provider.signing import SigningKey
from shared.errors import RecipeError, TrustError
from shared.files import write_atomic
from shared.names import write_time
from shared.signature import pae, read_public_key
from shared.strict_json import Malformed, canonical_json, check_list, check_object
from shared.trust_file import (
    FORMAT,
    MEDIA_TYPE,
    Roots,
    Signed,
    TrustFile,
    parse_payload,
    parse_signed,
    read_payload,
    read_signed,
)

PLAN_DEFAULTS: dict[str, Any] = {
    "keys": [],
    "revoked_keys": [],
    "revoked_bundles": [],
    "minimum_versions": {},
}
"""Fields of a plan that may be left out."""


def read_plan(path: Path) -> bytes:
    """Return the payload that a plan describes; files of public keys are named from the plan's folder.

    The same plan and keys give the same bytes. Raises RecipeError, naming the field; SignatureError for a
    key file.
    """
    try:
        plan = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is no TOML: {error}") from None
    required = ["name", "version", "created", "expires", "roots"]
    try:
        plan = check_object({**PLAN_DEFAULTS, **plan}, "plan", [*required, *PLAN_DEFAULTS])
        check_object(plan["roots"], "roots", ["keys", "threshold"])
        roots = {
            "threshold": plan["roots"]["threshold"],
            "keys": sorted(_keys(path, plan["roots"]["keys"], "roots.keys")),
        }
        keys = []
        for entry in check_list(plan["keys"], "keys", 0, 1 << 16):
            check_object(entry, "keys", ["file", "bundles"])
            (key,) = _keys(path, [entry["file"]], "keys.file")
            keys.append({"key": key, "bundles": _sorted(entry["bundles"])})
        payload = canonical_json(
            {
                **plan,
                "format": FORMAT,
                "created": _time(plan["created"], "created"),
                "expires": _time(plan["expires"], "expires"),
                "roots": roots,
                "keys": sorted(keys, key=lambda entry: entry["key"]),
                "revoked_keys": _sorted(plan["revoked_keys"]),
                "revoked_bundles": _sorted(plan["revoked_bundles"]),
            }
        )
        parse_payload(payload)
    except Malformed as problem:
        raise RecipeError(
            f"{path}: {problem}", hint="docs/trust-format.md shows a whole plan, examples/trust.toml too"
        ) from None
    return payload


def _keys(plan: Path, files: Any, where: str) -> list[str]:
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise Malformed(f"{where}: expected names of public key files")
    return [read_public_key(plan.parent / file).raw.hex() for file in files]


def _sorted(texts: Any) -> Any:
    """Return a list of texts in order; anything else as it is, for `parse_payload` to refuse."""
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return sorted(texts)
    return texts


def _time(value: Any, where: str) -> str:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise Malformed(f"{where}: expected a time with a zone, as 2026-11-21T00:00:00Z")
    return write_time(value)


def write_trust(plan: Path, keys: Sequence[SigningKey], out: Path) -> tuple[TrustFile, int]:
    """Write a new trust file signed by these keys; return it and how many of its own roots signed.

    Raises RecipeError, SignatureError; TrustError when `out` exists: collected signatures are never
    overwritten.
    """
    if out.exists():
        raise TrustError(f"{out}: already exists", hint="choose another --out, or move it away")
    return _write(Signed(str(out), read_plan(plan), ()), keys, out)


def sign_trust(path: Path, key: SigningKey) -> tuple[TrustFile, int]:
    """Add one more signature to a trust file, or none if it is there already; return as `write_trust` does.

    A key that is no root of the file may sign too: in a rotation, owners who hold an earlier file ask for
    its roots' signatures. Raises TrustError when the file breaks a rule or a root's signature is wrong.
    """
    signed = read_signed(path)
    _count(signed, read_payload(signed).roots)
    return _write(signed, [key], path)


def _write(signed: Signed, keys: Sequence[SigningKey], out: Path) -> tuple[TrustFile, int]:
    message = pae(MEDIA_TYPE, signed.payload)
    signatures = dict(signed.signatures) | {key.public_key.key_id: key.sign(message) for key in keys}
    signed = replace(signed, signatures=tuple(sorted(signatures.items())))
    content = signed.text()
    checked = read_payload(parse_signed(content, str(out)))
    count = _count(signed, checked.roots)
    with write_atomic(out) as file:
        file.write(content)
    return checked, count


def _count(signed: Signed, roots: Roots) -> int:
    try:
        return signed.count(roots)
    except Malformed as problem:
        raise TrustError(
            f"{signed.where}: roots: {problem}", hint="the file was damaged; write it anew"
        ) from None
