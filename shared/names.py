"""How both signed formats write names, versions, digests and times: one text for one value.

docs/bundle-format.md §6 and docs/trust-format.md §3.
"""

import re
from datetime import UTC, datetime
from typing import Any

from shared.strict_json import Malformed, quote

NAME_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,100}")
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")
MAX_VERSION = 2**31 - 1
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def check_time(value: Any, where: str) -> str:
    """Return a time in UTC to the second (RFC 3339), as `2026-11-21T00:00:00Z`."""
    try:
        if write_time(read_time(value)) == value:
            return value
    except (TypeError, ValueError):
        pass
    raise Malformed(f"{where} is {quote(value)}, expected UTC as 2026-11-21T00:00:00Z")


def read_time(text: str) -> datetime:
    """Return the moment that a checked text names."""
    return datetime.strptime(text, TIME_FORMAT).replace(tzinfo=UTC)


def write_time(moment: datetime) -> str:
    """Return the text of a moment, cut to the second."""
    return moment.astimezone(UTC).strftime(TIME_FORMAT)
