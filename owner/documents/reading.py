"""Private folder to texts, in an order that depends on names alone; says what was skipped and why.

Read are .txt and .md (a file is a document), .jsonl (a line is a document: an object with a `text` string)
and .html/.htm (the visible text); .txt, .md and .jsonl also with .gz. Plain text is UTF-8, or UTF-16/32
with a byte order mark; anything else is skipped, never guessed. Text is handed on as it stands: newlines,
case and Unicode form are not touched. Nothing here quotes a document, only its name and line number.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

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
from owner.documents.walking import (
    SUFFIXES,
    PrivateFile,
    Skipped,
    check_root,
    list_files,
    open_file,
    printable,
    reason_of,
    refuse_change,
)
from shared.errors import DocumentsError

PART_CHARACTERS = 64 << 20
"""A longer text file becomes several documents, cut after a paragraph, else a line, else a space."""
LINE_BYTES = 64 << 20
"""A longer .jsonl line is skipped, without being held in memory."""
PAGE_BYTES = 64 << 20
"""A larger HTML page is skipped."""
GZIP_RATIO = 200
"""A .gz file is read up to this many times its own size (never less than 64 MiB): prose packs 2 to 10
times, gzip's own limit is about 1030."""
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """One private text. `path` is relative, with slashes; `index` counts the parts of a long text from
    0, and in a .jsonl is the line number from 1.
    """

    path: str
    index: int
    text: str


def read_documents(path: Path, skipped: list[Skipped]) -> Iterator[Document]:
    """Yield the documents of a folder (or of one file), sorted by the bytes of their relative paths.

    What is not read is appended to `skipped` as the iterator comes by. Memory: one document and one
    folder's names. Hidden files, symbolic links below `path` and special files are never opened.
    Raises DocumentsError: at once if there is no such path or it is an empty folder, at the end if
    no document was found.
    """
    root = check_root(path)
    return _read(root, skipped)


def _read(root: Path, skipped: list[Skipped]) -> Iterator[Document]:
    found = False
    before = len(skipped)
    for file in list_files(root, skipped):
        name = printable(file.name)
        try:
            for document in _read_file(file, name, skipped):
                found = True
                yield document
        except Unreadable as error:
            skipped.append(Skipped(name, str(error)))
        except OSError as error:
            skipped.append(Skipped(name, reason_of(error)))
    if not found:
        raise DocumentsError(
            f"{root}: no document with text; skipped: {_summary(skipped[before:])}",
            hint=f"give UTF-8 files that end in {' '.join(SUFFIXES[:5])}",
        )


def _summary(skipped: list[Skipped]) -> str:
    """Return the reasons with their counts, most frequent first."""
    counts: Counter[str] = Counter()
    for item in skipped:
        counts[item.reason.partition(" (byte")[0].partition(";")[0]] += item.n
    shown = [f"{n} {reason}" for reason, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    return "; ".join(shown[:8] + ["..."] * (len(shown) > 8)) or "nothing"


def _read_file(file: PrivateFile, name: str, skipped: list[Skipped]) -> Iterator[Document]:
    lower = name.lower()
    with open_file(file) as raw:
        most_bytes = 1 << 62
        opened = raw
        if lower.endswith(".gz"):
            most_bytes = max(64 << 20, GZIP_RATIO * file.status.st_size)
            opened = cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        kind = lower.removesuffix(".gz")
        if kind.endswith(".jsonl"):
            yield from _read_lines(opened, name, most_bytes, skipped)
            refuse_change(file, raw, "; the lines read until then are used")
        elif kind.endswith((".html", ".htm")):
            text = visible_text(decode_html(b"".join(read_blocks(opened, PAGE_BYTES))))
            refuse_change(file, raw)
            yield from _not_blank([text], name)
        elif file.status.st_size <= PART_CHARACTERS and opened is raw:
            parts = list(_parts(decode_blocks(opened, most_bytes)))
            refuse_change(file, raw)
            yield from _not_blank(parts, name)
        else:
            for _ in decode_blocks(opened, most_bytes):
                pass  # a fault near the end must be known before the first part is handed out
            opened.seek(0)
            yield from _not_blank(_parts(decode_blocks(opened, most_bytes)), name)
            refuse_change(file, raw, "; the parts read until then are used")


def _not_blank(texts: Iterable[str], name: str) -> Iterator[Document]:
    found = False
    for index, text in enumerate(texts):
        if text and not text.isspace():
            found = True
            yield Document(name, index, text)
    if not found:
        raise Unreadable("no text but white space")


def _parts(blocks: Iterator[str]) -> Iterator[str]:
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


def _read_lines(opened: IO[bytes], name: str, most_bytes: int, skipped: list[Skipped]) -> Iterator[Document]:
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
                fault = str(error)
                first = faults.get(fault, Skipped(name, fault, 0, number))
                faults[fault] = replace(first, n=first.n + 1)
                continue
            n_documents += 1
            yield Document(name, number, text)
    finally:
        skipped.extend(faults.values())
    if not n_documents and not faults:
        raise Unreadable("no text but white space")


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
    text = entry.get("text") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise Unreadable("no `text` string")
    if not text or text.isspace():
        raise Unreadable("blank `text`")
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON may escape half a surrogate pair, which is no character and has no UTF-8.
        text = _SURROGATES.sub("\ufffd", text)
    return text
