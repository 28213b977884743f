"""Every file of tests/vectors does what it must, by two readers; and the spec is still true."""

import base64
import hashlib
import json
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from shared import contents, envelope, manifest, names, pieces, signature, strict_json
from shared.bundle import MAX_HEADER_BYTES, STEPS, open_bundle
from shared.errors import BundleError, SignatureError
from shared.sizes import LIMITS
from shared.slm import CLASSES
from shared.tensors import read_tensor
from tests.vectors.build import Parts, build

FOLDER = Path(__file__).parent / "vectors"
SPEC = (Path(__file__).parent.parent / "docs" / "bundle-format.md").read_text(encoding="utf-8")
VECTORS = json.loads((FOLDER / "vectors.json").read_text(encoding="utf-8"))
KEY = signature.read_public_key(FOLDER / "provider.pub")


def check_everything(path):
    """Read tensor by tensor, and all at once: both must refuse, with the same words."""
    with open_bundle(path, [KEY]) as bundle:
        try:
            for name in bundle.names:
                read_tensor(bundle, name)
        except BundleError as error:
            with pytest.raises(BundleError, match=re.escape(str(error))):
                bundle.verify_all()
            raise
        bundle.verify_all()


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["file"] for vector in VECTORS])
def test_a_vector_is_accepted_or_refused_at_its_step(vector):
    path = FOLDER / vector["file"]
    if vector["expect"] == "accept":
        check_everything(path)
        return
    with pytest.raises(BundleError) as error:
        check_everything(path)
    message = str(error.value)
    if vector["expect"] == "signature":
        assert isinstance(error.value, SignatureError)
        message = message.replace(": signed by unknown key", ": signature: signed by unknown key")
    assert message.startswith(f"{path}: {vector['expect']}: ")


def test_every_step_but_opening_has_a_vector():
    assert {vector["expect"] for vector in VECTORS} == {"accept", *STEPS} - {"file"}


def test_the_vectors_are_what_the_script_builds(tmp_path):
    build(tmp_path)
    built = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
    del kept["build.py"]
    assert built == kept
    assert set(kept) == {"vectors.json", "provider.pub", *(vector["file"] for vector in VECTORS)}


def test_a_link_to_a_good_vector_is_refused(tmp_path):
    (tmp_path / "link.st").symlink_to(FOLDER / "slm.st")
    with pytest.raises(BundleError, match="link.st: file: "):
        open_bundle(tmp_path / "link.st", [KEY])


# A second reader, from the spec alone: standard library, numpy, and an Ed25519 verifier.

SIZES = {"I64": 8, "F32": 4, "BF16": 2, "F16": 2, "U16": 2, "U8": 1}


