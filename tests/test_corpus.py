import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from provider.corpus import list_corpus, read_documents, write_part
from provider.recipe import CorpusConfig
from shared.errors import DocumentsError
from shared.pieces import EOS_ID

CONFIG = CorpusConfig(description="tests")


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def gz_lines(*entries):
    return gzip.compress(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))


def read(path):
    rejected = [0]
    return list(read_documents(path, rejected)), rejected[0]


def test_c4_shards_are_read_and_lines_without_text_counted(tmp_path):
    shard = put(
        tmp_path, "c4-train.00000-of-00001.json.gz",
        gz_lines({"text": "one", "url": "u"}, {"text": ""}, {"url": "u"}, ["text"], {"text": "zwei é"}),
    )  # fmt: skip
    assert read(shard) == (["one", "zwei é"], 3)


def test_plain_text_markdown_and_parquet_are_read_as_they_stand(tmp_path):
    assert read(put(tmp_path, "a.txt", b"\xef\xbb\xbfline\r\nline")) == (["line\r\nline"], 0)
    assert read(put(tmp_path, "b.md", b"  \n")) == ([], 1)
    table = pa.table({"text": ["one", None, "two"], "id": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "c.parquet")
    assert read(tmp_path / "c.parquet") == (["one", "two"], 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.json.gz", gz_lines({"text": "one" * 1000})[:-20]),
        ("flipped.json.gz", gz_lines({"text": "one" * 1000})[:20] + b"\x00\xff" * 20),
        ("not.json.gz", b"plain"),
        ("latin.txt", "naïve".encode("latin-1")),
        ("not.parquet", b"PAR1 no"),
    ],
    ids=["cut", "flipped", "plain", "latin", "parquet"],
)
def test_damaged_files_are_one_clear_error_that_names_the_file(tmp_path, name, content):
    with pytest.raises(DocumentsError, match=name) as caught:
        read(put(tmp_path, name, content))
    assert "corpus.train" in caught.value.hint


def test_parquet_without_text_says_so(tmp_path):
    parquet.write_table(pa.table({"body": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(DocumentsError, match="without a `text` column"):
        read(tmp_path / "x.parquet")


def test_files_are_listed_by_name_and_heldout_patterns_win(tmp_path):
    for name in ("b/2.txt", "a.md", "c4-validation.00000.json.gz", "x.pdf"):
        put(tmp_path, name, b"text")
    config = CorpusConfig(description="", heldout=("c4-validation.*",))
    found = [(file.name, file.is_heldout) for file in list_corpus(tmp_path, config)]
    assert found == [("a.md", False), ("b/2.txt", False), ("c4-validation.00000.json.gz", True)]


def test_an_empty_or_missing_corpus_is_refused(tmp_path):
    with pytest.raises(DocumentsError, match="no such corpus folder"):
        list_corpus(tmp_path / "none", CONFIG)
    put(tmp_path, "x.pdf", b"text")
    with pytest.raises(DocumentsError, match=r"no file matches corpus.train") as caught:
        list_corpus(tmp_path, CONFIG)
    assert ".parquet" in caught.value.hint


def test_windows_cover_every_token_and_every_ninth_document_is_held_out(tmp_path, tokenizer):
    texts = ["the cat sat " * n for n in range(1, 20)]
    put(tmp_path, "a.jsonl", b"".join(json.dumps({"text": t}).encode() + b"\n" for t in texts))
    file = list_corpus(tmp_path, CONFIG)[0]
    counts = write_part(tmp_path, 0, file, tokenizer, 16, 9)
    tokens = np.load(tmp_path / "tokens-00000.npy")
    with np.load(tmp_path / "windows-00000.npz") as windows:
        starts, lengths, is_heldout = windows["starts"], windows["lengths"], windows["is_heldout"]
    assert counts == {"documents": 19, "rejected": 0, "tokens": len(tokens)}
    assert tokens.dtype == np.uint16
    assert (tokens == EOS_ID).sum() == 19
    assert starts.tolist() == np.concatenate([[0], np.cumsum(lengths)[:-1]]).tolist()
    assert lengths.sum() == len(tokens)
    assert lengths.max() <= 16
    ends = np.flatnonzero(tokens == EOS_ID)
    heldout_documents = {int(np.searchsorted(ends, start)) for start in starts[is_heldout]}
    assert heldout_documents == {0, 9, 18}
