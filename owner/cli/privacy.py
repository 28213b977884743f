"""`owner audit` and `owner histogram`: what a model, or a histogram, gives away."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from owner.cli.shell import (
    embedder_option,
    errors_printed,
    isolate,
    isolation_option,
    quiet_option,
    say,
    stale_option,
    watched,
)


@click.command(epilog="Example: owner audit specialized --data private/ --bundle pn32.st")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="The documents it was made from."
)
@click.option("--bundle", type=click.Path(path_type=Path), help="The bundle it was made from.")
@isolation_option
@stale_option
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def audit(
    model: Path,
    data: Path,
    bundle: Path | None,
    level: Any,
    stale_reason: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Attack a specialized model, the out folder of specialize; write audit.json and report.html there."""
    with errors_printed():
        from owner.isolation.places import keep_places

        isolate(level, keep_places(model), is_quiet=quiet)
        from owner.audit.auditing import audit as run
        from owner.audit.summarizing import summarize_audit
        from owner.report.writing import rewrite_report

        with watched(quiet) as say:
            found = run(model, data, bundle, say, stale_reason)
        rewrite_report(model, found)
        click.echo(json.dumps(found, indent=2) if as_json else "\n".join(summarize_audit(found)))


@click.command(epilog="Example: owner histogram --bundle pn32.st --data private/ --epsilon 1.0")
@click.option(
    "--bundle",
    required=True,
    type=click.Path(path_type=Path),
    help="A bundle or pack: its clusters count.",
)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of private documents.")
@click.option(
    "--epsilon", default=1.0, show_default=True, help="Of differential privacy: less is more noise."
)
@click.option("--clusters", type=click.IntRange(min=1), help="Merge to so many: less noise, less detail.")
@click.option(
    "--out",
    default=Path("request.json"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="New file; never over an existing one.",
)
@embedder_option
@isolation_option
@stale_option
@click.option("--yes", is_flag=True, help="Write without asking.")
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print what was written to stdout.")
def histogram(
    bundle: Path,
    data: Path,
    epsilon: float,
    clusters: int | None,
    out: Path,
    embedder: Path | None,
    level: Any,
    stale_reason: str | None,
    yes: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write a histogram of your documents, with noise, to hand to a provider if you choose to."""
    with errors_printed():
        isolate(level, [out.absolute().parent], is_quiet=quiet)
        from owner.choice.requesting import describe_request, request_histogram
        from shared.request import write_request

        with watched(quiet) as tell:
            request, n_documents = request_histogram(
                bundle, data, epsilon, out, tell, embedder, clusters, stale_reason
            )
        if not (quiet and yes):  # who is asked must see what is asked about
            for line in describe_request(request, n_documents).split("\n"):
                say(line)
        if not yes and not click.confirm(f"owner: write {out}?", err=True):
            say("nothing was written")
            sys.exit(1)
        write_request(out, request)
        click.echo(out.read_text(encoding="utf-8").rstrip() if as_json else out)
