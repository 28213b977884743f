"""A specialized model for other runtimes, run in them before it is handed out.

OUT is a folder with the model in its new form and `export.json`, which says what was written and how it
compares with the model that it came from. It is whole or not there. No private text goes into it, but what
the weights themselves give away.
"""

import copy
import hashlib
import shlex
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from transformers.modeling_utils import PreTrainedModel

from owner.isolation.places import unfinished_folder
from owner.models.checking import compare_logits, document_windows, own_windows
from owner.models.loading import CONFIG_FILE, TOKENIZER_FILE, LanguageModel, load
from owner.models.running import (
    QUANTIZED,
    LlamaCpp,
    Logits,
    OnnxRuntime,
    has_llama_cpp,
    quantize,
    safetensors_logits,
    torch_logits,
)
from owner.models.texts import read_texts
from owner.training.unfinished import RUN_FILE, discard_work
from shared.device import make_deterministic
from shared.errors import PlanearlyError
from shared.extras import install_hint
from shared.files import locked, make_folder, remove, rename, sync_tree, write_json
from shared.progress import Say, show, stage

EXPORT_FILE = "export.json"
ONNX_FILE = Path("onnx", "model.onnx")
"""Where transformers.js looks for it; optimum finds it anywhere in the folder."""
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FORMATS = {
    "gguf": ("f32", "f16", "bf16", *QUANTIZED),
    "onnx": ("f32", "f16"),
    "safetensors": ("f32", "f16", "bf16"),
}
"""Formats and the types of weights that each can have; onnxruntime has no bfloat16 on the CPU."""
MODELFILE = """\
FROM ./model.gguf
TEMPLATE \"\"\"{{{{ .Prompt }}}}\"\"\"
PARAMETER num_ctx {context_tokens}
PARAMETER stop "</s>"
"""
"""For Ollama, beside the GGUF file. Its default template is for chats; here the prompt is the text."""
USES = {
    "gguf": (
        'llama-completion -m {path}/model.gguf -p "A text of yours"',
        'ollama create mine -f {path}/Modelfile && ollama run mine "A text of yours"',
    ),
    "onnx": ("ORTModelForCausalLM.from_pretrained({text}), in Python with the package optimum-onnx",),
    "safetensors": (
        "AutoModelForCausalLM.from_pretrained({text}), in Python with the package transformers",
        "vllm serve {path}",
    ),
}
"""How to run what was written."""
BESIDE = (CONFIG_FILE, "generation_config.json", TOKENIZER_FILE, "tokenizer_config.json")
"""Copied beside weights that need them."""
TOLERANCE = {"f32": 1e-3}
"""Largest difference of a logit that is rounding, for weights that were not rounded. Ours: twenty times what
was seen."""


def export(folder: Path, out: Path, form: str, kind: str, data: Path | None, say: Say) -> dict[str, Any]:
    """Write a model in a form of FORMATS, run it, and return what `out/export.json` holds.

    With documents, both are run on them (on those held out, where the model was made from these), else on
    what the model writes by itself. Raises PlanearlyError for a form that has no such kind, an `out` that is
    there, a package that is missing, and for a result that does not compute what the model does; OSError.
    """
    if kind not in FORMATS[form]:
        raise PlanearlyError(
            f"{form} cannot have weights in {kind}, expected one of: {', '.join(FORMATS[form])}",
            hint="choose another --dtype or --quantize",
        )
    if out.exists():
        raise PlanearlyError(f"{out}: already exists", hint="choose another --out, or move it away")
    make_deterministic(0)
    model = load(folder, torch.device("cpu"))
    work = unfinished_folder(out)
    with ExitStack() as stack:
        stack.enter_context(locked(work))
        if (work / RUN_FILE).exists():
            raise PlanearlyError(
                f"{work}: holds an unfinished `owner specialize`",
                hint="finish that first, or choose another --out",
            )
        staged = work / "result"
        remove(staged)
        make_folder(staged, 0o700)
        stack.callback(remove, staged)
        texts = read_texts(data, [model], say).texts if data else []
        original = torch_logits(model.module)
        with stage("sample"):
            windows = document_windows(model, texts) if texts else own_windows(model, original)
        found: dict[str, Any] = {"format": form, "weights": kind, "documents": len(texts) if data else None}
        with stage("write"):
            show(0, figures=f"{form} · {kind}")
            exported, written = _WRITERS[form](model, staged, kind, found)
        say(f"written      {form} · {kind} · {sum(path.stat().st_size for path in written):,} bytes")
        if exported is None:
            say(f"not run      llama-cpp-python is not installed: {install_hint('llamacpp')}")
            found["agreement"] = None
        else:
            with stage("check"):
                found["agreement"] = compare_logits(original, exported, windows)
            _check(found["agreement"], kind)
        if isinstance(exported, LlamaCpp):
            found["tokenizer"] = _compare_tokenizers(model, exported, texts) if texts else None
        found["files"] = {
            path.relative_to(staged).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in sorted(staged.rglob("*"))
            if path.is_file()
        }
        write_json(staged / EXPORT_FILE, found)
        sync_tree(staged)
        rename(staged, out)
    discard_work(work)
    return found


