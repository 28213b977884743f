"""The provider's story in one function: corpus, tokenizer, clusters, pretraining, signed bundle."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from provider.clustering import embed_part, fit_centroids, sample_windows, write_sorted
from provider.corpus import CorpusFile, list_corpus, train_tokenizer, write_part
from provider.pretraining import load_windows, pretrain
from provider.publishing import publish
from provider.recipe import Recipe
from provider.signing import SigningKey
from provider.stages import Stage, run_stage
from shared.clusters import assign_clusters, cluster_histogram
from shared.device import choose_device
from shared.embedding import WEIGHTS_SHA256, find_embedder_files, load_embedder
from shared.errors import DocumentsError
from shared.files import write_atomic, write_json
from shared.tokenizer import build_tokenizer, read_pieces, write_pieces
from shared.training import Say

PIECES_FILE, CENTROIDS_FILE = "pieces.json", "centroids.npy"


def prepare_corpus(recipe: Recipe, corpus: Path, work: Path, say: Say) -> tuple[Stage, Stage, int]:
    """Learn the tokenizer and cut the corpus into windows; return both stages and the part count."""
    files = list_corpus(corpus, recipe.corpus)
    identity = [file.identity() for file in files]

    def tokenize(folder: Path) -> dict[str, Any]:
        pieces = train_tokenizer(files, recipe.model.vocab_size, recipe.tokenizer.sample_bytes)
        with write_atomic(folder / PIECES_FILE) as out:
            out.write(write_pieces(pieces))
        return {"pieces": len(pieces)}

    tokenizer_stage = run_stage(
        work,
        "tokenizer",
        {
            "files": identity,
            "vocab_size": recipe.model.vocab_size,
            "sample_bytes": recipe.tokenizer.sample_bytes,
        },
        tokenize,
    )
    tell(say, "tokenizer", tokenizer_stage, "{pieces} pieces")
    every = 0 if recipe.corpus.heldout else recipe.corpus.heldout_every

    def cut(folder: Path) -> dict[str, Any]:
        tokenizer = build_tokenizer(read_pieces((tokenizer_stage.folder / PIECES_FILE).read_bytes()))
        totals = {"documents": 0, "rejected": 0, "tokens": 0}
        for number, file in enumerate(files):
            counts = _cut_part(folder, number, file, tokenizer, recipe.model.context_tokens, every)
            totals = {name: totals[name] + counts[name] for name in totals}
            say(f"corpus       file {number + 1}/{len(files)} · {totals['tokens']:,} tokens")
        return totals

    corpus_stage = run_stage(
        work,
        "corpus",
        {
            "tokenizer": tokenizer_stage.digest,
            "context_tokens": recipe.model.context_tokens,
            "heldout_every": every,
        },
        cut,
    )
    tell(
        say,
        "corpus",
        corpus_stage,
        "{documents:,} documents · {tokens:,} tokens · {rejected} rejected",
    )
    return tokenizer_stage, corpus_stage, len(files)


def _cut_part(folder: Path, number: int, file: CorpusFile, *rest: Any) -> dict[str, int]:
    report = folder / f"part-{number:05}.json"
    if report.exists():
        return json.loads(report.read_text())
    counts = write_part(folder, number, file, *rest)
    write_json(report, counts)
    return counts


def cluster_corpus(
    recipe: Recipe,
    work: Path,
    tokenizer_stage: Stage,
    corpus_stage: Stage,
    n_parts: int,
    device: str,
    embedder_folder: Path | None,
    say: Say,
) -> tuple[Stage, Stage]:
    """Embed all windows, fit k-means, sort the windows by cluster; return clustering and sorting."""

    def embed(folder: Path) -> dict[str, Any]:
        tokenizer = build_tokenizer(read_pieces((tokenizer_stage.folder / PIECES_FILE).read_bytes()))
        embedder = load_embedder(*find_embedder_files(embedder_folder), choose_device(device))
        for number in range(n_parts):
            part = f"embeddings   part {number + 1}/{n_parts}"
            embed_part(corpus_stage.folder, folder, number, tokenizer, embedder, part, say)
        return {}

    embedding_stage = run_stage(
        work, "embeddings", {"corpus": corpus_stage.digest, "embedder": WEIGHTS_SHA256}, embed
    )
    tell(say, "embeddings", embedding_stage, "unit vectors")

    def load_part(number: int) -> tuple[np.ndarray, np.ndarray]:
        embeddings = np.load(embedding_stage.folder / f"embeddings-{number:05}.npy", mmap_mode="r")
        with np.load(corpus_stage.folder / f"windows-{number:05}.npz") as windows:
            return embeddings, windows["is_heldout"]

    def fit(folder: Path) -> dict[str, Any]:
        parts = [load_part(number) for number in range(n_parts)]
        n_clusters = recipe.clustering.n_clusters
        sample = sample_windows(parts, recipe.clustering.fit_windows, recipe.seed)
        if len(sample) < n_clusters:
            raise DocumentsError(
                f"{len(sample)} training windows for {n_clusters} clusters",
                hint="use more text, or a smaller clustering.n_clusters",
            )
        centroids = fit_centroids(sample, n_clusters, recipe.clustering.n_init, recipe.seed)
        with write_atomic(folder / CENTROIDS_FILE) as out:
            np.save(out, centroids)
        counts = np.zeros(n_clusters, np.int64)
        for embeddings, is_heldout in parts:
            assigned = assign_clusters(embeddings, centroids)
            counts += cluster_histogram(assigned[~is_heldout], n_clusters)
        return {
            "counts": counts.tolist(),
            "largest": int(counts.max()),
            "smallest": int(counts.min()),
        }

    clustering_stage = run_stage(
        work,
        "clusters",
        {
            "embeddings": embedding_stage.digest,
            "n_clusters": recipe.clustering.n_clusters,
            "fit_windows": recipe.clustering.fit_windows,
            "n_init": recipe.clustering.n_init,
            "seed": recipe.seed,
        },
        fit,
    )
    tell(say, "clusters", clustering_stage, "{smallest:,} to {largest:,} windows each")

    def sort(folder: Path) -> dict[str, Any]:
        centroids = np.load(clustering_stage.folder / CENTROIDS_FILE)
        assigned = [assign_clusters(load_part(number)[0], centroids) for number in range(n_parts)]
        return {
            split: write_sorted(corpus_stage.folder, folder, split, assigned, len(centroids))
            for split in ("train", "heldout")
        }

    sorting_stage = run_stage(work, "sorted", {"clusters": clustering_stage.digest}, sort)
    tell(
        say,
        "sorted",
        sorting_stage,
        "{train[tokens]:,} train · {heldout[tokens]:,} held-out tokens",
    )
    return clustering_stage, sorting_stage


def tell(say: Say, name: str, stage: Stage, text: str) -> None:
    """Print one line for a finished stage."""
    suffix = " · unchanged, skipped" if stage.was_done else ""
    say(f"{name:<12} {text.format(**stage.report)}{suffix}")


def pretrain_system(
    recipe: Recipe, system: str, work: Path, sorting_stage: Stage, device: str, say: Say
) -> Stage:
    """Pretrain one system, or skip it when it is done; systems of one corpus share nothing but it."""
    inputs: dict[str, Any] = {
        "sorted": sorting_stage.digest,
        "system": system,
        "model": recipe.model.to_dict(),
        "pretraining": recipe.pretraining.result_fields(),
        "weights": recipe.weights,
        "seed": recipe.seed,
    }
    if system == "pn" and recipe.projection is not None:
        inputs["projection"] = asdict(recipe.projection)
    stage = run_stage(
        work,
        f"pretrain-{system}",
        inputs,
        lambda folder: pretrain(
            system,
            recipe,
            sorting_stage.folder,
            folder,
            device,
            lambda line: say(f"{'pretrain-' + system:<12} {line}"),
        ),
    )
    tell(
        say,
        f"pretrain-{system}",
        stage,
        "{steps} steps · {tokens:,} tokens · generic held-out {heldout_loss:.3f} nats/token",
    )
    return stage


def release(
    recipe: Recipe,
    corpus: Path,
    out: Path,
    work: Path,
    key: SigningKey,
    say: Say,
    device: str = "auto",
    embedder_folder: Path | None = None,
) -> Path:
    """Run every stage that is not done yet and write `<out>/<name>.st` and `<out>/provider.pub`.

    The same corpus, recipe and key give the same bytes on one CPU, killed on the way or not.
    Raises DocumentsError, RecipeError, CheckpointError, BundleError, OSError; finished stages stay.
    """
    work.mkdir(parents=True, exist_ok=True)
    tokenizer, cut, n_parts = prepare_corpus(recipe, corpus, work, say)
    clusters, windows = cluster_corpus(recipe, work, tokenizer, cut, n_parts, device, embedder_folder, say)
    systems = {
        system: pretrain_system(recipe, system, work, windows, device, say)
        for system in (recipe.kind, *recipe.comparison)
    }
    out.mkdir(parents=True, exist_ok=True)
    path = publish(
        recipe,
        pieces=(tokenizer.folder / PIECES_FILE).read_bytes(),
        centroids=np.load(clusters.folder / CENTROIDS_FILE),
        counts=np.asarray(clusters.report["counts"], np.int64),
        systems={system: stage.folder for system, stage in systems.items()},
        heldout=load_windows(windows.folder, "heldout", recipe.clustering.n_clusters),
        out=out,
        key=key,
        embedder_folder=embedder_folder,
        say=say,
    )
    return path
