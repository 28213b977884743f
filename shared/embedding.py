"""Text windows to unit vectors, with one Sentence-BERT model pinned by digest (paper §3.2).

The network is the stock transformers `BertModel` built from a fixed config; its weights and vocabulary
are read as bytes whose digest is checked first, never as a model folder. all-MiniLM-L6-v2 reads at most
256 word pieces, so a longer text is cut into sub-windows whose embeddings are averaged by length.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertConfig, BertModel

from shared.device import autocast
from shared.embedder import (
    NAME,
    SUB_WINDOW_PIECES,
    VOCABULARY_FILE,
    VOCABULARY_SHA256,
    WEIGHTS_FILE,
    WEIGHTS_SHA256,
    WIDTH,
)
from shared.errors import PlanearlyError
from shared.progress import show

CONFIG: dict[str, Any] = {
    "vocab_size": 30_522,
    "hidden_size": WIDTH,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "attn_implementation": "sdpa",
}
"""The network's sizes, as its authors published them; no file of theirs is parsed for it."""

BATCH_PIECES = 16_384
"""Word pieces per forward pass, padding included."""
LENGTH_STEP, LEAST_PIECES = 32, 256
"""Sub-windows are padded to a multiple of the one, and a forward pass has the other at least: what attention
and products sum, and in which order, then depends on a sub-window's own length alone. Ours."""
PAD_ID, UNK_ID, CLS_ID, SEP_ID = 0, 100, 101, 102


@dataclass(frozen=True)
class Embedder:
    """A verified network and its word-piece tokenizer; see `embed_texts`."""

    network: BertModel
    tokenizer: Tokenizer
    device: torch.device


def load_embedder(weights: bytes, vocabulary: bytes, device: torch.device) -> Embedder:
    """Check both digests, then build the network (22.7M parameters) on the device."""
    for name, content, expected in (
        (WEIGHTS_FILE, weights, WEIGHTS_SHA256),
        (VOCABULARY_FILE, vocabulary, VOCABULARY_SHA256),
    ):
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise PlanearlyError(
                f"embedder {name} has sha256 {found[:16]}..., expected {expected[:16]}...",
                hint=f"the bundle needs the original {NAME}",
            )
    with torch.device("meta"):
        network = BertModel(BertConfig(**CONFIG), add_pooling_layer=False)
    tensors = load_safetensors(weights)
    state = {name: tensors[name] for name, _ in network.named_parameters()}
    network.load_state_dict(state, strict=False, assign=True)
    embeddings: Any = network.embeddings
    embeddings.position_ids = torch.arange(512).unsqueeze(0)
    embeddings.token_type_ids = torch.zeros(1, 512, dtype=torch.long)
    network.eval().requires_grad_(False)
    pieces = vocabulary.decode("utf-8").split("\n")
    if pieces[-1] == "":
        pieces.pop()
    table = {piece.rstrip("\r"): index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(table, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return Embedder(cast(Any, network).to(device), tokenizer, device)


def _padded(ids: list[int]) -> int:
    return -(-len(ids) // LENGTH_STEP) * LENGTH_STEP


def embed_texts(embedder: Embedder, texts: list[str]) -> np.ndarray:
    """Return the texts' unit vectors: (n, WIDTH) float32.

    A sub-window's embedding is the mean of its last hidden states, normalized; a text's is their mean
    weighted by word pieces, normalized (ours: the paper does not say what it did with long windows).
    A text without a word piece is embedded as "[CLS][SEP]". Deterministic on one CPU, however texts are
    grouped (tested, not promised by torch); on a GPU another grouping can differ in the last bits.
    Source: the model card of all-MiniLM-L6-v2 (mean pooling, then L2 normalization).
    """
    encodings = embedder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    owners: list[int] = []
    sub_windows: list[list[int]] = []
    for index, encoding in enumerate(encodings):
        ids = encoding.ids
        for start in range(0, max(len(ids), 1), SUB_WINDOW_PIECES):
            owners.append(index)
            sub_windows.append([CLS_ID, *ids[start : start + SUB_WINDOW_PIECES], SEP_ID])
    sums = torch.zeros(len(texts), WIDTH, dtype=torch.float32)
    by_length = sorted(range(len(sub_windows)), key=lambda i: (-len(sub_windows[i]), i))
    start = 0
    while start < len(by_length):
        longest = _padded(sub_windows[by_length[start]])
        batch = [
            i
            for i in by_length[start : start + BATCH_PIECES // longest]
            if _padded(sub_windows[i]) == longest
        ]
        start += len(batch)
        n_fillers = max(
            1, LEAST_PIECES // longest - len(batch)
        )  # one at least: without padding is another sum
        rows = [sub_windows[i] for i in batch] + [[CLS_ID, SEP_ID]] * n_fillers
        padded_ids = torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(longest) < lengths[:, None]).to(embedder.device)
        with torch.inference_mode(), autocast(embedder.device):
            hidden = embedder.network(
                padded_ids.to(embedder.device), attention_mask=mask.long()
            ).last_hidden_state[: len(batch)]
        lengths, mask = lengths[: len(batch)], mask[: len(batch)]
        pooled = (hidden.float() * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        unit = torch.nn.functional.normalize(pooled, dim=1).cpu()
        weight = (lengths - 2).clamp(min=1)[:, None]
        sums.index_add_(0, torch.tensor([owners[i] for i in batch]), unit * weight)
        show(start, len(by_length), "sub-windows embedded")
    return torch.nn.functional.normalize(sums, dim=1).numpy()
