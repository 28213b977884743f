"""Fixtures of the whole suite: small, seeded, on one CPU thread, offline."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch

from shared.batches import Windows
from shared.pieces import BYTE_PIECES, SPACE, SPECIAL_PIECES, Pieces, build_tokenizer
from shared.sizes import PRESETS, SlmConfig
from shared.slm import build_slm

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def test_config() -> SlmConfig:
    return PRESETS["test"]


@pytest.fixture
def small_model(test_config):
    torch.manual_seed(0)
    return build_slm(test_config)


def make_windows(lengths, clusters=None, vocab_size=300, seed=0) -> Windows:
    """Random windows of the given lengths, one stream."""
    generator = np.random.default_rng(seed)
    lengths = np.asarray(lengths, np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    clusters = np.zeros(len(lengths), np.int32) if clusters is None else np.asarray(clusters, np.int32)
    stream = generator.integers(3, vocab_size, int(lengths.sum())).astype(np.uint16)
    return Windows([stream], np.zeros(len(lengths), np.int32), starts, lengths, clusters)


def make_pieces(words=("the", "of", "and", "cat", "sat"), letters="abcdefghijklmnopqrstuvwxyz.,") -> Pieces:
    """A tiny hand-made unigram piece list: specials, bytes, letters, a few words."""
    pieces: Pieces = [(SPECIAL_PIECES[i], 0.0) for i in range(3)] + [(byte, 0.0) for byte in BYTE_PIECES]
    pieces += [(SPACE, -2.0)] + [(letter, -4.0 - i / 100) for i, letter in enumerate(letters)]
    pieces += [(SPACE + word, -3.0 - i / 10) for i, word in enumerate(words)]
    return pieces


@pytest.fixture
def pieces() -> Pieces:
    return make_pieces()


@pytest.fixture
def tokenizer(pieces):
    return build_tokenizer(pieces)


@pytest.fixture(autouse=True)
def _float32_products(monkeypatch):
    """bfloat16 products would blur the comparisons; one test of its own turns them on."""
    monkeypatch.setattr("shared.device.has_bf16", lambda device: False)
