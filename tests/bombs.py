"""Files made to exhaust whoever opens them; each is read in a process of its own, which is measured.

`python -m tests.bombs` prints the table; tests/test_bombs.py checks it. Those under "signed" bear the trusted
key's signature: a malicious provider's.
"""

import gc
import hashlib
import json
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from owner.trust.carried import open_embedder, open_tokenizer
from provider.bundling import write_bundle
from shared.bundle import MAX_HEADER_BYTES, open_bundle
from shared.contents import lay_out
from shared.embedder import WEIGHTS_SHA256
from shared.errors import PlanearlyError
from shared.pieces import write_pieces
from tests.conftest import make_pieces
from tests.mutants import GIANT
from tests.vectors.build import PROVIDER, Parts, accepted, compact, example_tensors

VECTORS = Path(__file__).parent / "vectors"
NORM, TOKENIZER = "shared.model.norm.weight", "files.tokenizer.json"
SIZE = 3_000_000
"""Of a payload that still fits a header, in base64."""

Make = Callable[[Path], Path]


@dataclass(frozen=True)
class Measured:
    """What reading one bomb took, its whole process counted."""

    outcome: str
    """The refusal, or what else the process ended with."""
    wall_s: float
    cpu_s: float
    peak_bytes: int


def content(make: Callable[[], bytes]) -> Make:
    def write(folder: Path) -> Path:
        (folder / "bomb.st").write_bytes(make())
        return folder / "bomb.st"

    return write


def header(make: Callable[[], bytes]) -> Make:
    """A file of just this header."""

    def whole() -> bytes:
        text = make()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    return content(whole)


