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


def onnx_logits(path: Path) -> Logits:
    """Run an ONNX file in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda ids: session.run(None, {"input_ids": np.asarray([ids])})[0][0].astype(np.float32)


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
