"""Rows to documents: .csv, .tsv, .json, Parquet and spreadsheets.

Where a column (or key) is called `text`, every row is a document, and the other columns are not read. A
table without one is one document: each row as `header: value` lines, since the header itself would be far
out of sight of most windows. The first row is taken for the header.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time
from itertools import chain
from typing import IO, Any

from owner.documents.archives import Budget
from owner.documents.decoding import DAMAGED, Unreadable, decode_blocks
from owner.documents.offices import check_package
from owner.documents.texts import (
    LINE_BYTES,
    PAGE_BYTES,
    Document,
    count_fault,
    not_blank,
    parts,
    read_lines,
    text_of,
)
from owner.documents.walking import Skipped
from shared.printable import printable

CELL_CHARACTERS = 64 << 20
"""A longer cell ends the reading of a table."""
ROWS = 256
"""Rows of a Parquet file in memory at a time."""
_DELIMITERS = ",;\t|"

Found = Iterator[Document | Skipped]


def read_separated(opened: IO[bytes], name: str, most_bytes: int, delimiter: str | None) -> Found:
    """Yield what a .csv or .tsv holds; without a delimiter the most frequent one of the first line."""
    blocks = decode_blocks(opened, most_bytes)
    head = next(blocks, "")
    if delimiter is None:
        first = head.partition("\n")[0]
        delimiter = max(_DELIMITERS, key=first.count)

    def lines() -> Iterator[str]:
        held = head
        for block in blocks:
            *whole, held = (held + block).split("\n")  # no other character ends a row
            yield from (line + "\n" for line in whole)
        yield from io.StringIO(held, newline="\n")

    csv.field_size_limit(CELL_CHARACTERS)
    try:
        yield from read_table(csv.reader(lines(), delimiter=delimiter), name)
    except csv.Error:
        raise Unreadable("a cell longer than 64 Mi characters, or a quote that does not end") from None


def read_parquet(opened: IO[bytes], name: str) -> Found:
    """Yield a Parquet file's rows."""
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(opened, pre_buffer=False)
    header = file.schema_arrow.names
    columns = _text_column(header)

    def rows() -> Iterator[Sequence[Any]]:
        yield header if columns is None else ["text"]
        chosen = None if columns is None else [header[columns]]
        for batch in file.iter_batches(ROWS, columns=chosen, use_threads=False):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    yield from read_table(rows(), name)


def read_workbook(opened: IO[bytes], name: str, budget: Budget) -> Found:
    """Yield a spreadsheet's visible sheets, each a table; of formulas the values that were kept."""
    from python_calamine import CalamineError, CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum

    check_package(opened, budget, "xl/")
    texts: list[str] = []
    try:
        book = CalamineWorkbook.from_filelike(opened)
        for sheet in book.sheets_metadata:
            if (sheet.visible, sheet.typ) != (SheetVisibleEnum.Visible, SheetTypeEnum.WorkSheet):
                continue
            rows = book.get_sheet_by_name(sheet.name).to_python()
            if rows and _text_column(rows[0]) is not None:
                yield from read_table(rows, f"{name}/{printable(sheet.name)}")
            elif rows:
                texts += [sheet.name + "\n\n", *_row_texts(rows)]
    except CalamineError:
        raise Unreadable(DAMAGED) from None
    if texts:
        yield from not_blank(parts(texts), name)


def read_table(rows: Iterable[Sequence[Any]], name: str) -> Found:
    """Yield one document per row that has a `text`, else the rows as `header: value` lines."""
    rows = iter(rows)
    header = next(rows, [])
    column = _text_column(header)
    if column is None:
        yield from not_blank(parts(_row_texts(chain([header], rows))), name)
    else:
        yield from _texts((row[column] if column < len(row) else None for row in rows), name)


def read_entries(opened: IO[bytes], name: str, most_bytes: int) -> Found:
    """Yield a JSON file's texts: of one object or an array of them with a `text`, or of strings.

    What is JSON line by line is read so, whatever its name.
    """
    try:
        first = json.loads(opened.readline(LINE_BYTES))
    except (ValueError, RecursionError):
        first = None
    is_lines = isinstance(first, dict) and bool(opened.readline(LINE_BYTES).strip())
    opened.seek(0)
    if is_lines:
        yield from read_lines(opened, name, most_bytes)
        return
    content = "".join(decode_blocks(opened, PAGE_BYTES))
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError):
        raise Unreadable("not JSON") from None
    entries = entries if isinstance(entries, list) else [entries]
    yield from _texts((entry.get("text") if isinstance(entry, dict) else entry for entry in entries), name)


def _texts(values: Iterable[Any], name: str) -> Found:
    faults: dict[str, Skipped] = {}
    found = False
    for number, value in enumerate(values, 1):
        try:
            yield Document(name, number, text_of(value))
            found = True
        except Unreadable as error:
            count_fault(faults, name, str(error), number)
    yield from faults.values()
    if not found and not faults:
        raise Unreadable("no text but white space")


def _text_column(header: Sequence[Any]) -> int | None:
    names = [str(cell).strip().casefold() for cell in header]
    return names.index("text") if "text" in names else None


def _row_texts(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield each row below the header as lines and a blank line; a header alone as it stands."""
    rows = iter(rows)
    header = [_cell(cell) for cell in next(rows, [])]
    alone = True
    for row in rows:
        alone = False
        lines = []
        for at, value in enumerate(map(_cell, row)):
            label = header[at] if at < len(header) else ""
            if value:
                lines.append(f"{label}: {value}\n" if label else f"{value}\n")
        if lines:
            yield "".join(lines) + "\n"
    if alone:
        yield "\n".join(filter(None, header))


def _cell(value: Any) -> str:
    """Return a cell as an owner would type it: 3 and not 3.0, dates as ISO 8601, nothing for nothing."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return ""
    return str(value).strip()
