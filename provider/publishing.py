"""Finished stages to one signed bundle, opened again as an owner would before anyone gets it."""

import math
from collections.abc import Callable, Mapping
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import torch

from provider.bundling import write_bundle
from provider.pretraining import WEIGHTS_FILE
from provider.recipe import Recipe
from provider.signing import SigningKey
from shared.batches import Windows, all_microbatches
from shared.bundle import open_bundle
from shared.checkpoints import load_checkpoint
from shared.embedder import NAME, SUB_WINDOW_PIECES, WEIGHTS_SHA256, WIDTH, find_embedder_files
from shared.errors import BundleError
from shared.files import locked, remove, rename, write_atomic
from shared.losses import evaluate
from shared.materializing import materialize
from shared.pieces import read_pieces
from shared.progress import Say
from shared.projection import feed_forward_linears
from shared.replay import replay_tensors, sample_replay
from shared.signature import public_key_pem
from shared.slm import build_slm

PUBLIC_KEY_FILE = "provider.pub"
NAMED = ("steps", "rows_per_step", "learning_rate", "optimizer")
"""Fields of a TrainConfig that have a field of their own in a training record; `schedule` has the others."""
LOSS_TOLERANCE = 1e-2
"""Nats/token by which an expert of the written bundle, run on the CPU, may differ from the training record:
other devices multiply in another precision."""