def _write_gguf(
    model: LanguageModel, staged: Path, kind: str, found: dict[str, Any]
) -> tuple[Logits | None, list[Path]]:
    try:
        from owner.models.gguf_file import tensor_types, write_gguf
    except ImportError:
        raise PlanearlyError("GGUF needs the package gguf", hint=install_hint("gguf")) from None
    path = staged / "model.gguf"
    if kind in QUANTIZED:
        whole = staged / "whole.gguf"
        write_gguf(whole, model, "f32")
        quantize(whole, path, kind)
        remove(whole)
    else:
        write_gguf(path, model, kind)
    found["tensor_types"] = tensor_types(path)
    context_tokens = model.model.config.max_position_embeddings
    (staged / "Modelfile").write_text(MODELFILE.format(context_tokens=context_tokens), encoding="utf-8")
    return LlamaCpp(path, context_tokens) if has_llama_cpp() else None, [path]


def _write_onnx(
    model: LanguageModel, staged: Path, kind: str, found: dict[str, Any]
) -> tuple[Logits | None, list[Path]]:
    try:
        from owner.models.onnx_file import write_onnx
    except ImportError:
        raise PlanearlyError(
            "ONNX needs the packages onnx, onnxscript and onnxruntime", hint=install_hint("onnx")
        ) from None
    path = staged / ONNX_FILE
    make_folder(path.parent, 0o700)
    write_onnx(path, copy.deepcopy(model.module).to(DTYPES[kind]), model.begin_id)
    _copy_beside(model.folder, staged, BESIDE)
    return OnnxRuntime(path), sorted(path.parent.iterdir())


def _write_safetensors(
    model: LanguageModel, staged: Path, kind: str, found: dict[str, Any]
) -> tuple[Logits | None, list[Path]]:
    rounded = copy.deepcopy(model.module).to(DTYPES[kind])
    cast(PreTrainedModel, rounded).save_pretrained(staged)
    _copy_beside(model.folder, staged, BESIDE[2:])
    return safetensors_logits(staged), sorted(staged.glob("*.safetensors"))


_WRITERS = {"gguf": _write_gguf, "onnx": _write_onnx, "safetensors": _write_safetensors}


def _copy_beside(folder: Path, staged: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, staged / name)


def _check(agreement: dict[str, Any], kind: str) -> None:
    difference = agreement["largest_logit_difference"]
    if not difference <= TOLERANCE.get(kind, float("inf")):
        raise PlanearlyError(
            f"the exported model's logits differ by {difference:.2g}, expected at most {TOLERANCE[kind]:.0e}",
            hint="report this with the versions of torch and of the runtime",
        )


def _compare_tokenizers(model: LanguageModel, exported: LlamaCpp, texts: list[str]) -> dict[str, int]:
    """Count what llama.cpp reads otherwise than the model's own tokenizer."""
    n_same = n_unknown = 0
    for text in texts:
        theirs = exported.encode(text)
        n_same += theirs == [model.begin_id, *model.encode(text)]
        n_unknown += theirs.count(model.unknown_id) if model.unknown_id is not None else 0
    return {"documents": len(texts), "read_the_same": n_same, "runs_of_unknown_characters": n_unknown}


def summarize_export(found: dict[str, Any], out: Path) -> list[str]:
    """Return the lines that `owner export` prints beside the folder."""
    lines = []
    if "tensor_types" in found:
        types = ", ".join(f"{n} {name}" for name, n in found["tensor_types"].items())
        lines.append(f"tensors      {types}")
    agreement = found["agreement"]
    if agreement:
        lines.append(
            f"run          perplexity {agreement['perplexity']:.3f}, the original's"
            f" {agreement['perplexity_original']:.3f}, on {agreement['tokens']:,} tokens of"
            f" {'documents' if found['documents'] else 'its own writing'}"
        )
        lines.append(
            f"agreement    {agreement['greedy_same']} of {agreement['greedy_continuations']} greedy"
            f" continuations the same · logits within {agreement['largest_logit_difference']:.2g}"
        )
    if found.get("tokenizer"):
        tokenizer = found["tokenizer"]
        lines.append(
            f"tokenizer    llama.cpp reads {tokenizer['read_the_same']:,} of {tokenizer['documents']:,}"
            f" documents the same · {tokenizer['runs_of_unknown_characters']:,} runs of unknown characters"
        )
    names = {"path": shlex.quote(str(out)), "text": repr(str(out))}
    heads = ("run it with", "or")
    uses = zip(heads, USES[found["format"]], strict=False)
    return [*lines, *(f"{head:<12} {use.format(**names)}" for head, use in uses)]
