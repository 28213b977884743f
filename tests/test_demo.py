"""The bundle that ships: small enough, signed by the key beside it, made by the recipe beside it."""

import json
from pathlib import Path

import pytest

from provider.recipe import read_recipe
from shared.bundle import open_bundle
from shared.materializing import comparison_slm, materialize
from shared.pieces import read_pieces
from shared.signature import read_public_key
from tests.parties import run
from tests.trust_files import ROOTS, fingerprint, write

DEMO = Path(__file__).parent.parent / "examples" / "demo"
MOST_BYTES = 8 << 20


@pytest.fixture(scope="module")
def bundle():
    with open_bundle(DEMO / "pn16.st", [read_public_key(DEMO / "provider.pub")]) as opened:
        yield opened


def test_it_is_small_and_every_digest_holds(bundle):
    assert bundle.size_bytes == (DEMO / "pn16.st").stat().st_size <= MOST_BYTES
    bundle.verify_all()
    read_pieces(bundle.file("tokenizer.json"), bundle.manifest.model.vocab_size)


def test_it_is_what_the_recipe_beside_it_says(bundle):
    recipe, manifest = read_recipe(DEMO / "pn16.toml"), bundle.manifest
    assert (manifest.name, manifest.version, manifest.kind) == (recipe.name, recipe.version, recipe.kind)
    assert manifest.model == recipe.model
    assert manifest.n_experts == recipe.clustering.n_clusters
    assert (manifest.capacity, manifest.expert_size) == (
        recipe.projection.capacity,
        recipe.projection.expert_size,
    )
    training = manifest.raw["training"]
    assert training["steps"] == training["comparison"]["slm"]["steps"] == recipe.pretraining.steps
    assert training["learning_rate"] == recipe.pretraining.learning_rate
    assert training["sources"] == [dict(source) for source in recipe.corpus.sources]
    assert "not C4" in training["corpus"]


def test_its_projected_network_beats_the_plain_model_on_the_generic_heldout_text(bundle):
    training = bundle.manifest.raw["training"]
    # mixed microbatches draw their rows at random, and rows differ a little in length
    assert training["tokens"] == pytest.approx(training["comparison"]["slm"]["tokens"], rel=0.01)
    assert training["heldout_loss"] < training["comparison"]["slm"]["heldout_loss"]


def test_its_models_build(bundle):
    assert materialize(bundle, 0).num_parameters() == comparison_slm(bundle).num_parameters()


def test_one_document_of_500_bytes_is_refused_before_any_training(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "note.txt").write_text(("The court finds for the plaintiff. " * 15)[:500])
    home = tmp_path / "home"
    assert run("owner", "trust", "add", DEMO / "provider.pub", cwd=tmp_path, home=home).returncode == 0
    done = run("owner", "specialize", "--bundle", DEMO / "pn16.st", "--data", "data", cwd=tmp_path, home=home)
    assert done.returncode == 1
    assert "too little to train on one part and hold out another" in done.stderr
    assert "hint: add a second document" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "home"]


def test_an_expired_trust_file_needs_a_reason_and_the_report_keeps_it(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(2):
        text = f"The court finds for plaintiff {number}. " * 15
        (tmp_path / "data" / f"{number}.txt").write_text(text)
    keys = [{"key": read_public_key(DEMO / "provider.pub").raw.hex(), "bundles": ["pn*"]}]
    times = {"created": "2025-01-01T00:00:00Z", "expires": "2026-01-01T00:00:00Z"}
    trust_file = write(tmp_path / "trust.json", ROOTS[:1], keys=keys, **times)
    where = {"cwd": tmp_path, "home": tmp_path / "home"}
    added = run("owner", "trust", "add", trust_file, "--roots", fingerprint(), **where)
    assert added.returncode == 0, added.stderr
    arguments = ("--bundle", DEMO / "pn16.st", "--data", "data", "--out", "out", "--epochs", 1)
    refused = run("owner", "specialize", *arguments, **where)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "whose trust file version 1 expired 2026-01-01T00:00:00Z" in refused.stderr
    assert not (tmp_path / "out").exists()
    reason = "new stick comes on Monday"
    done = run("owner", "specialize", *arguments, "--accept-stale-trust", reason, **where)
    assert done.returncode == 0, done.stderr
    assert f"EXPIRED, accepted: {reason}" in done.stderr
    (trust,) = json.loads((tmp_path / "out" / "report.json").read_text())["trust"]
    assert (trust["by"], trust["name"], trust["version"]) == ("trust file", "acme", 1)
    assert trust["stale_reason"] == reason