def publish(
    recipe: Recipe,
    pieces: bytes,
    centroids: np.ndarray,
    counts: np.ndarray,
    systems: dict[str, Path],
    heldout: Windows,
    out: Path,
    key: SigningKey,
    embedder_folder: Path | None,
    say: Say,
    expert: int | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Write `<name>.st` and the public key into `out`; return the bundle's path.

    `systems` are the folders of the pretrained systems. `expert` publishes that one of a mixture as kind
    slm. `record` is added to the training record. The bundle is reopened with the public key alone:
    every digest, and the held-out loss of the largest cluster's expert against the training record.
    """
    main = load_checkpoint(systems[recipe.kind] / WEIGHTS_FILE)
    tensors = dict(main.tensors)
    comparisons = {}
    for system in recipe.comparison:
        other = load_checkpoint(systems[system] / WEIGHTS_FILE)
        comparisons[system] = other.record
        for name, tensor in other.tensors.items():
            tensors[name.replace("shared.", f"{system}.", 1)] = tensor
    if expert is not None:
        tensors = {name.replace(f"experts.{expert}.", "shared.", 1): t for name, t in tensors.items()}
    kind = recipe.kind if expert is None else "slm"
    manifest, carried = _describe(recipe, recipe.name, kind, pieces, centroids, counts, embedder_folder)
    tensors |= carried
    manifest["training"] |= {
        "learning_rate": recipe.pretraining.learning_rate,
        "optimizer": recipe.pretraining.optimizer,
        "rows_per_step": recipe.pretraining.rows_per_step,
        "schedule": {
            name: value for name, value in recipe.pretraining.result_fields().items() if name not in NAMED
        },
        "comparison": comparisons,
        **main.record,
        **(record or {}),
    }
    if recipe.projection is not None:
        manifest["projection"] = {
            "capacity": recipe.projection.capacity,
            "expert_size": recipe.projection.expert_size,
            "linears": feed_forward_linears(build_slm(recipe.model, "meta"), recipe.projection.layers),
        }
    cluster = int(np.argmax(counts)) if expert is None else expert
    return _write(
        out, manifest, tensors, key, say, lambda staged: _check_as_owner(staged, key, heldout, cluster)
    )


def publish_replay(
    recipe: Recipe,
    pieces: bytes,
    centroids: np.ndarray,
    counts: np.ndarray,
    windows: Windows,
    out: Path,
    key: SigningKey,
    embedder_folder: Path | None,
    say: Say,
) -> Path:
    """Write `<name>-replay.st`, a sample of the training windows of each cluster; return its path."""
    assert recipe.replay is not None
    chosen = sample_replay(windows, recipe.replay.windows_per_cluster, recipe.seed)
    name = f"{recipe.name}-replay"
    manifest, tensors = _describe(recipe, name, "replay", pieces, centroids, counts, embedder_folder)
    manifest["replay"] = {"tokens": chosen.n_tokens, "windows": len(chosen)}
    return _write(
        out, manifest, tensors | replay_tensors(chosen), key, say, lambda staged: _reopen(staged, key)
    )


def _describe(
    recipe: Recipe,
    name: str,
    kind: str,
    pieces: bytes,
    centroids: np.ndarray,
    counts: np.ndarray,
    embedder_folder: Path | None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return what every kind of bundle has: its manifest's fields, clusters and carried files."""
    tensors = {
        "clusters.centroids": torch.from_numpy(centroids),
        "clusters.counts": torch.from_numpy(counts),
    }
    files = {"tokenizer.json": pieces}
    if recipe.embedder == "files":
        files["embedder.safetensors"], files["embedder-vocab.txt"] = find_embedder_files(embedder_folder)
    for file, content in files.items():
        tensors[f"files.{file}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    manifest: dict[str, Any] = {
        "name": name,
        "version": recipe.version,
        "created": recipe.created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "license": recipe.license,
        "kind": kind,
        "model": recipe.model.to_dict(),
        "n_experts": 1 if kind in ("slm", "replay") else recipe.clustering.n_clusters,
        "comparison": list(recipe.comparison) if kind in ("pn", "mix") else [],
        "tokenizer": {"type": "unigram", "file": "tokenizer.json"},
        "embedder": {
            "name": NAME,
            "sha256": WEIGHTS_SHA256,
            "width": WIDTH,
            "sub_window_pieces": SUB_WINDOW_PIECES,
            "embedded": recipe.embedder == "files",
        },
        "clusters": {"n": len(centroids), "corpus_windows": int(counts.sum())},
        "training": {
            "corpus": recipe.corpus.description,
            "sources": [dict(source) for source in recipe.corpus.sources],
            "seed": recipe.seed,
        },
    }
    return manifest, tensors


def _write(
    out: Path,
    manifest: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    key: SigningKey,
    say: Say,
    check: Callable[[Path], None],
) -> Path:
    """Write `<name>.st` under another name, check it, rename it; write the public key beside it."""
    name = manifest["name"]
    path = out / f"{name}.st"
    staged = out / f".{name}.unchecked"
    with locked(out, wait=True):  # releases of other names may publish here too
        for pattern in (f".*{name}.unchecked*", f".{PUBLIC_KEY_FILE}.*"):
            for stale in out.glob(pattern):  # of a killed release
                remove(stale)
        try:
            write_bundle(staged, manifest, tensors, key)
            check(staged)
            rename(staged, path)
        finally:
            remove(staged)
        with write_atomic(out / PUBLIC_KEY_FILE) as file:
            file.write(public_key_pem(key.public_key))
    (out / PUBLIC_KEY_FILE).chmod(0o644)
    path.chmod(0o644)
    say(f"{'bundle':<12} {path} · {path.stat().st_size:,} bytes · key {key.public_key.key_id}")
    return path


def _reopen(path: Path, key: SigningKey) -> None:
    with open_bundle(path, [key.public_key]) as bundle:
        bundle.verify_all()


def _check_as_owner(path: Path, key: SigningKey, heldout: Windows, cluster: int) -> None:
    with open_bundle(path, [key.public_key]) as bundle:
        bundle.verify_all()
        manifest = bundle.manifest
        expert = cluster if manifest.n_experts > 1 else 0
        read_pieces(bundle.file("tokenizer.json"), manifest.model.vocab_size)
        model = materialize(bundle, expert)
        reported = manifest.raw["training"]["heldout_loss_per_cluster"][cluster]
        chosen = heldout.take(heldout.cluster == cluster)
        if reported is None or not len(chosen):
            return
        found = evaluate(model, None, all_microbatches(chosen, manifest.model.context_tokens, 4)).mean
        if not math.isclose(found, reported, abs_tol=LOSS_TOLERANCE):
            raise BundleError(
                f"{path}: expert {expert} has a held-out loss of {found:.5f} nats/token,"
                f" expected {reported:.5f} from its training",
                hint="the written bundle is not what was trained; please report this",
            )
