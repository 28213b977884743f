"""report.html of a real run, read by a strict parser and a real browser, with hostile names; its figures."""

import base64
import hashlib
import json
import math
import re
import stat
from copy import deepcopy
from dataclasses import replace

import html5lib
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from owner.audit.auditing import audit
from owner.documents.intervals import RESAMPLES
from owner.documents.windows import PrivateWindows, split_documents
from owner.isolation.walls import AUDIT_HOOK, SECCOMP
from owner.report.charts import Scale, loss_curves, loss_range, ticks
from owner.report.composing import compose, shorten
from owner.report.intervals import perplexity_intervals
from owner.report.metering import Meter
from owner.report.recording import cluster_labels
from owner.report.sampling import choose_prompts, go_on
from owner.report.writing import render, rewrite_report, write_report
from owner.training.scoring import heldout_nats, heldout_tokens
from shared.batches import Windows, all_microbatches
from shared.bundle import open_bundle
from shared.errors import PlanearlyError
from shared.losses import evaluate
from shared.signature import read_public_key
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.tokenizer import cut_windows
from tests import tiny
from tests.browsers import accessibility_faults, opened
from tests.parties import ROOT

DEMO = ROOT / "examples" / "demo"
HOSTILE = "<script>alert(1)</script>\"'><img src=http://x.test/p onerror=alert(2)>{{7*7}}\x1b[31m\u202egnp"
"""What a file name or a provider's text may try: markup, a template, an escape, writing reversed."""
SVG = "{http://www.w3.org/2000/svg}svg"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder and report of a tiny run with samples, of a bundle with a plain model beside its experts."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANEARLY_HOME", "")
        patch.setattr("shared.device.has_bf16", lambda device: False)
        tiny.make_inputs(folder)
        (folder / "private" / "broken.jsonl").write_text('{"text": 3}\n')
        tiny.release(folder, folder)
        tiny.trust(folder)
        bundle = folder / "out" / "tiny.st"
        report = tiny.specialize(folder, folder, bundle, with_samples=True, heldout_fraction=0.5)
        yield folder / "result", report


def make_private(lengths, context_tokens):
    """Return documents of so many tokens each, drawn from 300, cut into windows."""
    cuts = [
        (document, start, length)
        for document, n in enumerate(lengths)
        for start, length in cut_windows(n, context_tokens)
    ]
    document, start, length = (np.asarray(column, np.int32) for column in zip(*cuts, strict=True))
    stream = np.random.default_rng(0).integers(3, 300, sum(lengths)).astype(np.uint32)
    firsts = np.cumsum(lengths) - lengths
    zeros = np.zeros(len(cuts), np.int32)
    windows = Windows([stream], zeros, (firsts[document] + start).astype(np.int64), length, zeros)
    return PrivateWindows(windows, document, len(lengths))


def hostile(report, n_skipped=500):
    """Return the report with everything foreign in it replaced by what a provider or a file name may try."""
    found = deepcopy(report)
    n_clusters = len(found["histogram"])
    found["bundle"] |= {"name": HOSTILE, "file": HOSTILE, "license": HOSTILE * 50}
    found["cluster_labels"] = [HOSTILE] * n_clusters
    found["skipped"] = [{"path": HOSTILE, "reason": HOSTILE, "n": 3, "line": 7}] * n_skipped
    voucher = {"by": "trust file", "name": HOSTILE, "version": 2, "age_days": 40, "expires": "2026-01-01"}
    found["trust"] = [voucher | {"stale_reason": HOSTILE}]
    found["samples"] = [dict.fromkeys(("prompt", "true", "before", "after"), HOSTILE)]
    found["isolation"] = {"layers": [{"name": SECCOMP.name, "stops": SECCOMP.stops}], "missing": [HOSTILE]}
    return found


