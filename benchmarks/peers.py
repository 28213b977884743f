"""transformers' Trainer as a peer of fine-tuning, and a clock that stands while a held-out loss is taken."""

import contextlib
import io
import tempfile
import time
from argparse import Namespace
from typing import Any

import numpy as np
from side_by_side import Figures, wait_for

from owner.documents.windows import Split
from shared.batches import Microbatch
from shared.device import choose_device, has_bf16
from shared.losses import evaluate

ROWS_PER_MICROBATCH = 4
LEARNING_RATE, CLIP_NORM, WARMUP_STEPS = 1e-3, 5.0, 10


class Clock:
    """Seconds of training alone, and the held-out losses taken while it stood."""

    def __init__(self, heldout: list[Microbatch], every: int) -> None:
        self.heldout, self.every = heldout, every
        self.seconds, self.steps = 0.0, 0
        self.curve: list[tuple[float, float]] = []
        self._since: float | None = None

    def step(self, model: Any) -> None:
        """Call at the beginning of each step."""
        wait_for(model.device)
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        if self.steps % self.every == 0:
            self.look(model)
        self.steps += 1
        self._since = time.perf_counter()

    def look(self, model: Any) -> None:
        """Take the held-out loss."""
        self.curve.append((self.seconds, evaluate(model, None, self.heldout).mean))

    def stop(self, model: Any) -> None:
        """Call at the end of the last step."""
        wait_for(model.device)
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
        self.look(model)


def figures_of(clock: Clock, n_tokens: int) -> Figures:
    return {
        "seconds": clock.seconds / n_tokens,
        "tokens_per_s": n_tokens / clock.seconds,
        "lowest_loss": min(loss for _, loss in clock.curve),
        "curve": clock.curve,
    }


def settings_of(options: Namespace, folder: str, rows: int, rows_per_step: int) -> dict[str, Any]:
    device = choose_device(options.device)
    return {
        "output_dir": folder,
        "use_cpu": device.type == "cpu",
        "bf16": has_bf16(device),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": max(1, rows_per_step // ROWS_PER_MICROBATCH),
        "num_train_epochs": options.epochs,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": WARMUP_STEPS,
        "weight_decay": 0.0,
        "max_grad_norm": CLIP_NORM,
        "optim": "adamw_torch_fused",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type == "cuda",
        "seed": 0,
    }


def callback_of(clock: Clock, model: Any) -> Any:
    from transformers import TrainerCallback

    class Timed(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **more: Any) -> None:
            clock.step(model)

        def on_train_end(self, *arguments: Any, **more: Any) -> None:
            clock.stop(model)

    return Timed()


def run_trainer(
    model: Any, split: Split, context: int, clock: Clock, rows_per_step: int, options: Namespace
) -> Figures:
    """Fine-tune with transformers' Trainer and its flattening collator."""
    from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

    windows = split.train
    rows = [{"input_ids": windows.tokens(i).astype(np.int64).tolist()} for i in range(len(windows))]
    mean_tokens = windows.n_tokens / len(windows)
    per_batch = max(1, round(ROWS_PER_MICROBATCH * context / mean_tokens))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        Trainer(
            model,
            TrainingArguments(**settings_of(options, folder, per_batch, rows_per_step)),
            train_dataset=rows,
            data_collator=DataCollatorWithFlattening(),
            callbacks=[callback_of(clock, model)],
        ).train()
    return figures_of(clock, options.epochs * windows.n_tokens)
