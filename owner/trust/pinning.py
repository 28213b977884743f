"""Whom this owner trusts: public keys pinned by hand, and trust files whose roots were named by hand.

Nothing is trusted on first use: a key comes over a channel that the owner trusts, and so does the
fingerprint of a trust file's roots; from then on each version is accepted only from the roots of the one
before. Whether all this covers a bundle is for owner/trust/vouching.py.
"""

from dataclasses import replace
from pathlib import Path

from owner.trust.remembering import (
    STATE_FILE,
    SeenFile,
    locked,
    remember_file,
    remember_name,
    seen_files,
    trust_home,
)
from shared.errors import SignatureError, TrustError
from shared.files import write_atomic
from shared.names import SHA256_PATTERN
from shared.signature import KEY_ID_PATTERN, PublicKey, public_key_pem, read_public_key, read_small_file
from shared.trust_file import (
    MAX_FILE_BYTES,
    Signed,
    TrustFile,
    check_first,
    check_successor,
    read_payload,
    read_signed,
)


def trust_folder() -> Path:
    """Return the folder of `<key id>.pub` per pinned key and `<name>-<version>.json` per trust file."""
    return trust_home() / "trust"


def pin_key(path: Path, name: str = "") -> PublicKey:
    """Trust the key in a PEM file from now on; `name` is a note for people, shown by `key_name`.

    Pinning a key again changes nothing but a name that is given. Raises SignatureError for a file that
    is no Ed25519 public key.
    """
    key = read_public_key(path)
    with locked():
        trust_folder().mkdir(mode=0o700, exist_ok=True)
        with write_atomic(trust_folder() / f"{key.key_id}.pub") as file:
            file.write(public_key_pem(key))
        if name:
            remember_name(key.key_id, name)
    return key


def pinned_keys() -> list[PublicKey]:
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


def is_trust_file(path: Path) -> bool:
    """Return whether a file is meant as a trust file and not as a key, which begins with dashes."""
    return read_small_file(path, MAX_FILE_BYTES, "a trust file")[:1] == b"{"


def add_trust_file(path: Path, fingerprint: str) -> TrustFile:
    """Trust a provider's trust file, and the later ones that its roots sign.

    `fingerprint` is that of its roots, as the provider told it over another channel. Raises TrustError
    without one, when the file is not theirs, when another of that provider is stored, and for a version
    below the highest ever seen here.
    """
    if not SHA256_PATTERN.fullmatch(fingerprint):
        raise TrustError(
            f"{path}: a trust file needs the fingerprint of its roots, 64 lower-case hex digits",
            hint="ask its provider, over another channel than the file came by; then"
            f" owner trust add {path} --roots FINGERPRINT",
        )
    signed = read_signed(path)
    trust = check_first(signed, fingerprint)
    with locked():
        seen = seen_files().get(trust.name)
        if seen and seen.is_stored and seen.digest != trust.digest:
            raise TrustError(
                f"{path}: another trust file of {trust.name} is stored, version {seen.version}",
                hint=f"owner trust update {path}; or first: owner trust remove {trust.name}",
            )
        _check_version(path, trust, seen)
        _store(signed, trust)
    return trust


def update_trust_file(path: Path) -> tuple[TrustFile, bool]:
    """Replace a stored trust file by a later one of the same provider; return it and whether it is new.

    It must be signed by the threshold of the stored roots and by that of its own. Raises TrustError
    otherwise, for a lower version, and for the same version with another content.
    """
    signed = read_signed(path)
    name = read_payload(signed).name
    with locked():
        seen = seen_files().get(name)
        if seen is None or not seen.is_stored:
            raise TrustError(
                f"{path}: no trust file of {name} is stored",
                hint="the first needs the fingerprint of its roots:"
                f" owner trust add {path} --roots FINGERPRINT",
            )
        trust = check_successor(signed, _read_stored(name, seen).roots)
        _check_version(path, trust, seen)
        if trust.digest != seen.digest:
            _store(signed, trust)
    return trust, trust.digest != seen.digest


def stored_trust_files() -> list[TrustFile]:
    """Return the stored trust files, ordered by name, each verified anew.

    Raises TrustError, naming the file, when one is missing or not what was stored.
    """
    return [_read_stored(name, seen) for name, seen in sorted(seen_files().items()) if seen.is_stored]


def remove(which: str) -> None:
    """Stop trusting a pinned key, by key id, or a trust file, by its provider's name.

    What was seen of bundles and versions is kept, should it be trusted again. Raises TrustError when
    there is neither.
    """
    with locked():
        key_file = trust_folder() / f"{which}.pub"
        if KEY_ID_PATTERN.fullmatch(which) and key_file.exists():
            key_file.unlink()
            return
        seen = seen_files().get(which)
        if seen is None or not seen.is_stored:
            raise TrustError(
                f"{which}: no such pinned key or trust file", hint="owner trust list shows what there is"
            )
        remember_file(which, replace(seen, is_stored=False))
        _remove_leftovers()


def _check_version(path: Path, trust: TrustFile, seen: SeenFile | None) -> None:
    """Refuse what is older than the highest version seen, or another file of the same version."""
    if seen is None or trust.version > seen.version:
        return
    if trust.version < seen.version:
        raise TrustError(
            f"{path}: {trust.name} version {trust.version} is older than version {seen.version},"
            " seen here before",
            hint="get the newest from its provider",
        )
    if trust.digest != seen.digest:
        raise TrustError(
            f"{path}: differs from the {trust.name} version {trust.version} that was seen here before",
            hint="ask its provider which of the two is theirs; a change needs a higher version",
        )


def _store(signed: Signed, trust: TrustFile) -> None:
    """Put a trust file in place: first the file, then the record that names it, then old files go."""
    trust_folder().mkdir(mode=0o700, exist_ok=True)
    with write_atomic(_path(trust.name, trust.version)) as file:
        file.write(signed.text())
    remember_file(trust.name, SeenFile(trust.version, trust.digest, trust.roots.fingerprint, True))
    _remove_leftovers()


def _remove_leftovers() -> None:
    """Delete trust files that the record does not name: superseded, removed, or of a killed run."""
    named = {_path(name, seen.version) for name, seen in seen_files().items() if seen.is_stored}
    for path in trust_folder().glob("*.json"):
        if path not in named:
            path.unlink()


def _read_stored(name: str, seen: SeenFile) -> TrustFile:
    path = _path(name, seen.version)
    try:
        trust = check_first(read_signed(path), seen.roots)
        if (trust.name, trust.version, trust.digest) != (name, seen.version, seen.digest):
            raise TrustError(f"{path}: is another file than the one that {STATE_FILE} names")
    except (SignatureError, TrustError) as error:
        raise TrustError(
            f"stored trust file {error}",
            hint=f"get it again, version {seen.version} or later; then owner trust remove {name} and"
            f" owner trust add trust.json --roots {seen.roots}",
        ) from None
    return trust


def _path(name: str, version: int) -> Path:
    return trust_folder() / f"{name}-{version}.json"
