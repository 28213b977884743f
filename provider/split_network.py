"""A projected network of which each rank holds some output rows of every bank, and nobody all of them.

A step sends the weights W_c of its clusters, projected by rows, and takes their gradients back the same
way, or gathers the banks, whichever is less (docs/decisions/0016-several-ranks.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from shared.batches import Mixture
from shared.projection import ProjectedNetwork


class Exchange(Protocol):
    """What a split network asks of the ranks that hold it together."""

    rank: int
    n: int
    points: list[list[Mixture]]
    """Each rank's points in this step."""

    def exchange(self, parts: Sequence[Sequence[Tensor]], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Send `parts[r]` to rank r; return what each rank sent here, of these shapes."""


def row_bounds(n_rows: int, n_ranks: int) -> list[int]:
    """Return where each rank's output rows of a bank begin, and the end."""
    return [n_rows * rank // n_ranks for rank in range(n_ranks + 1)]


def is_fewer_weights(points: Sequence[Sequence[Mixture]], capacity: int) -> bool:
    """Say whether a step's weights W_c, with these points on each rank, are fewer than its banks' slices.

    Over all ranks, forth and back: sum over ranks of its points against n_ranks * H, times the same rows
    that others hold.
    """
    return sum(map(len, points)) < len(points) * capacity


class SplitNetwork:
    """A projected network of which each rank holds some output rows of every bank."""

    def __init__(self, network: ProjectedNetwork, ranks: Exchange) -> None:
        self.network, self.ranks = network, ranks
        self.bounds = [row_bounds(bank.shape[1], ranks.n) for bank in network.bank]
        for index, bank in enumerate(network.bank):
            start, end = self.bounds[index][ranks.rank : ranks.rank + 2]
            network.bank[index] = nn.Parameter(bank.detach()[:, start:end].clone())
        self._shards = list(network.bank)
        self._points: list[list[Mixture]] = []
        self._leaves: list[dict[Mixture, Tensor]] = []
        self._is_whole = False

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the parameters that this rank holds, of the banks its rows."""
        return self.network.named_parameters()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Hold every bank whole, to materialize any point without another rank."""
        self._gather()
        try:
            yield
        finally:
            self._scatter()

    def _gather(self) -> None:
        for index, shard in enumerate(self._shards):
            shapes = self._shard_shapes(index)
            parts = self.ranks.exchange([[shard.detach()]] * self.ranks.n, shapes)
            self.network.bank[index] = nn.Parameter(torch.cat(parts, dim=1))
        self._is_whole = True

    def _shard_shapes(self, index: int) -> list[tuple[int, ...]]:
        capacity, _, width = self._shards[index].shape
        return [(capacity, end - start, width) for start, end in pairwise(self.bounds[index])]

    def _scatter(self) -> None:
        """Hold rows again; a gradient of a whole bank goes, by rows, to who holds them, and is summed."""
        for index, shard in enumerate(self._shards):
            gradient = self.network.bank[index].grad
            if gradient is not None:
                parts = [[gradient[:, start:end]] for start, end in pairwise(self.bounds[index])]
                found = self.ranks.exchange(parts, [tuple(shard.shape)] * self.ranks.n)
                shard.grad = torch.stack(found).sum(dim=0)
            self.network.bank[index] = shard
        self._is_whole = False

    def begin_step(self, mixtures: Sequence[Mixture]) -> None:
        """Materialize this rank's points: every rank projects its rows of the points of all."""
        if self._is_whole:  # for a held-out loss
            self.network.begin_step(mixtures)
            return
        self._points = self.ranks.points
        assert list(mixtures) == self._points[self.ranks.rank], "a step is shared out before it begins"
        if not is_fewer_weights(self._points, self.network.capacity):
            self._gather()
            self.network.begin_step(mixtures)
            return
        self.network.begin_step(sorted({point for points in self._points for point in points}))
        rows = {p: self.network.weights_of(p) for points in self._points for p in points}
        self._leaves = []
        for index, name in enumerate(self.network.linears):
            parts = [[rows[p][f"{name}.weight"].detach() for p in points] for points in self._points]
            shapes = [(len(mixtures), *shape[1:]) for shape in self._shard_shapes(index)]
            dense_COI = torch.cat(self.ranks.exchange(parts, shapes), dim=1)
            leaves = [weight_OI.requires_grad_() for weight_OI in dense_COI.unbind(0)]
            self._leaves.append(dict(zip(mixtures, leaves, strict=True)))

    def weights_of(self, mixture: Mixture) -> Mapping[str, Tensor]:
        """Return one of this rank's points' dense weights by parameter name."""
        if self._is_whole:
            return self.network.weights_of(mixture)
        named = zip(self.network.linears, self._leaves, strict=True)
        return {f"{name}.weight": leaves[mixture] for name, leaves in named}

    def finish_step(self) -> None:
        """Hand the gradients of weights to who holds the rows; push them into E, M and its rows of T."""
        if self._is_whole:
            self.network.finish_step()
            self._scatter()
            return
        rows = {p: self.network.weights_of(p) for points in self._points for p in points}
        for index, name in enumerate(self.network.linears):
            gradients = [leaf.grad for leaf in self._leaves[index].values() if leaf.grad is not None]
            parts = [[g[start:end] for g in gradients] for start, end in pairwise(self.bounds[index])]
            mine = self._shard_shapes(index)[self.ranks.rank][1:]
            found = self.ranks.exchange(parts, [(len(points), *mine) for points in self._points])
            for points, gradient_COI in zip(self._points, found, strict=True):
                for point, gradient_OI in zip(points, gradient_COI, strict=True):
                    leaf = rows[point][f"{name}.weight"]
                    leaf.grad = gradient_OI if leaf.grad is None else leaf.grad + gradient_OI
        self.network.finish_step()
        self._leaves = []
