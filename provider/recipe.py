"""The one TOML recipe of a release, as frozen dataclasses with a source for every default."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from shared.errors import PlanearlyError, RecipeError
from shared.manifest import (
    MAX_CAPACITY,
    MAX_CLUSTERS,
    MAX_EXPERT_SIZE,
    MAX_REPLAY_VOCAB,
    MODEL_KINDS,
)
from shared.names import MAX_VERSION, NAME_PATTERN
from shared.sizes import PRESETS, SlmConfig
from shared.train_config import TrainConfig

ENGINES = ("scikit-learn", "faiss")
"""Who can fit k-means."""
MAX_SEED = 2**32 - 1
"""scikit-learn takes no larger one."""


@dataclass(frozen=True)
class CorpusConfig:
    """The generic corpus: which files of the folder, and what a bundle says about them."""

    description: str
    """What the corpus is, in one sentence; published in the bundle's training record."""
    sources: tuple[Mapping[str, str], ...] = ()
    """Each source's `name` and `license`; published."""
    train: tuple[str, ...] = ("**/*",)
    """Glob patterns below the corpus folder."""
    heldout: tuple[str, ...] = ()
    """Glob patterns of the generic held-out split; without any, every heldout_every-th document."""
    heldout_every: int = 50
    """Documents. Ours; C4 brings its own validation split, which `heldout` can name."""


@dataclass(frozen=True)
class TokenizerConfig:
    """SentencePiece unigram (Kudo 2018); its size is the model's vocab_size."""

    sample_bytes: int = 200_000_000
    """UTF-8 bytes of training documents to learn pieces from, taken evenly from all files."""


@dataclass(frozen=True)
class ClusteringConfig:
    """k-means on window embeddings (paper §3.2)."""

    n_clusters: int
    """k: clusters, and with them experts; the paper's is 32 (§3.2)."""
    fit_windows: int = 1_000_000
    """Windows that k-means is fitted on; all are then assigned to its fixed centroids. Ours, to bound memory
    (1.5 GB): 31,250 per centroid for 32 clusters, 977 for 1,024; faiss' authors advise 50 to 1,000."""
    n_init: int = 4
    """Starts of k-means, of which the best is kept."""
    engine: str = "scikit-learn"
    """Who fits k-means: "scikit-learn", until it settles, or "faiss" (package faiss-cpu), some rounds of the
    same: quicker, and a little worse."""
    keep_embeddings: bool = True
    """Whether embeddings stay on disk, 1,536 bytes a window, for other clusterings of the same corpus.
    Without them the fit_windows windows are embedded twice; the result is the same."""

    def result_fields(self) -> dict[str, Any]:
        """Return the fields that decide the centroids, for a stage's digest."""
        decided = {key: value for key, value in asdict(self).items() if key != "keep_embeddings"}
        if self.engine == "scikit-learn":  # stages of before there was a choice stay as they are
            del decided["engine"]
        return decided


@dataclass(frozen=True)
class ProjectionConfig:
    """Sizes of a projected network (paper §2.5, §4.1)."""

    capacity: int
    """h: slices of a weight bank."""
    expert_size: int
    """m: components of an expert vector."""
    layers: tuple[int, ...] = ()
    """Transformer layers whose feed-forward is projected; none named: all."""
    mixing: str = "learned"
    """"identity": h = k = m and both E and M fixed to the identity, the paper's hard mixture but over a
    shared trunk (§2.5): the baseline that tells what the projection itself does."""
    mixed_fraction: float = 0.0
    """Share of microbatches that train a random point between experts, on windows drawn to match. Ours."""


