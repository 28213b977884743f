"""What a release would do: each stage done already or not, how long and how large, and how sure that is.

Stages are found by the digests that a release will compute, so "done" is certain. Times are not: they come,
best first, from the steps that this training has already taken, from finished trainings of the same sizes on
the same device, from rates measured in some seconds (provider/measuring.py), or from the cost model
(provider/costs.py).
"""

import json
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from provider.corpus import CorpusFile, identify, list_corpus
from provider.costs import RESIDENT_BYTES, Machine, Plan, System, distinct, step_cost
from provider.measuring import Text, measure_machine, measure_text
from provider.naming import LEAST_WINDOWS, SAMPLE_WINDOWS, naming_inputs
from provider.preparing import (
    clustering_inputs,
    corpus_inputs,
    embedding_inputs,
    sorting_inputs,
    tokenizer_inputs,
)
from provider.pretraining import COST_FILE
from provider.recipe import ClusteringConfig, Recipe
from provider.releasing import pretraining_inputs
from provider.stages import DONE, Stage, find_stage
from provider.tracking import METRICS_FILE, read_step
from shared.checkpoints import KEPT
from shared.device import choose_device
from shared.embedder import WIDTH
from shared.progress import amount, duration

MEASURED, RECORDED, MODELLED = (0.5, 2.0), (0.8, 1.25), (1.0, 4.0)
"""Shortest and longest time over the estimate. Ours; the cost model was 1.6 to 2.2 times too fast on one core
(docs/scaling.md), for it leaves out what each operation's call costs."""
RECENT_STEPS = 20
"""Steps of a training on its way whose median rate stands for the rest."""
SORTED_WINDOWS_S = 2.0e5
"""Windows sorted by cluster and packed per second and core: measured, benchmarks/scaling.toml."""
PIECE_BYTES, EMBEDDER_BYTES = 24, 91_000_000
"""A tokenizer's file per piece, and the embedder's files in a bundle that carries them."""
HELDOUT_SHARE = 1 / 3
"""Of a training token's time, what a held-out one takes: the forward pass of three."""


@dataclass(frozen=True)
class Planned:
    """One stage of a release: what is left of it."""

    stage: Stage
    name: str
    low_s: float
    high_s: float
    bytes: float
    """Of its folder when it is done."""
    source: str
    """Where the time comes from, in words."""

    @property
    def text(self) -> str:
        """Return a line for a person."""
        if self.stage.was_done:
            return f"{self.name:<12} done, will be skipped"
        times = span(self.low_s, self.high_s)
        return f"{self.name:<12} to do · {times} · {amount(self.bytes)} of disk · {self.source}"


def span(low_s: float, high_s: float) -> str:
    """Return a range of times in words."""
    low, high = duration(low_s), duration(high_s)
    return low if low == high else f"{low} to {high}"


def plan_release(
    recipe: Recipe, corpus: Path | str, work: Path, device: str = "auto", embedder: Path | None = None
) -> Iterator[str]:
    """Yield the plan of a release line by line. Takes some seconds if something is left to do.

    Local corpus files are hashed, unless the work folder remembers them, as a release does first.
    Raises what a release would raise at once: DocumentsError, RecipeError, CheckpointError, OSError.
    """
    files = list_corpus(corpus, recipe.corpus)
    stages = dict(find_stages(recipe, files, work))
    text: Text | None = None
    machine: Machine | None = None
    if not all(stage.was_done for stage in stages.values()):
        text = measure_text(files, recipe, device, embedder)
        machine = measure_machine(device)
        how = "by some of its files" if text.is_counted else "a guess: its files are long"
        yield (
            f"{'corpus':<12} {len(files):,} files · {amount(text.file_bytes)} · about"
            f" {amount(text.text_bytes)} of text, {text.documents:,.0f} documents,"
            f" {text.tokens:,.0f} tokens ({how})"
        )
    is_kept = "embeddings" in stages
    planned = [
        _plan(name, stage, recipe, work, text, machine, device, is_kept) for name, stage in stages.items()
    ]
    for one in planned:
        yield one.text
    yield f"{'bundle':<12} {recipe.name}.st · about {amount(bundle_bytes(recipe))}"
    left = [one for one in planned if not one.stage.was_done]
    low, high = sum(one.low_s for one in left), sum(one.high_s for one in left)
    disk = sum(one.bytes for one in left)
    free = shutil.disk_usage(next(p for p in (work, *work.parents) if p.exists())).free
    if disk > free and is_kept and not stages["embeddings"].was_done:
        yield (
            f"{'disk':<12} {amount(free)} are free · without embeddings (clustering.keep_embeddings = false)"
            f" {amount(4.0 * WIDTH * (text.windows if text else 0))} less are needed"
        )
    yield (
        f"{'in all':<12} {span(low, high)} · {amount(disk)} of disk in {work}"
        if left
        else f"{'in all':<12} nothing but the bundle is left to write"
    )


