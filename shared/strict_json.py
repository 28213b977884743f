"""Strict JSON: one meaning for one text, and errors that name the field.

Two parsers that read one text differently are a hole in a signed format, so whatever could be read in
two ways is refused: duplicate keys, NaN, anything but ASCII. Knows nothing of bundles.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

MAX_INTEGER = 2**63 - 1
MAX_DEPTH = 9
"""Objects and lists inside one another, the outermost counted."""
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"


class Malformed(ValueError):
    """What is wrong, without the file's name; shared/bundle.py adds it and the reading step."""


def quote(value: object) -> str:
    """Return a value for a message: ASCII without control characters, cut at 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse_json(text: bytes) -> Any:
    """Parse ASCII JSON without duplicate keys, NaN or infinities, MAX_DEPTH deep at most.

    Raises Malformed otherwise, and nothing else, whatever the bytes are.
    """
    try:
        value = json.loads(text.decode("ascii"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except Malformed:
        raise
    except RecursionError:
        raise Malformed(TOO_DEEP) from None
    except ValueError:
        raise Malformed("is not strict ASCII JSON") from None
    _check_depth(value, MAX_DEPTH)
    return value


def _check_depth(value: Any, left: int) -> None:
    if isinstance(value, dict | list):
        if not left:
            raise Malformed(TOO_DEEP)
        for part in value.values() if isinstance(value, dict) else value:
            _check_depth(part, left - 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise Malformed(f"duplicate key {quote(twice)}")
    return entries


def _no_constant(text: str) -> Any:
    raise Malformed(f"{text} is not a JSON number")


def canonical_json(value: Any) -> bytes:
    """Return the one serialization: sorted keys, no white space, ASCII, shortest floats."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Malformed(f"cannot be written as JSON: {error}") from None
    return text.encode("ascii")


def check_object(value: Any, where: str, fields: Sequence[str]) -> dict[str, Any]:
    """Return an object that has these fields and no other."""
    if not isinstance(value, dict):
        raise Malformed(f"{where} is not an object")
    for field in fields:
        if field not in value:
            raise Malformed(f"{where}: field {field} is missing")
    for field in value:
        if field not in fields:
            raise Malformed(f"{where}: unknown field {quote(field)}")
    return value


def check_integer(value: Any, where: str, low: int, high: int) -> int:
    """Return an integer in range; true and false are none."""
    if type(value) is not int or not low <= value <= high:
        raise Malformed(f"{where} is {quote(value)}, expected an integer from {low} to {high}")
    return value


def check_list(value: Any, where: str, low: int, high: int) -> list[Any]:
    """Return a list of `low` to `high` entries."""
    if not isinstance(value, list) or not low <= len(value) <= high:
        found = f"holds {len(value)}" if isinstance(value, list) else "is not a list"
        raise Malformed(f"{where} {found}, expected a list of {low} to {high}")
    return value


def check_text(value: Any, where: str, limit: int) -> str:
    """Return a text of 1 to `limit` characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= limit:
        raise Malformed(f"{where} is {quote(value)}, expected a text of 1 to {limit} characters")
    return value


def check_match(value: Any, where: str, pattern: re.Pattern[str]) -> str:
    """Return a text that the whole pattern matches."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise Malformed(f"{where} is {quote(value)}, expected {pattern.pattern}")
    return value


def check_values(value: Any, where: str) -> None:
    """Refuse what no field may hold: too large an integer, or text that a terminal would obey."""
    if isinstance(value, str):
        if UNPRINTABLE.search(value):
            raise Malformed(f"{where} holds a control character or half a surrogate pair")
    elif type(value) is int:
        if abs(value) > MAX_INTEGER:
            raise Malformed(f"{where} holds an integer beyond 2^63 - 1")
    elif isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            check_values(part, where)
