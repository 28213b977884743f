"""Which bundles an owner's trust covers: scope, expiry, revocation, minimum version, the clock."""

import json
from contextlib import ExitStack
from datetime import timedelta

import pytest
from click.testing import CliRunner

import owner.trust.remembering
from owner.cli import main
from owner.trust.opening import open_trusted
from owner.trust.pinning import add_trust_file, pin_key, remove, update_trust_file
from owner.trust.remembering import latest_time
from owner.trust.vouching import OLD_AFTER_DAYS, describe_trust, manifest_digest, read_trust
from shared.bundle import open_bundle
from shared.errors import BundleError, PlanearlyError, SignatureError
from shared.names import write_time
from shared.signature import public_key_pem
from tests.trust_files import (
    CREATED,
    NOW,
    ROOTS,
    SECOND_SIGNER,
    SIGNER,
    STRANGER,
    fingerprint,
    keys_field,
    roots_field,
    write,
    write_small_bundle,
)

EXPIRES = CREATED + timedelta(days=90)


@pytest.fixture(autouse=True)
def clock(tmp_path, monkeypatch):
    """The machine's clock, to be set: `clock(moment)`. A home of its own."""
    monkeypatch.setenv("PLANEARLY_HOME", str(tmp_path / "home"))

    def set_clock(moment):
        monkeypatch.setattr(owner.trust.remembering, "read_clock", lambda: moment)

    set_clock(NOW)
    return set_clock


@pytest.fixture
def add(tmp_path):
    """Store acme's trust file with some fields changed; a second call updates it."""

    def store(signers=ROOTS[:1], **changes):
        path = write(tmp_path / "trust.json", signers, **changes)
        if changes.get("version", 1) > 1:
            return update_trust_file(path)[0]
        return add_trust_file(path, fingerprint(**{k: v for k, v in changes.items() if k == "roots"}))

    return store


@pytest.fixture
def bundle(tmp_path):
    """Write a bundle by name, version and key; return its path."""

    def make(name="pn32", version=1, key=SIGNER):
        return write_small_bundle(
            tmp_path / f"{name}-{version}-{key.public_key.key_id}.st", name, version, key
        )

    return make


def pin(tmp_path, key):
    path = tmp_path / "provider.pub"
    path.write_bytes(public_key_pem(key.public_key))
    return pin_key(path)


def use(path, stale_reason=None):
    """Open a bundle as `owner specialize` does; return who vouches, and what was said."""
    said = []
    with ExitStack() as stack:
        _, voucher = open_trusted(path, stack, read_trust(stale_reason), said.append)
    return voucher, said


def test_a_key_of_a_trust_file_opens_what_its_scope_covers(add, bundle):
    add(keys=keys_field({SIGNER: ["pn*"], SECOND_SIGNER: ["tiny"]}))
    voucher, said = use(bundle())
    assert voucher == {
        "bundle": "pn32",
        "key_id": SIGNER.public_key.key_id,
        "by": "trust file",
        "name": "acme",
        "version": 1,
        "age_days": 10,
        "expires": "2027-01-30T00:00:00Z",
        "stale_reason": None,
    }
    assert said == ["trust file   acme version 1 · 10 days old · expires 2027-01-30T00:00:00Z"]
    with pytest.raises(
        SignatureError, match="tiny is no bundle that key .* may sign, says the trust file of acme"
    ):
        use(bundle("tiny"))
    use(bundle("tiny", key=SECOND_SIGNER))


def test_a_key_of_nobody_stays_unknown(add, bundle):
    for _ in range(2):
        with pytest.raises(SignatureError, match="signed by unknown key"):
            use(bundle(key=STRANGER))
        add()


def test_a_pinned_key_opens_every_name_and_says_nothing(tmp_path, add, bundle):
    key = pin(tmp_path, SIGNER)
    assert use(bundle("anything")) == (
        {"bundle": "anything", "key_id": key.key_id, "by": "pinned key"},
        [],
    )
    add(keys=keys_field({SIGNER: ["pn*"]}))
    use(bundle("anything"))


def test_of_two_files_the_one_that_covers_and_is_not_expired_vouches(add, bundle, tmp_path, clock):
    add(keys=keys_field({SIGNER: ["other"]}))
    roots = roots_field([STRANGER], 1)
    for name, expires in (("beta", "2026-12-01T00:00:00Z"), ("gamma", "2027-06-01T00:00:00Z")):
        path = write(tmp_path / f"{name}.json", [STRANGER], name=name, roots=roots, expires=expires)
        add_trust_file(path, fingerprint(roots=roots))
    assert use(bundle())[0]["name"] == "beta"
    clock(NOW + timedelta(days=40))
    assert use(bundle())[0]["name"] == "gamma"
    assert use(bundle(), "no stick today")[0]["name"] == "gamma"


