"""Card, atlas and diff of small bundles: recorded facts, foreign text harmless, pages that open offline."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import owner.cli
import provider.cli
from provider.atlas import (
    HEIGHT,
    MOST_LABELS,
    WIDTH,
    Bubble,
    draw_atlas,
    nearest_clusters,
    place_labels,
    project_on_a_plane,
)
from provider.bundling import write_bundle
from provider.showing import open_own
from shared.card import make_card
from shared.signature import public_key_pem
from tests.vectors.build import PROVIDER, STRANGER, accepted, example_tensors

EVIL = '<script>alert("x")</script> | [a](javascript:x) `b` \u202e*c*'


@pytest.fixture
def folder(tmp_path):
    """Two versions of a projected network with labels, and the provider's public key."""
    old = accepted()["full.st"]
    old["training"]["cluster_terms"] = [["court", "law", "judge", "bench"], [], ["<b>bread</b>"]]
    old["training"]["comparison"] = {
        "slm": {"heldout_loss": 2.75, "heldout_loss_per_cluster": [2.0, 2.5, None]}
    }
    old["training"]["schedule"] = {"warmup_steps": 3}
    new = json.loads(json.dumps(old)) | {"version": 2, "license": "CC BY-SA 4.0"}
    new["training"]["heldout_loss_per_cluster"] = [2.0, 2.5, None]
    new["training"]["sources"] = [{"name": "another's text", "license": "CC BY 4.0"}]
    tensors = example_tensors(old)
    write_bundle(tmp_path / "old.st", old, tensors, PROVIDER)
    changed = {"clusters.centroids": tensors["clusters.centroids"].roll(1, 0) + 0.001}
    changed["experts.vectors"] = tensors["experts.vectors"] + 1
    write_bundle(tmp_path / "new.st", new, tensors | changed, PROVIDER)
    (tmp_path / "provider.pub").write_bytes(public_key_pem(PROVIDER.public_key))
    (tmp_path / "stranger.pub").write_bytes(public_key_pem(STRANGER.public_key))
    return tmp_path


def run(folder, *arguments, party=provider.cli, exit_code=0):
    command = [
        str(folder / a) if str(a).endswith((".st", ".pub", ".html", ".md")) else str(a) for a in arguments
    ]
    if party is provider.cli and "--key" not in command:
        command += ["--key", str(folder / "provider.pub")]
    done = CliRunner().invoke(party.main, command)
    assert done.exit_code == exit_code, done.output
    return done


def write_foreign(folder, kind="slm.st"):
    """Write a bundle whose every free text tries something."""
    manifest = accepted()[kind]
    manifest["license"] = manifest["training"]["corpus"] = EVIL
    manifest["training"]["sources"] = [{"name": EVIL, "license": EVIL}]
    if kind != "replay.st":
        manifest["training"]["schedule"] = {EVIL: EVIL, "deep": [EVIL]}
    manifest["training"]["comparison"] = EVIL
    write_bundle(folder / "evil.st", manifest, example_tensors(manifest), PROVIDER)
    return folder / "evil.st"


def test_the_card_says_what_the_manifest_records_and_no_more(folder):
    card = run(folder, "card", "new.st").stdout
    assert card.startswith("---\nlicense: cc-by-sa-4.0\nlibrary_name: planearly\n")
    assert 'tags: ["planearly", "pn", "starcoder2"]\n---\n\n# vector-full version 2\n' in card
    sizes = dict(re.findall(r"^\| (parameters[^|]*) \| ([\d,]+) \|$", card, re.MULTILINE))
    tensors = example_tensors(accepted()["full.st"])
    plain = sum(t.numel() for name, t in tensors.items() if name.startswith("slm."))
    own = sum(
        t.numel() for name, t in tensors.items() if name.startswith(("shared.", "experts.", "projected."))
    )
    assert sizes == {
        "parameters of one model": f"{plain:,}",
        "parameters in the bundle": f"{own:,}",
        "parameters of the slm for comparison": f"{plain:,}",
    }
    assert "| another's text | CC BY 4.0 |" in card
    assert "| warmup steps | 3 |" in card
    assert "| optimizer | adam |" in card
    assert f"| 0 | court, law, judge | 1 | {math.exp(2.0):.1f} | {math.exp(2.0):.1f} |" in card
    assert f"| 1 | cluster 1 | 2 | {math.exp(2.5):.1f} | {math.exp(2.5):.1f} |" in card
    assert "| 2 | \\<b\\>bread\\</b\\> | 3 |  |  |" in card
    assert "1 of 3 clusters have no held-out window" in card
    assert PROVIDER.public_key.key_id in card


