"""What a trust file may say, and that no other text of it, and no other signature, counts."""

import base64
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import SignatureError, TrustError
from shared.names import MAX_VERSION
from shared.signature import pae
from shared.strict_json import canonical_json
from shared.trust_file import (
    FIELDS,
    FINGERPRINT_PREFIX,
    FORMAT,
    MAX_ENTRIES,
    MAX_FILE_BYTES,
    MAX_KEYS,
    MAX_ROOTS,
    MAX_SIGNATURES,
    MEDIA_TYPE,
    STEPS,
    Roots,
    check_first,
    check_successor,
    parse_payload,
    parse_signed,
    read_payload,
    read_signed,
)
from tests.parties import ROOT
from tests.trust_files import (
    ROOTS,
    SECOND_SIGNER,
    SIGNER,
    STRANGER,
    fingerprint,
    hex_keys,
    keys_field,
    payload_fields,
    roots_field,
    signed_by,
)

TWO_OF_THREE = roots_field(ROOTS[:3], 2)


def first(content: bytes, expected: str | None = None):
    return check_first(parse_signed(content, "trust.json"), expected or fingerprint())


def public_roots(keys, threshold) -> Roots:
    return Roots(threshold, tuple(sorted((key.public_key for key in keys), key=lambda key: key.raw)))


def test_what_is_signed_by_its_roots_is_read():
    trust = first(signed_by(ROOTS[:1], revoked_keys=["0" * 16], minimum_versions={"pn32": 3}))
    assert (trust.name, trust.version) == ("acme", 1)
    assert trust.revoked_keys == {"0" * 16}
    assert trust.minimum_versions == {"pn32": 3}
    assert [entry.key for entry in trust.keys] == [SIGNER.public_key]
    assert len(trust.digest) == 64


def test_every_flipped_bit_is_refused():
    content = signed_by(ROOTS[:2], roots=TWO_OF_THREE)
    expected = fingerprint(roots=TWO_OF_THREE)
    first(content, expected)
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TrustError):
            first(bytes(changed), expected)


def test_every_cut_and_every_doubled_byte_is_refused():
    content = signed_by(ROOTS[:1])
    for at in range(len(content)):
        for changed in (content[:at], content[:at] + content[at : at + 1] + content[at:]):
            with pytest.raises(TrustError):
                first(changed)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_whatever_the_bytes_are_only_our_error_comes(content):
    with pytest.raises(TrustError):
        first(content)


@pytest.mark.parametrize(
    ("changed", "step"),
    [
        (lambda text: text[:-1], "rebuilt envelope: differs from the file"),
        (lambda text: text + b"\n", "rebuilt envelope"),
        (lambda text: text.replace(b",", b", ", 1), "rebuilt envelope"),
        (lambda text: text.replace(b"trust.v1", b"trust.v2"), "envelope: payloadType is"),
        (lambda text: text.replace(b'"keyid"', b'"key"'), "envelope: its signature has other fields"),
        (lambda text: text.replace(b'"signatures"', b'"signature"'), "envelope: has other fields"),
        (lambda text: b"[]", "envelope: has other fields"),
        (lambda text: b"x", "envelope: is not strict ASCII JSON"),
    ],
)
def test_an_envelope_has_one_text(changed, step):
    with pytest.raises(TrustError, match=f"^trust.json: {step}"):
        first(changed(signed_by(ROOTS[:1])))


def envelope(**changes) -> bytes:
    return canonical_json(json.loads(signed_by(ROOTS[:1])) | changes) + b"\n"


def signature(key, **changes) -> dict[str, str]:
    message = pae(MEDIA_TYPE, canonical_json(payload_fields()))
    sig = base64.b64encode(key.sign(message)).decode()
    return {"keyid": key.public_key.key_id, "sig": sig} | changes


@pytest.mark.parametrize(
    ("signatures", "problem"),
    [
        ([], "does not hold 1 to 16 signatures"),
        ({}, "does not hold 1 to 16 signatures"),
        ([signature(ROOTS[0])] * 17, "does not hold 1 to 16"),
        ([signature(ROOTS[0])] * 2, "not ordered by key id, each once"),
        (
            sorted([signature(key) for key in ROOTS[:2]], key=lambda one: one["keyid"])[::-1],
            "not ordered by key id",
        ),
        ([signature(ROOTS[0], keyid="A" * 16)], "keyid is 'A"),
        ([signature(ROOTS[0], sig="AA")], "sig is not canonical base64"),
        ([signature(ROOTS[0], sig=7)], "sig is not canonical base64"),
        ([signature(ROOTS[0], sig="AAAA")], "sig has 3 bytes, expected 64"),
        ([7], "its signature has other fields"),
    ],
)
def test_signatures_are_listed_in_one_way(signatures, problem):
    with pytest.raises(TrustError, match=f"envelope: .*{problem}"):
        first(envelope(signatures=signatures))


def test_one_key_cannot_sign_twice():
    expected = fingerprint(roots=TWO_OF_THREE)
    content = json.loads(signed_by(ROOTS[:1], roots=TWO_OF_THREE))
    with pytest.raises(TrustError, match="roots: 1 of 2 signatures"):
        first(canonical_json(content) + b"\n", expected)
    content["signatures"] *= 2
    with pytest.raises(TrustError, match="each once"):
        first(canonical_json(content) + b"\n", expected)


