"""What each row of benchmarks/gpu.py measures; every clock is read once the device has done its work.

Rows of tokens are random and weights fresh: how long a step takes depends on neither. Model FLOPs are those
of the plain model (provider/costs.py), of a projected network too: what the projection adds is overhead. A
share of the peak (MFU) is theirs over the data sheet's bfloat16 peak (benchmarks/scaling.toml). All systems
use deterministic kernels where torch has them, as both parties do.
"""

import copy
import gc
import statistics
import tempfile
import time
import tomllib
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import embedding_speed
import numpy as np
import pretraining_speed
import step_time
import torch
from peers import Clock, run_trainer
from side_by_side import Figures, NotInstalled, require, wait_for

import shared.losses
from owner.documents.windows import PrivateWindows, Split, split_documents
from owner.training.finetuning import FinetuneConfig, finetune, train_config
from provider.costs import System
from provider.recipe import Recipe, read_recipe
from shared.batches import Windows, all_microbatches
from shared.device import choose_device, has_bf16, make_deterministic
from shared.embedder import DISTRIBUTION, PACKAGE
from shared.pieces import EOS_ID
from shared.sizes import SlmConfig
from shared.slm import build_slm
from shared.tokenizer import cut_windows

HERE = Path(__file__).parent
RECIPE = HERE.parent / "examples" / "release-pn32.toml"
LEAST_MICROBATCHES = 4
"""Of a step: of several clusters each, as the sampler draws them."""
DOCUMENT_WORDS = 500
"""Of a synthetic document, on average."""


def _recipe(options: Namespace) -> Recipe:
    recipe = read_recipe(RECIPE)
    return step_time.toy(recipe) if options.toy else recipe


