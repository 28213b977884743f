import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from provider.corpus import CorpusFile, train_sentencepiece, train_tokenizer
from shared import tokenizer as module
from shared.errors import DocumentsError, PlanearlyError
from shared.pieces import EOS_ID, build_tokenizer, read_pieces, write_pieces
from shared.tokenizer import cut_windows, decode_window, encode_document, save_tokenizer
from tests.conftest import make_pieces

TEXT = (
    "The cat sat on the mat.  It was, as ever, the 3rd of 12 cats;\tsome said “naïve” – others: 猫.\n"
    "    indented    lines and\r\nWindows ends, e\u0301 combining, \u00a0 hard space,\n"
    "<s> and </s> as text \U0001f600\n"
)


@pytest.fixture(scope="module")
def topics_file(tmp_path_factory):
    """English text that every Python carries."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("corpus") / "topics.txt"
    path.write_text("\n".join(topics.values())[:200_000] + TEXT, encoding="utf-8")
    return [CorpusFile(str(path), "topics.txt", False)]


@pytest.fixture(scope="module")
def original(topics_file):
    """What the real SentencePiece learned from it."""
    return sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece(topics_file, 700, 10**9))


@pytest.fixture(scope="module")
def trained(original):
    return [(original.id_to_piece(i), original.get_score(i)) for i in range(700)]


@settings(deadline=None, max_examples=150)
@given(text=st.text(max_size=60) | st.text(alphabet="the catsof\n ▁.é猫", max_size=60))
def test_the_template_encodes_as_sentencepiece_does_and_loses_nothing(original, text):
    trained = [(original.id_to_piece(i), original.get_score(i)) for i in range(700)]
    ids = encode_document(build_tokenizer(trained), text)
    assert ids[-1] == EOS_ID
    if "<" not in text:
        assert ids[:-1].tolist() == original.encode(text)
    assert decode_window(build_tokenizer(trained), ids) == text.replace("▁", " ")


def test_a_long_document_is_encoded_in_parts_as_if_it_were_whole(trained, monkeypatch):
    tokenizer = build_tokenizer(trained)
    whole = encode_document(tokenizer, TEXT * 20)
    monkeypatch.setattr(module, "ENCODE_CHARACTERS", 97)
    assert encode_document(tokenizer, TEXT * 20).tolist() == whole.tolist()


def test_windows_cover_a_document_without_overlap():
    assert list(cut_windows(70, 32)) == [(0, 32), (32, 32), (64, 6)]
    assert list(cut_windows(32, 32)) == [(0, 32)]


def test_private_text_that_looks_like_a_special_token_stays_text(tokenizer):
    text = "the </s> <s> <unk><0x0A>"
    ids = encode_document(tokenizer, text)
    assert min(ids[:-1].tolist()) > 2
    assert decode_window(tokenizer, ids) == text


def test_the_saved_tokenizer_loads_with_auto_classes_and_agrees(trained, tmp_path):
    tokenizer = build_tokenizer(trained)
    save_tokenizer(tokenizer, 32, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "The cat sat – 猫\n  twice"
    assert loaded(text)["input_ids"] == encode_document(tokenizer, text)[:-1].tolist()
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (1, 2, 0)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # what transformers 4 knows, too


def test_a_piece_list_of_another_size_than_the_models_vocabulary_is_refused(pieces):
    with pytest.raises(PlanearlyError, match="expected 400, the model's vocabulary"):
        read_pieces(write_pieces(pieces), vocab_size=400)


def test_pieces_survive_their_file(pieces):
    assert read_pieces(write_pieces(pieces)) == pieces


def broken(change):
    entries = [list(pair) for pair in make_pieces()]
    change(entries)
    return json.dumps(entries).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "not a JSON list"),
        (b"[" * 100_000, "not a JSON list"),
        (b"{}", "259 or more"),
        (broken(lambda e: e.pop(3)), "piece 3 is not the reserved"),
        (broken(lambda e: e.append(["x" * 65, 0])), "1 to 64 characters"),
        (broken(lambda e: e.append(["", 0])), "1 to 64 characters"),
        (broken(lambda e: e.append(["zz"])), "not a .piece, score. pair"),
        (broken(lambda e: e.append(["zz", float("nan")])), "not a log probability"),
        (broken(lambda e: e.append(["zz", True])), "not a log probability"),
        (broken(lambda e: e.append(["zz", 0.5])), "a number from -1000000 to 0"),
        (broken(lambda e: e.append(["zz", -1000000.5])), "not a log probability"),
        (broken(lambda e: e.append(["zz", -(10**400)])), "not a log probability"),
        (broken(lambda e: e.append(["zz", float("-inf")])), "not a log probability"),
        (broken(lambda e: e.append(["▁the", 0])), "repeats"),
        (broken(lambda e: e.append(["a\ud800", 0])), "half a surrogate pair"),
        (broken(lambda e: e.append(["a\n", 0])), "holds a line end"),
        (broken(lambda e: e.append(["▁▁", 0])), "a space after"),
        (broken(lambda e: e.append(["a▁b", 0])), "a space after"),
    ],
)
def test_foreign_piece_lists_are_refused(content, message):
    with pytest.raises(PlanearlyError, match=message):
        read_pieces(content)


def test_too_little_text_for_the_vocabulary_says_so(tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_text("too little")
    with pytest.raises(DocumentsError, match="cannot learn 5000 pieces") as caught:
        train_tokenizer([CorpusFile(str(path), "tiny.txt", False)], 5000, 10**6)
    assert "vocab_size" in caught.value.hint


def test_learning_pieces_twice_gives_the_same(trained, topics_file):
    assert train_tokenizer(topics_file, 700, 10**9) == trained
    assert read_pieces(write_pieces(trained)) == trained