@dataclass(frozen=True)
class ReplayConfig:
    """A replay pack beside the bundle: windows for owners who continue pretraining. Ours."""

    windows_per_cluster: int
    """Windows of each cluster, or all of a smaller one; the same file for every owner."""
    n_clusters: int = 0
    """Clusters of the pack; 0: those of the bundle. §3.2 uses 1,024 for importance sampling."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of a release, but for the corpus and the key."""

    name: str
    """The bundle's name; the file is `<name>.st`."""
    version: int
    """Goes up with every release of the name: an owner refuses to go back."""
    created: datetime
    """Date of the release, with a time zone; stated, not taken from a clock, so that a release repeats."""
    kind: str
    """"pn": a projected network; "mix": a hard mixture, one model per cluster; "slm": one model."""
    license: str
    """What owners may do with the weights; published."""
    seed: int
    """Decides initial weights, batches and k-means; 0 to 4,294,967,295."""
    model: SlmConfig
    corpus: CorpusConfig
    clustering: ClusteringConfig
    pretraining: TrainConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    projection: ProjectionConfig | None = None
    replay: ReplayConfig | None = None
    weights: str = "bfloat16"
    """Stored type of the weights: bfloat16 or float32."""
    embedder: str = "digest"
    """What the bundle carries of the sentence embedder: its "digest", or its "files" (91 MB), so that the
    owner needs nothing but the bundle."""
    comparison: tuple[str, ...] = ()
    """Further systems of the same pretraining that the bundle carries; "slm" is the only one."""


def _section(kind: type[Any], entries: Any, where: str) -> Any:
    """Fill a dataclass from a TOML table; errors name the field."""
    if not isinstance(entries, dict):
        raise RecipeError(f"{where}: expected a table")
    known = {item.name: item for item in fields(kind)}
    for name, value in entries.items():
        if name not in known:
            raise RecipeError(f"{where}.{name} is not a field", hint=f"known: {', '.join(sorted(known))}")
        if isinstance(value, list):
            entries = entries | {name: tuple(value)}
        default = known[name].type
        if default is int and (type(value) is not int or value < 0):
            raise RecipeError(f"{where}.{name} is {value!r}, expected a whole number of 0 or more")
        if default is float and type(value) not in (int, float):
            raise RecipeError(f"{where}.{name} is {value!r}, expected a number")
        if default is bool and not isinstance(value, bool):
            raise RecipeError(f"{where}.{name} is {value!r}, expected true or false")
        if default is str and not isinstance(value, str):
            raise RecipeError(f"{where}.{name} is {value!r}, expected text")
    try:
        return kind(**entries)
    except TypeError as error:
        missing = str(error).split("argument", 1)[-1].lstrip("s: ")
        raise RecipeError(f"{where}: missing {missing}") from None


def _model(entries: Any) -> SlmConfig:
    if not isinstance(entries, dict) or "preset" not in entries:
        raise RecipeError("model: expected `preset`", hint=f"one of: {', '.join(PRESETS)}")
    entries = dict(entries)
    preset = entries.pop("preset")
    if preset not in PRESETS:
        raise RecipeError(f"model.preset {preset!r} is unknown", hint=f"one of: {', '.join(PRESETS)}")
    unknown = set(entries) - {item.name for item in fields(SlmConfig)}
    if unknown:
        raise RecipeError(f"model.{min(unknown)} is not a field")
    return replace(PRESETS[preset], **entries)


