"""What training asks of the processes that train one model together, and the answers of one alone.

`shared/training.py` calls these at the few points where several processes (ranks) must act as one; here is
the process that has nobody to agree with, which is all an owner ever has. provider/parallel.py is the other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from shared.batches import Microbatch
from shared.checkpoints import Checkpoint, load_newest, save_step
from shared.losses import HeldoutLoss, Network, evaluate
from shared.projection import ProjectedNetwork


class Ranks(Protocol):
    """Processes that hold the same model and step together; every method is called by all of them."""

    is_first: bool
    """Whether this process writes files and speaks."""

    def tell(self, content: Any) -> Any:
        """Return the first process' content (JSON)."""

    def split(self, network: ProjectedNetwork) -> Network:
        """Keep this process' part of a network's banks; return what trains it."""

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """Return, in the first process, all of what that name's tensors are parts of."""

    def cost(self) -> dict[str, int]:
        """Return figures for a record of what pretraining cost."""

    def share(self, batches: Sequence[Microbatch]) -> list[Microbatch]:
        """Return this process' part of a step's microbatches."""

    def agree(self, wish: bool) -> bool:
        """Return the first process' wish."""

    def add_up(self, parameters: Mapping[str, nn.Parameter], loss: float) -> float:
        """Sum loss and gradients over all processes; return the loss."""

    def clip(self, parameters: Mapping[str, nn.Parameter], most: float) -> float:
        """Scale gradients so that their global norm is at most this; return what it was."""

    def evaluate(
        self, model: nn.Module, network: Network | None, batches: Iterable[Microbatch]
    ) -> HeldoutLoss:
        """Return the held-out loss over all processes."""

    def save_step(self, folder: Path, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Save a checkpoint, as one process would."""

    def load_newest(self, folder: Path, run: str, say: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest whole checkpoint, of each tensor what this process holds."""


class OneProcess:
    """Nobody to agree with."""

    is_first = True

    def tell(self, content: Any) -> Any:
        """Return the content."""
        return content

    def split(self, network: ProjectedNetwork) -> Network:
        """Return the network."""
        return network

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def cost(self) -> dict[str, int]:
        """Return nothing."""
        return {}

    def share(self, batches: Sequence[Microbatch]) -> list[Microbatch]:
        """Return all."""
        return list(batches)

    def agree(self, wish: bool) -> bool:
        """Return the wish."""
        return wish

    def add_up(self, parameters: Mapping[str, nn.Parameter], loss: float) -> float:
        """Return the loss."""
        return loss

    def clip(self, parameters: Mapping[str, nn.Parameter], most: float) -> float:
        """Clip as torch does."""
        return float(nn.utils.clip_grad_norm_(parameters.values(), most))

    def evaluate(
        self, model: nn.Module, network: Network | None, batches: Iterable[Microbatch]
    ) -> HeldoutLoss:
        """Evaluate all."""
        return evaluate(model, network, batches)

    def save_step(self, folder: Path, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Save what this process has, which is all."""
        save_step(folder, step, tensors, record)

    def load_newest(self, folder: Path, run: str, say: Callable[[str], None]) -> Checkpoint | None:
        """Load all."""
        return load_newest(folder, run, say)


ONE_PROCESS = OneProcess()
