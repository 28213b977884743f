"""What is minimized and what is reported: nats over a microbatch, nats per token over a held-out split."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from shared.batches import IGNORED, Microbatch, Mixture
from shared.device import autocast
from shared.progress import beat

LossFunction = Callable[[nn.Module, dict[str, Tensor], Microbatch], Tensor]
"""(model, replaced weights, microbatch) to a sum over its tokens, to be divided by their number."""


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
    device = next(model.parameters()).device
    arguments = {
        "input_ids": batch.input_ids.to(device),
        "position_ids": batch.position_ids.to(device),
        "use_cache": False,
    }
    with autocast(device):
        logits = functional_call(model, weights, (), arguments).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)


def sum_nats(model: nn.Module, weights: dict[str, Tensor], batch: Microbatch) -> Tensor:
    """Return the summed negative log likelihood (nats, float32) of a microbatch's tokens."""
    logits = logits_of(model, weights, batch)
    labels = batch.labels.to(logits.device).flatten()
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


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
