"""What every command shares: lines to the terminal, errors as lines, keys and their passphrases."""

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared import terminal
from shared.errors import SignatureError

if TYPE_CHECKING:
    from provider.signing import SigningKey


PARTY = "provider"
say = terminal.speaker(PARTY)


def errors_printed() -> AbstractContextManager[None]:
    """Print an expected error and exit; see `shared.terminal.errors_printed`."""
    return terminal.errors_printed(PARTY)


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
