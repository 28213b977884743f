"""Header and envelope: one text for one content, and every other text is refused by name."""

import base64

import pytest

from shared.envelope import MEDIA_TYPE, METADATA_KEY, envelope_text, parse_envelope, parse_header
from shared.strict_json import Malformed
from tests.vectors.build import compact

PAYLOAD, KEY_ID, SIGNATURE = b"payload", "0123456789abcdef", bytes(range(64))
GOOD = {
    "payload": base64.b64encode(PAYLOAD).decode(),
    "payloadType": MEDIA_TYPE,
    "signatures": [{"keyid": KEY_ID, "sig": base64.b64encode(SIGNATURE).decode()}],
}
ENTRY = GOOD["signatures"][0]


def test_an_envelope_is_read_as_it_was_written():
    text = envelope_text(PAYLOAD, KEY_ID, SIGNATURE)
    assert text == compact(GOOD)
    assert parse_envelope(text.encode()) == (PAYLOAD, KEY_ID, SIGNATURE)


def test_a_header_gives_its_envelope():
    assert parse_header(compact({"__metadata__": {METADATA_KEY: "x"}, "tensor": 1}).encode()) == b"x"


@pytest.mark.parametrize(
    "header",
    [[], 1, {}, {"__metadata__": None}, {"__metadata__": {}}]
    + [{"__metadata__": [METADATA_KEY]}, {"__metadata__": {METADATA_KEY: "x", "a": "b"}}]
    + [{"__metadata__": {"a": "b", METADATA_KEY: "x"}}, {"__metadata__": {METADATA_KEY + " ": "x"}}],
)
def test_a_header_with_other_metadata_is_refused(header):
    with pytest.raises(Malformed) as error:
        parse_header(compact(header).encode())
    assert str(error.value) == "__metadata__ does not have planearly-bundle as its only key"


@pytest.mark.parametrize("envelope", [1, None, ["x"], {}, "\u00e9"])
def test_an_envelope_that_is_no_ascii_text_is_refused(envelope):
    with pytest.raises(Malformed) as error:
        parse_header(compact({"__metadata__": {METADATA_KEY: envelope}}).encode())
    assert str(error.value) == "planearly-bundle is not an ASCII text"


FIELDS = "has other fields than payload, payloadType and signatures"
ONE = "does not hold exactly one signature"
ENTRY_FIELDS = "its signature has other fields than keyid and sig"
SIG, PAYLOAD_TEXT = "sig is not canonical base64", "payload is not canonical base64"


@pytest.mark.parametrize(
    ("envelope", "message"),
    [
        ([GOOD], FIELDS),
        (["payload", "payloadType", "signatures"], FIELDS),
        ({}, FIELDS),
        (GOOD | {"x": 1}, FIELDS),
        ({key: GOOD[key] for key in ("payload", "signatures")}, FIELDS),
        (GOOD | {"payloadType": 1}, f"payloadType is 1, this reader knows {MEDIA_TYPE}"),
        (GOOD | {"signatures": {}}, ONE),
        (GOOD | {"signatures": {"0": ENTRY}}, ONE),
        (GOOD | {"signatures": []}, ONE),
        (GOOD | {"signatures": [ENTRY] * 2}, ONE),
        (GOOD | {"signatures": [["keyid", "sig"]]}, ENTRY_FIELDS),
        (GOOD | {"signatures": [{"keyid": KEY_ID}]}, ENTRY_FIELDS),
        (GOOD | {"signatures": [ENTRY | {"cert": ""}]}, ENTRY_FIELDS),
        (GOOD | {"signatures": [ENTRY | {"keyid": 7}]}, "keyid is 7, expected 16 lower-case hex digits"),
        (GOOD | {"signatures": [ENTRY | {"keyid": "0" * 15}]}, "keyid is '000000000000000', expected 16"),
        (GOOD | {"signatures": [ENTRY | {"keyid": list(KEY_ID)}]}, "keyid is ['0', "),
        (GOOD | {"signatures": [ENTRY | {"keyid": "0" * 15 + "A"}]}, "keyid is '000000000000000A'"),
        (GOOD | {"signatures": [ENTRY | {"keyid": "0" * 15 + "g"}]}, "keyid is '000000000000000g'"),
        (GOOD | {"signatures": [ENTRY | {"keyid": "0" * 15 + "X"}]}, "keyid is '000000000000000X'"),
        (GOOD | {"signatures": [ENTRY | {"sig": None}]}, SIG),
        (GOOD | {"signatures": [ENTRY | {"sig": "\u00e9"}]}, SIG),
        (GOOD | {"signatures": [ENTRY | {"sig": "AA==AA=="}]}, SIG),
        (GOOD | {"signatures": [ENTRY | {"sig": "AB=="}]}, SIG),
        (GOOD | {"signatures": [ENTRY | {"sig": "A A=="}]}, SIG),
        (GOOD | {"signatures": [ENTRY | {"sig": "A"}]}, SIG),
        (GOOD | {"signatures": [ENTRY | {"sig": ""}]}, "sig has 0 bytes, expected 64"),
        (GOOD | {"signatures": [ENTRY | {"sig": "AAAA"}]}, "sig has 3 bytes, expected 64"),
        (GOOD | {"payload": "_w=="}, PAYLOAD_TEXT),
        (GOOD | {"payload": 1}, PAYLOAD_TEXT),
    ],
)
def test_another_envelope_is_refused_by_name(envelope, message):
    with pytest.raises(Malformed) as error:
        parse_envelope(compact(envelope).encode())
    assert str(error.value).startswith(message)
