"""`owner doctor` and `owner completion`: is the machine ready, and commands that complete themselves."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from owner.cli.shell import embedder_option, errors_printed

SHELLS = ("bash", "zsh", "fish")
COMPLETE_VARIABLE = "_OWNER_COMPLETE"
"""By which click's script asks `owner` what could come next."""


@click.command(epilog="Example: owner doctor --bundle pn32.st")
@click.option("--bundle", type=click.Path(path_type=Path), help="A bundle to verify and to measure against.")
@click.option(
    "--out",
    default=Path("specialized"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where a run would write.",
)
@embedder_option
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor(bundle: Path | None, out: Path, embedder: Path | None, as_json: bool) -> None:
    """Say whether `owner specialize` can run on this machine, and what is missing. Sends nothing."""
    with errors_printed():
        from owner.doctoring.examining import describe, examine

        checks = examine(bundle, out, embedder)
        stops = any(check.is_in_the_way for check in checks)
        if as_json:
            found = {"can_specialize": not stops, "checks": [asdict(check) for check in checks]}
            click.echo(json.dumps(found, indent=2))
        else:
            click.echo("\n".join(describe(checks)))
        sys.exit(1 if stops else 0)


@click.command(epilog="Example: owner completion bash")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete `owner`; in bash: eval "$(owner completion bash)"."""
    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root()
    click.echo(kind(root.command, {}, root.info_name or "owner", COMPLETE_VARIABLE).source())
