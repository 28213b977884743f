"""report.html: one page that opens anywhere, asks for nothing, runs nothing, and can be printed and signed.

Its text comes from report.json and audit.json, escaped by the template engine without exception; its policy
allows the one style sheet by its digest and nothing else: no script, no image, no font, no request.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from owner.report.composing import compose, model_name, shorten
from owner.training.saving import AUDIT_FILE, MODEL_FOLDER, REPORT_FILE
from shared.files import write_atomic, write_json
from shared.progress import amount, duration

HTML_FILE = "report.html"
MOST_CHARACTERS = 4_000
"""Of any one text on the page."""
TEMPLATE, STYLE = "report.html.j2", "report.css"


def write_report(folder: Path, report: dict[str, Any], audit: dict[str, Any] | None = None) -> None:
    """Write report.html and report.json, which only their owner can read; JSON is the last to change."""
    _write_page(folder, report, audit)
    write_json(folder / REPORT_FILE, report)


def rewrite_report(folder: Path, audit: dict[str, Any]) -> bool:
    """Write report.html anew with an audit's findings; not for a report.json of an older version."""
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    if "uncertainty" not in report:
        return False
    _write_page(folder, report, audit)
    return True


def add_samples(folder: Path, report: dict[str, Any], samples: list[dict[str, str]]) -> dict[str, Any]:
    """Return a finished run's report with samples, and write it anew; an audit's findings stay."""
    report = report | {"samples": samples}
    audit = folder / AUDIT_FILE
    write_report(folder, report, json.loads(audit.read_text(encoding="utf-8")) if audit.exists() else None)
    return report


def _write_page(folder: Path, report: dict[str, Any], audit: dict[str, Any] | None) -> None:
    with write_atomic(folder / HTML_FILE) as out:
        out.write(render(report, audit).encode())


def render(report: dict[str, Any], audit: dict[str, Any] | None = None) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("owner.report", "."),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    assert environment.loader is not None
    style = environment.loader.get_source(environment, STYLE)[0].strip()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = environment.get_template(TEMPLATE)
    return page.render(
        **compose(report, audit), style=Markup(style), style_sha256=digest, model_folder=MODEL_FOLDER
    )


def _shown(value: Any) -> Any:
    """Return what stands on the page for a value: all text is made printable before it is escaped."""
    return (
        shorten(value, MOST_CHARACTERS)
        if isinstance(value, str) and not hasattr(value, "__html__")
        else value
    )


def _perplexity(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _change(share: float) -> str:
    """Return a relative change in words: 0.1 is 10 % higher."""
    return f"{abs(share):.1%} {'higher' if share > 0 else 'lower'}"


def _changes(interval: Sequence[float]) -> str:
    """Return the ends of a change's interval in words, the nearer to no change first."""
    low, high = sorted(interval, key=abs)
    if low * high < 0:
        return f"{_change(min(interval))} to {_change(max(interval))}"
    return f"{abs(low):.1%} to {_change(high)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _energy(joules: float) -> str:
    return f"{joules / 3.6e6:.3g} kWh" if joules >= 36_000 else f"{joules / 3600:.3g} Wh"


FILTERS: dict[str, Callable[..., str]] = {
    "amount": amount,
    "change": _change,
    "count": lambda n: f"{n:,}",
    "changes": _changes,
    "seconds": _seconds,
    "energy": _energy,
    "model_name": model_name,
    "percent": lambda share: f"{share:.0%}" if share >= 0.1 or not share else f"{share:.1%}",
    "perplexity": _perplexity,
    "printable": shorten,
}
