"""Reading private folders: every file is read or listed, in one order, and none is ever quoted."""

import errno
import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import owner.documents.reading
import owner.documents.texts
from owner.documents.decoding import visible_text
from owner.documents.reading import Document, Skipped, read_documents
from owner.documents.walking import SUFFIXES
from shared.errors import DocumentsError

ROOT = Path(__file__).parent.parent
CANARY = "kanarienvogel"


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_all(folder, files):
    """Write the files, name -> content, and read the folder."""
    for name, content in files.items():
        put(folder, name, content)
    skipped: list[Skipped] = []
    return list(read_documents(folder, skipped)), skipped


def reasons(skipped):
    return {item.path: item.reason for item in skipped}


def may_become_others():
    """Whether this process may chown, setgid and setuid (Linux capabilities 0, 6 and 7)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return False
    effective = next(x for x in status.read_text().splitlines() if x.startswith("CapEff"))
    return int(effective.split()[1], 16) & 0b1100_0001 == 0b1100_0001


def lines(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_texts_come_whole_and_untouched(tmp_path):
    text = "\tA\r\nB  \n\n\u00e9 e\u0301 \ufb01\u2028 \U0001f40d"
    documents, skipped = read_all(tmp_path, {"a.txt": text, "b.md": "# B\n"})
    assert documents == [Document("a.txt", 0, text), Document("b.md", 0, "# B\n")]
    assert skipped == []


def test_the_order_is_that_of_the_whole_paths_as_bytes(tmp_path):
    names = ["a/z.txt", "a.txt", "a/b/c.txt", "B.txt", "a-b.txt", "\u00e9.txt", "z.txt", "a/b.txt", "a0.txt"]
    documents, _ = read_all(tmp_path, dict.fromkeys(names, "x"))
    assert [d.path for d in documents] == sorted(names, key=os.fsencode)


def test_a_single_file_is_read_and_other_files_beside_it_are_not(tmp_path):
    path = put(tmp_path, "a.txt", "A")
    put(tmp_path, "b.txt", "B")
    assert list(read_documents(path, [])) == [Document("a.txt", 0, "A")]


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8", b"\xef\xbb\xbf"), ("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")]
    + [("utf-32-le", b"\xff\xfe\0\0"), ("utf-32-be", b"\0\0\xfe\xff")],
)
def test_a_byte_order_mark_decides_and_is_not_text(tmp_path, encoding, mark):
    text = "gr\u00fc\u00df \U0001f40d\n"
    documents, _ = read_all(tmp_path, {"a.txt": mark + text.encode(encoding)})
    assert documents == [Document("a.txt", 0, text)]


def test_a_text_that_is_not_utf8_is_skipped_with_the_place_and_not_the_text(tmp_path):
    files = {"ok.txt": "x", "late.txt": b"a" * (1 << 20) + b"\xc3\xe9" + CANARY.encode()}
    files |= {"latin.txt": f"{CANARY} \u00e9t\u00e9".encode("cp1252"), "cut.txt": "\u00e9".encode()[:1]}
    files |= {"half.txt": b"\xff\xfea", "lone.txt": b"\xff\xfe\x00\xd8a\x00"}
    _, skipped = read_all(tmp_path, files)
    assert reasons(skipped) == {
        "cut.txt": "not UTF-8 (byte 0xc3 at offset 0); save it as UTF-8",
        "half.txt": "not UTF-16 (byte 0x61 at offset 2); save it as UTF-8",
        "late.txt": "not UTF-8 (byte 0xc3 at offset 1048576); save it as UTF-8",
        "latin.txt": "not UTF-8 (byte 0xe9 at offset 14); save it as UTF-8",
        "lone.txt": "not UTF-16 (byte 0x00 at offset 2); save it as UTF-8",
    }


@pytest.mark.parametrize("at", [(1 << 20) - 1, 1 << 20])
def test_an_offset_is_right_where_a_character_is_cut_by_a_block(tmp_path, at):
    put(tmp_path, "a.txt", b"a" * at + b"\xe2\x82" + b"b")
    with pytest.raises(DocumentsError, match="1 not UTF-8"):
        list(read_documents(tmp_path, skipped := []))
    assert f"byte 0xe2 at offset {at})" in skipped[0].reason


def test_what_is_no_text_is_skipped_and_listed(tmp_path):
    outside = put(tmp_path, "outside/a.txt", CANARY).parent
    folder = tmp_path / "in"
    put(folder, "ok.txt", "x")
    put(folder, "binary.txt", b"ab\0c")
    put(folder, "binary.html", b"ab\0c")
    put(folder, "blank.txt", " \r\n\t")
    put(folder, "empty.txt", "")
    put(folder, "report.DOC", "x")
    put(folder, "picture.png", "x")
    put(folder, "README", "x")
    put(folder, ".hidden.txt", CANARY)
    put(folder, ".git/a.txt", CANARY)
    (folder / "link.txt").symlink_to(outside / "a.txt")
    (folder / "folder").symlink_to(outside)
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "sock.txt"))
        documents, skipped = read_all(folder, {})
    assert documents == [Document("ok.txt", 0, "x")]
    assert reasons(skipped) == {
        ".git": "hidden folder",
        ".hidden.txt": "hidden file",
        "README": "unsupported extension (none)",
        "binary.html": "binary (holds NUL bytes)",
        "binary.txt": "binary (holds NUL bytes)",
        "blank.txt": "no text but white space",
        "empty.txt": "empty file",
        "folder": "symbolic link",
        "link.txt": "symbolic link",
        "pipe.txt": "not a regular file",
        "picture.png": "unsupported extension .png",
        "report.DOC": "unsupported extension .DOC; save it as .docx",
        "round": "symbolic link",
        "sock.txt": "not a regular file",
    }
    assert [item.path for item in skipped] == sorted(item.path for item in skipped)


@pytest.mark.skipif(not may_become_others(), reason="needs root, to become somebody else")
def test_what_may_not_be_read_is_listed_and_the_run_goes_on(tmp_path):
    for name in ("a.txt", "closed/b.txt", "no.txt"):
        put(tmp_path, name, "x").parent.chmod(0o755)
    (tmp_path / "no.txt").chmod(0)
    (tmp_path / "closed").chmod(0)
    code = """
