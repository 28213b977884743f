"""Randomness that nobody can repeat: the key stream of AES-256 in counter mode, under a secret of the run.

Noise that could be drawn again could be taken away again, so the run's public seed must not decide it. The
secret comes from the operating system once, and lies in the work folder until that is removed at the end:
a killed run draws the same numbers, and afterwards nobody can. Opacus has a sound generator only through
torchcsprng, which is no longer maintained.
"""

import json
import os
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from shared.files import write_json

SECRET_FILE = "secret.json"
SECRET_BYTES = 32
SOURCE = "AES-256-CTR under a 256-bit key from the operating system, deleted with the work folder"
SAMPLING, NOISE = 0, 1
"""What a step's numbers are for: streams that never overlap."""


def run_secret(folder: Path) -> bytes:
    """Return the folder's secret, drawn and written (mode 0600) when there is none."""
    path = folder / SECRET_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"secret": os.urandom(SECRET_BYTES).hex()})
    return bytes.fromhex(json.loads(path.read_text())["secret"])


class Stream:
    """The numbers of one step and one purpose, a pure function of (secret, step, purpose)."""

    def __init__(self, secret: bytes, step: int, purpose: int) -> None:
        # Counters start 2^64 blocks apart.
        counter = (step << 8 | purpose).to_bytes(8, "big") + bytes(8)
        self._encryptor = Cipher(AES(secret), CTR(counter)).encryptor()

    def uniform(self, n: int) -> np.ndarray:
        """Return n numbers in (0, 1), multiples of 2^-53 and a half: (n,) float64."""
        bits = np.frombuffer(self._encryptor.update(bytes(8 * n)), "<u8")
        return ((bits >> np.uint64(11)) + 0.5) * 2.0**-53

    def normal(self, n: int) -> np.ndarray:
        """Return n standard normal numbers, (n,) float32, by Box and Muller 1958."""
        radius_and_angle = self.uniform(n + n % 2).reshape(2, -1)
        radius = np.sqrt(-2.0 * np.log(radius_and_angle[0]))
        angle = 2.0 * np.pi * radius_and_angle[1]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n].astype(np.float32)