def steps(options: Namespace, rows_per_step: int, is_compiled: bool) -> Figures:
    """Time steps of the paper's PN-32 and of its plain model in turns, on the same rows."""
    recipe, device = _recipe(options), choose_device(options.device)
    if options.toy:
        rows_per_step //= 8
    most = max(1, rows_per_step // LEAST_MICROBATCHES)
    config = replace(
        recipe.pretraining,
        rows_per_step=rows_per_step,
        rows_per_microbatch=min(recipe.pretraining.rows_per_microbatch, most),
        compile=is_compiled,
    )
    recipe = replace(recipe, pretraining=config)
    slm, pn = step_time.measure(recipe, device, 2 if options.toy else 12)
    tokens = rows_per_step * recipe.model.context_tokens
    figures: Figures = {
        "tokens a step": tokens,
        "microbatches": rows_per_step // config.rows_per_microbatch,
        "compiled": "yes" if is_compiled else "no",
        "PN / SLM": spread(step_time.ratios(slm, pn)),
    }
    for name, found in (("SLM", slm), ("PN", pn)):
        figures |= {
            f"{name} tokens/s": found.rate(tokens),
            f"{name} MFU": share_of_peak(recipe.model, found.rate(tokens), device),
            f"{name} GB": found.gigabytes,
        }
    return figures


def chunks(options: Namespace) -> Figures:
    """Time steps of the plain model with more and more of the logits in memory at a time."""
    recipe, device = _recipe(options), choose_device(options.device)
    n_rows = 4 if options.toy else 16
    windows = step_time.random_windows(recipe.model, n_rows, 1)
    batches = list(all_microbatches(windows, recipe.model.context_tokens, n_rows))
    system, usual = step_time.System(recipe, False, device), shared.losses.LOGITS_BYTES
    figures: Figures = {"tokens a microbatch": batches[0].n_tokens}
    for times in (1, 4, 16, 64):
        shared.losses.LOGITS_BYTES = times * usual
        seconds = [system.step(batches) for _ in range(2 if options.toy else 20)]
        figures[f"seconds a step, {times * usual >> 20} MiB"] = statistics.median(seconds)
    return figures


def pretraining(options: Namespace, peer: str) -> Figures:
    """Time our loop and a peer's in turns: model, rows, microbatches and precision are the same."""
    if peer == "litgpt":
        require("litgpt", "litgpt")
    ours, theirs = pretraining_speed.planearly, getattr(pretraining_speed, peer)
    sizes = {"rows_per_step": 8, "rows_per_microbatch": 4, "steps": 2}
    if not options.toy:
        sizes = {"rows_per_step": 64, "rows_per_microbatch": 16, "steps": 12}
    settings = Namespace(**vars(options), **sizes, preset="slm-126m-table6")
    found = in_turns(lambda: ours(settings), lambda: theirs(settings), 1 if options.toy else 3)
    return _beside(peer, found, "seconds")


def finetuning(options: Namespace) -> Figures:
    """Fine-tune on a million tokens as an owner does, early stopping included, and as Trainer does."""
    recipe, device = _recipe(options), choose_device(options.device)
    context = recipe.model.context_tokens
    split = synthetic_split(recipe.model, 600 if options.toy else 1_000_000)
    base = recipe.pretraining
    settings = train_config(
        FinetuneConfig(), split, context, base.learning_rate, base.rows_per_step, base.optimizer
    )
    make_deterministic(0)
    model: Any = build_slm(recipe.model).to(device)
    fresh = copy.deepcopy(model)
    wait_for(device)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = finetune(model, split, context, settings, 0, Path(folder), lambda line: None, "")
    wait_for(device)
    seconds = time.perf_counter() - start
    clock = Clock([], every=done.steps_run + 1)
    peer = run_trainer(
        fresh, split, context, clock, settings.rows_per_step, Namespace(**vars(options), epochs=1)
    )
    hours = tomllib.loads((HERE / "scaling.toml").read_text())["paper"]["limits"]["slm"][1]
    return {
        "tokens of text": split.train.n_tokens + split.heldout.n_tokens,
        "steps": done.steps_run,
        "tokens trained on": done.tokens,
        "seconds, all in": seconds,
        "the paper's, one A100": 3600 * hours,
        "tokens/s, all in": done.tokens / seconds,
        "Trainer tokens/s": peer["tokens_per_s"],
        "ours / Trainer, seconds per token": peer["tokens_per_s"] * seconds / done.tokens,
    }


def embedding(options: Namespace) -> Figures:
    """Embed and assign windows, and let sentence-transformers encode them."""
    require(PACKAGE, DISTRIBUTION)
    sizes = {"windows": 16, "clusters": 4} if options.toy else {"windows": 16_384, "clusters": 1024}
    settings = Namespace(**vars(options), **sizes)
    dtype = "bfloat16" if has_bf16(choose_device(options.device)) else "float32"
    found = in_turns(
        lambda: embedding_speed.planearly(settings),
        lambda: embedding_speed.sentence_transformers(settings, dtype),
        1 if options.toy else 3,
    )
    return {"windows": settings.windows} | _beside("sentence-transformers", found, "seconds")


def materializing(options: Namespace) -> Figures:
    """Verify and materialize one expert onto the device, beside one hash of the file."""
    require("cryptography", "cryptography")
    from bundle_speed import KEY, SIZES, hash_file, make_bundle

    from shared.bundle import open_bundle
    from shared.materializing import materialize

    device, size = choose_device(options.device), "toy" if options.toy else "pn32"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{size}.st"
        make_bundle(path, *SIZES[size])
        hash_file(path)  # from now on the file lies in memory

        def ours() -> Figures:
            with open_bundle(path, [KEY.public_key]) as bundle:
                model = cast(torch.nn.Module, materialize(bundle, 1)).to(device)
            wait_for(device)
            return {"parameters": sum(p.numel() for p in model.parameters())}

        found = in_turns(ours, lambda: {"digest": hash_file(path)}, 1 if options.toy else 5)
        gigabytes = path.stat().st_size / 1e9
    return {"GB": gigabytes} | _beside("hashing", found, "wall")


def in_turns(
    ours: Callable[[], Figures], peer: Callable[[], Figures], rounds: int
) -> list[tuple[Figures, Figures | None]]:
    """Return the figures of both, turn by turn, with the seconds by the wall; None of a missing peer."""
    found: list[tuple[Figures, Figures | None]] = []
    for _ in range(rounds):
        mine = _alone(ours)
        try:
            found.append((mine, _alone(peer)))
        except NotInstalled:
            found.append((mine, None))
    return found


def _alone(measured: Callable[[], Figures]) -> Figures:
    gc.collect()
    torch.cuda.empty_cache()
    start = time.perf_counter()
    figures = measured()
    return figures | {"wall": time.perf_counter() - start}


def _beside(peer: str, found: Sequence[tuple[Figures, Figures | None]], figure: str) -> Figures:
    mine = [ours[figure] for ours, _ in found]
    theirs = [other[figure] for _, other in found if other is not None]
    figures: Figures = {"beside": peer, "seconds": statistics.median(mine)}
    if not theirs:
        return figures | {"its seconds": "not installed"}
    figures["its seconds"] = statistics.median(theirs)
    for name in ("tokens_per_s", "windows_per_s"):
        if name in found[0][0]:
            rates = [statistics.median(side[name] for side in sides) for sides in zip(*found, strict=True)]
            unit = name.replace("_per_", "/")
            figures |= {unit: rates[0], f"its {unit}": rates[1]}
    return figures | {"ours / its": spread([a / b for a, b in zip(mine, theirs, strict=True)])}


def spread(ratios: Sequence[float]) -> str:
    """Return a median, and the smallest and largest of how many."""
    return f"{statistics.median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g}, {len(ratios)} turns)"


def share_of_peak(sizes: SlmConfig, tokens_per_s: float, device: torch.device) -> float | None:
    """Return the model's FLOP/s over the data sheet's peak, None for a device without one."""
    machines = tomllib.loads((HERE / "scaling.toml").read_text())["machines"]
    name = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else ""
    peaks = [machine["bf16_flops"] for known, machine in machines.items() if known in name]
    return 3 * System(sizes).forward_flops * tokens_per_s / peaks[0] if peaks else None


def synthetic_split(sizes: SlmConfig, n_tokens: int) -> Split:
    """Documents of random words, the frequent ones more often (Zipf), a tenth held out by document."""
    generator = np.random.default_rng(0)
    starts, lengths, owners = [], [], []
    position = n_documents = 0
    while position < n_tokens:
        length = int(generator.integers(DOCUMENT_WORDS // 5, 2 * DOCUMENT_WORDS))
        for start, size in cut_windows(length, sizes.context_tokens):
            starts.append(position + start)
            lengths.append(size)
            owners.append(n_documents)
        position, n_documents = position + length, n_documents + 1
    words = generator.zipf(1.2, position) % (sizes.vocab_size - EOS_ID - 1) + EOS_ID + 1
    zeros = np.zeros(len(starts), np.int32)
    windows = Windows(
        [words.astype(np.uint32)], zeros, np.asarray(starts, np.int64), np.asarray(lengths, np.int32), zeros
    )
    return split_documents(PrivateWindows(windows, np.asarray(owners, np.int32), n_documents), 0.1, 0)
