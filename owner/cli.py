"""The `owner` command: parses, raises the walls, prints, exits 0 done, 1 refused or failed, 2 usage."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from owner.choice.methods import METHODS
from owner.isolation.walls import LEVELS, Walls, raise_walls
from shared.errors import EXPECTED_ERRORS, error_lines


def say(line: str) -> None:
    """Print one progress line to stderr."""
    click.echo(f"owner: {line}", err=True)


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


def _given(config: Any, **options: Any) -> Any:
    """Return the config with the options that were given; its own defaults stand for the others."""
    return replace(config, **{name: value for name, value in options.items() if value is not None})


embedder_option = click.option(
    "--embedder",
    type=click.Path(path_type=Path),
    help="Folder with the embedder's model.safetensors and vocab.txt.",
)
isolation_option = click.option(
    "--require-isolation",
    "level",
    type=click.Choice(list(LEVELS)),
    default="kernel",
    show_default=True,
    help="Stop unless it can be had. strong: namespace, Landlock and seccomp; kernel: the network shut off"
    " by namespace or seccomp; best-effort: go on without, and say so.",
)

stale_option = click.option(
    "--accept-stale-trust",
    "stale_reason",
    metavar="REASON",
    help="Go on with a trust file past its expiry, and say why; the report keeps it.",
)


def isolate(level: Any, writable: Sequence[Path], out: Path | None = None) -> Walls:
    """Raise the walls, which need a process that has not imported torch, and print what they stop."""
    walls = raise_walls(level, writable, out)
    for at, line in enumerate(walls.lines()):
        say(f"{'' if at else 'isolation':<12} {line}")
    return walls


@click.group(context_settings={"max_content_width": 100})
@click.version_option(package_name="planearly")
def main() -> None:
    """Specialize a signed bundle on private documents. Nothing is sent anywhere."""


@main.group(epilog="Example: owner trust add provider.pub")
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


@main.command(epilog="Example: owner inspect pn32.st")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--detached", type=click.Path(path_type=Path), help="An OpenSSF signature file to verify too.")
@click.option("--detached-key", type=click.Path(path_type=Path), help="The public P-256 key of that file.")
@stale_option
@click.option("--json", "as_json", is_flag=True, help="Print the signed manifest as JSON.")
def inspect(
    bundle: Path, detached: Path | None, detached_key: Path | None, stale_reason: str | None, as_json: bool
) -> None:
    """Verify a bundle, every digest, and show what is in it."""
    if (detached is None) != (detached_key is None):
        raise click.UsageError("--detached and --detached-key belong together")
    with errors_printed():
        from owner.trust.inspecting import describe_bundle, inspect_bundle

        found = inspect_bundle(bundle, say, stale_reason, detached, detached_key)
        click.echo(json.dumps(found, indent=2) if as_json else describe_bundle(found))


@main.command(epilog="Example: owner specialize --bundle pn32.st --data private/")
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="The signed bundle.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of private documents: .txt .md .jsonl .html",
)
@click.option(
    "--out",
    default=Path("specialized"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="New folder for model/ and report.json.",
)
@click.option(
    "--select",
    type=click.Choice(list(METHODS)),
    help="Where fine-tuning starts. " + "; ".join(f"{name}: {text}" for name, text in METHODS.items()) + ".",
)
@click.option("--replay", type=click.Path(path_type=Path), help="A replay pack to continue pretraining on.")
@click.option("--replay-tokens", type=click.IntRange(min=1), help="Tokens of the pack to train on.")
@click.option(
    "--teacher", type=click.Path(path_type=Path), help="A bundle whose model, fine-tuned first, teaches."
)
@click.option("--lora", type=click.IntRange(min=1), help="Train low-rank matrices of this rank only.")
@click.option(
    "--dp-epsilon",
    type=float,
    help="Train with differential privacy for documents: less is a stronger promise.",
)
@click.option("--dp-delta", type=float, help="Of --dp-epsilon; left out, 1 / (10 x training documents).")
@click.option(
    "--canaries", type=click.IntRange(min=1), help="Plant so many random sequences for `owner audit` to find."
)
@click.option("--seed", type=int, help="Decides the held-out split and the order of training.")
@click.option("--epochs", type=click.IntRange(min=1), help="Most passes over the private text.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@embedder_option
@isolation_option
@stale_option
@click.option("--json", "as_json", is_flag=True, help="Print the report to stdout.")
def specialize(
    bundle: Path,
    data: Path,
    out: Path,
    select: str | None,
    replay: Path | None,
    replay_tokens: int | None,
    teacher: Path | None,
    lora: int | None,
    dp_epsilon: float | None,
    dp_delta: float | None,
    canaries: int | None,
    seed: int | None,
    epochs: int | None,
    device: str,
    embedder: Path | None,
    level: Any,
    stale_reason: str | None,
    as_json: bool,
) -> None:
    """Pick the bundle's expert for these documents, fine-tune it, write a standard model folder."""
    with errors_printed(), ExitStack() as stack:
        from owner.isolation.places import drop_empty, make_places

        writable = make_places(out)
        stack.callback(drop_empty, out)
        walls = isolate(level, writable, out)
        from owner.privacy.accounting import PrivacyConfig
        from owner.specializing import SpecializeConfig
        from owner.specializing import specialize as run
        from owner.training.finetuning import FinetuneConfig
        from owner.training.replaying import ReplayConfig

        if dp_delta is not None and dp_epsilon is None:
            raise click.UsageError("--dp-delta goes with --dp-epsilon")
        config = _given(
            SpecializeConfig(),
            select=select,
            privacy=None if dp_epsilon is None else _given(PrivacyConfig(dp_epsilon), delta=dp_delta),
            canaries=canaries,
            finetune=_given(FinetuneConfig(), seed=seed, max_epochs=epochs, lora_rank=lora),
            replay=_given(ReplayConfig(), tokens=replay_tokens),
            replay_path=replay,
            teacher_path=teacher,
            stale_reason=stale_reason,
        )
        report = run(bundle, data, out, config, say, device, embedder, walls)
        perplexity = report["perplexity"]
        say(f"held-out perplexity {perplexity['before']:.1f} -> {perplexity['after']:.1f}")
        if report["privacy"]:
            say(f"  without differential privacy -> {perplexity['without_dp']:.1f}")
            say(f"  written: {report['privacy']['written']}")
        if "slm_after" in perplexity:
            gain = 1 - perplexity["after"] / perplexity["slm_after"]
            verdict = f"{abs(gain):.1%} {'lower' if gain >= 0 else 'HIGHER'} than the plain slm's"
            say(f"  plain slm         {perplexity['slm_before']:.1f} -> {perplexity['slm_after']:.1f}")
            say(f"  the perplexity of {report['chosen']} after fine-tuning is {verdict}")
        click.echo(json.dumps(report, indent=2) if as_json else f"{out}/model")