def parameters(model):
    """§7's table of parameter shapes, and the linear layers in module order."""
    D, F, V = model["width"], model["ffn_width"], model["vocab_size"]
    llama = model["architecture"] == "llama"
    mlp = {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
    mlp = mlp if llama else {"c_fc": (F, D), "c_proj": (D, F)}
    shapes = {"model.embed_tokens.weight": (V, D)}
    norms, linears = ["model.norm"], []
    for layer in range(model["n_layers"]):
        prefix = f"model.layers.{layer}."
        norms += [prefix + "input_layernorm", prefix + "post_attention_layernorm"]
        inside = {f"self_attn.{x}_proj": (D, D) for x in "qkvo"} | {f"mlp.{x}": s for x, s in mlp.items()}
        for name, shape in inside.items():
            shapes[f"{prefix}{name}.weight"] = shape
            linears.append(prefix + name)
    for norm in norms:
        shapes |= {f"{norm}.{x}": (D,) for x in (["weight"] if llama else ["weight", "bias"])}
    return shapes, linears


def implied(m):
    """§7: the tensors of a manifest, name -> (types, shape)."""
    weight, found = ("F32", "BF16", "F16"), {}
    shapes, linears = parameters(m["model"])
    projection = m.get("projection", {"linears": []})
    assert (m["kind"] == "pn") == bool(projection["linears"])
    assert projection["linears"] == [name for name in linears if name in projection["linears"]]
    experts = [f"experts.{i}." for i in range(m["n_experts"])]
    prefixes = {"mix": experts, "replay": []}.get(m["kind"], ["shared."])
    if m["kind"] == "replay":
        n_tokens, n_windows = m["replay"]["tokens"], m["replay"]["windows"]
        assert n_tokens >= 1
        assert m["model"]["vocab_size"] <= 65536
        found["replay.tokens"] = (("U16",), (n_tokens,))
        found |= {f"replay.{name}": (("I64",), (n_windows,)) for name in ("lengths", "clusters")}
    for prefix in prefixes + [f"{system}." for system in m["comparison"]]:
        for name, shape in shapes.items():
            if prefix != "shared." or name.removesuffix(".weight") not in projection["linears"]:
                found[prefix + name] = (weight, shape)
    for name in projection["linears"]:
        M, H = projection["expert_size"], projection["capacity"]
        found["experts.vectors"] = (weight, (m["n_experts"], M))
        found[f"projected.{name}.mixing"] = (weight, (M, H))
        found[f"projected.{name}.bank"] = (weight, (H, *shapes[f"{name}.weight"]))
    n = m["clusters"]["n"]
    found |= {"clusters.centroids": (("F32",), (n, 384)), "clusters.counts": (("I64",), (n,))}
    files = ["tokenizer.json"] + ["embedder.safetensors", "embedder-vocab.txt"] * m["embedder"]["embedded"]
    return found | {f"files.{file}": (("U8",), None) for file in files}


def no_duplicates(pairs):
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def second_reader(content, public):
    """§8 in one breath; an AssertionError, ValueError, KeyError or InvalidSignature is a refusal."""
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    assert 8 <= length <= min(4 << 20, len(content) - 8)
    header, data = content[8 : 8 + length], content[8 + length :]
    parsed = json.loads(header.decode("ascii"), object_pairs_hook=no_duplicates)
    text = parsed["__metadata__"]["planearly-bundle"]
    e = json.loads(text, object_pairs_hook=no_duplicates)
    payload, (s,) = base64.b64decode(e["payload"], validate=True), e["signatures"]
    kind = "application/vnd.planearly.bundle.v1+json"
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    raw = public.public_bytes_raw()
    assert s["keyid"] == hashlib.sha256(b"planearly-bundle/v1 key\n" + raw).hexdigest()[:16]
    public.verify(base64.b64decode(s["sig"], validate=True), message)
    m = json.loads(payload, object_pairs_hook=no_duplicates)
    assert json.dumps(m, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() == payload
    assert m["format"] == "planearly-bundle/v1"
    fields = set(re.findall(r"^\| `(\w+)` \| (?:text|integer|object|list) ", SPEC, re.M))
    fields -= {field for kind, field in (("pn", "projection"), ("replay", "replay")) if m["kind"] != kind}
    assert {field for field in m if not field.startswith("x-")} == fields
    assert type(m["version"]) is int
    assert m["license"].isprintable()
    assert m["model"]["width"] <= 32768
    assert m["n_experts"] == (1 if m["kind"] in ("slm", "replay") else m["clusters"]["n"])
    rules, start, entries = implied(m), 0, {}
    assert set(rules) == set(m["tensors"])
    order = sorted(m["tensors"], key=lambda name: (list(SIZES).index(m["tensors"][name]["dtype"]), name))
    for name in order:
        t, (types, shape) = m["tensors"][name], rules[name]
        assert t["dtype"] in types
        assert len(t["shape"]) == 1 if shape is None else tuple(t["shape"]) == shape
        end = start + int(np.prod(t["shape"])) * SIZES[t["dtype"]]
        assert t["offsets"] == [start, end]
        entries[name] = {"dtype": t["dtype"], "shape": t["shape"], "data_offsets": [start, end]}
        start = end
    sig = {"keyid": s["keyid"], "sig": base64.b64encode(base64.b64decode(s["sig"])).decode()}
    again = {"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": [sig]}
    metadata = {"planearly-bundle": json.dumps(again, separators=(",", ":"))}
    rebuilt = json.dumps({"__metadata__": metadata} | entries, separators=(",", ":")).encode()
    assert rebuilt + b" " * (-len(rebuilt) % 8) == header
    assert len(data) == start
    for name, entry in entries.items():
        part = data[slice(*entry["data_offsets"])]
        assert hashlib.sha256(part).hexdigest() == m["tensors"][name]["sha256"]
        if name == "clusters.centroids":
            assert np.square(np.frombuffer(part, "<f4").reshape(-1, 384), dtype=float).sum(1).max() <= 1.01
        if entry["dtype"] in ("F32", "F16"):
            assert np.isfinite(np.frombuffer(part, "<f4" if entry["dtype"] == "F32" else "<f2")).all()
        elif entry["dtype"] == "BF16":
            assert (np.frombuffer(part, "<u2") & 0x7F80 != 0x7F80).all()
        elif name == "replay.tokens":
            assert np.frombuffer(part, "<u2").max() < m["model"]["vocab_size"]
        elif name == "replay.lengths":
            lengths = np.frombuffer(part, "<i8")
            assert 1 <= lengths.min() <= lengths.max() <= m["model"]["context_tokens"]
            assert lengths.sum() == m["replay"]["tokens"]
        elif name == "replay.clusters":
            assert (
                0 <= np.frombuffer(part, "<i8").min() <= np.frombuffer(part, "<i8").max() < m["clusters"]["n"]
            )
        elif name == "clusters.counts":
            counts = np.frombuffer(part, "<i8").tolist()
            assert min(counts) >= 0
            assert sum(counts) == m["clusters"]["corpus_windows"]


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["file"] for vector in VECTORS])
def test_a_second_reader_agrees(vector):
    content = (FOLDER / vector["file"]).read_bytes()
    public = load_pem_public_key((FOLDER / "provider.pub").read_bytes())
    try:
        second_reader(content, public)
        accepted = True
    except (AssertionError, ValueError, KeyError, TypeError, RecursionError, struct.error, InvalidSignature):
        accepted = False
    assert accepted == (vector["expect"] == "accept")


