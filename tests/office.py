"""A folder as an office has it: real files of every format that is read, and some broken on purpose.

`python -m tests.office folder/` writes one to try the owner's commands on. The libraries that write the
files are not those that read them, where there are two.
"""

import bz2
import csv
import email.message
import gzip
import io
import json
import lzma
import mailbox
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

import openpyxl
import pptx
import pyarrow
import pyarrow.parquet
from docx import Document as Word
from fpdf import FPDF

DAMAGED = "damaged, or not what its name says"
LAUGHS = '<!DOCTYPE w [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


def prose(n: int, n_characters: int = 1500) -> str:
    """Return the n-th text: part of a page of Python's reference, in Latin-1, without blank lines."""
    text = topics[sorted(topics)[40 + n]][:n_characters]
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def pdf(text: str, password: str = "") -> bytes:
    """Return a PDF of one text, encrypted if there is a password; without text it has an empty page."""
    page = FPDF()
    page.set_creation_date(page.creation_date.replace(year=2026, month=1, day=1))
    page.set_font("Helvetica", size=10)
    page.add_page()
    if password:
        page.set_encryption(owner_password=password, user_password=password)
    for line in text.splitlines():
        page.multi_cell(0, 5, line.encode("latin-1", "replace").decode("latin-1"), new_x="LMARGIN")
    return bytes(page.output())


def docx(text: str) -> bytes:
    """Return a Word file with a heading, the text's lines as paragraphs, and a table."""
    word = Word()
    word.add_heading("A heading", 1)
    for line in text.splitlines():
        word.add_paragraph(line)
    table = word.add_table(2, 2)
    for row in range(2):
        for column in range(2):
            table.cell(row, column).text = f"cell {row}{column}"
    word.sections[0].header.paragraphs[0].text = "page header"
    return _saved(word)


def slides(texts: Iterable[str]) -> bytes:
    """Return a presentation with a slide and speaker notes for each text."""
    show = pptx.Presentation()
    for number, text in enumerate(texts, 1):
        slide = show.slides.add_slide(show.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number}"
        slide.placeholders[1].text = text
        slide.notes_slide.notes_text_frame.text = f"Notes to slide {number}"
    return _saved(show)


def workbook(rows: Iterable[list[object]]) -> bytes:
    """Return a workbook of one visible sheet and a hidden one."""
    book = openpyxl.Workbook()
    book.active.title = "Stock"
    for row in rows:
        book.active.append(row)
    hidden = book.create_sheet("Hidden")
    hidden.append(["a hidden cell"])
    hidden.sheet_state = "hidden"
    return _saved(book)


def _saved(office: object) -> bytes:
    out = io.BytesIO()
    office.save(out)
    return out.getvalue()


def message(subject: str, text: str, files: dict[str, bytes] | None = None) -> email.message.EmailMessage:
    """Return a message with the text in two forms, and files attached."""
    mail = email.message.EmailMessage()
    mail["From"] = "Jürgen <j@example.org>"
    mail["To"] = "all@example.org"
    mail["Subject"] = subject
    mail["Date"] = "Mon, 05 Jan 2026 10:00:00 +0000"
    mail.set_content(text, cte="quoted-printable")
    mail.add_alternative(f"<p>{text}</p>", subtype="html")
    for name, content in (files or {}).items():
        mail.add_attachment(content, "application", "octet-stream", filename=name)
    return mail


def epub(pages: list[str]) -> bytes:
    """Return an EPUB; its pages lie in the archive in another order than in the book."""
    container = '<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"'
    container += ' version="1.0"><rootfiles><rootfile full-path="in/book.opf"/></rootfiles></container>'
    items = "".join(f'<item id="p{n}" href="page%20{n}.xhtml"/>' for n in range(len(pages)))
    spine = "".join(f'<itemref idref="p{n}"/>' for n in range(len(pages)))
    package = f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest>'
    package += f"<spine>{spine}</spine></package>"
    files = {"mimetype": b"application/epub+zip", "META-INF/container.xml": container.encode()}
    files |= {
        f"in/page {n}.xhtml": f"<html><body><h1>Chapter {n}</h1><p>{page}</p></body></html>".encode()
        for n, page in reversed(list(enumerate(pages)))
    }
    return packed(files | {"in/book.opf": package.encode()})


