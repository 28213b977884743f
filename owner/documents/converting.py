"""What the limited child does: a file of any format to documents, and what lies in it in turn.

Parsers promise little about what they do with damaged bytes. What they raise is a reason to skip the one
file; what ends the process is the parent's affair (owner/documents/handing.py).
"""

import errno
import gzip
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any, cast

from owner.documents.archives import FILES, Budget, Member, TooMuch, read_tar, read_whole, read_zip
from owner.documents.decoding import DAMAGE, DAMAGED, Unreadable
from owner.documents.mails import read_mailbox, read_message
from owner.documents.offices import read_book, read_pdf, read_slides, read_word
from owner.documents.tables import read_entries, read_parquet, read_separated, read_workbook
from owner.documents.texts import Document, read_lines, read_page, read_plain
from owner.documents.walking import (
    EXTRA,
    MACHINE_FAULTS,
    USED,
    PrivateFile,
    Skipped,
    open_file,
    refuse_change,
    unsupported,
)

if sys.platform == "linux":
    import resource

NESTED = 5
"""So deep a file may lie in archives and messages. Ours."""
_LIBRARIES = ("pypdf", "mammoth", "pptx", "python_calamine", "pyarrow")

Found = Iterator[Document | Member | Skipped]


@dataclass(frozen=True)
class Within:
    """From here on all is from the n-th file within the outermost one; 0: from that itself."""

    n: int
    name: str


def serve() -> None:
    """Answer requests on standard input, one a line, until it ends; see owner/documents/handing.py."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer

    def send(**message: Any) -> None:
        content = json.dumps(message, ensure_ascii=False).encode()
        answers.write(len(content).to_bytes(4, "big") + content)

    send(ready=True)
    answers.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _bound_time(request["cpu_s"])
        budget = Budget(request["most_bytes"], frozenset(request["without"]))
        found: Document | Skipped | Within
        try:
            for found in _convert_file(_file_of(request["file"]), budget):
                if budget.n_opened < request["since"]:
                    continue
                if isinstance(found, Within):
                    send(within=[found.n, found.name])
                    answers.flush()
                elif isinstance(found, Document):
                    send(document=[found.path, found.index, found.text])
                else:
                    send(skipped=[found.path, found.reason, found.n, found.line])
            send(end=True)
        except MemoryError:
            send(memory=True)
        except OSError as error:
            send(**{"memory": True} if error.errno == errno.ENOMEM else {"errno": error.errno or 0})
        answers.flush()


def _bound_time(cpu_s: int) -> None:
    if sys.platform == "linux":
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = math.ceil(used.ru_utime + used.ru_stime) + cpu_s
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _file_of(fields: list[Any]) -> PrivateFile:
    location, *others = fields
    return PrivateFile(os.fsdecode(bytes.fromhex(location)), *others)


def _convert_file(file: PrivateFile, budget: Budget) -> Iterator[Document | Skipped | Within]:
    try:
        with open_file(file) as opened:
            yield from convert(opened, file.name, budget)
            refuse_change(file, opened, USED)
    except Unreadable as error:
        yield Skipped(file.name, str(error))


def convert(
    opened: IO[bytes], name: str, budget: Budget, n: int = 0, depth: int = 0
) -> Iterator[Document | Skipped | Within]:
    """Yield a file's documents, what was skipped, and where it is at, around each file within.

    Raises OSError as the file system does, MemoryError.
    """
    has_some = False
    try:
        for found in _read(opened, name, budget):
            if isinstance(found, Document):
                has_some = True
                yield found
                continue
            budget.n_files -= 1
            if budget.n_files < 0:
                raise TooMuch(f"holds more than {FILES:,} files")
            if isinstance(found, Skipped):
                yield found
                continue
            has_some = True
            reason = "nested too deep" if depth >= NESTED else unsupported(found.name)
            if reason or not found.content:
                yield Skipped(found.name, reason or "empty file")
                continue
            budget.n_opened += 1
            inner = budget.n_opened
            if inner in budget.without:
                continue
            yield Within(inner, found.name)
            yield from convert(BytesIO(found.content), found.name, budget, inner, depth + 1)
            yield Within(n, name)
    except TooMuch as error:
        if depth:
            raise
        yield Skipped(name, f"{error}{USED}")
    except Unreadable as error:
        yield Skipped(name, f"{error}{USED if has_some else ''}")


def _read(opened: IO[bytes], name: str, budget: Budget) -> Found:
    try:
        yield from _reader(opened, name, budget)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _LIBRARIES:
            raise
        raise Unreadable(f"needs {EXTRA}") from None
    except (Unreadable, OSError, *DAMAGE) as error:
        link: BaseException | None = error
        while link is not None:  # libraries make other errors of a disk's
            if isinstance(link, OSError) and link.errno in MACHINE_FAULTS:
                raise link from None
            link = link.__cause__ or link.__context__
        # They also say "damaged" with an OSError, which then has no number.
        if isinstance(error, Unreadable) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise Unreadable(DAMAGED) from None


def _reader(opened: IO[bytes], name: str, budget: Budget) -> Found:
    kind, most_bytes = name.lower(), 1 << 62
    if kind.endswith(".gz") and not kind.endswith(".tar.gz"):
        most_bytes = budget.n_bytes
        opened, kind = cast(IO[bytes], gzip.GzipFile(fileobj=opened)), kind[:-3]
    kind = kind.rpartition(".")[2]
    if kind in ("docx", "epub", "pdf", "pptx", "xlsx"):
        # From memory and without a name: a fault of the disk is seen as one, and no file beside it is found.
        opened = BytesIO(read_whole(opened))
    match kind:
        case "txt" | "md":
            return read_plain(opened, name, most_bytes, False)
        case "jsonl":
            return read_lines(opened, name, most_bytes)
        case "html" | "htm":
            return read_page(opened, name)
        case "json":
            return read_entries(opened, name, most_bytes)
        case "csv":
            return read_separated(opened, name, most_bytes, None)
        case "tsv":
            return read_separated(opened, name, most_bytes, "\t")
        case "parquet":
            return read_parquet(opened, name)
        case "xlsx":
            return read_workbook(opened, name, budget)
        case "pdf":
            return read_pdf(opened, name)
        case "docx":
            return read_word(opened, name, budget)
        case "pptx":
            return read_slides(opened, name, budget)
        case "epub":
            return read_book(opened, name, budget)
        case "eml":
            return read_message(opened, name)
        case "mbox":
            return read_mailbox(opened, name)
        case "zip":
            return read_zip(opened, name, budget)
        case _:
            return read_tar(opened, name, budget)
