"""Hostile tokenizers end in a BundleError; the process that asked for them lives."""

import base64
import json
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer

from owner.trust import trying
from owner.trust.carried import open_tokenizer
from owner.trust.trying import LIMITS, run_limited, try_tokenizer
from provider.bundling import write_bundle
from shared.bundle import open_bundle
from shared.errors import BundleError
from shared.pieces import MAX_PIECES, write_pieces
from tests.conftest import make_pieces
from tests.test_bundle import TRUSTED
from tests.vectors.build import PROVIDER, accepted, example_tensors

LIBRARY_FILE = {
    "version": "1.0",
    **dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"), None
    ),
    "added_tokens": [],
    "model": {
        "type": "Unigram",
        "unk_id": 0,
        "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -2.0]],
        "byte_fallback": False,
    },
}
PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
MERGES = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": "ééé",
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "vocab": {"a": 0, "b": 1, "ab": 2},
    "merges": [["a", "b"]],
}


def charsmap(content):
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


PANICS = {
    "charsmap that is none": {"normalizer": charsmap(b"\x00\x00")},
    "prefix longer than the piece": {"model": MERGES},
    "chunks of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "template of an unknown token": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "X", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
    "strip beyond the end": {"decoder": {"type": "Strip", "content": "a", "start": 50, "stop": 50}},
}
ABORTS = {
    "charsmap of 2 GB": {"normalizer": charsmap(b"\xff\xff\xff\x7f" + bytes(40))},
    "padding to 2^40": {"padding": {"strategy": {"Fixed": 2**40}, **PADDING}},
}
USE = """
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_str(content.decode())
tokenizer.decode(tokenizer.encode("abab baab").ids)
"""
"""What a program does that trusts such a file."""


def use(content):
    """Do in this process what USE does in a child."""
    tokenizer = Tokenizer.from_str(content.decode())
    return tokenizer.decode(tokenizer.encode("abab baab").ids)


def library_file(changes):
    return json.dumps(LIBRARY_FILE | changes).encode()


def random_pieces(n_pieces, n_digits):
    """Pieces that share no beginnings, so that each needs its own branch of the library's tree."""
    words = (f"{(i * 0x9E3779B97F4A7C15 % 2**64) | 1 << 64:x}"[1:] * 4 for i in range(n_pieces))
    return make_pieces() + [(word[:n_digits], -9.0) for word in words]


def test_a_good_piece_list_passes(pieces):
    try_tokenizer(write_pieces(pieces), len(pieces))
    run_limited("import os; os._exit(len(content) + argument)", b"", 0)


def test_a_vocabulary_of_65536_pieces_that_share_nothing_fits_the_limits():
    pieces = random_pieces(65_536, 8)[:65_536]
    try_tokenizer(write_pieces(pieces), 65_536)


@pytest.mark.parametrize("changes", PANICS.values(), ids=PANICS)
def test_a_panic_of_the_library_is_a_refusal(changes):
    with pytest.raises(BaseException) as panic:  # noqa: B017, it is no Exception: the reason for the child
        use(library_file(changes))
    assert panic.type.__name__ == "PanicException"
    assert not isinstance(panic.value, Exception)
    with pytest.raises(BundleError, match="tokenizer: building it failed"):
        run_limited(USE, library_file(changes))


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
@pytest.mark.parametrize("changes", ABORTS.values(), ids=ABORTS)
def test_an_abort_of_the_library_is_a_refusal(changes):
    with pytest.raises(BundleError, match="tokenizer: building it ended the process: Aborted"):
        run_limited(USE, library_file(changes))


