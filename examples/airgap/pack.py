"""Pack a wheelhouse: this project and its needs as wheels, each with its digest, for where no network is.

    python examples/airgap/pack.py wheelhouse constraints.txt documents,embedder,dp,lora,gguf,onnx

pip builds or fetches the wheels, from whatever index it is set to. What it chose is written to
requirements.txt, one line a wheel with its SHA-256, so that `pip install --require-hashes` refuses
anything else; the digest of that one file stands for the whole folder. The wheels are for the Python
version and the platform they were packed on.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def pin(wheel: Path) -> str:
    """Return a wheel's line of a requirements file: name, version, digest."""
    name, version = wheel.name.split("-")[:2]
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{name.replace('_', '-')}=={version} --hash=sha256:{digest}"


def pack(folder: Path, constraints: Path, extras: str) -> None:
    """Fill a new folder with wheels and write its requirements.txt."""
    folder.mkdir(parents=True)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    project = f"{ROOT}[{extras}]" if extras else str(ROOT)
    subprocess.run([*wheel, "--wheel-dir", str(folder), "-c", str(constraints), project], check=True)
    wheels = sorted(folder.glob("*.whl"))
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{pin(path)}\n" for path in wheels), encoding="utf-8")
    megabytes = sum(path.stat().st_size for path in wheels) / 1e6
    print(f"{folder}: {len(wheels)} wheels, {megabytes:,.0f} MB")
    print(f"sha256 of {requirements}: {hashlib.sha256(requirements.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
