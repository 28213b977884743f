"""Rebuilds every file of this folder, bit for bit: `make vectors`, then `git diff` must be empty.

Good bundles are written by shared/bundle.py; bad ones are those, cut up with nothing but the standard
library, and signed again where the damage is to be under the signature. The key is no secret.
"""

import base64
import copy
import hashlib
import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from provider.bundling import write_bundle
from provider.signing import SigningKey
from shared.signature import pae, public_key_pem
from shared.sizes import SlmConfig, parameter_shapes

FOLDER = Path(__file__).parent
MEDIA_TYPE = "application/vnd.planearly.bundle.v1+json"
LLAMA = SlmConfig("llama", 1, 8, 2, 11, 13, 16)
STARCODER2 = SlmConfig("starcoder2", 1, 4, 2, 5, 7, 16)
REPLAY_LENGTHS = (16, 1, 5)
"""Tokens of the windows in `replay.st`; LLAMA's context is 16."""
ORDER_OF_ED25519 = 2**252 + 27742317777372353535851937790883648493


def make_key(name: str) -> SigningKey:
    """A key that anyone can make again from its name."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


PROVIDER, STRANGER = make_key("planearly test vectors: provider"), make_key("stranger")


def example_manifest(kind: str, config: SlmConfig, n: int, **changes: Any) -> dict[str, Any]:
    """What a provider gives to `write_bundle`."""
    manifest: dict[str, Any] = {
        "name": f"vector-{kind}",
        "version": 1,
        "created": "2026-11-21T00:00:00Z",
        "license": "CC0-1.0",
        "kind": kind,
        "model": config.to_dict(),
        "n_experts": 1 if kind == "slm" else n,
        "comparison": [],
        "tokenizer": {"type": "unigram", "file": "tokenizer.json"},
        "embedder": {
            "name": "all-MiniLM-L6-v2",
            "sha256": hashlib.sha256(b"no embedder").hexdigest(),
            "width": 384,
            "sub_window_pieces": 254,
            "embedded": False,
        },
        "clusters": {"n": n, "corpus_windows": n * (n + 1) // 2},
        "training": {
            "corpus": "made up",
            "sources": [{"name": "nobody's text", "license": "CC0-1.0"}],
            "seed": 0,
            "steps": 7,
            "tokens": 1024,
            "learning_rate": 0.001,
            "rows_per_step": 8,
            "heldout_loss": 2.5,
            "heldout_loss_per_cluster": [2.25] * (n - 1) + [None],
        },
    }
    if kind == "replay":
        manifest["replay"] = {"tokens": sum(REPLAY_LENGTHS), "windows": len(REPLAY_LENGTHS)}
        manifest["training"] = {key: manifest["training"][key] for key in ("corpus", "sources", "seed")}
        manifest["n_experts"] = 1
    return manifest | changes


def fill(shape: Iterable[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small numbers without a random generator, exact in every type."""
    size = torch.Size(shape)
    return ((torch.arange(size.numel()) * 7919 % 509 - 254) / 256).to(dtype).reshape(size)