import os, sys
from pathlib import Path
from owner.documents.reading import _read  # not resolved: the folders above belong to root alone
os.chdir(sys.argv[1]); os.setgid(65534); os.setuid(65534)
skipped = []
found = [d.path for d in _read(Path("."), skipped)]
print(found, [(s.path, s.reason) for s in skipped])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == (
        "['a.txt'] [('closed/', 'folder: no permission'), ('no.txt', 'no permission')]"
    ), done.stderr


def test_a_file_that_goes_or_changes_while_the_folder_is_read_is_listed(tmp_path):
    for name in "abcdef":
        put(tmp_path, f"{name}.txt", name)
    put(tmp_path, "g.jsonl", lines({"text": "1"}, {"text": "2"}))
    reader = read_documents(tmp_path, skipped := [])
    assert next(reader).path == "a.txt"
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.txt").unlink()
    (tmp_path / "c.txt").symlink_to("/etc/hostname")
    assert next(reader).path == "d.txt"
    found = [next(reader) for _ in range(3)]
    with (tmp_path / "g.jsonl").open("a") as out:
        out.write(lines({"text": "3"}))
    found += list(reader)
    assert [d.path for d in found] == ["e.txt", "f.txt"] + ["g.jsonl"] * (len(found) - 2)
    assert reasons(skipped) == {
        "b.txt": "no longer there",
        "c.txt": "symbolic link",
        "g.jsonl": "changed while being read; the lines read until then are used",
    }


