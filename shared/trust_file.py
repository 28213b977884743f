"""A provider's trust file: which keys sign which bundles, and what no longer counts, signed by its roots.

docs/trust-format.md is normative. Modelled on the root role of TUF (threshold signatures, rotation signed by
old and new roots, monotone version, expiry), without its repository: one file that an owner carries to a
machine without a network. Its age shows; that it is the newest cannot be proven offline.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from shared.dsse import Signature, envelope_text, parse_envelope
from shared.errors import TrustError
from shared.names import MAX_VERSION, NAME_PATTERN, SHA256_PATTERN, check_time, read_time
from shared.signature import KEY_ID_PATTERN, PublicKey, pae, read_small_file
from shared.strict_json import (
    Malformed,
    canonical_json,
    check_integer,
    check_list,
    check_match,
    check_object,
    parse_json,
    quote,
)

FORMAT = "planearly-trust-file/v1"
MEDIA_TYPE = "application/vnd.planearly.trust.v1+json"
FINGERPRINT_PREFIX = b"planearly-trust-file/v1 roots\n"
"""Hashed before the roots, so that a fingerprint is no digest of anything else."""
FIELDS = (
    "format",
    "name",
    "version",
    "created",
    "expires",
    "roots",
    "keys",
    "revoked_keys",
    "revoked_bundles",
    "minimum_versions",
)
PROVIDER_PATTERN = re.compile(r"(?![0-9a-f]{16}$)[a-z0-9][a-z0-9._-]{0,63}")
SCOPE_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,100}|[A-Za-z0-9._-]{0,100}\*")
"""Lower case, since an owner's file system may not tell cases apart; never the form of a key id."""
STEPS = ("envelope", "rebuilt envelope", "payload", "fingerprint", "stored roots", "roots")
"""The steps of reading, in their order; an error message names the one that refused."""
MAX_FILE_BYTES = 1 << 18
"""Ours: room for some 2,500 revoked bundles."""
MAX_SIGNATURES = 16
MAX_ROOTS = 16
MAX_KEYS = 64
MAX_ENTRIES = 4096
"""Of each list beside the keys. Ours."""


@dataclass(frozen=True)
class Roots:
    """The keys that may sign a trust file, and how many of them must."""

    threshold: int
    keys: tuple[PublicKey, ...]

    @property
    def fingerprint(self) -> str:
        """What a provider tells its owners out of band: 64 hex digits that stand for this very set."""
        return hashlib.sha256(FINGERPRINT_PREFIX + canonical_json(self.to_dict())).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the field `roots` of a payload."""
        return {"keys": [key.raw.hex() for key in self.keys], "threshold": self.threshold}


@dataclass(frozen=True)
class SigningEntry:
    """A key that signs bundles, and the names it may sign: exact ones, or prefixes that end in `*`."""

    key: PublicKey
    bundles: tuple[str, ...]

    def covers(self, name: str) -> bool:
        """Return whether this key may sign a bundle of that name."""
        return any(
            name.startswith(scope[:-1]) if scope.endswith("*") else name == scope for scope in self.bundles
        )


@dataclass(frozen=True)
class TrustFile:
    """A payload whose every field has been checked; whether its roots signed it is another matter."""

    name: str
    version: int
    created: datetime
    expires: datetime
    roots: Roots
    keys: tuple[SigningEntry, ...]
    revoked_keys: frozenset[str]
    revoked_bundles: frozenset[str]
    minimum_versions: Mapping[str, int]
    digest: str
    """SHA-256 of the payload."""

    def entry(self, key_id: str) -> SigningEntry | None:
        """Return the entry of a key that signs bundles."""
        return next((entry for entry in self.keys if entry.key.key_id == key_id), None)

    def covers(self, key_id: str, name: str) -> bool:
        """Return whether this key is listed and may sign a bundle of that name."""
        entry = self.entry(key_id)
        return entry is not None and entry.covers(name)


@dataclass(frozen=True)
class Signed:
    """A payload and signatures of it, none of them verified."""

    where: str
    """The file's name, for messages."""
    payload: bytes
    signatures: tuple[Signature, ...]

    def count(self, roots: Roots) -> int:
        """Return how many of the roots signed. Raises Malformed when a signature in a root's name is wrong.

        Signatures in other names are not looked at: those of earlier roots lie there too.
        """
        message, keys = pae(MEDIA_TYPE, self.payload), {key.key_id: key for key in roots.keys}
        mine = [(key_id, signature) for key_id, signature in self.signatures if key_id in keys]
        for key_id, signature in mine:
            if not keys[key_id].verify(message, signature):
                raise Malformed(f"root {key_id} did not sign this payload")
        return len(mine)

    def text(self) -> bytes:
        """Return the only file that these may stand in."""
        return envelope_text(MEDIA_TYPE, self.payload, self.signatures) + b"\n"


@contextlib.contextmanager
def _step(where: str, step: str) -> Iterator[None]:
    try:
        yield
    except Malformed as problem:
        raise TrustError(f"{where}: {step}: {problem}") from None


def read_signed(path: Path) -> Signed:
    """Read a file of at most MAX_FILE_BYTES; nothing is verified yet. Raises SignatureError, TrustError."""
    return parse_signed(read_small_file(path, MAX_FILE_BYTES, "a trust file"), str(path))


