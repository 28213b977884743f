"""Private folder to texts, in an order that depends on names alone; says what was skipped and why.

A file is a document; a message in an .mbox, a line of a .jsonl, and a row of a table with a `text` column are
documents too. Plain formats are read here; whatever needs a parser is handed to a child with limits
(owner/documents/handing.py). Nothing here quotes a document, only its name and number.
"""

import gzip
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, cast

from owner.documents.decoding import Unreadable
from owner.documents.handing import Converter
from owner.documents.texts import PART_CHARACTERS, Document, read_lines, read_page, read_plain
from owner.documents.walking import (
    FORMATS,
    TEXTS,
    PrivateFile,
    Skipped,
    check_root,
    list_files,
    open_file,
    reason_of,
    refuse_change,
)
from shared.errors import DocumentsError
from shared.printable import printable

GZIP_RATIO = 200
"""A .gz file is read up to this many times its own size (never less than 64 MiB): prose packs 2 to 10
times, gzip's own limit is about 1030."""


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
    has_some = False
    before = len(skipped)
    with closing(Converter()) as converter:
        for file in list_files(root, skipped):
            name = printable(file.name)
            try:
                is_text = name.lower().endswith(TEXTS)
                for found in _read_file(file, name) if is_text else converter.read(file, name):
                    if isinstance(found, Skipped):
                        skipped.append(found)
                    else:
                        has_some = True
                        yield found
            except Unreadable as error:
                skipped.append(Skipped(name, str(error)))
            except OSError as error:
                skipped.append(Skipped(name, reason_of(error)))
    if not has_some:
        raise DocumentsError(
            f"{root}: no document with text; skipped: {_summary(skipped[before:])}",
            hint=f"give {FORMATS}",
        )


def _summary(skipped: list[Skipped]) -> str:
    """Return the reasons with their counts, most frequent first."""
    counts: Counter[str] = Counter()
    for item in skipped:
        counts[item.reason.partition(" (byte")[0].partition(";")[0]] += item.n
    shown = [f"{n} {reason}" for reason, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    return "; ".join(shown[:8] + ["..."] * (len(shown) > 8)) or "nothing"


def _read_file(file: PrivateFile, name: str) -> Iterator[Document | Skipped]:
    kind = name.lower()
    with open_file(file) as raw:
        most_bytes = 1 << 62
        opened = raw
        if kind.endswith(".gz"):
            most_bytes = max(64 << 20, GZIP_RATIO * file.size)
            opened = cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        kind = kind.removesuffix(".gz")
        if kind.endswith(".jsonl"):
            yield from read_lines(opened, name, most_bytes)
            refuse_change(file, raw, "; the lines read until then are used")
        elif kind.endswith((".html", ".htm")):
            page = list(read_page(opened, name))
            refuse_change(file, raw)
            yield from page
        elif file.size <= PART_CHARACTERS and opened is raw:
            parts = list(read_plain(opened, name, most_bytes, True))
            refuse_change(file, raw)
            yield from parts
        else:
            yield from read_plain(opened, name, most_bytes, False)
            refuse_change(file, raw, "; the parts read until then are used")
