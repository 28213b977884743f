"""`provider release`: the whole pipeline of a recipe, or what it would do."""

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import click

from provider.cli.shell import PARTY, errors_printed, passphrase_option, signing_key
from shared.terminal import watched


@click.command(epilog="Example: provider release examples/quickstart/release.toml --corpus texts/")
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
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path),
    help="Folder for TensorBoard's events of all trainings in the work folder, as they go on.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would run, how long and how large.")
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
    tensorboard: Path | None,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Run the whole pipeline of a recipe and write a signed bundle.

    On several GPUs or cores: torchrun --standalone --nproc-per-node 8 --no-python provider release ...
    """
    if dry_run:
        if histogram is not None or expert is not None:
            raise click.UsageError("--dry-run plans a whole recipe: leave out --histogram and --expert")
        return plan(recipe, corpus, work, device, embedder)
    with errors_printed():
        from provider.parallel import joined
        from provider.recipe import read_recipe

        with joined(device) as ranks, ExitStack() as stack:
            parsed = read_recipe(recipe)
            from provider.executors import Executor
            from provider.releasing import follow
            from provider.releasing import release as run

            if not ranks.is_first:
                return follow(parsed, device, ranks)
            key = signing_key(key_file, passphrase_file)  # before hours of work
            where = Executor(executor, workers, sbatch)
            if tensorboard is not None:
                stack.enter_context(events_of(work, tensorboard))
            tell = stack.enter_context(watched(PARTY, quiet))
            found = run(
                parsed, corpus, out, work, key, tell, device, embedder, histogram, expert, where, ranks
            )
        click.echo(found)


def events_of(work: Path, folder: Path) -> AbstractContextManager[None]:
    """Return the block in which TensorBoard's events are written. Raises PlanearlyError without the extra."""
    from shared.errors import PlanearlyError

    try:
        from provider.events import events_written
    except ImportError:
        raise PlanearlyError(
            "--tensorboard needs the package tensorboard", hint="pip install tensorboard"
        ) from None
    return events_written(work, folder)


def plan(recipe: Path, corpus: str, work: Path, device: str, embedder: Path | None) -> None:
    """Print what a release would do."""
    with errors_printed():
        from provider.planning import plan_release
        from provider.recipe import read_recipe

        for line in plan_release(read_recipe(recipe), corpus, work, device, embedder):
            click.echo(line)
