"""Bundles of each kind, written and read back, against the model that they were made from."""

import numpy as np
import pytest
import torch

from provider.bundling import write_bundle
from provider.pretraining import _published
from provider.signing import create_key
from shared.batches import alone
from shared.bundle import open_bundle
from shared.embedder import NAME, SUB_WINDOW_PIECES, WEIGHTS_SHA256, WIDTH
from shared.errors import BundleError
from shared.materializing import comparison_slm, materialize, split_at
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.sizes import PRESETS
from shared.slm import build_slm

N_EXPERTS, EXPERT_SIZE, CAPACITY = 5, 4, 3


def manifest(kind, **more):
    n = 1 if kind == "slm" else N_EXPERTS
    return {
        "name": "t", "version": 1, "created": "2026-11-21T00:00:00Z", "license": "none", "kind": kind,
        "model": PRESETS["test"].to_dict(), "n_experts": n, "comparison": [],
        "tokenizer": {"type": "unigram", "file": "tokenizer.json"},
        "embedder": {"name": NAME, "sha256": WEIGHTS_SHA256, "width": WIDTH,
                     "sub_window_pieces": SUB_WINDOW_PIECES, "embedded": False},
        "clusters": {"n": N_EXPERTS, "corpus_windows": 15},
        "training": {"corpus": "c", "sources": [], "seed": 0, "steps": 1, "tokens": 1, "learning_rate": 0.1,
                     "rows_per_step": 1, "heldout_loss": 1.0,
                     "heldout_loss_per_cluster": [None] * N_EXPERTS},
    } | more  # fmt: skip


def common():
    return {
        "clusters.centroids": torch.eye(N_EXPERTS, WIDTH),
        "clusters.counts": torch.arange(1, N_EXPERTS + 1),
        "files.tokenizer.json": torch.frombuffer(bytearray(b"[]"), dtype=torch.uint8),
    }


def write(folder, manifest, tensors, name="b.st"):
    key = create_key(folder / f"{name}.key", folder / f"{name}.pub")
    write_bundle(folder / name, manifest, common() | tensors, key)
    return open_bundle(folder / name, [key.public_key])


def pn_bundle(folder, tokenizer=b"[]", **sizes):
    """A projected network whose experts differ, with a plain model beside it."""
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"])
    linears = feed_forward_linears(model)
    network = ProjectedNetwork(model, linears, N_EXPERTS, EXPERT_SIZE, CAPACITY)
    with torch.no_grad():
        for bank in network.bank:
            bank[1:].normal_(std=0.3)
    slm = {f"slm.{name}": p.detach() for name, p in build_slm(PRESETS["test"]).named_parameters()}
    projection = {"capacity": CAPACITY, "expert_size": EXPERT_SIZE, "linears": linears}
    tensors = _published(model, network, torch.float32) | slm
    tensors["files.tokenizer.json"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    fields = manifest("pn", projection=projection, comparison=["slm"])
    return write(folder, fields | {"model": fields["model"] | sizes}, tensors)


def mix_bundle(folder):
    """A mixture of random models."""
    torch.manual_seed(0)
    tensors = {
        f"experts.{i}.{name}": p.detach()
        for i in range(N_EXPERTS)
        for name, p in build_slm(PRESETS["test"]).named_parameters()
    }
    return write(folder, manifest("mix"), tensors)


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(3, 20).unsqueeze(0)).logits


def test_a_materialized_expert_is_the_model_that_was_trained(tmp_path):
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"])
    linears = feed_forward_linears(model, [1])  # one of the two layers
    network = ProjectedNetwork(model, linears, N_EXPERTS, EXPERT_SIZE, CAPACITY)
    with torch.no_grad():
        for bank in network.bank:
            bank.normal_(std=0.1)
    plain = build_slm(PRESETS["test"])
    slm = {f"slm.{name}": p.detach() for name, p in plain.named_parameters()}
    projection = {"capacity": CAPACITY, "expert_size": EXPERT_SIZE, "linears": linears}
    tensors = _published(model, network, torch.float32) | slm
    with write(tmp_path, manifest("pn", projection=projection, comparison=["slm"]), tensors) as bundle:
        for expert in range(N_EXPERTS):
            network.begin_step([alone(expert)])
            trained = torch.func.functional_call(
                model, dict(network.weights_of(alone(expert))), (torch.arange(3, 20).unsqueeze(0),)
            ).logits
            torch.testing.assert_close(logits(materialize(bundle, expert)), trained, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits(comparison_slm(bundle)), logits(plain), rtol=0, atol=0)
        with pytest.raises(ValueError, match="expert 5 of 5"):
            materialize(bundle, N_EXPERTS)


def test_of_a_mixture_only_the_chosen_expert_is_read(tmp_path):
    torch.manual_seed(0)
    models = [build_slm(PRESETS["test"]) for _ in range(N_EXPERTS)]
    tensors = {
        f"experts.{i}.{name}": p.detach() for i, m in enumerate(models) for name, p in m.named_parameters()
    }
    with write(tmp_path, manifest("mix"), tensors) as bundle:
        start = bundle.manifest.tensors["experts.4.model.norm.weight"].start + bundle._data_start
        damaged = bytearray((tmp_path / "b.st").read_bytes())
        damaged[start] ^= 1
        (tmp_path / "b.st").write_bytes(damaged)
        torch.testing.assert_close(logits(materialize(bundle, 3)), logits(models[3]), rtol=0, atol=0)
        assert comparison_slm(bundle) is None


def test_a_plain_model_survives_its_bundle_in_every_stored_type(tmp_path):
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"])
    tensors = {f"shared.{name}": p.detach().bfloat16() for name, p in model.named_parameters()}
    with write(tmp_path, manifest("slm"), tensors) as bundle:
        found = materialize(bundle, 0)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    assert np.array_equal(logits(found).numpy(), logits(model).numpy())


@pytest.mark.parametrize("position", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_a_part_is_cut_where_a_new_slice_of_its_bank_begins(position, length):
    part = torch.arange(position, position + length)
    pieces = split_at(part, position, 4)
    assert torch.equal(torch.cat(pieces), part)
    assert all(len(set((piece // 4).tolist())) == 1 for piece in pieces)


def test_any_size_of_part_gives_the_same_model(tmp_path, monkeypatch):
    with pn_bundle(tmp_path) as bundle:
        whole = logits(materialize(bundle, 1))
        monkeypatch.setattr("shared.bundle.CHUNK_BYTES", 20)
        assert torch.equal(logits(materialize(bundle, 1)), whole)


def test_a_damaged_bank_leaves_no_model(tmp_path):
    with pn_bundle(tmp_path) as bundle:
        bank = next(name for name in bundle.names if name.endswith(".bank"))
        content = bytearray(bundle.path.read_bytes())
        content[bundle._data_start + bundle.manifest.tensors[bank].end - 1] ^= 1  # its last byte
        bundle.path.write_bytes(content)
        with pytest.raises(BundleError, match="digest: tensor"):
            materialize(bundle, 1)