@pytest.mark.parametrize("changes", [*PANICS.values(), *ABORTS.values()], ids=[*PANICS, *ABORTS])
def test_the_library_s_own_files_are_never_parsed(changes):
    with pytest.raises(BundleError, match="tokenizer pieces: expected a list"):
        try_tokenizer(library_file(changes), 300)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "ended the process: Aborted"),
        ("raise BaseException('private')", "building it failed"),
        ("import ctypes; ctypes.string_at(0)", "ended the process: Segmentation fault"),
        ("while True: pass", "took too long"),
        ("import time; time.sleep(60)", "took too long"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "took too long, or was killed"),
        ("print('x' * 10**6)", "^x{300}$"),
        ("print('\\x1b[2J')", r"^\\x1b\[2J"),
        ("sys.exit(3)", "building it failed"),
    ],
)
def test_however_a_child_ends_badly_it_is_a_refusal(code, message):
    with pytest.raises(BundleError, match=message):
        run_limited(code, b"", limits=replace(LIMITS, cpu_s=1, wall_s=2.0))


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
def test_a_child_gets_no_more_memory_than_its_limit():
    run_limited("x = bytearray(200 << 20)", b"")
    with pytest.raises(BundleError, match="took too much memory"):
        run_limited("x = bytearray(600 << 20)", b"")


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
def test_a_list_of_long_pieces_that_needs_gigabytes_is_refused():
    content = write_pieces(random_pieces(200_000, 60))
    assert len(content) < 16 << 20
    with pytest.raises(BundleError, match="tokenizer: building it ended the process: Aborted"):
        try_tokenizer(content, 200_000 + len(make_pieces()))


@pytest.mark.parametrize(
    "content",
    [
        b"[" + b"[]," * 5_500_000 + b"[]]",
        b"[" * (16 << 20),
        b"[" + b'["a",0],' * (MAX_PIECES - 1) + b'["a",0]]',
        b'["' + b"x" * (16 << 20),
    ],
    ids=["lists", "nesting", "1048576 entries", "one text"],
)
def test_a_file_that_is_no_piece_list_is_refused_by_the_child(content):
    with pytest.raises(BundleError, match="tokenizer"):
        try_tokenizer(content, 300)


def test_a_child_imports_neither_torch_nor_transformers(pieces):
    code = trying.BUILD.replace("sys.exit(", "status = (") + (
        "\nsys.exit(status + len({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    run_limited(code, write_pieces(pieces), len(pieces))


def test_a_child_imports_nothing_from_the_current_folder(tmp_path, monkeypatch, pieces):
    (tmp_path / "tokenizers.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    try_tokenizer(write_pieces(pieces), len(pieces))


def test_a_tokenizer_that_loses_text_is_refused(pieces, monkeypatch, capsys):
    class Forgetful:
        def encode(self, text, add_special_tokens):
            return self

        ids = ()

        def decode(self, ids, skip_special_tokens):
            return ""

    monkeypatch.setattr(trying, "build_tokenizer", lambda pieces: Forgetful())
    assert trying.build(write_pieces(pieces), len(pieces)) == 1
    assert capsys.readouterr().out == "tokenizer: does not give back a text that it has read\n"


def test_a_child_says_why_it_refuses_in_plain_characters(pieces, capsys):
    assert trying.build(write_pieces(pieces), len(pieces)) == 0
    assert trying.build(write_pieces([("é", 0.0), *pieces[1:]]), len(pieces)) == 1
    assert capsys.readouterr().out == "tokenizer pieces: piece 0 is not the reserved '<unk>'\n"


def test_a_bundle_with_a_hostile_tokenizer_is_refused_by_name(tmp_path):
    manifest = accepted()["slm.st"]
    manifest["model"] |= {"vocab_size": len(make_pieces())}
    tensors = example_tensors(manifest)
    for content, message in (
        (write_pieces(make_pieces()), None),
        (json.dumps([*make_pieces()[:-1], ("a\ud800", -1.0)]).encode(), "holds a line end, half a surrogate"),
    ):
        tensors["files.tokenizer.json"] = torch.tensor(list(content), dtype=torch.uint8)
        path = tmp_path / "hostile.st"
        write_bundle(path, manifest, tensors, PROVIDER)
        with ExitStack() as stack:
            bundle = stack.enter_context(open_bundle(path, TRUSTED))
            if message is None:
                assert open_tokenizer(bundle).get_vocab_size() == len(make_pieces())
            else:
                with pytest.raises(BundleError, match=f"hostile.st: tokenizer pieces: .*{message}"):
                    open_tokenizer(bundle)
