"""The sizes of a small language model as data, the presets, and the shapes of the tensors that follow.

Presets are the paper's (§4.1, Table 6) and small ones for a laptop and for tests. Nothing here loads torch:
who verifies a bundle must know what has to be in it, and builds no model (shared/slm.py does).
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from shared.errors import PlanearlyError
from shared.pieces import EOS_ID, MAX_PIECES
from shared.strict_json import quote

ARCHITECTURES = ("llama", "starcoder2")
"""What a bundle may name. llama: three-matrix SwiGLU. starcoder2: two-matrix GELU; only norms have biases."""

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
    """llama or starcoder2: ARCHITECTURES says what they are."""
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
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
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

Shape = tuple[int, ...]


def parameter_shapes(config: SlmConfig) -> dict[str, Shape]:
    """Return the shape of each parameter of the stock model, tied ones once, in the model's order.

    Names and shapes are those of transformers' classes, which the tests hold them against.
    """
    width, ffn = config.width, config.ffn_width
    llama = config.architecture == "llama"
    norm: dict[str, Shape] = {"weight": (width,)} if llama else {"weight": (width,), "bias": (width,)}
    up = ("gate_proj", "up_proj") if llama else ("c_fc",)
    down = "down_proj" if llama else "c_proj"
    layer: dict[str, Shape] = {
        **{f"self_attn.{name}_proj.weight": (width, width) for name in "qkvo"},
        **{f"mlp.{name}.weight": (ffn, width) for name in up},
        f"mlp.{down}.weight": (width, ffn),
    }
    for name in ("input_layernorm", "post_attention_layernorm"):
        layer |= {f"{name}.{part}": shape for part, shape in norm.items()}
    return {
        "model.embed_tokens.weight": (config.vocab_size, width),
        **{
            f"model.layers.{index}.{name}": shape
            for index in range(config.n_layers)
            for name, shape in layer.items()
        },
        **{f"model.norm.{part}": shape for part, shape in norm.items()},
    }


def linear_names(config: SlmConfig) -> list[str]:
    """Return the `nn.Linear` modules that own their weight, in the model's order.

    The output layer's is the embedding's.
    """
    return [
        name.removesuffix(".weight")
        for name, shape in parameter_shapes(config).items()
        if len(shape) == 2 and name != "model.embed_tokens.weight"
    ]