def parse_signed(content: bytes, where: str) -> Signed:
    """Take the steps "envelope" and "rebuilt envelope" on a file's content. Raises TrustError."""
    with _step(where, "envelope"):
        signed = Signed(where, *parse_envelope(content, MEDIA_TYPE, MAX_SIGNATURES))
    with _step(where, "rebuilt envelope"):
        if signed.text() != content:
            raise Malformed("differs from the file")
    return signed


def check_first(signed: Signed, fingerprint: str) -> TrustFile:
    """Return a trust file whose roots are those of the fingerprint, and signed it. Raises TrustError."""
    trust = read_payload(signed)
    if trust.roots.fingerprint != fingerprint:
        raise TrustError(
            f"{signed.where}: fingerprint: its roots are not those of {fingerprint[:16]}...",
            hint="ask its provider for the fingerprint again, over a channel you trust",
        )
    _check_threshold(signed, trust.roots, "roots")
    return trust


def check_successor(signed: Signed, stored: Roots) -> TrustFile:
    """Return a trust file that the stored roots signed, and its own (TUF's root rotation).

    Raises TrustError.
    """
    trust = read_payload(signed)
    _check_threshold(signed, stored, "stored roots")
    _check_threshold(signed, trust.roots, "roots")
    return trust


def _check_threshold(signed: Signed, roots: Roots, step: str) -> None:
    with _step(signed.where, step):
        if (count := signed.count(roots)) < roots.threshold:
            raise Malformed(f"{count} of {roots.threshold} signatures")


def read_payload(signed: Signed) -> TrustFile:
    """Return the payload, every rule of docs/trust-format.md §3 checked, no signature. Raises TrustError."""
    with _step(signed.where, "payload"):
        return parse_payload(signed.payload)


def parse_payload(payload: bytes) -> TrustFile:
    """Check every field and return them typed; Malformed names the first bad one."""
    raw = parse_json(payload)
    if canonical_json(raw) != payload:
        raise Malformed("is not in canonical form (sorted keys, no white space)")
    check_object(raw, "top level", FIELDS)
    if raw["format"] != FORMAT:
        raise Malformed(f"format is {quote(raw['format'])}, this reader knows {quote(FORMAT)}")
    created, expires = (check_time(raw[field], field) for field in ("created", "expires"))
    if created >= expires:
        raise Malformed(f"expires is {expires}, expected later than created, {created}")
    keys = [_entry(value) for value in check_list(raw["keys"], "keys", 0, MAX_KEYS)]
    _check_keys([entry.key for entry in keys], "keys")
    revoked_keys = _texts(raw["revoked_keys"], "revoked_keys", KEY_ID_PATTERN)
    if both := {entry.key.key_id for entry in keys}.intersection(revoked_keys):
        raise Malformed(f"key {min(both)} is among the keys and among the revoked")
    return TrustFile(
        name=check_match(raw["name"], "name", PROVIDER_PATTERN),
        version=check_integer(raw["version"], "version", 1, MAX_VERSION),
        created=read_time(created),
        expires=read_time(expires),
        roots=_roots(raw["roots"]),
        keys=tuple(keys),
        revoked_keys=frozenset(revoked_keys),
        revoked_bundles=frozenset(_texts(raw["revoked_bundles"], "revoked_bundles", SHA256_PATTERN)),
        minimum_versions=_minimum_versions(raw["minimum_versions"]),
        digest=hashlib.sha256(payload).hexdigest(),
    )


def _roots(value: Any) -> Roots:
    check_object(value, "roots", ["keys", "threshold"])
    keys = [_key(text, "roots.keys") for text in check_list(value["keys"], "roots.keys", 1, MAX_ROOTS)]
    _check_keys(keys, "roots.keys")
    return Roots(check_integer(value["threshold"], "roots.threshold", 1, len(keys)), tuple(keys))


def _entry(value: Any) -> SigningEntry:
    check_object(value, "keys", ["bundles", "key"])
    bundles = _texts(value["bundles"], "keys.bundles", SCOPE_PATTERN, low=1)
    return SigningEntry(_key(value["key"], "keys.key"), tuple(bundles))


def _key(value: Any, where: str) -> PublicKey:
    return PublicKey(bytes.fromhex(check_match(value, where, SHA256_PATTERN)))


def _check_keys(keys: list[PublicKey], where: str) -> None:
    """Refuse another order than that of the keys' bytes, and a key that is there twice."""
    if [key.raw for key in keys] != sorted({key.raw for key in keys}):
        raise Malformed(f"{where} are not in ascending order, each once")


def _texts(value: Any, where: str, pattern: re.Pattern[str], low: int = 0) -> list[str]:
    texts = [check_match(text, where, pattern) for text in check_list(value, where, low, MAX_ENTRIES)]
    if texts != sorted(set(texts)):
        raise Malformed(f"{where} are not in ascending order, each once")
    return texts


def _minimum_versions(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
        raise Malformed(f"minimum_versions is not an object of at most {MAX_ENTRIES} entries")
    for bundle, version in value.items():
        check_match(bundle, "a name in minimum_versions", NAME_PATTERN)
        check_integer(version, f"minimum_versions.{bundle}", 1, MAX_VERSION)
    return value
