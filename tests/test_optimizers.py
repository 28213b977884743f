import numpy as np
import pytest
import torch
from torch import nn

from owner.training.finetuning import FinetuneConfig, train_config
from provider.bundling import write_bundle
from shared.bundle import open_bundle
from shared.errors import PlanearlyError
from shared.optimizers import Optimizer, check_optimizer, is_matrix
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.training import trained_parameters
from tests.conftest import make_windows
from tests.test_bundle import TRUSTED
from tests.vectors.build import PROVIDER, accepted, example_tensors


def network_parameters():
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"])
    return trained_parameters(model, ProjectedNetwork(model, feed_forward_linears(model), 3, 4, 5))


def with_gradients(parameters):
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return parameters


def test_muon_moves_the_matrices_of_layers_and_banks_and_adam_the_rest():
    parameters = network_parameters()
    moved = {name for name, p in parameters.items() if is_matrix(name, p)}
    assert {name for name in moved if "bank" in name} == {n for n in parameters if ".bank." in n}
    assert "model.model.layers.0.self_attn.q_proj.weight" in moved
    for name in ("model.model.embed_tokens.weight", "projection.expert_KM", "projection.mixing.0"):
        assert name in parameters
        assert name not in moved
    optimizer = Optimizer("muon", with_gradients(parameters))
    optimizer.step(0.1)
    state = optimizer.tensors()
    assert {name.partition(".")[2] for name in state if name.startswith("muon_momentum.")} == moved
    assert {name.partition(".")[2] for name in state if name.startswith("adam_mean.")} == set(
        parameters
    ) - moved
    assert set(Optimizer("adam", parameters).tensors()) == set()


def test_each_slice_of_a_bank_gets_the_update_of_a_matrix_of_its_own():
    parameters = with_gradients(network_parameters())
    bank = parameters["projection.bank.1"]
    before = bank.detach().clone()
    alone = [nn.Parameter(matrix.clone()) for matrix in before]
    for matrix, gradient in zip(alone, bank.grad, strict=True):
        matrix.grad = gradient.clone()
    torch.optim.Muon(alone, lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    Optimizer("muon", parameters).step(0.1)
    assert torch.equal(bank.detach(), torch.stack([matrix.detach() for matrix in alone]))
    # Nearly orthogonal: no direction of an update is much longer than another.
    lengths = torch.linalg.svdvals(before[0] - bank.detach()[0])
    assert lengths.max() / lengths.min() < 2


def test_both_families_take_steps_of_about_one_size():
    sizes = {}
    for kind in ("adam", "muon"):
        parameters = with_gradients(network_parameters())
        weight = parameters["model.model.layers.0.self_attn.q_proj.weight"]
        before = weight.detach().clone()
        Optimizer(kind, parameters).step(0.01)
        sizes[kind] = float((weight.detach() - before).square().mean().sqrt())
    assert np.isclose(sizes["adam"], 0.01, rtol=0.1)
    assert 0.1 < sizes["muon"] / sizes["adam"] < 0.5  # 0.2, as published


def test_an_owner_fine_tunes_with_the_family_that_the_bundle_records():
    class Small:
        train = make_windows([32] * 40)

    arguments = (Small, 32, 3e-3, 8, "muon")
    assert train_config(FinetuneConfig(), *arguments).optimizer == "muon"  # type: ignore[arg-type]
    assert train_config(FinetuneConfig(lora_rank=2), *arguments).optimizer == "adam"  # type: ignore[arg-type]


def test_an_optimizer_is_adam_unless_the_record_says_muon(tmp_path):
    for name, more in (("old", {}), ("new", {"optimizer": "muon"})):
        manifest = accepted()["slm.st"]
        manifest["training"] |= more
        write_bundle(tmp_path / name, manifest, example_tensors(manifest), PROVIDER)
        with open_bundle(tmp_path / name, TRUSTED) as bundle:
            assert bundle.manifest.optimizer == more.get("optimizer", "adam")


def test_an_unknown_optimizer_is_refused(monkeypatch):
    with pytest.raises(PlanearlyError, match="optimizer is 'sgd', expected one of: adam, muon"):
        check_optimizer("sgd")
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(PlanearlyError, match="'muon', which torch .* does not have"):
        check_optimizer("muon")
