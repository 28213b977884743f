"""The provider's private keys: made once, each in one file that only its owner can read.

PKCS#8 PEM, encrypted with a passphrase unless an unattended machine needs it plain; then whoever has the
file can sign. What is signed is shared/signature.py's business, and shared/detached.py's for P-256.
"""

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
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

KDF_ROUNDS = 600_000
"""PBKDF2-HMAC-SHA256 rounds between a passphrase and the key. Source: OWASP Password Storage Cheat Sheet."""
ENCRYPTED_LABEL = b"ENCRYPTED PRIVATE KEY"
PBES2 = bytes.fromhex("06092a864886f70d01050d")
PBKDF2 = bytes.fromhex("06092a864886f70d01050c")
HMAC_SHA256 = bytes.fromhex("06082a864886f70d0209")
AES256_CBC = bytes.fromhex("060960864801650304012a")
"""Object identifiers of RFC 8018, as DER."""

PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey


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


def create_key(private_path: Path, public_path: Path, passphrase: bytes = b"") -> SigningKey:
    """Draw a new Ed25519 key from the system's random source; write both files, never over existing ones.

    The private file has mode 0600 from its first byte on, and is encrypted unless the passphrase is empty.
    Raises SignatureError when either file exists or cannot be written; none of the two is left then.
    """
    key = SigningKey(Ed25519PrivateKey.generate())
    _write_pair(private_path, key.private, public_path, public_key_pem(key.public_key), passphrase)
    return key


def create_p256_key(private_path: Path, public_path: Path, passphrase: bytes = b"") -> None:
    """Do the same for an ECDSA key on P-256, which signs detached OpenSSF files (shared/detached.py)."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _write_pair(private_path, key, public_path, public, passphrase)


def read_signing_key(path: Path, ask: Callable[[], bytes] | None = None) -> SigningKey:
    """Read an Ed25519 private key written by `create_key` or by `openssl genpkey -algorithm ed25519`.

    `ask` is called for the passphrase of an encrypted one. Raises SignatureError when group or others can
    open the file, the passphrase is wrong or there is none to ask for, or the key is of another type.
    """
    key = _read_private(path, ask)
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path}: holds a private key of another type, expected Ed25519")
    return SigningKey(key)


def read_p256_key(path: Path, ask: Callable[[], bytes] | None = None) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 private key, as `read_signing_key` does an Ed25519 one."""
    key = _read_private(path, ask)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SignatureError(
            f"{path}: holds a private key of another type, expected P-256",
            hint="provider keygen --type p256 oms.key oms.pub makes one",
        )
    return key


def read_passphrase(path: Path) -> bytes:
    """Return the first line of a file that nobody else can open. Raises SignatureError."""
    passphrase = read_key_file(path, secret="passphrase").split(b"\n")[0].removesuffix(b"\r")
    if not passphrase:
        raise SignatureError(f"{path}: its first line is empty, expected a passphrase")
    return passphrase


def _read_private(path: Path, ask: Callable[[], bytes] | None) -> object:
    pem = read_key_file(path, secret="private key")
    is_encrypted = ENCRYPTED_LABEL in pem
    if is_encrypted and ask is None:
        raise SignatureError(f"{path}: is encrypted, and there is no passphrase to read it with")
    try:
        return load_pem_private_key(pem, ask() if is_encrypted and ask else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SignatureError(
            f"{path}: {'the passphrase is wrong, or it' if is_encrypted else 'it'} is no PEM private key",
            hint="provider keygen provider.key provider.pub makes one",
        ) from None


def _write_pair(
    private_path: Path, key: PrivateKey, public_path: Path, public: bytes, passphrase: bytes
) -> None:
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    pem = _pem(b"PRIVATE KEY", der) if not passphrase else _pem(ENCRYPTED_LABEL, _encrypt(der, passphrase))
    _write_new(private_path, pem, 0o600)
    try:
        _write_new(public_path, public, 0o644)
    except BaseException:
        private_path.unlink()
        raise


def _encrypt(private_der: bytes, passphrase: bytes) -> bytes:
    """Return an EncryptedPrivateKeyInfo (RFC 5958 §3) by PBES2 (RFC 8018): PBKDF2, then AES-256-CBC.

    cryptography's own writer takes no number of rounds for PKCS#8 (its encryption_builder refuses the
    format) and writes 2,048. It reads this one, and so does `openssl pkey`.
    """
    salt, iv = os.urandom(16), os.urandom(16)
    derived = PBKDF2HMAC(hashes.SHA256(), 32, salt, KDF_ROUNDS).derive(passphrase)
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES256(derived), modes.CBC(iv)).encryptor()
    sealed = encryptor.update(padder.update(private_der) + padder.finalize()) + encryptor.finalize()
    rounds = KDF_ROUNDS.to_bytes(KDF_ROUNDS.bit_length() // 8 + 1, "big")
    kdf = _der(0x30, _der(0x04, salt), _der(0x02, rounds), _der(0x30, HMAC_SHA256, b"\x05\x00"))
    scheme = _der(0x30, _der(0x30, PBKDF2, kdf), _der(0x30, AES256_CBC, _der(0x04, iv)))
    return _der(0x30, _der(0x30, PBES2, scheme), _der(0x04, sealed))


def _der(tag: int, *parts: bytes) -> bytes:
    """Return one DER value (X.690): tag, length in the shortest form, content."""
    content = b"".join(parts)
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    length = bytes([len(content)]) if len(content) < 128 else bytes([128 | len(size)]) + size
    return bytes([tag]) + length + content


def _pem(label: bytes, der: bytes) -> bytes:
    body = base64.encodebytes(der).replace(b"\n", b"")
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return b"\n".join([b"-----BEGIN %s-----" % label, *lines, b"-----END %s-----" % label, b""])


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
