"""The small language model: its sizes as data, and the stock transformers model built from them.

No layer is written here. `build_slm` fills a transformers config and instantiates a class of that
library, so that the owner's result loads anywhere; a bundle carries the sizes, never a config file.
Presets are the paper's (§4.1, Table 6) and small ones for a laptop and for tests.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Starcoder2Config, Starcoder2ForCausalLM
from transformers.modeling_utils import PreTrainedModel

from shared.errors import PlanearlyError
from shared.pieces import BOS_ID, EOS_ID, MAX_PIECES
from shared.strict_json import quote

CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "starcoder2": (Starcoder2Config, Starcoder2ForCausalLM),
}
"""Architectures a bundle may name. llama: three-matrix SwiGLU. starcoder2: two-matrix GELU, no biases."""

LIMITS = {
    "n_layers": 256,
    "width": 32_768,
    "n_heads": 512,
    "ffn_width": 262_144,
    "vocab_size": MAX_PIECES,
    "context_tokens": 131_072,
}
"""Largest value of each size that a reader accepts, before anything is allocated."""


@dataclass(frozen=True)
class SlmConfig:
    """Sizes of one model; what a bundle's manifest holds under `model`."""

    architecture: str
    """One of CLASSES: llama or starcoder2."""
    n_layers: int
    """L: transformer layers."""
    width: int
    """D: model width."""
    n_heads: int
    """N: attention heads, each width / n_heads wide."""
    ffn_width: int
    """F: width of the feed-forward layer."""
    vocab_size: int
    """V: rows of the token embedding, which is tied to the output layer."""
    context_tokens: int
    """S: longest window the model is trained on; the paper's is 1,024 (§2.3)."""

    def __post_init__(self) -> None:
        if self.architecture not in CLASSES:
            known = ", ".join(CLASSES)
            raise PlanearlyError(
                f"model.architecture is {quote(self.architecture)}, expected one of: {known}"
            )
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise PlanearlyError(f"model.{name} is {quote(value)}, expected 1 to {limit}")
        if self.width % self.n_heads or (self.width // self.n_heads) % 2:
            raise PlanearlyError(
                f"model.width {self.width} over {self.n_heads} heads must be an even whole number"
            )
        if self.vocab_size <= EOS_ID:
            raise PlanearlyError(f"model.vocab_size is {self.vocab_size}, expected at least 3")

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's `model` object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> "SlmConfig":
        """Parse a manifest's `model` object; errors name the field."""
        names = [field.name for field in fields(cls)]
        if sorted(entries) != sorted(names):
            raise PlanearlyError(
                f"model has fields {quote(sorted(entries))}, expected exactly {sorted(names)}"
            )
        return cls(**entries)


PRESETS = {
    # 126M of §4.1, with SwiGLU: 126.2M.
    "slm-126m": SlmConfig("llama", 7, 1024, 8, 2944, 32_768, 1024),
    # The two-matrix 4096-wide FFN of Table 6: 121.7M.
    "slm-126m-table6": SlmConfig("starcoder2", 7, 1024, 8, 4096, 32_768, 1024),
    # The paper's LLM: Table 6 gives 7 layers of width 2816.
    "llm-771m": SlmConfig("llama", 7, 2816, 22, 7744, 32_768, 1024),
    # examples/demo and examples/quickstart.
    "laptop": SlmConfig("llama", 4, 128, 4, 352, 4096, 256),
    "test": SlmConfig("llama", 2, 16, 2, 24, 300, 32),
}
"""Named sizes; a recipe names one of them and may override single fields."""


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
