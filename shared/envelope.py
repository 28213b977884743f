"""The header of a bundle and the DSSE envelope in it: one text for one content.

docs/bundle-format.md §4 and §5; the envelope as such is shared/dsse.py's. Parsing proves nothing:
whoever has parsed an envelope still has to verify its signature.
"""

import json
from typing import Any

from shared import dsse
from shared.manifest import Manifest
from shared.strict_json import Malformed, parse_json

METADATA_KEY = "planearly-bundle"
MEDIA_TYPE = "application/vnd.planearly.bundle.v1+json"


def compact_json(value: Any) -> str:
    """Return ASCII JSON without white space, keys in the order given."""
    return json.dumps(value, separators=(",", ":"))


def envelope_text(payload: bytes, key_id: str, signature: bytes) -> str:
    """Return the only text that an envelope of these three may have."""
    return dsse.envelope_text(MEDIA_TYPE, payload, [(key_id, signature)]).decode()


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
    payload, ((key_id, signature),) = dsse.parse_envelope(text, MEDIA_TYPE, 1)
    return payload, key_id, signature
