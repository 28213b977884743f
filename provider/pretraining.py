"""Pretrain one system of the paper: plain model, projected network, hard mixture, importance sampling.

One trainer (shared/training.py), three parameterizations: slm has no projection (§2.2), and is the LLM
too, at other sizes; pn trains E, M and T jointly on all clusters (§2.5); mix is one slm per cluster,
trained on that cluster's windows with its share of the batch, all of them or one alone (Fig. 8), each
a task of its own for provider/executors.py. slm and pn see the same rows in the same order; with weights they
see them resampled (SLM-is, §2.4).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from provider.executors import IN_PROCESS, Executor, run_tasks
from provider.recipe import Recipe
from provider.tracking import METRICS_FILE, StepFile
from shared.batches import Microbatch, Sampler, Windows, all_microbatches
from shared.checkpoints import load_checkpoint, save_checkpoint
from shared.device import choose_device, make_deterministic
from shared.errors import DocumentsError, RecipeError
from shared.files import write_json
from shared.importance import describe_resampling
from shared.losses import HeldoutLoss, Network
from shared.progress import Say, stage
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.ranks import ONE_PROCESS, Ranks
from shared.slm import build_slm
from shared.training import train

WEIGHTS_FILE, COST_FILE = "weights.safetensors", "cost.json"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_windows(folder: Path, split: str, n_clusters: int, only: int | None = None) -> Windows:
    """Open one split's shards, mmapped: of all clusters, in their order, or of one."""
    clusters = range(n_clusters) if only is None else [only]
    lengths = [np.load(folder / f"{split}-{cluster:05}-lengths.npy", mmap_mode="r") for cluster in clusters]
    counts = [len(part) for part in lengths]
    # 16 bytes a window, each written once: a corpus of C4's size has several GB of them.
    length, start = np.empty(sum(counts), np.int32), np.empty(sum(counts), np.int64)
    end = 0
    for part in lengths:
        here = slice(end, end := end + len(part))
        length[here] = part
        np.cumsum(part, dtype=np.int64, out=start[here])
        start[here] -= part
    stream = np.repeat(np.arange(len(clusters), dtype=np.int32), counts)
    return Windows(
        [np.load(folder / f"{split}-{cluster:05}.npy", mmap_mode="r") for cluster in clusters],
        stream,
        start,
        length,
        cluster=stream if only is None else np.full_like(stream, only),
    )


def _round(model: nn.Module, network: ProjectedNetwork | None, dtype: torch.dtype) -> None:
    """Round weights to what is published, so that the reported losses are the bundle's."""
    with torch.no_grad():
        banks = [] if network is None else list(network.bank)
        for parameter in [*model.parameters(), *banks]:
            parameter.copy_(parameter.to(dtype))


def _published(
    model: nn.Module, network: ProjectedNetwork | None, dtype: torch.dtype, ranks: Ranks = ONE_PROCESS
) -> dict[str, Tensor]:
    """Return the weights under the names a bundle of kind slm or pn gives them."""
    projected = set() if network is None else {f"{name}.weight" for name in network.linears}
    tensors = {
        f"shared.{name}": parameter.detach().cpu().to(dtype)
        for name, parameter in model.named_parameters()
        if name not in projected
    }
    if network is not None:
        tensors["experts.vectors"] = network.published_experts().detach().cpu()
        for index, name in enumerate(network.linears):
            tensors[f"projected.{name}.mixing"] = network.published_mixing(index).detach().cpu()
            bank_HOI = ranks.whole(f"projection.bank.{index}", network.bank[index])
            tensors[f"projected.{name}.bank"] = bank_HOI.detach().cpu().to(dtype)
    return tensors


def pretrain(
    system: str,
    recipe: Recipe,
    windows: Path,
    folder: Path,
    device_name: str,
    say: Say,
    weights_K: np.ndarray | None = None,
    experts: Sequence[int] = (),
    executor: Executor = IN_PROCESS,
    ranks: Ranks = ONE_PROCESS,
) -> dict[str, Any]:
    """Pretrain a system ("slm", "pn" or "mix") into `folder/weights.safetensors`; return its record.

    `weights_K` are importance weights by cluster; `experts` are those of a mixture to train, none named:
    all. The record holds steps, tokens, heldout_loss (nats/token over the generic held-out split, or the
    named experts' part of it), heldout_loss_per_cluster (None where a cluster has no held-out window or no
    expert) and, with weights, `importance`. What it cost goes to `folder/cost.json`: that differs from
    run to run, and the record must not. Resumes what `folder` holds. Several `ranks` all call it; the first
    one writes.
    """
    n_clusters = recipe.clustering.n_clusters
    train_windows = load_windows(windows, "train", n_clusters)
    heldout_windows = load_windows(windows, "heldout", n_clusters)
    if not len(train_windows) or not len(heldout_windows):
        raise DocumentsError(
            f"{len(train_windows)} training and {len(heldout_windows)} held-out windows",
            hint="use more documents, or name held-out files in corpus.heldout",
        )
    if system == "mix":
        trained = _pretrain_mixture(
            recipe, windows, folder, device_name, say, experts or range(n_clusters), executor
        )
    else:
        trained = _pretrain_one(
            system, recipe, train_windows, heldout_windows, folder, device_name, say, weights_K, ranks
        )
    loss = trained.loss
    record: dict[str, Any] = {
        "steps": recipe.pretraining.steps,
        "tokens": trained.tokens,
        "heldout_loss": loss.mean,
        "heldout_loss_per_cluster": [
            loss.nats[c] / loss.tokens[c] if loss.tokens.get(c) else None for c in range(n_clusters)
        ],
    }
    if trained.importance is not None:
        record["importance"] = trained.importance
    if not ranks.is_first:
        return record
    save_checkpoint(folder / WEIGHTS_FILE, trained.tensors, record)
    write_json(
        folder / COST_FILE,
        {
            "system": system,
            "steps": recipe.pretraining.steps,
            "tokens": trained.tokens,
            "seconds": trained.seconds,
            "device": str(choose_device(device_name)),
            "threads": torch.get_num_threads(),
            **ranks.cost(),
        },
    )
    return record


