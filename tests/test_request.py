"""Histogram requests: what they hold, how they are read, how far a document reaches."""

import json

import numpy as np
import pytest
import torch

from owner.choice.requesting import count_votes, describe_request, noisy_request
from owner.documents.reading import Document
from owner.documents.windows import window_documents
from shared.embedder import find_embedder_files
from shared.embedding import embed_texts, load_embedder
from shared.errors import PlanearlyError
from shared.request import HistogramRequest, centroids_digest, read_request, write_request

CENTROIDS = np.random.default_rng(0).normal(size=(3, 384)).astype(np.float32)


def test_a_written_request_reads_back(tmp_path):
    request = HistogramRequest(centroids_digest(CENTROIDS), (3, 0, 7), 1.0, "none")
    write_request(tmp_path / "r.json", request)
    found, digest = read_request(tmp_path / "r.json")
    assert found == request
    assert len(digest) == 64
    assert found.histogram().tolist() == [3, 0, 7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": [1, -1, 2]}, "counts"),
        ({"counts": []}, "counts"),
        ({"counts": [1.5]}, "counts"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"format": "planearly-histogram/v2"}, "format"),
        ({"centroids_sha256": "0"}, "centroids_sha256"),
        ({"documents": 4}, "unknown field"),
        ({"mechanism": ""}, "mechanism"),
    ],
)
def test_a_request_with_a_bad_field_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "r.json"
    write_request(path, HistogramRequest(centroids_digest(CENTROIDS), (3, 0, 7), 1.0, "none"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PlanearlyError, match=message) as error:
        read_request(path)
    assert str(path) in str(error.value)


def test_a_document_has_one_vote_however_long_it_is(tokenizer):
    texts = ["fry the onion in butter, then add salt. " * 30, "the judge dismissed the appeal"]
    embedder = load_embedder(*find_embedder_files(), torch.device("cpu"))
    centroids = embed_texts(embedder, ["law court judge contract", "cooking recipe onion"])
    private = window_documents([Document("a.txt", i, text) for i, text in enumerate(texts)], tokenizer, 32)
    assert len(private.windows) > 10
    assert count_votes(private, tokenizer, embedder, centroids).tolist() == [1, 1]


def test_the_noise_is_of_the_scale_that_epsilon_asks_for():
    """The discrete Laplace distribution of epsilon 1: P(n) = (1 - a) / (1 + a) a^|n| with a = 1/e."""
    votes = np.full(4000, 1000)
    request = noisy_request(votes, CENTROIDS, 1.0)
    noise = np.asarray(request.counts) - 1000
    a = np.exp(-1.0)
    variance = 2 * a / (1 - a) ** 2
    assert abs(noise.mean()) < 5 * np.sqrt(variance / len(noise))
    assert noise.var() == pytest.approx(variance, rel=0.25)
    assert (noise == 0).mean() == pytest.approx((1 - a) / (1 + a), abs=0.04)
    assert request.epsilon == 1.0
    assert "OpenDP" in request.mechanism


def test_no_count_is_negative_and_epsilon_must_be_positive():
    assert min(noisy_request(np.zeros(500, int), CENTROIDS, 0.5).counts) == 0
    with pytest.raises(PlanearlyError, match="epsilon is 0"):
        noisy_request(np.ones(3, int), CENTROIDS, 0.0)


def test_the_description_tells_all_that_the_file_holds():
    request = HistogramRequest("ab" * 32, (3, 0, 7), 0.5, "some noise")
    text = describe_request(request, 11)
    for part in ("0: 3, 2: 7", "1 clusters with 0", "abababababababab", "0.5", "some noise", "1.65-fold"):
        assert part in text
