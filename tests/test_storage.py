"""A corpus in an object store, and what tells whether a corpus has changed."""

import gzip
import json
import os
import random
import shutil

import pytest

from provider.corpus import identify, list_corpus, read_documents
from provider.recipe import CorpusConfig
from provider.storage import DIGESTS_FILE, find_files, open_file, upload
from shared.errors import DocumentsError, PlanearlyError
from tests.stores import BUCKET, put, s3_server, store

CONFIG = CorpusConfig(description="tests", heldout=("*-validation.*", "deep/**/v.txt"))
NAMES = ("b-train.json.gz", "a-validation.json.gz", "deep/er/v.txt", "deep/t.md", "deep/x.pdf", "z[1]*.txt")


@pytest.fixture(scope="module")
def wire():
    with s3_server() as wire:
        yield wire


@pytest.fixture
def folder(tmp_path):
    """A corpus whose gzip files are some hundred kilobytes that do not compress away."""
    rng = random.Random(0)
    for name in NAMES:
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"text": rng.randbytes(100).hex()}) for _ in range(2000)]
        content = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else name.encode())
    return tmp_path / "corpus"


def documents(files):
    return [list(read_documents(file.path, [0], file.etag)) for file in files]


def test_a_bucket_is_listed_and_read_as_a_folder_is(wire, folder):
    put(folder, f"{BUCKET}/same")
    here, there = list_corpus(folder, CONFIG), list_corpus(f"{BUCKET}/same/", CONFIG)
    assert [file.name for file in here] == sorted(set(NAMES) - {"deep/x.pdf"})
    assert [(f.name, f.is_heldout) for f in there] == [(f.name, f.is_heldout) for f in here]
    assert [file.is_heldout for file in here] == [True, False, True, False, False]
    assert there[0].path == f"{BUCKET}/same/a-validation.json.gz"
    assert documents(there) == documents(here)


def test_a_connection_cut_in_the_middle_of_an_object_loses_nothing(wire, folder):
    put(folder, f"{BUCKET}/cut")
    here, there = list_corpus(folder, CONFIG), list_corpus(f"{BUCKET}/cut", CONFIG)
    wire.cuts, wire.n_cut = 2, 0
    assert documents(there) == documents(here)
    assert wire.n_cut == 2


def test_a_connection_that_stays_cut_is_an_error_that_names_the_object(wire, folder):
    put(folder, f"{BUCKET}/gone")
    file = list_corpus(f"{BUCKET}/gone", CONFIG)[1]
    wire.cuts = 10**6
    with pytest.raises(PlanearlyError, match=r"s3://corpus/gone/b-train.json.gz: the store") as caught:
        list(read_documents(file.path, [0], file.etag))
    wire.cuts = 0
    assert "goes on" in caught.value.hint
    assert len(list(read_documents(file.path, [0], file.etag))) == 2000


def test_an_object_cut_short_in_the_store_is_damaged_and_not_shorter(wire, folder):
    content = (folder / NAMES[0]).read_bytes()
    store().pipe_file(f"{BUCKET}/short/x.json.gz", content[:-100])
    with pytest.raises(DocumentsError, match=r"x.json.gz: cannot be read \(EOFError\)"):
        list(read_documents(f"{BUCKET}/short/x.json.gz", [0]))
    store().pipe_file(f"{BUCKET}/short/x.json.gz", b"no gzip")
    with pytest.raises(DocumentsError, match=r"x.json.gz: cannot be read \(BadGzipFile\)"):
        list(read_documents(f"{BUCKET}/short/x.json.gz", [0]))


def test_an_object_replaced_after_the_listing_is_refused(wire, folder):
    put(folder, f"{BUCKET}/new")
    (path, etag) = find_files(f"{BUCKET}/new", ["deep/*"])["deep/t.md"]
    assert open_file(path, etag).read() == b"deep/t.md"
    store().pipe_file(path, b"deep/T.md")
    with pytest.raises(PlanearlyError, match="changed since it was listed"):
        open_file(path, etag)


def test_a_missing_bucket_a_foreign_protocol_and_an_empty_prefix_say_so(wire, tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(PlanearlyError, match="s3://nowhere/x"):
        upload(tmp_path / "x", "s3://nowhere")
    with pytest.raises(PlanearlyError, match="Protocol not known"):
        list_corpus("nofs://x", CONFIG)
    with pytest.raises(DocumentsError, match=r"no file matches corpus.train"):
        list_corpus(f"{BUCKET}/empty", CONFIG)


def test_an_upload_arrives_whole(wire, tmp_path):
    path = tmp_path / "tiny.st"
    path.write_bytes(os.urandom(300_000))
    assert upload(path, f"{BUCKET}/out/") == f"{BUCKET}/out/tiny.st"
    assert store().cat_file(f"{BUCKET}/out/tiny.st") == path.read_bytes()


def test_a_copied_corpus_is_the_same_corpus_and_a_changed_byte_makes_another(wire, folder, tmp_path):
    first = identify(list_corpus(folder, CONFIG), tmp_path)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert identify(list_corpus(tmp_path / "copy", CONFIG), tmp_path) == first
    put(folder, f"{BUCKET}/one")
    put(folder, f"{BUCKET}/two")
    one, two = (identify(list_corpus(f"{BUCKET}/{name}", CONFIG), tmp_path) for name in ("one", "two"))
    assert one == two
    path = tmp_path / "copy" / NAMES[3]
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + b"D")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # rsync -t, cp -p
    changed = identify(list_corpus(tmp_path / "copy", CONFIG), tmp_path)
    assert [new == old for new, old in zip(changed, first, strict=True)] == [True, True, True, False, True]


def test_an_unchanged_file_is_not_read_again(folder, tmp_path):
    files = list_corpus(folder, CONFIG)
    identify(files, tmp_path)
    known = json.loads((tmp_path / DIGESTS_FILE).read_text())
    place = str(folder / NAMES[0])
    known[place][1] = "remembered"
    (tmp_path / DIGESTS_FILE).write_text(json.dumps(known))
    assert ["b-train.json.gz", False, "remembered"] in identify(files, tmp_path)
    (tmp_path / DIGESTS_FILE).write_text("{")
    assert "remembered" not in str(identify(files, tmp_path))
