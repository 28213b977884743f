"""Pretraining on several processes (ranks), one per GPU or core, that torchrun starts.

Each rank takes whole microbatches of a step, of as few clusters as can be. Every bank T is split by its
output rows: a rank keeps its rows of T, of T's gradient and of Adam's moments, and nobody holds it whole. It
projects its rows of the weights of all clusters in the step and sends each rank those of its clusters; the
gradients dW_c come back the same way. That is an all-to-all of C weights of a linear layer in place of the H
slices of its bank; where the clusters are more than the slices, the bank itself is exchanged. All other
parameters are whole on every rank, their gradients summed in buckets.

Not here: the trunk split too, pipelines, mixtures (whose experts are separate jobs: `--expert`).
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from provider.split_network import SplitNetwork
from shared.batches import Microbatch, Mixture
from shared.checkpoints import Checkpoint, file_order, load_newest, save_step
from shared.device import choose_device
from shared.errors import PlanearlyError
from shared.losses import HeldoutLoss, Network, evaluate
from shared.projection import ProjectedNetwork
from shared.ranks import ONE_PROCESS, Ranks

BUCKET_BYTES = 25 << 20
"""Gradients summed at a time; as torch's DistributedDataParallel."""
LONGEST_STAGE = timedelta(days=30)
"""The other ranks wait this long while the first one tokenizes, embeds and clusters. Ours."""
SLOWEST_RANK = timedelta(hours=1)
"""Within a training step, the longest wait for another rank: it may be writing a checkpoint. Ours."""
BANK = re.compile(r"projection\.bank\.(\d+)$")
"""Names, in a checkpoint, of what is split by output rows: banks, and their moments."""
LOST_RANK = re.compile(r"[Cc]onnection (closed|reset)|Broken pipe|[Tt]imed out|remote process exited|NCCL")
"""How gloo and NCCL say, in a RuntimeError, that another process is gone."""


