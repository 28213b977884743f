"""The owner's own point between experts: the expert vector learned on private windows, banks frozen (ours).

Any expert vector gives a small model, not only the K published ones, and it has few numbers to learn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from shared.batches import Microbatch, Mixture, Sampler
from shared.bundle import Bundle
from shared.materializing import materialize
from shared.progress import Say, stage
from shared.projection import project
from shared.tensors import read_tensor
from shared.train_config import TrainConfig
from shared.training import train


class PointNetwork(nn.Module):
    """One expert vector of a bundle as the only parameter; a `shared.losses.Network`."""

    def __init__(self, bundle: Bundle, vector_M: Tensor, device: torch.device) -> None:
        """Read all mixing matrices and banks as stored, verified: they stay in memory."""
        super().__init__()
        self.vector_M = nn.Parameter(vector_M.float().to(device))
        self._linears = [
            (
                name,
                read_tensor(bundle, f"projected.{name}.mixing").to(device),
                read_tensor(bundle, f"projected.{name}.bank").to(device),
            )
            for name in bundle.manifest.linears
        ]
        self._dense: list[Tensor] = []
        self._leaves: dict[str, Tensor] = {}

    def begin_step(self, mixtures: Sequence[Mixture]) -> None:
        """Materialize the point, whatever the clusters of the rows."""
        self._dense = [
            project(self.vector_M.unsqueeze(0), mixing, bank)[0] for _, mixing, bank in self._linears
        ]
        self._leaves = {
            f"{name}.weight": dense.detach().requires_grad_()
            for (name, _, _), dense in zip(self._linears, self._dense, strict=True)
        }

    def weights_of(self, mixture: Mixture) -> Mapping[str, Tensor]:
        """Return the point's weights by parameter name."""
        return self._leaves

    def finish_step(self) -> None:
        """Push the leaves' gradients into the vector."""
        torch.autograd.backward(self._dense, [cast(Tensor, leaf.grad) for leaf in self._leaves.values()])
        self._dense, self._leaves = [], {}


def learn_point(
    bundle: Bundle,
    start_M: Tensor,
    sampler: Sampler,
    heldout: list[Microbatch],
    config: TrainConfig,
    folder: Path,
    say: Say,
    device: torch.device,
    inputs: str,
) -> tuple[Tensor, float]:
    """Return the vector (M,) with the lowest held-out loss on the way, and that loss in nats/token.

    Resumes what `folder` holds. Everything but the vector is frozen.
    """
    model = cast(nn.Module, materialize(bundle, start_M)).to(device).requires_grad_(False)
    network = PointNetwork(bundle, start_M, device)
    with stage("learning"):
        result = train(model, network, sampler, lambda: heldout, config, folder, say, inputs=inputs)
    return network.vector_M.detach().cpu(), result.heldout_loss
