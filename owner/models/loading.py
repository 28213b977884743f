"""A model folder, ours or anybody's causal language model, as a model and a way from text to ids and back.

Nothing is downloaded and no code of the folder is run: weights are safetensors, classes those of
transformers. Text never turns into special tokens, whatever it says.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from owner.training.saving import MODEL_FOLDER, REPORT_FILE
from shared.errors import PlanearlyError
from shared.pieces import BOS_ID, EOS_ID, UNK_ID, Pieces, build_tokenizer, read_pieces
from shared.progress import amount, show, stage

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "config.json"


@dataclass(frozen=True)
class LanguageModel:
    """A causal model in float32, ready to be run, and its tokenizer."""

    folder: Path
    model: PreTrainedModel
    tokenizer: Tokenizer
    begin_id: int
    """What every window begins with: the beginning of text, or where there is none, the end of one."""
    end_id: int | None
    unknown_id: int | None
    pieces: Pieces | None
    """Of our tokenizer; None for others."""

    @property
    def name(self) -> str:
        """The folder as given, without a last part that says only `model`."""
        return str(self.folder.parent if self.folder.name == MODEL_FOLDER else self.folder)

    @property
    def module(self) -> nn.Module:
        """The model, as torch sees it."""
        return cast(nn.Module, self.model)

    @property
    def context_tokens(self) -> int | None:
        """Longest window, or None for a model that names none."""
        found = getattr(self.model.config, "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None

    def encode(self, text: str) -> list[int]:
        """Return a text's ids, without any special token."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, without any special token."""
        text = [number for number in ids if number not in (self.begin_id, self.end_id)]
        return self.tokenizer.decode(text, skip_special_tokens=True)


def find_model(path: Path) -> Path:
    """Return the model folder of an out folder of `owner specialize`, or the path where it is one itself.

    Raises PlanearlyError where neither is one.
    """
    for folder in (path / MODEL_FOLDER, path):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise PlanearlyError(
        f"{path}: no {CONFIG_FILE} in it or in its {MODEL_FOLDER}/",
        hint="give the out folder of `owner specialize`, or a transformers model folder",
    )


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return the report of the run that made a model folder, or None for a model without one."""
    try:
        report = json.loads((folder.parent / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and folder.name == MODEL_FOLDER else None


def load(path: Path, device: torch.device) -> LanguageModel:
    """Load a model folder. Raises PlanearlyError where it is none, has other weights, or needs code."""
    with stage("load"):
        return _load(find_model(path), device)


def _load(folder: Path, device: torch.device) -> LanguageModel:
    size = sum(weights.stat().st_size for weights in folder.glob("*.safetensors"))
    show(0, figures=f"{amount(size)} of weights")
    disable_progress_bar()
    set_verbosity_error()
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        pieces = read_own_pieces(folder)
        special: tuple[int | None, int | None, int | None]
        if pieces is not None:
            tokenizer, special = build_tokenizer(pieces), (BOS_ID, EOS_ID, UNK_ID)
        else:
            tokenizer, special = _foreign_tokenizer(folder)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise PlanearlyError(
            f"{folder}: cannot be loaded as a causal language model ({type(error).__name__})",
            hint=f"it needs {CONFIG_FILE} of a class of transformers, .safetensors weights, {TOKENIZER_FILE}",
        ) from None
    module = cast(nn.Module, model)
    module.to(device).eval()
    begin, end, unknown = special
    first = begin if begin is not None else end
    if first is None:
        raise PlanearlyError(
            f"{folder}: its tokenizer has neither a beginning nor an end of text",
            hint="give a model whose tokenizer_config.json names a bos_token or an eos_token",
        )
    return LanguageModel(folder, model, tokenizer, first, end, unknown, pieces)


def read_own_pieces(folder: Path) -> Pieces | None:
    """Return the pieces of a tokenizer that `owner specialize` saved, or None for another's."""
    try:
        saved = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
        return read_pieces(json.dumps(saved["model"]["vocab"]).encode())
    except (OSError, ValueError, KeyError, TypeError, PlanearlyError):
        return None


def _foreign_tokenizer(folder: Path) -> tuple[Tokenizer, tuple[int | None, int | None, int | None]]:
    found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not isinstance(found, PreTrainedTokenizerFast):
        raise ValueError("not of the tokenizers library")
    tokenizer = Tokenizer.from_str(found.backend_tokenizer.to_str())
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, (found.bos_token_id, found.eos_token_id, found.unk_token_id)
