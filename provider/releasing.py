"""The provider's story in one function: corpus, tokenizer, clusters, pretraining, signed bundle."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from provider.clustering import embed_part, fit_centroids, sample_windows, write_sorted
from provider.corpus import CorpusFile, list_corpus, train_tokenizer, write_part
from provider.pretraining import load_windows, pretrain
from provider.publishing import publish, publish_replay
from provider.recipe import ClusteringConfig, Recipe, one_expert
from provider.requested import weights_of_request
from provider.signing import SigningKey
from provider.stages import Stage, run_stage
from shared.clusters import assign_clusters, cluster_histogram
from shared.device import choose_device
from shared.embedding import WEIGHTS_SHA256, find_embedder_files, load_embedder
from shared.errors import DocumentsError, RecipeError
from shared.files import check_writable, locked, make_folder, write_atomic, write_json
from shared.pieces import build_tokenizer, read_pieces, write_pieces
from shared.ranks import ONE_PROCESS, Ranks
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
    clustering: ClusteringConfig,
    seed: int,
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
        n_clusters = clustering.n_clusters
        sample = sample_windows(parts, clustering.fit_windows, seed)
        if len(sample) < n_clusters:
            raise DocumentsError(
                f"{len(sample)} training windows for {n_clusters} clusters",
                hint="use more text, or a smaller clustering.n_clusters",
            )
        centroids = fit_centroids(sample, n_clusters, clustering.n_init, seed)
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
            "n_clusters": clustering.n_clusters,
            "fit_windows": clustering.fit_windows,
            "n_init": clustering.n_init,
            "seed": seed,
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
    recipe: Recipe,
    system: str,
    work: Path,
    sorting_stage: Stage,
    device: str,
    say: Say,
    weights_K: np.ndarray | None = None,
    experts: Sequence[int] = (),
    ranks: Ranks = ONE_PROCESS,
) -> Stage:
    """Pretrain one system, or skip it when it is done; systems of one corpus share nothing but it.

    `weights_K` are importance weights by cluster (§2.4); `experts` those of a mixture to train alone. The
    other ranks are told what to do: they wait in `follow`.
    """
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
    if weights_K is not None:
        inputs["weights_of_clusters"] = weights_K.tolist()
    if experts:
        inputs["experts"] = list(experts)

    def run(folder: Path) -> dict[str, Any]:
        ranks.tell(
            {
                "system": system,
                "windows": str(sorting_stage.folder),
                "folder": str(folder),
                "weights": None if weights_K is None else weights_K.tolist(),
            }
        )
        return pretrain(
            system,
            recipe,
            sorting_stage.folder,
            folder,
            device,
            lambda line: say(f"{'pretrain-' + system:<12} {line}"),
            weights_K,
            experts,
            ranks,
        )

    stage = run_stage(work, f"pretrain-{system}", inputs, run)
    tell(
        say,
        f"pretrain-{system}",
        stage,
        "{steps} steps · {tokens:,} tokens · generic held-out {heldout_loss:.3f} nats/token",
    )
    return stage


def follow(recipe: Recipe, device: str, ranks: Ranks) -> None:
    """Pretrain what the first rank does, beside it, until it has no more for the others.

    Raises what `pretrain` does.
    """
    while (job := ranks.tell(None)) is not None:
        weights_K = None if job["weights"] is None else np.asarray(job["weights"])
        folders = Path(job["windows"]), Path(job["folder"])
        pretrain(job["system"], recipe, *folders, device, _silent, weights_K, ranks=ranks)


def _silent(line: str) -> None:
    """The first rank speaks."""


def release(
    recipe: Recipe,
    corpus: Path,
    out: Path,
    work: Path,
    key: SigningKey,
    say: Say,
    device: str = "auto",
    embedder_folder: Path | None = None,
    request_path: Path | None = None,
    expert: int | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> Path:
    """Run every stage that is not done yet and write `<out>/<name>.st` and `<out>/provider.pub`.

    With a request, kind slm is pretrained by importance sampling for the owner who wrote it (SLM-is, §2.4).
    With an expert, that one of kind mix is trained alone and published as one model (Fig. 8). A recipe with
    [replay] gets `<out>/<name>-replay.st` too. The same corpus, recipe and key give the same bytes on one
    CPU, killed on the way or not. Of several `ranks` the first one calls this and the others `follow`.
    Raises DocumentsError, RecipeError, CheckpointError, BundleError, OSError; PlanearlyError when another
    release is at work in `work`. Finished stages stay.
    """
    if recipe.kind == "mix" and ranks is not ONE_PROCESS:
        raise RecipeError(
            "kind mix is trained by one process for each expert, found several for all",
            hint="run provider release --expert 0, --expert 1 and so on, each without torchrun",
        )
    make_folder(work)
    make_folder(out)
    check_writable(out)
    with locked(work):
        tokenizer, cut, n_parts = prepare_corpus(recipe, corpus, work, say)

        def cluster(clustering: ClusteringConfig) -> tuple[Stage, Stage]:
            return cluster_corpus(
                clustering, recipe.seed, work, tokenizer, cut, n_parts, device, embedder_folder, say
            )

        clusters, windows = cluster(recipe.clustering)
        counts_K, centroids_KW = read_clusters(clusters)
        weights_K, record = None, dict[str, Any]()
        if request_path is not None:
            weights_K, record = weights_of_request(recipe, request_path, centroids_KW, counts_K)
        if expert is not None:
            recipe = one_expert(recipe, expert)
        experts = () if expert is None else (expert,)
        systems = {
            system: pretrain_system(recipe, system, work, windows, device, say, weights_K, experts, ranks)
            for system in (recipe.kind, *recipe.comparison)
        }
        ranks.tell(None)
        common: dict[str, Any] = {
            "pieces": (tokenizer.folder / PIECES_FILE).read_bytes(),
            "out": out,
            "key": key,
            "embedder_folder": embedder_folder,
            "say": say,
        }
        path = publish(
            recipe,
            centroids=centroids_KW,
            counts=counts_K,
            systems={system: stage.folder for system, stage in systems.items()},
            heldout=load_windows(windows.folder, "heldout", recipe.clustering.n_clusters),
            expert=expert,
            record=record,
            **common,
        )
        if recipe.replay is not None:
            n_clusters = recipe.replay.n_clusters or recipe.clustering.n_clusters
            clusters, windows = cluster(replace(recipe.clustering, n_clusters=n_clusters))
            counts_K, centroids_KW = read_clusters(clusters)
            publish_replay(
                recipe,
                centroids=centroids_KW,
                counts=counts_K,
                windows=load_windows(windows.folder, "train", n_clusters),
                **common,
            )
        return path


def read_clusters(clusters: Stage) -> tuple[np.ndarray, np.ndarray]:
    """Return a clustering stage's generic histogram (K,) int64 and centroids (K, W) float32."""
    counts_K = np.asarray(clusters.report["counts"], np.int64)
    return counts_K, np.load(clusters.folder / CENTROIDS_FILE)
