"""Ways to damage a bundle so that it must be refused: for the suite, and a million for benchmarks/mutants.py.

Most leave the signature as it was, as anybody can; those whose name begins with "signed" put the
provider's own signature under the damage, as a malicious provider can.
"""

import base64
import hashlib
import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provider.bundling import write_bundle
from shared.signature import pae
from tests.vectors.build import (
    MEDIA_TYPE,
    PROVIDER,
    STRANGER,
    Parts,
    accepted,
    compact,
    example_tensors,
)

TERMS = "cluster_terms"
"""The optional field of a manifest: a bundle without it is a good one."""
WRONG_TERMS = (
    *(
        [["court", wrong]]
        for wrong in ("", 7, None, [], {}, "\x1b[2J", "a\nb", "\u202ex", "\ud800", "x" * 41)
    ),
    [["court"] * 11],
    [["court"], []],
    [[]] * 65_537,
    ["court"],
    [{"court": 1}],
)
GIANT = (0, 1, 7, 9, 2**22 - 8, 2**22, 2**22 + 8, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 8)
CENTROIDS, COUNTS, NORM = "clusters.centroids", "clusters.counts", "shared.model.norm.weight"
WRONG = {
    int: (True, False, -1, 2**63, 1.0, "1", None, [], {}),
    float: (1, -1.0, True, "1.5", None, [], {}),
    str: ("", 7, None, True, [], {}, "\x1b", "\ud800", "x" * 100_001),
    bool: (0, 1, None, "true", []),
    list: (None, {}, "x", 0, ["\x7f"]),
    dict: (None, [], "x", 0),
}
"""Values that no field of a type may have instead of a good one."""


@dataclass(frozen=True)
class Good:
    """Two good bundles by the same key, of the same size and layout; the first one is damaged."""

    content: bytes
    other: bytes

    @property
    def header_end(self) -> int:
        """Where the tensors begin."""
        return 8 + int(struct.unpack("<Q", self.content[:8])[0])

    @property
    def signature_span(self) -> tuple[int, int]:
        """Where the signature's base64 begins and ends."""
        start = self.content.index(b'\\"sig\\":\\"') + len(b'\\"sig\\":\\"')
        return start, self.content.index(b'\\"', start)

    def spans(self) -> list[tuple[int, int]]:
        """Where each tensor begins and ends."""
        entries = Parts(self.content).manifest["tensors"].values()
        return [tuple(self.header_end + at for at in entry["offsets"]) for entry in entries]


def make_good(folder: Path) -> Good:
    """Write the two bundles: the smallest of the test vectors, and one with another version and weights."""
    manifest = accepted()["slm.st"]
    manifest["training"][TERMS] = [["court", "plaintiff", "m\u00e9nage"]]
    tensors = example_tensors(manifest)
    write_bundle(folder / "good.st", manifest, tensors, PROVIDER)
    changed = {name: tensor.flip(0) for name, tensor in tensors.items()}
    write_bundle(folder / "other.st", manifest | {"version": 2}, changed, PROVIDER)
    return Good((folder / "good.st").read_bytes(), (folder / "other.st").read_bytes())


# Bytes


def flip(content: bytes, position: int, bit: int) -> bytes:
    """Return the bytes with one bit flipped."""
    return content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :]


def _flip_between(good: Good, source: random.Random, start: int, end: int) -> bytes:
    return flip(good.content, source.randrange(start, end), source.randrange(8))


def bit_of_length(good: Good, source: random.Random) -> bytes:
    return _flip_between(good, source, 0, 8)


def bit_of_header(good: Good, source: random.Random) -> bytes:
    return _flip_between(good, source, 8, good.header_end)


def bit_of_signature(good: Good, source: random.Random) -> bytes:
    return _flip_between(good, source, *good.signature_span)


def bit_of_a_tensor(good: Good, source: random.Random) -> bytes:
    return _flip_between(good, source, *source.choice(good.spans()))


