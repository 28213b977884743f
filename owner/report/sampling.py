"""How a model goes on with held-out text, before and after: private text, shown only where that is asked."""

from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers.modeling_utils import PreTrainedModel

from owner.documents.windows import Split
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


@torch.no_grad()
def go_on(model: PreTrainedModel, prompt: np.ndarray, n_tokens: int) -> np.ndarray:
    """Return the tokens that a model finds likeliest, one after the other (greedy)."""
    device = next(cast(torch.nn.Module, model).parameters()).device
    ids = torch.tensor([[BOS_ID, *prompt.tolist()]], device=device)
    for _ in range(n_tokens):
        logits = cast(Any, model)(input_ids=ids, use_cache=False).logits[0, -1]
        ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
    return ids[0, -n_tokens:].cpu().numpy()


def sample(
    before: PreTrainedModel, after: PreTrainedModel, split: Split, tokenizer: Tokenizer, context_tokens: int
) -> list[dict[str, str]]:
    """Return prompts, how the text really goes on, and how both models do; empty where all is too short."""
    n_prompt = min(PROMPT_TOKENS, (context_tokens - 1) // 2)
    n_more = min(CONTINUED_TOKENS, context_tokens - 1 - n_prompt)
    for model in (before, after):
        cast(torch.nn.Module, model).eval()

    def text(ids: np.ndarray) -> str:
        return decode_window(tokenizer, ids)

    return [
        {
            "prompt": text(ids[:n_prompt]),
            "true": text(ids[n_prompt:]),
            "before": text(go_on(before, ids[:n_prompt], n_more)),
            "after": text(go_on(after, ids[:n_prompt], n_more)),
        }
        for ids in choose_prompts(split, n_prompt + n_more)
    ]
