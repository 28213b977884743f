"""Generic corpus to windows sorted by cluster (paper §2.3, §3.2): the data's part of a release, in stages.

The tokenizer and k-means are learned here, from samples. All else is done file by file or cluster by cluster,
by whatever provider/executors.py is told to use.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from provider.clustering import (
    SPLITS,
    PartEmbedder,
    assign_groups,
    count_shards,
    embeddings_file,
    fit_centroids,
    forget_groups,
    load_part,
    order_part,
    sample_windows,
    write_shard,
)
from provider.corpus import CorpusFile, identify, list_corpus, train_tokenizer, write_part
from provider.executors import IN_PROCESS, Executor, run_tasks
from provider.recipe import ClusteringConfig, Recipe
from provider.stages import Stage, find_stage, run_stage, tell
from shared.device import choose_device
from shared.embedder import WEIGHTS_SHA256, find_embedder_files
from shared.embedding import load_embedder
from shared.errors import DocumentsError
from shared.files import make_folder, remove, remove_stale, write_atomic, write_json
from shared.pieces import build_tokenizer, read_pieces, write_pieces
from shared.progress import Say

PIECES_FILE, CENTROIDS_FILE = "pieces.json", "centroids.npy"


def heldout_every(recipe: Recipe) -> int:
    """Return how many documents go to each held-out one; 0 where the recipe names files."""
    return 0 if recipe.corpus.heldout else recipe.corpus.heldout_every


# What decides each stage, so that a plan finds the stages that a release will.


def tokenizer_inputs(recipe: Recipe, identity: list[list[object]]) -> dict[str, Any]:
    """Return the tokenizer stage's inputs."""
    vocab_size, sample_bytes = recipe.model.vocab_size, recipe.tokenizer.sample_bytes
    return {"files": identity, "vocab_size": vocab_size, "sample_bytes": sample_bytes}


def corpus_inputs(recipe: Recipe, tokenizer: str) -> dict[str, Any]:
    """Return those of cutting the corpus, after a tokenizer stage of this digest."""
    context, every = recipe.model.context_tokens, heldout_every(recipe)
    return {"tokenizer": tokenizer, "context_tokens": context, "heldout_every": every}


def embedding_inputs(corpus: str) -> dict[str, Any]:
    """Return those of the embeddings."""
    return {"corpus": corpus, "embedder": WEIGHTS_SHA256}


def clustering_inputs(clustering: ClusteringConfig, seed: int, embeddings: str) -> dict[str, Any]:
    """Return those of a clustering."""
    return {"embeddings": embeddings, **clustering.result_fields(), "seed": seed}


def sorting_inputs(clusters: str) -> dict[str, Any]:
    """Return those of sorting by cluster."""
    return {"clusters": clusters}


def prepare_corpus(
    recipe: Recipe, corpus: Path | str, work: Path, say: Say, executor: Executor = IN_PROCESS
) -> tuple[Stage, Stage, int]:
    """Learn the tokenizer and cut the corpus into windows; return both stages and the part count."""
    files = list_corpus(corpus, recipe.corpus)
    identity = identify(files, work)

    def tokenize(folder: Path) -> dict[str, Any]:
        pieces = train_tokenizer(files, recipe.model.vocab_size, recipe.tokenizer.sample_bytes)
        with write_atomic(folder / PIECES_FILE) as out:
            out.write(write_pieces(pieces))
        return {"pieces": len(pieces)}

    tokenizer_stage = run_stage(work, "tokenizer", tokenizer_inputs(recipe, identity), tokenize)
    tell(say, "tokenizer", tokenizer_stage, "{pieces} pieces")
    every = heldout_every(recipe)

    def cut(folder: Path) -> dict[str, Any]:
        cut = partial(_cut, folder, files, tokenizer_stage.folder, recipe.model.context_tokens, every)
        run_tasks(executor, folder, range(len(files)), cut, say)
        reports = [json.loads(_part_report(folder, number).read_text()) for number in range(len(files))]
        return {name: sum(report[name] for report in reports) for name in reports[0]}

    corpus_stage = run_stage(work, "corpus", corpus_inputs(recipe, tokenizer_stage.digest), cut)
    tell(
        say,
        "corpus",
        corpus_stage,
        "{documents:,} documents · {tokens:,} tokens · {rejected} rejected",
    )
    return tokenizer_stage, corpus_stage, len(files)