def several_bytes(good: Good, source: random.Random) -> bytes:
    changed = bytearray(good.content)
    for _ in range(source.randint(1, 8)):
        changed[source.randrange(source.choice([8, 1024, len(changed)]))] = source.randrange(256)
    return bytes(changed)


def deleted_bytes(good: Good, source: random.Random) -> bytes:
    at = source.randrange(len(good.content))
    return good.content[:at] + good.content[at + source.randint(1, 16) :]


def inserted_bytes(good: Good, source: random.Random) -> bytes:
    at = source.randint(0, len(good.content))
    new = source.choice([b" ", b"\n", b"0", b"\x00", b"\xef\xbb\xbf", source.randbytes(8)])
    return good.content[:at] + new + good.content[at:]


def swapped_ranges(good: Good, source: random.Random) -> bytes:
    content, size = good.content, source.randint(1, 64)
    low, high = sorted(source.sample(range(0, len(content) - size, size), 2))
    first, second = content[low : low + size], content[high : high + size]
    return content[:low] + second + content[low + size : high] + first + content[high + size :]


def cut_short(good: Good, source: random.Random) -> bytes:
    return good.content[: source.randrange(len(good.content))]


def appended_data(good: Good, source: random.Random) -> bytes:
    tail = source.choice([b"\x00", b" " * 8, good.other, source.randbytes(source.randint(1, 4096))])
    return good.content + tail


def other_length(good: Good, source: random.Random) -> bytes:
    length = source.choice(GIANT) if source.random() < 0.5 else source.getrandbits(64)
    return struct.pack("<Q", length) + good.content[8:]


# Two good bundles


def spliced_anywhere(good: Good, source: random.Random) -> bytes:
    at = source.randrange(1, len(good.content))
    return good.content[:at] + good.other[at:]


def spliced_at_tensors(good: Good, source: random.Random) -> bytes:
    """Take some whole tensors from the other bundle; none of its header."""
    changed = bytearray(good.content)
    spans = good.spans()
    for start, end in source.sample(spans, source.randint(1, len(spans))):
        changed[start:end] = good.other[start:end]
    return bytes(changed)


def swapped_manifest(good: Good, source: random.Random) -> bytes:
    """Exchange payload, signatures or tensor entries between two envelopes."""
    parts, other = Parts(good.content), Parts(good.other)
    fields = source.sample(["payload", "signatures", "header", "data"], source.randint(1, 3))
    for field in fields:
        if field == "header":
            parts.header = other.header
        elif field == "data":
            parts.data = other.data
        else:
            parts.envelope[field] = other.envelope[field]
    return parts.join()


# JSON


def _respell(text: str, source: random.Random) -> str:
    """Write the same JSON in another way, or with a key twice."""
    characters = [i for i, c in enumerate(text) if c.isalnum()]
    at = source.choice(characters)
    numbers = [m for m in re.finditer(r"(?<=[\[,:])\d+(?=[,\]}])", text)]
    number = source.choice(numbers) if numbers else None
    ways: list[Callable[[], str]] = [
        lambda: source.choice([" ", "\t", "\r\n", "\ufeff", "\x00"]) + text,
        lambda: text + source.choice([" ", "\n", "\x00", "{}", ",", "//"]),
        lambda: text.replace(*source.choice([(",", ", "), (":", ": "), ("{", "{ "), ("}", " }")])),
        lambda: text.replace(",", ", ", source.randint(1, 20)),
        lambda: f"{text[:at]}\\u{ord(text[at]):04x}{text[at + 1 :]}",
        lambda: f"{text[:at]}\\u{ord(text[at]):04X}{text[at + 1 :]}",
        lambda: text.replace("/", "\\/", 1) if "/" in text else f"[{text}]",
        lambda: text[:at] + text[at].swapcase() + text[at + 1 :],
        lambda: json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")),
        lambda: re.sub(r'^\{("[^"]+":)', lambda m: f"{{{m[1]}0,{m[1]}", text),
        lambda: re.sub(r"\}$", ',"__metadata__":{}}', text),
        lambda: re.sub(r"\}$", ',"signatures":[]}', text),
        lambda: re.sub(r"\}$", f',"x":{source.choice(["NaN", "Infinity", "-Infinity", "1e999"])}}}', text),
    ]
    if number:
        old = number[0]
        spellings = [f"{old}e0", f"{old}.0", f"{old}E+0", f"0{old}", f"+{old}", f"-{old}", f'"{old}"', "-0"]
        for new in [*spellings, f"{old}{'0' * 30}", "9" * 5000, "true", "null", f"[{old}]"]:
            ways.append(lambda new=new: text[: number.start()] + new + text[number.end() :])  # type: ignore[misc]
    return source.choice(ways)()


