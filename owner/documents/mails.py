"""Messages to documents: who, whom, what and when, and the text; files that hang on one follow it.

Quoted-printable and base64 are undone. Of the same text in two forms the plain one is read, else the page.
"""

import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage, MIMEPart
from typing import IO, cast

from owner.documents.archives import MEMBER_BYTES, Member, read_whole
from owner.documents.decoding import DAMAGE, DAMAGED, Unreadable, decode_as, visible_text
from owner.documents.texts import Document, count_fault, whole_characters
from owner.documents.walking import Skipped, unsupported
from shared.printable import printable

HEADERS = ("From", "To", "Cc", "Subject", "Date")
_BEGIN = re.compile(rb"From .*\d\d:\d\d")
"""After a blank line. Sentences may begin so too, but seldom tell the time."""
_ESCAPED = re.compile(rb">+From ")
LINE_BYTES = 1 << 20
"""Read at a time; a message has no lines as long."""

Found = Iterator[Document | Member | Skipped]


def read_message(opened: IO[bytes], name: str) -> Found:
    """Yield an .eml's text, then its files."""
    faults: dict[str, Skipped] = {}
    yield from _message(read_whole(opened), name, name, 0, faults)
    yield from faults.values()


def read_mailbox(opened: IO[bytes], name: str) -> Found:
    """Yield an .mbox's messages, each a document; RFC 4155: a `From ` line with a time begins one."""
    number = 0
    faults: dict[str, Skipped] = {}
    for content in _split(opened):
        number += 1
        try:
            if content is None:
                raise Unreadable(f"larger than {MEMBER_BYTES >> 20} MiB, the limit for it")
            found = list(_message(content, name, f"{name}/{number}", number, faults))
        except Unreadable as error:
            count_fault(faults, name, f"message: {error}", number)
        except DAMAGE:
            count_fault(faults, name, f"message: {DAMAGED}", number)
        else:
            yield from found
    yield from faults.values()
    if not number:
        raise Unreadable("not a mailbox: does not begin with a `From ` line")


def _split(opened: IO[bytes]) -> Iterator[bytes | None]:
    """Yield each message's bytes, the escape before `From ` in it removed; None for one that is too large."""
    lines: list[bytes] = []
    size, begun, is_after_blank = 0, False, True
    while True:
        line = opened.readline(LINE_BYTES)
        if not line or (is_after_blank and _BEGIN.match(line)):
            if begun:
                yield b"".join(lines) if size <= MEMBER_BYTES else None
            if not line:
                return
            lines, size, begun, is_after_blank = [], 0, True, False
            continue
        if not begun and line.strip():
            return
        size += len(line)
        if size <= MEMBER_BYTES:
            lines.append(line[1:] if _ESCAPED.match(line) else line)
        is_after_blank = line in (b"\n", b"\r\n")


def _message(content: bytes, name: str, path: str, number: int, faults: dict[str, Skipped]) -> Found:
    """Yield a message's text and its files; those of formats that are not read are counted in `faults`."""
    message = email.message_from_bytes(content, policy=email.policy.default)
    heads = [f"{head}: {' '.join(str(message[head]).split())}\n" for head in HEADERS if message[head]]
    if not heads:
        raise Unreadable("not a message: has none of the headers that one has")
    body = message.get_body(("plain", "html"))
    text = "".join(heads) + "\n" + (_text(body) if body is not None else "")
    yield Document(name, number, whole_characters(text))
    for part in _files(message, body):
        kind = part.get_content_type()
        unnamed = {"message/rfc822": "message.eml", "text/plain": "text.txt", "text/html": "page.html"}
        file = part.get_filename() or unnamed.get(kind, "")
        reason = unsupported(file) if file else "no name"
        if reason:
            count_fault(faults, name, f"attached file: {reason}", number)
        else:
            yield Member(f"{path}/{printable(file)}", _content(part))


def _files(message: MIMEPart, body: MIMEPart | None) -> Iterator[MIMEPart]:
    """Yield the parts that are not the text; a message that is nothing but a file is that file."""
    if not message.is_multipart():
        yield from () if message is body else (message,)
        return
    for part in message.iter_attachments():
        if part.is_multipart() and part.get_content_type() != "message/rfc822":
            yield from _files(part, body)
        elif part is not body:
            yield part


def _content(part: MIMEPart) -> bytes:
    if part.get_content_type() == "message/rfc822":
        return cast(EmailMessage, part.get_payload(0)).as_bytes()
    if part.get_content_type() in ("text/plain", "text/csv"):
        return _text(part).encode()
    return cast(bytes, part.get_payload(decode=True) or b"")


def _text(part: MIMEPart) -> str:
    """Return a part's text, strictly by the encoding that it declares."""
    content = cast(bytes, part.get_payload(decode=True) or b"")
    text = decode_as(content, part.get_content_charset("utf-8")).replace("\r\n", "\n")
    return visible_text(text) if part.get_content_subtype() == "html" else text
