"""Everything that the doctor looks at, about in the order in which a run would meet it.

No packet is sent, no document read.
"""

from contextlib import ExitStack
from pathlib import Path

from owner.doctoring.findings import Check
from owner.doctoring.inputs import check_bundle, check_embedder, check_extras, check_trust
from owner.doctoring.machine import check_disk, check_memory, check_processor, check_software
from owner.doctoring.surroundings import check_clock, check_network, check_permissions, check_walls


def examine(bundle: Path | None, out: Path, embedder: Path | None = None) -> list[Check]:
    """Return all checks, about in the order in which a run would meet them."""
    with ExitStack() as stack:
        trust, trusted = check_trust()
        opened, verified = check_bundle(bundle, trust, stack)
        return [
            check_software(),
            check_processor(),
            check_memory(opened),
            check_disk(out, opened),
            trusted,
            *verified,
            check_embedder(opened, embedder),
            *check_extras(),
            check_walls(),
            check_network(),
            check_permissions(out),
            check_clock(),
        ]


def describe(checks: list[Check]) -> list[str]:
    """Return one line for each check, and whether `owner specialize` can run."""
    lines = [
        f"{check.state:<8}{check.name:<13}{check.found}" + (f" | {check.hint}" if check.hint else "")
        for check in checks
    ]
    stopping = [check.name for check in checks if check.is_in_the_way]
    if stopping:
        return [*lines, f"`owner specialize` cannot run here: {', '.join(stopping)}"]
    return [*lines, "`owner specialize` can run here"]
