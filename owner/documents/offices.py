"""PDF, Word, PowerPoint and EPUB files to text, through libraries that are imported at the first such file.

No picture, macro, link or script is looked at, and nothing that a file points to outside itself is opened.
Spreadsheets are tables (owner/documents/tables.py).
"""

import re
from collections.abc import Iterator
from posixpath import dirname, join, normpath
from typing import IO, Any
from xml.etree import ElementTree

from owner.documents.archives import Budget, open_zip, read_entry
from owner.documents.decoding import DAMAGED, Unreadable, decode_html, visible_text
from owner.documents.texts import Document, not_blank, parts

_OLE = bytes.fromhex("d0cf11e0a1b11ae1")
"""What Office's old formats begin with, and every encrypted file of the new ones ([MS-CFB] 2.2)."""
_BACK_TO_TEXT = re.compile(r'<a href="#[^"]*note-ref-[^"]*">[^<]*</a>')
_QUOTED = re.compile(rb"%([0-9A-Fa-f]{2})")


def read_pdf(opened: IO[bytes], name: str) -> Iterator[Document]:
    """Yield a PDF's text, page after page."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(opened)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("encrypted with a password")
        texts = [page.extract_text().strip() + "\n\n" for page in reader.pages]
    except PyPdfError:
        raise Unreadable(DAMAGED) from None
    if not "".join(texts).strip():
        raise Unreadable("no text in it; it may be scanned pages")
    yield from not_blank(parts(texts), name)


def read_word(opened: IO[bytes], name: str, budget: Budget) -> Iterator[Document]:
    """Yield a .docx's text with its tables and notes, without headers, comments and what was struck out."""
    from mammoth import convert_to_html
    from mammoth.images import img_element

    check_package(opened, budget, "word/")
    page = convert_to_html(opened, convert_image=img_element(lambda _: {})).value
    yield from not_blank(parts([visible_text(_BACK_TO_TEXT.sub("", page))]), name)


def read_slides(opened: IO[bytes], name: str, budget: Budget) -> Iterator[Document]:
    """Yield a .pptx's text, slide after slide, with tables and speaker notes."""
    from pptx import Presentation
    from pptx.exc import PythonPptxError

    check_package(opened, budget, "ppt/")
    texts = []
    try:
        slides = Presentation(opened).slides
    except PythonPptxError:
        raise Unreadable(DAMAGED) from None
    for slide in slides:
        lines = list(_shape_texts(slide.shapes))
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            lines.append(slide.notes_slide.notes_text_frame.text)
        texts.append("\n".join(filter(None, map(str.strip, lines))) + "\n\n")
    yield from not_blank(parts(texts), name)


def _shape_texts(shapes: Any) -> Iterator[str]:
    for shape in shapes:
        if shape.has_text_frame:
            yield shape.text_frame.text.replace("\v", "\n")
        elif getattr(shape, "has_table", False):
            for row in shape.table.rows:
                yield " ".join(cell.text for cell in row.cells)
        elif hasattr(shape, "shapes"):  # a group
            yield from _shape_texts(shape.shapes)


def check_package(opened: IO[bytes], budget: Budget, folder: str) -> None:
    """Refuse what no library should see: another file by that name, a password, a bomb.

    Office files may declare no XML entities (ECMA-376-2, 8.1.4), which is what an XML bomb is made of.
    Raises Unreadable.
    """
    if opened.read(len(_OLE)) == _OLE:
        raise Unreadable("encrypted with a password, or an Office file from before 2007; save it anew")
    opened.seek(0)
    with open_zip(opened) as archive:
        if not any(entry.filename.startswith(folder) for entry in archive.infolist()):
            raise Unreadable("not what its name says")
        for entry in archive.infolist():
            if entry.filename.lower().endswith((".xml", ".rels")):
                _refuse_entities(read_entry(archive, entry, budget))
    opened.seek(0)


def _refuse_entities(content: bytes) -> None:
    plain = content.replace(b"\0", b"")  # as UTF-16 it would be the same bomb
    if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
        raise Unreadable("declares XML entities, as bombs do")


def read_book(opened: IO[bytes], name: str, budget: Budget) -> Iterator[Document]:
    """Yield an .epub's pages in the order of reading (EPUB 3.3, package document, spine)."""
    with open_zip(opened) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}

        def read(path: str) -> bytes:
            if path not in entries:
                raise Unreadable("not an EPUB: no " + ("package" if path.endswith(".opf") else "container"))
            return read_entry(archive, entries[path], budget)

        root = _tree(read("META-INF/container.xml")).find(".//{*}rootfile")
        package = root.get("full-path", "") if root is not None else ""
        tree = _tree(read(package))
        items = {item.get("id"): item.get("href", "") for item in tree.iterfind(".//{*}manifest/{*}item")}
        pages = [items.get(page.get("idref"), "") for page in tree.iterfind(".//{*}spine/{*}itemref")]
        paths = [normpath(join(dirname(package), _unquoted(page))) for page in pages]
        locked = read("META-INF/encryption.xml") if "META-INF/encryption.xml" in entries else b""
        if any(page.encode() in locked for page in pages if page):
            raise Unreadable("encrypted by its publisher")
        texts = [visible_text(decode_html(read(path))) + "\n\n" for path in paths if path in entries]
    yield from not_blank(parts(texts), name)


def _unquoted(link: str) -> str:
    return _QUOTED.sub(lambda code: bytes([int(code[1], 16)]), link.encode()).decode("utf-8", "replace")


def _tree(content: bytes) -> ElementTree.Element:
    _refuse_entities(content)
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError):
        raise Unreadable("damaged: not XML where it has to be") from None