def read_recipe(path: Path) -> Recipe:
    """Parse and check a recipe. Raises RecipeError that names the file and the field."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error}") from None
    try:
        sections = {
            "model": _model(entries.pop("model", None)),
            "corpus": _section(CorpusConfig, entries.pop("corpus", None), "corpus"),
            "clustering": _section(ClusteringConfig, entries.pop("clustering", None), "clustering"),
            "pretraining": _section(TrainConfig, entries.pop("pretraining", None), "pretraining"),
        }
        for name, kind in (
            ("tokenizer", TokenizerConfig),
            ("projection", ProjectionConfig),
            ("replay", ReplayConfig),
        ):
            if name in entries:
                sections[name] = _section(kind, entries.pop(name), name)
        recipe: Recipe = _section(Recipe, entries | sections, "recipe")
        _check(recipe)
    except PlanearlyError as error:
        raise RecipeError(f"{path}: {error}", hint=error.hint) from None
    return recipe


def _check(recipe: Recipe) -> None:
    if recipe.kind not in MODEL_KINDS:
        raise RecipeError(f"kind is {recipe.kind!r}", hint=f"one of: {', '.join(MODEL_KINDS)}")
    if (recipe.kind == "pn") != (recipe.projection is not None):
        raise RecipeError("a [projection] section belongs to kind pn, and only to it")
    if set(recipe.comparison) - {"slm"} or (recipe.kind == "slm" and recipe.comparison):
        raise RecipeError(f"comparison is {list(recipe.comparison)}, expected [] or ['slm']")
    if recipe.embedder not in ("digest", "files"):
        raise RecipeError(f"embedder is {recipe.embedder!r}, expected digest or files")
    if recipe.clustering.engine not in ENGINES:
        raise RecipeError(
            f"clustering.engine is {recipe.clustering.engine!r}", hint=f"one of: {', '.join(ENGINES)}"
        )
    if recipe.weights not in ("bfloat16", "float32"):
        raise RecipeError(f"weights is {recipe.weights!r}, expected bfloat16 or float32")
    if not isinstance(recipe.created, datetime) or recipe.created.tzinfo is None:
        raise RecipeError("created: expected a date with a time zone, as 2026-11-21T00:00:00Z")
    if not NAME_PATTERN.fullmatch(recipe.name):
        raise RecipeError(f"name is {recipe.name!r}, expected 1 to 100 of A-Z a-z 0-9 . _ -")
    limits = [
        ("version", recipe.version, 1, MAX_VERSION),
        ("seed", recipe.seed, 0, MAX_SEED),
        ("clustering.n_clusters", recipe.clustering.n_clusters, 1, MAX_CLUSTERS),
        ("clustering.n_init", recipe.clustering.n_init, 1, 1000),
        ("clustering.fit_windows", recipe.clustering.fit_windows, recipe.clustering.n_clusters, 2**40),
        ("tokenizer.sample_bytes", recipe.tokenizer.sample_bytes, 1, 2**40),
    ]
    if not recipe.corpus.heldout:
        limits.append(("corpus.heldout_every", recipe.corpus.heldout_every, 2, 2**40))
    if recipe.projection is not None:
        limits += [
            ("projection.capacity", recipe.projection.capacity, 1, MAX_CAPACITY),
            ("projection.expert_size", recipe.projection.expert_size, 1, MAX_EXPERT_SIZE),
        ]
        if recipe.projection.mixing not in ("learned", "identity"):
            raise RecipeError(
                f"projection.mixing is {recipe.projection.mixing!r}, expected learned or identity"
            )
        sizes = {recipe.projection.capacity, recipe.projection.expert_size, recipe.clustering.n_clusters}
        if recipe.projection.mixing == "identity" and (len(sizes) > 1 or recipe.projection.mixed_fraction):
            raise RecipeError(
                "projection.mixing identity needs capacity and expert_size equal to clustering.n_clusters,"
                " and no mixed_fraction"
            )
        if not 0 <= recipe.projection.mixed_fraction <= 1:
            raise RecipeError(
                f"projection.mixed_fraction is {recipe.projection.mixed_fraction}, expected 0 to 1"
            )
        for layer in recipe.projection.layers:
            if type(layer) is not int or not 0 <= layer < recipe.model.n_layers:
                raise RecipeError(f"projection.layers: {layer!r} of {recipe.model.n_layers} layers")
    if recipe.replay is not None:
        limits += [
            ("replay.windows_per_cluster", recipe.replay.windows_per_cluster, 1, 2**40),
            ("replay.n_clusters", recipe.replay.n_clusters, 0, MAX_CLUSTERS),
            ("model.vocab_size", recipe.model.vocab_size, 1, MAX_REPLAY_VOCAB),
        ]
    for name, value, least, most in limits:
        if not least <= value <= most:
            raise RecipeError(f"{name} is {value}, expected {least} to {most}")
    for source in recipe.corpus.sources:
        if set(source) != {"name", "license"}:
            raise RecipeError("corpus.sources: each entry has a `name` and a `license`")


def one_expert(recipe: Recipe, expert: int) -> Recipe:
    """Return the recipe of one expert of a mixture, published as one model. Raises RecipeError."""
    n_clusters = recipe.clustering.n_clusters
    if recipe.kind != "mix":
        raise RecipeError(f"kind is {recipe.kind!r}, expected mix to train one expert alone")
    if not 0 <= expert < n_clusters:
        raise RecipeError(f"expert {expert} of {n_clusters}: there is none of that number")
    return replace(recipe, name=f"{recipe.name}-expert{expert}", comparison=())
