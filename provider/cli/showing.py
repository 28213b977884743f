"""`provider card`, `provider atlas` and `provider diff`: what is in a bundle, and between two."""

import json
from pathlib import Path

import click

from provider.cli.shell import errors_printed, say

key_option = click.option(
    "--key",
    "key_file",
    default=Path("provider.pub"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Your public key: what another one signed is refused.",
)


@click.command(epilog="Example: provider card pn32.st --out README.md")
@click.argument("bundle", type=click.Path(path_type=Path))
@key_option
@click.option("--out", type=click.Path(path_type=Path), help="New file; left out, the card is printed.")
def card(bundle: Path, key_file: Path, out: Path | None) -> None:
    """Verify a bundle and write its model card in Markdown, from what the signed manifest records."""
    with errors_printed():
        from provider.showing import open_own, write_page
        from shared.card import make_card

        with open_own(bundle, key_file) as opened:
            text = make_card(opened)
        if out is None:
            click.echo(text, nl=False)
        else:
            click.echo(write_page(out, text))


@click.command(epilog="Example: provider atlas pn32.st --out atlas.html")
@click.argument("bundle", type=click.Path(path_type=Path))
@key_option
@click.option(
    "--out", default=Path("atlas.html"), show_default=True, type=click.Path(path_type=Path), help="New file."
)
def atlas(bundle: Path, key_file: Path, out: Path) -> None:
    """Verify a bundle and draw its clusters: one HTML page without scripts, which opens offline."""
    with errors_printed():
        from provider.atlas import draw_atlas
        from provider.showing import open_own, write_page

        with open_own(bundle, key_file) as opened:
            text = draw_atlas(opened)
        click.echo(write_page(out, text))


@click.command(epilog="Example: provider diff pn32-v1.st pn32-v2.st --markdown")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@key_option
@click.option("--old-key", type=click.Path(path_type=Path), help="Of OLD, if another key signed it.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print an entry for a changelog.")
def diff(
    old: Path, new: Path, key_file: Path, old_key: Path | None, as_json: bool, as_markdown: bool
) -> None:
    """Verify two bundles and say what changed: sizes, sources, clusters, perplexity, tensors."""
    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    with errors_printed():
        from provider.comparing import changelog_entry, compare_bundles, describe_changes
        from provider.showing import open_own

        with open_own(old, old_key or key_file) as before, open_own(new, key_file) as after:
            found = compare_bundles(before, after)
        if as_json:
            click.echo(json.dumps(found, indent=2))
        else:
            click.echo("\n".join((changelog_entry if as_markdown else describe_changes)(found)))
        if not found["changed"]:
            say("the two bundles say the same and hold the same")