def test_json_lines_are_documents_and_faulty_lines_are_counted_by_fault(tmp_path):
    good = lines({"text": "one", "id": 3}, {"text": "two\u2028\u0085\n"})
    bad = f'{{"text": "{CANARY}"\n["{CANARY}"]\n{{"text": 7}}\n\n{{"text": " "}}\n{"[" * 100_000}\n'
    content = good.encode() + bad.encode() + b'{"text": "\xe9"}\n' + b'{"text": "three"}'
    documents, skipped = read_all(tmp_path, {"a.jsonl": b"\xef\xbb\xbf" + content})
    assert [(d.index, d.text) for d in documents] == [(1, "one"), (2, "two\u2028\u0085\n"), (10, "three")]
    assert skipped == [
        Skipped("a.jsonl", "line is not JSON", n=2, line=3),
        Skipped("a.jsonl", "no `text` string", n=2, line=4),
        Skipped("a.jsonl", "blank `text`", n=1, line=7),
        Skipped("a.jsonl", "line is not UTF-8", n=1, line=9),
    ]


def test_escaped_halves_of_characters_become_replacement_characters(tmp_path):
    content = b'{"text": "a\\ud800b\\u0000 \\ud83d\\udc0d"}\n'
    documents, _ = read_all(tmp_path, {"a.jsonl": content})
    assert documents[0].text == "a\ufffdb\0 \U0001f40d"
    assert documents[0].text.encode()


def test_json_lines_in_utf16_are_skipped(tmp_path):
    files = {"a.jsonl": lines({"text": "x"}).encode("utf-16"), "ok.txt": "x", "b.jsonl": "\n\n"}
    _, skipped = read_all(tmp_path, files)
    assert reasons(skipped) == {
        "a.jsonl": "JSON Lines must be UTF-8, not UTF-16; save it as UTF-8",
        "b.jsonl": "no text but white space",
    }


def test_a_line_beyond_the_limit_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(owner.documents.texts, "LINE_BYTES", 1 << 20)
    long, fits = {"text": "x" * (3 << 20)}, {"text": "y" * ((1 << 20) - 12)}
    assert len(lines(fits)) == (1 << 20) + 1
    over = lines({"text": "z" * ((1 << 20) - 11)})
    content = lines(long, {"text": "b"}, fits, long) + over + over.rstrip()
    documents, skipped = read_all(tmp_path, {"a.jsonl": content})
    assert [d.index for d in documents] == [2, 3]
    assert skipped == [Skipped("a.jsonl", "line longer than 1 MiB", n=4, line=1)]


def test_gzipped_texts_and_lines_are_read(tmp_path):
    files = {"a.txt.gz": gzip.compress(b"A"), "b.jsonl.gz": gzip.compress(lines({"text": "B"}).encode())}
    documents, skipped = read_all(tmp_path, files | {"c.html.gz": b"x"})
    assert documents == [Document("a.txt.gz", 0, "A"), Document("b.jsonl.gz", 1, "B")]
    assert reasons(skipped) == {"c.html.gz": "unsupported extension .gz"}