# The spec


def example_blocks():
    """The four blocks of §2, made from the vector."""
    content = (FOLDER / "slm.st").read_bytes()
    lines = []
    for at in range(0, 64, 16):
        row = content[at : at + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}  {row[:8].hex(' ')}  {row[8:].hex(' ')}  |{shown}|")
    parts = Parts(content)
    cut = {**parts.envelope, "payload": parts.envelope["payload"][:24] + "..."}
    tensors = parts.manifest.pop("tensors")
    listed = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in tensors.items())
    fields = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in parts.manifest.items())
    head, tail = fields.split('\n "tokenizer":')
    whole = f'{{\n{head}\n "tensors": {{\n{listed}\n }},\n "tokenizer":{tail}\n}}'
    key = (FOLDER / "provider.pub").read_text().strip()
    return {
        "HEXDUMP": "\n".join(lines),
        "ENVELOPE": json.dumps(cut, indent=1),
        "MANIFEST": whole,
        "KEY": key,
    }


def test_the_example_in_the_spec_is_the_vector():
    for block in example_blocks().values():
        assert f"\n{block}\n```" in SPEC


def test_the_manifest_in_the_spec_is_the_payload():
    shown = next(
        json.loads(block) for block in re.findall(r"```json\n(.*?)```", SPEC, re.S) if "format" in block
    )
    payload = base64.b64decode(Parts((FOLDER / "slm.st").read_bytes()).envelope["payload"])
    assert json.dumps(shown, sort_keys=True, separators=(",", ":")).encode() == payload


