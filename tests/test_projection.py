from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from shared.batches import Sampler, alone
from shared.losses import sum_nats
from shared.projection import ProjectedNetwork, feed_forward_linears, project
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.training import train_step, trained_parameters
from tests.conftest import make_windows


def test_projection_is_the_papers_double_sum():
    outs, ins, capacity, size, experts = 2, 3, 5, 7, 11
    expert_KM, mixing_MH = torch.randn(experts, size), torch.randn(size, capacity)
    bank_HOI = torch.randn(capacity, outs, ins)
    slow = torch.zeros(experts, outs, ins)
    for i in range(experts):
        for m in range(size):
            for h in range(capacity):
                slow[i] += expert_KM[i, m] * mixing_MH[m, h] * bank_HOI[h]
    torch.testing.assert_close(project(expert_KM, mixing_MH, bank_HOI), slow)


def test_every_mlp_linear_of_a_model_is_found_and_layers_can_be_picked():
    llama = build_slm(PRESETS["test"])
    assert feed_forward_linears(llama) == [
        f"model.layers.{layer}.mlp.{part}"
        for layer in (0, 1)
        for part in ("gate_proj", "up_proj", "down_proj")
    ]
    starcoder = build_slm(replace(PRESETS["test"], architecture="starcoder2"))
    assert feed_forward_linears(starcoder, [1]) == ["model.layers.1.mlp.c_fc", "model.layers.1.mlp.c_proj"]
    neox = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=9
        )
    )
    assert feed_forward_linears(neox) == [
        "gpt_neox.layers.0.mlp.dense_h_to_4h",
        "gpt_neox.layers.0.mlp.dense_4h_to_h",
    ]


def random_network(model, **sizes):
    """A network whose banks are not zero, so that every gradient is."""
    network = ProjectedNetwork(model, feed_forward_linears(model), **sizes)
    with torch.no_grad():
        for bank in network.bank:
            bank.normal_(std=0.1)
    return network.to(torch.float64)


@pytest.mark.parametrize("sizes", [(7, 5, 3), (3, 2, 11), (5, 1, 2), (4, 3, 1)])
def test_the_controller_gives_the_gradient_of_autograd_through_the_sum(sizes, monkeypatch):
    n_experts, expert_size, capacity = sizes
    torch.manual_seed(1)
    model = build_slm(PRESETS["test"]).to(torch.float64)
    network = random_network(model, n_experts=n_experts, expert_size=expert_size, capacity=capacity)
    monkeypatch.setattr("shared.projection.COMPUTE_DTYPE", torch.float64)
    windows = make_windows([20] * 12, clusters=[i % n_experts for i in range(12)])
    batches = Sampler(windows, 32, 6, 1, seed=0).step(0)
    loss = train_step(model, network, batches)
    parameters = trained_parameters(model, network)
    fast = {name: p.grad.clone() for name, p in parameters.items()}

    for p in parameters.values():
        p.grad = None
    total = 0.0
    experts = torch.cat([torch.ones(n_experts, 1), network.expert_KM], dim=1)
    for batch in batches:  # autograd straight through the paper's sum, one microbatch after the other
        weights = {}
        for index, name in enumerate(network.linears):
            coefficient = experts[batch.cluster] @ network.published_mixing(index)
            weights[f"{name}.weight"] = torch.einsum("h,hoi->oi", coefficient, network.bank[index])
        part = sum_nats(model, weights, batch) / sum(b.n_tokens for b in batches)
        part.backward()
        total += float(part.detach())
    assert loss == pytest.approx(total, rel=1e-12)
    for name, p in parameters.items():
        torch.testing.assert_close(fast[name], p.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_published_matrices_give_the_weights_that_training_used():
    torch.manual_seed(2)
    model = build_slm(PRESETS["test"])
    network = random_network(model, n_experts=5, expert_size=4, capacity=3).float()
    network.begin_step([alone(3), alone(1)])
    for cluster in (1, 3):
        used = network.weights_of(alone(cluster))
        for index, name in enumerate(network.linears):
            published = project(
                network.published_experts()[cluster : cluster + 1],
                network.published_mixing(index),
                network.bank[index],
            )[0]
            torch.testing.assert_close(published, used[f"{name}.weight"], rtol=1e-6, atol=1e-7)


def test_all_experts_start_as_the_small_model():
    torch.manual_seed(3)
    model = build_slm(PRESETS["test"])
    network = ProjectedNetwork(model, feed_forward_linears(model), 5, 4, 3)
    ids = torch.arange(3, 13).unsqueeze(0)
    plain = model(ids).logits
    network.begin_step([alone(2)])
    projected = functional_call(model, dict(network.weights_of(alone(2))), (ids,)).logits
    torch.testing.assert_close(projected, plain)
