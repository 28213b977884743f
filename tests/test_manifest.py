"""Every rule of a manifest, of its tensors, and of strict JSON (docs/bundle-format.md §3, §6, §7)."""

import pytest

from provider.bundling import write_bundle
from shared.bundle import expected_tensors, open_bundle
from shared.contents import MAX_TENSORS, lay_out
from shared.errors import BundleError
from shared.manifest import parse_manifest
from shared.strict_json import Malformed, canonical_json, parse_json
from tests.test_bundle import TRUSTED, read_everything, refusal
from tests.vectors.build import LLAMA, PROVIDER, Parts, accepted, compact, example_manifest, example_tensors


@pytest.fixture
def slm(tmp_path):
    """A small good bundle."""
    manifest = accepted()["slm.st"]
    write_bundle(tmp_path / "slm.st", manifest, example_tensors(manifest), PROVIDER)
    return tmp_path / "slm.st"


NORM = "shared.model.norm.weight"
LONG = "x" * 100_001
RULES = [
    (lambda m: m.update(name="a/b"), "name is 'a/b'"),
    (lambda m: m.update(name="x" * 101), "name is"),
    (lambda m: m.update(name=3), "name is 3"),
    (lambda m: m.update(version=0), "version is 0, expected an integer from 1 to"),
    (lambda m: m.update(version=2**31), "version is 2147483648"),
    (lambda m: m.update(version=1.0), "version is 1.0"),
    (lambda m: m.update(created="2026-11-21"), "created is '2026-11-21', expected UTC"),
    (lambda m: m.update(created="2026-13-21T00:00:00Z"), "created is"),
    (lambda m: m.update(created="2026-1-21T00:00:00Z"), "created is"),
    (lambda m: m.update(created=5), "created is 5"),
    (lambda m: m.update(license=""), "license is '', expected a text"),
    (lambda m: m.update(license=LONG), "license is 'xxx"),
    (lambda m: m.update(license="\ud800"), "control character or half a surrogate pair"),
    (lambda m: m.update({"x-\x7f": 1}), "control character"),
    (lambda m: m.update(kind="moe"), "kind is 'moe', expected one of: pn, mix, slm, replay"),
    (lambda m: m.update(kind=[]), "kind is []"),
    (lambda m: m.update(projection={}), "top level: unknown field 'projection'"),
    (lambda m: m.update(model=[]), "model is not an object with an architecture"),
    (lambda m: m["model"].update(architecture=[]), "model is not an object with an architecture"),
    (lambda m: m["model"].update(architecture="gpt"), "model.architecture is 'gpt'"),
    (lambda m: m["model"].update(rope=1), "model has fields"),
    (lambda m: m["model"].update(n_layers=True), "model.n_layers is True"),
    (lambda m: m.update(n_experts=2), "n_experts is 2, expected 1 for kind slm"),
    (lambda m: m.update(comparison=["slm"]), "comparison is ['slm'], not allowed for kind slm"),
    (lambda m: m.update(comparison=None), "comparison is None"),
    (lambda m: m.update(tokenizer={"type": "bpe", "file": "tokenizer.json"}), "tokenizer is not"),
    (lambda m: m.update(embedder=[]), "embedder is not an object"),
    (lambda m: m["embedder"].update(name="other"), "embedder.name is 'other', expected 'all-MiniLM"),
    (lambda m: m["embedder"].update(width=384.0), "embedder.width is 384.0, expected 384"),
    (lambda m: m["embedder"].update(sub_window_pieces=1), "embedder.sub_window_pieces is 1"),
    (lambda m: m["embedder"].update(sha256="A" * 64), "embedder.sha256 is"),
    (lambda m: m["embedder"].update(embedded=0), "embedder.embedded is 0, expected true or false"),
    (lambda m: m["clusters"].update(n=0), "clusters.n is 0"),
    (lambda m: m["clusters"].update(n=65_537), "clusters.n is 65537"),
    (lambda m: m["clusters"].update(corpus_windows=-1), "clusters.corpus_windows is -1"),
    (lambda m: m.update(training=[]), "training is not an object"),
    (lambda m: m["training"].pop("seed"), "training: field seed is missing"),
    (lambda m: m["training"].update(corpus=""), "training.corpus is ''"),
    (lambda m: m["training"].update(steps=-1), "training.steps is -1"),
    (lambda m: m["training"].update(rows_per_step=0), "training.rows_per_step is 0"),
    (lambda m: m["training"].update(learning_rate=1), "training.learning_rate is 1, expected a float"),
    (lambda m: m["training"].update(learning_rate=2.0), "training.learning_rate is 2.0"),
    (lambda m: m["training"].update(optimizer="sgd"), "optimizer is 'sgd', expected one of: adam, muon"),
    (lambda m: m["training"].update(optimizer=[]), "training.optimizer is []"),
    (lambda m: m["training"].update(notes=2**63), "holds an integer beyond 2^63 - 1"),
    (lambda m: m["training"].update(heldout_loss=3), "heldout_loss is 3, expected a float"),
    (lambda m: m["training"].update(heldout_loss=-0.5), "heldout_loss is -0.5"),
    (lambda m: m["training"].update(heldout_loss_per_cluster=[]), "is not a list of 1"),
    (lambda m: m["training"].update(heldout_loss_per_cluster=["1"]), "per_cluster is '1', expected a float"),
    (lambda m: m["training"].update(sources={}), "training.sources is not a list"),
    (lambda m: m["training"].update(sources=[{"name": "x"}]), "training.sources: field license is missing"),
    (lambda m: m["training"].update(sources=[{"name": "x", "license": 1}]), "training.sources.license is 1"),
    (lambda m: m["training"].update(cluster_terms=None), "cluster_terms is not a list, expected a list of 1"),
    (lambda m: m["training"].update(cluster_terms=[]), "cluster_terms holds 0, expected a list of 1 to 1"),
    (lambda m: m["training"].update(cluster_terms=["law"]), "cluster_terms is not a list, expected"),
    (
        lambda m: m["training"].update(cluster_terms=[["law"] * 11]),
        "cluster_terms holds 11, expected a list of 0 to 10",
    ),
    (lambda m: m["training"].update(cluster_terms=[[7]]), "cluster_terms is 7, expected a text of 1 to 40"),
    (lambda m: m["training"].update(cluster_terms=[[""]]), "cluster_terms is '', expected a text"),
    (lambda m: m["training"].update(cluster_terms=[["x" * 41]]), "cluster_terms is 'xxx"),
    (
        lambda m: m["training"].update(cluster_terms=[["a\nb"]]),
        "cluster_terms has 'a\\nb', expected characters that show",
    ),
    (lambda m: m["training"].update(cluster_terms=[["a\u202eb"]]), "cluster_terms has 'a\\u202eb'"),
    (lambda m: m["training"].update(cluster_terms=[["a\u200bb"]]), "cluster_terms has 'a\\u200bb'"),
    (lambda m: m["training"].update(a=[[[[[[[[1]]]]]]]]), "is nested deeper than 9 levels"),
    (lambda m: m.update({"x-a": [[[[[[[[[1]]]]]]]]]}), "is nested deeper than 9 levels"),
]


