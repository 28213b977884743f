"""Encrypted keys, passphrases from a file or a terminal, and trust files written and signed with them."""

import contextlib
import os
import pty
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from owner.trust.pinning import add_trust_file, update_trust_file
from provider.cli import main
from provider.signing import KDF_ROUNDS, create_key, create_p256_key, read_p256_key, read_signing_key
from provider.trusting import read_plan
from shared.errors import RecipeError, SignatureError, TrustError
from shared.trust_file import Signed, read_signed
from tests.parties import ROOT
from tests.trust_files import ROOTS, write

ON_TERMINAL = """
import os, sys
os.setsid()
os.close(os.open(os.ttyname(0), os.O_RDWR))  # the session's first terminal becomes its own
from provider.cli import main
main(sys.argv[1:])
"""


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def run_on_terminal(answers: list[str], *arguments: object, cwd: Path) -> tuple[int, str, str]:
    """Run `provider` on a pseudo-terminal, answer its questions; return exit code, screen and stdout."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ON_TERMINAL, *map(str, arguments)],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    os.close(theirs)
    screens = []
    for answer in answers:
        shown = b""
        while not shown.endswith(b": "):
            shown += os.read(ours, 1024)
        os.write(ours, answer.encode() + b"\n")
        screens.append(shown)
    out, _ = process.communicate(timeout=60)
    with contextlib.suppress(OSError):  # the terminal ends with the process
        while rest := os.read(ours, 1024):
            screens.append(rest)
    os.close(ours)
    return process.returncode, b"".join(screens).decode(), out.decode()


@pytest.fixture
def passphrase_file(tmp_path):
    path = tmp_path / "passphrase"
    path.write_text("correct horse\nsecond line\n")
    path.chmod(0o600)
    return path


def test_a_key_is_encrypted_private_and_read_with_its_passphrase_only(tmp_path, passphrase_file):
    private, public = tmp_path / "provider.key", tmp_path / "provider.pub"
    done = run("keygen", private, public, "--passphrase-file", passphrase_file)
    assert done.exit_code == 0, done.output
    assert f"wrote {private} (encrypted; keep its passphrase) and {public}" in done.stderr
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert private.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    key = read_signing_key(private, lambda: b"correct horse")
    assert done.stdout == f"{key.public_key.key_id}\n"
    with pytest.raises(SignatureError, match="the passphrase is wrong, or it is no PEM private key"):
        read_signing_key(private, lambda: b"wrong horse")
    with pytest.raises(SignatureError, match="is encrypted, and there is no passphrase to read it with"):
        read_signing_key(private)
    again = run("keygen", private, public, "--passphrase-file", passphrase_file)
    assert again.exit_code == 1
    assert "exists; a key is never overwritten" in again.output


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
@pytest.mark.parametrize("kind", ["ed25519", "p256"])
def test_openssl_reads_an_encrypted_key_and_sees_the_rounds(tmp_path, kind):
    private, public = tmp_path / "x.key", tmp_path / "x.pub"
    (create_key if kind == "ed25519" else create_p256_key)(private, public, b"correct horse")

    def openssl(*arguments):
        command = ["openssl", *arguments, "-in", str(private)]
        return subprocess.run(command, capture_output=True, text=True)

    shown = openssl("pkey", "-passin", "pass:correct horse", "-pubout")
    assert shown.stdout == public.read_text()
    assert openssl("pkey", "-passin", "pass:wrong horse", "-pubout").returncode != 0
    structure = openssl("asn1parse").stdout
    assert f":{KDF_ROUNDS:06X}\n" in structure
    for name in ("PBES2", "PBKDF2", "hmacWithSHA256", "aes-256-cbc"):
        assert f":{name}\n" in structure


def test_two_keys_of_one_passphrase_share_no_salt(tmp_path):
    for name in ("a", "b"):
        create_key(tmp_path / f"{name}.key", tmp_path / f"{name}.pub", b"same")
    lines = [set((tmp_path / f"{name}.key").read_text().splitlines()[1:-1]) for name in ("a", "b")]
    assert not lines[0] & lines[1]


def test_an_unencrypted_key_must_be_asked_for_and_is_called_so(tmp_path):
    names = tmp_path / "a.key", tmp_path / "a.pub"
    refused = run("keygen", *names)
    assert refused.exit_code == 1
    assert "needs a passphrase, and there is no terminal to ask for it" in refused.output
    assert "--passphrase-file FILE, or make a key without one: --no-passphrase" in refused.output
    assert list(tmp_path.iterdir()) == []
    done = run("keygen", "--no-passphrase", *names)
    assert "NOT encrypted: who has it can sign" in done.stderr
    read_signing_key(names[0])
    both = run("keygen", "--no-passphrase", "--passphrase-file", "x", *names)
    assert both.exit_code == 2


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_passphrase_file_that_others_can_open_is_refused(tmp_path, passphrase_file, mode):
    passphrase_file.chmod(mode)
    done = run("keygen", tmp_path / "a.key", tmp_path / "a.pub", "--passphrase-file", passphrase_file)
    assert done.exit_code == 1
    assert f"passphrase can be opened by others, mode {mode:04o}, expected 0600" in done.output


def test_an_empty_passphrase_is_none(tmp_path, passphrase_file):
    passphrase_file.write_text("\nsecond line")
    done = run("keygen", tmp_path / "a.key", tmp_path / "a.pub", "--passphrase-file", passphrase_file)
    assert done.exit_code == 1
    assert "its first line is empty, expected a passphrase" in done.output


def test_the_terminal_is_asked_twice_for_a_new_key_and_once_to_use_it(tmp_path):
    code, screen, out = run_on_terminal(
        ["one", "other", "one", "one"], "keygen", "a.key", "a.pub", cwd=tmp_path
    )
    assert code == 0, screen
    assert screen.count("provider: passphrase of a.key:") == 2
    assert "do not match" in screen
    assert not {"one", "other"} & set(screen.split())
    key = read_signing_key(tmp_path / "a.key", lambda: b"one")
    assert out == f"{key.public_key.key_id}\n"
    write(tmp_path / "trust.json", ROOTS[:1])
    code, screen, _ = run_on_terminal(["one"], "trust", "sign", "trust.json", "--key", "a.key", cwd=tmp_path)
    assert code == 0, screen
    assert dict(read_signed(tmp_path / "trust.json").signatures).keys() == {
        ROOTS[0].public_key.key_id,
        key.public_key.key_id,
    }


def test_a_p256_key_is_no_ed25519_key_and_the_other_way_round(tmp_path):
    assert (
        run("keygen", "--no-passphrase", "--type", "p256", tmp_path / "o.key", tmp_path / "o.pub").stdout
        == ""
    )
    read_p256_key(tmp_path / "o.key")
    with pytest.raises(SignatureError, match="another type, expected Ed25519"):
        read_signing_key(tmp_path / "o.key")
    create_key(tmp_path / "e.key", tmp_path / "e.pub")
    with pytest.raises(SignatureError, match="another type, expected P-256") as error:
        read_p256_key(tmp_path / "e.key")
    assert "provider keygen --type p256" in error.value.hint


def test_a_release_without_a_key_says_how_to_make_one_before_any_work(tmp_path):
    recipe = ROOT / "examples/quickstart/release.toml"
    done = run("release", recipe, "--corpus", tmp_path, "--key", tmp_path / "p.key")
    assert done.exit_code == 1
    assert "p.key: there is no such key" in done.output
    assert f"provider keygen {tmp_path / 'p.key'} {tmp_path / 'p.pub'}" in done.output
    create_key(tmp_path / "p.key", tmp_path / "p.pub", b"secret")
    done = run("release", recipe, "--corpus", tmp_path, "--key", tmp_path / "p.key")
    assert "needs a passphrase, and there is no terminal to ask for it" in done.output
    assert "--no-passphrase" not in done.output


# Trust files


PLAN = """
name = "acme"
version = {version}
created = 2026-11-21T01:00:00+01:00
expires = 2027-02-21T00:00:00Z
revoked_keys = ["2222222222222222", "1111111111111111"]

