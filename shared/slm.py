"""A small language model of given sizes: the stock transformers class, built and counted.

No layer is written here. `build_slm` fills a transformers config and instantiates a class of that
library, so that the owner's result loads anywhere; a bundle carries the sizes (shared/sizes.py), never a
config file.
"""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Starcoder2Config, Starcoder2ForCausalLM
from transformers.modeling_utils import PreTrainedModel

from shared.pieces import BOS_ID, EOS_ID
from shared.sizes import SlmConfig

CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "starcoder2": (Starcoder2Config, Starcoder2ForCausalLM),
}
"""The library's configuration and model of each of shared.sizes.ARCHITECTURES."""


def build_slm(config: SlmConfig, device: str | torch.device = "cpu") -> PreTrainedModel:
    """Return a stock transformers causal LM of these sizes with freshly initialized weights.

    Weights are float32, drawn with torch's global generator by the library's own rule (normal,
    std 0.02); on the meta device nothing is allocated. Embeddings are tied; no dropout; no biases.
    Source: transformers `LlamaForCausalLM`, `Starcoder2ForCausalLM`.
    """
    config_class, model_class = CLASSES[config.architecture]
    options: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "max_position_embeddings": config.context_tokens,
        "tie_word_embeddings": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": None,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }
    if config.architecture == "starcoder2":
        options |= {
            "use_bias": False,
            "residual_dropout": 0.0,
            "embedding_dropout": 0.0,
            "attention_dropout": 0.0,
            "sliding_window": None,
        }
    with torch.device(device):
        model = model_class(config_class(**options))
    model.train()
    return model


def count_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters, each tied one once."""
    return sum(parameter.numel() for parameter in model.parameters())
