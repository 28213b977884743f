"""A model goes on from a prompt: greedily, or drawn at a temperature with a seed.

Every window was trained after <s>, so a prompt begins with it.
"""

import time

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from owner.models.loading import LanguageModel
from shared.errors import PlanearlyError
from shared.progress import per_second, show, stage


class _Shown(BaseStreamer):
    """Tells of every token as it is written; the first call hands over the prompt."""

    def __init__(self, most: int) -> None:
        self.most, self.written, self.began_s = most, -1, time.monotonic()

    def put(self, value: torch.Tensor) -> None:
        """Count one more."""
        self.written += 1
        show(self.written, self.most, "tokens", f"{per_second(self.written, self.began_s):.0f} tokens/s")

    def end(self) -> None:
        """Nothing is left to tell."""


@torch.no_grad()
def generate(
    model: LanguageModel, prompt: str, n_tokens: int, temperature: float = 0.0, seed: int = 0
) -> str:
    """Return what the model writes after the prompt: n_tokens, fewer at the end of text or of its context.

    At temperature 0 it is the likeliest token each time, above it is drawn from all tokens. Raises
    PlanearlyError when the prompt leaves no room.
    """
    ids = [model.begin_id, *model.encode(prompt)]
    room = (model.context_tokens or len(ids) + n_tokens) - len(ids)
    if room < 1:
        raise PlanearlyError(
            f"the prompt has {len(ids)} tokens, expected fewer than the model's {model.context_tokens}",
            hint="give its last part only",
        )
    is_drawn = temperature > 0
    torch.manual_seed(seed)
    config = GenerationConfig(
        max_new_tokens=min(n_tokens, room),
        do_sample=is_drawn,
        bos_token_id=model.begin_id,
        eos_token_id=model.end_id,
        pad_token_id=model.begin_id if model.end_id is None else model.end_id,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if is_drawn else {}),
    )
    inputs = torch.tensor([ids], device=model.model.device)
    with stage("write"):
        written = model.model.generate(  # type: ignore[operator]
            inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=config,
            streamer=_Shown(min(n_tokens, room)),
        )[0].tolist()
    return model.decode(written)[len(model.decode(ids)) :]