@main.command(epilog="Example: owner audit specialized --data private/ --bundle pn32.st")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="The documents it was made from."
)
@click.option("--bundle", type=click.Path(path_type=Path), help="The bundle it was made from.")
@isolation_option
@stale_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def audit(
    model: Path, data: Path, bundle: Path | None, level: Any, stale_reason: str | None, as_json: bool
) -> None:
    """Attack a specialized model, the out folder of specialize, and write audit.json into it."""
    with errors_printed():
        from owner.isolation.places import keep_places

        isolate(level, keep_places(model))
        from owner.audit.auditing import audit as run
        from owner.audit.summarizing import summarize_audit

        found = run(model, data, bundle, say, stale_reason)
        click.echo(json.dumps(found, indent=2) if as_json else "\n".join(summarize_audit(found)))


@main.command(epilog="Example: owner histogram --bundle pn32.st --data private/ --epsilon 1.0")
@click.option(
    "--bundle",
    required=True,
    type=click.Path(path_type=Path),
    help="A bundle or pack: its clusters count.",
)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of private documents.")
@click.option(
    "--epsilon", default=1.0, show_default=True, help="Of differential privacy: less is more noise."
)
@click.option("--clusters", type=click.IntRange(min=1), help="Merge to so many: less noise, less detail.")
@click.option(
    "--out",
    default=Path("request.json"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="New file; never over an existing one.",
)
@embedder_option
@isolation_option
@stale_option
@click.option("--yes", is_flag=True, help="Write without asking.")
def histogram(
    bundle: Path,
    data: Path,
    epsilon: float,
    clusters: int | None,
    out: Path,
    embedder: Path | None,
    level: Any,
    stale_reason: str | None,
    yes: bool,
) -> None:
    """Write a histogram of your documents, with noise, to hand to a provider if you choose to."""
    with errors_printed():
        isolate(level, [out.absolute().parent])
        from owner.choice.requesting import describe_request, request_histogram
        from shared.request import write_request

        request, n_documents = request_histogram(
            bundle, data, epsilon, out, say, embedder, clusters, stale_reason
        )
        for line in describe_request(request, n_documents).split("\n"):
            say(line)
        if not yes and not click.confirm(f"owner: write {out}?", err=True):
            say("nothing was written")
            sys.exit(1)
        write_request(out, request)
        click.echo(out)
