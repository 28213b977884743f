"""A bundle and an expert, or any point between experts, to one dense stock model, made while it is read."""

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from shared.bundle import Bundle
from shared.projection import COMPUTE_DTYPE
from shared.slm import build_slm
from shared.tensors import TakeTensor, read_tensor, read_tensors


def _copier(weight: Tensor) -> TakeTensor:
    """Return what puts a tensor's parts into a float32 weight."""
    flat = weight.view(-1)

    def take(part: Tensor, position: int) -> None:
        flat[position : position + len(part)] = part

    return take


def _projector(weight_OI: Tensor, vector_M: Tensor, mixing_MH: Tensor) -> TakeTensor:
    """Return what adds a bank's parts to one expert's weight: W_oi = sum_h coefficient_h T_hoi.

    A bank's parts come slice after slice, T_0 first. Each is in the processor's cache as it is hashed, so
    that a bank is read from memory once and is never there as a whole, in float32 least of all.
    """
    coefficient_H = (vector_M.to(COMPUTE_DTYPE) @ mixing_MH.to(COMPUTE_DTYPE)).tolist()
    flat = weight_OI.zero_().view(-1)

    def take(part: Tensor, position: int) -> None:
        for piece in split_at(part, position, len(flat)):
            which, place = divmod(position, len(flat))
            flat[place : place + len(piece)].add_(piece, alpha=coefficient_H[which])
            position += len(piece)

    return take


def split_at(part: Tensor, position: int, size: int) -> tuple[Tensor, ...]:
    """Cut a part wherever a multiple of `size` lies inside of it; `position` is that of its first element."""
    first = min(len(part), -position % size or size)
    return part[:first], *(part[first:].split(size) if first < len(part) else ())


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


def _finish(
    model: PreTrainedModel, bundle: Bundle, weights: dict[str, Tensor], takers: dict[str, TakeTensor]
) -> PreTrainedModel:
    """Read what the weights are made of, and only then put them into the model."""
    read_tensors(bundle, takers)
    for name, weight in weights.items():
        _fill(model, name, weight)
    model.tie_weights()
    left = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    assert not left, f"not in the bundle: {left}"
    return model


def mix_experts(bundle: Bundle, weights_K: Tensor) -> Tensor:
    """Return E(q) = sum_c q_c E_c of kind pn: (M,). Its weights are the same mean of the experts' weights."""
    return weights_K.float() @ read_tensor(bundle, "experts.vectors").float()


def materialize(bundle: Bundle, expert: int | Tensor) -> PreTrainedModel:
    """Return one expert as a dense float32 stock model (paper §2.5), each tensor verified as it is read.

    `expert` is an index or, of kind pn, any expert vector (M,): the equation takes every one.
    kind pn: the shared weights, and W^(l,i) projected part by part while their banks are read and hashed;
    beside the model there are a few megabytes in memory.
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
        vector_M = read_tensor(bundle, "experts.vectors")[expert]
    model = _empty(bundle)
    projected = set(manifest.linears)
    prefix = f"experts.{expert}." if manifest.kind == "mix" else "shared."
    names, mixings = {}, {}
    for name, _ in model.named_parameters():
        linear = name.removesuffix(".weight")
        names[name] = prefix + name
        if linear in projected:
            names[name] = f"projected.{linear}.bank"
            mixings[name] = read_tensor(bundle, f"projected.{linear}.mixing")
    takers: dict[str, TakeTensor] = {}
    weights = {name: torch.empty(parameter.shape) for name, parameter in model.named_parameters()}
    for name, weight in weights.items():
        if name in mixings:
            takers[names[name]] = _projector(weight, vector_M, mixings[name])
        else:
            takers[names[name]] = _copier(weight)
    return _finish(model, bundle, weights, takers)


def comparison_slm(bundle: Bundle) -> PreTrainedModel | None:
    """Return the plain small model that the bundle carries for comparison, or None."""
    if "slm" not in bundle.manifest.comparison:
        return None
    model = _empty(bundle)
    weights = {name: torch.empty(parameter.shape) for name, parameter in model.named_parameters()}
    takers = {f"slm.{name}": _copier(weight) for name, weight in weights.items()}
    return _finish(model, bundle, weights, takers)
