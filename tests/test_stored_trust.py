"""Trust files that an owner stores: first use, updates, removal, damage; after TUF's conformance tests."""

import os

import pytest

from owner.trust.pinning import (
    add_trust_file,
    is_trust_file,
    pin_key,
    remove,
    stored_trust_files,
    trust_folder,
    update_trust_file,
)
from owner.trust.remembering import seen_files
from shared.errors import TrustError
from shared.signature import public_key_pem
from tests.trust_files import ROOTS, SIGNER, STRANGER, fingerprint, roots_field, write

ONE, TWO_OF_THREE = roots_field(ROOTS[:1], 1), roots_field(ROOTS[1:], 2)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    monkeypatch.setenv("PLANEARLY_HOME", str(folder))
    return folder


@pytest.fixture
def stored(tmp_path):
    """A folder in which acme's version 5, of one root, is stored."""
    add_trust_file(write(tmp_path / "5.json", ROOTS[:1], version=5), fingerprint())
    return tmp_path


def versions() -> list[tuple[str, int]]:
    return [(trust.name, trust.version) for trust in stored_trust_files()]


def files() -> list[str]:
    return sorted(os.listdir(trust_folder()))


def test_nothing_is_stored_at_first():
    assert stored_trust_files() == []


def test_first_use_needs_the_fingerprint_and_does_not_tell_it(tmp_path, home):
    path = write(tmp_path / "trust.json", ROOTS[:1])
    for given in ("", fingerprint()[:16], fingerprint().upper()):
        with pytest.raises(TrustError, match="needs the fingerprint of its roots") as error:
            add_trust_file(path, given)
        assert "ask its provider, over another channel" in error.value.hint
        assert fingerprint() not in str(error.value) + error.value.hint
    with pytest.raises(TrustError, match="its roots are not those of"):
        add_trust_file(path, "0" * 64)
    assert not home.exists()


def test_what_is_added_is_stored_and_again_changes_nothing(stored):
    assert versions() == [("acme", 5)]
    assert files() == ["acme-5.json"]
    assert trust_folder().stat().st_mode & 0o077 == 0
    add_trust_file(stored / "5.json", fingerprint())
    assert files() == ["acme-5.json"]


def test_a_later_version_by_the_same_roots_takes_its_place(stored):
    found, is_new = update_trust_file(write(stored / "7.json", ROOTS[:1], version=7))
    assert (found.version, is_new) == (7, True)
    assert files() == ["acme-7.json"]
    assert update_trust_file(stored / "7.json")[1] is False


def test_a_rollback_is_refused(stored):
    before = stored_trust_files()
    with pytest.raises(TrustError, match="acme version 4 is older than version 5, seen here before"):
        update_trust_file(write(stored / "4.json", ROOTS[:1], version=4))
    assert stored_trust_files() == before


def test_the_same_version_with_another_content_is_refused(stored):
    other = write(stored / "other.json", ROOTS[:1], version=5, minimum_versions={"pn32": 2})
    with pytest.raises(TrustError, match="differs from the acme version 5 that was seen here before"):
        update_trust_file(other)
    with pytest.raises(TrustError, match="another trust file of acme is stored, version 5") as error:
        add_trust_file(other, fingerprint())
    assert "owner trust update" in error.value.hint


def test_one_more_signature_is_not_another_content(stored):
    more = write(stored / "more.json", [ROOTS[0], STRANGER], version=5)
    assert update_trust_file(more)[1] is False


def test_removing_does_not_open_the_way_back(stored):
    remove("acme")
    assert stored_trust_files() == []
    assert files() == []
    with pytest.raises(TrustError, match="older than version 5"):
        add_trust_file(write(stored / "4.json", ROOTS[:1], version=4), fingerprint())
    with pytest.raises(TrustError, match="differs from the acme version 5"):
        add_trust_file(write(stored / "x.json", ROOTS[:1], version=5, keys=[]), fingerprint())
    with pytest.raises(TrustError, match="no trust file of acme is stored") as error:
        update_trust_file(stored / "5.json")
    assert "--roots FINGERPRINT" in error.value.hint
    with pytest.raises(TrustError, match="acme: no such pinned key or trust file"):
        remove("acme")
    add_trust_file(stored / "5.json", fingerprint())
    assert versions() == [("acme", 5)]


def test_new_roots_may_be_named_by_hand_after_a_removal_but_no_lower_version(stored):
    remove("acme")
    new = roots_field([STRANGER], 1)
    with pytest.raises(TrustError, match="older than version 5"):
        add_trust_file(write(stored / "4.json", [STRANGER], version=4, roots=new), fingerprint(roots=new))
    add_trust_file(write(stored / "6.json", [STRANGER], version=6, roots=new), fingerprint(roots=new))
    assert versions() == [("acme", 6)]


