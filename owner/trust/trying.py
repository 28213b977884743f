"""A foreign tokenizer is built in a child process first, which may die of it.

The tokenizers library is Rust written for trusted files: what it did not expect ends in a panic (in Python
a BaseException), an abort, or all of the memory. So a process with limits and nothing to lose goes first.
It gets the piece list on its standard input, no private text, and inherits the walls; what it survives, the
parent does again. The check of the list itself (shared/pieces.py) is not replaced by this.
"""

import signal
import subprocess

from owner.documents.limited import Limits, start_limited
from shared.errors import BundleError, PlanearlyError
from shared.pieces import SPACE, build_tokenizer, read_pieces
from shared.printable import printable

PROBE_CHARACTERS = 20_000
"""Of the pieces themselves, encoded and decoded again in the child."""


LIMITS = Limits(memory_bytes=512 << 20, cpu_s=5, wall_s=20.0)
"""All ours. 65,536 pieces of 8 random letters, which share nothing, need less memory."""

_START = """
import gc
gc.disable()  # a short life, in which a hostile list of millions would be walked again and again
content = sys.stdin.buffer.read()
"""

BUILD = """
from owner.trust.trying import build
sys.exit(build(content, argument))
"""


def try_tokenizer(content: bytes, vocab_size: int) -> None:
    """Build and use a piece list's tokenizer in a child; raises BundleError unless that goes well."""
    run_limited(BUILD, content, vocab_size)


def run_limited(code: str, content: bytes, argument: int = 0, limits: Limits = LIMITS) -> None:
    """Run Python code in a child that has `content` and `argument` as variables, and limits.

    What it prints is its refusal; ending in any other way than with status 0 is one too. Raises
    BundleError with the reason.
    """
    said = b""
    with start_limited(_START + code, argument, limits) as child:
        try:
            said, _ = child.communicate(content, timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            child.kill()
    if said:
        raise _refusal(printable(said[:300].decode("ascii", "backslashreplace").strip()))
    if child.returncode == -signal.SIGKILL:
        raise _refusal("tokenizer: building it took too long, or was killed")
    if child.returncode < 0:
        raise _refusal(f"tokenizer: building it ended the process: {signal.strsignal(-child.returncode)}")
    if child.returncode:
        raise _refusal("tokenizer: building it failed, or took too much memory")


def _refusal(message: str) -> BundleError:
    return BundleError(message, hint="get the file from its provider again, and tell the provider")


def build(content: bytes, vocab_size: int) -> int:
    """What the child does: check, build, encode and decode; 0, or 1 and the reason on standard output."""
    try:
        pieces = read_pieces(content, vocab_size)
    except PlanearlyError as error:
        print(ascii(str(error))[1:-1])
        return 1
    tokenizer = build_tokenizer(pieces)
    text = "".join(piece for piece, _ in pieces)[:PROBE_CHARACTERS]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if tokenizer.decode(ids, skip_special_tokens=False) != text.replace(SPACE, " "):
        print("tokenizer: does not give back a text that it has read")
        return 1
    return 0
