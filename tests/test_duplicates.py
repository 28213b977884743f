"""Copies among private documents: what counts as one, which is kept, what is left alone."""

import numpy as np
import pytest

from owner.documents.duplicates import (
    SIMILARITY,
    Duplicates,
    jaccard,
    near_distinct,
    normal_digest,
    read_distinct,
    shingles,
)


def random_documents(n, n_tokens=120, seed=0):
    return list(np.random.default_rng(seed).integers(3, 300, (n, n_tokens)).astype(np.uint32))


def changed(ids, n_changes, seed=0):
    copy = ids.copy()
    places = np.random.default_rng(seed).choice(len(ids), n_changes, replace=False)
    copy[places] = 299 - copy[places] % 200
    return copy


def test_case_white_space_and_unicode_form_make_no_other_text():
    assert normal_digest("The  Cat\nsat.") == normal_digest("the cat sat. ")
    assert normal_digest("caf\u00e9") == normal_digest("cafe\u0301")
    assert normal_digest("the cat") != normal_digest("the dog")


def test_jaccard_and_shingles_are_those_of_plain_sets():
    one, other = random_documents(2, 40)
    other[:30] = one[:30]
    sets = [{tuple(ids[i : i + 5].tolist()) for i in range(36)} for ids in (one, other)]
    assert len(shingles(one)) == len(sets[0])
    expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert jaccard(shingles(one), shingles(other)) == pytest.approx(expected)


def test_near_copies_are_found_and_the_first_is_kept():
    documents = random_documents(40)
    documents += [changed(ids, 1, seed) for seed, ids in enumerate(documents[:20])]
    assert all(jaccard(shingles(documents[i]), shingles(documents[40 + i])) >= SIMILARITY for i in range(20))
    kept = near_distinct(documents)
    assert kept[:40].all()
    assert not kept[40:].any()
    assert np.array_equal(kept, near_distinct(documents))


def test_documents_less_alike_than_the_limit_are_kept():
    documents = random_documents(20)
    documents += [changed(ids, 12, seed) for seed, ids in enumerate(documents)]
    likeness = [jaccard(shingles(documents[i]), shingles(documents[20 + i])) for i in range(20)]
    assert max(likeness) < SIMILARITY
    assert near_distinct(documents).all()


def test_what_is_too_short_for_shingles_is_compared_as_a_whole_only():
    short = [np.asarray([7, 8, 2], np.uint32), np.asarray([7, 9, 2], np.uint32)] * 2
    assert near_distinct(short).all()


def test_copies_are_dropped_in_the_order_of_names_and_counted(tmp_path, tokenizer):
    text = "".join(f"the cat number {'ab'[i % 2] * i} sat and the dog ran. " for i in range(20))
    files = {"a": text, "b": text.upper().lower() + "\n\n", "c": text + "of", "d": "another text. " * 9}
    for name, content in files.items():
        (tmp_path / f"{name}.txt").write_text(content)
    private, duplicates = read_distinct(tmp_path, [], tokenizer, 32)
    assert duplicates == Duplicates(exact=1, near=1)
    assert duplicates.n == 2
    assert private.n_documents == 2
    assert private.document.tolist() == sorted(private.document.tolist())
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.txt").unlink()
    alone, none = read_distinct(tmp_path, [], tokenizer, 32)
    assert none == Duplicates()
    assert alone.digest() == private.digest()
    for window in range(len(alone.windows)):
        assert np.array_equal(alone.windows.tokens(window), private.windows.tokens(window))