def test_an_old_trust_file_is_called_old(add, bundle, clock):
    add()
    for days, is_old in ((OLD_AFTER_DAYS - 1, False), (OLD_AFTER_DAYS, True)):
        clock(CREATED + timedelta(days=days))
        _, (line,) = use(bundle())
        assert f"{days} days old" in line
        assert line.endswith("OLD: ask its provider for a newer one") is is_old


def test_at_its_expiry_a_trust_file_is_refused_unless_with_a_reason(add, bundle, clock):
    add()
    clock(EXPIRES - timedelta(seconds=1))
    use(bundle())
    clock(EXPIRES)
    with pytest.raises(
        SignatureError, match="whose trust file version 1 expired 2027-01-30T00:00:00Z"
    ) as error:
        use(bundle())
    assert "owner trust update trust.json" in error.value.hint
    assert "--accept-stale-trust REASON" in error.value.hint
    for reason in ("", " \t"):
        with pytest.raises(PlanearlyError, match="--accept-stale-trust has no reason"):
            use(bundle(), reason)
    voucher, (line,) = use(bundle(), "new stick comes on Monday")
    assert voucher["stale_reason"] == "new stick comes on Monday"
    assert line.endswith("EXPIRED, accepted: new stick comes on Monday")
    add(version=2, expires="2027-12-31T00:00:00Z")
    assert use(bundle(), "not needed")[0]["stale_reason"] is None


def test_setting_the_clock_back_does_not_help(add, bundle, clock, tmp_path):
    add()
    clock(EXPIRES)
    with pytest.raises(SignatureError, match="expired"):
        use(bundle())
    clock(NOW)
    with pytest.raises(SignatureError, match="now is 2027-01-30T00:00:00Z") as error:
        use(bundle())
    assert str(tmp_path / "home" / "state.json") in error.value.hint
    assert latest_time() == EXPIRES


def test_time_is_remembered_only_where_a_trust_file_is_stored(add, tmp_path, clock):
    read_trust()
    assert not (tmp_path / "home").exists()
    add()
    read_trust()
    state = json.loads((tmp_path / "home" / "state.json").read_text())
    assert state["time"] == write_time(NOW)
    remove("acme")
    clock(EXPIRES)
    read_trust()
    assert json.loads((tmp_path / "home" / "state.json").read_text())["time"] == write_time(NOW)


def test_a_file_made_ahead_of_this_clock_is_no_day_old(add, bundle, clock):
    add()
    clock(CREATED - timedelta(days=3))
    assert use(bundle())[0]["age_days"] == 0


def test_a_revoked_key_is_refused_also_when_it_is_pinned(tmp_path, add, bundle):
    pin(tmp_path, SIGNER)
    add()
    use(bundle())
    add(version=2, keys=[], revoked_keys=[SIGNER.public_key.key_id])
    with pytest.raises(SignatureError, match="revoked by the trust file of acme"):
        use(bundle())


def test_a_revocation_outlives_its_trust_files_expiry_and_binds_other_providers(tmp_path, add, bundle, clock):
    add()
    roots = roots_field([STRANGER], 1)
    changes = {"name": "beta", "roots": roots, "keys": [], "revoked_keys": [SIGNER.public_key.key_id]}
    path = write(tmp_path / "beta.json", [STRANGER], expires="2026-11-12T00:00:00Z", **changes)
    add_trust_file(path, fingerprint(roots=roots))
    clock(NOW + timedelta(days=5))
    for reason in (None, "a reason"):
        with pytest.raises(SignatureError, match="revoked by the trust file of beta"):
            use(bundle(), reason)
    remove("beta")
    use(bundle())


def test_a_revoked_bundle_is_refused_and_its_digest_is_the_one_inspect_prints(tmp_path, add, bundle):
    pin(tmp_path, SIGNER)
    path = bundle()
    with open_bundle(path, [SIGNER.public_key]) as opened:
        digest = manifest_digest(opened)
    shown = CliRunner().invoke(main, ["inspect", str(path)])
    assert f"manifest    sha256 {digest}" in shown.stdout
    assert "vouched by  yourself: you pinned the key" in shown.stdout
    add(keys=[], revoked_bundles=[digest])
    with pytest.raises(BundleError, match="pn32 version 1 is revoked by the trust file of acme"):
        use(path)
    shown = CliRunner().invoke(main, ["inspect", str(path)])
    assert shown.exit_code == 1
    assert "is revoked by" in shown.output
    use(bundle(version=2))