def packed(files: dict[str, bytes]) -> bytes:
    """Return a zip of the files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    """Return a tar of the files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def replaced(package: bytes, name: str, change: bytes) -> bytes:
    """Return a zip with bytes put before one of its files."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    return packed(files | {name: change + files[name]})


def locked(archive: bytes) -> bytes:
    """Return a zip whose files say that they are encrypted (bit 0 of the flags, APPNOTE 4.4.4)."""
    content = bytearray(archive)
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.find(mark)
        while start >= 0:
            content[start + at] |= 1
            start = content.find(mark, start + 4)
    return bytes(content)


def nested(depth: int) -> bytes:
    """Return a zip in a zip in a zip, with a text at the bottom."""
    content = packed({"bottom.txt": b"the bottom"})
    for _ in range(depth):
        content = packed({"in.zip": content})
    return content


def good_files(folder: Path) -> dict[str, bytes]:
    """Return files that are read, by their names."""
    rows = io.StringIO()
    csv.writer(rows).writerows([["item", "price"], ["ink, black", "3.50"], ['6" nails', "1"]])
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "text": [prose(7), prose(8)]}), table)
    box = mailbox.mbox(folder / "box")
    for number in range(3):
        files = {"plan.docx": docx(prose(14)), "photo.png": b"\x89PNG"} if number == 1 else {}
        box.add(message(f"Message {number}", f"From here on\n{prose(11 + number)}\n", files))
    box.close()
    mail_box = (folder / "box").read_bytes()
    (folder / "box").unlink()
    return {
        "letter.txt": prose(0).encode(),
        "notes.md": prose(1).encode("utf-16"),
        "page.html": f"<html><body><p>{prose(2)}</p></body></html>".encode(),
        "lines.jsonl.gz": gzip.compress(json.dumps({"text": prose(3)}).encode(), mtime=0),
        "entries.json": json.dumps([{"text": prose(4)}, prose(5)]).encode(),
        "stock.csv": rows.getvalue().encode(),
        "rows.tsv": f"id\tText\n1\t{prose(6).replace(chr(10), ' ')}\n".encode(),
        "rows.parquet": table.getvalue(),
        "report.pdf": pdf(prose(9)),
        "contract.DOCX": docx(prose(10)),
        "slides.pptx": slides(["The first", "The second"]),
        "stock.xlsx": workbook([["item", "amount"], ["ink", 3], ["paper", 2.5]]),
        "message.eml": message("Prüfung", prose(15), {"plan.pdf": pdf(prose(16))}).as_bytes(),
        "mail.mbox": mail_box,
        "book.epub": epub([prose(17), prose(18)]),
        "papers.zip": packed(
            {
                "copy.txt": prose(0).encode(),
                "in/a.docx": docx(prose(19)),
                "b.tgz": gzip.compress(tarred({"c.txt": b"c"})),
            }
        ),
        "papers.tar": tarred({"d.txt": prose(20).encode()}),
        "papers.tar.gz": gzip.compress(tarred({"e.csv": b"text\nrow one\n"}), mtime=0),
        "papers.tar.bz2": bz2.compress(tarred({"f.md": prose(21).encode()})),
        "papers.tar.xz": lzma.compress(tarred({"g.eml": message("Packed", prose(22)).as_bytes()})),
    }


def bad_files() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Return files that are not read, or not whole, by their names: content, and reasons by path."""
    word, old = docx("x"), bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504)
    escape = packed({"../../out.txt": b"x", "/etc/out.txt": b"x", "ok.txt": prose(23).encode()})
    bomb = packed({f"{n}.txt": bytes(40 << 20).replace(b"\0", b"a") for n in range(3)})
    unknown = b"From: a@example.org\nContent-Type: text/plain; charset=klingon\n\nx\n"
    alone = {
        "bomb.docx": (
            replaced(word, "word/document.xml", LAUGHS.encode() + b"]>"),
            "declares XML entities, as bombs do",
        ),
        "cut.docx": (word[: len(word) // 2], "damaged zip"),
        "cut.pdf": (pdf("x")[:400], DAMAGED),
        "cut.zip": (packed({"a.txt": b"x" * 500})[:-30], "damaged zip"),
        "cut.parquet": (b"PAR1" + bytes(40), DAMAGED),
        "empty.pdf": (b"", "empty file"),
        "locked.docx": (old, "encrypted with a password, or an Office file from before 2007; save it anew"),
        "locked.pdf": (pdf("x", password="secret"), "encrypted with a password"),
        "macros.xlsm": (b"x", "unsupported extension .xlsm; save it as .xlsx"),
        "old.doc": (old, "unsupported extension .doc; save it as .docx"),
        "scanned.pdf": (pdf(""), "no text in it; it may be scanned pages"),
        "unknown.eml": (unknown, "declares an encoding that is not known; save it as UTF-8"),
        "wrong.pdf": (prose(0).encode(), DAMAGED),
        "wrong.xlsx": (word, "not what its name says"),
    }
    return {name: (content, {name: reason}) for name, (content, reason) in alone.items()} | {
        "bomb.zip": (
            bomb,
            {"bomb.zip": "unpacks to far more than its size: a bomb"},
        ),
        "cut.tar.gz": (
            gzip.compress(tarred({"a.txt": prose(24).encode(), "b.txt": b"b" * 90_000}), mtime=0)[:-80],
            {"cut.tar.gz": "damaged archive; what was read until then is used"},
        ),
        "deep.zip": (nested(7), {"deep.zip" + "/in.zip" * 6: "nested too deep"}),
        "escape.zip": (
            escape,
            dict.fromkeys(
                ("escape.zip/../../out.txt", "escape.zip//etc/out.txt"), "its name leads out of the archive"
            ),
        ),
        "locked.zip": (locked(packed({"a.txt": b"x"})), {"locked.zip/a.txt": "encrypted with a password"}),
    }


def write_folder(folder: Path) -> dict[str, str]:
    """Write all files into a new folder; return the reason for everything that is not read, by path."""
    folder.mkdir()
    skips = {"mail.mbox": "attached file: unsupported extension .png"}
    for name, content in good_files(folder).items():
        (folder / name).write_bytes(content)
    for name, (content, reasons) in bad_files().items():
        (folder / name).write_bytes(content)
        skips |= reasons
    return skips


if __name__ == "__main__":
    for path, reason in write_folder(Path(sys.argv[1])).items():
        print(f"{path}: {reason}")
