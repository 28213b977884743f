"""Keys, key ids, and what is signed."""

import os
import shutil
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from provider.signing import SigningKey, create_key, read_signing_key
from shared.errors import SignatureError
from shared.signature import PublicKey, pae, public_key_pem, read_public_key

RFC8032_SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC8032_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
RFC8032_SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
    "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)


@pytest.fixture
def key_files(tmp_path):
    private, public = tmp_path / "provider.key", tmp_path / "provider.pub"
    return private, public, create_key(private, public)


def test_signatures_are_those_of_rfc_8032():
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(RFC8032_SECRET))
    assert key.public_key == PublicKey(RFC8032_PUBLIC)
    assert key.sign(b"") == RFC8032_SIGNATURE
    assert key.public_key.verify(b"", RFC8032_SIGNATURE)
    assert not key.public_key.verify(b"x", RFC8032_SIGNATURE)
    assert not key.public_key.verify(b"", RFC8032_SIGNATURE[:-1])


def test_what_is_signed_is_dsse_s_example():
    # The example in the DSSE protocol specification.
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_key_id_is_16_hex_digits_and_differs_between_keys():
    one, other = PublicKey(bytes(32)), PublicKey(RFC8032_PUBLIC)
    assert len(one.key_id) == 16
    assert set(one.key_id) <= set("0123456789abcdef")
    assert one.key_id != other.key_id


def test_a_public_key_has_32_bytes():
    with pytest.raises(SignatureError, match="public key has 31 bytes, expected 32"):
        PublicKey(bytes(31))


def test_keys_survive_their_files(key_files):
    private, public, key = key_files
    assert read_public_key(public) == key.public_key
    assert read_signing_key(private).sign(b"x") == key.sign(b"x")
    public.write_bytes(public.read_bytes().replace(b"\n", b"\r\n"))
    assert read_public_key(public) == key.public_key


def test_a_new_private_key_can_be_read_by_its_owner_only(key_files):
    private, public, key = key_files
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert repr(key) == f"SigningKey({key.public_key.key_id})"


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
def test_openssl_shows_the_public_key(key_files):
    _, public, key = key_files
    command = ["openssl", "pkey", "-pubin", "-in", str(public), "-text", "-noout"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "ED25519 Public-Key" in shown
    assert key.public_key.raw.hex() in shown.replace(":", "").replace(" ", "").replace("\n", "")


@pytest.mark.parametrize("existing", ["provider.key", "provider.pub"])
def test_a_key_is_never_overwritten(tmp_path, existing):
    (tmp_path / existing).write_text("precious")
    with pytest.raises(SignatureError, match=f"{existing}: exists; a key is never overwritten"):
        create_key(tmp_path / "provider.key", tmp_path / "provider.pub")
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


def test_a_key_that_cannot_be_written_is_an_error_that_says_so(tmp_path):
    with pytest.raises(SignatureError, match="cannot be written: No such file or directory"):
        create_key(tmp_path / "nowhere" / "provider.key", tmp_path / "provider.pub")


def test_a_key_half_written_is_removed(tmp_path, monkeypatch):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        create_key(tmp_path / "provider.key", tmp_path / "provider.pub")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_private_key_that_others_can_open_is_refused(key_files, mode):
    private, _, _ = key_files
    private.chmod(mode)
    with pytest.raises(SignatureError, match=f"mode {mode:04o}, expected 0600") as error:
        read_signing_key(private)
    assert error.value.hint == f"chmod 600 {private}"


def test_a_private_key_is_not_taken_for_a_public_one(key_files):
    private, public, _ = key_files
    with pytest.raises(SignatureError, match="holds a private key, expected a public one"):
        read_public_key(private)
    public.chmod(0o600)
    with pytest.raises(SignatureError, match="it is no PEM private key"):
        read_signing_key(public)


def test_keys_of_another_type_are_refused(tmp_path):
    path = tmp_path / "p256"
    other = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(SignatureError, match="public key of another type, expected Ed25519"):
        read_public_key(path)
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(SignatureError, match="private key of another type, expected Ed25519"):
        read_signing_key(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\xff" * 100, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_what_is_no_key_is_refused(tmp_path, content):
    path = tmp_path / "x.pub"
    path.write_bytes(content)
    with pytest.raises(SignatureError, match="is no PEM public key"):
        read_public_key(path)


def test_a_file_with_two_keys_is_refused(tmp_path):
    path = tmp_path / "two.pub"
    path.write_bytes(public_key_pem(PublicKey(RFC8032_PUBLIC)) * 2)
    with pytest.raises(SignatureError, match="more than one PEM public key, expected exactly one"):
        read_public_key(path)


def test_a_key_file_has_a_size_limit(tmp_path):
    path = tmp_path / "x.pub"
    path.write_bytes(public_key_pem(PublicKey(RFC8032_PUBLIC)) + b"\n" * 4096)
    with pytest.raises(SignatureError, match="has over 4096 bytes, too large for a key"):
        read_public_key(path)


def test_a_missing_key_a_folder_and_a_pipe_are_errors_that_say_so(tmp_path):
    with pytest.raises(SignatureError, match="cannot be read: No such file or directory"):
        read_public_key(tmp_path / "missing.pub")
    with pytest.raises(SignatureError, match="cannot be read: Is a directory"):
        read_public_key(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SignatureError, match="is not a regular file"):
        read_public_key(tmp_path / "pipe")