def test_a_version_below_the_minimum_is_refused_but_not_another_providers(tmp_path, add, bundle):
    add(minimum_versions={"pn32": 3})
    with pytest.raises(BundleError, match="pn32 version 2, the trust file of acme asks for 3 or later"):
        use(bundle(version=2))
    use(bundle(version=3))
    use(bundle("tiny"))
    pin(tmp_path, STRANGER)
    use(bundle(version=1, key=STRANGER))


def test_a_second_key_of_the_provider_cannot_bring_back_an_older_version(add, bundle):
    add(keys=keys_field({SIGNER: ["*"], SECOND_SIGNER: ["*"]}))
    use(bundle(version=5))
    with pytest.raises(BundleError, match="pn32 version 4 is older than version 5"):
        use(bundle(version=4, key=SECOND_SIGNER))
    use(bundle(version=5, key=SECOND_SIGNER))


def test_what_is_trusted_is_listed(tmp_path, add, clock):
    assert describe_trust(read_trust()) == []
    key = pin(tmp_path, STRANGER)
    add(
        keys=keys_field({SIGNER: ["pn*", "tiny"]}),
        revoked_bundles=["0" * 64],
        revoked_keys=["0" * 16, "1" * 16],
    )
    line = (
        "file  acme  version 1 · {} days old · expires 2027-01-30T00:00:00Z · {} · 1 of 1 roots ·"
        " revokes 2 keys, 1 bundles"
    )
    for days, mark in ((10, "current"), (30, "OLD"), (90, "EXPIRED")):
        clock(CREATED + timedelta(days=days))
        assert describe_trust(read_trust()) == [
            f"key   {key.key_id}  -  every bundle",
            line.format(days, mark),
            f"      {SIGNER.public_key.key_id}  pn* tiny",
        ]


def test_the_commands_add_update_list_and_remove(tmp_path, bundle):
    def run(*arguments):
        return CliRunner().invoke(main, ["trust", *map(str, arguments)])

    path = write(tmp_path / "trust.json", ROOTS[:1])
    refused = run("add", path)
    assert refused.exit_code == 1
    assert "needs the fingerprint of its roots" in refused.output
    done = run("add", path, "--roots", fingerprint())
    assert (done.exit_code, done.stderr) == (
        0,
        "owner: trusts acme by its trust file version 1 from now on\n",
    )
    assert run("add", path, "--name", "x").exit_code == 2
    pub = tmp_path / "provider.pub"
    pub.write_bytes(public_key_pem(STRANGER.public_key))
    assert run("add", pub, "--roots", fingerprint()).exit_code == 2
    assert run("add", pub, "--name", "them").exit_code == 0
    done = run("update", write(tmp_path / "trust.json", ROOTS[:1], version=2))
    assert done.stderr == "owner: trusts acme by its trust file version 2 from now on\n"
    assert "already; nothing to do" in run("update", path).stderr
    listed = run("list").stdout
    assert f"key   {STRANGER.public_key.key_id}  them  every bundle" in listed
    assert "file  acme  version 2" in listed
    for which in ("acme", STRANGER.public_key.key_id):
        assert run("remove", which).stderr == f"owner: no longer trusts {which}\n"
    assert run("list").stdout == ""
    assert run("remove", "acme").exit_code == 1


def test_inspect_takes_a_reason_for_an_expired_trust_file_and_shows_it(add, bundle):
    add(expires="2026-11-05T00:00:00Z")
    path = str(bundle())
    refused = CliRunner().invoke(main, ["inspect", path])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "whose trust file version 1 expired 2026-11-05T00:00:00Z" in refused.stderr
    empty = CliRunner().invoke(main, ["inspect", path, "--accept-stale-trust", " "])
    assert empty.exit_code == 1
    assert "--accept-stale-trust has no reason" in empty.stderr
    shown = CliRunner().invoke(main, ["inspect", path, "--accept-stale-trust", "no stick"])
    assert shown.exit_code == 0
    line = "acme version 1 · 10 days old · expires 2026-11-05T00:00:00Z · EXPIRED, accepted: no stick"
    assert f"owner: trust file   {line}\n" in shown.stderr
    assert f"vouched by  {line}\n" in shown.stdout