def test_both_parties_make_the_same_card_from_the_same_bundle(folder, monkeypatch):
    monkeypatch.setenv("PLANEARLY_HOME", str(folder / "home"))
    run(folder, "trust", "add", "provider.pub", party=owner.cli)
    ours = run(folder, "card", "new.st").stdout
    assert run(folder, "inspect", "new.st", "--card", party=owner.cli).stdout.rstrip() == ours.rstrip()
    assert run(folder, "card", "new.st", "--out", "card.md").stdout == f"{folder / 'card.md'}\n"
    assert (folder / "card.md").read_text() == ours
    assert "already exists" in run(folder, "card", "new.st", "--out", "card.md", exit_code=1).output
    both = run(folder, "inspect", "new.st", "--card", "--json", party=owner.cli, exit_code=2)
    assert "exclude each other" in both.output


@pytest.mark.parametrize("kind", ["slm.st", "replay.st", "mix.st"])
def test_no_foreign_text_does_anything_in_a_card_or_an_atlas(folder, kind):
    with open_own(write_foreign(folder, kind), folder / "provider.pub") as bundle:
        card, page = make_card(bundle), draw_atlas(bundle)
    for text in (card, page):
        assert "\u202e" not in text
        assert "<script" not in text.replace("\\<script", "")
    assert "license: other\n" in card
    unescaped = re.sub(r"\\.", "", card)
    assert "alert" in card
    assert "[a]" not in unescaped
    assert "*c*" not in unescaped
    rows = [line for line in unescaped.splitlines() if line.startswith("| ")]
    assert all(line.count("|") in (3, 4, 5) for line in rows)


@pytest.mark.parametrize(
    "command", [["card", "old.st"], ["atlas", "old.st", "--out", "a.html"], ["diff", "old.st", "new.st"]]
)
def test_a_bundle_by_another_key_or_a_damaged_one_is_refused(folder, command):
    done = run(folder, *command, "--key", "stranger.pub", exit_code=1)
    assert "signed by unknown key" in done.output
    content = bytearray((folder / "old.st").read_bytes())
    content[-3] ^= 1
    (folder / "old.st").write_bytes(content)
    assert "is not what was signed" in run(folder, *command, exit_code=1).output
    assert not (folder / "a.html").exists()


