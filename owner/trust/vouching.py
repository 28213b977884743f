"""Whether what this owner trusts covers a bundle: by which key, under which name, and until when.

A pinned key stands for every name. A trust file stands for its keys within their scopes until it expires.
Revocations count whoever stored them, also when their trust file has expired, and against pinned keys too:
a provider could so revoke another's key or bundle, which costs its owner a word with both and no trust.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from owner.trust.pinning import pinned_keys, stored_trust_files
from owner.trust.remembering import STATE_FILE, key_name, latest_time, trust_home
from shared.errors import BundleError, PlanearlyError, SignatureError, UnknownKeyError
from shared.names import write_time
from shared.signature import PublicKey
from shared.trust_file import TrustFile

if TYPE_CHECKING:  # it imports torch, and listing what is trusted should be quick
    from shared.bundle import Bundle

OLD_AFTER_DAYS = 30
"""Age at which a trust file is called old. Ours: a provider can write one every month."""


@dataclass(frozen=True)
class Trust:
    """All that an owner trusts, at one moment."""

    pinned: Sequence[PublicKey]
    files: Sequence[TrustFile]
    now: datetime
    stale_reason: str = ""
    """Why trust files are used past their expiry; empty: they are not."""

    def is_expired(self, file: TrustFile) -> bool:
        """Return whether the moment of expiry has come."""
        return self.now >= file.expires

    def is_usable(self, file: TrustFile) -> bool:
        """Return whether the file's keys may be used."""
        return bool(self.stale_reason) or not self.is_expired(file)

    def age_days(self, file: TrustFile) -> int:
        """Return whole days since the file was made; 0 if that lies ahead."""
        return max(0, (self.now - file.created).days)


def read_trust(stale_reason: str | None = None) -> Trust:
    """Return what this owner trusts now. `stale_reason` allows expired trust files, and must say why.

    Raises PlanearlyError for an empty reason; SignatureError, TrustError for damaged files.
    """
    if stale_reason is not None and not stale_reason.strip():
        raise PlanearlyError(
            "--accept-stale-trust has no reason", hint="say why, in a few words; the report keeps it"
        )
    return Trust(pinned_keys(), stored_trust_files(), latest_time(), stale_reason or "")


def usable_keys(trust: Trust) -> list[PublicKey]:
    """Return the keys that may sign a bundle of some name: not revoked, and no file of theirs expired."""
    listed = [entry.key for file in trust.files if trust.is_usable(file) for entry in file.keys]
    keys = {key.raw: key for key in [*trust.pinned, *listed]}
    return [key for key in keys.values() if not _revoked_by(trust, key.key_id)]


def explain_unknown(trust: Trust, error: UnknownKeyError) -> SignatureError:
    """Return the error of a bundle by a key that is not usable, saying why it is not."""
    signed = f"{error.path}: signed by key {error.key_id}"
    if by := _revoked_by(trust, error.key_id):
        return SignatureError(
            f"{signed}, revoked by the trust file of {by}",
            hint=f"get a newer bundle; for doubts about the revocation, ask {by}",
        )
    for file in trust.files:
        if file.entry(error.key_id):
            return SignatureError(
                f"{signed} of {file.name}, whose trust file version"
                f" {file.version} expired {write_time(file.expires)}, now is {write_time(trust.now)}",
                hint="get the newest: owner trust update trust.json; or go on and say why:"
                " --accept-stale-trust REASON. Was this machine's clock ever wrong? "
                f"{trust_home() / STATE_FILE} keeps the latest time it showed",
            )
    return error


def check_vouched(trust: Trust, bundle: "Bundle") -> dict[str, Any]:
    """Return who vouches for a bundle that a usable key signed, for the report.

    Raises SignatureError when the key's scopes do not cover the bundle's name; BundleError when the bundle
    is revoked, or below the minimum version of a trust file that lists its key.
    """
    name, version, key_id = bundle.manifest.name, bundle.manifest.version, bundle.key_id
    digest = manifest_digest(bundle)
    for file in trust.files:
        if digest in file.revoked_bundles:
            raise BundleError(
                f"{bundle.path}: {name} version {version} is revoked by the trust file of {file.name}",
                hint="get a newer bundle",
            )
        minimum = file.minimum_versions.get(name, 0) if file.entry(key_id) else 0
        if version < minimum:
            raise BundleError(
                f"{bundle.path}: {name} version {version}, the trust file of {file.name} asks for"
                f" {minimum} or later",
                hint="get a newer bundle",
            )
    found = {"bundle": name, "key_id": key_id}
    if any(key.key_id == key_id for key in trust.pinned):
        return found | {"by": "pinned key"}
    listing = [file for file in trust.files if trust.is_usable(file) and file.entry(key_id)]
    covering = [file for file in listing if file.covers(key_id, name)]
    if not covering:
        raise SignatureError(
            f"{bundle.path}: {name} is no bundle that key {key_id} may sign, says the trust file of"
            f" {', '.join(file.name for file in listing)}",
            hint="get it from its own provider",
        )
    file = min(covering, key=trust.is_expired)
    return found | {
        "by": "trust file",
        "name": file.name,
        "version": file.version,
        "age_days": trust.age_days(file),
        "expires": write_time(file.expires),
        "stale_reason": trust.stale_reason if trust.is_expired(file) else None,
    }


def describe_voucher(voucher: dict[str, Any]) -> str | None:
    """Return a line about the trust file that vouches, None for a pinned key."""
    if voucher["by"] == "pinned key":
        return None
    age, reason = voucher["age_days"], voucher["stale_reason"]
    line = f"{voucher['name']} version {voucher['version']} · {age} days old · expires {voucher['expires']}"
    if reason is not None:
        return f"{line} · EXPIRED, accepted: {reason}"
    return line + (" · OLD: ask its provider for a newer one" if age >= OLD_AFTER_DAYS else "")


def describe_trust(trust: Trust) -> list[str]:
    """Return lines about every pinned key, and every trust file with the keys and scopes in it."""
    lines = [f"key   {key.key_id}  {key_name(key.key_id) or '-'}  every bundle" for key in trust.pinned]
    for file in trust.files:
        mark = "OLD" if trust.age_days(file) >= OLD_AFTER_DAYS else "current"
        lines.append(
            f"file  {file.name}  version {file.version} · {trust.age_days(file)} days old ·"
            f" expires {write_time(file.expires)} · {'EXPIRED' if trust.is_expired(file) else mark} ·"
            f" {file.roots.threshold} of {len(file.roots.keys)} roots ·"
            f" revokes {len(file.revoked_keys)} keys, {len(file.revoked_bundles)} bundles"
        )
        lines += [f"      {entry.key.key_id}  {' '.join(entry.bundles)}" for entry in file.keys]
    return lines


def related_key_ids(trust: Trust, key_id: str) -> set[str]:
    """Return the key ids whose record of versions counts for this key: those of trust files that list it.

    So a provider's second key cannot bring back what the first one's newer version has replaced.
    """
    listing = [file for file in trust.files if file.entry(key_id)]
    return {key_id} | {entry.key.key_id for file in listing for entry in file.keys}


def _revoked_by(trust: Trust, key_id: str) -> str:
    """Return the name of a trust file that revokes the key, or an empty text."""
    return next((file.name for file in trust.files if key_id in file.revoked_keys), "")


def manifest_digest(bundle: "Bundle") -> str:
    """Return the SHA-256 of the signed manifest, by which a trust file revokes a bundle."""
    return bundle.manifest.sha256
