"""A DSSE v1 envelope as JSON: one text for one payload, its type and its signatures.

docs/bundle-format.md §5 and docs/trust-format.md §4. Parsing proves nothing: whoever has parsed an
envelope still has to verify its signatures over `shared.signature.pae`.
"""

import base64
import contextlib
from collections.abc import Sequence
from typing import Any

from shared.signature import KEY_ID_HEX, KEY_ID_PATTERN, SIGNATURE_BYTES
from shared.strict_json import Malformed, canonical_json, parse_json, quote

Signature = tuple[str, bytes]
"""Key id, and 64 bytes."""


def envelope_text(media_type: str, payload: bytes, signatures: Sequence[Signature]) -> bytes:
    """Return the only text that an envelope of these may have."""
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": media_type,
            "signatures": [
                {"keyid": key_id, "sig": base64.b64encode(signature).decode()}
                for key_id, signature in signatures
            ],
        }
    )


def parse_envelope(text: bytes, media_type: str, most: int) -> tuple[bytes, tuple[Signature, ...]]:
    """Return payload and 1 to `most` signatures, ordered by key id, each key once. Raises Malformed.

    White space and order of keys are for the caller, who compares the file with `envelope_text`.
    """
    envelope = parse_json(text)
    if not isinstance(envelope, dict) or sorted(envelope) != ["payload", "payloadType", "signatures"]:
        raise Malformed("has other fields than payload, payloadType and signatures")
    if envelope["payloadType"] != media_type:
        raise Malformed(f"payloadType is {quote(envelope['payloadType'])}, this reader knows {media_type}")
    listed = envelope["signatures"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= most:
        number = "exactly one signature" if most == 1 else f"1 to {most} signatures"
        raise Malformed(f"does not hold {number}")
    signatures = tuple(map(_signature, listed))
    key_ids = [key_id for key_id, _ in signatures]
    if key_ids != sorted(set(key_ids)):
        raise Malformed("its signatures are not ordered by key id, each once")
    return decode_base64(envelope["payload"], "payload"), signatures


def _signature(value: Any) -> Signature:
    if not isinstance(value, dict) or sorted(value) != ["keyid", "sig"]:
        raise Malformed("its signature has other fields than keyid and sig")
    key_id = value["keyid"]
    if not isinstance(key_id, str) or not KEY_ID_PATTERN.fullmatch(key_id):
        raise Malformed(f"keyid is {quote(key_id)}, expected {KEY_ID_HEX} lower-case hex digits")
    signature = decode_base64(value["sig"], "sig")
    if len(signature) != SIGNATURE_BYTES:
        raise Malformed(f"sig has {len(signature)} bytes, expected {SIGNATURE_BYTES}")
    return key_id, signature


def decode_base64(text: Any, where: str) -> bytes:
    """Return the bytes of canonical base64 (RFC 4648 §4): one text for one value."""
    if isinstance(text, str) and text.isascii():
        with contextlib.suppress(ValueError):
            decoded = base64.b64decode(text, validate=True)
            if base64.b64encode(decoded).decode() == text:
                return decoded
    raise Malformed(f"{where} is not canonical base64")
