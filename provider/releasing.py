"""The provider's story in one function: corpus, tokenizer, clusters, pretraining, signed bundle."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from provider.clustering import check_engine
from provider.executors import IN_PROCESS, Executor, check_executor
from provider.naming import name_clusters
from provider.preparing import PIECES_FILE, cluster_corpus, prepare_corpus, read_clusters
from provider.pretraining import load_windows, pretrain
from provider.publishing import PUBLIC_KEY_FILE, publish, publish_replay
from provider.recipe import ClusteringConfig, Recipe, one_expert
from provider.requested import weights_of_request
from provider.signing import SigningKey
from provider.stages import Stage, run_stage, tell
from provider.storage import is_url, upload
from shared.errors import RecipeError
from shared.files import check_writable, locked, make_folder, write_atomic
from shared.progress import Say
from shared.ranks import ONE_PROCESS, Ranks
from shared.signature import public_key_pem


def pretraining_inputs(recipe: Recipe, system: str, sorted_digest: str) -> dict[str, Any]:
    """Return what decides a system's weights; for one request or one expert there is more."""
    inputs: dict[str, Any] = {
        "sorted": sorted_digest,
        "system": system,
        "model": recipe.model.to_dict(),
        "pretraining": recipe.pretraining.result_fields(),
        "weights": recipe.weights,
        "seed": recipe.seed,
    }
    if system == "pn" and recipe.projection is not None:
        inputs["projection"] = asdict(recipe.projection)
    return inputs


def pretrain_system(
    recipe: Recipe,
    system: str,
    work: Path,
    sorting_stage: Stage,
    device: str,
    say: Say,
    weights_K: np.ndarray | None = None,
    experts: Sequence[int] = (),
    executor: Executor = IN_PROCESS,
    ranks: Ranks = ONE_PROCESS,
) -> Stage:
    """Pretrain one system, or skip it when it is done; systems of one corpus share nothing but it.

    `weights_K` are importance weights by cluster (§2.4); `experts` those of a mixture to train alone. The
    other ranks are told what to do: they wait in `follow`.
    """
    inputs = pretraining_inputs(recipe, system, sorting_stage.digest)
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
            executor,
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
    corpus: Path | str,
    out: Path | str,
    work: Path,
    key: SigningKey,
    say: Say,
    device: str = "auto",
    embedder_folder: Path | None = None,
    request_path: Path | None = None,
    expert: int | None = None,
    executor: Executor = IN_PROCESS,
    ranks: Ranks = ONE_PROCESS,
) -> Path | str:
    """Run every stage that is not done yet and write `<out>/<name>.st` and `<out>/provider.pub`.

    With a request, kind slm is pretrained by importance sampling for the owner who wrote it (SLM-is, §2.4).
    With an expert, that one of kind mix is trained alone and published as one model (Fig. 8). A recipe with
    [replay] gets `<out>/<name>-replay.st` too. Corpus and out may be URLs of an object store; what goes out
    is then kept in `work/out`. The same corpus, recipe and key give the same bytes on one kind of CPU with
    one number of threads, killed on the way or not, on any executor. Of several `ranks` the first one calls
    this and the others `follow`.
    Raises DocumentsError, RecipeError, CheckpointError, BundleError, OSError; PlanearlyError when another
    release is at work in `work`. Finished stages stay.
    """
    if recipe.kind == "mix" and ranks is not ONE_PROCESS:
        raise RecipeError(
            "kind mix is trained by one process for each expert, found several for all",
            hint="--executor trains them side by side, without torchrun",
        )
    check_executor(executor)
    check_engine(recipe.clustering.engine)
    if executor.kind != "local":  # the other machines start in other folders
        work = work.absolute()
        corpus = corpus if is_url(corpus) else Path(corpus).absolute()
        embedder_folder = embedder_folder and embedder_folder.absolute()
    store = str(out) if is_url(out) else None
    folder = work / "out" if store is not None else Path(out)
    make_folder(work)
    make_folder(folder)
    check_writable(folder)
    if store is not None:  # now, and not after hours, a store that cannot be written to
        with write_atomic(folder / PUBLIC_KEY_FILE) as file:
            file.write(public_key_pem(key.public_key))
        upload(folder / PUBLIC_KEY_FILE, store)
    with locked(work):
        tokenizer, cut, n_parts = prepare_corpus(recipe, corpus, work, say, executor)

        def cluster(clustering: ClusteringConfig) -> tuple[Stage, Stage]:
            return cluster_corpus(
                clustering, recipe.seed, work, tokenizer, cut, n_parts, device, embedder_folder, say, executor
            )

        clusters, windows = cluster(recipe.clustering)
        counts_K, centroids_KW = read_clusters(clusters)
        pieces = (tokenizer.folder / PIECES_FILE).read_bytes()
        record = {"cluster_terms": name_clusters(work, windows, pieces, len(counts_K), recipe.seed, say)}
        weights_K = None
        if request_path is not None:
            weights_K, importance = weights_of_request(recipe, request_path, centroids_KW, counts_K)
            record |= importance
        if expert is not None:
            recipe = one_expert(recipe, expert)
        experts = () if expert is None else (expert,)
        systems = {
            system: pretrain_system(
                recipe, system, work, windows, device, say, weights_K, experts, executor, ranks
            )
            for system in (recipe.kind, *recipe.comparison)
        }
        ranks.tell(None)
        common: dict[str, Any] = {
            "pieces": pieces,
            "out": folder,
            "key": key,
            "embedder_folder": embedder_folder,
            "say": say,
        }
        paths = [
            publish(
                recipe,
                centroids=centroids_KW,
                counts=counts_K,
                systems={system: stage.folder for system, stage in systems.items()},
                heldout=load_windows(windows.folder, "heldout", recipe.clustering.n_clusters),
                expert=expert,
                record=record,
                **common,
            )
        ]
        if recipe.replay is not None:
            n_clusters = recipe.replay.n_clusters or recipe.clustering.n_clusters
            clusters, windows = cluster(replace(recipe.clustering, n_clusters=n_clusters))
            counts_K, centroids_KW = read_clusters(clusters)
            paths.append(
                publish_replay(
                    recipe,
                    centroids=centroids_KW,
                    counts=counts_K,
                    windows=load_windows(windows.folder, "train", n_clusters),
                    **common,
                )
            )
        if store is None:
            return paths[0]
        urls = [upload(path, store) for path in reversed(paths)]
        say(f"{'upload':<12} {' · '.join(urls)} · read back and compared")
        return urls[-1]
