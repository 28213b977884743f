"""Low-rank adaptation (paper App. F) with PEFT: small matrices are trained, then added to the weights."""

import warnings
from typing import cast

from transformers.modeling_utils import PreTrainedModel

from shared.errors import PlanearlyError

TARGETS = ["q_proj", "v_proj"]
"""Linear layers that are adapted. App. F does not say; rank 64 on these is its 5M trainable parameters."""


def add_lora(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """Return the model with its own weights frozen and trainable low-rank matrices beside TARGETS.

    The product is scaled by 1 (alpha = rank); it starts at 0. Draws with torch's global generator.
    Source: PEFT `LoraConfig`; Hu et al. 2021. Raises PlanearlyError where PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise PlanearlyError("LoRA needs the package peft", hint="pip install peft") from None
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, lora_dropout=0.0, bias="none")
    with warnings.catch_warnings():
        # PEFT asks transformers for an attribute that it deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return cast(PreTrainedModel, get_peft_model(model, config))


def merge_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Return the stock model with the low-rank products added to its weights."""
    merged = cast(PreTrainedModel, model.merge_and_unload())  # type: ignore[operator]
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged
