"""report.json and audit.json to what report.html shows: chosen, bounded, put into words; no markup here.

Everything that came with a bundle or a file name is foreign: `shorten` makes it printable and cuts it, and
the template escapes it.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from owner.audit.summarizing import summarize_audit
from owner.choice.candidates import SLM
from owner.choice.methods import METHODS
from owner.report.charts import Curves, Scale, loss_curves, loss_range, perplexity_scale
from owner.training.adapting import WITHOUT_DP
from shared.printable import printable

NO_LABEL = "no label recorded"
MOST_CLUSTERS, MOST_SKIPPED = 15, 200
"""Rows of the page's longest tables; report.json has the rest."""
FEW_UNITS = 20
"""Held-out documents below which the page warns that its intervals are too narrow. Ours."""


@dataclass(frozen=True)
class Finding:
    """One line of the summary: `ok`, `note` (known, look at it) or `open` (not done, or not enforced)."""

    state: str
    title: str
    text: str


@dataclass(frozen=True)
class ClusterRow:
    """One bar of the histogram."""

    name: str
    label: str
    n: int
    share: float
    is_chosen: bool = False


@dataclass(frozen=True)
class StartRow:
    """One start that was measured or fine-tuned, in perplexity; None: it was not."""

    name: str
    before: float | None
    after: float | None
    is_kept: bool


@dataclass(frozen=True)
class PerplexityRow:
    """One model's perplexity on the held-out text, with its interval and their places on the axis."""

    name: str
    value: float
    interval: list[float] | None
    at: float
    low_at: float
    high_at: float


@dataclass(frozen=True)
class RatioRow:
    """By how much one perplexity is below another: a share of it, and the interval of that share."""

    name: str
    change: float
    interval: list[float] | None


def shorten(text: Any, most: int = 200) -> str:
    """Return foreign text in printable characters, its lines kept, cut short."""
    shown = printable(str(text), "\n")
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def model_name(name: str) -> str:
    """Return a start's name as a reader would call it."""
    words = {
        SLM: "plain small model",
        WITHOUT_DP: "without differential privacy",
        "histogram": "mean by histogram",
        "learned": "learned point",
    }
    return words.get(name) or name.replace("-", " ")


def compose(report: dict[str, Any], audit: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the template shows, by name; `report` itself is among it for what needs no words."""
    scale, perplexities = _perplexities(report)
    return {
        "report": report,
        "findings": _findings(report, audit),
        "clusters": _clusters(report),
        "starts": _starts(report),
        "start_label": _start_label(report),
        "why": _why(report),
        "curves": _curves(report),
        "scale": scale,
        "perplexities": perplexities,
        "ratios": _ratios(report),
        "few_units": report["uncertainty"]["n"] < FEW_UNITS,
        "skipped": report["skipped"][:MOST_SKIPPED],
        "skipped_reasons": _reasons(report["skipped"]),
        "audit": [line.split(maxsplit=1) for line in summarize_audit(audit)] if audit else None,
    }


def _findings(report: dict[str, Any], audit: dict[str, Any] | None) -> list[Finding]:
    walls, trust = report["isolation"], report["trust"]
    stale = [voucher for voucher in trust if voucher.get("stale_reason")]
    found = [
        Finding(
            "note" if stale else "ok",
            "Bundle",
            f"signed by key {report['bundle']['key_id']}, which this owner trusts"
            + (", by a trust file past its expiry" if stale else ""),
        )
    ]
    if walls is None:
        found.append(
            Finding("open", "Network", "nothing was enforced: the program was called without its walls")
        )
    elif walls["missing"]:
        missing = f"not every layer stood: {len(walls['missing'])} missing on this machine"
        found.append(Finding("note", "Network", missing))
    else:
        found.append(Finding("ok", "Network", "shut off for the process and its children; every layer stood"))
    n_skipped = sum(item["n"] for item in report["skipped"])
    if n_skipped:
        found.append(
            Finding("note", "Documents", f"{n_skipped:,} skipped, each listed below with its reason")
        )
    else:
        found.append(Finding("ok", "Documents", "none skipped"))
    perplexity = report["perplexity"]
    if perplexity["after"] < perplexity["before"]:
        found.append(Finding("ok", "Model", report["result"]))
    else:
        found.append(Finding("note", "Model", report["result"]))
    if "slm_after" in perplexity and perplexity["after"] > perplexity["slm_after"]:
        found.append(
            Finding("note", "Comparison", "the plain small model came out better on the held-out text")
        )
    promise = report["privacy"]
    if promise:
        text = f"differential privacy for documents, epsilon {promise['epsilon']:.3g}"
        found.append(Finding("ok", "Privacy", text))
    if audit is None:
        found.append(Finding("open", "Memory", "what the model remembers of the documents was not measured"))
    else:
        found.append(Finding("note", "Memory", "measured by four attacks; their figures are below"))
    if report["samples"]:
        found.append(Finding("note", "This page", "shows private text, as was asked for"))
    return found


def _clusters(report: dict[str, Any]) -> list[ClusterRow]:
    """Return the clusters with most windows, most first, and one row for the others."""
    histogram, labels = report["histogram"], report["cluster_labels"]
    total = max(1, sum(histogram))
    order = sorted((k for k, n in enumerate(histogram) if n > 0), key=lambda k: (-histogram[k], k))
    rows = [
        ClusterRow(
            str(k),
            shorten((labels and labels[k]) or NO_LABEL, 130),
            histogram[k],
            histogram[k] / total,
            report["start"]["expert"] == k and len(histogram) > 1,
        )
        for k in order[:MOST_CLUSTERS]
    ]
    if rest := order[MOST_CLUSTERS:]:
        n = sum(histogram[k] for k in rest)
        rows.append(ClusterRow("…", f"{len(rest):,} more clusters", n, n / total))
    return rows


def _start_label(report: dict[str, Any]) -> str:
    """Say in words what fine-tuning started from."""
    expert, labels = report["start"]["expert"], report["cluster_labels"]
    if report["start"]["vector"] is not None:
        return "between the bundle's experts"
    if expert is None or len(report["histogram"]) < 2 or report["bundle"]["kind"] == "slm":
        return "no expert of a cluster"
    return (labels and labels[expert]) or NO_LABEL


def _starts(report: dict[str, Any]) -> list[StartRow]:
    figures = report["finetuning"]
    measured = {start["name"]: start["heldout_loss"] for start in report["starts"]}
    names = [*measured, *(name for name in figures if name not in measured)]
    rows = []
    for name in names:
        loss = measured.get(name)
        before = figures[name]["before"] if name in figures else None
        rows.append(
            StartRow(
                model_name(name),
                before if before is not None or loss is None else math.exp(loss),
                figures[name]["after"] if name in figures else None,
                name == report["chosen"],
            )
        )
    return rows


def _why(report: dict[str, Any]) -> str:
    """Say by which rule the start was chosen, and what it went by."""
    histogram, method = report["histogram"], report["select"]
    if len(histogram) < 2 or report["chosen"] == SLM and method != "auto":
        return "The bundle holds one model."
    text = f"Method {method}: {METHODS[method]}."
    if method == "most-frequent":
        most = max(histogram)
        of = "votes, after noise" if report["privacy"] else "windows that were looked at"
        text += f" Cluster {histogram.index(most)} has {most / max(1, sum(histogram)):.0%} of the {of}."
    return text


def _curves(report: dict[str, Any]) -> list[tuple[str, Curves, dict[str, Any]]]:
    figures = report["finetuning"]
    losses = loss_range([each["history"] for each in figures.values()])
    return [
        (model_name(name), loss_curves(each["history"], each["best_step"], losses), each)
        for name, each in figures.items()
    ]


def _perplexities(report: dict[str, Any]) -> tuple[Scale, list[PerplexityRow]]:
    found = report["uncertainty"]
    chosen = model_name(report["chosen"])
    names = {
        "before": f"{chosen}, as published",
        "after": f"{chosen}, the result",
        "without_dp": "the same without differential privacy",
        "slm_before": "plain small model, as published",
        "slm_after": "plain small model, fine-tuned",
    }
    entries = {name: found[name] for name in names if name in found}
    ends = [end for entry in entries.values() for end in entry["interval_95"] or [entry["perplexity"]]]
    scale = perplexity_scale([*ends, *(entry["perplexity"] for entry in entries.values())])
    rows = []
    for name, entry in entries.items():
        low, high = entry["interval_95"] or [entry["perplexity"]] * 2
        at = scale.at(entry["perplexity"])
        interval = entry["interval_95"]
        rows.append(
            PerplexityRow(names[name], entry["perplexity"], interval, at, scale.at(low), scale.at(high))
        )
    return scale, rows


def _ratios(report: dict[str, Any]) -> list[RatioRow]:
    names = {
        "after_to_before": "the result against its start",
        "after_to_slm_after": "the result against the plain small model, fine-tuned on the same text",
        "after_to_without_dp": "the result against the same without differential privacy",
    }
    rows = []
    for name, words in names.items():
        if entry := report["uncertainty"].get(name):
            interval = [end - 1 for end in entry["interval_95"]] if entry["interval_95"] else None
            rows.append(RatioRow(words, entry["ratio"] - 1, interval))
    return rows


def _reasons(skipped: list[dict[str, Any]]) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for item in skipped:
        counts[shorten(item["reason"])] += item["n"]
    return counts.most_common(20)
