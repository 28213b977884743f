"""Formats: what is text in each, and which reason a hostile or broken file is skipped with."""

import base64
import errno
import io
import json
import sys
import tarfile

import pyarrow
import pyarrow.parquet
import pytest

from owner.documents import archives
from owner.documents.archives import Budget
from owner.documents.converting import Within, convert
from owner.documents.duplicates import Duplicates, read_distinct
from owner.documents.reading import Document, Skipped
from tests.office import (
    LAUGHS,
    docx,
    epub,
    good_files,
    message,
    nested,
    packed,
    pdf,
    prose,
    slides,
    tarred,
    workbook,
)
from tests.test_documents import CANARY, put, read_all


def read(name, content, most_bytes=64 << 20):
    """Return what the child would find in a file: documents, and reasons by path."""
    found = list(convert(io.BytesIO(content), name, Budget(most_bytes)))
    documents = [item for item in found if isinstance(item, Document)]
    return documents, {item.path: item.reason for item in found if isinstance(item, Skipped)}


def text_in(name, content):
    documents, skipped = read(name, content)
    assert skipped == {}
    assert [item.path for item in documents] == [name]
    return documents[0].text


def test_a_table_without_a_text_column_is_one_document_of_labelled_lines():
    content = b'name;price;;\n"ink, ""black""";3.50;;loose\n\n;2;;\n'
    assert text_in("a.csv", content) == 'name: ink, "black"\nprice: 3.50\nloose\n\nprice: 2\n\n'
    assert text_in("a.tsv", "größe\tn\nS\t1\n".encode("utf-16")) == "größe: S\nn: 1\n\n"
    assert text_in("a.csv", b"a,b\n") == "a\nb"


def test_a_row_with_a_text_is_a_document_and_blank_ones_are_counted():
    documents, skipped = read("a.csv", b'id, TEXT \n1,"one\nline"\n2,\n3\n4,four\n')
    assert [(item.index, item.text) for item in documents] == [(1, "one\nline"), (4, "four")]
    assert skipped == {"a.csv": "no `text` string"}
    documents, _ = read("a.parquet", parquet(text=["one", None, "three"], id=[1, 2, 3]))
    assert [(item.index, item.text) for item in documents] == [(1, "one"), (3, "three")]


def parquet(**columns):
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def test_a_parquet_file_without_texts_is_one_document():
    assert text_in("a.parquet", parquet(id=[1, 2], what=["a", None])) == "id: 1\nwhat: a\n\nid: 2\n\n"


def test_json_is_objects_strings_or_lines():
    assert text_in("a.json", b'{"text": "one"}') == "one"
    documents, skipped = read("a.json", json.dumps([{"text": "a"}, "b", {"x": 1}, 7]).encode())
    assert [(item.index, item.text) for item in documents] == [(1, "a"), (2, "b")]
    assert skipped == {"a.json": "no `text` string"}
    documents, _ = read("a.json", b'{"text": "a"}\n{"text": "b"}\n')
    assert [(item.index, item.text) for item in documents] == [(1, "a"), (2, "b")]
    assert read("a.json", b"[" * 100_000)[1] == {"a.json": "not JSON"}


def test_a_workbook_gives_its_visible_sheets_as_typed():
    content = workbook([["item", "amount"], ["ink", 3.0], ["paper", 2.25], [None, True]])
    assert text_in("a.xlsx", content) == (
        "Stock\n\nitem: ink\namount: 3\n\nitem: paper\namount: 2.25\n\namount: True\n\n"
    )


def test_a_word_file_gives_paragraphs_and_tables_without_page_headers():
    assert text_in("a.docx", docx("One & two\nthree")) == (
        "A heading\n\nOne & two\n\nthree\n\ncell 00\n\ncell 01\n\ncell 10\n\ncell 11"
    )


def test_slides_and_pages_come_in_their_order():
    assert text_in("a.pptx", slides(["one", "two"])) == (
        "Slide 1\none\nNotes to slide 1\n\nSlide 2\ntwo\nNotes to slide 2\n\n"
    )
    assert text_in("a.epub", epub(["one", "two"])) == "Chapter 0\n\none\n\nChapter 1\n\ntwo\n\n"
    assert text_in("a.pdf", pdf("One line\nanother")).split("\n") == ["One line", "another", "", ""]


def test_a_message_is_its_headers_and_its_text_and_its_files_follow():
    mail = message("Über alles", "Grüße,\nx=y\n", {"a.txt": b"attached", "b.png": b"x"})
    documents, skipped = read("m.eml", mail.as_bytes())
    assert [(item.path, item.index) for item in documents] == [("m.eml", 0), ("m.eml/a.txt", 0)]
    assert documents[0].text == (
        "From: Jürgen <j@example.org>\nTo: all@example.org\nSubject: Über alles\n"
        "Date: Mon, 05 Jan 2026 10:00:00 +0000\n\nGrüße,\nx=y\n"
    )
    assert documents[1].text == "attached"
    assert skipped == {"m.eml": "attached file: unsupported extension .png"}


