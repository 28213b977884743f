"""Foreign text as it may be shown."""

import sys

from shared.printable import printable


def test_every_character_there_is_becomes_one_that_prints_and_reads_back_as_itself():
    for number in range(sys.maxunicode + 1):
        shown = printable(chr(number))
        assert shown.isprintable()
        assert shown == chr(number) or shown.encode("ascii").decode("unicode_escape") == chr(number)


def test_done_twice_it_changes_nothing_more_and_lines_end_as_asked():
    text = "a\tb\u202ec\x1b[2J\n\udcff\u00a0é → 猫 \\"
    assert printable(text) == "a\\tb\\u202ec\\x1b[2J\\n\\udcff\\xa0é → 猫 \\"
    assert printable(printable(text)) == printable(text)
    assert printable("a\nb", " ") == "a b"
    assert printable("a\nb\r", "\n") == "a\nb\\r"