def find_stages(recipe: Recipe, files: list[CorpusFile], work: Path) -> Iterator[tuple[str, Stage]]:
    """Yield every stage of the recipe in its order, as it is on disk."""
    identity = identify(files, work) if work.exists() else []
    tokenizer = find_stage(work, "tokenizer", tokenizer_inputs(recipe, identity))
    cut = find_stage(work, "corpus", corpus_inputs(recipe, tokenizer.digest))
    embeddings = find_stage(work, "embeddings", embedding_inputs(cut.digest))
    yield from (("tokenizer", tokenizer), ("corpus", cut))
    if recipe.clustering.keep_embeddings or embeddings.was_done:
        yield "embeddings", embeddings

    def clustered(clustering: ClusteringConfig) -> tuple[Stage, Stage]:
        inputs = clustering_inputs(clustering, recipe.seed, embeddings.digest)
        clusters = find_stage(work, "clusters", inputs)
        return clusters, find_stage(work, "sorted", sorting_inputs(clusters.digest))

    clusters, windows = clustered(recipe.clustering)
    yield from (("clusters", clusters), ("sorted", windows))
    yield "terms", find_stage(work, "terms", naming_inputs(windows.digest, recipe.seed))
    for system in (recipe.kind, *recipe.comparison):
        name = f"pretrain-{system}"
        yield name, find_stage(work, name, pretraining_inputs(recipe, system, windows.digest))
    if recipe.replay is not None and recipe.replay.n_clusters:
        others = clustered(replace(recipe.clustering, n_clusters=recipe.replay.n_clusters))
        yield from zip(("clusters-2", "sorted-2"), others, strict=True)


def _plan(
    name: str,
    stage: Stage,
    recipe: Recipe,
    work: Path,
    text: Text | None,
    machine: Machine | None,
    device: str,
    is_kept: bool,
) -> Planned:
    if stage.was_done or text is None or machine is None:
        return Planned(stage, name, 0.0, 0.0, 0.0, "")
    if name.startswith("pretrain-"):
        return _plan_pretraining(name, stage, recipe, work, text, machine, device)
    n_clusters = recipe.clustering.n_clusters
    if name.endswith("-2") and recipe.replay is not None:
        n_clusters = recipe.replay.n_clusters
    fitted = min(text.windows, recipe.clustering.fit_windows)
    embedded = 0.0 if is_kept else fitted + text.windows
    named = min(text.windows, max(SAMPLE_WINDOWS, LEAST_WINDOWS * n_clusters))
    seconds, n_bytes = {
        "tokenizer": (
            min(text.text_bytes, recipe.tokenizer.sample_bytes) / text.learn_bytes_s,
            PIECE_BYTES * recipe.model.vocab_size,
        ),
        "corpus": (
            text.text_bytes * (1 / text.read_bytes_s + 1 / text.tokenize_bytes_s),
            2.0 * text.tokens + 13.0 * text.windows,
        ),
        "embeddings": (text.windows / text.embed_windows_s, 4.0 * WIDTH * text.windows),
        "clusters": (
            (fitted * recipe.clustering.n_init + text.windows) * n_clusters / text.kmeans_window_clusters_s
            + embedded / text.embed_windows_s,
            12.0 * text.windows,
        ),
        "sorted": (text.windows / SORTED_WINDOWS_S, 2.0 * text.tokens + 4.0 * text.windows),
        "terms": (named / text.windows * text.text_bytes / text.count_words_bytes_s, 100.0 * n_clusters),
    }[name.removesuffix("-2")]
    low, high = MEASURED
    return Planned(stage, name, low * seconds, high * seconds, n_bytes, "rate measured here")


