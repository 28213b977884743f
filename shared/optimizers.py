"""What moves the parameters: Adam for all of them (Table 6), or Muon for the matrices inside the layers.

Muon (Jordan et al. 2024; torch's own) makes each update of a matrix nearly orthogonal. A weight bank is h
matrices, each with its own update. Embeddings, norms, expert vectors and mixings stay with Adam, as its
authors advise. Its updates are scaled to the size of Adam's, so that one learning rate serves both (Liu et
al. 2025, "match_rms_adamw"). State has names, for checkpoints: adam_mean, adam_square, muon_momentum.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared.errors import PlanearlyError
from shared.manifest import OPTIMIZERS


class Optimizer:
    """The optimizer of one run, over parameters by name."""

    def __init__(self, kind: str, parameters: Mapping[str, nn.Parameter]) -> None:
        """Raises PlanearlyError where torch has no Muon."""
        self._matrices = {name: p for name, p in parameters.items() if kind == "muon" and is_matrix(name, p)}
        self._others = {name: p for name, p in parameters.items() if name not in self._matrices}
        # A view for each slice of a bank: Muon takes nothing but matrices.
        self._slices = {
            name: [nn.Parameter(m) for m in (p.detach() if p.ndim == 3 else p.detach().unsqueeze(0))]
            for name, p in self._matrices.items()
        }
        self._adam = torch.optim.Adam(self._others.values(), fused=True, weight_decay=0.0)
        self._muon = _muon([m for slices in self._slices.values() for m in slices])

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in (*self._matrices.values(), *self._others.values()):
            parameter.grad = None

    def step(self, learning_rate: float) -> None:
        """Move every parameter by its gradient."""
        for name, slices in self._slices.items():
            gradient = self._matrices[name].grad
            for index, matrix in enumerate(slices):
                matrix.grad = gradient if gradient is None or gradient.ndim == 2 else gradient[index]
        for optimizer in (self._adam, self._muon):
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, empty before the first step."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._others.items():
            state = self._adam.state.get(parameter)
            if state:
                found[f"adam_mean.{name}"] = state["exp_avg"]
                found[f"adam_square.{name}"] = state["exp_avg_sq"]
        for name, slices in self._slices.items():
            assert self._muon is not None
            states = [self._muon.state.get(matrix) for matrix in slices]
            if all(states):
                momenta = [state["momentum_buffer"] for state in states if state]
                found[f"muon_momentum.{name}"] = torch.stack(momenta)
        return found

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take up the state that `tensors` returned after so many steps."""
        for name, parameter in self._others.items():
            if f"adam_mean.{name}" in tensors:
                self._adam.state[parameter] = {
                    "step": torch.full((), float(step), device=parameter.device),
                    "exp_avg": tensors[f"adam_mean.{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"adam_square.{name}"].to(parameter.device),
                }
        for name, slices in self._slices.items():
            if f"muon_momentum.{name}" in tensors:
                assert self._muon is not None
                for matrix, momentum in zip(slices, tensors[f"muon_momentum.{name}"], strict=True):
                    self._muon.state[matrix] = {"momentum_buffer": momentum.to(matrix.device).clone()}


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Say whether Muon moves a parameter: a layer's matrix, or a bank of them."""
    return ".layers." in name and parameter.ndim == 2 or name.startswith("projection.bank.")


def check_optimizer(kind: str) -> None:
    """Raise PlanearlyError for an optimizer that is not known, or that this torch lacks."""
    if kind not in OPTIMIZERS:
        raise PlanearlyError(f"optimizer is {kind!r}, expected one of: {', '.join(OPTIMIZERS)}")
    if kind == "muon" and not hasattr(torch.optim, "Muon"):
        raise PlanearlyError(
            f"optimizer is 'muon', which torch {torch.__version__} does not have",
            hint="install torch 2.9 or newer",
        )


def _muon(matrices: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    if not matrices:
        return None
    return torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
