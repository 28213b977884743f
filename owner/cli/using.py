"""`owner evaluate`, `owner compare`, `owner generate` and `owner export`: what a model is used for."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from owner.cli.shell import errors_printed, isolate, isolation_option, quiet_option, watched

data_option = click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder of documents to score."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")


@click.command(epilog="Example: owner evaluate specialized --data private/")
@click.argument("model", type=click.Path(path_type=Path))
@data_option
@device_option
@isolation_option
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def evaluate(model: Path, data: Path, device: str, level: Any, quiet: bool, as_json: bool) -> None:
    """Measure how well a model predicts documents: perplexity, and bits per byte."""
    with errors_printed():
        from owner.isolation.places import no_places

        isolate(level, no_places(), is_quiet=quiet)
        from owner.models.evaluating import evaluate as run
        from owner.models.evaluating import summarize
        from owner.models.loading import load
        from owner.models.texts import read_texts
        from shared.device import choose_device, make_deterministic

        make_deterministic(0)
        with watched(quiet) as say:
            loaded = load(model, choose_device(device))
            found = run(loaded, read_texts(data, [loaded], say))
        click.echo(json.dumps(found, indent=2) if as_json else "\n".join(summarize(found)))


@click.command(epilog="Example: owner compare specialized downloaded-135m/ --data private/")
@click.argument("model_a", type=click.Path(path_type=Path))
@click.argument("model_b", type=click.Path(path_type=Path))
@data_option
@device_option
@isolation_option
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def compare(
    model_a: Path, model_b: Path, data: Path, device: str, level: Any, quiet: bool, as_json: bool
) -> None:
    """Say which of two models predicts documents better. Either may be any transformers model folder."""
    with errors_printed():
        from owner.isolation.places import no_places

        isolate(level, no_places(), is_quiet=quiet)
        from owner.models.comparing import compare as run
        from owner.models.comparing import summarize_comparison
        from owner.models.loading import load
        from owner.models.texts import read_texts
        from shared.device import choose_device, make_deterministic

        make_deterministic(0)
        there = choose_device(device)
        with watched(quiet) as say:
            a, b = load(model_a, there), load(model_b, there)
            found = run(a, b, read_texts(data, [a, b], say))
        click.echo(json.dumps(found, indent=2) if as_json else "\n".join(summarize_comparison(found)))


@click.command(epilog='Example: owner generate specialized "The parties agree"')
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--tokens", default=100, show_default=True, type=click.IntRange(min=1), help="Most new tokens.")
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="0: the likeliest token each time; 1: drawn as the model has it.",
)
@click.option("--seed", default=0, show_default=True, help="Decides what is drawn.")
@device_option
@isolation_option
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print prompt and text as JSON.")
def generate(
    model: Path,
    prompt: str,
    tokens: int,
    temperature: float,
    seed: int,
    device: str,
    level: Any,
    quiet: bool,
    as_json: bool,
) -> None:
    """Let a model go on from a prompt; `-` reads it from the standard input, which nobody else sees."""
    with errors_printed():
        text = sys.stdin.read() if prompt == "-" else prompt
        from owner.isolation.places import no_places

        isolate(level, no_places(), is_quiet=quiet)
        from owner.models.generating import generate as run
        from owner.models.loading import load
        from shared.device import choose_device, make_deterministic

        make_deterministic(seed)
        with watched(quiet):
            written = run(load(model, choose_device(device)), text, tokens, temperature, seed)
        found = {"prompt": text, "text": written}
        click.echo(json.dumps(found, indent=2) if as_json else text + written)


@click.command(epilog="Example: owner export specialized --format gguf --quantize q8_0 --out exported")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["gguf", "onnx", "safetensors"]),
    help="gguf: llama.cpp; onnx: onnxruntime; safetensors: transformers, vLLM.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option("--dtype", type=click.Choice(["f32", "f16", "bf16"]), help="Of the weights; left out, f32.")
@click.option(
    "--quantize", type=click.Choice(["q8_0", "q4_k_m"]), help="Fewer bits, by llama.cpp; gguf only."
)
@click.option("--data", type=click.Path(path_type=Path), help="Documents to compare it with the original on.")
@isolation_option
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print export.json.")
def export(
    model: Path,
    form: str,
    out: Path,
    dtype: str | None,
    quantize: str | None,
    data: Path | None,
    level: Any,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write a specialized model for another runtime, and run it there beside the original."""
    with errors_printed(), ExitStack() as stack:
        if dtype and quantize:
            raise click.UsageError("--dtype and --quantize exclude each other")
        from owner.isolation.places import drop_empty, make_places

        writable = make_places(out)
        stack.callback(drop_empty, out)
        isolate(level, writable, out, quiet)
        from owner.models.exporting import export as run
        from owner.models.exporting import summarize_export

        with watched(quiet) as say:
            found = run(model, out, form, quantize or dtype or "f32", data, say)
            for line in summarize_export(found, out):
                say(line)
        click.echo(json.dumps(found, indent=2) if as_json else out)
