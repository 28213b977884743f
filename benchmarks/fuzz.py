"""Coverage-guided fuzzing (atheris) of what reads a foreign file first: header, manifest, pieces.

    python benchmarks/fuzz.py header --seconds 600 --corpus fuzz/header

Seeds are the test vectors, taken apart; the corpus folder keeps what found new branches, so that the same
command goes on from there. Anything raised but our own errors ends the run with the input that did it.
Needs `pip install atheris==3.0.0`, which is no dependency: it has no wheel for every Python that we run on.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import struct
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["shared.strict_json", "shared.envelope", "shared.manifest"]):
    from shared.envelope import METADATA_KEY, envelope_text, parse_envelope, parse_header
    from shared.manifest import FIELDS, TRAINING_FIELDS, parse_manifest
    from shared.strict_json import Malformed, canonical_json
with atheris.instrument_imports(include=["shared.contents", "shared.pieces"]):
    from shared.contents import check_tensors
    from shared.pieces import read_pieces, write_pieces

from shared.errors import PlanearlyError

VECTORS = Path(__file__).parent.parent / "tests" / "vectors"
MAX_BYTES = 16_384


def fuzz_header(data: bytes) -> None:
    """A header, and then its envelope, which has one text only."""
    try:
        payload, key_id, signature = parse_envelope(parse_header(data))
    except Malformed:
        return
    assert parse_envelope(envelope_text(payload, key_id, signature).encode()) == (payload, key_id, signature)


def fuzz_manifest(data: bytes) -> None:
    """A manifest as it is, and in the canonical form that hides few mistakes."""
    texts = [data]
    with contextlib.suppress(ValueError, RecursionError):
        texts.append(canonical_json(json.loads(data)))
    for text in texts:
        with contextlib.suppress(Malformed):
            check_tensors(parse_manifest(text))


def fuzz_pieces(data: bytes) -> None:
    """A piece list; one that is read is written and read again."""
    try:
        pieces = read_pieces(data)
    except PlanearlyError:
        return
    assert read_pieces(write_pieces(pieces)) == pieces


TARGETS = {"header": fuzz_header, "manifest": fuzz_manifest, "pieces": fuzz_pieces}


def seeds(target: str) -> list[bytes]:
    """What the vectors hold of this kind."""
    if target == "pieces":
        from tests.conftest import make_pieces

        return [write_pieces(make_pieces()), write_pieces(make_pieces()[:262]), b"[]", b'[["<unk>",0.0]]']
    headers = []
    for path in sorted(VECTORS.glob("*.st")):
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8].ljust(8, b"\0"))[0]
        headers.append(content[8 : 8 + min(length, 4 * MAX_BYTES)])
    if target == "header":
        return headers
    payloads = []
    for header in headers:
        try:
            envelope = json.loads(json.loads(header)["__metadata__"][METADATA_KEY])
            payloads.append(base64.b64decode(envelope["payload"]))
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
    return payloads


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, required=True)
    options = parser.parse_args()
    options.corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds(options.target):
        (options.corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    words = [
        *FIELDS,
        *TRAINING_FIELDS,
        METADATA_KEY,
        "signatures",
        "keyid",
        "sig",
        "dtype",
        "shape",
        "offsets",
    ]
    dictionary = options.corpus.with_suffix(".dict")
    dictionary.write_text("".join(f'"\\"{word}\\":"\n' for word in words))
    arguments = [f"-max_total_time={options.seconds}", f"-max_len={4 * MAX_BYTES}", f"-dict={dictionary}"]
    arguments += ["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-seed=1"]
    atheris.Setup([sys.argv[0], *arguments, str(options.corpus)], TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
