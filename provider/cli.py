"""The `provider` command: parses, prints, exits 0 done, 1 refused or failed, 2 wrong usage."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from shared.errors import EXPECTED_ERRORS, error_lines


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


@click.group(context_settings={"max_content_width": 100})
@click.version_option(package_name="planearly")
def main() -> None:
    """Cluster a generic corpus, pretrain on it, publish signed bundles."""


@main.command(epilog="Example: provider key provider.key provider.pub")
@click.argument("private_key", type=click.Path(path_type=Path))
@click.argument("public_key", type=click.Path(path_type=Path))
def key(private_key: Path, public_key: Path) -> None:
    """Create a signing key; the private file stays with you, the public one goes to owners."""
    with errors_printed():
        from provider.signing import create_key

        created = create_key(private_key, public_key)
        say(f"wrote {private_key} (keep it secret) and {public_key}")
        click.echo(created.public_key.key_id)


@main.command(epilog="Example: provider release examples/quickstart/release.toml --corpus texts/")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--corpus",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the generic corpus: .json.gz .jsonl .txt .md .parquet",
)
@click.option(
    "--out",
    default=Path(),
    type=click.Path(path_type=Path),
    help="Folder for the bundle and provider.pub; the current one by default.",
)
@click.option(
    "--work",
    default=Path("work"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for finished stages; the same command goes on from them.",
)
@click.option(
    "--key",
    "key_file",
    default=Path("provider.key"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Private signing key; created if the file does not exist.",
)
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
def release(
    recipe: Path,
    corpus: Path,
    out: Path,
    work: Path,
    key_file: Path,
    device: str,
    embedder: Path | None,
    histogram: Path | None,
    expert: int | None,
) -> None:
    """Run the whole pipeline of a recipe and write a signed bundle."""
    with errors_printed():
        from provider.recipe import read_recipe

        parsed = read_recipe(recipe)
        from provider.releasing import release as run
        from provider.signing import create_key, read_signing_key

        if key_file.exists():
            key = read_signing_key(key_file)
        else:
            key = create_key(key_file, key_file.with_suffix(".pub"))
            say(f"key          created {key_file}: keep it secret and backed up")
        click.echo(run(parsed, corpus, out, work, key, say, device, embedder, histogram, expert))
