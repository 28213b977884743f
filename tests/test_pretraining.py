"""Each pretrained system against its definition: which windows it sees, and what is published of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from provider.pretraining import COST_FILE, WEIGHTS_FILE, pretrain
from provider.recipe import ProjectionConfig, read_recipe
from shared.batches import Sampler, alone
from shared.checkpoints import load_checkpoint
from shared.projection import ProjectedNetwork, feed_forward_linears, project
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.training import train_step
from tests.conftest import make_windows
from tests.parties import write_recipe

N_CLUSTERS = 4


@pytest.fixture
def recipe(tmp_path):
    read = read_recipe(write_recipe(tmp_path / "r.toml", kind="slm"))
    training = replace(read.pretraining, steps=6, eval_every_steps=6)
    return replace(read, model=PRESETS["test"], pretraining=training, weights="float32")


def write_windows(folder, changed=()):
    """Sorted windows of four clusters; those in `changed` hold other tokens."""
    folder.mkdir()
    for split, n in (("train", 12), ("heldout", 3)):
        for cluster in range(N_CLUSTERS):
            seed = cluster + (100 if cluster in changed and split == "train" else 0)
            stream = np.random.default_rng(seed).integers(3, 300, n * 32).astype(np.uint16)
            np.save(folder / f"{split}-{cluster:05}.npy", stream)
            np.save(folder / f"{split}-{cluster:05}-lengths.npy", np.full(n, 32, np.int32))
    return folder


def run(recipe, tmp_path, name, kind="slm", changed=(), **more):
    windows = write_windows(tmp_path / f"windows-{name}", changed)
    folder = tmp_path / name
    folder.mkdir()
    record = pretrain(kind, replace(recipe, kind=kind), windows, folder, "cpu", lambda line: None, **more)
    return load_checkpoint(folder / WEIGHTS_FILE).tensors, record, folder


def test_a_mixtures_expert_touches_only_its_own_windows(recipe, tmp_path):
    one, record, folder = run(recipe, tmp_path, "one", "mix")
    two, _, _ = run(recipe, tmp_path, "two", "mix", changed=[2])
    assert {name.split(".")[1] for name in one} == {"0", "1", "2", "3"}
    for name in one:
        if not name.startswith("experts.2.") and "norm" not in name:
            assert torch.equal(one[name], two[name]), name
    assert not torch.equal(
        one["experts.2.model.embed_tokens.weight"], two["experts.2.model.embed_tokens.weight"]
    )
    cost = json.loads((folder / COST_FILE).read_text())
    assert cost["tokens"] == record["tokens"] > 0
    assert cost["seconds"] > 0
    assert cost["device"] == "cpu"


def test_an_expert_trained_alone_is_the_mixtures(recipe, tmp_path):
    whole, _, _ = run(recipe, tmp_path, "whole", "mix")
    single, record, _ = run(recipe, tmp_path, "single", "mix", experts=(2,))
    assert all(name.startswith("experts.2.") for name in single)
    assert all(torch.equal(single[name], whole[name]) for name in single)
    assert [loss is not None for loss in record["heldout_loss_per_cluster"]] == [False, False, True, False]


def test_importance_sampling_leaves_a_cluster_of_weight_zero_alone_and_reports_itself(recipe, tmp_path):
    weights = np.array([2.0, 0.0, 1.0, 1.0])
    one, record, _ = run(recipe, tmp_path, "one", weights_K=weights)
    two, _, _ = run(recipe, tmp_path, "two", changed=[1], weights_K=weights)
    assert all(torch.equal(one[name], two[name]) for name in one)
    three, _, _ = run(recipe, tmp_path, "three", changed=[0], weights_K=weights)
    assert not torch.equal(one["shared.model.embed_tokens.weight"], three["shared.model.embed_tokens.weight"])
    found = record["importance"]
    assert found["n_clusters"] == 3
    assert found["effective_windows"] == pytest.approx((12 * 4) ** 2 / (12 * 6))
    assert found["most_passes"] > found["mean_passes"] > 0


def test_the_hard_mixture_over_a_shared_trunk_publishes_the_identity(recipe, tmp_path):
    identity = ProjectionConfig(N_CLUSTERS, N_CLUSTERS, mixing="identity")
    tensors, _, _ = run(replace(recipe, projection=identity), tmp_path, "trunk", "pn")
    eye = torch.eye(N_CLUSTERS)
    assert torch.equal(tensors["experts.vectors"], eye)
    for name, tensor in tensors.items():
        if name.endswith(".mixing"):
            assert torch.equal(tensor, eye)
    bank = tensors["projected.model.layers.0.mlp.up_proj.bank"]
    for expert in range(N_CLUSTERS):
        assert torch.equal(project(eye[expert : expert + 1], eye, bank)[0], bank[expert])


def test_in_the_trunk_a_clusters_windows_move_its_own_slice_and_no_other():
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"])
    network = ProjectedNetwork(model, feed_forward_linears(model), 3, 3, 3, is_identity=True)
    batches = Sampler(make_windows([32] * 8, clusters=[1] * 8), 32, 4, 2, seed=0).step(0)
    train_step(model, network, batches)
    for bank in network.bank:
        assert bank.grad[1].abs().sum() > 0
        assert bank.grad[[0, 2]].abs().sum() == 0
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0


def test_a_mixed_point_trains_the_mean_of_its_experts():
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"])
    network = ProjectedNetwork(model, feed_forward_linears(model), 3, 4, 5)
    with torch.no_grad():
        for bank in network.bank:
            bank.normal_(std=0.1)
    point = ((0, 0.25), (2, 0.75))
    network.begin_step([alone(0), alone(2), point])
    for name, weight in network.weights_of(point).items():
        mean = 0.25 * network.weights_of(alone(0))[name] + 0.75 * network.weights_of(alone(2))[name]
        torch.testing.assert_close(weight, mean, rtol=1e-5, atol=1e-6)