def example_tensors(manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors that go with an example manifest."""
    shapes = parameter_shapes(SlmConfig.from_dict(manifest["model"]))
    n, projection = manifest["clusters"]["n"], manifest.get("projection")
    linears = projection["linears"] if projection else []
    tensors = {
        "clusters.centroids": fill((n, 384)) / 16,
        "clusters.counts": torch.arange(1, n + 1),
        "files.tokenizer.json": torch.tensor(list(b'{"pieces":[]}'), dtype=torch.uint8),
    }
    prefixes = [f"{system}." for system in manifest["comparison"]]
    if manifest["kind"] == "replay":
        vocab_size = manifest["model"]["vocab_size"]
        tensors["replay.tokens"] = (torch.arange(sum(REPLAY_LENGTHS)) % vocab_size).to(torch.uint16)
        tensors["replay.lengths"] = torch.tensor(REPLAY_LENGTHS)
        tensors["replay.clusters"] = torch.arange(len(REPLAY_LENGTHS)) % n
    elif manifest["kind"] == "mix":
        prefixes += [f"experts.{i}." for i in range(n)]
    else:
        prefixes.append("shared.")
    for prefix in prefixes:
        for name, shape in shapes.items():
            if prefix != "shared." or name.removesuffix(".weight") not in linears:
                tensors[prefix + name] = fill(shape, torch.bfloat16)
    if projection:
        m, h = projection["expert_size"], projection["capacity"]
        tensors["experts.vectors"] = fill((n, m))
        for linear in linears:
            tensors[f"projected.{linear}.mixing"] = fill((m, h))
            tensors[f"projected.{linear}.bank"] = fill((h, *shapes[f"{linear}.weight"]), torch.float16)
    if manifest["embedder"]["embedded"]:
        tensors["files.embedder.safetensors"] = torch.zeros(5, dtype=torch.uint8)
        tensors["files.embedder-vocab.txt"] = torch.tensor(list(b"[PAD]\n"), dtype=torch.uint8)
    return tensors


def accepted() -> dict[str, dict[str, Any]]:
    """The good manifests by file name."""
    down = {"capacity": 2, "expert_size": 5, "linears": ["model.layers.0.mlp.down_proj"]}
    both = {
        "capacity": 3,
        "expert_size": 2,
        "linears": ["model.layers.0.mlp.c_fc", "model.layers.0.mlp.c_proj"],
    }
    full = example_manifest("pn", STARCODER2, 3, name="vector-full", comparison=["slm"], projection=both)
    full["embedder"]["embedded"] = True
    full["x-note"] = {"any": [1, 2.5, True, None, "text"]}
    return {
        "slm.st": example_manifest("slm", LLAMA, 1),
        "pn.st": example_manifest("pn", LLAMA, 3, projection=down),
        "mix.st": example_manifest("mix", STARCODER2, 2),
        "full.st": full,
        "replay.st": example_manifest("replay", LLAMA, 2),
    }


class Parts:
    """A bundle taken apart, to be damaged and put together again."""

    def __init__(self, content: bytes) -> None:
        (length,) = struct.unpack("<Q", content[:8])
        self.header: dict[str, Any] = json.loads(content[8 : 8 + length])
        self.data = content[8 + length :]
        self.envelope = json.loads(self.header["__metadata__"]["planearly-bundle"])
        self.manifest = json.loads(base64.b64decode(self.envelope["payload"]))

    def sign(self, payload: bytes | None = None, key: SigningKey = PROVIDER) -> "Parts":
        """Sign the payload, or the manifest as it is now, and let the header follow it."""
        if payload is None:
            payload = compact(self.manifest, sort_keys=True).encode()
            entries = self.manifest.get("tensors", {})
            self.header = {"__metadata__": {}} | {
                name: {key: entry[key] for key in ("dtype", "shape")} | {"data_offsets": entry["offsets"]}
                for name, entry in sorted(entries.items(), key=lambda item: item[1]["offsets"])
            }
        self.envelope["payload"] = base64.b64encode(payload).decode()
        signature = base64.b64encode(key.sign(pae(MEDIA_TYPE, payload))).decode()
        self.envelope["signatures"] = [{"keyid": key.public_key.key_id, "sig": signature}]
        return self

    def header_text(self) -> str:
        """The header with the envelope as it is now."""
        metadata = {"planearly-bundle": compact(self.envelope)}
        return compact({**self.header, "__metadata__": metadata})

    def join(self, header: str | None = None) -> bytes:
        """The file's bytes."""
        text = (self.header_text() if header is None else header).encode("utf-8", "surrogatepass")
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + self.data

    def set_data(self, name: str, content: bytes) -> "Parts":
        """Overwrite a tensor's bytes and correct its digest."""
        entry = self.manifest["tensors"][name]
        start, end = entry["offsets"]
        content = content + self.data[start + len(content) : end]
        self.data = self.data[:start] + content + self.data[end:]
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        return self


def compact(value: Any, sort_keys: bool = False) -> str:
    """JSON without white space."""
    return json.dumps(value, separators=(",", ":"), sort_keys=sort_keys)


def refused(good: dict[str, bytes]) -> dict[str, tuple[str, bytes]]:
    """The bad files: name -> the step that must refuse it, and its bytes."""
    slm = good["slm.st"]
    header_length = struct.unpack("<Q", slm[:8])[0]
    norm = "shared.model.norm.weight"

    def edit(change: Callable[[Parts], Any], source: bytes = slm) -> bytes:
        parts = Parts(source)
        result = change(parts)
        return result if isinstance(result, bytes) else parts.join()

    def envelope(**changes: Any) -> bytes:
        return edit(lambda p: p.envelope.update(changes))

    def entry(**changes: Any) -> bytes:
        return edit(lambda p: p.envelope["signatures"][0].update(changes))

    def manifest(change: Callable[[dict[str, Any]], Any], source: bytes = slm) -> bytes:
        return edit(lambda p: (change(p.manifest), p.sign(), None)[-1], source)

    def payload(change: Callable[[bytes], bytes]) -> bytes:
        return edit(lambda p: p.sign(change(base64.b64decode(p.envelope["payload"]))).join())

    def text(change: Callable[[str], str]) -> bytes:
        return edit(lambda p: p.join(change(p.header_text())))

    def resize(name: str, extra: int) -> bytes:
        """Make the file's last tensor longer, everything else consistent."""

        def change(p: Parts) -> None:
            p.data += b"x" * extra
            tensor = p.manifest["tensors"][name]
            tensor["offsets"][1] += extra
            tensor["shape"] = [tensor["shape"][0] + extra, 1]
            start, end = tensor["offsets"]
            tensor["sha256"] = hashlib.sha256(p.data[start:end]).hexdigest()
            p.sign()

        return edit(change)

    def values(name: str, content: bytes, source: bytes = slm) -> bytes:
        return edit(lambda p: (p.set_data(name, content).sign(), None)[-1], source)

    envelope_now = Parts(slm).envelope
    signature = envelope_now["signatures"][0]
    raw_signature = base64.b64decode(signature["sig"])
    scalar = int.from_bytes(raw_signature[32:], "little") + ORDER_OF_ED25519
    malleable = base64.b64encode(raw_signature[:32] + scalar.to_bytes(32, "little")).decode()
    loose = signature["sig"][:-3] + chr(ord(signature["sig"][-3]) + 1) + "=="
    nan, infinity = b"\x00\x00\xc0\x7f", b"\x80\x7f"
    extra = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    down = "projected.model.layers.0.mlp.down_proj."
    return {
        "empty.st": ("header size", b""),
        "seven-bytes.st": ("header size", slm[:7]),
        "header-of-100-mb.st": ("header size", struct.pack("<Q", 100_000_000) + slm[8:64]),
        "header-over-limit.st": ("header size", struct.pack("<Q", (4 << 20) + 8) + slm[8:64]),
        "header-past-end.st": ("header size", slm[: 8 + header_length - 8]),
        "header-of-odd-length.st": ("header size", struct.pack("<Q", header_length + 1) + slm[8:]),
        "header-not-json.st": ("header", text(lambda t: t[:-1])),
        "header-is-a-list.st": ("header", text(lambda t: f"[{t}]")),
        "header-with-nan.st": ("header", text(lambda t: t[:-1] + ',"x":NaN}')),
        "header-too-deep.st": ("header", text(lambda t: t[:-1] + ',"x":' + "[" * 2000 + "]" * 2000 + "}")),
        "duplicate-tensor.st": ("header", text(lambda t: f'{t[:-1]},"{norm}":{compact(extra)}}}')),
        "duplicate-metadata-key.st": (
            "header",
            text(lambda t: t.replace('{"planearly-bundle":', '{"planearly-bundle":"","planearly-bundle":')),
        ),
        "second-metadata-key.st": (
            "header",
            text(lambda t: t.replace('{"planearly-bundle":', '{"format":"pt","planearly-bundle":')),
        ),
        "metadata-key-v2.st": (
            "header",
            text(lambda t: t.replace('{"planearly-bundle', '{"planearly-bundle2')),
        ),
        "envelope-not-text.st": (
            "header",
            edit(lambda p: p.join(compact({"__metadata__": {"planearly-bundle": 1}}))),
        ),
        "envelope-unknown-field.st": ("envelope", envelope(note="")),
        "envelope-type-v2.st": ("envelope", envelope(payloadType=MEDIA_TYPE.replace("v1", "v2"))),
        "envelope-without-signature.st": ("envelope", envelope(signatures=[])),
        "envelope-two-signatures.st": ("envelope", envelope(signatures=[signature, signature])),
        "envelope-duplicate-key.st": (
            "envelope",
            text(lambda t: t.replace('{\\"payload\\"', '{\\"payload\\":\\"\\",\\"payload\\"')),
        ),
        "signature-unknown-field.st": ("envelope", entry(alg="none")),
        "signature-key-id-upper-case.st": ("envelope", entry(keyid=signature["keyid"].upper())),
        "signature-loose-base64.st": ("envelope", entry(sig=loose)),
        "signature-with-line-break.st": ("envelope", entry(sig=signature["sig"] + "\n")),
        "signature-too-short.st": ("envelope", entry(sig=signature["sig"][:-4])),
        "payload-url-safe-base64.st": ("envelope", envelope(payload="-_" + envelope_now["payload"][2:])),
        "signature-flipped-bit.st": (
            "signature",
            entry(sig=base64.b64encode(bytes([raw_signature[0] ^ 1]) + raw_signature[1:]).decode()),
        ),
        "signature-of-another-bundle.st": (
            "signature",
            envelope(signatures=Parts(good["mix.st"]).envelope["signatures"]),
        ),
        "signature-malleable.st": ("signature", entry(sig=malleable)),
        "signature-without-type.st": (
            "signature",
            entry(sig=base64.b64encode(PROVIDER.sign(base64.b64decode(envelope_now["payload"]))).decode()),
        ),
        "unknown-key.st": ("signature", edit(lambda p: (p.sign(key=STRANGER), None)[-1])),
        "edited-manifest.st": (
            "signature",
            envelope(
                payload=base64.b64encode(
                    base64.b64decode(envelope_now["payload"]).replace(b'"version":1', b'"version":2')
                ).decode()
            ),
        ),
        "manifest-v2.st": ("manifest", manifest(lambda m: m.update(format="planearly-bundle/v2"))),
        "manifest-unknown-field.st": ("manifest", manifest(lambda m: m.update(notes=""))),
        "manifest-missing-field.st": ("manifest", manifest(lambda m: m.pop("license"))),
        "manifest-with-spaces.st": ("manifest", payload(lambda b: b.replace(b",", b", ", 1))),
        "manifest-duplicate-key.st": ("manifest", payload(lambda b: b[:-1] + b',"version":1}')),
        "manifest-long-number.st": ("manifest", payload(lambda b: b.replace(b"2.5,", b"2.50,"))),
        "manifest-not-ascii.st": ("manifest", payload(lambda b: b.replace(b"made up", "é".encode()))),
        "manifest-control-character.st": ("manifest", manifest(lambda m: m.update(license="\x1b[2J"))),
        "manifest-version-is-true.st": ("manifest", manifest(lambda m: m.update(version=True))),
        "manifest-two-experts-of-slm.st": ("manifest", manifest(lambda m: m.update(n_experts=2))),
        "model-too-wide.st": ("manifest", manifest(lambda m: m["model"].update(width=1 << 20))),
        "projection-of-no-layer.st": (
            "tensors",
            manifest(lambda m: m["projection"].update(linears=["lm_head"]), good["pn.st"]),
        ),
        "extra-tensor.st": (
            "tensors",
            manifest(lambda m: m["tensors"].update({"files.evil": m["tensors"]["files.tokenizer.json"]})),
        ),
        "missing-tensor.st": ("tensors", manifest(lambda m: m["tensors"].pop("files.tokenizer.json"))),
        "wrong-shape.st": ("tensors", manifest(lambda m: m["tensors"][norm].update(shape=[4, 2]))),
        "transposed-bank.st": (
            "tensors",
            manifest(lambda m: m["tensors"][down + "bank"].update(shape=[2, 11, 8]), good["pn.st"]),
        ),
        "wrong-type.st": ("tensors", manifest(lambda m: m["tensors"][norm].update(dtype="I64"))),
        "file-with-two-axes.st": ("tensors", resize("files.tokenizer.json", 2)),
        "overlapping-tensors.st": (
            "tensors",
            manifest(lambda m: m["tensors"][norm].update(offsets=[16, 32])),
        ),
        "header-extra-tensor.st": ("rebuilt header", text(lambda t: f'{t[:-1]},"x":{compact(extra)}}}')),
        "header-other-type.st": (
            "rebuilt header",
            text(lambda t: t.replace('"dtype":"BF16"', '"dtype":"F16"', 1)),
        ),
        "header-with-leading-space.st": ("rebuilt header", text(lambda t: " " + t)),
        "header-with-longer-padding.st": ("rebuilt header", text(lambda t: t + " " * 16)),
        "envelope-with-spaces.st": (
            "rebuilt header",
            text(lambda t: t.replace('{\\"payload', '{ \\"payload')),
        ),
        "trailing-byte.st": ("length", slm + b"\x00"),
        "cut-short.st": ("length", slm[:-1]),
        "no-data.st": ("length", slm[: 8 + header_length]),
        "flipped-data-byte.st": ("digest", slm[:-1] + bytes([slm[-1] ^ 1])),
        "nan-in-centroids.st": ("values", values("clusters.centroids", nan)),
        "infinity-in-weight.st": ("values", values(norm, infinity)),
        # The squares of 384 components of 33/640 sum to 1.021.
        "centroid-too-long.st": ("values", values("clusters.centroids", struct.pack("<f", 33 / 640) * 384)),
        "negative-count.st": ("values", values("clusters.counts", struct.pack("<qq", -1, 4), good["pn.st"])),
        "replay-token-beyond-vocabulary.st": (
            "values",
            values("replay.tokens", struct.pack("<H", LLAMA.vocab_size), good["replay.st"]),
        ),
        "replay-lengths-of-other-sum.st": (
            "values",
            values("replay.lengths", struct.pack("<q", 15), good["replay.st"]),
        ),
        "replay-window-too-long.st": (
            "values",
            values("replay.lengths", struct.pack("<qqq", 17, 1, 4), good["replay.st"]),
        ),
        "replay-empty-window.st": (
            "values",
            values("replay.lengths", struct.pack("<qqq", 16, 0, 6), good["replay.st"]),
        ),
        "replay-cluster-of-none.st": (
            "values",
            values("replay.clusters", struct.pack("<q", 2), good["replay.st"]),
        ),
        "replay-with-weights.st": (
            "tensors",
            manifest(
                lambda m: m["tensors"].update({norm: m["tensors"]["clusters.counts"]}), good["replay.st"]
            ),
        ),
        "replay-of-no-token.st": (
            "manifest",
            manifest(lambda m: m["replay"].update(tokens=0), good["replay.st"]),
        ),
        "replay-vocabulary-too-large.st": (
            "manifest",
            manifest(lambda m: m["model"].update(vocab_size=65_537), good["replay.st"]),
        ),
        "slm-with-replay.st": (
            "manifest",
            manifest(lambda m: m.update(replay={"tokens": 22, "windows": 3})),
        ),
        "counts-of-other-sum.st": ("values", values("clusters.counts", struct.pack("<q", 2))),
    }


def build(folder: Path) -> None:
    """Write all files, and `vectors.json` that says what a reader must do with each."""
    rows = []
    good = {}
    for name, manifest in accepted().items():
        write_bundle(folder / name, copy.deepcopy(manifest), example_tensors(manifest), PROVIDER)
        (folder / name).chmod(0o644)
        good[name] = (folder / name).read_bytes()
        rows.append({"file": name, "expect": "accept"})
    for name, (step, content) in refused(good).items():
        (folder / name).write_bytes(content)
        rows.append({"file": name, "expect": step})
    (folder / "provider.pub").write_bytes(public_key_pem(PROVIDER.public_key))
    (folder / "vectors.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build(FOLDER)