def test_a_threshold_that_is_not_met_is_refused_and_strangers_do_not_count():
    expected = fingerprint(roots=TWO_OF_THREE)
    for keys in ([ROOTS[0]], [ROOTS[0], STRANGER, ROOTS[3]]):
        with pytest.raises(TrustError, match="roots: 1 of 2 signatures"):
            first(signed_by(keys, roots=TWO_OF_THREE), expected)
    with pytest.raises(TrustError, match="roots: 0 of 2 signatures"):
        first(signed_by([STRANGER], roots=TWO_OF_THREE), expected)
    for pair in ((0, 1), (0, 2), (1, 2)):
        first(signed_by([ROOTS[number] for number in pair], roots=TWO_OF_THREE), expected)


def test_a_wrong_signature_in_a_roots_name_is_refused_even_above_the_threshold():
    content = json.loads(signed_by(ROOTS[:3], roots=TWO_OF_THREE))
    content["signatures"][2]["sig"] = content["signatures"][1]["sig"]
    with pytest.raises(TrustError, match="roots: root [0-9a-f]{16} did not sign this payload"):
        first(canonical_json(content) + b"\n", fingerprint(roots=TWO_OF_THREE))


def test_other_roots_than_those_of_the_fingerprint_are_refused():
    other = roots_field([STRANGER], 1)
    with pytest.raises(TrustError, match="fingerprint: its roots are not those of") as error:
        first(signed_by([STRANGER], roots=other))
    assert fingerprint(roots=other) not in str(error.value) + error.value.hint


def test_a_fingerprint_stands_for_keys_and_threshold():
    sets = [roots_field(keys, m) for keys, m in ((ROOTS[:1], 1), (ROOTS[:2], 1), (ROOTS[:2], 2))]
    assert len({fingerprint(roots=roots) for roots in sets}) == 3
    assert fingerprint(version=2) == fingerprint()


@pytest.mark.parametrize(
    ("old", "new", "signers", "problem"),
    [
        (([0], 1), ([0], 1), [0], None),
        (([0], 1), ([1, 2, 3], 2), [0, 1, 2], None),
        (([1, 2, 3], 2), ([0], 1), [0, 1, 3], None),
        (([0], 1), ([1, 2, 3], 2), [0], "roots: 0 of 2 signatures"),
        (([0], 1), ([1, 2, 3], 2), [1, 2], "stored roots: 0 of 1 signatures"),
        (([1, 2, 3], 2), ([0], 1), [0, 1], "stored roots: 1 of 2 signatures"),
        (([1, 2, 3], 2), ([0], 1), [1, 2], "roots: 0 of 1 signatures"),
    ],
)
def test_roots_change_only_with_the_signatures_of_both(old, new, signers, problem):
    content = signed_by(
        [ROOTS[number] for number in signers],
        version=2,
        roots=roots_field([ROOTS[number] for number in new[0]], new[1]),
    )
    signed, stored = parse_signed(content, "trust.json"), public_roots([ROOTS[i] for i in old[0]], old[1])
    if problem is None:
        assert check_successor(signed, stored).version == 2
    else:
        with pytest.raises(TrustError, match=f"^trust.json: {problem}"):
            check_successor(signed, stored)