def respelled_header(good: Good, source: random.Random) -> bytes:
    parts = Parts(good.content)
    return parts.join(_respell(parts.header_text(), source))


def respelled_envelope(good: Good, source: random.Random) -> bytes:
    parts = Parts(good.content)
    metadata = {"planearly-bundle": _respell(compact(parts.envelope), source)}
    return parts.join(compact({**parts.header, "__metadata__": metadata}))


def signed_respelled_manifest(good: Good, source: random.Random) -> bytes:
    parts = Parts(good.content)
    payload = base64.b64decode(parts.envelope["payload"]).decode()
    spelled = _respell(payload, source)
    if spelled == compact(json.loads(payload), sort_keys=True):
        return good.content
    # A letter of a free text in other case is a good manifest: its digits of digests are not.
    if spelled.lower() == payload.lower():
        spelled = re.sub(
            r'"sha256":"([0-9a-f]*[a-f])', lambda m: f'"sha256":"{m[1].upper()}', payload, count=1
        )
    return parts.sign(spelled.encode("utf-8", "surrogatepass")).join()


def other_base64(good: Good, source: random.Random) -> bytes:
    """Write payload or signature in another base64, or the key id in other hex."""
    parts = Parts(good.content)
    signature = parts.envelope["signatures"][0]
    holder, field = source.choice([(parts.envelope, "payload"), (signature, "sig"), (signature, "keyid")])
    text = holder[field]
    at = source.randrange(len(text))
    if field == "keyid":
        choices = [text.upper(), text + "0", text[:-1], f" {text}", text[::-1], f"0x{text}", "", text * 2]
    else:
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        last = len(text.rstrip("=")) - 1
        loose = alphabet[alphabet.index(text[last]) ^ 1]
        choices = [
            text.rstrip("="),
            text + "=",
            text + "====",
            text.replace("+", "-").replace("/", "_") + " ",
            text[:at] + source.choice("\n\r\t -_=.") + text[at:],
            text[:last] + loose + text[last + 1 :],
            text[:at] + "=" + text[at + 1 :],
            base64.b64decode(text).hex(),
            "",
        ]
    holder[field] = source.choice(choices)
    return parts.join()


def unicode_tricks(good: Good, source: random.Random) -> bytes:
    """Put what looks alike, or does not look at all, into the header's or the envelope's text."""
    parts = Parts(good.content)
    trick = source.choice(
        ["\u200b", "\u202e", "\ufeff", "\u0430", "\uff11", "\u0000", "e\u0301", "\ud800", "İ"]
    )
    if source.random() < 0.5:
        target = parts.envelope["signatures"][0]
        field = source.choice(["keyid", "sig"])
        at = source.randrange(len(target[field]))
        target[field] = target[field][:at] + trick + target[field][at + source.randrange(2) :]
        return parts.join()
    name = source.choice([name for name in parts.header if name != "__metadata__"])
    at = source.randrange(len(name))
    changed = name[:at] + trick + name[at + 1 :]
    header = {changed if key == name else key: value for key, value in parts.header.items()}
    parts.header = header
    if source.random() < 0.5:
        return parts.join()
    return parts.join(json.dumps(json.loads(parts.header_text()), ensure_ascii=False, separators=(",", ":")))


