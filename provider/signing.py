"""The provider's private key: made once, kept in one file that only its owner can read.

PKCS8 PEM without a passphrase, so that a release can run unattended; whoever has the file can sign.
What is signed is shared/signature.py's business.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from shared.errors import SignatureError
from shared.files import sync_folder
from shared.signature import PublicKey, public_key_pem, read_key_file


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 private key; printing it shows the key id and nothing secret."""

    private: Ed25519PrivateKey

    @property
    def public_key(self) -> PublicKey:
        """The key that owners pin."""
        public = self.private.public_key()
        return PublicKey(public.public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of an Ed25519 signature (RFC 8032); the same message, the same bytes."""
        return self.private.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey({self.public_key.key_id})"


def create_key(private_path: Path, public_path: Path) -> SigningKey:
    """Draw a new key from the system's random source; write both files, never over existing ones.

    The private file has mode 0600 from its first byte on. Raises SignatureError when either file exists
    or cannot be written; none of the two is left then.
    """
    key = SigningKey(Ed25519PrivateKey.generate())
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write_new(private_path, pem, 0o600)
    try:
        _write_new(public_path, public_key_pem(key.public_key), 0o644)
    except BaseException:
        private_path.unlink()
        raise
    return key


def read_signing_key(path: Path) -> SigningKey:
    """Read a private key written by `create_key` or by `openssl genpkey -algorithm ed25519`.

    Raises SignatureError when group or others can open the file, or it holds no Ed25519 private key.
    """
    pem = read_key_file(path, secret=True)
    try:
        found = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SignatureError(
            f"{path}: is no PEM private key without a passphrase",
            hint="provider key provider.key provider.pub makes one",
        ) from None
    if not isinstance(found, Ed25519PrivateKey):
        raise SignatureError(f"{path}: holds a private key of another type, expected Ed25519")
    return SigningKey(found)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise SignatureError(f"{path}: exists; a key is never overwritten") from None
    except OSError as error:
        raise SignatureError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except BaseException:
        path.unlink()
        raise
