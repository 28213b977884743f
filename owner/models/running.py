"""Other runtimes behind one shape: a function from a window's ids to its logits, (n_tokens, V) float32."""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from shared.errors import PlanearlyError
from shared.extras import install_hint

Logits = Callable[[list[int]], np.ndarray]
QUANTIZED = {"q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M"}
"""What `quantize` makes, by llama.cpp's name."""


def torch_logits(module: torch.nn.Module) -> Logits:
    """Run a transformers model."""

    @torch.no_grad()
    def logits(ids: list[int]) -> np.ndarray:
        return module(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy()

    return logits


def safetensors_logits(folder: Path) -> Logits:
    """Run a model folder in the dtype that it is stored in."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, use_safetensors=True
    )
    return torch_logits(model.eval())


class OnnxRuntime:
    """An ONNX file in onnxruntime, on the CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        kept = [value for value in self.session.get_inputs() if value.name.startswith("past_key_values.")]
        self.nothing = {
            value.name: np.zeros(
                (1, value.shape[1], 0, value.shape[3]),
                np.float16 if value.type == "tensor(float16)" else np.float32,
            )
            for value in kept
        }

    def __call__(self, ids: list[int]) -> np.ndarray:
        """Return a window's logits, all of it in one go."""
        return self._run(ids, 0, self.nothing)[0]

    def begin(self) -> Logits:
        """Return a function of a growing text, which runs what is new and returns the logits of that."""
        n_past, past = 0, self.nothing

        def go_on(ids: list[int]) -> np.ndarray:
            nonlocal n_past, past
            logits, past = self._run(ids[n_past:], n_past, past)
            n_past = len(ids)
            return logits

        return go_on

    def _run(
        self, ids: list[int], n_past: int, past: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        n_all = n_past + len(ids)
        inputs = {
            "input_ids": np.asarray([ids]),
            "attention_mask": np.ones((1, n_all), dtype=np.int64),
            "position_ids": np.arange(n_past, n_all)[None],
        }
        logits, *present = self.session.run(None, inputs | past)
        return logits[0].astype(np.float32), dict(zip(past, present, strict=True))


class LlamaCpp:
    """A GGUF file in llama.cpp, on the CPU, its cache in float32 as the model's own arithmetic is."""

    def __init__(self, path: Path, context_tokens: int) -> None:
        llama_cpp = need_llama_cpp()
        self.llama = llama_cpp.Llama(
            str(path),
            n_gpu_layers=0,
            n_ctx=context_tokens,
            n_batch=context_tokens,
            n_ubatch=context_tokens,
            n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(),
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )

    def __call__(self, ids: list[int]) -> np.ndarray:
        """Return a window's logits."""
        self.llama.reset()
        self.llama.eval(ids)
        return np.array(self.llama.scores[: len(ids)])

    def encode(self, text: str) -> list[int]:
        """Return a text's ids as llama.cpp finds them, <s> first."""
        return self.llama.tokenize(text.encode(), add_bos=True, special=False)


def need_llama_cpp() -> ModuleType:
    """Return the module. Raises PlanearlyError where it is not installed."""
    try:
        import llama_cpp
    except ImportError:
        raise PlanearlyError(
            "running or quantizing a GGUF file needs the package llama-cpp-python",
            hint=f"{install_hint('llamacpp')}, which compiles llama.cpp and takes minutes",
        ) from None
    return llama_cpp


def has_llama_cpp() -> bool:
    """Say whether GGUF files can be run here."""
    try:
        need_llama_cpp()
    except PlanearlyError:
        return False
    return True


def quantize(source: Path, target: Path, kind: str) -> None:
    """Write a GGUF file anew with weights of fewer bits, by llama.cpp's own quantizer.

    Types with blocks of 256 weights fall back to others in rows that are no multiple of it.
    Raises PlanearlyError where llama.cpp gives up.
    """
    llama_cpp = need_llama_cpp()
    _silence()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, QUANTIZED[kind])
    parameters.nthread = torch.get_num_threads()
    failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), parameters)
    if failed:
        raise PlanearlyError(
            f"llama.cpp could not quantize to {kind} (status {failed})", hint="try --quantize q8_0"
        )


@cache
def _silence() -> Any:
    """Drop the log lines of llama.cpp, a hundred for each file; returns what has to stay alive for that."""
    llama_cpp = need_llama_cpp()
    callback = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback
