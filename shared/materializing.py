"""A bundle and an expert, or any point between experts, to one dense stock model, a layer at a time."""

from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from shared.bundle import Bundle
from shared.projection import project
from shared.slm import build_slm


def _fill(model: nn.Module, name: str, weight: Tensor) -> None:
    """Put a weight, as float32, in place of a parameter that lies on the meta device."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(weight.float()))


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
    kind pn: the shared weights, and W^(l,i) projected layer by layer, so that at most one weight bank is
    in memory beside the model. kind mix: that expert's weights and no other's. kind slm: the model.
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
    for name, _ in list(model.named_parameters()):
        linear = name.removesuffix(".weight")
        if linear in projected:
            weight_OI = project(
                vector_M.unsqueeze(0),
                bundle.tensor(f"projected.{linear}.mixing"),
                bundle.tensor(f"projected.{linear}.bank"),
            )[0]
            _fill(model, name, weight_OI)
        else:
            _fill(model, name, bundle.tensor(prefix + name))
    return _finish(model)


def comparison_slm(bundle: Bundle) -> PreTrainedModel | None:
    """Return the plain small model that the bundle carries for comparison, or None."""
    if "slm" not in bundle.manifest.comparison:
        return None
    model = _empty(bundle)
    for name, _ in list(model.named_parameters()):
        _fill(model, name, bundle.tensor(f"slm.{name}"))
    return _finish(model)
