"""A bundle and an expert, or any point between experts, to one dense stock model, a layer at a time."""

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from shared.bundle import Bundle
from shared.projection import project
from shared.slm import build_slm

SLICE_BYTES = 4 << 20
"""Of a bank, as float32, projected at a time: small enough to stay in a processor's cache."""


def _project(vector_M: Tensor, mixing_MH: Tensor, bank_HOI: Tensor) -> Tensor:
    """Return one expert's weight (O, I) in float32, some rows at a time: no float32 copy of a whole bank."""
    capacity, rows, columns = bank_HOI.shape
    step = max(1, SLICE_BYTES // (4 * capacity * columns))
    weight_OI = torch.empty(rows, columns)
    for row in range(0, rows, step):
        part_HOI = bank_HOI[:, row : row + step]
        weight_OI[row : row + step] = project(vector_M.unsqueeze(0), mixing_MH, part_HOI)[0]
    return weight_OI


def _fill(model: nn.Module, name: str, weight: Tensor) -> None:
    """Put a float32 weight in place of a parameter that lies on the meta device."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(weight))


def _empty(bundle: Bundle) -> PreTrainedModel:
    """Return the model with nothing allocated but its buffers, which no bundle carries."""
    model = build_slm(bundle.manifest.model, "meta")
    fresh = type(model.base_model.rotary_emb)(model.config)
    model.base_model.rotary_emb = fresh
    return model


def _finish(model: PreTrainedModel) -> PreTrainedModel:
    model.tie_weights()
    left = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    assert not left, f"not in the bundle: {left}"
    return model


def mix_experts(bundle: Bundle, weights_K: Tensor) -> Tensor:
    """Return E(q) = sum_c q_c E_c of kind pn: (M,). Its weights are the same mean of the experts' weights."""
    return weights_K.float() @ bundle.tensor("experts.vectors").float()


def materialize(bundle: Bundle, expert: int | Tensor) -> PreTrainedModel:
    """Return one expert as a dense float32 stock model (paper §2.5), each tensor verified as it is read.

    `expert` is an index or, of kind pn, any expert vector (M,): the equation takes every one.
    kind pn: the shared weights, and W^(l,i) projected layer by layer; beside the model there is one weight
    bank in memory, and where there are two cores the next one, which is read and hashed meanwhile.
    kind mix: that expert's weights and no other's. kind slm: the model.
    Raises BundleError when a tensor's digest does not match; ValueError for an index out of range, a vector
    of another length, or a vector for a kind that has none.
    """
    manifest = bundle.manifest
    if isinstance(expert, Tensor):
        if expert.shape != (manifest.expert_size,):
            raise ValueError(f"vector of shape {tuple(expert.shape)}, expected ({manifest.expert_size},)")
        vector_M = expert
    elif manifest.kind == "replay" or not 0 <= expert < manifest.n_experts:
        raise ValueError(f"expert {expert} of {manifest.n_experts} in kind {manifest.kind}")
    elif manifest.kind == "pn":
        vector_M = bundle.tensor("experts.vectors")[expert]
    model = _empty(bundle)
    projected = set(manifest.linears)
    prefix = f"experts.{expert}." if manifest.kind == "mix" else "shared."
    names, mixings = {}, {}
    for name, _ in model.named_parameters():
        linear = name.removesuffix(".weight")
        names[name] = prefix + name
        if linear in projected:
            names[name] = f"projected.{linear}.bank"
            mixings[name] = bundle.tensor(f"projected.{linear}.mixing")
    tensors = bundle.read(names.values())
    for name in names:
        if name in mixings:
            _fill(model, name, _project(vector_M, mixings[name], next(tensors)))
        else:
            _fill(model, name, next(tensors).to(torch.float32, copy=True))
    return _finish(model)


def comparison_slm(bundle: Bundle) -> PreTrainedModel | None:
    """Return the plain small model that the bundle carries for comparison, or None."""
    if "slm" not in bundle.manifest.comparison:
        return None
    model = _empty(bundle)
    names = [name for name, _ in model.named_parameters()]
    for name, tensor in zip(names, bundle.read(f"slm.{name}" for name in names), strict=True):
        _fill(model, name, tensor.to(torch.float32, copy=True))
    return _finish(model)