def repeat(item: bytes, size: int = MAX_HEADER_BYTES - 64, between: bytes = b",") -> bytes:
    """A JSON list of as many items as fit."""
    return b"[" + between.join([item] * ((size - 2) // (len(item) + len(between)))) + b"]"


def envelope(changes: Callable[[], dict[str, Any]]) -> Make:
    def make() -> bytes:
        parts = Parts((VECTORS / "slm.st").read_bytes())
        parts.envelope.update(changes())
        return parts.join()

    return content(make)


def signature(changes: Callable[[], dict[str, Any]]) -> Make:
    good = Parts((VECTORS / "slm.st").read_bytes()).envelope["signatures"][0]
    return envelope(lambda: {"signatures": [good | changes()]})


def tensors_in_header(entries: Callable[[], dict[str, Any]]) -> Make:
    """A good envelope, and these tensors in the header."""

    def make() -> bytes:
        parts = Parts((VECTORS / "slm.st").read_bytes())
        parts.header = entries()
        return parts.join()

    return content(make)


def entry(shape: Any = (1,), dtype: str = "U8", offsets: Any = (0, 1)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def signed(change: Callable[[dict[str, Any]], Any], vector: str = "slm.st") -> Make:
    """A good bundle whose manifest was changed before it was signed; the header follows it."""

    def make() -> bytes:
        parts = Parts((VECTORS / vector).read_bytes())
        change(parts.manifest)
        return parts.sign().join()

    return content(make)


def signed_payload(make: Callable[[], bytes]) -> Make:
    return content(lambda: Parts((VECTORS / "slm.st").read_bytes()).sign(make()).join())


def signed_tensor(**changes: Any) -> Make:
    return signed(lambda m: m["tensors"][NORM].update(changes))


def carrying(n_pieces: int = len(make_pieces()), **files: Callable[[], bytes]) -> Make:
    """A signed bundle that carries these files; without them all is good with it."""

    def make(folder: Path) -> Path:
        manifest = accepted()["slm.st"]
        manifest["model"]["vocab_size"] = n_pieces
        manifest["embedder"].update(embedded=True, sha256=WEIGHTS_SHA256)
        tensors = example_tensors(manifest)
        good = {"tokenizer_json": lambda: write_pieces(make_pieces())} | files
        for name, carried in good.items():
            tensor = f"files.{name.replace('__', '-').replace('_', '.')}"
            tensors[tensor] = torch.frombuffer(bytearray(carried()), dtype=torch.uint8)
        write_bundle(folder / "bomb.st", manifest, tensors, PROVIDER)
        return folder / "bomb.st"

    return make


def long_pieces() -> bytes:
    """A list in which the library's tree gets a branch for each character."""
    words = (f"{(i * 0x9E3779B97F4A7C15 % 2**64) | 1 << 64:x}"[1:] * 4 for i in range(200_000))
    return write_pieces(make_pieces() + [(word[:60], -9.0) for word in words])


def sparse(size: int, vector: str = "slm.st") -> Make:
    """A good bundle with a hole behind it, which takes no room on the disk."""

    def make(folder: Path) -> Path:
        (folder / "bomb.st").write_bytes((VECTORS / vector).read_bytes())
        os.truncate(folder / "bomb.st", size)
        return folder / "bomb.st"

    return make


def sparse_pack(folder: Path) -> Path:
    """A replay pack whose 2^27 tokens are a hole of 256 MiB, under a digest that is not theirs."""
    path, context, n_windows = folder / "bomb.st", 131_072, 1024
    n_tokens = context * n_windows
    parts = Parts((VECTORS / "replay.st").read_bytes())
    tensors = parts.manifest["tensors"]
    parts.manifest["replay"] = {"tokens": n_tokens, "windows": n_windows}
    parts.manifest["model"]["context_tokens"] = context
    before = {
        name: parts.data[slice(*tensors[name]["offsets"])]
        for name in ("clusters.centroids", "clusters.counts")
    }
    before["replay.lengths"] = struct.pack("<q", context) * n_windows
    before["replay.clusters"] = bytes(8 * n_windows)
    tensors["replay.lengths"]["shape"] = tensors["replay.clusters"]["shape"] = [n_windows]
    tensors["replay.tokens"]["shape"] = [n_tokens]
    layout = lay_out({name: (tensor["dtype"], tensor["shape"]) for name, tensor in tensors.items()})
    for name, offsets in layout.items():
        tensors[name]["offsets"] = list(offsets)
        if name in before:
            tensors[name]["sha256"] = hashlib.sha256(before[name]).hexdigest()
    parts.data = b"".join(before[name] for name in layout if name in before)
    path.write_bytes(parts.sign().join())
    os.truncate(path, path.stat().st_size - len(parts.data) + layout[TOKENIZER][1])
    return path


def special(make: Callable[[Path], Any]) -> Make:
    """Something at the path that is no file."""

    def at(folder: Path) -> Path:
        make(folder / "bomb.st")
        return folder / "bomb.st"

    return at


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def many_tensors(n: int) -> dict[str, Any]:
    return {
        f"t{i}": {"dtype": "U8", "shape": [1], "offsets": [i, i + 1], "sha256": "0" * 64} for i in range(n)
    }


def model(**sizes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda m: m["model"].update(sizes)


BIGGEST = {"n_layers": 256, "width": 32_768, "n_heads": 512, "ffn_width": 262_144, "vocab_size": 1_048_576}

BOMBS: dict[str, Make] = {
    "header: lists in lists": header(lambda: b"[" * (4 << 20)),
    "header: objects in objects": header(lambda: b'{"a":' * 800_000),
    "header: digits": header(lambda: b"1" * (4 << 20)),
    "header: numbers of 4,300 digits": header(lambda: repeat(b"9" * 4300)),
    "header: one key again and again": header(lambda: b"{" + b'"a":1,' * 600_000 + b'"a":1}'),
    "header: many keys": header(lambda: b"{" + b",".join(b'"%x":1' % i for i in range(300_000)) + b"}"),
    "header: escapes": header(lambda: b'"' + b"\\u0000" * 600_000 + b'"'),
    "header: empty lists": header(lambda: repeat(b"[]")),
    "header: empty objects": header(lambda: repeat(b"{}")),
    "header: numbers beyond a double": header(lambda: repeat(b"1e999")),
    "header: one long text": header(lambda: b'"' + b"x" * (MAX_HEADER_BYTES - 8) + b'"'),
    "header: one long name": header(lambda: b'{"' + b"x" * (MAX_HEADER_BYTES - 16) + b'":1}'),
    "header: many metadata keys": header(
        lambda: b'{"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(250_000)) + b"}}"
    ),
    "header: sixty thousand tensors": tensors_in_header(
        lambda: {f"{i:x}": entry(offsets=(i, i + 1)) for i in range(60_000)}
    ),
    "header: a million axes": tensors_in_header(lambda: {"a": entry(shape=[1] * 1_000_000)}),
    "header: shape of 2^62": tensors_in_header(lambda: {NORM: entry([2**62, 2**62], "F32", (0, 2**63))}),
    "header: text in text in text": header(
        lambda: compact({"__metadata__": {"planearly-bundle": "\\" * 1_000_000}}).encode()
    ),
    **{
        f"length: {length}": content(lambda length=length: struct.pack("<Q", length) + b"{}" * 32)
        for length in GIANT
        if length > MAX_HEADER_BYTES
    },
    "envelope: payload of nothing but A": envelope(lambda: {"payload": "A" * (4_000_000)}),
    "envelope: payload that is no base64": envelope(lambda: {"payload": "=" * 4_000_000}),
    "envelope: fifty thousand signatures": envelope(
        lambda: {"signatures": [{"keyid": "0" * 16, "sig": ""}] * 50_000}
    ),
    "envelope: long signature": signature(lambda: {"sig": "A" * 4_000_000}),
    "envelope: long key id": signature(lambda: {"keyid": "0" * 4_000_000}),
    "envelope: lists in lists": header(
        lambda: compact({"__metadata__": {"planearly-bundle": "[" * (MAX_HEADER_BYTES - 64)}}).encode()
    ),
    "signed: lists in lists": signed_payload(lambda: b"[" * SIZE),
    "signed: numbers of 4,300 digits": signed_payload(lambda: repeat(b"9" * 4300, SIZE)),
    "signed: a number of a million digits": signed_payload(lambda: b'{"version":' + b"9" * 1_000_000 + b"}"),
    "signed: empty lists": signed(lambda m: m.update({"x-": [[]] * 1_000_000})),
    "signed: deep record": signed_payload(lambda: b'{"training":' * 1000 + b"1" + b"}" * 1000),
    "signed: unknown fields": signed(lambda m: m.update({f"{i:x}": 0 for i in range(300_000)})),
    "signed: a million linear layers": signed(
        lambda m: (model(n_layers=256)(m), m["projection"].update(linears=[""] * 950_000)), "pn.st"
    ),
    "signed: sixteen thousand linear layers": signed(
        lambda m: (model(n_layers=256)(m), m["projection"].update(linears=["lm_head"] * 16_384)), "pn.st"
    ),
    "signed: many sources": signed(
        lambda m: m["training"].update(sources=[{"license": "x", "name": "y"}] * 90_000 + [{}])
    ),
    "signed: many losses": signed(lambda m: m["training"].update(heldout_loss_per_cluster=[None] * 500_000)),
    "signed: model fields": signed(
        lambda m: m.update(model={f"{i:x}": 0 for i in range(300_000)} | m["model"])
    ),
    "signed: long architecture": signed(model(architecture="x" * 3_000_000)),
    "signed: twenty thousand tensors": signed(lambda m: m.update(tensors=many_tensors(16_385))),
    "signed: as many tensors as may be": signed(lambda m: m.update(tensors=many_tensors(16_384))),
    "signed: a million axes": signed_tensor(shape=[1] * 400_000),
    "signed: shape of 2^62": signed_tensor(shape=[2**62]),
    "signed: shape whose product overflows": signed_tensor(shape=[2**32, 2**32, 1]),
    "signed: shape of nothing": signed_tensor(shape=[0]),
    "signed: negative shape": signed_tensor(shape=[-8]),
    "signed: offsets at the end of 64 bits": signed_tensor(offsets=[2**63 - 17, 2**63 - 1]),
    "signed: every tensor at the same place": signed(
        lambda m: [entry.update(offsets=[0, 16]) for entry in m["tensors"].values()]
    ),
    "signed: the largest llama": signed(model(**BIGGEST)),
    "signed: the largest starcoder2": signed(model(architecture="starcoder2", **BIGGEST)),
    "signed: a vocabulary of 2^63": signed(model(vocab_size=2**63)),
    "signed: the largest mixture": signed(
        lambda m: (
            model(**BIGGEST)(m),
            m.update(n_experts=65_536, clusters={"n": 65_536, "corpus_windows": 0}),
            m["training"].update(heldout_loss_per_cluster=[None] * 65_536),
        ),
        "mix.st",
    ),
    "signed: the largest projection": signed(
        lambda m: m["projection"].update(capacity=65_536, expert_size=65_536), "pn.st"
    ),
    "signed: the largest replay pack": signed(
        lambda m: m["replay"].update(tokens=2**34, windows=2**34), "replay.st"
    ),
    "signed: a hole of 256 MiB": sparse_pack,
    "signed: centroids at the end of float32": content(
        lambda: (
            Parts((VECTORS / "slm.st").read_bytes())
            .set_data("clusters.centroids", struct.pack("<f", 3.4e38) * 384)
            .sign()
            .join()
        )
    ),
    "pieces: lists in lists": carrying(tokenizer_json=lambda: b"[" * (16 << 20)),
    "pieces: empty lists": carrying(tokenizer_json=lambda: repeat(b"[]", 16 << 20)),
    "pieces: empty objects": carrying(tokenizer_json=lambda: repeat(b"{}", 16 << 20)),
    "pieces: a million of one": carrying(tokenizer_json=lambda: repeat(b'["a",0]', 8 << 20)),
    "pieces: one text": carrying(tokenizer_json=lambda: b'["' + b"x" * ((16 << 20) - 4) + b'"]'),
    "pieces: a score of 4,000 digits": carrying(
        tokenizer_json=lambda: (
            write_pieces(make_pieces())[:-1].rsplit(b",", 1)[0] + b",-" + b"9" * 4000 + b"]]"
        )
    ),
    "pieces: gigabytes of branches": carrying(
        n_pieces=200_000 + len(make_pieces()), tokenizer_json=long_pieces
    ),
    "pieces: another number of them": carrying(tokenizer_json=long_pieces),
    "embedder: a vocabulary of line ends": carrying(
        embedder_safetensors=lambda: b"x", **{"embedder__vocab_txt": lambda: b"\n" * (4 << 20)}
    ),
    "embedder: weights with a header of 200 MB": carrying(
        embedder_safetensors=lambda: struct.pack("<Q", 200 << 20) + b"{" * (1 << 20),
        **{"embedder__vocab_txt": lambda: b"x"},
    ),
    "path: a sparse file of 8 GB": sparse(8 << 30),
    "path: a sparse file of 8 EB": sparse(2**43),
    "path: a named pipe": special(os.mkfifo),
    "path: a socket": special(listen),
    "path: a folder": special(os.mkdir),
    "path: a link to a good bundle": special(lambda path: path.symlink_to(VECTORS / "slm.st")),
    "path: a link to itself": special(lambda path: path.symlink_to(path)),
    "path: an endless device": lambda folder: Path("/dev/zero"),
    "path: a terminal": lambda folder: Path("/dev/tty"),
    "path: a process's memory": lambda folder: Path("/proc/self/mem"),
    "path: a file without a size": lambda folder: Path("/proc/self/maps"),
    "path: a name of 5,000 characters": lambda folder: folder / ("x" * 5000),
    "path: a name with a NUL": lambda folder: folder / "x\0y",
    "path: nothing there": lambda folder: folder / "missing.st",
}


def read(path: Path) -> str:
    """Do all that an owner does with a bundle before private text is read; return the refusal."""
    try:
        with ExitStack() as stack:
            bundle = stack.enter_context(open_bundle(path, [PROVIDER.public_key]))
            bundle.verify_all()
            open_tokenizer(bundle)
            open_embedder(bundle, None, torch.device("cpu"))
    except PlanearlyError as error:
        return f"{type(error).__name__}: {str(error).removeprefix(f'{path}: ')}"
    except BaseException as error:  # noqa: B902, anything else is what is looked for
        return f"raised {type(error).__name__}"
    return "accepted"


def measure(path: Path) -> Measured:
    """Read a file in a fork of this process, and wait for it."""
    receive, send = os.pipe()
    begin = time.perf_counter()
    child = os.fork()
    if not child:
        os.write(send, read(path).encode("utf-8", "surrogateescape")[:4000])
        os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        said = pipe.read().decode()
    _, status, usage = os.wait4(child, 0)
    outcome = said or f"ended with {os.waitstatus_to_exitcode(status)}"
    cpu_s = usage.ru_utime + usage.ru_stime
    return Measured(outcome, time.perf_counter() - begin, cpu_s, usage.ru_maxrss << 10)


def make_in_a_fork(make: Make, folder: Path) -> Path:
    """Make a file without leaving its making in this process's memory."""
    child = os.fork()
    if not child:
        os._exit(bool(make(folder) is None))
    assert os.waitpid(child, 0)[1] == 0
    found = folder / "bomb.st"
    return found if os.path.lexists(found) else make(folder)


def main() -> None:
    """Measure all bombs, and first what a process has that reads nothing; one JSON line each."""
    gc.collect()
    gc.freeze()  # or each fork would copy this process's memory to look for garbage
    with tempfile.TemporaryDirectory() as folder:
        nothing = measure(Path(folder) / "missing.st")
        print(json.dumps({"name": "nothing"} | asdict(nothing)), flush=True)
    for name, make in BOMBS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = make_in_a_fork(make, Path(folder))
            print(json.dumps({"name": name} | asdict(measure(path))), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
