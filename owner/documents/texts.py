"""Texts, web pages and JSON Lines to documents: what the standard library reads, and the parent itself.

Plain text is UTF-8, or UTF-16/32 with a byte order mark; anything else is skipped, never guessed. Text is
handed on as it stands: newlines, case and Unicode form are not touched. Nothing here quotes a document,
only its name and line number.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

from owner.documents.decoding import (
    TO_UTF8,
    Unreadable,
    decode_blocks,
    decode_html,
    read_blocks,
    read_line,
    text_encoding,
    visible_text,
)
from owner.documents.walking import Skipped

PART_CHARACTERS = 64 << 20
"""A longer text file becomes several documents, cut after a paragraph, else a line, else a space."""
LINE_BYTES = 64 << 20
"""A longer .jsonl line is skipped, without being held in memory."""
PAGE_BYTES = 64 << 20
"""A larger HTML page or JSON file is skipped."""
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """One private text. `path` is relative, with slashes, through archives and messages too; `index`
    counts the parts of a long text from 0, and lines, rows, entries and messages from 1.
    """

    path: str
    index: int
    text: str


def read_plain(opened: IO[bytes], name: str, most_bytes: int, is_small: bool) -> Iterator[Document]:
    """Yield a text file's parts; a fault near the end is known before the first is handed out."""
    if is_small:
        yield from not_blank(list(parts(decode_blocks(opened, most_bytes))), name)
        return
    for _ in decode_blocks(opened, most_bytes):
        pass
    opened.seek(0)
    yield from not_blank(parts(decode_blocks(opened, most_bytes)), name)


def read_page(opened: IO[bytes], name: str) -> Iterator[Document]:
    """Yield a web page's visible text."""
    yield from not_blank([visible_text(decode_html(b"".join(read_blocks(opened, PAGE_BYTES))))], name)


def read_lines(opened: IO[bytes], name: str, most_bytes: int) -> Iterator[Document | Skipped]:
    """Yield a .jsonl file's documents; blank lines are nothing, faulty ones are counted per fault."""
    faults: dict[str, Skipped] = {}
    number = n_documents = total = 0
    try:
        while True:
            line, size = read_line(opened, LINE_BYTES, most_bytes - total)
            total += size
            number += 1
            if line == b"":
                break
            if number == 1 and line:
                line = line[_mark_of_lines(line) :]
            if line is not None and not line.strip():
                continue
            try:
                text = _text_of_line(line)
            except Unreadable as error:
                count_fault(faults, name, str(error), number)
                continue
            n_documents += 1
            yield Document(name, number, text)
    except Unreadable:
        yield from faults.values()
        raise
    yield from faults.values()
    if not n_documents and not faults:
        raise Unreadable("no text but white space")


def count_fault(faults: dict[str, Skipped], name: str, fault: str, number: int) -> None:
    """Count one more line, row or entry with this fault; where it was seen first is kept."""
    first = faults.get(fault, Skipped(name, fault, 0, number))
    faults[fault] = replace(first, n=first.n + 1)


def not_blank(texts: Iterable[str], name: str) -> Iterator[Document]:
    """Yield the texts that hold more than white space. Raises Unreadable where none does."""
    found = False
    for index, text in enumerate(texts):
        if text and not text.isspace():
            found = True
            yield Document(name, index, whole_characters(text))
    if not found:
        raise Unreadable("no text but white space")


def parts(blocks: Iterable[str]) -> Iterator[str]:
    """Join a file's blocks into texts of at most PART_CHARACTERS; together they are the whole file."""
    held: list[str] = []
    n_held = 0
    for block in blocks:
        held.append(block)
        n_held += len(block)
        while n_held > PART_CHARACTERS:
            text = "".join(held)
            cut = _cut(text)
            held, n_held = [text[cut:]], len(text) - cut
            text = text[:cut]
            yield text
    if n_held:
        yield "".join(held)


def _cut(text: str) -> int:
    """Return where to end a part: as late as a boundary in its second half allows."""
    for boundary in ("\n\n", "\r\n\r\n", "\n", " "):
        found = text.rfind(boundary, PART_CHARACTERS // 2, PART_CHARACTERS)
        if found >= 0:
            return found + len(boundary)
    return PART_CHARACTERS


def _mark_of_lines(line: bytes) -> int:
    encoding, n_bytes = text_encoding(line)
    if encoding != "utf-8":
        raise Unreadable(f"JSON Lines must be UTF-8, not {encoding[:6].upper()}; {TO_UTF8}")
    return n_bytes


def _text_of_line(line: bytes | None) -> str:
    """Return the `text` of one line. Raises Unreadable, without any of its content."""
    if line is None:
        raise Unreadable(f"line longer than {LINE_BYTES >> 20} MiB")
    try:
        entry = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise Unreadable("line is not UTF-8") from None
    except (ValueError, RecursionError):
        raise Unreadable("line is not JSON") from None
    return text_of(entry.get("text") if isinstance(entry, dict) else None)


def text_of(value: Any) -> str:
    """Return a `text` that is a string with something in it. Raises Unreadable."""
    if not isinstance(value, str):
        raise Unreadable("no `text` string")
    if not value or value.isspace():
        raise Unreadable("blank `text`")
    return whole_characters(value)


def whole_characters(text: str) -> str:
    """Return a text without half surrogate pairs, which JSON may escape and which have no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text)
    return text