def test_damaged_gzip_is_listed_and_whole_lines_before_are_used(tmp_path):
    noise = [{"text": os.urandom(500).hex()} for _ in range(1000)]
    packed = gzip.compress(lines(*noise).encode())
    files = {"cut.jsonl.gz": packed[: len(packed) // 2], "none.txt.gz": CANARY, "cut.txt.gz": packed[:-9]}
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0x55
    documents, skipped = read_all(tmp_path, files | {"flipped.txt.gz": bytes(flipped)})
    assert {d.path for d in documents} == {"cut.jsonl.gz"}
    assert {item.reason for item in skipped} == {"damaged gzip"}
    assert len(skipped) == 4


def test_a_gzip_bomb_is_stopped(tmp_path):
    bomb = gzip.compress(bytes(65 << 20).replace(b"\0", b"a"), 9)
    _, skipped = read_all(tmp_path, {"a.txt.gz": bomb, "b.jsonl.gz": bomb, "ok.txt": "x"})
    limit = "larger than 64 MiB, the limit for it"
    assert reasons(skipped) == {"a.txt.gz": limit, "b.jsonl.gz": limit}


def test_html_gives_what_a_reader_sees():
    page = """<!DOCTYPE html><html><head><title>T</title><style>p{}</style>
<script>if (a < b) "</p>"</script></head><body><h1>One &amp; two</h1>
 <p>A <b>bold</b>
 word&nbsp;&eacute;&#x1F40D;<br>next</p><!-- no --><ul><li>x<li>y</ul>
<pre>  keep
   this</pre><table><tr><td>1</td><td>2</td></tr></table>
<noscript><p>no</p></noscript><script/>z</body>"""
    assert visible_text(page) == (
        "One & two\n\nA bold word\xa0\u00e9\U0001f40d\nnext\n\nx\ny\n\n  keep\n   this\n\n1 2\nz"
    )


@pytest.mark.parametrize("mark", ['<meta charset="windows-1252">', "<meta charset=iso-8859-1>"])
def test_a_page_is_read_as_it_declares(tmp_path, mark):
    documents, _ = read_all(tmp_path, {"a.htm": f"{mark}<p>\u20ac \u201equoted\u201d".encode("cp1252")})
    assert documents == [Document("a.htm", 0, "\u20ac \u201equoted\u201d")]


def test_pages_without_text_or_with_a_wrong_encoding_are_skipped(tmp_path):
    files = {
        "ok.html": "<meta charset=utf-16>\u00e9",
        "bom.html": b"\xff\xfe" + "<p>\u00e9".encode("utf-16-le"),
        "cp.html": b"<p>\xe9",
        "declared.html": f"<meta charset={CANARY}>",
        "escape.html": "<meta charset=unicode_escape>\\q",
        "jis.html": b"<meta charset=shift_jis>\x80" + CANARY.encode(),
        "none.html": f"<script>{CANARY}</script>",
    }
    documents, skipped = read_all(tmp_path, files)
    assert [(d.path, d.text) for d in documents] == [("bom.html", "\u00e9"), ("ok.html", "\u00e9")]
    assert reasons(skipped) == {
        "cp.html": "not UTF-8 (byte 0xe9 at offset 3); save it as UTF-8",
        "declared.html": "declares an encoding that is not known; save it as UTF-8",
        "escape.html": "declares an encoding that is not known; save it as UTF-8",
        "jis.html": "not SHIFT_JIS (byte 0x80 at offset 24); save it as UTF-8",
        "none.html": "no text but white space",
    }


@given(st.text(alphabet="ab \n\r\u00e9\U0001f40d", max_size=300), st.integers(1, 40))
def test_the_parts_of_a_long_text_are_the_whole_text(text, part):
    before = owner.documents.texts.PART_CHARACTERS
    owner.documents.texts.PART_CHARACTERS = part
    try:
        parts = list(owner.documents.texts.parts(iter([text[:150], text[150:]])))
    finally:
        owner.documents.texts.PART_CHARACTERS = before
    assert "".join(parts) == text
    assert all(0 < len(p) <= part for p in parts)


def test_a_long_text_is_cut_after_paragraphs_and_its_parts_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(owner.documents.texts, "PART_CHARACTERS", 10)
    monkeypatch.setattr(owner.documents.reading, "PART_CHARACTERS", 10)
    documents, _ = read_all(tmp_path, {"a.txt": "aaaa\n\nbb b\nbbbb\nc"})
    assert [(d.index, d.text) for d in documents] == [(0, "aaaa\n\n"), (1, "bb b\nbbbb\n"), (2, "c")]


def test_a_fault_late_in_a_long_text_is_found_before_any_part_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(owner.documents.texts, "PART_CHARACTERS", 10)
    monkeypatch.setattr(owner.documents.reading, "PART_CHARACTERS", 10)
    documents, skipped = read_all(tmp_path, {"a.txt": b"a" * 50 + b"\xff", "b.txt": "x"})
    assert [d.path for d in documents] == ["b.txt"]
    assert "byte 0xff at offset 50" in skipped[0].reason


def test_missing_empty_and_useless_folders_are_refused_with_counts(tmp_path):
    with pytest.raises(DocumentsError, match="no such file or folder") as missing:
        read_documents(tmp_path / "none", [])
    assert missing.value.hint
    with pytest.raises(DocumentsError, match="the folder is empty"):
        read_documents(tmp_path, [])
    put(tmp_path, "a.png", CANARY)
    put(tmp_path, "b.png", CANARY)
    put(tmp_path, "c.jsonl", f'"{CANARY}"\n' * 3)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DocumentsError) as useless:
        list(read_documents(tmp_path, []))
    assert str(useless.value).endswith(
        "no document with text; skipped: 3 no `text` string; 2 unsupported extension .png; 1 symbolic link"
    )
    assert CANARY not in str(useless.value) + useless.value.hint
    with pytest.raises(DocumentsError, match="1 unsupported extension .png"):
        list(read_documents(tmp_path / "a.png", []))
    with pytest.raises(DocumentsError, match="symbolic link"):
        read_documents(tmp_path / "loop", [])
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DocumentsError, match="not a regular file"):
        list(read_documents(tmp_path / "pipe.txt", []))


