"""Windows to packed rows to the microbatches of one optimizer step.

Windows are packed whole into rows of context_tokens tokens, each row from one cluster, so that little
is padding and no window is cropped. The sampler is a pure function of (seed, step): resuming needs no
state but the step. It follows the corpus' own histogram, or any other (importance sampling, §2.4).
Attention never crosses from one window of a row to the next: positions start again at 0 in each, from
which transformers builds a block-diagonal mask.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from shared.pieces import BOS_ID

IGNORED = -100
"""Label of a padding token: torch's cross entropy leaves it out."""
OPEN_ROWS = 32
"""Rows that packing keeps open at a time; more would save little padding and cost time."""
LEAST_BLOCKS = 4096
"""Blocks of a resampled epoch at least: a cluster with less than half of one's share is left out."""
MIXED_CLUSTERS = 4
"""Clusters in a mixed block at most, each number from 2 equally likely. Ours."""

Mixture = tuple[tuple[int, float], ...]
"""A point between experts: (cluster, weight) pairs by cluster, the weights summing to 1."""


def alone(cluster: int) -> Mixture:
    """Return the point of one cluster's own expert."""
    return ((cluster, 1.0),)


@dataclass(frozen=True)
class Windows:
    """Token windows, possibly mmapped: `streams[stream[i]][start[i] : start[i] + length[i]]`.

    `streams` are (n,) integer arrays; `stream`, `length`, `cluster` (w,) int32; `start` (w,) int64.
    """

    streams: Sequence[np.ndarray]
    stream: np.ndarray
    start: np.ndarray
    length: np.ndarray
    cluster: np.ndarray

    def __len__(self) -> int:
        return len(self.length)

    @property
    def n_tokens(self) -> int:
        """Tokens in all windows, end-of-text tokens included."""
        return int(self.length.sum())

    def tokens(self, window: int) -> np.ndarray:
        """Return one window's token ids: (n,)."""
        start = self.start[window]
        return self.streams[self.stream[window]][start : start + self.length[window]]

    def take(self, chosen: np.ndarray) -> "Windows":
        """Return the chosen windows (a mask or indices) over the same streams."""
        return Windows(
            self.streams,
            self.stream[chosen],
            self.start[chosen],
            self.length[chosen],
            self.cluster[chosen],
        )


@dataclass(frozen=True)
class Rows:
    """Packed rows, by cluster: row r holds `windows[bounds[r] : bounds[r + 1]]`, all of `cluster[r]`."""

    windows: np.ndarray
    bounds: np.ndarray
    cluster: np.ndarray

    def __len__(self) -> int:
        return len(self.cluster)


@dataclass(frozen=True)
class Microbatch:
    """Rows of one point between experts for the model; all (B, S) int64, S the longest row's tokens."""

    mixture: Mixture
    """Whose weights the rows go through, and whose windows they are: nearly always one cluster's."""
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    n_tokens: int
    """Tokens predicted: every token of every window, once."""

    @property
    def cluster(self) -> int:
        """The cluster of the largest weight."""
        return max(self.mixture, key=lambda pair: (pair[1], -pair[0]))[0]


