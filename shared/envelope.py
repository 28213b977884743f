"""The header of a bundle and the DSSE envelope in it: one text for one content.

docs/bundle-format.md §4 and §5. Parsing proves nothing: whoever has parsed an envelope still has to
verify its signature.
"""

import base64
import contextlib
import json
from typing import Any

from shared.manifest import Manifest
from shared.signature import KEY_ID_HEX, SIGNATURE_BYTES
from shared.strict_json import Malformed, parse_json, quote

METADATA_KEY = "planearly-bundle"
MEDIA_TYPE = "application/vnd.planearly.bundle.v1+json"


def compact_json(value: Any) -> str:
    """Return ASCII JSON without white space, keys in the order given."""
    return json.dumps(value, separators=(",", ":"))


def envelope_text(payload: bytes, key_id: str, signature: bytes) -> str:
    """Return the only text that an envelope of these three may have."""
    return compact_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": MEDIA_TYPE,
            "signatures": [{"keyid": key_id, "sig": base64.b64encode(signature).decode()}],
        }
    )


def header_bytes(manifest: Manifest, payload: bytes, key_id: str, signature: bytes) -> bytes:
    """Return the only header that these may have, padded with spaces to a multiple of 8 bytes."""
    text = envelope_text(payload, key_id, signature)
    entries: dict[str, Any] = {"__metadata__": {METADATA_KEY: text}}
    for name, entry in sorted(manifest.tensors.items(), key=lambda item: item[1].start):
        entries[name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [entry.start, entry.end],
        }
    header = compact_json(entries).encode()
    return header + b" " * (-len(header) % 8)


def parse_header(header: bytes) -> bytes:
    """Return the envelope's text, the one value in `__metadata__`; the tensors are compared later."""
    entries = parse_json(header)
    metadata = entries.get("__metadata__") if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or list(metadata) != [METADATA_KEY]:
        raise Malformed(f"__metadata__ does not have {METADATA_KEY} as its only key")
    envelope = metadata[METADATA_KEY]
    if not isinstance(envelope, str) or not envelope.isascii():
        raise Malformed(f"{METADATA_KEY} is not an ASCII text")
    return envelope.encode()


def parse_envelope(text: bytes) -> tuple[bytes, str, bytes]:
    """Return payload, key id and signature; what else the text may say is refused."""
    envelope = parse_json(text)
    if not isinstance(envelope, dict) or sorted(envelope) != ["payload", "payloadType", "signatures"]:
        raise Malformed("has other fields than payload, payloadType and signatures")
    if envelope["payloadType"] != MEDIA_TYPE:
        raise Malformed(f"payloadType is {quote(envelope['payloadType'])}, this reader knows {MEDIA_TYPE}")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise Malformed("does not hold exactly one signature")
    if not isinstance(signatures[0], dict) or sorted(signatures[0]) != ["keyid", "sig"]:
        raise Malformed("its signature has other fields than keyid and sig")
    key_id = signatures[0]["keyid"]
    if not isinstance(key_id, str) or len(key_id) != KEY_ID_HEX or set(key_id) - set("0123456789abcdef"):
        raise Malformed(f"keyid is {quote(key_id)}, expected {KEY_ID_HEX} lower-case hex digits")
    signature = _decode(signatures[0]["sig"], "sig")
    if len(signature) != SIGNATURE_BYTES:
        raise Malformed(f"sig has {len(signature)} bytes, expected {SIGNATURE_BYTES}")
    return _decode(envelope["payload"], "payload"), key_id, signature


def _decode(text: Any, where: str) -> bytes:
    """Return the bytes of canonical base64 (RFC 4648 §4): one text for one value."""
    if isinstance(text, str) and text.isascii():
        with contextlib.suppress(ValueError):
            decoded = base64.b64decode(text, validate=True)
            if base64.b64encode(decoded).decode() == text:
                return decoded
    raise Malformed(f"{where} is not canonical base64")
