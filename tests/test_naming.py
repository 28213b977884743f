"""Clusters named by their foremost words: class-based TF-IDF over windows of a made corpus."""

import math
from collections import Counter

import numpy as np

from provider.naming import LEAST_DOCUMENTS, cluster_terms
from shared.batches import Windows
from shared.manifest import MAX_TERMS
from shared.pieces import build_tokenizer
from shared.tokenizer import cut_windows, encode_document
from tests.conftest import make_pieces

CONTEXT = 80


def make_corpus(documents_by_cluster):
    """Cut each cluster's documents into windows, as provider/corpus.py does, in corpus order."""
    tokenizer = build_tokenizer(make_pieces(letters="abcdefghijklmnopqrstuvwxyzäöü.,@0123456789"))
    streams, starts, lengths, clusters = [], [], [], []
    position = 0
    for cluster, documents in enumerate(documents_by_cluster):
        for text in documents:
            ids = encode_document(tokenizer, text)
            for start, length in cut_windows(len(ids), CONTEXT):
                starts.append(position + start)
                lengths.append(length)
                clusters.append(cluster)
            streams.append(ids)
            position += len(ids)
    windows = Windows(
        [np.concatenate(streams)],
        np.zeros(len(starts), np.int32),
        np.asarray(starts, np.int64),
        np.asarray(lengths, np.int32),
        np.asarray(clusters, np.int32),
    )
    return windows, tokenizer


def terms_of(*documents_by_cluster, seed=0):
    windows, tokenizer = make_corpus(documents_by_cluster)
    return cluster_terms(windows, len(documents_by_cluster), tokenizer, seed)


def test_a_clusters_terms_are_what_its_documents_say_and_others_do_not():
    court, bread = terms_of(["court"] * 9 + ["judge"] * 6, ["flour flour"] * 7 + ["bread"] * 6)
    assert court == ["court", "judge"]
    assert bread == ["flour", "bread"]


def test_the_weights_are_bertopics_formula_in_a_plain_loop():
    classes = [
        ["law law law"] * 5 + ["cat law"] * 5 + ["judge"] * 6,
        ["cat cat"] * 8 + ["milk"] * 9 + ["judge"] * 2,
        ["milk sea"] * 6 + ["ship"] * 5 + ["sea cat"] * 7,
    ]
    counts = [Counter(word for text in texts for word in text.split()) for texts in classes]
    everywhere = sum(counts, Counter())
    mean_words = everywhere.total() / len(classes)
    for found, count, texts in zip(terms_of(*classes), counts, classes, strict=True):
        weights = {
            word: n / count.total() * math.log(1 + mean_words / everywhere[word])
            for word, n in count.items()
            if sum(word in text.split() for text in texts) >= LEAST_DOCUMENTS
        }
        assert found == sorted(weights, key=lambda word: (-weights[word], word))


def test_what_fewer_than_five_documents_of_the_cluster_say_is_not_published():
    secret, common = "zaphod beeblebrox", "court"
    few, enough = ([f"{secret}"] * n + [common] * 9 for n in (LEAST_DOCUMENTS - 1, LEAST_DOCUMENTS))
    assert terms_of(few, ["bread"] * 20) == [["court"], ["bread"]]
    assert terms_of(enough, ["bread"] * 20)[0] == ["court", "beeblebrox", "zaphod"]


def test_the_windows_of_one_long_document_count_as_one_document():
    """It says the name in every window; as many short documents may say it."""
    name = "zaphod " * 800
    windows, _ = make_corpus([[name]])
    assert len(windows) > 10 * LEAST_DOCUMENTS
    assert terms_of([name] + ["court"] * 9, ["bread"] * 20) == [["court"], ["bread"]]
    assert terms_of([name] * 4 + ["court"] * 9, ["bread"] * 20) == [["court"], ["bread"]]
    assert "zaphod" in terms_of([name] * 5 + ["court"] * 9, ["bread"] * 20)[0]


def test_a_document_in_two_clusters_is_not_two_documents_of_one():
    few = ["zaphod"] * (LEAST_DOCUMENTS - 1)
    assert terms_of(few + ["court"] * 9, few + ["bread"] * 9) == [["court"], ["bread"]]


def test_terms_are_lower_case_words_of_three_letters_in_any_script():
    terms = terms_of(["1"] * 7 + ["Öl Übermäßig a1b2c3 x@y.de it of ÖLE 12345 Москва"] * 6, ["bread"] * 9)[0]
    assert set(terms) == {"übermäßig", "öle", "москва"}


def test_what_more_than_half_of_all_documents_hold_names_nothing():
    assert terms_of(["und court"] * 9, ["und bread"] * 9, ["und sea"] * 9) == [["court"], ["bread"], ["sea"]]


def test_the_sample_is_bounded_and_the_same_for_the_same_seed(monkeypatch):
    classes = [[f"{word} sea" for word in ("law", "court", "judge", "cat", "milk")] * 40, ["bread"] * 300]
    monkeypatch.setattr("provider.naming.SAMPLE_WINDOWS", 60)
    monkeypatch.setattr("provider.naming.LEAST_WINDOWS", 10)
    read = []
    monkeypatch.setattr("provider.naming.decode_window", lambda tokenizer, ids: read.append(1) or "law court")
    terms_of(*classes)
    assert len(read) == 60
    monkeypatch.undo()
    assert terms_of(*classes, seed=3) == terms_of(*classes, seed=3)


def test_a_cluster_without_words_has_no_terms():
    assert terms_of(["12 34"] * 9, ["5 6"] * 9) == [[], []]
    assert terms_of(["12 34"] * 9, ["bread"] * 5) == [[], ["bread"]]


def test_many_clusters_get_fewer_terms_each_rather_than_too_long_a_manifest(monkeypatch):
    classes = [["court judge law"] * 6, ["bread"] * 6]
    assert terms_of(*classes) == [["court", "judge", "law"], ["bread"]]
    monkeypatch.setattr("provider.naming.MAX_TERMS_BYTES", 30)
    assert terms_of(*classes) == [["court", "judge"], ["bread"]]
    monkeypatch.setattr("provider.naming.MAX_TERMS_BYTES", 1)
    assert terms_of(*classes) == [[], []]


def test_no_cluster_has_more_terms_than_a_manifest_may():
    words = ["court", "judge", "appeal", "bench", "trial", "jury", "claim", "verdict", "bail", "oath", "plea"]
    assert len(terms_of(words * 6, ["bread"] * 6)[0]) == MAX_TERMS < len(words)
