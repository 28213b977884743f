"""A model as one GGUF file for llama.cpp and what is built on it: weights, sizes, tokenizer.

Names and sizes are those of llama.cpp's own converter, which is in no package: gguf.TensorNameMap, and the
query and key rows of llama in the order that its rotary embedding wants. Our tokenizer becomes llama.cpp's
unigram one ("t5"), which finds the same best pieces, ties included, and begins with <s>. It has no byte
fallback: ASCII characters without a piece (line ends) get their byte's token as a piece; any other
character outside the vocabulary, such as a rare emoji, is read as <unk>. Written out, all bytes are right.
Why not its other tokenizers: docs/decisions/0020-models-out.md.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from owner.models.loading import LanguageModel
from shared.errors import PlanearlyError
from shared.pieces import BOS_ID, BYTE_PIECES, EOS_ID, SPACE, SPECIAL_PIECES, UNK_ID, Pieces
from shared.progress import show

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "starcoder2": gguf.MODEL_ARCH.STARCODER2}
FILE_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
"""Of matrices; vectors (norms) stay float32, as in llama.cpp's converter."""
STARCODER2_BIASES = ("attn_output", "ffn_up", "ffn_down")
"""llama.cpp wants these biases in every starcoder2; ours have none, which is zeros."""
UNDEFINED = 0
"""LLAMA_TOKEN_TYPE_UNDEFINED, which gguf.TokenType leaves out: a token that no text is read as."""
UNKNOWN_PENALTY = 10.0
"""What a character without a piece costs beyond the least likely piece, in nats. Source: SentencePiece."""


def write_gguf(path: Path, language_model: LanguageModel, dtype: str) -> None:
    """Write the model with its matrices in a dtype of FILE_TYPES; the same model gives the same bytes.

    Raises PlanearlyError for a model that `owner specialize` did not make.
    """
    config, pieces = language_model.model.config, language_model.pieces
    if pieces is None or config.model_type not in ARCHITECTURES:
        raise PlanearlyError(
            f"{language_model.folder}: is no model of `owner specialize`",
            hint="for others there is llama.cpp's convert_hf_to_gguf.py",
        )
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _add_sizes(writer, config, dtype)
    _add_tokenizer(writer, pieces)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    weights = language_model.module.state_dict()
    for n, (name, weight) in enumerate(weights.items(), 1):
        show(n, len(weights), "tensors", dtype)
        if name != "lm_head.weight":  # tied to the embedding, which llama.cpp then uses for both
            theirs = names.get_name(name, (".weight", ".bias"))
            assert theirs is not None, name
            _add_tensor(writer, theirs, _reordered(name, weight, config), dtype)
    if config.model_type == "starcoder2":
        widths = {"ffn_up": config.intermediate_size}
        for layer in range(config.num_hidden_layers):
            for name in STARCODER2_BIASES:
                zeros = torch.zeros(widths.get(name, config.hidden_size))
                _add_tensor(writer, f"blk.{layer}.{name}.bias", zeros, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, config: Any, dtype: str) -> None:
    writer.add_name("planearly")
    writer.add_file_type(FILE_TYPES[dtype][1])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.model_type == "llama":
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_epsilon)


def _add_tokenizer(writer: gguf.GGUFWriter, pieces: Pieces) -> None:
    texts, scores, types = token_table(pieces)
    writer.add_tokenizer_model("t5")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_unk_token_id(UNK_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_remove_extra_whitespaces(False)


def token_table(pieces: Pieces) -> tuple[list[str], list[float], list[int]]:
    """Return each token's text, score and type, for llama.cpp's unigram tokenizer."""
    known = {piece for piece, _ in pieces}
    unknown_score = min(score for _, score in pieces) - UNKNOWN_PENALTY
    texts, scores, types = [], [], []
    for number, (piece, score) in enumerate(pieces):
        kind: int = gguf.TokenType.NORMAL
        byte = number - len(SPECIAL_PIECES)
        if number in SPECIAL_PIECES:
            kind = gguf.TokenType.UNKNOWN if number == UNK_ID else gguf.TokenType.CONTROL
        elif byte < len(BYTE_PIECES):
            character = chr(byte)
            if 0 < byte < 128 and character != " " and character not in known:
                piece, score = character, unknown_score
            else:
                kind = gguf.TokenType.BYTE
        elif "<" in piece and piece not in ("<", f"{SPACE}<"):
            kind = UNDEFINED  # shared/pieces.py never uses it
        texts.append(piece)
        scores.append(score)
        types.append(int(kind))
    return texts, scores, types


def _reordered(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """Return llama's query and key rows in the order of llama.cpp's rotary embedding; others as they are."""
    if config.model_type != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    n_heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    halves = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _add_tensor(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, dtype: str) -> None:
    kind = FILE_TYPES[dtype][0] if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
    values = np.ascontiguousarray(weight.detach().float().cpu().numpy())
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def tensor_types(path: Path) -> dict[str, int]:
    """Return how many tensors of each type a GGUF file has: a quantizer falls back where rows do not fit."""
    return dict(sorted(Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors).items()))