class Page(HTMLParser):
    """What a page links to, runs and shows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.urls, self.policy, self.style, self._in_style = [], [], "", "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        self._in_style = tag == "style"
        self.urls += [
            found[name] for name in ("href", "src", "xlink:href", "action", "data") if name in found
        ]
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]

    def handle_data(self, data):
        if self._in_style:
            self.style += data
            self._in_style = False


def test_the_atlas_is_one_page_without_scripts_that_asks_for_nothing(folder):
    run(folder, "atlas", "new.st", "--out", "atlas.html")
    text = (folder / "atlas.html").read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "img", "link", "iframe", "object", "foreignobject"}
    )
    assert not any(name.startswith("on") or name == "style" for _, found in page.tags for name in found)
    assert page.urls
    assert all(re.fullmatch(r"#c\d+", url) for url in page.urls)
    assert "url(" not in page.style
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert page.policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "prefers-color-scheme: dark" in page.style
    assert "<td>court, law, judge, bench</td>" in text
    assert "&lt;b&gt;bread&lt;/b&gt;" in text
    assert f">{math.exp(2.0):.1f}<" in text


def test_the_atlas_of_1024_clusters_has_them_all_and_no_labels_that_overlap(tmp_path):
    n = 1024
    manifest = accepted()["slm.st"]
    manifest["clusters"] = {"n": n, "corpus_windows": n * (n + 1) // 2}
    manifest["training"]["heldout_loss_per_cluster"] = [2.0 + c / n for c in range(n)]
    manifest["training"]["cluster_terms"] = [[f"term{c}", "another", "大阪の言葉"] for c in range(n)]
    generator = torch.Generator().manual_seed(0)
    centroids = torch.nn.functional.normalize(torch.randn(n, 384, generator=generator)) * 0.9
    counts = torch.arange(1, n + 1)
    tensors = example_tensors(manifest) | {"clusters.centroids": centroids, "clusters.counts": counts}
    write_bundle(tmp_path / "many.st", manifest, tensors, PROVIDER)
    (tmp_path / "provider.pub").write_bytes(public_key_pem(PROVIDER.public_key))
    with open_own(tmp_path / "many.st", tmp_path / "provider.pub") as bundle:
        text = draw_atlas(bundle)
    assert text.count("<circle") == n
    assert text.count("<tr id=") == n
    assert 10 < text.count('class="label"') <= MOST_LABELS
    assert len(text) < 1_000_000


def test_labels_never_cover_each_other_or_leave_the_map():
    generator = np.random.default_rng(5)
    bubbles = [
        Bubble(c, float(x), float(y), float(r), "#000000", False, "wort, noch eins, mehr")
        for c, (x, y, r) in enumerate(generator.uniform((0, 0, 3), (WIDTH, HEIGHT, 40), (80, 3)))
    ]
    boxes = []
    for bubble in place_labels(bubbles):
        if bubble.label_x is not None:
            half = len(bubble.label) * 6.4 / 2
            boxes.append(
                (bubble.label_x - half, bubble.label_y - 10.5, bubble.label_x + half, bubble.label_y + 3.5)
            )
    assert len(boxes) > 20
    for i, one in enumerate(boxes):
        assert one[0] >= -0.01
        assert one[2] <= WIDTH + 0.01
        for other in boxes[:i]:
            assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]


def test_nearest_clusters_and_the_plane_are_those_of_plain_loops():
    centroids = np.random.default_rng(0).normal(size=(7, 384)).astype(np.float32)
    cosine = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in centroids] for a in centroids]
    for cluster, found in enumerate(nearest_clusters(centroids)):
        others = sorted((c for c in range(7) if c != cluster), key=lambda c: -cosine[cluster][c])
        assert [c for c, _ in found] == others[:3]
        assert [value for _, value in found] == pytest.approx(
            [cosine[cluster][c] for c in others[:3]], abs=1e-5
        )
    places, explained = project_on_a_plane(centroids)
    squares = np.linalg.svd(centroids - centroids.mean(0), compute_uv=False) ** 2
    assert explained == pytest.approx(squares[:2].sum() / squares.sum(), rel=1e-4)
    assert np.square(places).sum(0) == pytest.approx(squares[:2], rel=1e-3)
    assert project_on_a_plane(centroids[:1])[1] == 1.0
    assert nearest_clusters(centroids[:1]) == [[]]


def test_a_diff_says_what_changed_and_where_clusters_went(folder):
    found = json.loads(run(folder, "diff", "old.st", "new.st", "--json").stdout)
    assert found["changed"] is True
    assert found["fields"]["license"] == ["CC0-1.0", "CC BY-SA 4.0"]
    assert found["fields"]["version"] == [1, 2]
    assert found["sources"]["added"] == [{"name": "another's text", "license": "CC BY 4.0"}]
    assert found["sources"]["removed"] == [{"name": "nobody's text", "license": "CC0-1.0"}]
    assert found["tensors"]["changed"] == ["clusters.centroids", "experts.vectors"]
    matched = found["clusters"]["matched"]
    assert [match["nearest_old"] for match in matched] == [2, 0, 1]
    assert all(match["moved"] == pytest.approx(0.001 * math.sqrt(384), rel=1e-2) for match in matched)
    assert matched[1]["perplexity"] == [
        pytest.approx(math.exp(2.25), abs=1e-3),
        pytest.approx(math.exp(2.5), abs=1e-3),
    ]
    text = run(folder, "diff", "old.st", "new.st").stdout
    assert "license: CC0-1.0 -> CC BY-SA 4.0" in text
    assert "source      added: another's text (CC BY 4.0)" in text
    assert "2 changed, 0 added, 0 removed" in text
    entry = run(folder, "diff", "old.st", "new.st", "--markdown").stdout
    assert entry.startswith(
        "## vector-full 2 - 2026-11-21\n\n### Added\n\n- source another's text (CC BY 4.0)\n"
    )
    assert "- license: CC0-1.0 to CC BY-SA 4.0\n" in entry


def test_a_diff_of_a_bundle_with_itself_finds_nothing(folder):
    done = run(folder, "diff", "old.st", "old.st", "--json")
    found = json.loads(done.stdout)
    assert found["changed"] is False
    assert found["fields"] == {}
    assert found["clusters"]["left_behind"] == []
    assert [match["moved"] for match in found["clusters"]["matched"]] == [0.0, 0.0, 0.0]
    assert "hold the same" in done.stderr


def test_a_diff_takes_an_older_key_for_the_older_bundle(folder):
    manifest = accepted()["full.st"]
    write_bundle(folder / "older.st", manifest, example_tensors(manifest), STRANGER)
    assert "unknown key" in run(folder, "diff", "older.st", "new.st", exit_code=1).output
    done = run(folder, "diff", "older.st", "new.st", "--old-key", "stranger.pub", "--json")
    assert json.loads(done.stdout)["old"]["key_id"] == STRANGER.public_key.key_id