def test_names_that_are_no_unicode_or_hold_control_characters_can_be_printed(tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b"\xff.txt", b"a\x1b[2J\n.txt", b"b\xff.png"):
        Path(os.fsdecode(os.path.join(folder, name))).write_text("x")
    documents, skipped = read_all(tmp_path, {})
    assert [d.path for d in documents] == ["a\\x1b[2J\\n.txt", "\\udcff.txt"]
    assert skipped == [Skipped("b\\udcff.png", "unsupported extension .png")]


def test_the_canary_is_in_no_reason_and_no_error(tmp_path):
    for suffix in SUFFIXES:
        for kind, content in enumerate(
            (CANARY.encode() + b"\xff", CANARY.encode() + b"\0", f'{{"a": "{CANARY}"}}'.encode() + b"\xff")
        ):
            packed = gzip.compress(content) if suffix.endswith(".gz") else content
            put(tmp_path, f"{kind}{suffix}", packed)
    with pytest.raises(DocumentsError) as error:
        list(read_documents(tmp_path, skipped := []))
    shown = repr(skipped) + str(error.value) + error.value.hint
    assert len(skipped) == 3 * len(SUFFIXES)
    assert CANARY not in shown


def test_ten_thousand_tiny_files_are_read(tmp_path):
    for i in range(10_000):
        folder = tmp_path / f"{i % 100:02}"
        if i < 100:
            folder.mkdir()
        (folder / f"{i:05}.txt").write_text(f"text {i}")
    documents, skipped = read_all(tmp_path, {})
    assert len({d.text for d in documents}) == 10_000
    assert skipped == []


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_two_hundred_megabytes_are_read_in_bounded_memory(tmp_path, kind):
    block = ("a line of prose, not long\n" * 40 + "\n") * 1000
    block = json.dumps({"text": block}) + "\n" if kind == "jsonl" else block
    with (tmp_path / f"a.{kind}").open("w") as out:
        for _ in range(200_000_000 // len(block) + 1):
            out.write(block)
    code = """
import resource, sys
from pathlib import Path
from owner.documents.reading import read_documents
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n = n_characters = 0
for document in read_documents(Path(sys.argv[1]), []):
    n, n_characters = n + 1, n_characters + len(document.text)
print(n, n_characters, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    n, n_characters, grown_mib = map(int, done.stdout.split())
    size = (tmp_path / f"a.{kind}").stat().st_size
    (tmp_path / f"a.{kind}").unlink()
    assert (n, n_characters) == (3, size) if kind == "txt" else n > 180
    assert grown_mib < (6 * 64 if kind == "txt" else 32)


@pytest.mark.parametrize("call", ["os.open", "os.lstat", "os.scandir"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM])
def test_a_fault_of_the_machine_is_an_error_and_leaves_no_document_out(tmp_path, monkeypatch, call, number):
    (tmp_path / "a.txt").write_text("text")
    real = getattr(os, call.partition(".")[2])

    def fail(path, *arguments, **options):
        if str(path).startswith(str(tmp_path)):
            raise OSError(number, "fault", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(call, fail)
    with pytest.raises(DocumentsError, match=f"cannot be read: {errno.errorcode[number]}, a fault of disk"):
        list(read_documents(tmp_path, []))