def parsed(page):
    """Return the document of a parser that takes no error."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)


def texts(document):
    return " ".join("".join(document.itertext()).split())


def test_the_page_is_written_beside_the_report_for_its_owner_alone(run):
    folder, report = run
    path = folder / "report.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads((folder / "report.json").read_text()) == report
    assert path.read_text() == render(report)


def test_the_page_is_strict_html_without_script_and_its_policy_allows_its_own_style_only(run):
    for report in (run[1], hostile(run[1])):
        page = render(report)
        document = parsed(page)
        tags = {element.tag for element in document.iter() if isinstance(element.tag, str)}
        assert not tags & {"script", "img", "link", "iframe", "object", "embed", "base", "form", "image"}
        names = {name for element in document.iter() for name in element.attrib}
        assert not {name for name in names if str(name).startswith("on") or name in ("src", "style")}
        links = [element.attrib["href"] for element in document.iter("a")]
        assert links
        assert all(link.startswith("#") for link in links)
        style = document.find(".//style").text
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = document.find(".//meta[@http-equiv]").attrib["content"]
        assert policy.startswith("default-src 'none'; ")
        assert f"style-src 'sha256-{digest}'" in policy
        assert "url(" not in style
        assert "@import" not in style


def test_hostile_names_are_shown_and_do_nothing(run):
    page = render(hostile(run[1]))
    shown = texts(parsed(page))
    assert "<script>alert(1)</script>" in shown
    assert "{{7*7}}" in shown
    assert "49�" not in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert len(page) < 400_000  # 500 skipped files and a licence of thousands of characters are cut
    assert "the first 200 of 500 entries" in shown


def test_the_page_has_an_order_of_headings_headers_of_tables_and_words_for_pictures(run):
    document = parsed(render(run[1]))
    levels = [int(e.tag[1]) for e in document.iter() if e.tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = [element.attrib["id"] for element in document.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    assert {link.attrib["href"][1:] for link in document.iter("a")} <= set(ids)
    for table in document.iter("table"):
        assert all("scope" in header.attrib for header in table.iter("th"))
    hidden = {svg for row in document.iter() if row.attrib.get("aria-hidden") for svg in row.iter(SVG)}
    pictures = [svg for svg in document.iter(SVG) if svg not in hidden]
    assert len(pictures) > 5
    assert all(svg.attrib.get("aria-label") for svg in pictures)


def test_the_page_says_what_the_report_says(run):
    folder, report = run
    shown = texts(parsed(render(report)))
    perplexity, bundle = report["perplexity"], report["bundle"]
    for text in (
        bundle["manifest_sha256"],
        bundle["key_id"],
        report["documents_sha256"],
        report["run"],
        f"{report['tokens']:,} tokens",
        "broken.jsonl, from line 1",
        "no `text` string",
        "owner audit FOLDER --data",
        "no label recorded",
        "Nothing was enforced.",
        f"{perplexity['before']:.1f} → {perplexity['after']:.1f}",
        "This section shows private text.",
        "the device does not tell" if report["cost"]["cpu_joules"] is None else "Wh by the CPU packages",
    ):
        assert text in shown, text
    for name, digest in report["files"].items():
        assert hashlib.sha256((folder / "model" / name).read_bytes()).hexdigest() == digest
        assert digest in shown
    assert {"verify", "read", "select", "adapt", "samples", "save"} <= set(report["seconds"])
    assert report["cost"]["peak_memory_bytes"] > 100 << 20


def test_without_samples_the_page_holds_no_section_for_them_and_the_report_no_text(run):
    without = run[1] | {"samples": None}
    shown = texts(parsed(render(without)))
    assert "shows private text" not in shown
    assert run[1]["samples"][0]["true"].split()[0] in texts(parsed(render(run[1])))
    assert set(run[1]["samples"][0]) == {"prompt", "true", "before", "after"}


def test_an_audit_is_added_to_the_page_and_an_old_report_is_left_alone(run, tmp_path):
    folder, report = run
    page = (folder / "report.html").read_text()
    found = audit(folder, folder.parent / "private", folder.parent / "out" / "tiny.st", tiny.quiet)
    assert rewrite_report(folder, found)
    shown = texts(parsed((folder / "report.html").read_text()))
    assert "Not measured." not in shown
    assert f"AUC {found['membership']['auc']:.3f}" in shown
    assert "longest exact continuation" in shown
    (folder / "report.html").write_text(page)
    old = {name: value for name, value in report.items() if name != "uncertainty"}
    (tmp_path / "report.json").write_text(json.dumps(old))
    assert not rewrite_report(tmp_path, found)
    assert not (tmp_path / "report.html").exists()


def test_samples_are_added_to_a_finished_run_as_it_would_have_made_them(run):
    folder, report = run
    bundle, private = folder.parent / "out" / "tiny.st", folder.parent / "private"

    def again():
        where, said = folder.parent, []
        options = {"with_samples": True, "heldout_fraction": 0.5}
        return tiny.specialize(where, where, bundle, said.append, **options), said

    found = audit(folder, private, bundle, tiny.quiet)
    before = tiny.fingerprint(folder, "model/*")
    (folder / "report.json").write_text(json.dumps(report | {"samples": None}))
    added, said = again()
    assert added == report == json.loads((folder / "report.json").read_text())
    assert any(line.startswith("samples ") and "private text" in line for line in said)
    assert (folder / "report.html").read_text() == render(report, found)
    assert tiny.fingerprint(folder, "model/*") == before
    assert not any(line.startswith("samples ") for line in again()[1])
    (folder / "report.json").write_text(json.dumps(report | {"samples": None}))
    config = (folder / "model" / "config.json").read_text()
    (folder / "model" / "config.json").write_text(config + " ")
    with pytest.raises(PlanearlyError, match="has changed since its report was written"):
        again()
    (folder / "model" / "config.json").write_text(config)
    write_report(folder, report)


def test_walls_that_stood_or_were_missing_are_told_apart(run):
    def walls(*missing):
        layers = [{"name": layer.name, "stops": layer.stops} for layer in (SECCOMP, AUDIT_HOOK)]
        return run[1] | {"isolation": {"layers": layers, "missing": list(missing)}}

    def state(report):
        return next(f.state for f in compose(report, None)["findings"] if f.title == "Network")

    assert [state(walls()), state(walls("landlock (ENOSYS)")), state(run[1])] == ["ok", "note", "open"]
    assert "Missing on this machine: landlock (ENOSYS)" in texts(parsed(render(walls("landlock (ENOSYS)"))))


def test_a_promise_of_differential_privacy_stands_with_what_it_leaves_out(run):
    report = deepcopy(run[1])
    report["privacy"] = {"epsilon": 5.98, "delta": 1e-4, "unit": "one training document"}
    report["privacy"] |= {"covers": "the weights", "does_not_cover": "this report"}
    shown = texts(parsed(render(report)))
    assert "differential privacy: epsilon 5.98, delta 0.0001" in shown
    assert "Votes of training documents" in shown


def test_in_a_browser_the_page_fits_runs_nothing_asks_for_nothing_and_is_accessible(run, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(hostile(run[1], n_skipped=5)))
    with opened(path) as (page, heard):
        for scheme, background in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 27)")):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
            assert accessibility_faults(page) == []
        for width in (1100, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            sizes = page.evaluate(
                "[...document.querySelectorAll('main svg')].map(svg => svg.getBoundingClientRect().width)"
            )
            assert min(sizes) > 10
            assert len(page.screenshot(full_page=True)) > 50_000
        assert page.title().startswith("Specialization report")
        assert heard == []


def test_the_browser_would_have_told_of_a_script_and_of_a_request(tmp_path):
    path = tmp_path / "other.html"
    path.write_text(
        "<title>x</title><script>console.log('ran')</script><img alt='' src='http://x.test/p.png'>"
    )
    with opened(path) as (page, heard):
        page.wait_for_timeout(200)
        assert "ran" in heard
        assert "http://x.test/p.png" in heard
        assert accessibility_faults(page)  # no language, no heading


def test_on_paper_the_page_is_light_and_keeps_signature_and_digests_together(run, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(run[1]))
    with opened(path, "dark") as (page, heard):
        assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        seal = page.evaluate("getComputedStyle(document.querySelector('.seal')).breakInside")
        assert seal == "avoid"
        assert page.evaluate("document.querySelector('.seal').innerText.includes('model.safetensors')")
        assert heard == []


def test_intervals_are_those_of_a_slow_loop_over_whole_documents():
    generator = np.random.default_rng(3)
    tokens_U = generator.integers(20, 200, 7).astype(float)
    nats = {"before": tokens_U * generator.uniform(3, 5, 7), "after": tokens_U * generator.uniform(2, 4, 7)}
    found = perplexity_intervals(tokens_U, nats, {"ratio": ("after", "before")})
    draws = np.random.default_rng(0)
    before, ratio = [], []
    for _ in range(RESAMPLES):
        drawn = draws.integers(0, 7, 7)
        loss = {name: sum(nats[name][i] for i in drawn) / sum(tokens_U[i] for i in drawn) for name in nats}
        before.append(math.exp(loss["before"]))
        ratio.append(math.exp(loss["after"] - loss["before"]))
    whole = {name: math.exp(nats[name].sum() / tokens_U.sum()) for name in nats}
    assert found["before"]["perplexity"] == pytest.approx(whole["before"])
    assert found["ratio"]["ratio"] == pytest.approx(whole["after"] / whole["before"])
    ends = np.quantile(np.log(before), [0.025, 0.975])
    assert found["before"]["interval_95"] == pytest.approx(np.exp(ends))
    assert found["ratio"]["interval_95"] == pytest.approx(np.exp(np.quantile(np.log(ratio), [0.025, 0.975])))


def test_one_document_has_no_interval_and_a_pair_that_moves_together_a_narrow_one():
    alone = perplexity_intervals(np.array([50.0]), {"before": np.array([150.0])}, {})
    assert alone["before"] == {"perplexity": pytest.approx(math.exp(3)), "interval_95": None}
    tokens_U, spread = np.full(30, 100.0), np.random.default_rng(1).uniform(2, 6, 30)
    nats = {"one": tokens_U * spread, "other": tokens_U * (spread - 0.1)}
    found = perplexity_intervals(tokens_U, nats, {"pair": ("other", "one")})
    low, high = found["one"]["interval_95"]
    assert high / low > 1.5
    assert found["pair"]["interval_95"] == pytest.approx([math.exp(-0.1)] * 2)


def test_nats_by_document_sum_to_the_held_out_loss_and_are_each_documents_own(monkeypatch):
    private = make_private([50, 9, 70, 33, 12, 64, 41], context_tokens=16)
    split = split_documents(private, 0.5, seed=1)
    torch.manual_seed(0)
    model = build_slm(replace(PRESETS["test"], width=32, ffn_width=48, vocab_size=300, context_tokens=16))
    nats_U, tokens_U = heldout_nats(model, split, 16, 3), heldout_tokens(split)
    whole = evaluate(model, None, all_microbatches(split.heldout, 16, 3))
    assert nats_U.sum() / tokens_U.sum() == pytest.approx(whole.mean, rel=1e-6)
    for unit, document in enumerate(np.unique(split.heldout_document)):
        mine = split.heldout.take(split.heldout_document == document)
        alone = evaluate(model, None, all_microbatches(mine, 16, 1))
        assert tokens_U[unit] == mine.n_tokens
        assert nats_U[unit] == pytest.approx(sum(alone.nats.values()), rel=1e-5)


def test_the_reports_perplexities_are_those_of_its_intervals(run):
    report = run[1]
    for name, value in report["perplexity"].items():
        entry = report["uncertainty"][name]
        assert entry["perplexity"] == pytest.approx(value, rel=1e-4)
        if entry["interval_95"]:
            low, high = entry["interval_95"]
            assert low <= value <= high


def test_a_greedy_continuation_is_transformers_own(run):
    model = AutoModelForCausalLM.from_pretrained(run[0] / "model").eval()
    prompt = np.arange(40, 52)
    ids = torch.tensor([[1, *prompt]])
    theirs = model.generate(ids, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=2)
    assert go_on(model, prompt, 9).tolist() == theirs[0, -9:].tolist()


def test_prompts_are_held_out_windows_that_are_long_enough():
    split = split_documents(make_private([50, 9, 70, 33, 12, 64, 41], context_tokens=16), 0.5, seed=1)
    found = choose_prompts(split, 12)
    assert [len(prompt) for prompt in found] == [12] * 3
    heldout = {tuple(split.heldout.tokens(w)[:12]) for w in range(len(split.heldout))}
    assert {tuple(prompt) for prompt in found} <= heldout
    assert choose_prompts(split, 17) == []


def test_energy_is_counted_over_a_counter_that_comes_round_and_only_of_packages(tmp_path):
    def zone(name, kind, microjoules):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "name").write_text(f"{kind}\n")
        (folder / "energy_uj").write_text(str(microjoules))
        (folder / "max_energy_range_uj").write_text("10000000")
        return folder / "energy_uj"

    package = zone("intel-rapl:0", "package-0", 9_000_000)
    zone("intel-rapl:0:0", "core", 0)
    platform = zone("intel-rapl:1", "psys", 0)
    meter = Meter(torch.device("cpu"), tmp_path)
    package.write_text("500000")
    platform.write_text("5000000")
    assert meter.figures()["cpu_joules"] == 1.5
    package.write_text("2500000")
    assert meter.figures()["cpu_joules"] == 3.5
    silent = Meter(torch.device("cpu"), tmp_path / "none").figures()
    assert (silent["cpu_joules"], silent["gpu_joules"], silent["peak_device_memory_bytes"]) == (None,) * 3


def test_labels_are_the_first_terms_of_each_cluster_and_none_where_none_are_recorded(run):
    with open_bundle(DEMO / "pn16.st", [read_public_key(DEMO / "provider.pub")]) as bundle:
        manifest = bundle.manifest
    assert (cluster_labels(manifest) or [])[3] == "use, linux, python"
    assert cluster_labels(replace(manifest, cluster_terms=())) is None
    labelled = run[1] | {"cluster_labels": ["python, class, def"] * len(run[1]["histogram"])}
    assert "python, class, def" in texts(parsed(render(labelled)))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 420, [0, 100, 200, 300, 400]),
        (2.3, 5.1, [3, 4, 5]),
        (0.11, 0.19, [0.12, 0.14, 0.16, 0.18]),
        (1, 1, [1]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_curves_lie_in_their_box_and_the_kept_step_on_the_held_out_one():
    history = [
        {"step": 0, "train_loss": None, "heldout_loss": 5.0},
        {"step": 10, "train_loss": 3.0, "heldout_loss": 4.0},
        {"step": 20, "train_loss": 2.0, "heldout_loss": 4.5},
    ]
    chart = loss_curves(history, 10, loss_range([history]))
    assert chart.best == chart.heldout[1]
    assert len(chart.training) == 2
    xs, ys = zip(*chart.heldout, *chart.training, strict=True)
    assert (min(xs), max(xs)) == (chart.left, chart.right)
    assert chart.top <= min(ys) <= max(ys) <= chart.bottom
    assert chart.heldout[0][1] < chart.heldout[2][1] < chart.heldout[1][1] < chart.training[1][1]


def test_an_axis_of_perplexities_has_ticks_and_keeps_everything_on_it():
    scale = Scale(12.0, 130.0)
    assert [tick.label for tick in scale.ticks()] == ["20", "50", "100"]
    assert 2 == scale.at(12.0) < scale.at(40.0) < scale.at(130.0) == 98
    assert len(Scale(20.5, 21.9).ticks()) >= 2


def test_foreign_text_is_cut_and_printable():
    assert shorten("a\tb\u202ec\x1bd\ne") == "a\\tb\\u202ec\\x1bd\ne"
    assert shorten("x" * 300, 10) == "x" * 9 + "…"
