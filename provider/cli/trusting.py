"""`provider trust`: the signed file that tells owners whose keys sign what."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from provider.cli.shell import errors_printed, passphrase_option, say, signing_key

if TYPE_CHECKING:
    from shared.trust_file import TrustFile


@click.group(epilog="Example: provider trust write trust.toml --key root.key")
def trust() -> None:
    """Tell owners which keys sign which bundles, and what is revoked: trust.json."""


root_option = click.option(
    "--key",
    "key_files",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Private key of a root; may be given several times.",
)


@trust.command(epilog="Example: provider trust write trust.toml --key root1.key --key root2.key")
@click.argument("plan", type=click.Path(path_type=Path))
@root_option
@click.option(
    "--out",
    default=Path("trust.json"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="New file; never over an existing one.",
)
@passphrase_option
def write(plan: Path, key_files: tuple[Path, ...], out: Path, passphrase_file: Path | None) -> None:
    """Write a trust file from a plan and sign it; prints the fingerprint of its roots."""
    with errors_printed():
        from provider.trusting import write_trust

        keys = [signing_key(path, passphrase_file) for path in key_files]
        _say_signed(out, *write_trust(plan, keys, out))


@trust.command("sign", epilog="Example: provider trust sign trust.json --key root2.key")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--key", "key_file", required=True, type=click.Path(path_type=Path), help="A root's private key."
)
@passphrase_option
def sign_file(file: Path, key_file: Path, passphrase_file: Path | None) -> None:
    """Add one root's signature to a trust file, offline and in any order."""
    with errors_printed():
        from provider.trusting import sign_trust

        _say_signed(file, *sign_trust(file, signing_key(key_file, passphrase_file)))


def _say_signed(path: Path, found: "TrustFile", count: int) -> None:
    roots = found.roots
    say(f"{path}: {found.name} version {found.version} · {count} of {roots.threshold} signatures")
    if count < roots.threshold:
        say(f"owners refuse it until more of its roots sign: provider trust sign {path} --key ...")
    say("tell owners the fingerprint of its roots over another channel than the file:")
    click.echo(roots.fingerprint)