def share_microbatches(batches: Sequence[Microbatch], n_ranks: int) -> list[list[Microbatch]]:
    """Return each rank's microbatches: as many as any other's or one less, of few clusters.

    Sorted by point and cut in n_ranks runs, so at most n_ranks - 1 points are on two ranks or more. A pure
    function: every rank knows what the others hold without asking.
    """
    order = sorted(range(len(batches)), key=lambda index: (batches[index].mixture, index))
    bounds = [len(batches) * rank // n_ranks for rank in range(n_ranks + 1)]
    return [[batches[i] for i in order[bounds[r] : bounds[r + 1]]] for r in range(n_ranks)]


class ManyProcesses:
    """One of several ranks; `shared/ranks.py:Ranks` says what each method is for."""

    def __init__(self, device: torch.device, store: dist.Store) -> None:
        self.rank, self.n = dist.get_rank(), dist.get_world_size()
        self.is_first = self.rank == 0
        self.device = device
        self.points: list[list[Mixture]] = []
        """Each rank's points in this step."""
        self.sent_bytes = 0
        """To other ranks, by this one; without single numbers, and counting a sum as a ring does it."""
        self._store, self._n_told = store, 0
        self._split: SplitNetwork | None = None

    def tell(self, content: Any) -> Any:
        """Return the first rank's content (JSON) on every rank, however long that takes."""
        key = f"told-{self._n_told}"
        self._n_told += 1
        if self.is_first:
            self._store.set(key, json.dumps(content))
            return content
        return json.loads(self._store.get(key))

    def split(self, network: ProjectedNetwork) -> Network:
        """Keep this rank's rows of a network's banks; return what trains it."""
        self._split = SplitNetwork(network, self)
        return self._split

    def exchange(self, parts: Sequence[Sequence[Tensor]], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Send `parts[r]` to rank r; return what each rank sent here, of these shapes."""
        tensors = [tensor.reshape(-1) for part in parts for tensor in part]
        sent = torch.cat(tensors) if tensors else torch.empty(0, device=self.device)
        sizes_sent = [sum(tensor.numel() for tensor in part) for part in parts]
        sizes = [math.prod(shape) for shape in shapes]
        received = torch.empty(sum(sizes), device=self.device)
        dist.all_to_all_single(received, sent, sizes, sizes_sent)
        self.sent_bytes += sent.element_size() * (len(sent) - sizes_sent[self.rank])
        return [flat.view(shape) for flat, shape in zip(received.split(sizes), shapes, strict=True)]

    def _sum(self, *values: float) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def share(self, batches: Sequence[Microbatch]) -> list[Microbatch]:
        """Return this rank's share, and know the points of all."""
        shares = share_microbatches(batches, self.n)
        self.points = [sorted({batch.mixture for batch in share}) for share in shares]
        return shares[self.rank]

    def agree(self, wish: bool) -> bool:
        """Ask the first rank."""
        answer = torch.tensor([wish], dtype=torch.uint8, device=self.device)
        dist.broadcast(answer, 0)
        return bool(answer)

    def add_up(self, parameters: Mapping[str, nn.Parameter], loss: float) -> float:
        """Sum what every rank holds, in buckets; rows of banks already have their whole gradient."""
        bucket: list[Tensor] = []
        for parameter in self._not_split(parameters):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(gradient.nbytes for gradient in bucket) >= BUCKET_BYTES:
                self._sum_bucket(bucket)
                bucket = []
        if bucket:
            self._sum_bucket(bucket)
        return self._sum(loss)[0]

    def _sum_bucket(self, bucket: list[Tensor]) -> None:
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        self.sent_bytes += 2 * flat.nbytes * (self.n - 1) // self.n
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _bounds(self, name: str) -> list[int] | None:
        """Return a bank's row bounds, None for what is whole on every rank."""
        found = BANK.search(name)
        return None if found is None or self._split is None else self._split.bounds[int(found[1])]

    def _not_split(self, parameters: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
        return [parameter for name, parameter in parameters.items() if self._bounds(name) is None]

    def clip(self, parameters: Mapping[str, nn.Parameter], most: float) -> float:
        """Clip by the norm over all rows of all ranks, the same on each."""
        whole = self._not_split(parameters)
        rows = [parameter for name, parameter in parameters.items() if self._bounds(name) is not None]
        squares = [float(_norm(rows)) ** 2]
        norm = math.sqrt(float(_norm(whole)) ** 2 + self._sum(*squares)[0])
        total = torch.tensor(norm, device=self.device)
        nn.utils.clip_grads_with_norm_(parameters.values(), most, total)
        return norm

    def evaluate(
        self, model: nn.Module, network: Network | None, batches: Iterable[Microbatch]
    ) -> HeldoutLoss:
        """Evaluate every n-th microbatch here, with banks held whole meanwhile; sum over ranks."""
        clusters: set[int] = set()

        def share() -> Iterator[Microbatch]:
            for index, batch in enumerate(batches):
                clusters.add(batch.cluster)
                if index % self.n == self.rank:
                    yield batch

        with self._split.whole() if network is self._split is not None else nullcontext():
            part = evaluate(model, network, share())
        ordered = sorted(clusters)
        nats = self._sum(*(part.nats.get(cluster, 0.0) for cluster in ordered))
        tokens = self._sum(*(part.tokens.get(cluster, 0) for cluster in ordered))
        return HeldoutLoss(
            dict(zip(ordered, nats, strict=True)), dict(zip(ordered, map(int, tokens), strict=True))
        )

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """Return, on the first rank, the whole of which each rank holds rows; elsewhere nothing of use."""
        bounds = self._bounds(name)
        if bounds is None:
            return tensor
        rows = [end - start if self.is_first else 0 for start, end in pairwise(bounds)]
        shapes = [(tensor.shape[0], n, tensor.shape[2]) for n in rows]
        parts = [[tensor.detach().to(self.device)], *([[]] * (self.n - 1))]
        return torch.cat(self.exchange(parts, shapes), dim=1)

    def save_step(self, folder: Path, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Have the first rank write the file, which asks for one whole tensor after the other."""
        shapes = {name: self._whole_shape(name, tensor) for name, tensor in tensors.items()}

        def content_of(name: str) -> Tensor:
            return self.whole(name, tensors[name])

        if self.is_first:
            save_step(folder, step, shapes, record, content_of)
        else:
            for name in file_order(shapes):
                content_of(name)

    def _whole_shape(self, name: str, tensor: Tensor) -> Tensor:
        bounds = self._bounds(name)
        shape = tensor.shape if bounds is None else (tensor.shape[0], bounds[-1], tensor.shape[2])
        return torch.empty(shape, dtype=tensor.dtype, device="meta")

    def load_newest(self, folder: Path, run: str, say: Callable[[str], None]) -> Checkpoint | None:
        """Have the first rank read the file; each takes its rows of one tensor after the other."""
        found = load_newest(folder, run, say) if self.is_first else None
        described = None
        if found is not None:
            described = {name: list(tensor.shape) for name, tensor in found.tensors.items()}
        record, shapes = self.tell([found and found.record, described])
        if shapes is None:
            return None
        tensors: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            whole = torch.empty(shape) if found is None else found.tensors.pop(name)
            whole = whole.to(self.device)
            dist.broadcast(whole, 0)
            bounds = self._bounds(name)
            if bounds is not None:
                whole = whole[:, bounds[self.rank] : bounds[self.rank + 1]].clone()
            tensors[name] = whole.cpu()
        return Checkpoint(tensors, record)

    def cost(self) -> dict[str, int]:
        """Return the number of ranks, and what this one sent."""
        return {"ranks": self.n, "sent_bytes": self.sent_bytes}


def _norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


@contextmanager
def joined(device_name: str) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, if it did; else this process is the only one.

    Of several ranks that fail one says why: the first to fail, but for those who only lost another.
    Raises PlanearlyError, and whatever is raised within.
    """
    rank, n_ranks = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE"))
    if n_ranks < 2 or not dist.is_torchelastic_launched():
        yield ONE_PROCESS
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    agent = dist.TCPStore(address, port, is_master=False, timeout=LONGEST_STAGE)
    store = dist.PrefixStore(f"planearly-{attempt}", agent)
    try:
        device = choose_device(device_name)
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=SLOWEST_RANK)
        yield ManyProcesses(device, store)
        dist.destroy_process_group()
    except BaseException as error:
        if store.add("failed", 1) > 1:  # another rank has said what is wrong
            sys.exit(1)
        if isinstance(error, RuntimeError) and LOST_RANK.search(str(error)):
            raise PlanearlyError(
                f"rank {rank} of {n_ranks} lost another, which ended without a word",
                hint="the same command, on as many ranks or on others, goes on from the last checkpoint",
            ) from None
        if isinstance(error, PlanearlyError) and rank:
            raise type(error)(f"rank {rank} of {n_ranks}: {error}", hint=error.hint) from None
        raise