def moved_header_tensors(good: Good, source: random.Random) -> bytes:
    """Let the header say something else of its tensors than the manifest that it carries."""
    parts = Parts(good.content)
    names = [name for name in parts.header if name != "__metadata__"]
    a, b = source.sample(names, 2)
    way = source.randrange(8)
    if way == 0:
        parts.header[a], parts.header[b] = parts.header[b], parts.header[a]
    elif way == 1:
        parts.header = dict(source.sample(list(parts.header.items()), len(parts.header)))
    elif way == 2:
        parts.header[a] = dict(reversed(parts.header[a].items()))
    elif way == 3:
        parts.header[a]["dtype"] = source.choice(["I8", "F64", "F8_E4M3", "BOOL", "C64", "", "bf16"])
    elif way == 4:
        parts.header[a]["shape"] = source.choice([[], [0], [2**62], [1] * 1000, [-1], [2**32, 2**32], ["8"]])
    elif way == 5:
        start, end = parts.header[a]["data_offsets"]
        parts.header[a]["data_offsets"] = source.choice(
            [[end, start], [start, 2**63], [-1, end], [0, end + 1]]
        )
    elif way == 6:
        del parts.header[a]
    else:
        parts.header[source.choice(["../../etc/passwd", "__metadata__ ", f"{a} ", ""])] = parts.header[a]
    return parts.join()


# Signatures


def foreign_signature(good: Good, source: random.Random) -> bytes:
    """Sign with another key, with its name or the trusted one's; or sign something near the manifest."""
    parts = Parts(good.content)
    entry = parts.envelope["signatures"][0]
    payload = base64.b64decode(parts.envelope["payload"])
    kind = source.choice([MEDIA_TYPE, "", MEDIA_TYPE + " ", MEDIA_TYPE.replace("v1", "v2"), "text/plain"])
    messages = [pae(kind, payload), payload, pae(kind, payload + b" "), hashlib.sha256(payload).digest(), b""]
    key = source.choice([PROVIDER, STRANGER])
    message = source.choice(messages[1:] if key is PROVIDER else messages)
    entry["sig"] = base64.b64encode(key.sign(message)).decode()
    entry["keyid"] = source.choice([PROVIDER.public_key.key_id, STRANGER.public_key.key_id])
    way = source.randrange(4)
    if way == 0:
        entry["sig"] = base64.b64encode(source.randbytes(source.choice([0, 32, 63, 64, 65, 96]))).decode()
    elif way == 1:
        parts.envelope["signatures"] *= source.choice([0, 2, 50])
    elif way == 2:
        good_entry = Parts(good.content).envelope["signatures"][0]
        parts.envelope["signatures"] = source.choice([[entry, good_entry], [good_entry, entry]])
    return parts.join()


def other_payload_type(good: Good, source: random.Random) -> bytes:
    """Name another payload type, its signature made for that type."""
    parts = Parts(good.content)
    kinds = [MEDIA_TYPE.replace("v1", "v2"), MEDIA_TYPE.upper(), f"{MEDIA_TYPE} ", "", "application/json"]
    kind = source.choice(kinds)
    payload = base64.b64decode(parts.envelope["payload"])
    parts.envelope["payloadType"] = (
        source.choice([kind, [MEDIA_TYPE], None, 1]) if source.random() < 0.3 else kind
    )
    parts.envelope["signatures"][0]["sig"] = base64.b64encode(PROVIDER.sign(pae(kind, payload))).decode()
    return parts.join()


# Under the provider's own signature


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all fields that have rules of their own."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield (*path, key)
            yield from _leaves(part, (*path, key))


def signed_other_field(good: Good, source: random.Random) -> bytes:
    """Give one field of the manifest a value that no such field may have; or drop it; or add one."""
    parts = Parts(good.content)
    path = source.choice(list(_leaves(parts.manifest)))
    holder = parts.manifest
    for key in path[:-1]:
        holder = holder[key]
    way = source.randrange(10)
    if path[-1] == TERMS and way < 8:
        holder[TERMS] = source.choice(WRONG_TERMS)
    elif way == 0 and path[-1] != TERMS:
        del holder[path[-1]]
    elif way == 1 and "training" not in path:
        holder[path[-1] + source.choice(["s", " ", "_"])] = holder[path[-1]]
    else:
        holder[path[-1]] = source.choice(WRONG[type(holder[path[-1]])])
    payload = compact(parts.manifest, sort_keys=True).encode()
    return parts.sign(payload).join()


