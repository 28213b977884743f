"""A plan of a release against the release itself: which stages run, how large, by which rates."""

import json
from dataclasses import replace
from pydoc_data.topics import topics
from types import SimpleNamespace

import pytest

from provider.corpus import list_corpus
from provider.measuring import _learned
from provider.planning import bundle_bytes, find_stages, plan_release, span, system_of
from provider.pretraining import COST_FILE
from provider.releasing import release
from provider.signing import read_signing_key
from provider.tracking import METRICS_FILE
from shared.bundle import open_bundle
from shared.errors import DocumentsError
from shared.facts import stored_parameters
from shared.progress import amount, duration
from tests.tiny import make_inputs, tiny_recipe

NAMES = [
    *("tokenizer", "corpus", "embeddings", "clusters", "sorted", "terms"),
    *("pretrain-pn", "pretrain-slm", "bundle", "in all"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A corpus, a recipe, a key, and what a release of them left behind."""
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    run(folder, tiny_recipe(folder, "pn"))
    return folder


def run(folder, recipe):
    lines = []
    key = read_signing_key(folder / "provider.key")
    release(recipe, folder / "corpus", folder / "out", folder / "work", key, lines.append, device="cpu")
    return lines


def plan(folder, recipe, work="work"):
    lines = plan_release(recipe, folder / "corpus", folder / work, "cpu")
    return {line[:12].rstrip(): line[13:] for line in lines}


def to_do(planned):
    return {name for name, text in planned.items() if text.startswith("to do")}


def snapshot(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "digests.json")
    return {path: path.stat().st_mtime_ns for path in files}


def test_after_a_release_nothing_is_left_to_do_and_a_plan_changes_nothing(inputs):
    before = snapshot(inputs)
    planned = plan(inputs, tiny_recipe(inputs, "pn"))
    assert list(planned) == NAMES
    assert to_do(planned) == set()
    assert planned["in all"] == "nothing but the bundle is left to write"
    assert snapshot(inputs) == before


def test_a_plan_names_the_stages_that_the_release_then_runs(inputs):
    recipe = tiny_recipe(inputs, "pn")
    clustering = replace(recipe.clustering, n_clusters=3)
    changed = replace(recipe, clustering=clustering, pretraining=replace(recipe.pretraining, steps=5))
    planned = plan(inputs, changed)
    assert to_do(planned) == {"clusters", "sorted", "terms", "pretrain-pn", "pretrain-slm"}
    assert "by a finished one of the same sizes" in planned["pretrain-pn"]
    lines = run(inputs, changed)
    ran = {line.split()[0] for line in lines if not line.endswith("skipped")}
    assert to_do(planned) == ran & set(NAMES) - {"bundle"}
    assert to_do(plan(inputs, changed)) == set()


def test_without_a_work_folder_all_is_to_do_and_none_is_made(inputs):
    planned = plan(inputs, tiny_recipe(inputs, "pn"), work="none")
    assert to_do(planned) == set(NAMES) - {"bundle", "in all"}
    assert "by the cost model" in planned["pretrain-pn"]
    assert not (inputs / "none").exists()
    counted = planned["corpus"]
    assert counted.startswith("to do")


def test_without_kept_embeddings_a_plan_has_no_stage_for_them_but_uses_those_that_are_there(inputs):
    recipe = tiny_recipe(inputs, "pn")
    recipe = replace(recipe, clustering=replace(recipe.clustering, keep_embeddings=False))
    planned = plan(inputs, recipe, work="none")
    assert to_do(planned) == set(NAMES) - {"bundle", "in all", "embeddings"}
    assert list(plan(inputs, recipe)) == NAMES
    assert to_do(plan(inputs, recipe)) == set()


def test_a_plan_says_what_too_small_a_disk_could_do_without(inputs, monkeypatch):
    recipe = tiny_recipe(inputs, "pn")
    assert "disk" not in plan(inputs, recipe, work="none")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "keep_embeddings = false" in plan(inputs, recipe, work="none")["disk"]
    assert "disk" not in plan(inputs, recipe)


def test_the_estimated_sizes_are_those_of_the_release(inputs):
    recipe = tiny_recipe(inputs, "pn")
    run(inputs, recipe)
    path = inputs / "out" / "tiny.st"
    key = read_signing_key(inputs / "provider.key").public_key
    with open_bundle(path, [key]) as bundle:
        data = sum(entry.end - entry.start for entry in bundle.manifest.tensors.values())
        assert bundle_bytes(recipe) == pytest.approx(data, rel=0.15)
        for name in ("pn", "slm"):
            found = stored_parameters(bundle.manifest, "" if name == "pn" else name)
            assert system_of(recipe, name).trained == pytest.approx(found, rel=0.01)


def test_the_corpus_is_estimated_from_some_of_its_files(inputs):
    recipe = tiny_recipe(inputs, "pn")
    lines = list(plan_release(recipe, inputs / "corpus", inputs / "none", "cpu"))
    text = sum(path.stat().st_size for path in (inputs / "corpus").iterdir())
    tokens = int(lines[0].split(" tokens")[0].split()[-1].replace(",", ""))
    report = json.loads(next((inputs / "work").glob("corpus-*/done.json")).read_text())["report"]
    assert f"3 files · {amount(text)}" in lines[0]
    assert tokens == pytest.approx(report["tokens"], rel=0.2)


def test_a_killed_training_is_planned_by_its_own_steps(inputs):
    recipe = tiny_recipe(inputs, "pn")
    rare = replace(recipe.pretraining, steps=1_000_000, eval_every_steps=1_000_000)
    recipe = replace(recipe, pretraining=rare)
    stages = dict(find_stages(recipe, list_corpus(inputs / "corpus", recipe.corpus), inputs / "work"))
    folder = stages["pretrain-pn"].folder
    folder.mkdir()
    lines = [{"step": step, "tokens_per_s": 100.0 + step} for step in range(1, 41)]
    torn = '{"step": 41, "tok'
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    planned = plan(inputs, recipe)
    assert "999,960 steps of" in planned["pretrain-pn"]
    assert "by its own 40 steps so far" in planned["pretrain-pn"]
    low_s = 0.8 * 999_960 * recipe.pretraining.rows_per_step * recipe.model.context_tokens / 130.5
    assert f" {duration(low_s).split()[0]} " in f" {planned['pretrain-pn'].replace('days to', 'to')} "


def test_a_rate_of_another_model_or_device_does_not_stand_for_this_one(inputs):
    recipe = tiny_recipe(inputs, "pn")
    other = replace(recipe, model=replace(recipe.model, ffn_width=56))
    assert "by the cost model" in plan(inputs, other)["pretrain-slm"]
    for cost in (inputs / "work").glob(f"pretrain-slm-*/{COST_FILE}"):
        cost.write_text(json.dumps(json.loads(cost.read_text()) | {"device": "cuda"}))
    again = replace(recipe, seed=9)
    assert "by the cost model" in plan(inputs, again)["pretrain-slm"]
    assert "by a finished one" in plan(inputs, again)["pretrain-pn"]


def test_a_corpus_that_a_release_refuses_is_refused_by_its_plan(inputs, tmp_path):
    (tmp_path / "corpus").mkdir()
    with pytest.raises(DocumentsError, match="no file matches"):
        plan(tmp_path, tiny_recipe(inputs, "pn"))


def test_a_range_of_equal_words_is_one():
    assert span(1.0, 1.2) == "1 s"
    assert span(20, 200) == "20 s to 3 min"


def test_a_sample_too_small_for_the_vocabulary_is_measured_with_a_smaller_one():
    pieces, seconds = _learned([topics["if"] + topics["while"]], 2000)
    assert 262 <= len(pieces) < 2000
    assert seconds > 0
    with pytest.raises(DocumentsError, match="cannot learn"):
        _learned(["cat"], 600)
