from pathlib import Path

import pytest

from provider.recipe import read_recipe
from shared.errors import RecipeError
from shared.train_config import TrainConfig
from tests.parties import write_recipe

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_examples_are_read():
    full = read_recipe(EXAMPLES / "release-pn32.toml")
    assert full.clustering.n_clusters == full.projection.capacity == 32
    assert full.pretraining.learning_rate == TrainConfig.learning_rate == 1e-4  # Table 6
    assert full.pretraining.clip_norm == TrainConfig.clip_norm == 5.0  # Table 6
    assert full.pretraining.warmup_steps == TrainConfig.warmup_steps == 1000  # Table 6
    assert full.model.context_tokens == 1024  # paper §2.3
    assert read_recipe(EXAMPLES / "quickstart" / "release.toml").kind == "pn"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "pn"', 'kind = "llm"', "kind is 'llm'"),
        ('kind = "pn"', 'kind = "slm"', "belongs to kind pn"),
        ("[projection]\ncapacity = 3\nexpert_size = 3\nmixed_fraction = 0.5", "", "belongs to kind pn"),
        ("mixed_fraction = 0.5", "mixed_fraction = 1.5", "mixed_fraction is 1.5"),
        ("mixed_fraction = 0.5", 'mixing = "dense"', "mixing is 'dense'"),
        ("mixed_fraction = 0.5", 'mixing = "identity"', "needs capacity and expert_size equal"),
        ("windows_per_cluster = 20", "windows_per_cluster = 0", "windows_per_cluster is 0"),
        ("capacity = 3", "capacity = 0", r"projection.capacity is 0, expected 1 to"),
        ("expert_size = 3", "expert_size = 3\nlayers = [2]", r"projection.layers: 2 of 2 layers"),
        ("version = 1", "version = 0", "version is 0, expected 1 to"),
        ("version = 1", "version = 1.5", "version is 1.5, expected a whole number"),
        ('name = "tiny"', 'name = "a/../b"', "name is 'a/../b'"),
        ('name = "tiny"', "", "missing"),
        ("seed = 3", "seed = 4294967296", "seed is 4294967296"),
        ("created = 2026-11-21T00:00:00Z", "created = 2026-11-21", "with a time zone"),
        ("created = 2026-11-21T00:00:00Z", "created = 2026-11-21T00:00:00", "with a time zone"),
        ("[corpus]", "speed = 3\n[corpus]", r"recipe.speed is not a field"),
        ("steps = 40", "steps = 0", "steps is 0"),
        ("steps = 40", 'steps = "many"', "expected a whole number"),
        ("rows_per_step = 8", "rows_per_step = 7", "expected a multiple of rows_per_microbatch"),
        ("learning_rate = 1e-2", 'learning_rate = "fast"', "expected a number"),
        ('preset = "test"', 'preset = "gpt-7"', "preset 'gpt-7' is unknown"),
        ('preset = "test"', "", "expected `preset`"),
        ("width = 32", "depth = 32", r"model.depth is not a field"),
        ("width = 32", "width = 33", "must be an even whole number"),
        ('comparison = ["slm"]'.replace('"', "'"), "comparison = ['llm']", "comparison is"),
        ("n_clusters = 4", "n_clusters = 0", "n_clusters is 0"),
        ("n_clusters = 4", 'n_clusters = 4\nengine = "weka"', "clustering.engine is 'weka'"),
        ("n_clusters = 4", "n_clusters = 4\nkeep_embeddings = 0", "is 0, expected true or false"),
        ("heldout_every = 9", "heldout_every = 1", "heldout_every is 1"),
        ("heldout_every = 9", 'sources = [{ name = "x" }]', "has a `name` and a `license`"),
        ('license = "for tests"', 'license = "for tests"\nweights = "int4"', "weights is 'int4'"),
        ('embedder = "digest"', 'embedder = "url"', "embedder is 'url'"),
        ("[corpus]", "[corpus", "cannot read the recipe"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, old, new, message):
    path = write_recipe(tmp_path / "r.toml")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)
    assert "r.toml" in str(caught.value)
