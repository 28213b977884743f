"""Public keys, their key ids, and what exactly is signed; no private key is ever handled here.

Ed25519 (RFC 8032) over the pre-authentication encoding of DSSE v1, both as docs/bundle-format.md §5
says. A key travels as PEM SubjectPublicKeyInfo, so that any `openssl pkey -pubin -text` shows it.
"""

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from shared.errors import SignatureError

KEY_ID_PREFIX = b"planearly-bundle/v1 key\n"
"""Hashed before the key's 32 bytes, so that a key id is no digest of anything else."""
KEY_ID_HEX = 16
KEY_ID_PATTERN = re.compile(r"[0-9a-f]{16}")
KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_KEY_FILE_BYTES = 4096


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key: the 32 bytes of RFC 8032 §5.1.5."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise SignatureError(f"public key has {len(self.raw)} bytes, expected {KEY_BYTES}")

    @property
    def key_id(self) -> str:
        """A short name, 16 hex characters; it finds a key and proves nothing."""
        return hashlib.sha256(KEY_ID_PREFIX + self.raw).hexdigest()[:KEY_ID_HEX]

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Return whether these 64 bytes are this key's signature of the message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


class Signer(Protocol):
    """Whatever can sign; `provider.signing.SigningKey` is one."""

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what this one signs."""

    def sign(self, message: bytes) -> bytes:
        """Return 64 bytes."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: DSSE v1's pre-authentication encoding of type and payload."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def public_key_pem(key: PublicKey) -> bytes:
    """Return the key as PEM SubjectPublicKeyInfo (RFC 8410), as OpenSSL writes it."""
    return Ed25519PublicKey.from_public_bytes(key.raw).public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )


def read_public_key(path: Path) -> PublicKey:
    """Read a PEM file that holds one Ed25519 public key and nothing else.

    Raises SignatureError, naming the file, for anything else; a private key gets its own message.
    """
    pem = read_key_file(path)
    if b"PRIVATE KEY" in pem:
        raise SignatureError(
            f"{path}: holds a private key, expected a public one",
            hint="its provider should keep that file secret; the public one ends in .pub",
        )
    try:
        found = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError(
            f"{path}: is no PEM public key",
            hint="it should begin with -----BEGIN PUBLIC KEY-----",
        ) from None
    if not isinstance(found, Ed25519PublicKey):
        raise SignatureError(f"{path}: holds a public key of another type, expected Ed25519")
    key = PublicKey(found.public_bytes(Encoding.Raw, PublicFormat.Raw))
    if pem.replace(b"\r\n", b"\n").strip() != public_key_pem(key).strip():
        raise SignatureError(f"{path}: holds more than one PEM public key, expected exactly one")
    return key


def read_key_file(path: Path, secret: str = "") -> bytes:
    """Return a key file's bytes, at most MAX_KEY_FILE_BYTES; `secret` as for `read_small_file`."""
    return read_small_file(path, MAX_KEY_FILE_BYTES, "a key", secret)


def read_small_file(path: Path, most_bytes: int, kind: str, secret: str = "") -> bytes:
    """Return a file's bytes; `secret` names what is in one that nobody else may be able to open.

    Raises SignatureError when the file cannot be opened, is none, is too large for its `kind`, or others
    can open what is secret.
    """
    try:
        # O_NONBLOCK: a named pipe must not hang the reader; it is refused just below.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SignatureError(f"{path}: is not a regular file")
            if secret and status.st_mode & 0o077:
                raise SignatureError(
                    f"{path}: {secret} can be opened by others, mode"
                    f" {stat.S_IMODE(status.st_mode):04o}, expected 0600",
                    hint=f"chmod 600 {path}",
                )
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > most_bytes:
        raise SignatureError(f"{path}: has over {most_bytes} bytes, too large for {kind}")
    return content