@dataclass(frozen=True)
class _Trained:
    """One finished run: published tensors, held-out loss, what went into it."""

    tensors: dict[str, Tensor]
    loss: HeldoutLoss
    tokens: int
    seconds: float
    importance: dict[str, Any] | None = None


def _pretrain_mixture(
    recipe: Recipe,
    windows: Path,
    folder: Path,
    device_name: str,
    say: Say,
    experts: Sequence[int],
    executor: Executor,
) -> _Trained:
    """Train independent experts and collect them; one that is finished is kept."""
    train_them = partial(_pretrain_experts, recipe, windows, folder, device_name)
    run_tasks(executor, folder, experts, train_them, say, needs_gpu=device_name.startswith("cuda"))
    tensors: dict[str, Tensor] = {}
    nats: dict[int, float] = {}
    heldout_tokens: dict[int, int] = {}
    tokens, seconds = 0, 0.0
    for cluster in experts:
        checkpoint = load_checkpoint(_expert_folder(folder, cluster) / WEIGHTS_FILE)
        for name, tensor in checkpoint.tensors.items():
            tensors[name.replace("shared.", f"experts.{cluster}.", 1)] = tensor
        nats[cluster] = checkpoint.record["nats"]
        heldout_tokens[cluster] = checkpoint.record["heldout_tokens"]
        tokens += checkpoint.record["tokens"]
        seconds += checkpoint.record["seconds"]
    return _Trained(tensors, HeldoutLoss(nats, heldout_tokens), tokens, seconds)


def _expert_folder(folder: Path, cluster: int) -> Path:
    return folder / f"expert-{cluster:05}"


def _pretrain_experts(
    recipe: Recipe, windows: Path, folder: Path, device_name: str, experts: Sequence[int], say: Say
) -> None:
    """Train some experts, each on its cluster's windows and with its share of the batch."""
    n_clusters = recipe.clustering.n_clusters
    share = max(1, recipe.pretraining.rows_per_step // n_clusters)
    config = replace(
        recipe.pretraining,
        rows_per_step=share,
        rows_per_microbatch=math.gcd(share, recipe.pretraining.rows_per_microbatch),
    )
    for cluster in experts:
        part = _expert_folder(folder, cluster)
        if (part / WEIGHTS_FILE).exists():
            continue
        with stage(f"expert {cluster}/{n_clusters}"):
            one = _pretrain_one(
                "slm",
                replace(recipe, pretraining=config),
                load_windows(windows, "train", n_clusters, cluster),
                load_windows(windows, "heldout", n_clusters, cluster),
                part,
                device_name,
                partial(_say_expert, say, cluster, n_clusters),
            )
        record = {
            "nats": one.loss.nats.get(cluster, 0.0),
            "heldout_tokens": one.loss.tokens.get(cluster, 0),
            "tokens": one.tokens,
            "seconds": one.seconds,
        }
        save_checkpoint(part / WEIGHTS_FILE, one.tensors, record)


def _say_expert(say: Say, cluster: int, n_clusters: int, line: str) -> None:
    say(f"expert {cluster}/{n_clusters} · {line}")


def _pretrain_one(
    system: str,
    recipe: Recipe,
    train_windows: Windows,
    heldout_windows: Windows,
    folder: Path,
    device_name: str,
    say: Say,
    weights_K: np.ndarray | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> _Trained:
    device = choose_device(device_name)
    context, config = recipe.model.context_tokens, recipe.pretraining
    make_deterministic(recipe.seed)
    model = cast(nn.Module, build_slm(recipe.model)).to(device)
    network: ProjectedNetwork | None = None
    trained_network: Network | None = None
    mixed_fraction = 0.0
    if system == "pn":
        projection = recipe.projection
        assert projection is not None
        if config.optimizer == "muon" and ranks is not ONE_PROCESS:
            raise RecipeError(
                "pretraining.optimizer is 'muon', whose updates need whole matrices; of several ranks each"
                " holds some rows of the banks",
                hint="use adam, or one process",
            )
        network = ProjectedNetwork(
            model,
            feed_forward_linears(model, projection.layers),
            recipe.clustering.n_clusters,
            projection.expert_size,
            projection.capacity,
            projection.mixing == "identity",
        )
        trained_network = ranks.split(network)
        network.to(device)
        mixed_fraction = projection.mixed_fraction
    sampler = Sampler(
        train_windows,
        context,
        config.rows_per_step,
        config.rows_per_microbatch,
        recipe.seed,
        weights_K,
        mixed_fraction,
    )

    def heldout() -> Iterable[Microbatch]:
        return all_microbatches(heldout_windows, context, config.rows_per_microbatch)

    record = StepFile(folder / METRICS_FILE) if ranks.is_first else None
    result = train(
        model, trained_network, sampler, heldout, config, folder, say, system, ranks=ranks, record=record
    )
    dtype = DTYPES[recipe.weights]
    _round(model, network, dtype)
    loss = ranks.evaluate(model, trained_network, heldout())
    importance = None
    if weights_K is not None:
        counts_K = np.bincount(train_windows.cluster, minlength=len(weights_K))
        importance = asdict(describe_resampling(weights_K, counts_K, sampler.passes(config.steps)))
    tensors = _published(model, network, dtype, ranks)
    return _Trained(tensors, loss, result.tokens, result.seconds, importance)