def _part_report(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.json"


def _cut(
    folder: Path,
    files: list[CorpusFile],
    pieces: Path,
    context: int,
    every: int,
    numbers: Sequence[int],
    say: Say,
) -> None:
    tokenizer = build_tokenizer(read_pieces((pieces / PIECES_FILE).read_bytes()))
    for number in numbers:
        report = _part_report(folder, number)
        if not report.exists():
            counts = write_part(folder, number, files[number], tokenizer, context, every)
            write_json(report, counts)
            say(f"corpus       file {number + 1}/{len(files)} · {counts['tokens']:,} tokens")


def cluster_corpus(
    clustering: ClusteringConfig,
    seed: int,
    work: Path,
    tokenizer_stage: Stage,
    corpus_stage: Stage,
    n_parts: int,
    device: str,
    embedder_folder: Path | None,
    say: Say,
    executor: Executor = IN_PROCESS,
) -> tuple[Stage, Stage]:
    """Embed all windows, fit k-means, sort the windows by cluster; return clustering and sorting.

    Where embeddings are not kept, the stage of the clusters embeds the sample, then each part while it is
    assigned; kept ones that are there are used.
    """
    corpus, parts, needs_gpu = corpus_stage.folder, range(n_parts), device.startswith("cuda")
    start = partial(_embedder, corpus, tokenizer_stage.folder, embedder_folder, device)
    embedding_stage = find_stage(work, "embeddings", embedding_inputs(corpus_stage.digest))

    def embed(folder: Path) -> dict[str, Any]:
        run_tasks(executor, folder, parts, partial(_embed, start, folder), say, needs_gpu)
        return {}

    if clustering.keep_embeddings:
        embedding_stage = run_stage(work, "embeddings", embedding_inputs(corpus_stage.digest), embed)
        tell(say, "embeddings", embedding_stage, "unit vectors")
    is_kept = clustering.keep_embeddings or embedding_stage.was_done

    def embed_sample(folder: Path, drawn: list[np.ndarray]) -> list[np.ndarray]:
        if is_kept:
            return [
                np.load(embeddings_file(embedding_stage.folder, number), mmap_mode="r")[rows]
                for number, rows in enumerate(drawn)
            ]
        make_folder(folder)
        remove_stale(folder)
        run_tasks(executor, folder, parts, partial(_embed, start, folder, drawn=drawn), say, needs_gpu)
        return [np.load(embeddings_file(folder, number)) for number in parts]

    def fit(folder: Path) -> dict[str, Any]:
        n_clusters = clustering.n_clusters
        if not (folder / CENTROIDS_FILE).exists():
            is_heldout = [load_part(corpus, number)[0] for number in parts]
            drawn = sample_windows(is_heldout, clustering.fit_windows, seed)
            n_drawn = sum(map(len, drawn))
            if n_drawn < n_clusters:
                raise DocumentsError(
                    f"{n_drawn} training windows for {n_clusters} clusters",
                    hint="use more text, or a smaller clustering.n_clusters",
                )
            sample = np.concatenate(embed_sample(folder / "sample", drawn))
            centroids = fit_centroids(sample, n_clusters, clustering.n_init, seed, clustering.engine)
            with write_atomic(folder / CENTROIDS_FILE) as out:
                np.save(out, centroids)
        remove(folder / "sample")
        if is_kept:
            run_tasks(executor, folder, parts, partial(_order, corpus, embedding_stage.folder, folder), say)
        else:
            run_tasks(executor, folder, parts, partial(_embed_and_order, start, folder), say, needs_gpu)
        bounds = sum(np.diff(np.load(folder / f"bounds-{number:05}.npy")[0]) for number in parts)
        counts = np.asarray(bounds, np.int64)
        return {
            "counts": counts.tolist(),
            "largest": int(counts.max()),
            "smallest": int(counts.min()),
        }

    clustering_stage = run_stage(
        work, "clusters", clustering_inputs(clustering, seed, embedding_stage.digest), fit
    )
    tell(say, "clusters", clustering_stage, "{smallest:,} to {largest:,} windows each")

    def sort(folder: Path) -> dict[str, Any]:
        shard = partial(_shard, corpus, clustering_stage.folder, folder, n_parts)
        run_tasks(executor, folder, range(clustering.n_clusters), shard, say)
        return {split: count_shards(folder, split, clustering.n_clusters) for split in SPLITS}

    sorting_stage = run_stage(work, "sorted", sorting_inputs(clustering_stage.digest), sort)
    tell(
        say,
        "sorted",
        sorting_stage,
        "{train[tokens]:,} train · {heldout[tokens]:,} held-out tokens",
    )
    return clustering_stage, sorting_stage


def _embedder(
    corpus: Path, pieces: Path, embedder_folder: Path | None, device: str, say: Say
) -> PartEmbedder:
    tokenizer = build_tokenizer(read_pieces((pieces / PIECES_FILE).read_bytes()))
    embedder = load_embedder(*find_embedder_files(embedder_folder), choose_device(device))
    return PartEmbedder(corpus, tokenizer, embedder, say)


def _embed(
    start: Callable[[Say], PartEmbedder],
    folder: Path,
    numbers: Sequence[int],
    say: Say,
    drawn: list[np.ndarray] | None = None,
) -> None:
    """Embed parts whole, or the windows drawn from them."""
    embedder = start(say)
    for number in numbers:
        embedder.write(folder, number, None if drawn is None else drawn[number])


def _order(corpus: Path, embeddings: Path, folder: Path, numbers: Sequence[int], say: Say) -> None:
    centroids_KW = np.load(folder / CENTROIDS_FILE)
    for number in numbers:
        if not _is_ordered(folder, number):
            embeddings_NW = np.load(embeddings_file(embeddings, number), mmap_mode="r")
            assigned_N = assign_groups(embeddings_NW, centroids_KW)
            order_part(corpus, folder, number, assigned_N, len(centroids_KW))


def _embed_and_order(
    start: Callable[[Say], PartEmbedder], folder: Path, numbers: Sequence[int], say: Say
) -> None:
    """Assign parts whose embeddings are not kept."""
    centroids_KW = np.load(folder / CENTROIDS_FILE)
    embedder = start(say)
    for number in numbers:
        if not _is_ordered(folder, number):
            assigned_N = embedder.embed(
                folder, number, keep=partial(assign_groups, centroids_KW=centroids_KW)
            )
            order_part(embedder.corpus, folder, number, assigned_N, len(centroids_KW))
        forget_groups(folder, number)


def _is_ordered(folder: Path, number: int) -> bool:
    return (folder / f"bounds-{number:05}.npy").exists()


def _shard(
    corpus: Path, clusters: Path, folder: Path, n_parts: int, numbers: Sequence[int], say: Say
) -> None:
    for cluster in numbers:
        for split in SPLITS:
            write_shard(corpus, clusters, folder, n_parts, split, cluster)


def read_clusters(clusters: Stage) -> tuple[np.ndarray, np.ndarray]:
    """Return a clustering stage's generic histogram (K,) int64 and centroids (K, W) float32."""
    counts_K = np.asarray(clusters.report["counts"], np.int64)
    return counts_K, np.load(clusters.folder / CENTROIDS_FILE)