[roots]
threshold = 2
keys = ["root1.pub", "root2.pub", "root3.pub"]

[[keys]]
file = "provider.pub"
bundles = ["tiny", "pn*"]

[minimum_versions]
pn32 = 2
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A folder with a plan and its keys; the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLANEARLY_HOME", str(tmp_path / "home"))
    for name in ("root1", "root2", "root3", "provider"):
        create_key(tmp_path / f"{name}.key", tmp_path / f"{name}.pub")
    (tmp_path / "trust.toml").write_text(PLAN.format(version=1))
    return tmp_path


def test_roots_sign_one_after_another_and_what_is_short_says_so(plan):
    done = run("trust", "write", "trust.toml", "--key", "root3.key")
    assert done.exit_code == 0, done.output
    assert "trust.json: acme version 1 · 1 of 2 signatures" in done.stderr
    assert "owners refuse it until more of its roots sign" in done.stderr
    roots = done.stdout.strip()
    with pytest.raises(TrustError, match="roots: 1 of 2 signatures"):
        add_trust_file(Path("trust.json"), roots)
    done = run("trust", "sign", "trust.json", "--key", "root1.key")
    assert "2 of 2 signatures" in done.stderr
    assert "owners refuse" not in done.stderr
    assert done.stdout.strip() == roots
    before = Path("trust.json").read_bytes()
    assert "2 of 2" in run("trust", "sign", "trust.json", "--key", "root1.key").stderr
    assert Path("trust.json").read_bytes() == before
    trust = add_trust_file(Path("trust.json"), roots)
    assert trust.revoked_keys == {"1" * 16, "2" * 16}
    assert trust.minimum_versions == {"pn32": 2}
    assert trust.covers(read_signing_key(Path("provider.key")).public_key.key_id, "tiny")
    assert trust.created.hour == 0


