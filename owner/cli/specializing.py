"""`owner specialize`: its options, and the few lines that it ends in."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from owner.choice.methods import METHODS
from owner.cli.shell import (
    embedder_option,
    errors_printed,
    given,
    isolate,
    isolation_option,
    quiet_option,
    stale_option,
    watched,
)


@click.command(epilog="Example: owner specialize --bundle pn32.st --data private/")
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="The signed bundle.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of private documents: text, tables, mail, archives; PDF and Office with an extra.",
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
@click.option(
    "--with-samples",
    is_flag=True,
    help="Show in the report how the model goes on with held-out text: PRIVATE TEXT, in report.html and"
    " report.json.",
)
@quiet_option
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
    with_samples: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Pick the bundle's expert for these documents, fine-tune it, write a standard model folder."""
    with errors_printed(), ExitStack() as stack:
        from owner.isolation.places import drop_empty, make_places

        writable = make_places(out)
        if with_samples and (out / "report.json").is_file():  # of a finished run, to be added to
            writable.append(out)
        stack.callback(drop_empty, out)
        walls = isolate(level, writable, out, quiet)
        from owner.privacy.accounting import PrivacyConfig
        from owner.report.writing import HTML_FILE
        from owner.specializing import SpecializeConfig
        from owner.specializing import specialize as run
        from owner.training.finetuning import FinetuneConfig
        from owner.training.replaying import ReplayConfig

        if dp_delta is not None and dp_epsilon is None:
            raise click.UsageError("--dp-delta goes with --dp-epsilon")
        config = given(
            SpecializeConfig(),
            select=select,
            privacy=None if dp_epsilon is None else given(PrivacyConfig(dp_epsilon), delta=dp_delta),
            canaries=canaries,
            finetune=given(FinetuneConfig(), seed=seed, max_epochs=epochs, lora_rank=lora),
            replay=given(ReplayConfig(), tokens=replay_tokens),
            replay_path=replay,
            teacher_path=teacher,
            stale_reason=stale_reason,
            with_samples=with_samples,
        )
        say = stack.enter_context(watched(quiet))
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
        say(f"report       {out / HTML_FILE}")
        stack.close()
        click.echo(json.dumps(report, indent=2) if as_json else f"{out}/model")