def signed_other_tensor(good: Good, source: random.Random) -> bytes:
    """Give a tensor another type, shape, place or name, header and manifest agreeing."""
    parts = Parts(good.content)
    tensors = parts.manifest["tensors"]
    name = source.choice(list(tensors))
    entry = tensors[name]
    start, end = entry["offsets"]
    way = source.randrange(6)
    if way == 0:
        # Not F16: a weight may have it.
        entry["dtype"] = source.choice(sorted({"I64", "U16", "U8", "F64", "BF16"} - {entry["dtype"]}))
    elif way == 1:
        n = 1 if not entry["shape"] else entry["shape"][0]
        entry["shape"] = source.choice(
            [[], [0], [2**62, 4], [n, 1, 1, 1], [n + 1], [2**63 - 1], [1] * 3 + [n]]
        )
    elif way == 2:
        moved = source.choice([1, -1, 8, 2**40])
        entry["offsets"] = (
            [max(0, start + moved), max(0, end + moved)] if start else [start, end + abs(moved)]
        )
    elif way == 3:
        other = source.choice([other for other in tensors if other != name])
        entry["offsets"] = tensors[other]["offsets"]
    elif way == 4:
        del tensors[name]
    else:
        tensors[source.choice(["../x", "files.x.py", f"{name}.", "experts.vectors", name.upper()])] = entry
    return parts.sign().join()


def signed_other_values(good: Good, source: random.Random) -> bytes:
    """Put NaN, an infinity, a long centroid or wrong counts under right digests."""
    parts = Parts(good.content)
    name = source.choice([CENTROIDS, COUNTS, NORM])
    if name == COUNTS:
        return (
            parts.set_data(COUNTS, struct.pack("<q", source.choice([-1, 0, 2, 2**63 - 1, -(2**63)])))
            .sign()
            .join()
        )
    size, bad = (
        (4, (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001)) if name == CENTROIDS else (2, (0x7F80, 0xFFC0))
    )
    start, end = parts.manifest["tensors"][name]["offsets"]
    values = bytearray(parts.data[start:end])
    at = source.randrange(len(values) // size) * size
    values[at : at + size] = source.choice(bad).to_bytes(size, "little")
    if name == CENTROIDS and source.random() < 0.3:
        values = bytearray(struct.pack("<f", source.uniform(0.06, 1e30)) * 384)
    return parts.set_data(name, bytes(values)).sign().join()


MUTATORS: dict[str, Callable[[Good, random.Random], bytes]] = {
    mutate.__name__: mutate
    for mutate in (
        bit_of_length,
        bit_of_header,
        bit_of_signature,
        bit_of_a_tensor,
        several_bytes,
        deleted_bytes,
        inserted_bytes,
        swapped_ranges,
        cut_short,
        appended_data,
        other_length,
        spliced_anywhere,
        spliced_at_tensors,
        swapped_manifest,
        respelled_header,
        respelled_envelope,
        other_base64,
        unicode_tricks,
        moved_header_tensors,
        foreign_signature,
        other_payload_type,
        signed_respelled_manifest,
        signed_other_field,
        signed_other_tensor,
        signed_other_values,
    )
}


def mutants(good: Good, source: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield mutators' names and changed files without end, one of each in turn."""
    while True:
        for name, mutate in MUTATORS.items():
            yield name, mutate(good, source)


def every_cut(good: Good) -> Iterator[tuple[str, bytes]]:
    """Yield the file cut at every length."""
    for length in range(len(good.content)):
        yield "every cut", good.content[:length]


def every_bit(good: Good, start: int, end: int) -> Iterator[tuple[str, bytes]]:
    """Yield the file with every single bit between two positions flipped."""
    for position in range(start, end):
        for bit in range(8):
            yield "every bit", flip(good.content, position, bit)