def test_a_message_that_is_a_page_a_file_or_another_message_is_read():
    page = b"Subject: p\nContent-Type: text/html; charset=latin1\n\n<p>caf\xe9<script>x</script>"
    assert text_in("m.eml", page) == "Subject: p\n\ncafé"
    word = b"Subject: f\nContent-Type: application/x-word; name=a.docx\nContent-Transfer-Encoding: base64\n\n"
    documents, _ = read("m.eml", word + base64.b64encode(docx("inside")))
    assert [item.path for item in documents] == ["m.eml", "m.eml/a.docx"]
    forward = message("Outer", "see below")
    forward.add_attachment(message("Inner", "the inner text"))
    documents, _ = read("m.eml", forward.as_bytes())
    assert [item.path for item in documents] == ["m.eml", "m.eml/message.eml"]
    assert "the inner text" in documents[1].text


def test_a_mailbox_is_cut_at_its_from_lines_and_a_faulty_message_costs_no_other():
    good = b"From a@b Mon Jan  5 10:00:00 2026\nSubject: s%d\n\nFrom the middle\n>From here\n\n"
    faulty = b"From a@b 10:00\nSubject: s\nContent-Type: text/plain; charset=klingon\n\nx\n\n"
    documents, skipped = read("a.mbox", good % 1 + faulty + good % 3)
    assert [(item.path, item.index) for item in documents] == [("a.mbox", 1), ("a.mbox", 3)]
    assert documents[1].text == "Subject: s3\n\nFrom the middle\nFrom here\n\n"
    assert skipped == {"a.mbox": "message: declares an encoding that is not known; save it as UTF-8"}
    assert read("a.mbox", b"no mail")[1] == {"a.mbox": "not a mailbox: does not begin with a `From ` line"}


def test_archives_in_archives_are_read_down_to_a_depth():
    documents, _ = read("a.zip", nested(4))
    assert [item.path for item in documents] == ["a.zip" + "/in.zip" * 4 + "/bottom.txt"]
    documents, skipped = read("a.zip", nested(5))
    assert documents == []
    assert skipped == {"a.zip" + "/in.zip" * 5 + "/bottom.txt": "nested too deep"}


