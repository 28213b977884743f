"""Pinned keys and the record of versions seen."""

import json
import os
import random

import pytest

from owner.trust.pinning import pin_key, pinned_keys, remove, trust_folder
from owner.trust.remembering import check_not_rolled_back, key_name, remember_version, trust_home
from shared.errors import BundleError, PlanearlyError, SignatureError, TrustError
from shared.signature import PublicKey, public_key_pem


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    monkeypatch.setenv("PLANEARLY_HOME", str(folder))
    return folder


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "provider.pub"
    path.write_bytes(public_key_pem(PublicKey(bytes(range(32)))))
    return path


def test_nobody_is_trusted_at_first():
    assert pinned_keys() == []


def test_a_pinned_key_is_trusted_until_it_is_removed(key_file):
    key = pin_key(key_file)
    assert key == PublicKey(bytes(range(32)))
    assert pinned_keys() == [key]
    remove(key.key_id)
    assert pinned_keys() == []


def test_pinning_twice_changes_nothing(key_file, home):
    key = pin_key(key_file, "acme")
    before = {path: path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}
    assert pin_key(key_file) == key
    assert {path: path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()} == before
    assert key_name(key.key_id) == "acme"
    assert key_name("0" * 16) == ""


def test_what_is_pinned_is_for_this_user_only(key_file, home):
    pin_key(key_file)
    assert home.stat().st_mode & 0o077 == 0
    assert trust_folder().stat().st_mode & 0o077 == 0


def test_the_folder_is_chosen_as_documented(monkeypatch, tmp_path):
    monkeypatch.delenv("PLANEARLY_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert trust_home() == tmp_path / "xdg" / "planearly"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert trust_folder() == tmp_path / ".config" / "planearly" / "trust"


def test_a_damaged_pinned_key_is_an_error_that_names_it(key_file):
    key = pin_key(key_file)
    path = trust_folder() / f"{key.key_id}.pub"
    path.write_bytes(b"damaged")
    with pytest.raises(SignatureError, match=f"pinned key .*{key.key_id}.pub: is no PEM") as error:
        pinned_keys()
    assert str(path) in error.value.hint


def test_a_pinned_key_under_another_name_is_refused(key_file):
    key = pin_key(key_file)
    (trust_folder() / f"{key.key_id}.pub").rename(trust_folder() / "0000000000000000.pub")
    with pytest.raises(SignatureError, match=f"holds key {key.key_id}, expected the one in its name"):
        pinned_keys()


def test_only_what_is_trusted_can_be_removed():
    for which in ("0123456789abcdef", "../../../etc/passwd", "acme"):
        with pytest.raises(TrustError, match="no such pinned key or trust file") as error:
            remove(which)
        assert error.value.hint == "owner trust list shows what there is"


def test_an_older_version_is_refused():
    check_not_rolled_back(["a" * 16], "pn32", 1)
    remember_version("a" * 16, "pn32", 3)
    check_not_rolled_back(["a" * 16], "pn32", 3)
    check_not_rolled_back(["a" * 16], "pn32", 4)
    check_not_rolled_back(["a" * 16], "another", 1)
    check_not_rolled_back(["b" * 16], "pn32", 1)
    with pytest.raises(BundleError, match="pn32 version 2 is older than version 3 by key a{16}") as error:
        check_not_rolled_back(["a" * 16], "pn32", 2)
    assert "get the newest" in error.value.hint


def test_the_highest_version_stays_whatever_the_order():
    seen: dict[tuple[str, str], int] = {}
    source = random.Random(0)
    for _ in range(60):
        key_id, name = source.choice("ab") * 16, source.choice(["one", "two"])
        version = source.randint(1, 20)
        remember_version(key_id, name, version)
        seen[key_id, name] = max(version, seen.get((key_id, name), 0))
        for (key, bundle), highest in seen.items():
            check_not_rolled_back([key], bundle, highest)
            with pytest.raises(BundleError):
                check_not_rolled_back([key], bundle, highest - 1)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        "{}",
        '{"format": "planearly-trust/v2", "names": {}, "versions": {}}',
        '{"format": "planearly-trust/v1", "names": [], "versions": {}}',
        '{"format": "planearly-trust/v1", "names": {}, "versions": []}',
        '{"format": "planearly-trust/v1", "names": {}, "versions": {"a": 1}}',
        '{"format": "planearly-trust/v1", "names": {}, "versions": {"a": {"b": "1"}}}',
        '{"format": "planearly-trust/v1", "time": 3}',
        '{"format": "planearly-trust/v1", "time": "yesterday"}',
        '{"format": "planearly-trust/v1", "trust_files": []}',
        '{"format": "planearly-trust/v1", "trust_files": {"acme": {"version": 1}}}',
        '{"format": "planearly-trust/v1", "trust_files": {"acme": []}}',
    ],
)
def test_a_damaged_record_is_an_error_and_not_an_empty_one(home, content):
    home.mkdir()
    (home / "state.json").write_text(content)
    for call, key in ((check_not_rolled_back, ["a" * 16]), (remember_version, "a" * 16)):
        with pytest.raises(PlanearlyError, match="state.json: is damaged"):
            call(key, "pn32", 1)
    assert (home / "state.json").read_text() == content


def test_a_failed_write_leaves_the_old_record(home, monkeypatch):
    remember_version("a" * 16, "pn32", 3)
    before = (home / "state.json").read_bytes()

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        remember_version("a" * 16, "pn32", 4)
    assert (home / "state.json").read_bytes() == before
    assert os.listdir(home) == ["state.json"]


def test_the_record_is_plain_json(home):
    remember_version("a" * 16, "pn32", 3)
    assert json.loads((home / "state.json").read_text()) == {
        "format": "planearly-trust/v1",
        "names": {},
        "versions": {"a" * 16: {"pn32": 3}},
        "time": "",
        "trust_files": {},
    }


def test_a_record_of_before_there_were_trust_files_is_read(home):
    home.mkdir()
    before = {"format": "planearly-trust/v1", "names": {}, "versions": {"a" * 16: {"pn32": 3}}}
    (home / "state.json").write_text(json.dumps(before))
    with pytest.raises(BundleError, match="older than version 3"):
        check_not_rolled_back(["a" * 16], "pn32", 2)