def pack_rows(windows: Windows, context_tokens: int) -> Rows:
    """Pack windows into rows of at most context_tokens tokens: first fit over a few open rows.

    Deterministic; longest windows first, in corpus order among equals. Cost: sorting each cluster's windows
    by length, then O(context_tokens * OPEN_ROWS) for each cluster.
    """
    if (windows.cluster[1:] < windows.cluster[:-1]).any():
        order = np.argsort(windows.cluster, kind="stable")
        rows = pack_rows(windows.take(order), context_tokens)
        return Rows(order[rows.windows].astype(rows.windows.dtype), rows.bounds, rows.cluster)
    # Every training process holds this: 4 bytes a window and 8 a row, for up to 2 billion windows.
    kind = np.int32 if len(windows) <= np.iinfo(np.int32).max else np.int64
    packed = np.empty(len(windows), kind)
    bounds, owners = [np.zeros(1, kind)], [np.zeros(0, np.int32)]
    for first, end in _runs(windows.cluster):
        order, counts = _pack_cluster(windows.length[first:end], context_tokens)
        packed[first:end] = first + order
        bounds.append((first + np.cumsum(counts)).astype(kind))
        owners.append(np.full(len(counts), windows.cluster[first], np.int32))
    return Rows(packed, np.concatenate(bounds), np.concatenate(owners))


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, end) of each run of equal values."""
    changes = (np.flatnonzero(values[1:] != values[:-1]) + 1).tolist()
    return list(itertools.pairwise([0, *changes, len(values)])) if len(values) else []


def _pack_cluster(length_N: np.ndarray, context_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one cluster's windows in the order of its rows, (n,) int64, and how many each row holds.

    Windows of one length follow one another: as many as fit go into each open row in turn, the rest into new
    rows, all at once.
    """
    shortfall = (context_tokens - length_N).astype(np.min_scalar_type(context_tokens))  # 16 bits: radix sort
    longest_first = np.argsort(shortfall, kind="stable")
    open_rows: list[tuple[int, int]] = []
    taking, taken = [], []
    n_rows = 0
    for short, left in enumerate(np.bincount(shortfall).tolist()):
        length = context_tokens - short
        for place, (row, room) in enumerate(open_rows):
            fits = min(left, room // length)
            if fits:
                open_rows[place] = (row, room - fits * length)
                taking.append(np.asarray([row]))
                taken.append(np.asarray([fits]))
                left -= fits
        if left:
            each = context_tokens // length
            new = np.arange(n_rows, n_rows + -(-left // each))
            counts = np.full(len(new), each)
            counts[-1] = left - each * (len(new) - 1)
            taking.append(new)
            taken.append(counts)
            n_rows += len(new)
            if length < context_tokens:
                rooms = context_tokens - length * counts[-OPEN_ROWS:]
                newest = zip(new[-OPEN_ROWS:].tolist(), rooms.tolist(), strict=True)
                open_rows = [*open_rows, *newest][-OPEN_ROWS:]
    row_N = np.repeat(np.concatenate(taking), np.concatenate(taken))
    return longest_first[np.argsort(row_N, kind="stable")], np.bincount(row_N)


def collate(
    windows: Windows, rows: Rows, chosen: Sequence[int], mixture: Mixture | None = None
) -> Microbatch:
    """Build the tensors of some rows; without a mixture, all are of the first one's cluster.

    A window w_1..w_n becomes inputs <s>, w_1..w_(n-1) and labels w_1..w_n, so that each of its tokens is
    predicted once. Padding repeats the rule of a window of its own, with labels ignored.
    """
    members = [rows.windows[rows.bounds[row] : rows.bounds[row + 1]] for row in chosen]
    longest = max(int(windows.length[row].sum()) for row in members)
    inputs = np.full((len(members), longest), BOS_ID, np.int64)
    positions = np.zeros((len(members), longest), np.int64)
    labels = np.full((len(members), longest), IGNORED, np.int64)
    n_tokens = 0
    for index, row in enumerate(members):
        place = 0
        for window in row:
            ids = windows.tokens(window)
            end = place + len(ids)
            inputs[index, place + 1 : end] = ids[:-1]
            positions[index, place:end] = np.arange(len(ids))
            labels[index, place:end] = ids
            place = end
        n_tokens += place
        positions[index, place:] = np.arange(longest - place)
    return Microbatch(
        mixture=mixture or alone(int(rows.cluster[chosen[0]])),
        input_ids=torch.from_numpy(inputs),
        position_ids=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        n_tokens=n_tokens,
    )


class Sampler:
    """The microbatches of each optimizer step, a pure function of (seed, step).

    Steps take consecutive blocks, each rows_per_microbatch rows of one cluster, of an endless sequence of
    shuffled epochs. A cluster's blocks go through all of its rows, shuffled, before any comes again.
    Without `weights` an epoch is every row once. With them, P(cluster) of its rows is multiplied by the
    cluster's weight: w = P(c | spec) / P(c | generic) gives the importance sampling of §2.4.
    A `mixed_fraction` of blocks is drawn from 2 to MIXED_CLUSTERS clusters in a random ratio, and goes
    through the weights of the same ratio (the idea of Soup-of-Experts, arXiv 2502.01804).
    """

    def __init__(
        self,
        windows: Windows,
        context_tokens: int,
        rows_per_step: int,
        rows_per_microbatch: int,
        seed: int,
        weights: np.ndarray | None = None,
        mixed_fraction: float = 0.0,
    ) -> None:
        """Pack the windows; costs O(windows). `weights` (n_clusters,) are 0 or more, by cluster."""
        self.windows = windows
        self.rows = pack_rows(windows, context_tokens)
        self.rows_per_microbatch = rows_per_microbatch
        self.blocks_per_step = rows_per_step // rows_per_microbatch
        self.seed = seed
        self.mixed_fraction = mixed_fraction
        # Rows lie in cluster order, as pack_rows left them.
        kind = self.rows.bounds.dtype
        self._by_cluster = {
            int(self.rows.cluster[first]): np.arange(first, end, dtype=kind)
            for first, end in _runs(self.rows.cluster)
        }
        self._blocks = {c: -(-len(rows) // rows_per_microbatch) for c, rows in self._by_cluster.items()}
        self._quota = self._blocks if weights is None else _apportion(self._by_cluster, weights)
        self._n_blocks = sum(self._quota.values())
        self._epoch = lru_cache(maxsize=2)(self._shuffle_epoch)
        self._pass = lru_cache(maxsize=4096)(self._shuffle_cluster)

    def _shuffle_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return each block's cluster, and how many blocks of it come before in this epoch."""
        clusters = np.repeat(list(self._quota), list(self._quota.values()))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(clusters)
        before = np.empty(len(order), np.int64)
        before[np.argsort(order, kind="stable")] = np.concatenate(
            [np.arange(self._quota[cluster]) for cluster in sorted(self._quota)]
        )
        return order, before

    def _shuffle_cluster(self, cluster: int, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 1, cluster, number]).permutation(self._by_cluster[cluster])

    def _block(self, index: int) -> Microbatch:
        epoch, place = divmod(index, self._n_blocks)
        order, before = self._epoch(epoch)
        cluster = int(order[place])
        number, block = divmod(epoch * self._quota[cluster] + int(before[place]), self._blocks[cluster])
        start = block * self.rows_per_microbatch
        rows = self._pass(cluster, number)[start : start + self.rows_per_microbatch]
        if self.mixed_fraction > 0 and len(self._quota) > 1:
            generator = np.random.default_rng([self.seed, 2, index])
            if generator.random() < self.mixed_fraction:
                return self._mixed_block(cluster, generator)
        return collate(self.windows, self.rows, rows.tolist())

    def _mixed_block(self, cluster: int, generator: np.random.Generator) -> Microbatch:
        others = np.asarray([c for c in self._quota if c != cluster])
        shares = np.asarray([self._quota[c] for c in others], float)
        n_others = min(int(generator.integers(1, MIXED_CLUSTERS)), int(np.count_nonzero(shares)))
        chosen = generator.choice(others, n_others, replace=False, p=shares / shares.sum())
        clusters = sorted([cluster, *chosen.tolist()])
        ratio = generator.dirichlet(np.ones(len(clusters)))
        drawn = generator.choice(np.asarray(clusters), self.rows_per_microbatch, p=ratio)
        rows = [int(generator.choice(self._by_cluster[int(c)])) for c in drawn]
        return collate(self.windows, self.rows, rows, tuple(zip(clusters, ratio.tolist(), strict=True)))

    def step(self, step: int) -> list[Microbatch]:
        """Return the microbatches of optimizer step `step`, counted from 0."""
        return [self._block(step * self.blocks_per_step + i) for i in range(self.blocks_per_step)]

    def passes(self, n_steps: int) -> dict[int, float]:
        """Return how often n_steps go through each cluster's rows; over 1 they repeat (App. D.1)."""
        epochs = n_steps * self.blocks_per_step / self._n_blocks
        return {c: epochs * self._quota[c] / self._blocks[c] for c in self._quota}


def _apportion(by_cluster: dict[int, np.ndarray], weights: np.ndarray) -> dict[int, int]:
    """Return whole blocks per cluster in proportion to rows times weight, by largest remainders."""
    clusters = list(by_cluster)
    mass = np.asarray([len(by_cluster[c]) * float(weights[c]) for c in clusters])
    exact = mass / mass.sum() * max(LEAST_BLOCKS, len(clusters))
    quota = np.floor(exact).astype(int)
    short = round(exact.sum()) - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:short]] += 1
    return {c: int(n) for c, n in zip(clusters, quota, strict=True) if n}


def all_microbatches(windows: Windows, context_tokens: int, rows_per_microbatch: int) -> Iterator[Microbatch]:
    """Yield every window once, packed, in cluster order: for held-out losses."""
    rows = pack_rows(windows, context_tokens)
    for first, end in _runs(rows.cluster):
        for start in range(first, end, rows_per_microbatch):
            yield collate(windows, rows, range(start, min(start + rows_per_microbatch, end)))
