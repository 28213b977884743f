"""Bytes of one private file to text: encodings, gzip and HTML, strictly; no byte is guessed.

A file that breaks a rule raises Unreadable, whose text is the reason an owner reads in the report. No
reason quotes the file: at most a byte's value and place, or the name of an encoding.
"""

import codecs
import gzip
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import IO
from xml.parsers.expat import ExpatError

BLOCK_BYTES = 1 << 20
TO_UTF8 = "save it as UTF-8"
_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARED = re.compile(
    rb"""(?:<meta[^>]*?charset|<\?xml[^>]*?encoding)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE
)
_DECLARED_WITHIN_BYTES = 1024
"""How far into a page its charset may be declared (HTML standard, prescan of a byte stream)."""
_HTML_CODECS = (
    "utf-8",
    "iso8859-",
    "cp125",
    "cp874",
    "koi8-",
    "gb",
    "big5",
    "shift_jis",
    "euc_",
    "mac-",
)
_LATIN_1 = ("ascii", "iso8859-1")
"""What pages call Latin-1 is Windows-1252 (Encoding standard, labels)."""
_BLOCKS = (
    *("address", "article", "aside", "blockquote", "body", "caption", "details", "dialog", "div", "dl"),
    *("fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header"),
    *("hr", "main", "nav", "ol", "p", "pre", "section", "summary", "table", "ul"),
)
_LINES = ("br", "dd", "dt", "li", "option", "tr")
_UNSEEN = ("noscript", "script", "style", "svg", "template", "title")


DAMAGED = "damaged, or not what its name says"
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, ExpatError, struct.error, zipfile.BadZipFile, zlib.error),
)
"""What parsers raise for bytes that they did not expect, besides errors of their own: none promises which."""


class Unreadable(Exception):
    """A file, or the rest of it, is not read; the text is the reason."""


def text_encoding(head: bytes) -> tuple[str, int]:
    """Return a file's encoding by its byte order mark, and the mark's length; UTF-8 without one."""
    return next(((name, len(mark)) for mark, name in _MARKS if head.startswith(mark)), ("utf-8", 0))


def decode_blocks(file: IO[bytes], most_bytes: int) -> Iterator[str]:
    """Yield a text file's characters in blocks. Raises Unreadable at the first byte that is not text."""
    offset = 0
    decoder: codecs.IncrementalDecoder | None = None
    encoding = ""
    for block in read_blocks(file, most_bytes):
        if decoder is None:
            encoding, skip = text_encoding(block)
            decoder = codecs.getincrementaldecoder(encoding)()
            block, offset = block[skip:], skip
        if encoding == "utf-8":
            _refuse_nul(block)
        yield _decode(decoder, block, offset, encoding, False)
        offset += len(block)
    if decoder is not None:
        yield _decode(decoder, b"", offset, encoding, True)


def read_blocks(file: IO[bytes], most_bytes: int) -> Iterator[bytes]:
    """Yield a file's bytes. Raises Unreadable beyond most_bytes (a gzip bomb) and for damaged gzip."""
    total = 0
    while block := _unzip(lambda: file.read(BLOCK_BYTES)):
        total += len(block)
        if total > most_bytes:
            raise Unreadable(_too_large(most_bytes))
        yield block


def read_line(file: IO[bytes], longest_bytes: int, most_bytes: int) -> tuple[bytes | None, int]:
    """Return the next line and its size; a longer one is passed over and comes back as None.

    At the end of the file the line is empty. Raises Unreadable as `read_blocks` does.
    """
    line = _unzip(lambda: file.readline(longest_bytes + 1))
    size, last = len(line), line
    while size > longest_bytes and last and not last.endswith(b"\n"):
        last = _unzip(lambda: file.readline(BLOCK_BYTES))
        size += len(last)
        if size > most_bytes:
            break
    if size > most_bytes:
        raise Unreadable(_too_large(most_bytes))
    return (line if size - line.endswith(b"\n") <= longest_bytes else None), size


def _unzip(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise Unreadable("damaged gzip") from None


def _too_large(most_bytes: int) -> str:
    return f"larger than {most_bytes >> 20} MiB, the limit for it"


def _refuse_nul(block: bytes) -> None:
    if b"\0" in block:
        raise Unreadable("binary (holds NUL bytes)")


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, offset: int, encoding: str, final: bool) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-le").removesuffix("-be").upper()
        where = offset - pending + error.start
        found = f"byte 0x{error.object[error.start]:02x} at offset {where}"
        raise Unreadable(f"not {name} ({found}); {TO_UTF8}") from None


def decode_html(content: bytes) -> str:
    """Return a page's characters by byte order mark, else as it declares, else as UTF-8; all strict.

    Raises Unreadable for NUL bytes, an encoding that is not known, and bytes that break it.
    """
    _, skip = text_encoding(content)
    declared = _DECLARED.search(content, 0, _DECLARED_WITHIN_BYTES)
    return decode_as(content, declared[1].decode("ascii", "replace") if declared and not skip else "utf-8")


def decode_as(content: bytes, label: str) -> str:
    """Return characters by byte order mark, else by the label of a page or message; strict.

    Raises Unreadable for NUL bytes, an encoding that is not known, and bytes that break it.
    """
    encoding, skip = text_encoding(content)
    if not skip:
        try:
            encoding = codecs.lookup(label).name
        except (LookupError, ValueError):
            encoding = ""
        if encoding in _LATIN_1:
            encoding = "cp1252"
        elif encoding.startswith("utf-16"):
            encoding = "utf-8"  # as browsers do: the declaration could be read, so it is not UTF-16
        if not encoding.startswith(_HTML_CODECS):
            raise Unreadable("declares an encoding that is not known; save it as UTF-8")
    if not encoding.startswith("utf-16") and not encoding.startswith("utf-32"):
        _refuse_nul(content)
    decoder = codecs.getincrementaldecoder(encoding)()
    return _decode(decoder, content[skip:], skip, encoding, True)


class _Visible(HTMLParser):
    """Collects visible text: block tags become newlines, white space is folded except in <pre>."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.unseen: str | None = None
        self.depth = 0
        self.pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.unseen is not None:
            self.depth += tag == self.unseen
        elif tag in _UNSEEN:
            self.unseen, self.depth = tag, 1
        elif tag in _BLOCKS or tag in _LINES:
            self.pieces.append("\n")
            self.pre += tag == "pre"
        elif tag in ("td", "th"):
            self.handle_data(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _UNSEEN:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self.unseen is not None:
            self.depth -= tag == self.unseen
            if not self.depth:
                self.unseen = None
        elif tag in _BLOCKS:
            self.pieces.append("\n")
            self.pre = max(0, self.pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self.unseen is not None:
            return
        if not self.pre:
            data = re.sub(r"[ \t\n\r\f]+", " ", data)
            if not self.pieces or self.pieces[-1][-1] in " \n":
                data = data.lstrip(" ")
        if data:
            self.pieces.append(data)


def visible_text(page: str) -> str:
    """Return what a reader of the page sees, one block per paragraph; no script, style or title.

    Not looked at: style sheets and `hidden` attributes, so text hidden by these is kept.
    """
    parser = _Visible()
    parser.feed(page)
    parser.close()
    text = re.sub(r" +\n", "\n", "".join(parser.pieces))
    return re.sub(r"\n{3,}", "\n\n", text).strip()
