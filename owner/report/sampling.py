"""How a model goes on with held-out text, before and after: private text, shown only where that is asked."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from owner.choice.candidates import Start
from owner.documents.windows import Split
from owner.models.checking import continue_greedily
from owner.models.loading import load
from owner.models.running import torch_logits
from owner.report.recording import digests
from owner.training.saving import MODEL_FOLDER
from shared.bundle import Bundle
from shared.errors import PlanearlyError
from shared.pieces import BOS_ID
from shared.tokenizer import decode_window

SAMPLES = 3
PROMPT_TOKENS = CONTINUED_TOKENS = 32


def choose_prompts(split: Split, tokens: int = PROMPT_TOKENS + CONTINUED_TOKENS) -> list[np.ndarray]:
    """Return the first tokens of SAMPLES held-out windows that have so many, evenly spaced, none twice."""
    windows = split.heldout
    long_enough = np.flatnonzero(windows.length >= tokens)
    places = np.unique(np.linspace(0, len(long_enough) - 1, min(len(long_enough), SAMPLES)).astype(int))
    return [windows.tokens(int(window))[:tokens] for window in long_enough[places]]


def go_on(model: PreTrainedModel, prompt: np.ndarray, n_tokens: int) -> np.ndarray:
    """Return the tokens that a model on the CPU finds likeliest, one by one, after <s> and a prompt."""
    logits = torch_logits(cast(nn.Module, model).eval())
    return np.asarray(continue_greedily(logits, [BOS_ID, *prompt.tolist()], n_tokens))


def sample(
    before: PreTrainedModel, after: PreTrainedModel, split: Split, tokenizer: Tokenizer, context_tokens: int
) -> list[dict[str, str]]:
    """Return prompts, how the text really goes on, and how both models do; empty where all is too short."""
    n_prompt = min(PROMPT_TOKENS, (context_tokens - 1) // 2)
    n_more = min(CONTINUED_TOKENS, context_tokens - 1 - n_prompt)
    found = []
    for ids in choose_prompts(split, n_prompt + n_more):
        texts = {
            "prompt": ids[:n_prompt],
            "true": ids[n_prompt:],
            "before": go_on(before, ids[:n_prompt], n_more),
            "after": go_on(after, ids[:n_prompt], n_more),
        }
        found.append({name: decode_window(tokenizer, part) for name, part in texts.items()})
    return found


def sample_finished(
    out: Path, report: dict[str, Any], bundle: Bundle, split: Split, tokenizer: Tokenizer
) -> list[dict[str, str]]:
    """Return `sample` of a run that is finished, from its folder and the bundle that it came from.

    Raises PlanearlyError when the model is not the one that the report is about.
    """
    folder = out / MODEL_FOLDER
    if digests(folder) != report["files"]:
        raise PlanearlyError(
            f"{folder}: has changed since its report was written", hint="choose another --out to make it anew"
        )
    before = Start.from_dict(report["start"] | {"heldout_loss": None}).materialize(bundle)
    after = load(out, torch.device("cpu")).model
    return sample(before, after, split, tokenizer, bundle.manifest.model.context_tokens)
