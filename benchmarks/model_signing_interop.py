"""Whether OpenSSF's model-signing and shared/detached.py verify each other's signatures of a bundle.

  python benchmarks/model_signing_interop.py /tmp/interop

The folder gets a virtual environment of its own with model-signing and with pyopenssl, which that needs and
does not ask for; a second run uses it again. Both name forms of a single file: `.`, which model-signing
writes for a file, and the file's name, which the specification asks for and model-signing writes for a
folder. One line for each check; exit code 1 if one did not go as expected. Needs a package index once.
"""

import argparse
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

from provider.signing import create_p256_key, read_p256_key
from shared.detached import SELF, read_p256_public_key, verify_detached, write_detached
from shared.errors import SignatureError

MODEL_SIGNING = "1.1.1"
BUNDLE = Path(__file__).parent.parent / "tests" / "vectors" / "slm.st"
N_FLIPS = 24
"""Bits flipped in each file, evenly spaced. Theirs takes half a second for one."""


def install(folder: Path) -> Path:
    """Return the model_signing command of an environment in the folder, made if it is not there."""
    command = folder / "venv" / "bin" / "model_signing"
    if not command.exists():
        venv.create(folder / "venv", with_pip=True)
        pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"model-signing=={MODEL_SIGNING}", "pyopenssl"], check=True)
    return command


class Theirs:
    """Their command line with one key."""

    def __init__(self, command: Path, private: Path, public: Path) -> None:
        self.command, self.private, self.public = command, private, public

    def sign(self, model: Path, signature: Path) -> None:
        self._run("sign", "key", model, "--private_key", self.private, "--signature", signature)

    def accepts(self, model: Path, signature: Path) -> bool:
        arguments = ("verify", "key", model, "--public_key", self.public, "--signature", signature)
        return self._run(*arguments, check=False) == 0

    def _run(self, *arguments: object, check: bool = True) -> int:
        command = [str(self.command), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, check=check).returncode


def ours_accepts(bundle: Path, signature: Path, public: Path) -> bool:
    try:
        verify_detached(bundle, signature, read_p256_public_key(public))
    except SignatureError:
        return False
    return True


def flipped(path: Path, target: Path) -> Iterator[Path]:
    """Write copies of a file to the target with one bit flipped, evenly spaced; yield it for each."""
    content = path.read_bytes()
    for number in range(N_FLIPS):
        changed = bytearray(content)
        bit = number * (8 * len(content) - 1) // (N_FLIPS - 1)
        changed[bit // 8] ^= 1 << bit % 8
        target.write_bytes(changed)
        yield target


def check(folder: Path) -> Iterator[tuple[str, bool, bool]]:
    """Yield what was checked, what was found, what was expected."""
    command = install(folder)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "model").mkdir(parents=True)
    bundle = Path(shutil.copy(BUNDLE, work / "model"))
    private, public = work / "oms.key", work / "oms.pub"
    create_p256_key(private, public)
    key, theirs = read_p256_key(private), Theirs(command, private, public)
    signatures = {"dot": work / "ours-dot.sig", "file name": work / "ours-file-name.sig"}
    for form, resource in (("dot", SELF), ("file name", bundle.name)):
        write_detached(bundle, key, resource).rename(signatures[form])
    by_them = {"dot": work / "theirs-dot.sig", "file name": work / "theirs-file-name.sig"}
    theirs.sign(bundle, by_them["dot"])
    theirs.sign(bundle.parent, by_them["file name"])
    yield "theirs accepts ours, `.`, of the file", theirs.accepts(bundle, signatures["dot"]), True
    yield (
        "theirs accepts ours, file name, of its folder",
        theirs.accepts(bundle.parent, signatures["file name"]),
        True,
    )
    yield (
        "theirs accepts ours, file name, of the file (it knows `.` only)",
        theirs.accepts(bundle, signatures["file name"]),
        False,
    )
    for form in by_them:
        yield f"ours accepts theirs, {form}", ours_accepts(bundle, by_them[form], public), True
        yield f"ours accepts ours, {form}", ours_accepts(bundle, signatures[form], public), True
    other = work / "other.pub"
    create_p256_key(work / "other.key", other)
    yield "ours accepts theirs by another key", ours_accepts(bundle, by_them["dot"], other), False
    changed = work / "changed" / bundle.name
    changed.parent.mkdir()
    for path in flipped(bundle, changed):
        yield "theirs accepts ours of a flipped bundle", theirs.accepts(path, signatures["dot"]), False
        yield "ours accepts theirs of a flipped bundle", ours_accepts(path, by_them["dot"], public), False
    for path in flipped(signatures["dot"], work / "changed.sig"):
        yield "theirs accepts ours flipped", theirs.accepts(bundle, path), False
    for path in flipped(by_them["dot"], work / "changed.sig"):
        yield "ours accepts theirs flipped", ours_accepts(bundle, path, public), False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    counts: dict[tuple[str, bool, bool], int] = {}
    for row in check(parser.parse_args().folder.absolute()):
        counts[row] = counts.get(row, 0) + 1
    for (what, found, expected), count in counts.items():
        verdict = "as expected" if found == expected else "NOT AS EXPECTED"
        print(f"{what}: {'yes' if found else 'no'} · {count} times · {verdict}")
    sys.exit(any(found != expected for _, found, expected in counts))


if __name__ == "__main__":
    main()
