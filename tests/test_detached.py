"""Detached OpenSSF signatures: theirs, ours, and everything else refused.

`tests/vectors/detached/` holds two signatures of `slm.st` by model-signing 1.1.1 and the key that verifies
them, made by benchmarks/model_signing_interop.py; it also shows that model-signing accepts ours.
"""

import base64
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

import owner.cli
import provider.cli
from provider.signing import create_key, create_p256_key, read_p256_key
from shared.detached import (
    MAX_DETACHED_BYTES,
    PAYLOAD_TYPE,
    read_p256_public_key,
    verify_detached,
    write_detached,
)
from shared.errors import SignatureError
from shared.signature import pae

VECTORS = Path(__file__).parent / "vectors"
BUNDLE = VECTORS / "slm.st"
THEIRS = VECTORS / "detached" / "model-signing-dot.sig"
THEIR_KEY = VECTORS / "detached" / "oms.pub"


@pytest.fixture
def signed(tmp_path):
    """A bundle, its detached signature and the key pair, all in one folder."""
    bundle = Path(shutil.copy(BUNDLE, tmp_path))
    create_p256_key(tmp_path / "oms.key", tmp_path / "oms.pub")
    return bundle, write_detached(bundle, read_p256_key(tmp_path / "oms.key")), tmp_path / "oms.pub"


def verify(bundle, signature, public) -> None:
    verify_detached(bundle, signature, read_p256_public_key(public))


@pytest.mark.parametrize("form", ["dot", "file-name"])
def test_a_signature_by_model_signing_is_accepted_and_for_this_file_only(form, tmp_path):
    theirs = VECTORS / "detached" / f"model-signing-{form}.sig"
    verify(BUNDLE, theirs, THEIR_KEY)
    with pytest.raises(SignatureError, match="detached signature of pn.st"):
        verify(VECTORS / "pn.st", theirs, THEIR_KEY)
    renamed = Path(shutil.copy(BUNDLE, tmp_path / "other.st"))
    if form == "dot":
        verify(renamed, theirs, THEIR_KEY)
    else:
        with pytest.raises(SignatureError, match="is of 'slm.st', expected '.' or 'other.st'"):
            verify(renamed, theirs, THEIR_KEY)


def test_a_flipped_bit_in_any_byte_of_a_signature_by_model_signing_is_refused(tmp_path):
    content, path = THEIRS.read_bytes(), tmp_path / "x.sig"
    key = read_p256_public_key(THEIR_KEY)
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(SignatureError):
            verify_detached(BUNDLE, path, key)


def test_ours_says_what_theirs_says_but_for_the_ignored_paths(signed):
    def read(path):
        whole = json.loads(path.read_bytes())
        return whole, json.loads(base64.b64decode(whole["dsseEnvelope"]["payload"]))

    (ours, our_statement), (theirs, their_statement) = read(signed[1]), read(THEIRS)
    assert their_statement["predicate"]["serialization"].pop("ignore_paths")
    assert our_statement["predicate"]["serialization"].pop("ignore_paths") == []
    assert our_statement == their_statement
    for whole in (ours, theirs):
        whole["dsseEnvelope"].pop("payload")
        whole["dsseEnvelope"]["signatures"][0].pop("sig")
        whole["verificationMaterial"]["publicKey"].pop("hint")
    assert ours == theirs


def test_a_changed_bundle_and_another_key_are_refused(signed, tmp_path):
    bundle, signature, public = signed
    verify(bundle, signature, public)
    with pytest.raises(SignatureError, match="key hint is"):
        verify(bundle, signature, THEIR_KEY)
    content = bytearray(bundle.read_bytes())
    content[-1] ^= 1
    bundle.write_bytes(content)
    with pytest.raises(SignatureError, match="digest of the file is") as error:
        verify(bundle, signature, public)
    assert error.value.hint == "get the bundle and its signature again, from the same place"


def change(value, path, new):
    """Return a copy with one place changed, or removed when `new` is None."""
    copy = json.loads(json.dumps(value))
    *parents, last = path
    place = copy
    for step in parents:
        place = place[step]
    if new is None:
        del place[last]
    else:
        place[last] = new
    return copy


