"""The plan of one size: which systems, budgets, seeds and rates; a TOML file beside the recipe it varies."""

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from provider.recipe import ProjectionConfig, Recipe, read_recipe
from shared.errors import RecipeError


@dataclass(frozen=True)
class Plan:
    """What `run.py SIZE` does; `SIZE.toml` holds these fields, `SIZE-recipe.toml` the recipe."""

    seeds: tuple[int, ...]
    """Of the rows that carry a claim: SLM, SLM-pn and what is built on them."""
    spec_tokens: tuple[int, ...]
    """Private training tokens, smallest first; the paper's are 1M, 8M and 64M."""
    valid_tokens: int
    """Of the validation file: early stopping, choice of rate and start."""
    test_tokens: int
    """Of the test file: what is reported, and nothing else looks at."""
    epochs: tuple[int, ...]
    """Most passes over the private tokens, for each of spec_tokens."""
    rates: tuple[tuple[float, ...], ...]
    """Fine-tuning rates tried for each of spec_tokens, as shares of the pretraining's; the best on
    validation is taken."""
    budgets: tuple[float, ...]
    """Shares of the recipe's steps that SLM and SLM-pn are pretrained for, 1 among them."""
    is_steps: int
    """Steps of SLM-is, for each domain."""
    is_clusters: tuple[int, ...]
    """Clusters of importance sampling; the first is the one of the main table."""
    pn_clusters: tuple[int, ...]
    """Experts of SLM-pn; the first is the one of the main table."""
    mix_clusters: tuple[int, ...]
    """Experts of SLM-mix; the first is the one of the main table."""
    report_clusters: tuple[int, ...]
    """k of Tables 9 and 10."""
    llm: dict[str, Any]
    """Sizes of the large model that differ from the small one's."""
    llm_steps: int
    llm_learning_rate: float
    lora_rank: int
    lora_rates: tuple[float, ...]
    """As `rates`; low-rank matrices start at zero and need larger ones."""
    replay_tokens: int
    """Tokens that an owner trains on from the pack."""
    heldout_every: int = 1
    """Every n-th generic held-out window is measured."""
    select_windows: int = 600
    """Windows of a domain that are embedded for its histogram."""


def read_plan(folder: Path, size: str) -> tuple[Plan, Recipe]:
    """Return a size's plan and recipe. Raises RecipeError that names the file."""
    path = folder / f"{size}.toml"
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
        entries = {key: tuple(v) if isinstance(v, list) else v for key, v in entries.items()}
        entries["rates"] = tuple(tuple(rates) for rates in entries["rates"])
        plan = Plan(**entries)
    except (OSError, TypeError, KeyError, tomllib.TOMLDecodeError) as error:
        known = ", ".join(item.name for item in fields(Plan))
        raise RecipeError(f"{path}: {error}", hint=f"fields: {known}") from None
    return plan, read_recipe(folder / f"{size}-recipe.toml")


def scaled(recipe: Recipe, steps: int, seed: int) -> Recipe:
    """Return the recipe with other steps and another seed; the warm-up stays within a tenth of the steps."""
    training = recipe.pretraining
    training = replace(training, steps=steps, warmup_steps=min(training.warmup_steps, max(1, steps // 10)))
    return replace(recipe, seed=seed, pretraining=training)


def variant(recipe: Recipe, system: str, plan: Plan) -> Recipe:
    """Return the recipe of a pretrained system: slm, llm, pn-K, trunk-K, mix-K, is-K."""
    name, _, clusters = system.partition("-")
    n_clusters = int(clusters) if clusters else recipe.clustering.n_clusters
    projection = recipe.projection
    assert projection is not None
    recipe = replace(recipe, clustering=replace(recipe.clustering, n_clusters=n_clusters), name=system)
    if name == "pn":
        return replace(recipe, kind="pn", comparison=("slm",))
    if name == "trunk":
        identity = ProjectionConfig(n_clusters, n_clusters, projection.layers, "identity")
        return replace(recipe, kind="pn", projection=identity, comparison=())
    if name == "llm":
        model = replace(recipe.model, **plan.llm)
        training = replace(recipe.pretraining, learning_rate=plan.llm_learning_rate, steps=plan.llm_steps)
        recipe = replace(recipe, model=model, pretraining=training)
    kind = "mix" if name == "mix" else "slm"
    return replace(recipe, kind=kind, projection=None, replay=None, comparison=())
