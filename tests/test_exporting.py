"""Every form that a model can be exported in, run in the runtime that it is for, beside the original."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from pydoc_data.topics import topics
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import MambaConfig, MambaForCausalLM

from owner.isolation.places import make_places
from owner.models import exporting, onnx_file
from owner.models.checking import compare_logits, continue_greedily
from owner.models.exporting import EXPORT_FILE, ONNX_FILE, export, summarize_export
from owner.models.gguf_file import token_table, write_gguf
from owner.models.loading import load
from owner.models.onnx_file import write_onnx
from owner.models.running import LlamaCpp, OnnxRuntime, has_llama_cpp, torch_logits
from owner.training.unfinished import RUN_FILE
from shared.errors import PlanearlyError
from shared.pieces import BOS_ID, BYTE_PIECES, EOS_ID
from tests.conftest import make_pieces
from tests.parties import run
from tests.specialized import make_specialized, save_other
from tests.tiny import quiet

CPU = torch.device("cpu")
ROUNDED = {"f32": 1e-4, "f16": 0.05, "bf16": 0.5}
"""Largest logit difference seen here is a tenth of it."""
needs_llama_cpp = pytest.mark.skipif(not has_llama_cpp(), reason="needs llama-cpp-python: make llamacpp")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_specialized(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def starcoder2(made, tmp_path_factory):
    return save_other(made.out, tmp_path_factory.mktemp("starcoder2") / "out", "starcoder2", 32)


def exported(folder, out, form, kind, data=None):
    with mock.patch.dict(os.environ):  # where temporary files go is a matter of the process
        make_places(out)
        return export(folder, out, form, kind, data, quiet)


@pytest.fixture(scope="module")
def first(made, tmp_path_factory):
    """Return the folder of an export of each kind, compared on documents, made when it is first asked for."""
    folder, found = tmp_path_factory.mktemp("first"), {}

    def give(form, kind):
        if (form, kind) not in found:
            found[form, kind] = folder / f"{form}-{kind}" / "out"
            found[form, kind].parent.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                if kind == "f16":  # as for a model of gigabytes
                    patch.setattr(onnx_file, "INLINE_BYTES", 0)
                exported(made.out, found[form, kind], form, kind, made.others)
        return found[form, kind]

    return give


FORMS = [
    ("safetensors", "f32"),
    ("safetensors", "f16"),
    ("safetensors", "bf16"),
    ("onnx", "f32"),
    ("onnx", "f16"),
]


@pytest.mark.parametrize(("form", "kind"), FORMS)
def test_an_exported_model_says_what_the_original_says(made, first, form, kind):
    out = first(form, kind)
    found = json.loads((out / EXPORT_FILE).read_text())
    agreement = found["agreement"]
    assert agreement["windows"] > 4
    assert agreement["largest_logit_difference"] < ROUNDED[kind]
    assert agreement["perplexity"] == pytest.approx(agreement["perplexity_original"], rel=ROUNDED[kind])
    assert agreement["greedy_same"] == agreement["greedy_continuations"] == 4
    assert list(out.parent.iterdir()) == [out]
    assert (out / "onnx" / "model.onnx_data").exists() == ((form, kind) == ("onnx", "f16"))
    assert (agreement["steps"] > 40) == (form == "onnx")
    assert (out / "tokenizer.json").read_bytes() == (made.out / "model" / "tokenizer.json").read_bytes()
    assert "4 of 4 greedy continuations the same" in "\n".join(summarize_export(found))


def test_safetensors_in_float32_are_the_weights_themselves(made, tmp_path):
    exported(made.out, tmp_path / "out", "safetensors", "f32")
    before, after = (load_file(f / "model.safetensors") for f in (made.out / "model", tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("form", "kind"), [("gguf", "bf16"), ("onnx", "f32"), ("safetensors", "f16")])
def test_an_export_repeats_bit_for_bit_and_names_no_folder_of_this_machine(made, first, tmp_path, form, kind):
    exported(made.out, tmp_path / "again", form, kind, made.others)
    found = [path for path in (tmp_path / "again").rglob("*") if path.is_file()]
    files = sorted(path.relative_to(tmp_path / "again") for path in found)
    assert len(files) >= 2
    for name in files:
        content = (tmp_path / "again" / name).read_bytes()
        assert content == (first(form, kind) / name).read_bytes()
        assert str(Path(__file__).parent.parent).encode() not in content
        assert b"site-packages" not in content


@pytest.fixture(scope="module")
def graphs(made, starcoder2, first, tmp_path_factory):
    """Return an ONNX file of each architecture."""
    other = tmp_path_factory.mktemp("graphs") / "model.onnx"
    write_onnx(other, load(starcoder2, CPU).module, BOS_ID)
    return {"llama": first("onnx", "f32") / ONNX_FILE, "starcoder2": other}


def test_an_onnx_graph_has_the_names_of_optimum(first):
    graph = onnx.load(first("onnx", "f32") / ONNX_FILE).graph
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    everything = "past_sequence_length + sequence_length"
    assert axes == {  # optimum/exporters/onnx/config.py, base.py: TextDecoderOnnxConfig, add_past_key_values
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", everything],
        "position_ids": ["batch_size", "sequence_length"],
        "past_key_values.0.key": ["batch_size", 2, "past_sequence_length", 16],
        "past_key_values.0.value": ["batch_size", 2, "past_sequence_length", 16],
        "logits": ["batch_size", "sequence_length", 400],
        "present.0.key": ["batch_size", 2, everything, 16],
        "present.0.value": ["batch_size", 2, everything, 16],
    }


@pytest.mark.parametrize("architecture", ["llama", "starcoder2"])
def test_rows_of_different_lengths_padded_on_the_left_go_on_as_the_original_does(
    made, starcoder2, graphs, architecture
):
    runtime = OnnxRuntime(graphs[architecture])
    original = torch_logits(load(made.out if architecture == "llama" else starcoder2, CPU).module)
    rows = [np.random.default_rng(n).integers(3, 300, n).tolist() for n in (1, 5, 12)]
    ids = np.array([[EOS_ID] * (12 - len(row)) + row for row in rows])
    mask = np.array([[0] * (12 - len(row)) + [1] * len(row) for row in rows])
    position, past = (
        np.maximum(mask.cumsum(1) - 1, 0),
        {name: np.repeat(nothing, len(rows), 0) for name, nothing in runtime.nothing.items()},
    )
    for _ in range(4):
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position}
        logits, *present = runtime.session.run(None, inputs | past)
        assert np.isfinite(logits).all()
        for row, found in zip(rows, logits, strict=True):
            n_new = min(len(row), ids.shape[1])
            np.testing.assert_allclose(found[-n_new:], original(row)[-n_new:], atol=1e-4)
        ids = logits[:, -1:].argmax(2)
        rows = [[*row, int(new)] for row, (new,) in zip(rows, ids, strict=True)]
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        position, past = mask.sum(1, keepdims=True) - 1, dict(zip(past, present, strict=True))


def test_a_graph_that_goes_on_wrong_does_not_agree(made, first, tmp_path):
    proto = onnx.load(first("onnx", "f32") / ONNX_FILE)
    other = {
        "past_key_values.0.key": "past_key_values.0.value",
        "past_key_values.0.value": "past_key_values.0.key",
    }
    for node in proto.graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]
    onnx.save_model(proto, tmp_path / "model.onnx")
    model, broken = load(made.out, CPU), OnnxRuntime(tmp_path / "model.onnx")
    original = torch_logits(model.module)
    ids = [BOS_ID, *model.encode("the order of evaluation of the operands")]
    assert np.abs(original(ids) - broken(ids)).max() < 1e-4  # in one go nothing is kept
    assert compare_logits(original, broken, [ids])["largest_logit_difference"] > exporting.TOLERANCE["f32"]


def test_a_model_that_keeps_no_keys_and_values_has_no_onnx_here(tmp_path):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, state_size=2)
    with pytest.raises(PlanearlyError, match="MambaForCausalLM keeps no plain keys and values"):
        write_onnx(tmp_path / "model.onnx", MambaForCausalLM(config).eval(), 1)


@pytest.mark.parametrize("architecture", ["llama", "starcoder2"])
def test_a_gguf_file_holds_sizes_weights_and_tokenizer_by_llama_cpps_names(
    made, starcoder2, tmp_path, architecture
):
    model = load(made.out if architecture == "llama" else starcoder2, CPU)
    write_gguf(tmp_path / "x.gguf", model, "f32")
    reader = GGUFReader(tmp_path / "x.gguf")
    value = {name: field.contents() for name, field in reader.fields.items()}
    config = model.model.config
    assert value["general.architecture"] == architecture
    assert value[f"{architecture}.context_length"] == config.max_position_embeddings
    assert value[f"{architecture}.embedding_length"] == config.hidden_size
    assert value[f"{architecture}.block_count"] == config.num_hidden_layers
    assert value[f"{architecture}.rope.freq_base"] == 10_000.0
    assert value["tokenizer.ggml.model"] == "t5"
    assert (value["tokenizer.ggml.bos_token_id"], value["tokenizer.ggml.add_bos_token"]) == (1, True)
    assert len(value["tokenizer.ggml.tokens"]) == config.vocab_size
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    state = {name: weight.numpy() for name, weight in model.module.state_dict().items()}
    assert np.array_equal(tensors["token_embd.weight"], state["model.embed_tokens.weight"])
    assert np.array_equal(tensors["blk.0.attn_v.weight"], state["model.layers.0.self_attn.v_proj.weight"])
    assert "output.weight" not in tensors  # tied
    query = state["model.layers.0.self_attn.q_proj.weight"]
    if architecture == "starcoder2":
        assert np.array_equal(tensors["blk.0.attn_q.weight"], query)
        assert not tensors["blk.1.ffn_up.bias"].any()
    else:  # rows of a head: 0, half, 1, half + 1, ...
        half = config.hidden_size // config.num_attention_heads // 2
        assert np.array_equal(tensors["blk.0.attn_q.weight"][:4], query[[0, half, 1, half + 1]])


def test_only_characters_without_a_piece_become_their_bytes_token():
    pieces = [*make_pieces(), ("<b", -3.0), ("\u2581<", -3.0), ("<", -3.0), ("é", -5.0)]
    texts, scores, types = token_table(pieces)
    byte = {number: 3 + number for number in range(256)}
    assert (texts[byte[10]], types[byte[10]]) == ("\n", 1)
    assert scores[byte[10]] == min(score for _, score in pieces) - 10
    for known in (ord("a"), ord(" "), 0, 200):
        assert (texts[byte[known]], types[byte[known]]) == (BYTE_PIECES[known], 6)
    assert [types[texts.index(text)] for text in ("<b", "\u2581<", "<", "é")] == [0, 1, 1, 1]
    assert types[:3] == [2, 3, 3]
    assert len(set(texts)) == len(pieces)


def test_what_has_no_such_form_is_refused_before_anything_is_written(made, tmp_path):
    with pytest.raises(PlanearlyError, match="onnx cannot have weights in bf16"):
        exported(made.out, tmp_path / "out", "onnx", "bf16")
    with pytest.raises(PlanearlyError, match="safetensors cannot have weights in q8_0"):
        exported(made.out, tmp_path / "out", "safetensors", "q8_0")
    (tmp_path / "there").mkdir()
    with pytest.raises(PlanearlyError, match="already exists"):
        exported(made.out, tmp_path / "there", "gguf", "f32")
    (tmp_path / ".out.unfinished" / RUN_FILE).write_text("{}")
    with pytest.raises(PlanearlyError, match="unfinished `owner specialize`"):
        exported(made.out, tmp_path / "out", "gguf", "f32")
    assert not (tmp_path / "out").exists()


def test_an_export_that_computes_something_else_is_refused_and_leaves_nothing(made, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "TOLERANCE", {"f16": 1e-9})
    with pytest.raises(PlanearlyError, match="the exported model's logits differ by"):
        exported(made.out, tmp_path / "out", "safetensors", "f16")
    assert not (tmp_path / "out").exists()
    assert not any((tmp_path / ".out.unfinished").iterdir())


@pytest.mark.parametrize(("form", "package"), [("gguf", "gguf"), ("onnx", "onnx")])
def test_a_missing_package_is_named(made, tmp_path, monkeypatch, form, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"owner.models.{form}_file", raising=False)
    with pytest.raises(PlanearlyError, match=f"needs the package.* {package}"):
        exported(made.out, tmp_path / "out", form, "f32")


def test_another_tokenizer_has_no_gguf_here(made, tmp_path):
    shutil.copytree(made.out, tmp_path / "foreign")
    path = tmp_path / "foreign" / "model" / "tokenizer.json"
    path.write_text(path.read_text().replace("<0x00>", "<0x0G>"))
    with pytest.raises(PlanearlyError, match="is no model of `owner specialize`"):
        exported(tmp_path / "foreign", tmp_path / "out", "gguf", "f32")


def test_the_command_exports_behind_the_walls_for_its_owner_only(made, tmp_path):
    done = run(
        "owner",
        "export",
        made.out,
        "--format",
        "gguf",
        "--out",
        "here",
        "--json",
        cwd=tmp_path,
        home=made.home,
    )
    assert done.returncode == 0, done.stderr
    assert "isolation" in done.stderr
    assert json.loads(done.stdout)["tensor_types"] == {
        "F32": 11
    }  # nine in its one layer, embedding, last norm
    assert (tmp_path / "here" / "model.gguf").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@needs_llama_cpp
@pytest.mark.parametrize(("kind", "most"), [("f32", 1e-3), ("f16", 0.1), ("q8_0", 1.0), ("q4_k_m", 10.0)])
def test_llama_cpp_says_what_the_original_says(made, tmp_path, kind, most):
    found = exported(made.out, tmp_path / "out", "gguf", kind, made.others)
    agreement = found["agreement"]
    assert agreement["largest_logit_difference"] < most
    assert agreement["perplexity"] == pytest.approx(agreement["perplexity_original"], rel=0.1)
    if kind in ("f32", "f16"):
        assert agreement["greedy_same"] == agreement["greedy_continuations"] == 4
    assert found["tokenizer"]["read_the_same"] == found["tokenizer"]["documents"]
    assert re.search(r"perplexity [\d.]+, the original's [\d.]+", "\n".join(summarize_export(found)))


@needs_llama_cpp
def test_llama_cpp_runs_starcoder2_too(starcoder2, tmp_path):
    model = load(starcoder2, CPU)
    write_gguf(tmp_path / "x.gguf", model, "f32")
    ids = [BOS_ID, *model.encode("the order of evaluation")]
    original, theirs = torch_logits(model.module), LlamaCpp(tmp_path / "x.gguf", 64)
    assert np.abs(original(ids) - theirs(ids)).max() < 1e-4
    assert continue_greedily(original, ids) == continue_greedily(theirs, ids)


@needs_llama_cpp
def test_a_quantized_file_repeats_and_says_which_types_it_fell_back_to(made, tmp_path):
    wide = save_other(made.out, tmp_path / "wide", "llama", 256)
    for name in ("one", "two"):
        found = exported(wide, tmp_path / name, "gguf", "q4_k_m")
    assert found["tensor_types"].keys() == {"F32", "Q4_K", "Q6_K"}
    one, two = ((tmp_path / name / "model.gguf").read_bytes() for name in ("one", "two"))
    assert one == two
    narrow = exported(made.out, tmp_path / "narrow", "gguf", "q4_k_m")
    assert "Q4_K" not in narrow["tensor_types"]  # rows of 32 and 48


@needs_llama_cpp
def test_llama_cpp_reads_every_text_of_known_characters_as_we_do_and_writes_all_bytes(made, tmp_path):
    model = load(made.out, CPU)
    write_gguf(tmp_path / "x.gguf", model, "f32")
    theirs = LlamaCpp(tmp_path / "x.gguf", 64)
    known = {character for piece, _ in model.pieces or () for character in piece}
    texts = [
        "a  b\n\n\tc </s> <s> <0x0A> x<y \r\n",
        "-" * 37 + "=" * 23,
        "aaaa" * 9,
        "",
        " ",
        "\n",
        "\x7f\x01",
    ]
    texts += ["".join(c for c in text if c in known or ord(c) < 128) for text in topics.values()]
    for text in texts:
        assert theirs.encode(text) == [BOS_ID, *model.encode(text)]
    strange = "caf\u00e9 \U0001f600 \u2192"
    ids = model.encode(strange)
    assert theirs.llama.detokenize(ids).decode() == strange
    assert theirs.encode(strange).count(0) == sum(c not in known for c in strange.replace(" ", ""))


def test_a_specialized_model_is_what_vllm_loads(made):
    config = json.loads((made.out / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["tie_word_embeddings"] is True
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    vllm = pytest.importorskip("vllm")  # where it installs: on a machine with a GPU
    model = load(made.out, CPU)
    ids = [BOS_ID, *model.encode("the value of")]
    engine = vllm.LLM(str(made.out / "model"), dtype="float32", enforce_eager=True)
    prompt = vllm.TokensPrompt(prompt_token_ids=ids)
    found = engine.generate(prompt, vllm.SamplingParams(temperature=0, max_tokens=12))[0].outputs[0].token_ids
    assert list(found) == continue_greedily(torch_logits(model.module), ids, 12)[: len(found)]
