"""Tokens per second of pretraining the plain model: ours against transformers' Trainer and litgpt.

  python benchmarks/pretraining_speed.py [--rows-per-step 32] [--steps 6]

The same sizes, rows of full length, microbatches, fused Adam, clip and bfloat16 products for all. Each
turn starts its library's own loop and times from one step to the next, the first one left out. Of litgpt its
model, its chunked cross entropy and its Fabric loop's calls are used: its `pretrain` command has no CPU path
without a data module of its own.
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from side_by_side import DEVICE, Compare, Figures, options_of, require, take_turns, wait_for
from step_time import random_windows

from shared.batches import Microbatch, Sampler, all_microbatches
from shared.device import choose_device, has_bf16, make_deterministic
from shared.sizes import PRESETS, SlmConfig
from shared.slm import build_slm
from shared.train_config import TrainConfig
from shared.training import train

LEARNING_RATE, CLIP_NORM = 1e-3, 5.0


def _sizes(options: Namespace) -> SlmConfig:
    return PRESETS["test" if options.toy else options.preset]


def note(moments: list[float], device: torch.device) -> None:
    """Note when a step has ended, or the next one begins."""
    wait_for(device)
    moments.append(time.perf_counter())


def per_step(moments: list[float], options: Namespace) -> Figures:
    """Return the median seconds between two moments, the first pair left out, and tokens per second."""
    seconds = float(np.median(np.diff(moments)[1:]))
    return {
        "seconds": seconds,
        "tokens_per_s": options.rows_per_step * _sizes(options).context_tokens / seconds,
    }


def planearly(options: Namespace) -> Figures:
    sizes = _sizes(options)
    device, rows_per_microbatch = choose_device(options.device), options.rows_per_microbatch
    windows = random_windows(sizes, 4 * options.rows_per_step, 1)
    moments: list[float] = []
    make_deterministic(0)
    model = cast(torch.nn.Module, build_slm(sizes)).to(device)
    sampler = Sampler(windows, sizes.context_tokens, options.rows_per_step, rows_per_microbatch, 0)
    config = TrainConfig(
        steps=options.steps + 2,
        rows_per_step=options.rows_per_step,
        rows_per_microbatch=rows_per_microbatch,
        learning_rate=LEARNING_RATE,
        warmup_steps=0,
        clip_norm=CLIP_NORM,
        eval_every_steps=options.steps + 2,
    )

    def heldout() -> Iterator[Microbatch]:
        return all_microbatches(windows.take(np.arange(1)), sizes.context_tokens, 1)

    with tempfile.TemporaryDirectory() as folder:
        train(
            model, None, sampler, heldout, config, Path(folder), lambda line: None,
            record=lambda entry: note(moments, device),
        )  # fmt: skip
    return per_step(moments, options)


def trainer(options: Namespace) -> Figures:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    sizes = _sizes(options)
    device = choose_device(options.device)
    windows = random_windows(sizes, (options.steps + 2) * options.rows_per_step, 1)
    moments: list[float] = []

    class Note(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **more: Any) -> None:
            note(moments, device)

    rows = [torch.from_numpy(windows.tokens(i).astype(np.int64)) for i in range(len(windows))]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=device.type == "cpu",
            bf16=has_bf16(device),
            per_device_train_batch_size=options.rows_per_microbatch,
            gradient_accumulation_steps=options.rows_per_step // options.rows_per_microbatch,
            max_steps=options.steps + 2,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=CLIP_NORM,
            optim="adamw_torch_fused",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=device.type == "cuda",
        )
        make_deterministic(0)
        data = cast(Any, [{"input_ids": row, "labels": row} for row in rows])
        Trainer(build_slm(sizes), arguments, train_dataset=data, callbacks=[Note()]).train()
    return per_step(moments, options)


def litgpt(options: Namespace) -> Figures:
    require("litgpt", "litgpt")
    import lightning as L
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    sizes = _sizes(options)
    config = Config(
        block_size=sizes.context_tokens,
        vocab_size=sizes.vocab_size,
        padded_vocab_size=sizes.vocab_size,
        n_layer=sizes.n_layers,
        n_head=sizes.n_heads,
        n_embd=sizes.width,
        intermediate_size=sizes.ffn_width,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    device = choose_device(options.device)
    precision = cast(Any, "bf16-mixed" if has_bf16(device) else "32-true")
    fabric = L.Fabric(accelerator=device.type, devices=1, precision=precision)
    make_deterministic(0)
    model: Any = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    model = fabric.setup(model)
    optimizer = fabric.setup_optimizers(optimizer)
    n_micro = options.rows_per_step // options.rows_per_microbatch
    windows = random_windows(sizes, options.rows_per_step, 1)
    stream = torch.from_numpy(windows.streams[0].astype(np.int64)).to(device)
    rows = stream.view(n_micro, options.rows_per_microbatch, sizes.context_tokens)
    moments: list[float] = []
    for _ in range(options.steps + 2):
        note(moments, device)
        for index in range(n_micro):
            ids = rows[index]
            with fabric.no_backward_sync(model, enabled=index < n_micro - 1):
                loss = chunked_cross_entropy(model(ids[:, :-1].contiguous()), ids[:, 1:].contiguous())
                fabric.backward(loss / n_micro)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
    return per_step(moments, options)


def main() -> None:
    options = options_of(
        __doc__,
        ("--preset", {"choices": [name for name in PRESETS if "table6" not in name], "default": "laptop"}),
        ("--rows-per-step", {"type": int, "default": 32}),
        ("--rows-per-microbatch", {"type": int, "default": 4}),
        ("--steps", {"type": int, "default": 6}),
        DEVICE,
    )
    if options.toy:
        options.rows_per_step, options.steps = 8, 2
    systems = {"planearly": planearly, "Trainer": trainer, "litgpt": litgpt}
    compares = [Compare("planearly", peer, goal=1.0) for peer in ("Trainer", "litgpt")]
    take_turns("SLM pretraining, seconds per step", systems, compares, options)


if __name__ == "__main__":
    main()
