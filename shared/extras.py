"""What to install for a feature whose packages are missing, by the names of those packages.

Never by our own: the distribution lies on no index, and whoever registered its name there would be the one
who answers (docs/decisions/0001-layout.md).
"""

import re
from importlib.metadata import PackageNotFoundError, requires

DISTRIBUTION = "planearly"
_EXTRA = re.compile(rf"{DISTRIBUTION}\[(\w+)\]")


def packages_of(extra: str) -> list[str]:
    """Return the names of what an extra brings, of extras within it too, as the distribution states them.

    Empty for an extra that is not known, and where the program runs without being installed.
    """
    try:
        stated = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    found: list[str] = []
    for line in stated:
        requirement, _, marker = line.partition(";")
        if not re.search(rf"extra == ['\"]{extra}['\"]", marker):
            continue
        within = _EXTRA.match(requirement)
        names = packages_of(within[1]) if within else re.findall(r"^[\w.-]+", requirement)
        found += [name for name in names if name not in found]
    return found


def install_hint(extra: str) -> str:
    """Return the command that installs an extra's packages."""
    names = packages_of(extra)
    return f"pip install {' '.join(names)}" if names else f"install the packages of the extra {extra}"
