"""Pretrain one system of the paper: plain small model, projected network, hard mixture.

One trainer (shared/training.py), three parameterizations: slm has no projection (§2.2); pn trains E, M
and T jointly on all clusters (§2.5); mix is one slm per cluster, trained on that cluster's windows with
its share of the batch (§2.4). slm and pn see the same rows in the same order.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from provider.recipe import Recipe
from shared.batches import Microbatch, Sampler, Windows, all_microbatches
from shared.checkpoints import load_checkpoint, save_checkpoint
from shared.device import choose_device, make_deterministic
from shared.errors import DocumentsError
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.slm import build_slm
from shared.training import HeldoutLoss, Say, evaluate, train

WEIGHTS_FILE = "weights.safetensors"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_windows(folder: Path, split: str, n_clusters: int) -> Windows:
    """Open one split's sorted shards, mmapped."""
    with np.load(folder / f"{split}-index.npz") as index:
        starts, lengths, clusters = index["starts"], index["lengths"], index["clusters"]
    streams = [np.load(folder / f"{split}-{cluster:05}.npy", mmap_mode="r") for cluster in range(n_clusters)]
    return Windows(streams, stream=clusters, start=starts, length=lengths, cluster=clusters)


def _round(model: nn.Module, network: ProjectedNetwork | None, dtype: torch.dtype) -> None:
    """Round weights to what is published, so that the reported losses are the bundle's."""
    with torch.no_grad():
        banks = [] if network is None else list(network.bank)
        for parameter in [*model.parameters(), *banks]:
            parameter.copy_(parameter.to(dtype))


def _published(model: nn.Module, network: ProjectedNetwork | None, dtype: torch.dtype) -> dict[str, Tensor]:
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
            tensors[f"projected.{name}.bank"] = network.bank[index].detach().cpu().to(dtype)
    return tensors


def pretrain(
    system: str, recipe: Recipe, windows: Path, folder: Path, device_name: str, say: Say
) -> dict[str, Any]:
    """Pretrain a system ("slm", "pn" or "mix") into `folder/weights.safetensors`; return its record.

    The record holds steps, tokens, heldout_loss (nats/token over the generic held-out split) and
    heldout_loss_per_cluster (None where a cluster has no held-out window). Resumes what `folder` holds.
    """
    n_clusters = recipe.clustering.n_clusters
    train_windows = load_windows(windows, "train", n_clusters)
    heldout_windows = load_windows(windows, "heldout", n_clusters)
    if not len(train_windows) or not len(heldout_windows):
        raise DocumentsError(
            f"{len(train_windows)} training and {len(heldout_windows)} held-out windows",
            hint="use more documents, or name held-out files in corpus.heldout",
        )
    if system != "mix":
        tensors, loss, tokens = _pretrain_one(
            system, recipe, train_windows, heldout_windows, folder, device_name, say
        )
    else:
        tensors, tokens = {}, 0
        nats_sum: dict[int, float] = {}
        token_sum: dict[int, int] = {}
        share = max(1, recipe.pretraining.rows_per_step // n_clusters)
        config = replace(
            recipe.pretraining,
            rows_per_step=share,
            rows_per_microbatch=math.gcd(share, recipe.pretraining.rows_per_microbatch),
        )
        for cluster in range(n_clusters):
            part = folder / f"expert-{cluster:05}"
            finished = part / WEIGHTS_FILE
            if not finished.exists():
                found, part_loss, part_tokens = _pretrain_one(
                    "slm",
                    replace(recipe, pretraining=config),
                    train_windows.take(train_windows.cluster == cluster),
                    heldout_windows.take(heldout_windows.cluster == cluster),
                    part,
                    device_name,
                    partial(_say_expert, say, cluster, n_clusters),
                )
                record = {
                    "nats": list(part_loss.nats.values()),
                    "tokens": list(part_loss.tokens.values()),
                    "trained": part_tokens,
                }
                save_checkpoint(finished, found, record)
            checkpoint = load_checkpoint(finished)
            for name, tensor in checkpoint.tensors.items():
                tensors[name.replace("shared.", f"experts.{cluster}.", 1)] = tensor
            nats_sum[cluster] = sum(checkpoint.record["nats"])
            token_sum[cluster] = sum(checkpoint.record["tokens"])
            tokens += checkpoint.record["trained"]
        loss = HeldoutLoss(nats_sum, token_sum)
    record = {
        "steps": recipe.pretraining.steps,
        "tokens": tokens,
        "heldout_loss": loss.mean,
        "heldout_loss_per_cluster": [
            loss.nats[c] / loss.tokens[c] if loss.tokens.get(c) else None for c in range(n_clusters)
        ],
    }
    save_checkpoint(folder / WEIGHTS_FILE, tensors, record)
    return record


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
) -> tuple[dict[str, Tensor], HeldoutLoss, int]:
    device = choose_device(device_name)
    context, config = recipe.model.context_tokens, recipe.pretraining
    make_deterministic(recipe.seed)
    model = cast(nn.Module, build_slm(recipe.model)).to(device)
    network = None
    if system == "pn":
        assert recipe.projection is not None
        network = ProjectedNetwork(
            model,
            feed_forward_linears(model, recipe.projection.layers),
            recipe.clustering.n_clusters,
            recipe.projection.expert_size,
            recipe.projection.capacity,
        ).to(device)
    sampler = Sampler(train_windows, context, config.rows_per_step, config.rows_per_microbatch, recipe.seed)

    def heldout() -> Iterable[Microbatch]:
        return all_microbatches(heldout_windows, context, config.rows_per_microbatch)

    result = train(model, network, sampler, heldout, config, folder, say, inputs=system)
    dtype = DTYPES[recipe.weights]
    _round(model, network, dtype)
    loss = evaluate(model, network, heldout())
    return _published(model, network, dtype), loss, result.tokens