def test_steps_are_named_in_the_messages():
    assert STEPS == ("envelope", "rebuilt envelope", "payload", "fingerprint", "stored roots", "roots")
    with pytest.raises(TrustError, match="^trust.json: payload: "):
        first(signed_by(ROOTS[:1], version=0))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": "planearly-trust-file/v2"}, "format is"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"name": "Acme"}, "name is"),
        ({"name": "0123456789abcdef"}, "name is"),
        ({"name": "../acme"}, "name is"),
        ({"name": 7}, "name is"),
        ({"version": 0}, "version is"),
        ({"version": True}, "version is"),
        ({"version": 2**31}, "version is"),
        ({"created": "2026-11-01"}, "created is"),
        ({"created": 20261101}, "created is"),
        ({"created": "2026-11-1T00:00:00Z"}, "created is"),
        ({"expires": "2026-11-01T00:00:00Z"}, "expires is .*, expected later than created"),
        ({"expires": "2026-10-01T00:00:00Z"}, "expires is .*, expected later than created"),
        ({"roots": []}, "roots is not an object"),
        ({"roots": {"keys": [], "threshold": 1}}, "roots.keys holds 0"),
        ({"roots": roots_field(ROOTS[:1], 2)}, "roots.threshold is 2, expected an integer from 1 to 1"),
        ({"roots": roots_field(ROOTS[:1], 0)}, "roots.threshold is 0"),
        ({"roots": {"keys": hex_keys(ROOTS)[::-1], "threshold": 1}}, "roots.keys are not in ascending"),
        ({"roots": {"keys": hex_keys(ROOTS[:1]) * 2, "threshold": 2}}, "roots.keys are not in ascending"),
        ({"roots": {"keys": [hex_keys(ROOTS[:1])[0].upper()], "threshold": 1}}, "roots.keys is"),
        ({"roots": {"keys": [f"{n:064x}" for n in range(17)], "threshold": 1}}, "roots.keys holds 17"),
        ({"keys": {}}, "keys is not a list"),
        ({"keys": [1]}, "keys is not an object"),
        ({"keys": [{"key": "00", "bundles": ["*"]}]}, "keys.key is"),
        ({"keys": [{"key": "0" * 64, "bundles": []}]}, "keys.bundles holds 0"),
        ({"keys": [{"key": "0" * 64, "bundles": ["a*b"]}]}, "keys.bundles is"),
        ({"keys": [{"key": "0" * 64, "bundles": ["b", "a"]}]}, "keys.bundles are not in ascending"),
        ({"keys": keys_field({SIGNER: ["*"]}) * 2}, "keys are not in ascending"),
        ({"revoked_keys": ["xyz"]}, "revoked_keys is"),
        ({"revoked_keys": ["0" * 16] * 2}, "revoked_keys are not in ascending"),
        ({"revoked_keys": [SIGNER.public_key.key_id]}, "among the keys and among the revoked"),
        ({"revoked_bundles": ["0" * 63]}, "revoked_bundles is"),
        ({"minimum_versions": []}, "minimum_versions is not an object"),
        ({"minimum_versions": {"a/b": 1}}, "a name in minimum_versions is"),
        ({"minimum_versions": {"pn32": 0}}, "minimum_versions.pn32 is 0"),
        ({"minimum_versions": {f"b{n}": 1 for n in range(4097)}}, "at most 4096 entries"),
    ],
)
def test_each_field_has_its_rule(changes, problem):
    with pytest.raises(TrustError, match=f"payload: .*{problem}"):
        read_payload(parse_signed(signed_by(ROOTS[:1], **changes), "trust.json"))


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_may_be_missing(field):
    fields = payload_fields()
    del fields[field]
    with pytest.raises(ValueError, match=f"field {field} is missing"):
        parse_payload(canonical_json(fields))


@pytest.mark.parametrize(
    "payload", [b"[]", b"{", b'{"a": 1}', json.dumps(payload_fields(), indent=1).encode()]
)
def test_a_payload_has_one_text(payload):
    with pytest.raises(ValueError, match="canonical form|not an object|strict ASCII JSON"):
        parse_payload(payload)


def test_scopes_are_names_or_prefixes():
    scopes = {SIGNER: ["pn32", "quickstart-*"], SECOND_SIGNER: ["*"]}
    trust = parse_payload(canonical_json(payload_fields(keys=keys_field(scopes))))
    one, every = SIGNER.public_key.key_id, SECOND_SIGNER.public_key.key_id
    for name, covered in (("pn32", True), ("pn320", False), ("quickstart-", True), ("quickstart", False)):
        assert trust.covers(one, name) is covered
        assert trust.covers(every, name)
    assert not trust.covers(STRANGER.public_key.key_id, "pn32")


def test_a_trust_file_has_a_size_limit_and_must_be_a_file(tmp_path: Path):
    path = tmp_path / "trust.json"
    path.write_bytes(b"{" * (MAX_FILE_BYTES + 1))
    with pytest.raises(SignatureError, match=f"has over {MAX_FILE_BYTES} bytes, too large for a trust file"):
        read_signed(path)
    with pytest.raises(SignatureError, match="missing.json: cannot be read: No such file"):
        read_signed(tmp_path / "missing.json")
    path.write_bytes(signed_by(ROOTS[:1]))
    assert check_first(read_signed(path), fingerprint()).name == "acme"


SPEC = (ROOT / "docs/trust-format.md").read_text(encoding="utf-8")


def test_the_spec_has_the_steps_fields_and_numbers_of_the_reader():
    reading = SPEC.partition("## 5.")[2].partition("## 6.")[0]
    assert tuple(re.findall(r"\*\*(.+?)\*\*", reading)) == STEPS
    payload = SPEC.partition("## 3.")[2].partition("## 4.")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", payload, re.M)) == sorted(FIELDS)
    for text in (
        f"Identifier:\n`{FORMAT}`",
        f"`{MEDIA_TYPE}`",
        f"1 to {MAX_SIGNATURES} signatures",
        f"at most {MAX_FILE_BYTES} bytes",
        f"1 to {MAX_ROOTS} public keys",
        f"at most {MAX_KEYS} objects",
        f"at most {MAX_ENTRIES} entries",
        f"1 to {MAX_VERSION};",
        "`SHA-256(" + json.dumps(FINGERPRINT_PREFIX.decode()) + " || canonical JSON",
    ):
        assert text in SPEC, text


def test_the_example_in_the_spec_is_a_payload_but_for_its_keys():
    shown = next(json.loads(block) for block in re.findall(r"```json\n(.*?)```", SPEC, re.S))
    shown["roots"]["keys"] = hex_keys(ROOTS[:3])
    shown["keys"][0]["key"] = SIGNER.public_key.raw.hex()
    assert parse_payload(canonical_json(shown)).roots.threshold == 2
