"""Where a run may write, decided before the walls go up: Landlock binds to folders that are there by then."""

import os
import stat
import tempfile
from pathlib import Path

from owner.trust.remembering import trust_home
from shared.errors import PlanearlyError

TEMPORARY = ("TMPDIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
"""Variables that say where temporary files go. The last is torch's: it makes a folder otherwise."""


def unfinished_folder(out: Path) -> Path:
    """Return the folder beside `out` that holds everything until the last rename; makes nothing.

    Raises PlanearlyError where the folder around it does not exist.
    """
    if not out.absolute().parent.is_dir():
        raise PlanearlyError(f"{out}: its folder does not exist", hint="make it, or choose another --out")
    return out.parent / f".{out.name}.unfinished"


def make_places(out: Path) -> list[Path]:
    """Make the unfinished folder, for its owner only; return it and the trust home, if there is one.

    Raises PlanearlyError where something else has its name, or others could have put something in; OSError.
    """
    work = unfinished_folder(out)
    work.mkdir(mode=0o700, exist_ok=True)
    found = work.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PlanearlyError(
            f"{work}: is not a folder that only you can open", hint="remove it, or choose another --out"
        )
    return keep_places(work)


def keep_places(folder: Path) -> list[Path]:
    """Return a folder that is there and the trust home, if there is one; temporary files go to the first."""
    os.environ.update(dict.fromkeys(TEMPORARY, str(folder.absolute())))
    return [folder, *filter(Path.is_dir, [trust_home()])]


def no_places() -> list[Path]:
    """Return no folder, for a run that writes nothing.

    Libraries ask for a folder of temporary files as they are imported, and Python finds one by trying: here,
    before the walls go up.
    """
    tempfile.gettempdir()
    return []


def drop_empty(out: Path) -> None:
    """Remove the unfinished folder if nothing was begun in it."""
    work = unfinished_folder(out)
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()