def test_roots_rotate_from_one_to_two_of_three_and_back(stored):
    steps = [
        (6, TWO_OF_THREE, [ROOTS[0], ROOTS[1], ROOTS[3]]),
        (7, TWO_OF_THREE, [ROOTS[2], ROOTS[3]]),
        (8, ONE, [ROOTS[0], ROOTS[1], ROOTS[2]]),
        (9, ONE, [ROOTS[0]]),
    ]
    for version, roots, signers in steps:
        update_trust_file(write(stored / f"{version}.json", signers, version=version, roots=roots))
        assert versions() == [("acme", version)]


@pytest.mark.parametrize(
    ("signers", "problem"),
    [
        ([ROOTS[0]], "roots: 0 of 2 signatures"),
        ([ROOTS[0], ROOTS[1]], "roots: 1 of 2 signatures"),
        ([ROOTS[1], ROOTS[2], ROOTS[3]], "stored roots: 0 of 1 signatures"),
        ([STRANGER], "stored roots: 0 of 1 signatures"),
    ],
)
def test_a_rotation_signed_by_one_side_alone_is_refused(stored, signers, problem):
    with pytest.raises(TrustError, match=problem):
        update_trust_file(write(stored / "6.json", signers, version=6, roots=TWO_OF_THREE))
    assert versions() == [("acme", 5)]


def test_roots_that_were_rotated_out_no_longer_count(stored):
    update_trust_file(write(stored / "6.json", ROOTS, version=6, roots=TWO_OF_THREE))
    with pytest.raises(TrustError, match="stored roots: 0 of 2 signatures"):
        update_trust_file(write(stored / "7.json", ROOTS[:1], version=7))


def test_providers_do_not_touch_each_other(stored):
    other = roots_field([STRANGER], 1)
    path = write(stored / "zeta.json", [STRANGER], name="zeta", version=2, roots=other)
    with pytest.raises(TrustError, match="no trust file of zeta is stored"):
        update_trust_file(path)
    add_trust_file(path, fingerprint(roots=other))
    assert versions() == [("acme", 5), ("zeta", 2)]
    with pytest.raises(TrustError, match="stored roots: 0 of 1 signatures"):
        update_trust_file(write(stored / "6.json", [STRANGER], version=6, roots=other))
    remove("acme")
    assert versions() == [("zeta", 2)]


def test_names_that_share_a_beginning_do_not_share_files(stored):
    other = roots_field([STRANGER], 1)
    path = write(stored / "b.json", [STRANGER], name="acme-5", version=5, roots=other)
    add_trust_file(path, fingerprint(roots=other))
    assert files() == ["acme-5-5.json", "acme-5.json"]
    remove("acme-5")
    assert versions() == [("acme", 5)]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "older"])
def test_a_damaged_stored_file_is_an_error_that_names_it_and_the_remedy(stored, damage):
    path = trust_folder() / "acme-5.json"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    older = write(stored / "4.json", ROOTS[:1], version=4).read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-9]), "older": older}[damage])
    with pytest.raises(TrustError, match="stored trust file .*acme-5.json") as error:
        stored_trust_files()
    assert "version 5 or later; then owner trust remove acme" in error.value.hint
    assert f"--roots {fingerprint()}" in error.value.hint
    with pytest.raises(TrustError, match="stored trust file"):
        update_trust_file(write(stored / "6.json", ROOTS[:1], version=6))
    remove("acme")
    add_trust_file(stored / "5.json", fingerprint())
    assert versions() == [("acme", 5)]


def test_files_left_by_a_killed_run_are_not_trusted_and_go_away(stored):
    write(trust_folder() / "acme-9.json", ROOTS[:1], version=9)
    write(trust_folder() / "zeta-1.json", ROOTS[:1], name="zeta")
    assert versions() == [("acme", 5)]
    update_trust_file(write(stored / "6.json", ROOTS[:1], version=6))
    assert files() == ["acme-6.json"]


@pytest.mark.parametrize("fault", [1, 2, 3, 4, 5, 6])
def test_a_failing_write_leaves_the_old_file_or_the_new_one(stored, monkeypatch, fault):
    """The n-th fsync fails: of the file, of its folder, of the record, of its folder."""
    real, calls = os.fsync, []

    def sometimes(descriptor):
        calls.append(descriptor)
        if len(calls) == fault:
            raise OSError(28, "No space left on device")
        real(descriptor)

    path = write(stored / "6.json", ROOTS[:1], version=6)
    monkeypatch.setattr(os, "fsync", sometimes)
    if fault <= 4:
        with pytest.raises(OSError, match="No space left"):
            update_trust_file(path)
    else:
        update_trust_file(path)
    monkeypatch.setattr(os, "fsync", real)
    assert versions() in ([("acme", 5)], [("acme", 6)])
    update_trust_file(path)
    assert versions() == [("acme", 6)]
    assert seen_files()["acme"].version == 6


def test_a_key_and_a_trust_file_are_told_apart_by_their_content(tmp_path):
    key = tmp_path / "provider.json"
    key.write_bytes(public_key_pem(SIGNER.public_key))
    assert not is_trust_file(key)
    assert is_trust_file(write(tmp_path / "trust.pub", ROOTS[:1]))
    pinned = pin_key(key)
    assert stored_trust_files() == []
    remove(pinned.key_id)
