"""What every command shares: lines to the terminal, errors as lines, keys and their passphrases."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared.errors import EXPECTED_ERRORS, SignatureError, error_lines

if TYPE_CHECKING:
    from provider.signing import SigningKey


def say(line: str) -> None:
    """Print one progress line to stderr."""
    click.echo(f"provider: {line}", err=True)


@contextmanager
def errors_printed() -> Iterator[None]:
    """Print an expected error as `shared.errors.error_lines` words it and exit with 1."""
    try:
        yield
    except EXPECTED_ERRORS as error:
        lines = error_lines(error)
        if not lines:
            raise
        for line in lines:
            say(line)
        sys.exit(1)


passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="File, mode 0600, whose first line is the passphrase of the private key.",
)


def passphrase_of(private_key: Path, file: Path | None, is_new: bool = False) -> bytes:
    """Return a key's passphrase, from the file or asked on the terminal; a new one is asked twice."""
    from provider.signing import read_passphrase

    if file is not None:
        return read_passphrase(file)
    if not sys.stdin.isatty():
        raise SignatureError(
            f"{private_key}: needs a passphrase, and there is no terminal to ask for it",
            hint="name a file that holds it: --passphrase-file FILE"
            + (", or make a key without one: --no-passphrase" if is_new else ""),
        )
    question = f"provider: passphrase of {private_key}"
    return click.prompt(question, hide_input=True, confirmation_prompt=is_new, err=True).encode()


def signing_key(path: Path, passphrase_file: Path | None) -> "SigningKey":
    """Read a private Ed25519 key; what is missing is said with the command that makes one."""
    from provider.signing import read_signing_key

    if not path.exists():
        raise SignatureError(
            f"{path}: there is no such key",
            hint=f"make one: provider keygen {path} {path.with_suffix('.pub')}",
        )
    return read_signing_key(path, lambda: passphrase_of(path, passphrase_file))