def test_what_is_hidden_or_a_link_or_outside_of_an_archive_is_listed():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in (
            ("l.txt", tarfile.SYMTYPE),
            ("h.txt", tarfile.LNKTYPE),
            ("p.txt", tarfile.FIFOTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/hostname"
            archive.addfile(entry)
    assert read("a.tar", out.getvalue())[1] == {
        "a.tar/h.txt": "symbolic link",
        "a.tar/l.txt": "symbolic link",
        "a.tar/p.txt": "not a regular file",
    }
    names = (
        "..\\x.txt",
        "C:/x.txt",
        "/x.txt",
        "a/../../x.txt",
        ".git/x.txt",
        "__MACOSX/x.txt",
        "a\x1b\n.txt",
    )
    documents, skipped = read("a.zip", packed(dict.fromkeys(names, b"x")))
    assert [item.path for item in documents] == ["a.zip/a\\x1b\\n.txt"]
    assert sorted(skipped.values()) == ["hidden file"] * 2 + ["its name leads out of the archive"] * 4


def test_bombs_are_stopped_by_what_they_unpack_to_and_not_by_what_they_say():
    bomb = "unpacks to far more than its size: a bomb"
    block = bytes(3 << 20)
    assert read("a.zip", packed({"a.txt": block, "b.txt": block}), 5 << 20)[1] == {"a.zip": bomb}
    lying = bytearray(packed({"in.zip": packed({"a.txt": b"a" * (3 << 20)}), "b.txt": b"b"}))
    assert read("a.zip", bytes(lying), 2 << 20)[1] == {"a.zip/in.zip": bomb}
    documents, skipped = read("a.tar", tarred({"a.txt": b"a" * (2 << 20), "b.txt": block}), 4 << 20)
    assert [item.path for item in documents] == ["a.tar/a.txt"]
    assert skipped == {"a.tar": f"{bomb}; what was read until then is used"}


def test_no_more_files_than_the_limit_are_listed(monkeypatch):
    monkeypatch.setattr(archives, "FILES", 5)
    documents, skipped = read("a.zip", packed({f"{n}.txt": b"x" for n in range(4)} | {"x.png": b"x"}))
    assert len(documents) == 4
    documents, skipped = read("a.zip", packed({f"{n}.txt": b"x" for n in range(9)}))
    assert len(documents) == 5
    assert "files" in skipped["a.zip"]


def test_a_damaged_file_in_an_archive_costs_no_other():
    content = bytearray(packed({"a.txt": prose(0).encode(), "b.txt": b"b"}))
    content[60] ^= 0x55
    documents, skipped = read("a.zip", bytes(content))
    assert [item.path for item in documents] == ["a.zip/b.txt"]
    assert skipped == {"a.zip/a.txt": "damaged zip"}


@pytest.mark.parametrize("suffix", ["pdf", "docx", "pptx", "xlsx", "epub", "parquet", "eml", "mbox", "tar"])
@pytest.mark.parametrize("content", [b"", CANARY.encode() * 20, b"PK\3\4" + bytes(99), bytes(2000)])
def test_no_format_takes_what_it_is_not_nor_quotes_it(suffix, content):
    documents, skipped = read(f"a.{suffix}", content)
    assert documents == []
    assert CANARY not in repr(skipped)


def test_every_format_survives_flipped_bytes():
    good = {"a.pdf": pdf(prose(1)), "a.docx": docx("x"), "a.xlsx": workbook([["a"], ["b"]])}
    good |= {"a.eml": message("s", "t", {"a.docx": docx("x")}).as_bytes(), "a.epub": epub(["x"])}
    good |= {"a.parquet": parquet(text=["one"]), "a.tar": tarred({"a.csv": b"a,b\n1,2\n"})}
    for name, content in good.items():
        for at in range(5, len(content), max(1, len(content) // 12)):
            damaged = bytearray(content)
            damaged[at] ^= 0xFF
            read(name, bytes(damaged))


class Faulty(io.BytesIO):
    """A file on a disk that fails after some bytes."""

    def __init__(self, content, n_good):
        super().__init__(content)
        self.n_good = n_good

    def _fail(self):
        if self.tell() > self.n_good:
            raise OSError(errno.EIO, "fault")

    def read(self, *size):
        found = super().read(*size)
        self._fail()
        return found

    def read1(self, *size):
        return self.read(*size)

    def readinto(self, buffer):
        n = super().readinto(buffer)
        self._fail()
        return n

    def readline(self, *size):
        found = super().readline(*size)
        self._fail()
        return found


def test_a_fault_of_the_disk_is_in_no_format_taken_for_a_damaged_file(tmp_path):
    for name, content in good_files(tmp_path).items():
        for n_good in (0, len(content) // 2, len(content) - 1):
            with pytest.raises(OSError) as fault:
                list(convert(Faulty(content, n_good), name, Budget(64 << 20)))
            assert fault.value.errno == errno.EIO, name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_xml_bomb_is_refused_in_any_encoding(encoding):
    package = f'<?xml version="1.0" encoding="{encoding}"?>{LAUGHS}]><package>&j;</package>'
    bomb = "declares XML entities, as bombs do"
    book = packed({"META-INF/container.xml": package.encode(encoding)})
    assert read("a.epub", book)[1] == {"a.epub": bomb}
    for name, inner in (("a.docx", "word/document.xml"), ("a.pptx", "ppt/x.xml"), ("a.xlsx", "xl/x.rels")):
        assert read(name, packed({inner: package.encode(encoding)}))[1] == {name: bomb}


def test_files_within_are_numbered_so_that_one_can_be_left_out():
    content = packed({"a.txt": b"a", "in.zip": packed({"b.txt": b"b"}), "c.txt": b"c"})
    found = list(convert(io.BytesIO(content), "z.zip", Budget(1 << 20)))
    assert [item.n for item in found if isinstance(item, Within)] == [1, 0, 2, 3, 2, 0, 4, 0]
    found = list(convert(io.BytesIO(content), "z.zip", Budget(1 << 20, frozenset([2]))))
    assert [item.text for item in found if isinstance(item, Document)] == ["a", "c"]


def test_copies_are_found_across_formats_archives_and_messages(tmp_path, tokenizer):
    text = "".join(f"the cat number {'ab'[i % 2] * i} sat and the dog ran. " for i in range(20))
    mail = message("same", text)
    boxed = b"".join(b"From a@b 10:00\n" + mail.as_bytes() + b"\n\n" for _ in range(3))
    files = {
        "a.txt": text,
        "b.zip": packed({"in/a.txt": text.encode(), "b.tar": tarred({"c.md": text.encode()})}),
    }
    for name, content in (files | {"c.mbox": boxed}).items():
        put(tmp_path, name, content)
    private, duplicates = read_distinct(tmp_path, [], tokenizer, 32)
    assert duplicates == Duplicates(exact=4, near=0)
    assert private.n_documents == 2
    put(tmp_path, "d.docx", docx(text + "of"))
    put(tmp_path, "e.zip", packed({"a.txt": (text + "sat of").encode()}))
    assert read_distinct(tmp_path, [], tokenizer, 32)[1].near >= 1


def test_without_the_extra_a_file_is_skipped_with_the_hint(monkeypatch):
    for library in ("pypdf", "mammoth", "pptx", "python_calamine", "pyarrow"):
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.setitem(sys.modules, f"{library}.parquet", None)
    files = {"a.pdf": b"x", "a.docx": docx("x"), "a.pptx": slides(["x"]), "a.xlsx": workbook([["x"]])}
    for name, content in (files | {"a.parquet": b"x"}).items():
        documents, skipped = read(name, content)
        assert documents == []
        assert skipped == {name: "needs the extra documents, whose packages `owner doctor` lists"}


def test_text_with_half_a_character_can_be_sent(tmp_path):
    documents, skipped = read_all(tmp_path, {"a.json": b'["a\\ud800b"]'})
    assert [item.text for item in documents] == ["a\ufffdb"]
    assert skipped == []
