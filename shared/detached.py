"""A detached OpenSSF model signature of one file (OMS v1.0), written and verified without their packages.

A Sigstore bundle v0.3 whose DSSE envelope holds an in-toto v1 statement with the file's digest, signed with
ECDSA on P-256 and SHA-256. An export for tools that look for one: what an owner relies on is the signature
in the bundle itself. The specification names the file's resource by the file; model-signing 1.1.1 writes
and wants `.`. Both are read. No certificates, no transparency log, no folders.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from shared.dsse import decode_base64
from shared.errors import SignatureError
from shared.files import write_atomic
from shared.signature import pae, read_key_file, read_small_file
from shared.strict_json import Malformed, canonical_json, check_list, check_object, parse_json, quote

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
SELF = "."
"""The resource of a single file, as model-signing 1.1.1 names it."""
MAX_DETACHED_BYTES = 1 << 16
"""Ours; theirs for one file has about 1,400 bytes."""


def write_detached(path: Path, key: ec.EllipticCurvePrivateKey, resource: str = SELF) -> Path:
    """Sign a file into `<path>.sig`, which is replaced if it exists; return that path.

    `resource` is what the statement calls the file. Raises OSError.
    """
    digest = _digest(path)
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": path.name, "digest": {"sha256": hashlib.sha256(digest).hexdigest()}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [],
            },
            "resources": [{"name": resource, "algorithm": "sha256", "digest": digest.hex()}],
        },
    }
    payload = canonical_json(statement)
    signature = key.sign(pae(PAYLOAD_TYPE, payload), ec.ECDSA(hashes.SHA256()))
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    out = path.with_name(path.name + ".sig")
    with write_atomic(out) as file:
        file.write(canonical_json(bundle) + b"\n")
    return out


def read_p256_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a PEM file that holds a P-256 public key. Raises SignatureError, naming the file."""
    try:
        found = load_pem_public_key(read_key_file(path))
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError(f"{path}: is no PEM public key") from None
    if not isinstance(found, ec.EllipticCurvePublicKey) or not isinstance(found.curve, ec.SECP256R1):
        raise SignatureError(f"{path}: holds a public key of another type, expected P-256")
    return found


def verify_detached(path: Path, signature_path: Path, key: ec.EllipticCurvePublicKey) -> None:
    """Check that this key signed this file, as one file under its own name or `.`.

    Nothing in the statement is looked at before the signature holds. Raises SignatureError, OSError.
    """
    content = read_small_file(signature_path, MAX_DETACHED_BYTES, "a detached signature")
    try:
        payload, signature = _parse_bundle(content, _hint(key))
        try:
            key.verify(signature, pae(PAYLOAD_TYPE, payload), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise Malformed("this key did not sign this statement") from None
        _check_statement(parse_json(payload), path.name, _digest(path))
    except Malformed as problem:
        raise SignatureError(
            f"{signature_path}: detached signature of {path.name}: {problem}",
            hint="get the bundle and its signature again, from the same place",
        ) from None


def _parse_bundle(content: bytes, hint: str) -> tuple[bytes, bytes]:
    """Return payload and signature of a Sigstore bundle that names the key by this hint, or by none."""
    bundle = check_object(
        parse_json(content), "bundle", ["mediaType", "verificationMaterial", "dsseEnvelope"]
    )
    _expect(bundle["mediaType"], BUNDLE_TYPE, "mediaType")
    material = check_object(
        bundle["verificationMaterial"], "verificationMaterial", ["publicKey", "tlogEntries"]
    )
    public_key = check_object(material["publicKey"], "publicKey", ["hint"])
    _expect(public_key["hint"], hint, "key hint")
    _expect(material["tlogEntries"], [], "tlogEntries")
    envelope = check_object(bundle["dsseEnvelope"], "dsseEnvelope", ["payload", "payloadType", "signatures"])
    _expect(envelope["payloadType"], PAYLOAD_TYPE, "payloadType")
    (signature,) = check_list(envelope["signatures"], "signatures", 1, 1)
    check_object(signature, "signature", ["sig", "keyid"])
    return decode_base64(envelope["payload"], "payload"), decode_base64(signature["sig"], "sig")


def _check_statement(statement: Any, name: str, digest: bytes) -> None:
    """Refuse a statement of anything but this one file."""
    check_object(statement, "statement", ["_type", "subject", "predicateType", "predicate"])
    _expect(statement["_type"], STATEMENT_TYPE, "_type")
    _expect(statement["predicateType"], PREDICATE_TYPE, "predicateType")
    (subject,) = check_list(statement["subject"], "subject", 1, 1)
    check_object(subject, "subject", ["name", "digest"])
    predicate = statement["predicate"]
    check_object(predicate, "predicate", ["serialization", "resources"])
    serialization = predicate["serialization"]
    if not isinstance(serialization, dict):
        raise Malformed("serialization is not an object")
    _expect(serialization.get("method"), "files", "serialization.method")
    _expect(serialization.get("hash_type"), "sha256", "serialization.hash_type")
    (resource,) = check_list(predicate["resources"], "resources", 1, 1)
    check_object(resource, "resource", ["name", "algorithm", "digest"])
    if resource["name"] not in (SELF, name):
        raise Malformed(f"is of {quote(resource['name'])}, expected {quote(SELF)} or {quote(name)}")
    _expect(resource["algorithm"], "sha256", "algorithm")
    _expect(resource["digest"], digest.hex(), "digest of the file")
    _expect(subject["digest"], {"sha256": hashlib.sha256(digest).hexdigest()}, "digest of the subject")


def _expect(found: Any, expected: Any, where: str) -> None:
    if found != expected:
        raise Malformed(f"{where} is {quote(found)}, expected {quote(expected)}")


def _digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _hint(key: ec.EllipticCurvePublicKey) -> str:
    """Return how their bundle names a key: the SHA-256 of its PEM text."""
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
