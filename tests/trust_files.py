"""Trust files for tests: keys that anyone can make again, a payload, and its signed file."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from provider.bundling import write_bundle
from provider.signing import SigningKey
from shared.signature import pae
from shared.strict_json import canonical_json
from shared.trust_file import FORMAT, MEDIA_TYPE, Signed, parse_payload
from tests.vectors.build import LLAMA, example_manifest, example_tensors, make_key

CREATED = datetime(2026, 11, 1, tzinfo=UTC)
NOW = CREATED + timedelta(days=10)
ROOTS = [make_key(f"planearly test: root {number}") for number in range(4)]
SIGNER, SECOND_SIGNER, STRANGER = (make_key(f"planearly test: {name}") for name in ("signer", "second", "x"))


def hex_keys(keys: Sequence[SigningKey]) -> list[str]:
    """Return keys as a payload lists them."""
    return sorted(key.public_key.raw.hex() for key in keys)


def roots_field(keys: Sequence[SigningKey], threshold: int) -> dict[str, Any]:
    return {"keys": hex_keys(keys), "threshold": threshold}


def keys_field(scopes: dict[SigningKey, list[str]]) -> list[dict[str, Any]]:
    entries = [{"key": key.public_key.raw.hex(), "bundles": sorted(names)} for key, names in scopes.items()]
    return sorted(entries, key=lambda entry: str(entry["key"]))


def payload_fields(**changes: Any) -> dict[str, Any]:
    """Return a whole payload: one root of one, one signing key for every name, 90 days."""
    return {
        "format": FORMAT,
        "name": "acme",
        "version": 1,
        "created": "2026-11-01T00:00:00Z",
        "expires": "2027-01-30T00:00:00Z",
        "roots": roots_field(ROOTS[:1], 1),
        "keys": keys_field({SIGNER: ["*"]}),
        "revoked_keys": [],
        "revoked_bundles": [],
        "minimum_versions": {},
    } | changes


def signed_by(keys: Sequence[SigningKey], /, **changes: Any) -> bytes:
    """Return a trust file's content, signed by these keys."""
    payload = canonical_json(payload_fields(**changes))
    message = pae(MEDIA_TYPE, payload)
    signatures = sorted((key.public_key.key_id, key.sign(message)) for key in keys)
    return Signed("", payload, tuple(signatures)).text()


def fingerprint(**changes: Any) -> str:
    """Return the fingerprint of the roots of a payload."""
    return parse_payload(canonical_json(payload_fields(**changes))).roots.fingerprint


def write(path: Path, keys: Sequence[SigningKey], /, **changes: Any) -> Path:
    """Write a signed trust file."""
    path.write_bytes(signed_by(keys, **changes))
    return path


def write_small_bundle(path: Path, name: str, version: int, key: SigningKey) -> Path:
    """Write a bundle of a few kilobytes."""
    manifest = example_manifest("slm", LLAMA, 1, name=name, version=version)
    write_bundle(path, json.loads(json.dumps(manifest)), example_tensors(manifest), key)
    return path