def system_of(recipe: Recipe, name: str) -> System:
    """Return what the cost model knows of one system of a recipe."""
    if name != "pn" or recipe.projection is None:
        return System(recipe.model)
    n_layers = len(recipe.projection.layers) or recipe.model.n_layers
    return System(recipe.model, n_layers, recipe.projection.capacity)


def bundle_bytes(recipe: Recipe) -> float:
    """Return about how large the bundle gets; norms, expert vectors and mixing matrices are small."""
    systems = [system_of(recipe, name).trained for name in recipe.comparison]
    own = system_of(recipe, recipe.kind).trained
    systems.append(own * (recipe.clustering.n_clusters if recipe.kind == "mix" else 1))
    weight_bytes = 2 if recipe.weights == "bfloat16" else 4
    carried = PIECE_BYTES * recipe.model.vocab_size + 4 * WIDTH * recipe.clustering.n_clusters
    return weight_bytes * sum(systems) + carried + (EMBEDDER_BYTES if recipe.embedder == "files" else 0)


def _plan_pretraining(
    name: str, stage: Stage, recipe: Recipe, work: Path, text: Text, machine: Machine, device: str
) -> Planned:
    config, system = recipe.pretraining, name.removeprefix("pretrain-")
    n_models = recipe.clustering.n_clusters if system == "mix" else 1
    sizes = system_of(recipe, system)
    tokens_per_step = config.rows_per_step * recipe.model.context_tokens
    every = recipe.corpus.heldout_every
    heldout = text.tokens / every * HELDOUT_SHARE if every and not recipe.corpus.heldout else 0.0
    n_evals = config.steps // config.eval_every_steps + 2
    done_steps, rate = _own_rate(stage.folder / METRICS_FILE)
    (low, high), source = RECORDED, f"by its own {done_steps} steps so far"
    if not rate:
        rate, source = _recorded_rate(name, recipe, work, device), "by a finished one of the same sizes"
    if not rate:
        (low, high), source = MODELLED, "by the cost model and peaks measured here"
        share = max(1, config.rows_per_step // n_models) * recipe.model.context_tokens
        microbatches = max(1.0, share / recipe.model.context_tokens / config.rows_per_microbatch)
        points = distinct(recipe.clustering.n_clusters, microbatches) if sizes.projected else 0.0
        cost = step_cost(machine, sizes, Plan(share, 1, microbatches, points))
        rate = share / cost.seconds
    left_tokens = (config.steps - done_steps) * tokens_per_step + n_evals * heldout
    seconds = left_tokens / rate
    # Weights and Adam's two moments in each checkpoint kept; then the weights as they are published.
    n_bytes = n_models * sizes.trained * (KEPT * RESIDENT_BYTES * 3 / 4 + 4)
    steps = f"{config.steps - done_steps:,} steps of {tokens_per_step:,} tokens"
    return Planned(stage, name, low * seconds, high * seconds, n_bytes, f"{steps}, {source}")


def _own_rate(path: Path) -> tuple[int, float]:
    """Return the steps that a killed training has left behind it, and their median tokens per second."""
    if not path.exists():
        return 0, 0.0
    with path.open("rb") as file:
        entries = [entry for line in file if (entry := read_step(line)) is not None]
    rates = [entry["tokens_per_s"] for entry in entries if entry["tokens_per_s"]][-RECENT_STEPS:]
    return (entries[-1]["step"], statistics.median(rates)) if rates else (0, 0.0)


def _recorded_rate(name: str, recipe: Recipe, work: Path, device: str) -> float:
    """Return the newest rate of a finished training of the same sizes on the same device; 0 without one."""
    projection = None if recipe.projection is None or name != "pretrain-pn" else recipe.projection
    for done in sorted(work.glob(f"{name}-*/{DONE}"), key=lambda path: -path.stat().st_mtime):
        if not (done.parent / COST_FILE).exists():  # of an older version
            continue
        inputs = json.loads(done.read_text())["inputs"]
        cost = json.loads((done.parent / COST_FILE).read_text())
        rows = inputs["pretraining"]["rows_per_step"]
        is_same = inputs["model"] == recipe.model.to_dict() and rows == recipe.pretraining.rows_per_step
        if projection is not None:
            is_same &= inputs["projection"]["capacity"] == projection.capacity
            is_same &= inputs["projection"]["layers"] == list(projection.layers)
        if is_same and cost["device"] == str(choose_device(device)) and cost["seconds"]:
            return float(cost["tokens"] / cost["seconds"])
    return 0.0