@pytest.mark.parametrize(("change", "message"), RULES, ids=[message for _, message in RULES])
def test_a_manifest_that_breaks_a_rule_is_refused(tmp_path, change, message):
    found = refusal(tmp_path, change)
    assert found.startswith("manifest: ")
    assert message in found


def test_a_clusters_label_is_its_first_three_terms_and_else_its_number(tmp_path):
    manifest = accepted()["pn.st"]
    terms = [["haus", "straße", "大阪", "rest"], [], ["a" * 40] * 10]
    for given, labels in (
        (terms, ["haus, straße, 大阪", "cluster 1", ", ".join(["a" * 40] * 3)]),
        (None, ["cluster 0", "cluster 1", "cluster 2"]),
    ):
        if given:
            manifest["training"]["cluster_terms"] = given
        else:
            del manifest["training"]["cluster_terms"]
        write_bundle(tmp_path / "a", manifest, example_tensors(manifest), PROVIDER)
        with open_bundle(tmp_path / "a", TRUSTED) as bundle:
            assert [bundle.manifest.label(cluster) for cluster in range(3)] == labels


PROJECTION_RULES = [
    (lambda m: m.pop("projection"), "manifest: top level: field projection is missing"),
    (lambda m: m.update(projection=[]), "manifest: projection is not an object"),
    (lambda m: m["projection"].update(capacity=0), "manifest: projection.capacity is 0"),
    (lambda m: m["projection"].update(expert_size=0), "manifest: projection.expert_size is 0"),
    (lambda m: m["projection"].update(linears="x"), "manifest: projection.linears is not a list"),
    (lambda m: m["projection"].update(linears=[]), "manifest: projection.linears is not a list of 1"),
    (lambda m: m["projection"].update(linears=[["x"]]), "manifest: projection.linears is"),
    (lambda m: m["projection"]["linears"].append("lm_head"), "tensors: projection.linears is"),
    (
        lambda m: m["projection"]["linears"].append(m["projection"]["linears"][0]),
        "tensors: projection.linears",
    ),
    (lambda m: m["projection"]["linears"].append("model.layers.0.mlp.up_proj"), "in module order"),
    (lambda m: m.update(n_experts=2), "manifest: n_experts is 2, expected 3, as clusters.n"),
]


