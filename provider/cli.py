"""The `provider` command: parses, prints, exits 0 done, 1 refused or failed, 2 wrong usage."""

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared import terminal
from shared.errors import SignatureError

if TYPE_CHECKING:
    from provider.signing import SigningKey
    from shared.trust_file import TrustFile


PARTY = "provider"
say = terminal.speaker(PARTY)


def errors_printed() -> AbstractContextManager[None]:
    """Print an expected error and exit; see `shared.terminal.errors_printed`."""
    return terminal.errors_printed(PARTY)


@click.group(context_settings={"max_content_width": 100})
@click.version_option(package_name="planearly")
def main() -> None:
    """Cluster a generic corpus, pretrain on it, publish signed bundles."""


passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="File, mode 0600, whose first line is the passphrase of the private key.",
)


def _passphrase(private_key: Path, file: Path | None, is_new: bool = False) -> bytes:
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


def _signing_key(path: Path, passphrase_file: Path | None) -> "SigningKey":
    from provider.signing import read_signing_key

    if not path.exists():
        raise SignatureError(
            f"{path}: there is no such key",
            hint=f"make one: provider keygen {path} {path.with_suffix('.pub')}",
        )
    return read_signing_key(path, lambda: _passphrase(path, passphrase_file))


@main.command(epilog="Example: provider keygen provider.key provider.pub")
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

        passphrase = b"" if no_passphrase else _passphrase(private_key, passphrase_file, is_new=True)
        if kind == "p256":
            create_p256_key(private_key, public_key, passphrase)
        else:
            click.echo(create_key(private_key, public_key, passphrase).public_key.key_id)
        secrecy = "NOT encrypted: who has it can sign" if no_passphrase else "encrypted; keep its passphrase"
        say(f"wrote {private_key} ({secrecy}) and {public_key}")


@main.command(epilog="Example: provider release examples/quickstart/release.toml --corpus texts/")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--corpus",
    required=True,
    metavar="PATH|URL",
    help="Generic corpus, a folder or s3://...: .json.gz .jsonl .txt .md .parquet",
)
@click.option(
    "--out",
    default=".",
    metavar="PATH|URL",
    help="Folder or s3://... for the bundle and provider.pub; the current one by default.",
)
@click.option(
    "--work",
    default=Path("work"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for finished stages, which all machines share; the same command goes on from them.",
)
@click.option(
    "--key",
    "key_file",
    default=Path("provider.key"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Private signing key, made by provider keygen.",
)
@passphrase_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option(
    "--embedder",
    type=click.Path(path_type=Path),
    help="Folder with the embedder's model.safetensors and vocab.txt.",
)
@click.option(
    "--histogram",
    type=click.Path(path_type=Path),
    help="An owner's request: pretrain kind slm for it by importance sampling.",
)
@click.option("--expert", type=int, help="Of kind mix, train this expert alone and publish it.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray", "slurm"]),
    default="local",
    show_default=True,
    help="Where data and mixture experts are worked on; the result is the same. ray: RAY_ADDRESS names"
    " the cluster.",
)
@click.option("--workers", type=int, help="Tasks at a time: by default 1, on a cluster what it has room for.")
@click.option(
    "--sbatch", multiple=True, metavar="NAME=VALUE", help="For slurm, an option of sbatch: partition=cpu"
)
@click.option("--quiet", is_flag=True, help="Print errors and the result only.")
def release(
    recipe: Path,
    corpus: str,
    out: str,
    work: Path,
    key_file: Path,
    passphrase_file: Path | None,
    device: str,
    embedder: Path | None,
    histogram: Path | None,
    expert: int | None,
    executor: str,
    workers: int | None,
    sbatch: tuple[str, ...],
    quiet: bool,
) -> None:
    """Run the whole pipeline of a recipe and write a signed bundle.

    On several GPUs or cores: torchrun --standalone --nproc-per-node 8 --no-python provider release ...
    """
    with errors_printed():
        from provider.parallel import joined
        from provider.recipe import read_recipe

        with joined(device) as ranks:
            parsed = read_recipe(recipe)
            from provider.executors import Executor
            from provider.releasing import follow
            from provider.releasing import release as run

            if not ranks.is_first:
                return follow(parsed, device, ranks)
            key = _signing_key(key_file, passphrase_file)  # before hours of work
            where = Executor(executor, workers, sbatch)
            with terminal.watched(PARTY, quiet) as tell:
                found = run(
                    parsed, corpus, out, work, key, tell, device, embedder, histogram, expert, where, ranks
                )
        click.echo(found)


@main.command(epilog="Example: provider sign --detached pn32.st --key oms.key")
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

        key = read_p256_key(key_file, lambda: _passphrase(key_file, passphrase_file))
        click.echo(write_detached(bundle, key, "." if resource == "dot" else bundle.name))


@main.group(epilog="Example: provider trust write trust.toml --key root.key")
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

        keys = [_signing_key(path, passphrase_file) for path in key_files]
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

        _say_signed(file, *sign_trust(file, _signing_key(key_file, passphrase_file)))


def _say_signed(path: Path, found: "TrustFile", count: int) -> None:
    roots = found.roots
    say(f"{path}: {found.name} version {found.version} · {count} of {roots.threshold} signatures")
    if count < roots.threshold:
        say(f"owners refuse it until more of its roots sign: provider trust sign {path} --key ...")
    say("tell owners the fingerprint of its roots over another channel than the file:")
    click.echo(roots.fingerprint)