@pytest.mark.parametrize(
    ("path", "new", "problem"),
    [
        (["mediaType"], "application/vnd.dev.sigstore.bundle.v0.2+json", "mediaType is"),
        (["extra"], 1, "unknown field 'extra'"),
        (["dsseEnvelope"], None, "field dsseEnvelope is missing"),
        (["verificationMaterial", "publicKey", "hint"], "0" * 64, "key hint is"),
        (["verificationMaterial", "tlogEntries"], [{}], "tlogEntries is"),
        (["verificationMaterial"], {"certificate": {}}, "verificationMaterial: field publicKey is missing"),
        (["dsseEnvelope", "payloadType"], "text/plain", "payloadType is"),
        (["dsseEnvelope", "payload"], "e30", "payload is not canonical base64"),
        (["dsseEnvelope", "payload"], "e30=", "this key did not sign this statement"),
        (["dsseEnvelope", "signatures"], [], "signatures holds 0"),
        (["dsseEnvelope", "signatures", 0, "sig"], "AAAA", "this key did not sign this statement"),
    ],
)
def test_an_envelope_that_is_not_as_written_is_refused(signed, path, new, problem):
    bundle, signature, public = signed
    signature.write_text(json.dumps(change(json.loads(signature.read_bytes()), path, new)))
    with pytest.raises(SignatureError, match=problem):
        verify(bundle, signature, public)


@pytest.mark.parametrize(
    ("path", "new", "problem"),
    [
        (["_type"], "https://in-toto.io/Statement/v0.1", "_type is"),
        (["predicateType"], "https://slsa.dev/provenance/v1", "predicateType is"),
        (["subject"], [], "subject holds 0"),
        (["subject", 0, "digest"], {"sha256": "0" * 64}, "digest of the subject is"),
        (["predicate", "serialization"], [], "serialization is not an object"),
        (["predicate", "serialization", "method"], "shards", "serialization.method is"),
        (["predicate", "serialization", "hash_type"], "blake3", "serialization.hash_type is"),
        (["predicate", "resources"], [], "resources holds 0"),
        (["predicate", "resources", 0, "name"], "other.st", "is of 'other.st', expected '.' or 'slm.st'"),
        (["predicate", "resources", 0, "algorithm"], "sha512", "algorithm is"),
        (["predicate", "resources", 0, "digest"], "0" * 64, "digest of the file is"),
        (["predicate", "resources", 0, "digest"], None, "field digest is missing"),
    ],
)
def test_a_signed_statement_of_something_else_is_refused(signed, tmp_path, path, new, problem):
    bundle, signature, public = signed
    whole = json.loads(signature.read_bytes())
    statement = json.loads(base64.b64decode(whole["dsseEnvelope"]["payload"]))
    payload = json.dumps(change(statement, path, new)).encode()
    resigned = read_p256_key(tmp_path / "oms.key").sign(pae(PAYLOAD_TYPE, payload), ec.ECDSA(hashes.SHA256()))
    whole["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    whole["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(resigned).decode()
    signature.write_text(json.dumps(whole))
    with pytest.raises(SignatureError, match=f"detached signature of slm.st: .*{problem}"):
        verify(bundle, signature, public)


def test_what_is_no_signature_file_and_no_p256_key_is_refused(signed, tmp_path):
    bundle, signature, public = signed
    signature.write_bytes(b"{" * (MAX_DETACHED_BYTES + 1))
    with pytest.raises(SignatureError, match="too large for a detached signature"):
        verify(bundle, signature, public)
    signature.write_bytes(b"[]")
    with pytest.raises(SignatureError, match="bundle is not an object"):
        verify(bundle, signature, public)
    create_key(tmp_path / "e.key", tmp_path / "e.pub")
    with pytest.raises(SignatureError, match="another type, expected P-256"):
        read_p256_public_key(tmp_path / "e.pub")
    (tmp_path / "e.pub").write_text("hello")
    with pytest.raises(SignatureError, match="is no PEM public key"):
        read_p256_public_key(tmp_path / "e.pub")


def test_the_commands_sign_and_verify(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANEARLY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shutil.copy(BUNDLE, tmp_path)

    def run(party, *arguments):
        return CliRunner().invoke({"owner": owner.cli.main, "provider": provider.cli.main}[party], arguments)

    assert run("provider", "keygen", "--type", "p256", "--no-passphrase", "oms.key", "oms.pub").exit_code == 0
    assert run("owner", "trust", "add", str(VECTORS / "provider.pub")).exit_code == 0
    for resource in ("dot", "file-name"):
        signed = run("provider", "sign", "--detached", "slm.st", "--key", "oms.key", "--resource", resource)
        assert signed.stdout == "slm.st.sig\n"
        check = ("inspect", "slm.st", "--detached", "slm.st.sig", "--detached-key")
        shown = run("owner", *check, "oms.pub")
        assert "detached    OpenSSF signature file verified with the key you named" in shown.stdout
        refused = run("owner", *check, str(THEIR_KEY))
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "detached signature of slm.st" in refused.stderr
    assert "detached" not in run("owner", "inspect", "slm.st").stdout
    assert run("owner", "inspect", "slm.st", "--detached", "slm.st.sig").exit_code == 2
    assert run("provider", "sign", "slm.st", "--key", "oms.key").exit_code == 2
