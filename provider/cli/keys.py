"""`provider keygen` and `provider sign`: key pairs, and detached signatures."""

from pathlib import Path

import click

from provider.cli.shell import errors_printed, passphrase_of, passphrase_option, say


@click.command(epilog="Example: provider keygen provider.key provider.pub")
@click.argument("private_key", type=click.Path(path_type=Path))
@click.argument("public_key", type=click.Path(path_type=Path))
@click.option(
    "--type",
    "kind",
    type=click.Choice(["ed25519", "p256"]),
    default="ed25519",
    show_default=True,
    help="ed25519 signs bundles and trust files; p256 signs detached OpenSSF files.",
)
@passphrase_option
@click.option("--no-passphrase", is_flag=True, help="Leave the private key plain, for unattended machines.")
def keygen(
    private_key: Path, public_key: Path, kind: str, passphrase_file: Path | None, no_passphrase: bool
) -> None:
    """Create a key pair; the encrypted private file stays with you, the public one goes to owners."""
    if no_passphrase and passphrase_file is not None:
        raise click.UsageError("--no-passphrase and --passphrase-file exclude each other")
    with errors_printed():
        from provider.signing import create_key, create_p256_key

        passphrase = b"" if no_passphrase else passphrase_of(private_key, passphrase_file, is_new=True)
        if kind == "p256":
            create_p256_key(private_key, public_key, passphrase)
        else:
            click.echo(create_key(private_key, public_key, passphrase).public_key.key_id)
        secrecy = "NOT encrypted: who has it can sign" if no_passphrase else "encrypted; keep its passphrase"
        say(f"wrote {private_key} ({secrecy}) and {public_key}")


@click.command(epilog="Example: provider sign --detached pn32.st --key oms.key")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--detached", is_flag=True, help="Write BUNDLE.sig beside it (a bundle carries its own).")
@click.option("--key", "key_file", required=True, type=click.Path(path_type=Path), help="Private P-256 key.")
@click.option(
    "--resource",
    type=click.Choice(["dot", "file-name"]),
    default="dot",
    show_default=True,
    help="What the statement calls the file: `.`, as model-signing 1.1.1 does, or its name, as the"
    " specification says.",
)
@passphrase_option
def sign(bundle: Path, detached: bool, key_file: Path, resource: str, passphrase_file: Path | None) -> None:
    """Write a detached OpenSSF model signature, for those whose tools look for one."""
    if not detached:
        raise click.UsageError("a bundle is signed when it is released; --detached signs it once more")
    with errors_printed():
        from provider.signing import read_p256_key
        from shared.detached import write_detached

        key = read_p256_key(key_file, lambda: passphrase_of(key_file, passphrase_file))
        click.echo(write_detached(bundle, key, "." if resource == "dot" else bundle.name))
