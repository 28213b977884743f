"""The child that reads documents: what it may not do, how it dies, and what that costs the others."""

import errno
import io
import os
import resource
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from owner.documents import handing
from owner.documents.handing import Converter
from owner.documents.limited import start_limited
from owner.documents.reading import Document, Skipped, read_documents
from owner.documents.walking import list_files
from shared.errors import DocumentsError
from tests.office import docx, good_files, message, packed, pdf, workbook
from tests.test_documents import CANARY, put, read_all, reasons

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits")
ROOT = Path(__file__).parent.parent
SEVENTEEN_BILLION = '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'


def exchanged(package, name, old, new):
    """Return a zip in one of whose files a text stands for another."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    assert old.encode() in files[name]
    return packed(files | {name: files[name].replace(old.encode(), new.encode())})


def far_cell():
    """Return a workbook of two cells in opposite corners: a table of all cells would need 400 GB."""
    return exchanged(workbook([["here"]]), "xl/worksheets/sheet1.xml", "</sheetData>", SEVENTEEN_BILLION)


def pretend(monkeypatch, code):
    """Let the child be a program that does `code` for each request, after `import`s and a ready answer."""
    before = """
import os, sys, time, json, signal
def send(message):
    content = message if isinstance(message, bytes) else json.dumps(message).encode()
    sys.stdout.buffer.write(len(content).to_bytes(4, "big") + content); sys.stdout.flush()
send({"ready": True})
for line in sys.stdin:
"""
    monkeypatch.setattr(handing, "_CODE", before + "".join(f"    {line}\n" for line in code.splitlines()))


def test_a_file_that_takes_all_memory_dies_alone(tmp_path):
    files = {
        "a.eml": message("s", "t").as_bytes(),
        "b.xlsx": far_cell(),
        "c.eml": message("u", "v").as_bytes(),
    }
    documents, skipped = read_all(tmp_path, files)
    assert [item.path for item in documents] == ["a.eml", "c.eml"]
    assert list(reasons(skipped)) == ["b.xlsx"]
    assert "memory" in reasons(skipped)["b.xlsx"]


def test_a_file_that_kills_its_reader_within_an_archive_leaves_the_others(tmp_path):
    inner = packed({"1.txt": b"one", "2.xlsx": far_cell(), "3.txt": b"three"})
    mail = message("s", "t", {"x.xlsx": far_cell(), "y.txt": b"y"})
    files = {"a.zip": packed({"0.txt": b"zero", "in.zip": inner, "4.txt": b"four"}), "b.eml": mail.as_bytes()}
    documents, skipped = read_all(tmp_path, files)
    assert [item.path for item in documents] == [
        *("a.zip/0.txt", "a.zip/in.zip/1.txt", "a.zip/in.zip/3.txt", "a.zip/4.txt"),
        *("b.eml", "b.eml/y.txt"),
    ]
    assert list(reasons(skipped)) == ["a.zip/in.zip/2.xlsx", "b.eml/x.xlsx"]


def test_an_archive_full_of_killers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(handing, "DEATHS", 2)
    killers = {f"{n}.xlsx": far_cell() for n in range(3)}
    documents, skipped = read_all(tmp_path, {"a.zip": packed(killers | {"z.txt": b"z"}), "b.json": b'["b"]'})
    assert [item.path for item in documents] == ["b.json"]
    assert list(reasons(skipped)) == ["a.zip/0.xlsx", "a.zip/1.xlsx", "a.zip"]
    assert skipped[-1].reason == "2 files in it ended their reader; the rest of it is not read"


def test_two_runs_give_the_same_documents_in_the_same_order(tmp_path):
    files = {
        "a.zip": packed({"b.docx": docx("b"), "k.xlsx": far_cell(), "a.txt": b"a"}),
        "b.pdf": pdf("text"),
    }
    first = read_all(tmp_path, files)
    assert first == read_all(tmp_path, {})
    assert len(first[0]) == 3


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "its reader ran out of time"),
        ("time.sleep(60)", "its reader ran out of time"),
        ("os.abort()", "its reader ended, perhaps for lack of memory: Aborted"),
        ("sys.exit(3)", "its reader failed"),
        ("send({'memory': True})", "its reader ran out of memory"),
        ("sys.stdout.buffer.write(b'\\xff' * 9); sys.stdout.flush()", "its reader gave what no reader gives"),
        ("send(b'no json')", "its reader gave what no reader gives"),
        ("send({'document': ['../other', 0, 'x']})", "its reader gave what no reader gives"),
        ("send({'document': ['a.pdf', 0, 7]})", "its reader gave what no reader gives"),
        ("send({'document': ['a.pdf', 0, '\\ud800']})", "its reader gave what no reader gives"),
        ("send({'format': 'disk'})", "its reader gave what no reader gives"),
        (
            "send({'skipped': ['a.pdf', '\\x1b[2J' + 'x' * 999, 1, 0]}); send({'end': 1})",
            "\\x1b[2J" + "x" * 293,
        ),
    ],
)
def test_however_a_child_behaves_the_file_is_skipped_and_the_run_goes_on(tmp_path, monkeypatch, code, reason):
    pretend(monkeypatch, code)
    monkeypatch.setattr(handing, "CPU_S", 0.2)
    monkeypatch.setattr(handing, "WALL_PER_CPU", 5)
    put(tmp_path, "b.txt", "x")
    documents, skipped = read_all(tmp_path, {"a.pdf": "x"})
    assert documents == [Document("b.txt", 0, "x")]
    assert skipped == [Skipped("a.pdf", reason)]


def test_a_child_that_gives_without_end_is_stopped(tmp_path, monkeypatch):
    pretend(monkeypatch, "while True: send({'document': ['a.pdf', 0, 'x' * (1 << 20)]})")
    monkeypatch.setattr(handing, "_ANSWER_BYTES", 4 << 20)
    documents, skipped = read_all(tmp_path, {"a.pdf": "x"})
    assert 60 < len(documents) < 70
    used = "its reader gave far more than its size; what was read until then is used"
    assert skipped == [Skipped("a.pdf", used)]


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENFILE])
def test_a_fault_of_the_machine_in_the_child_is_an_error(tmp_path, monkeypatch, number):
    pretend(monkeypatch, f"send({{'errno': {number}}})")
    put(tmp_path, "a.pdf", "x")
    with pytest.raises(DocumentsError, match=f"{errno.errorcode[number]}, a fault of disk"):
        list(read_documents(tmp_path, []))


def test_a_child_that_is_killed_or_cannot_start_is_an_error(tmp_path, monkeypatch):
    put(tmp_path, "a.pdf", "x")
    pretend(monkeypatch, "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(DocumentsError, match="was killed from outside"):
        list(read_documents(tmp_path, []))
    monkeypatch.setattr(handing, "_CODE", "sys.exit(1)")
    with pytest.raises(DocumentsError, match="does not start: its reader failed"):
        list(read_documents(tmp_path, []))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(DocumentsError, match="does not start: ENOENT"):
        list(read_documents(tmp_path, []))


def test_a_child_has_no_secrets_writes_nothing_and_has_limits(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", CANARY)
    code = f"""
