r"""Foreign text that cannot act: what does not print is written as its escape.

Names of files, a bundle's texts, what a child said: whatever a terminal would obey, and whatever turns or
hides what stands beside it, is shown as Python writes it (`\x1b`, `\u202e`; a byte of a file name that is no
UTF-8, `\udcff`). Nothing is dropped or replaced: a report is evidence. Done twice it changes nothing more.
Markup is another matter, and that of whoever writes it.
"""


def printable(text: str, line_end: str = r"\n") -> str:
    """Return text of printable characters; where lines are layout, their end is a space or stays one."""
    return "".join(
        c if c.isprintable() else line_end if c == "\n" else c.encode("unicode_escape").decode() for c in text
    )
