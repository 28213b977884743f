"""`owner trust` and `owner inspect`: whose bundles may be opened, and what is in one."""

import json
from pathlib import Path

import click

from owner.cli.shell import errors_printed, say, stale_option, watched


@click.group(epilog="Example: owner trust add provider.pub")
def trust() -> None:
    """Say whose bundles may be opened: a provider's key, or its trust file."""


@trust.command(epilog="Example: owner trust add provider.pub")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", default="", help="A note to tell keys apart, as the provider's name.")
@click.option("--roots", metavar="FINGERPRINT", default="", help="Of a trust file's roots, 64 hex digits.")
def add(file: Path, name: str, roots: str) -> None:
    """Pin a public key, or a trust file, received over a channel you trust."""
    with errors_printed():
        from owner.trust.pinning import add_trust_file, is_trust_file, pin_key

        if is_trust_file(file):
            if name:
                raise click.UsageError("--name is for keys; a trust file has its provider's name")
            added = add_trust_file(file, roots)
            say(f"trusts {added.name} by its trust file version {added.version} from now on")
            return
        if roots:
            raise click.UsageError("--roots is for trust files; a key has none")
        say(f"trusts key {pin_key(file, name).key_id} from now on")


@trust.command("list", epilog="Example: owner trust list")
def list_trusted() -> None:
    """List pinned keys and trust files: keys, scopes, version, age, expiry, revocations."""
    with errors_printed():
        from owner.trust.vouching import describe_trust, read_trust

        for line in describe_trust(read_trust()):
            click.echo(line)


@trust.command(epilog="Example: owner trust update trust.json")
@click.argument("file", type=click.Path(path_type=Path))
def update(file: Path) -> None:
    """Replace a trust file by a later version that its roots signed."""
    with errors_printed():
        from owner.trust.pinning import update_trust_file

        found, is_new = update_trust_file(file)
        state = "from now on" if is_new else "already; nothing to do"
        say(f"trusts {found.name} by its trust file version {found.version} {state}")


@trust.command(epilog="Example: owner trust remove 0123456789abcdef")
@click.argument("which", metavar="KEY_ID|NAME")
def remove(which: str) -> None:
    """Stop trusting a key or a trust file; what was seen of versions is kept."""
    with errors_printed():
        from owner.trust.pinning import remove as forget

        forget(which)
        say(f"no longer trusts {which}")


@click.command(epilog="Example: owner inspect pn32.st")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--detached", type=click.Path(path_type=Path), help="An OpenSSF signature file to verify too.")
@click.option("--detached-key", type=click.Path(path_type=Path), help="The public P-256 key of that file.")
@stale_option
@click.option("--json", "as_json", is_flag=True, help="Print the signed manifest as JSON.")
@click.option("--card", "as_card", is_flag=True, help="Print a model card made from it, as Markdown.")
def inspect(
    bundle: Path,
    detached: Path | None,
    detached_key: Path | None,
    stale_reason: str | None,
    as_json: bool,
    as_card: bool,
) -> None:
    """Verify a bundle, every digest, and show what is in it."""
    if (detached is None) != (detached_key is None):
        raise click.UsageError("--detached and --detached-key belong together")
    if as_json and as_card:
        raise click.UsageError("--json and --card exclude each other")
    with errors_printed():
        from owner.trust.inspecting import describe_bundle, inspect_bundle

        with watched() as tell:
            found = inspect_bundle(bundle, tell, stale_reason, detached, detached_key)
        card = found.pop("card")
        click.echo(card if as_card else json.dumps(found, indent=2) if as_json else describe_bundle(found))