import os, resource
print(sorted(os.environ), resource.getrlimit(resource.RLIMIT_AS), resource.getrlimit(resource.RLIMIT_CORE))
print(len(os.listdir("/proc/self/fd")), os.getpgid(0))
with open({str(tmp_path / "out")!r}, "wb") as out:
    out.write(b"x"); out.flush()
"""
    with open(os.devnull), start_limited(code, None, replace(handing.LIMITS, cpu_s=5)) as child:
        out, _ = child.communicate()
    limits, counts = out.decode().splitlines()
    n_open, group = counts.split()
    assert "SECRET" not in limits
    core = min(1, resource.getrlimit(resource.RLIMIT_CORE)[1] % 2**64)
    assert f"({2 << 30}, {2 << 30}) ({core}, {core})" in limits
    assert int(n_open) == 4
    assert int(group) != os.getpgid(0)  # an interrupt from the terminal does not reach it
    assert child.returncode != 0
    assert (tmp_path / "out").read_bytes() == b""


def test_the_time_of_a_file_is_counted_anew_for_each(tmp_path, monkeypatch):
    monkeypatch.setattr(handing, "CPU_S", 1)
    files = {f"{n}.docx": docx("text " * 50) for n in range(9)}
    documents, skipped = read_all(tmp_path, files)
    assert {item.reason for item in skipped} == set()


def test_files_that_go_or_are_exchanged_are_listed_as_in_a_folder(tmp_path):
    for name in "abc":
        put(tmp_path, f"{name}.json", '["x"]')
    listed = list(list_files(tmp_path, []))
    (tmp_path / "b.json").unlink()
    (tmp_path / "c.json").unlink()
    (tmp_path / "c.json").symlink_to("a.json")
    converter = Converter()
    found = [next(converter.read(file, file.name)) for file in listed]
    converter.close()
    assert found == [
        Document("a.json", 1, "x"),
        Skipped("b.json", "no longer there"),
        Skipped("c.json", "symbolic link"),
    ]


def test_the_process_with_private_text_imports_no_parser(tmp_path):
    for name, content in {"a.pdf": pdf("text"), "b.docx": docx("x"), "c.xlsx": workbook([["x"]])}.items():
        put(tmp_path, name, content)
    code = """
import sys
from pathlib import Path
from owner.documents.reading import read_documents
assert len(list(read_documents(Path(sys.argv[1]), []))) == 3
parsers = {"pypdf", "mammoth", "pptx", "lxml", "python_calamine", "owner.documents.converting"}
print(sorted(parsers & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_conversion_opens_no_socket_no_process_and_no_file(tmp_path):
    linked = docx("a picture that lies elsewhere")
    picture = (
        '<w:p><w:r><w:pict><v:shape xmlns:v="urn:schemas-microsoft-com:vml"><v:imagedata'
        ' xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships" r:id="rId99"/>'
        "</v:shape></w:pict></w:r></w:p></w:body>"
    )
    link = (
        '<Relationship Id="rId99" TargetMode="External" Target="file:///etc/hostname" Type="http://schemas'
        '.openxmlformats.org/officeDocument/2006/relationships/image"/></Relationships>'
    )
    linked = exchanged(linked, "word/document.xml", "</w:body>", picture)
    linked = exchanged(linked, "word/_rels/document.xml.rels", "</Relationships>", link)
    for name, content in {**good_files(tmp_path), "linked.docx": linked}.items():
        put(tmp_path, name, content)
    code = """
import io, sys
from pathlib import Path
from owner.documents.archives import Budget
from owner.documents.converting import convert
from owner.documents.reading import Document
files = {path.name: path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())}
def run():
    found = [list(convert(io.BytesIO(content), name, Budget(1 << 26))) for name, content in files.items()]
    return sum(isinstance(item, Document) for items in found for item in items)
n, events = run(), []
sys.addaudithook(lambda event, arguments: events.append(event + repr(arguments)[:99]) if event.startswith(
    ("socket.", "open", "os.", "subprocess.", "urllib.", "tempfile.", "ctypes.")) else None)
print(n == run(), n, events)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    is_same, n, events = done.stdout.rstrip("\n").split(" ", 2)
    assert (is_same, events) == ("True", "[]")
    assert int(n) > 25