def test_the_key_id_in_the_spec_is_the_vectors():
    assert KEY.key_id in SPEC.split("## 3.")[0]


def test_the_steps_of_the_spec_are_those_of_the_reader():
    section = SPEC.split("## 8.")[1].split("## 9.")[0]
    assert tuple(re.findall(r"^\d+\. \*\*(.+?)\*\*", section, re.M)) == STEPS


def test_the_fields_of_the_spec_are_those_of_the_reader():
    section = SPEC.split("## 6.")[1].split("## 7.")[0]
    fields = re.findall(r"^\| `(\w+)` \|", section, re.M)
    assert sorted(fields) == sorted([*manifest.FIELDS, *manifest.EXTRA_FIELDS.values()])
    training = next(line for line in section.splitlines() if line.startswith("| `training`"))
    assert [name for name in re.findall(r"`(\w+)`", training) if name != "training"][:2] == [
        "corpus",
        "sources",
    ]
    for field in manifest.TRAINING_FIELDS:
        assert f"`{field}`" in training


def test_the_numbers_of_the_spec_are_those_of_the_code():
    prefix = json.dumps(signature.KEY_ID_PREFIX.decode())
    for text in (
        f"Identifier: `{manifest.FORMAT}`",
        f'"payloadType":"{envelope.MEDIA_TYPE}"',
        f"exactly one key `{envelope.METADATA_KEY}`",
        f"| header | {MAX_HEADER_BYTES} bytes |",
        f"from 8 to {MAX_HEADER_BYTES}",
        f"nested at most {strict_json.MAX_DEPTH} levels deep",
        f"| tensors | {contents.MAX_TENSORS} |",
        f"| clusters and experts | {manifest.MAX_CLUSTERS} |",
        f"`n` (1 to {manifest.MAX_CLUSTERS})",
        f"1 to {names.MAX_VERSION};",
        f"1 to {manifest.MAX_TEXT_CHARACTERS} characters",
        f"`capacity` H (1 to {manifest.MAX_CAPACITY})",
        f"`expert_size` M (1 to {manifest.MAX_EXPERT_SIZE})",
        f"sum to at most {contents.MAX_SQUARED_NORM};",
        f"A piece is 1 to {pieces.MAX_PIECE_CHARACTERS}\ncharacters",
        f"log probability is from {pieces.MIN_SCORE:.0f} to 0",
        f"at most {strict_json.MAX_DEPTH - 1} objects and lists inside one another",
        f"`width` W ({manifest.WIDTH})",
        f"`sub_window_pieces` ({manifest.SUB_WINDOW_PIECES})",
        f"`name` (`{manifest.NAME}`)",
        ", ".join(manifest.DTYPES) + ", then by name",
        f"first {signature.KEY_ID_HEX} hex digits of `SHA-256({prefix} || key)`",
        " or ".join(f"`{name}`" for name in CLASSES),
        f"`tokens` T (1 to {manifest.MAX_REPLAY_TOKENS})",
        f"`model.vocab_size` is then at most {manifest.MAX_REPLAY_VOCAB}",
    ):
        assert text in SPEC
    for name, limit in LIMITS.items():
        low = 3 if name == "vocab_size" else 1
        assert re.search(rf"`{name}` ?[DNFV]? \({low} to {limit}\)", SPEC)
    for file, limit in contents.FILES.items():
        row = next(line for line in SPEC.splitlines() if line.startswith(f"| `files.{file}`"))
        assert f"1 to {limit} bytes" in row
    for kind in manifest.KINDS:
        assert f"`{kind}` (" in SPEC


def test_the_vectors_stay_small():
    assert sum(os.path.getsize(path) for path in FOLDER.iterdir() if path.is_file()) < 800_000
