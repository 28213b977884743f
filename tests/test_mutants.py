"""Thousands of damaged bundles, seeded: none is accepted, and every refusal is an error of ours."""

import base64
import json
import os
import random
import struct

import pytest

from shared.bundle import open_bundle, write_bundle
from shared.errors import BundleError
from tests.test_bundle import TRUSTED, read_everything
from tests.vectors.build import PROVIDER, accepted, compact, example_tensors


@pytest.fixture
def slm(tmp_path):
    """A small good bundle."""
    manifest = accepted()["slm.st"]
    write_bundle(tmp_path / "slm.st", manifest, example_tensors(manifest), PROVIDER)
    return tmp_path / "slm.st"


def mutants(content: bytes, other: bytes, source: random.Random):
    """Yield changed files without end: eight ways, seeded."""
    header_length = struct.unpack("<Q", content[:8])[0]

    def at(extra=0):
        # Half of the damage goes to the first kilobyte and the envelope's tail.
        return source.randrange(min(len(content), source.choice([8, 1024, len(content)])) + extra)

    def bit():
        position = at()
        changed = bytes([content[position] ^ (1 << source.randrange(8))])
        return content[:position] + changed + content[position + 1 :]

    def byte():
        position = at()
        return content[:position] + source.randbytes(1) + content[position + 1 :]

    def delete():
        position = at()
        return content[:position] + content[position + source.randint(1, 16) :]

    def insert():
        position = at(1)
        return (
            content[:position] + source.choice([b" ", b"\n", b"0", source.randbytes(3)]) + content[position:]
        )

    def cut():
        return content[: at()]

    def swap():
        first, second, size = at(), at(), source.randint(1, 32)
        low, high = sorted((first, second))
        if low + size > high or high + size > len(content):
            return byte()
        return (
            content[:low]
            + content[high : high + size]
            + content[low + size : high]
            + content[low : low + size]
            + content[high + size :]
        )

    def splice():
        position = at()
        return content[:position] + other[position:]

    def json_aware():
        header = json.loads(content[8 : 8 + header_length])
        envelope = json.loads(header["__metadata__"]["planearly-bundle"])
        manifest = json.loads(base64.b64decode(envelope["payload"]))
        names = list(manifest["tensors"])
        a, b = source.sample(names, 2)
        choice = source.randrange(8)
        if choice == 0:
            header[a], header[b] = header[b], header[a]
        elif choice == 1:
            header = dict(source.sample(list(header.items()), len(header)))
        elif choice == 2:
            header[a] = dict(reversed(header[a].items()))
        elif choice == 3:
            manifest["version"] += source.randint(1, 9)
        elif choice == 4:
            manifest["tensors"][a]["sha256"] = manifest["tensors"][b]["sha256"].upper()
        elif choice == 5:
            envelope = dict(source.sample(list(envelope.items()), 3))
        elif choice == 6:
            envelope["signatures"] *= source.choice([0, 2])
        separators = (", ", ":") if choice == 7 else (",", ":")
        if choice in (3, 4):
            envelope["payload"] = base64.b64encode(compact(manifest).encode()).decode()
        header["__metadata__"] = {"planearly-bundle": json.dumps(envelope, separators=separators)}
        text = json.dumps(header, separators=source.choice([separators, (",", ":")])).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + content[8 + header_length :]

    ways = [bit, byte, delete, insert, cut, swap, splice, json_aware]
    while True:
        yield source.choice(ways)()


def refuse(path, content):
    """Write the bytes and demand that they are refused with an error of ours."""
    path.write_bytes(content)
    with pytest.raises(BundleError), open_bundle(path, TRUSTED) as bundle:
        bundle.verify_all()


def test_no_mutant_is_accepted(slm, tmp_path):
    content = slm.read_bytes()
    manifest = accepted()["slm.st"] | {"version": 2}
    write_bundle(tmp_path / "other.st", manifest, example_tensors(manifest), PROVIDER)
    other = (tmp_path / "other.st").read_bytes()
    tried, source = 0, random.Random(20261121)
    for mutant in mutants(content, other, source):
        if mutant in (content, other):
            continue
        refuse(tmp_path / "mutant.st", mutant)
        tried += 1
        if tried == 4000:
            break
    assert read_everything(slm)


def test_no_cut_is_accepted(slm):
    for length in range(slm.stat().st_size - 1, -1, -1):
        os.truncate(slm, length)
        with pytest.raises(BundleError):
            open_bundle(slm, TRUSTED)


def test_no_flipped_bit_of_the_length_or_signature_is_accepted(slm, tmp_path):
    content = slm.read_bytes()
    start = content.index(b'\\"sig\\":\\"') + len(b'\\"sig\\":\\"')
    for position in [*range(8), *range(start - 60, start + 92)]:
        for bit in range(8):
            changed = bytes([content[position] ^ (1 << bit)])
            refuse(tmp_path / "mutant.st", content[:position] + changed + content[position + 1 :])


@pytest.mark.parametrize(
    "header",
    [
        b"[" * (4 << 20),
        b'{"a":' * 800_000,
        b"1" * (4 << 20),
        b"{" + b'"a":1,' * 600_000 + b'"a":1}',
        b"{" + b",".join(b'"%x":1' % i for i in range(300_000)) + b"}",
        b'"' + b"\\u0000" * 600_000 + b'"',
    ],
    ids=["lists", "objects", "digits", "one key", "many keys", "escapes"],
)
def test_a_bomb_of_a_header_is_refused(tmp_path, header):
    header += b" " * (-len(header) % 8)
    path = tmp_path / "bomb.st"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(BundleError, match="bomb.st: header: "):
        open_bundle(path, TRUSTED)
