"""What is minimized and what is reported: nats over a microbatch, nats per token over a held-out split."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.modeling_utils import PreTrainedModel

from shared.batches import IGNORED, Microbatch, Mixture
from shared.device import autocast
from shared.progress import beat

LossFunction = Callable[[nn.Module, dict[str, Tensor], Microbatch], Tensor]
"""(model, replaced weights, microbatch) to a sum over its tokens, to be divided by their number."""

LOGITS_BYTES = 64 << 20
"""Most bytes of float32 logits at a time: 512 tokens of a vocabulary of 32,768. On a CPU chunks of this size
take 0.87 of the time of whole logits there; where all fit into it, whole ones are quicker. Ours."""


class Network(Protocol):
    """What gives a stock model the weights of a point, and takes their gradients back."""

    def begin_step(self, mixtures: Sequence[Mixture]) -> None:
        """Materialize these points as leaves."""

    def weights_of(self, mixture: Mixture) -> Mapping[str, Tensor]:
        """Return one point's weights by parameter name."""

    def finish_step(self) -> None:
        """Push the leaves' gradients into the parameters behind them."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return the parameters behind the weights, as `nn.Module` does."""


@dataclass(frozen=True)
class HeldoutLoss:
    """Sums over a held-out split, by cluster: nats and tokens."""

    nats: dict[int, float]
    tokens: dict[int, int]

    @property
    def mean(self) -> float:
        """Nats per token over all clusters."""
        return sum(self.nats.values()) / max(1, sum(self.tokens.values()))

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.mean)


def logits_of(model: nn.Module, weights: dict[str, Tensor], batch: Microbatch) -> Tensor:
    """Return a microbatch's logits in float32 or wider, one row a token: (B * S, V).

    `weights` replace parameters of the model, by name (the expert's dense layers); {} for a plain model.
    """
    hidden_ND, head_VD = _hidden(model, weights, batch)
    return _logits(hidden_ND, head_VD)


def sum_nats(model: nn.Module, weights: dict[str, Tensor], batch: Microbatch) -> Tensor:
    """Return the summed negative log likelihood (nats, float32) of a microbatch's tokens.

    Logits of more than LOGITS_BYTES are never in memory all at once.
    """
    hidden_ND, head_VD = _hidden(model, weights, batch)
    labels_N = batch.labels.to(hidden_ND.device).flatten()
    chunk_rows = max(1, LOGITS_BYTES // (4 * len(head_VD)))
    if len(hidden_ND) <= chunk_rows:
        logits_NV = _logits(hidden_ND, head_VD)
        return nn.functional.cross_entropy(logits_NV, labels_N, ignore_index=IGNORED, reduction="sum")
    arguments = (hidden_ND, head_VD, labels_N, chunk_rows, torch.is_grad_enabled())
    return cast(Tensor, _ChunkedNats.apply(*arguments))


def _hidden(model: nn.Module, weights: dict[str, Tensor], batch: Microbatch) -> tuple[Tensor, Tensor]:
    """Return what the output layer gets, (B * S, D), and its weight, (V, D), in the type of products."""
    lm = cast(PreTrainedModel, model)
    device = lm.device
    arguments = {
        "input_ids": batch.input_ids.to(device),
        "position_ids": batch.position_ids.to(device),
        "use_cache": False,
    }
    prefix = f"{lm.base_model_prefix}."
    inner = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    with autocast(device):
        hidden = functional_call(lm.get_decoder(), inner, (), arguments).last_hidden_state.flatten(0, 1)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    head = cast(Tensor, lm.get_output_embeddings().weight)
    return (hidden, head) if dtype is None else (hidden.to(dtype), head.to(dtype))


def _logits(hidden_ND: Tensor, head_VD: Tensor) -> Tensor:
    logits = hidden_ND @ head_VD.T
    return logits.to(_wide(logits))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class _ChunkedNats(torch.autograd.Function):
    """Summed nats whose gradients are taken while each chunk's logits are in memory.

    Of the sum, nats and gradients are independent from token to token. Written here because torch's
    `linear_cross_entropy` returns a bfloat16 sum for bfloat16 products (an error of 1e-2), and took 3.5 to 8
    times as long on a CPU (docs/benchmarks.md). Idea: cut cross-entropy, Wijmans et al. 2024, §3.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        labels_N: Tensor,
        chunk_rows: int,
        wants_gradient: bool,
    ) -> Tensor:
        """Return the sum, and keep its gradients where they are wanted."""
        total = torch.zeros((), dtype=_wide(hidden_ND), device=hidden_ND.device)
        if wants_gradient:
            hidden_gradient = torch.empty_like(hidden_ND)
            head_gradient = torch.zeros_like(head_VD, dtype=_wide(head_VD))
        for first in range(0, len(hidden_ND), chunk_rows):
            chunk = slice(first, first + chunk_rows)
            hidden, labels = hidden_ND[chunk], labels_N[chunk]
            logits = _logits(hidden, head_VD)
            counts = labels != IGNORED
            label = torch.where(counts, labels, 0).unsqueeze(1)
            log_sum = logits.logsumexp(1, keepdim=True)
            total += ((log_sum - logits.gather(1, label)).squeeze(1) * counts).sum()
            if wants_gradient:
                gradient = logits.sub_(log_sum).exp_()
                gradient.scatter_add_(1, label, gradient.new_full(label.shape, -1.0))
                gradient = gradient.mul_(counts.unsqueeze(1)).to(hidden.dtype)
                hidden_gradient[chunk] = gradient @ head_VD
                head_gradient += gradient.T @ hidden
        if wants_gradient:
            ctx.save_for_backward(hidden_gradient, head_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Scale what forward kept."""
        hidden_gradient, head_gradient = ctx.saved_tensors
        return hidden_gradient * scales[0], head_gradient * scales[0], None, None, None


@torch.no_grad()
def evaluate(model: nn.Module, network: Network | None, batches: Iterable[Microbatch]) -> HeldoutLoss:
    """Return the held-out loss, each cluster's windows under its own expert."""
    nats: dict[int, float] = {}
    tokens: dict[int, int] = {}
    materialized: Mixture | None = None
    model.eval()
    for batch in batches:
        weights: dict[str, Tensor] = {}
        if network is not None:
            if batch.mixture != materialized:
                network.begin_step([batch.mixture])
                materialized = batch.mixture
            weights = dict(network.weights_of(batch.mixture))
        loss = float(sum_nats(model, weights, batch))
        nats[batch.cluster] = nats.get(batch.cluster, 0.0) + loss
        tokens[batch.cluster] = tokens.get(batch.cluster, 0) + batch.n_tokens
        beat()
    model.train()
    return HeldoutLoss(nats, tokens)