def test_the_order_of_signing_does_not_matter(plan):
    files = []
    for order in (["root1", "root2"], ["root2", "root1"]):
        out = f"{order[0]}.json"
        run("trust", "write", "trust.toml", "--key", f"{order[0]}.key", "--out", out)
        run("trust", "sign", out, "--key", f"{order[1]}.key")
        files.append(Path(out).read_bytes())
    both = run(
        "trust", "write", "trust.toml", "--key", "root2.key", "--key", "root1.key", "--out", "both.json"
    )
    assert "2 of 2 signatures" in both.stderr
    assert files[0] == files[1] == Path("both.json").read_bytes()


def test_a_root_that_leaves_signs_its_successors_too(plan):
    roots = run("trust", "write", "trust.toml", "--key", "root1.key", "--key", "root2.key").stdout.strip()
    add_trust_file(Path("trust.json"), roots)
    text = PLAN.format(version=2).replace("threshold = 2", "threshold = 1")
    Path("trust.toml").write_text(text.replace('["root1.pub", "root2.pub", "root3.pub"]', '["root3.pub"]'))
    run("trust", "write", "trust.toml", "--key", "root3.key", "--out", "next.json")
    with pytest.raises(TrustError, match="stored roots: 1 of 2"):
        update_trust_file(Path("next.json"))
    assert "1 of 1 signatures" in run("trust", "sign", "next.json", "--key", "root1.key").stderr
    assert update_trust_file(Path("next.json"))[0].version == 2


def test_a_trust_file_is_never_overwritten_and_a_damaged_one_not_signed(plan):
    run("trust", "write", "trust.toml", "--key", "root1.key")
    again = run("trust", "write", "trust.toml", "--key", "root1.key")
    assert again.exit_code == 1
    assert "trust.json: already exists" in again.output
    signed = read_signed(Path("trust.json"))
    ((key_id, signature),) = signed.signatures
    Path("trust.json").write_bytes(Signed("", signed.payload, ((key_id, signature[::-1]),)).text())
    refused = run("trust", "sign", "trust.json", "--key", "root2.key")
    assert refused.exit_code == 1
    assert f"roots: root {key_id} did not sign this payload" in refused.output


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name = "acme"', 'name = "Acme"', "name is 'Acme'"),
        ("version = 1", "", "field version is missing"),
        ("version = 1", "version = 1\nfree = 2", "unknown field 'free'"),
        ("2027-02-21T00:00:00Z", "2027-02-21T00:00:00", "expires: expected a time with a zone"),
        ("2027-02-21T00:00:00Z", "2025-02-21T00:00:00Z", "expected later than created"),
        ("threshold = 2", "threshold = 4", "roots.threshold is 4, expected an integer from 1 to 3"),
        ('["root1.pub", "root2.pub", "root3.pub"]', "[1]", "roots.keys: expected names of public key files"),
        ('"root3.pub"', '"root1.pub"', "not in ascending order, each once"),
        ('bundles = ["tiny", "pn*"]', 'bundles = "tiny"', "keys.bundles is not a list"),
        ('file = "provider.pub"', "", "field file is missing"),
        ("[[keys]]", "[keys]", "keys is not a list"),
        ("[roots]", "[roots]]", "is no TOML"),
    ],
)
def test_a_bad_plan_names_the_field(plan, old, new, problem):
    assert old in PLAN.format(version=1)
    Path("trust.toml").write_text(PLAN.format(version=1).replace(old, new))
    done = run("trust", "write", "trust.toml", "--key", "root1.key")
    assert done.exit_code == 1
    assert "trust.toml: " in done.output
    assert problem in done.output
    assert not Path("trust.json").exists()


def test_the_plan_in_the_examples_is_whole(plan):
    Path("trust.toml").write_text((ROOT / "examples/trust.toml").read_text())
    done = run("trust", "write", "trust.toml", "--key", "root1.key", "--key", "root3.key")
    assert "acme version 1 · 2 of 2 signatures" in done.stderr


def test_a_plan_is_text_in_utf_8(plan):
    Path("latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(RecipeError, match="latin.toml: is no TOML"):
        read_plan(Path("latin.toml"))