@pytest.mark.parametrize(("change", "message"), PROJECTION_RULES)
def test_a_projection_that_breaks_a_rule_is_refused(tmp_path, change, message):
    assert message in refusal(tmp_path, change, name="pn.st")


TENSOR_RULES = [
    (lambda t: t.clear(), "manifest: tensors is not an object of 1 to 16384 entries"),
    (lambda t: t[NORM].pop("dtype"), f"manifest: tensors.'{NORM}': field dtype is missing"),
    (lambda t: t[NORM].update(dtype="F64"), f"manifest: tensors.'{NORM}'.dtype is 'F64'"),
    (lambda t: t[NORM].update(dtype=[]), ".dtype is []"),
    (lambda t: t[NORM].update(shape=[1, 2, 2, 2]), ".shape is not a list of 1 or 2 or 3"),
    (lambda t: t[NORM].update(shape=[-8]), ".shape is -8"),
    (lambda t: t[NORM].update(offsets=[0]), ".offsets is not a list of 2"),
    (lambda t: t[NORM].update(offsets=[0, 1.5]), ".offsets is 1.5"),
    (lambda t: t[NORM].update(sha256="0"), ".sha256 is '0', expected [0-9a-f]{64}"),
    (lambda t: t[NORM].update(shape=[2**62]), f"tensors: {NORM} has shape (4611686018427387904,)"),
    (lambda t: t["files.tokenizer.json"].update(shape=[0]), "expected one axis of 1 to 16777216"),
    (lambda t: t["files.tokenizer.json"].update(shape=[2**24 + 1]), "expected one axis of 1 to 16777216"),
]


@pytest.mark.parametrize(("change", "message"), TENSOR_RULES, ids=[message for _, message in TENSOR_RULES])
def test_a_signed_tensor_list_that_breaks_a_rule_is_refused(slm, change, message):
    parts = Parts(slm.read_bytes())
    change(parts.manifest["tensors"])
    payload = compact(parts.manifest, sort_keys=True).encode()
    slm.write_bytes(parts.sign(payload).join())
    with pytest.raises(BundleError) as error:
        open_bundle(slm, TRUSTED)
    assert message in str(error.value)


@pytest.mark.parametrize("payload", [b"[]", b"", b'{"a":' * 3000 + b"1" + b"}" * 3000, b"1" * 5000, b"1e999"])
def test_a_signed_payload_that_is_no_manifest_is_refused(slm, payload):
    slm.write_bytes(Parts(slm.read_bytes()).sign(payload).join())
    with pytest.raises(BundleError, match="slm.st: manifest: "):
        open_bundle(slm, TRUSTED)


def test_too_many_tensors_are_refused_before_their_names_are_made():
    manifest = example_manifest("mix", LLAMA, 65_536)
    manifest["training"]["heldout_loss_per_cluster"] = [None] * 65_536
    entry = {"dtype": "U8", "shape": [1], "offsets": [0, 1], "sha256": "0" * 64}
    raw = manifest | {"format": "planearly-bundle/v1", "tensors": {"x": entry}}
    parsed = parse_manifest(canonical_json(raw))
    with pytest.raises(Malformed, match=f"65536 models of 11 tensors, over {MAX_TENSORS}"):
        expected_tensors(parsed)


def test_a_plain_model_may_have_any_number_of_clusters(tmp_path):
    manifest = example_manifest("slm", LLAMA, 7)
    write_bundle(tmp_path / "a", manifest, example_tensors(manifest), PROVIDER)
    assert read_everything(tmp_path / "a")["clusters.centroids"].shape == (7, 384)


def test_wider_types_come_first_then_names():
    sizes = {"b": ("U8", [3]), "a": ("F32", [2, 2]), "c": ("F32", [1]), "z": ("I64", [1]), "0": ("BF16", [5])}
    assert lay_out(sizes) == {"z": (0, 8), "a": (8, 24), "c": (24, 28), "0": (28, 38), "b": (38, 41)}


def test_strict_json_has_one_meaning():
    assert parse_json(b'{"a":[1,2.5,null,true,"\\u00e9"]}') == {"a": [1, 2.5, None, True, "é"]}
    for text in (b'{"a":1,"a":1}', b"[Infinity]", b'"\xc3\xa9"', b"{", b"[" * 100_000, b"1" * 5000):
        with pytest.raises(Malformed):
            parse_json(text)
