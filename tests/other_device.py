"""A device that is not the CPU, on a CPU: what mixes up devices fails on it as it would on a GPU.

Its tensors compute with the CPU's own kernels and refuse to meet a tensor of the CPU, but for single
numbers and copies, as CUDA's do; `.numpy()` refuses too. tests/test_devices.py runs this file in a process of
its own: torch knows one such device, and knows it until its process ends. Says nothing about speed, streams
or a GPU's own kernels. Source: torch.utils.backend_registration, for devices written in Python.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import shared.losses
from owner.audit.attacks import token_figures
from owner.privacy.private_noise import NOISE, Stream
from owner.privacy.private_training import DocumentSampler, document_gradients, private_gradient
from owner.training.adapting import adapt
from owner.training.distilling import distillation_loss
from owner.training.scoring import heldout_nats
from shared.batches import Sampler, all_microbatches
from shared.embedder import find_embedder_files
from shared.embedding import embed_texts, load_embedder
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.train_config import TrainConfig
from shared.training import train
from tests.conftest import make_windows
from tests.test_adapting import CONFIG, SELECTION
from tests.test_materializing import pn_bundle
from tests.test_private_training import PLAN, SECRET, make_split

_setup_privateuseone_for_python_backend("other")
CPU, OTHER = torch.device("cpu"), torch.device("other:0")
COPIES = ("aten::_copy_from", "aten::copy_", "aten::_to_copy")


class OtherTensor(Tensor):
    """A tensor that says it lies on the other device, around the one that computes."""

    inside: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inside: Tensor) -> "OtherTensor":
        made = Tensor._make_wrapper_subclass(
            cls,
            inside.shape,
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=OTHER,
        )
        made.inside = inside
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(op, *args, **(kwargs or {}))


def compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Do an operation on the CPU; raise RuntimeError where a tensor of the CPU takes part in it."""
    name, target, known = op._schema.name, kwargs.get("device"), {}

    def open_up(value: Any) -> Any:
        if isinstance(value, OtherTensor):
            known[id(value.inside)] = value
            return value.inside
        if isinstance(value, Tensor) and value.ndim and name not in COPIES:
            raise RuntimeError(f"{name}: {tuple(value.shape)} lies on {value.device}, the others on {OTHER}")
        return CPU if isinstance(value, torch.device) else value

    def close(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else OtherTensor(value)

    opened, options = tree_map(open_up, args), tree_map(open_up, kwargs)
    if name == "aten::_copy_from":  # (source, target)
        opened[1].copy_(opened[0])
        return args[1]
    found = op(*opened, **options)
    if name == "aten::copy_":
        return args[0]
    return found if name == "aten::_to_copy" and target == CPU else tree_map(close, found)


# What makes a tensor has none to dispatch on.
LIBRARY = torch.library.Library("_", "IMPL")
LIBRARY.fallback(compute, "PrivateUse1")


@pytest.fixture(autouse=True)
def _same_parameters():
    """Modules move their parameters and not copies of them, as to a GPU: tied ones stay tied."""
    torch.__future__.set_swap_module_params_on_conversion(True)


def on_both(measure):
    found = [measure(device) for device in (CPU, OTHER)]
    torch.testing.assert_close(*[torch.as_tensor(each) for each in found], rtol=1e-4, atol=1e-6)


def test_the_other_device_refuses_a_tensor_of_the_cpu():
    there = torch.ones(3).to(OTHER)
    assert (there + 1).device == OTHER
    assert torch.equal((there + 1).cpu(), torch.full((3,), 2.0))
    with pytest.raises(RuntimeError, match="aten::add: .* lies on cpu"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_projected_network_trains_and_resumes(tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(shared.losses, "LOGITS_BYTES", 4 * 300 * 7)  # in chunks
    windows = make_windows([31, 9, 20, 7, 32, 30], clusters=[0, 1, 2, 0, 1, 2])
    config = TrainConfig(
        steps=4, rows_per_step=4, rows_per_microbatch=2, learning_rate=1e-2, warmup_steps=0,
        eval_every_steps=2, patience_evals=9, optimizer=optimizer, checkpoint_every_s=0.0,
    )  # fmt: skip
    heldout = list(all_microbatches(windows, 32, 2))

    def run(device, folder, said):
        torch.manual_seed(0)
        model = build_slm(PRESETS["test"]).to(device)
        network = ProjectedNetwork(model, feed_forward_linears(model), 3, 4, 5).to(device)
        sampler = Sampler(windows, 32, 4, 2, 1, mixed_fraction=0.5)
        return train(model, network, sampler, lambda: heldout, config, folder, said.append)

    def losses(device):
        folder, said = tmp_path / device.type, []
        whole = run(device, folder, said)
        max(folder.glob("step-*")).unlink()  # as if killed one step before the end
        again = run(device, folder, said)
        assert "resumed at step 3/4" in said
        assert again.history == whole.history
        return [entry["heldout_loss"] for entry in whole.history]

    on_both(losses)


@pytest.mark.parametrize(("method", "lora_rank"), [("most-frequent", 2), ("learned", 0)])
def test_an_owner_adapts(tmp_path, method, lora_rank):
    def losses(device):
        work = tmp_path / device.type
        work.mkdir()
        config = replace(CONFIG, lora_rank=lora_rank, max_epochs=1)
        with pn_bundle(work) as bundle:
            teacher = build_slm(PRESETS["test"]).to(device) if lora_rank else None
            places = (device, work, "run", print)
            done = adapt(bundle, make_split(8, 2), SELECTION, method, config, *places, teacher=teacher)
        return [figures["after"] for figures in done.figures.values()]

    on_both(losses)


def test_a_private_gradient_is_the_same():
    def norms(device):
        torch.manual_seed(0)
        model = build_slm(PRESETS["test"]).to(device)
        sampler = DocumentSampler(make_split().training_documents, 32, 0.5, 4, SECRET)
        with document_gradients(model):
            loss = private_gradient(model, sampler.step(0), PLAN, Stream(SECRET, 0, NOISE))
        return [loss, *(float(p.grad.norm()) for p in model.parameters())]

    on_both(norms)


def test_losses_of_documents_and_tokens_are_the_same():
    split = make_split()

    def nats(device):
        torch.manual_seed(0)
        model = build_slm(PRESETS["test"]).to(device)
        of_tokens = [figures.nats for figures in token_figures(model, split.heldout)]
        of_documents = heldout_nats(model, split, 32, 2)
        batch = next(all_microbatches(split.heldout, 32, 2))
        distilled = distillation_loss(model, 0.5)(model, {}, batch)
        return [*of_tokens[0], *of_documents, float(distilled.detach())]

    on_both(nats)


def test_texts_are_embedded(monkeypatch):
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # which such a device does not know
    files = find_embedder_files()
    texts = ["One text.", "Another, somewhat longer text. " * 60]
    on_both(lambda device: embed_texts(load_embedder(*files, device), texts))
