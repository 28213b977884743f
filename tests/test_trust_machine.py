"""Whatever an owner and a provider do, in any order: nothing older is ever accepted.

A state machine against the real files of one owner, with a model of what must hold. The suite takes a few
steps; PLANEARLY_TRUST_RUNS=N takes N runs of 50 steps each:

  PLANEARLY_TRUST_RUNS=250 python -m pytest -q tests/test_trust_machine.py
"""

import os
import shutil
import tempfile
from contextlib import ExitStack
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import owner.trust.remembering
from owner.trust.opening import open_trusted
from owner.trust.pinning import (
    add_trust_file,
    pin_key,
    remove,
    stored_trust_files,
    trust_folder,
    update_trust_file,
)
from owner.trust.remembering import seen_files
from owner.trust.vouching import read_trust
from shared.errors import PlanearlyError
from shared.names import write_time
from shared.signature import public_key_pem
from tests.trust_files import (
    CREATED,
    ROOTS,
    SECOND_SIGNER,
    SIGNER,
    fingerprint,
    keys_field,
    roots_field,
    signed_by,
    write_small_bundle,
)

RUNS, STEPS = int(os.environ.get("PLANEARLY_TRUST_RUNS", "6")), 50
ROOT_SETS = {"one": ([0], 1), "two of three": ([1, 2, 3], 2), "other": ([2], 1)}
KEYS = {"first": SIGNER, "second": SECOND_SIGNER}
BUNDLES = Path(tempfile.mkdtemp(prefix="planearly-trust-machine-"))


@pytest.fixture(scope="module", autouse=True)
def _remove_bundles():
    yield
    shutil.rmtree(BUNDLES)


@cache
def bundle(name: str, version: int, key: str) -> Path:
    return write_small_bundle(BUNDLES / f"{name}-{version}-{key}.st", name, version, KEYS[key])


@cache
def trust_file(version, roots, signers, listed, revoked, minimum, days) -> bytes:
    numbers, threshold = ROOT_SETS[roots]
    return signed_by(
        [ROOTS[number] for number in sorted(signers)],
        version=version,
        roots=roots_field([ROOTS[number] for number in numbers], threshold),
        keys=keys_field({KEYS[key]: [scope] for key, scope in listed if key not in revoked}),
        revoked_keys=sorted(KEYS[key].public_key.key_id for key in revoked),
        minimum_versions={"pn": minimum} if minimum else {},
        expires=write_time(CREATED + timedelta(days=days)),
    )


trust_files = st.fixed_dictionaries(
    {
        "version": st.integers(1, 6),
        "roots": st.sampled_from(sorted(ROOT_SETS)),
        "signers": st.frozensets(st.integers(0, 3), min_size=1),
        "listed": st.lists(
            st.tuples(st.sampled_from(sorted(KEYS)), st.sampled_from(["*", "pn", "q*"])),
            unique_by=lambda entry: entry[0],
        ).map(tuple),
        "revoked": st.frozensets(st.sampled_from(sorted(KEYS)), max_size=1),
        "minimum": st.integers(0, 3),
        "days": st.sampled_from([20, 60, 400]),
    }
)


class OwnersTrust(RuleBasedStateMachine):
    """One owner and one provider; the model is what this class remembers beside the files."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="planearly-trust-home-"))
        os.environ["PLANEARLY_HOME"] = str(self.folder / "home")
        self.clock = self.latest = CREATED
        self.tell_time()
        self.stored: dict | None = None
        self.highest: dict | None = None
        self.pinned: set[str] = set()
        self.opened: dict[tuple[str, str], int] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def tell_time(self) -> None:
        owner.trust.remembering.read_clock = lambda: self.clock

    def next(self) -> int:
        return (self.highest["version"] if self.highest else 0) + 1

    def put(self, fields: dict) -> Path:
        path = self.folder / "trust.json"
        path.write_bytes(trust_file(**fields))
        return path

    def is_signed_by(self, fields: dict, roots: str) -> bool:
        numbers, threshold = ROOT_SETS[roots]
        return len(fields["signers"] & set(numbers)) >= threshold

    def payload(self, fields: dict) -> dict:
        """What decides the payload: all but who signed it; revoking a key takes it off the list."""
        kept = {name: value for name, value in fields.items() if name != "signers"}
        kept["listed"] = frozenset(entry for entry in fields["listed"] if entry[0] not in fields["revoked"])
        return kept

    def is_allowed(self, fields: dict) -> bool:
        highest = self.highest
        if highest is None or fields["version"] > highest["version"]:
            return True
        return fields["version"] == highest["version"] and self.payload(fields) == self.payload(highest)

    @rule(fields=trust_files, told=st.sampled_from([None, None, *sorted(ROOT_SETS)]))
    def add(self, fields, told):
        if told is None:  # as a provider does it: told right, signed by all
            told = fields["roots"]
            fields = fields | {"version": self.next(), "signers": frozenset(ROOT_SETS[told][0])}
        numbers, threshold = ROOT_SETS[told]
        roots = fingerprint(roots=roots_field([ROOTS[number] for number in numbers], threshold))
        expected = (
            told == fields["roots"]
            and self.is_signed_by(fields, told)
            and self.is_allowed(fields)
            and (self.stored is None or self.payload(self.stored) == self.payload(fields))
        )
        self.expect(expected, fields, lambda path: add_trust_file(path, roots))

    @rule(fields=trust_files, signers=st.sampled_from(["any", "new roots", "old and new roots"]))
    def update(self, fields, signers):
        if self.stored is not None and signers == "new roots":
            fields = fields | {"version": self.next(), "signers": frozenset(ROOT_SETS[fields["roots"]][0])}
        elif self.stored is not None and signers == "old and new roots":  # as an honest provider does it
            wanted = {
                number for roots in (self.stored["roots"], fields["roots"]) for number in ROOT_SETS[roots][0]
            }
            fields = fields | {"version": self.next(), "signers": fields["signers"] | wanted}
        expected = (
            self.stored is not None
            and self.is_signed_by(fields, self.stored["roots"])
            and self.is_signed_by(fields, fields["roots"])
            and self.is_allowed(fields)
        )
        self.expect(expected, fields, update_trust_file)

    def expect(self, expected, fields, action):
        path = self.put(fields)
        if not expected:
            with pytest.raises(PlanearlyError):
                action(path)
            return
        action(path)
        self.stored = self.highest = fields

    @rule()
    def remove_trust_file(self):
        if self.stored is None:
            with pytest.raises(PlanearlyError):
                remove("acme")
            return
        remove("acme")
        self.stored = None

    @rule(key=st.sampled_from(sorted(KEYS)))
    def pin_or_unpin(self, key):
        public = KEYS[key].public_key
        if key in self.pinned:
            remove(public.key_id)
        else:
            path = self.folder / "provider.pub"
            path.write_bytes(public_key_pem(public))
            pin_key(path)
        self.pinned ^= {key}

    @rule(days=st.integers(-40, 40))
    def change_clock(self, days):
        self.set_clock(days)

    def set_clock(self, days):
        self.clock += timedelta(days=days)
        self.tell_time()

    @precondition(lambda self: self.stored is not None)
    @rule(back=st.integers(0, 100))
    def reach_expiry_and_set_the_clock_back(self, back):
        self.clock = self.latest = max(self.latest, CREATED + timedelta(days=self.stored["days"]))
        self.tell_time()
        read_trust()
        self.set_clock(-back)
        for key in set(KEYS) - self.pinned:
            self.open_bundle("pn", 4, key, None)

    @rule(
        name=st.sampled_from(["pn", "q1"]),
        version=st.integers(1, 4),
        key=st.sampled_from(sorted(KEYS)),
        reason=st.sampled_from([None, "a reason"]),
    )
    def open_some_bundle(self, name, version, key, reason):
        self.open_bundle(name, version, key, reason)

    def open_bundle(self, name, version, key, reason):
        path = bundle(name, version, key)
        expected = self.may_open(name, version, key, reason)
        with ExitStack() as stack:
            if not expected:
                with pytest.raises(PlanearlyError):
                    open_trusted(path, stack, read_trust(reason), lambda line: None)
                return
            open_trusted(path, stack, read_trust(reason), lambda line: None)
        self.opened[key, name] = max(version, self.opened.get((key, name), 0))

    def may_open(self, name, version, key, reason) -> bool:
        """The rules once more, from the documentation: docs/trust-format.md §6."""
        if self.stored is not None:
            self.latest = max(self.latest, self.clock)
        now = max(self.clock, self.latest)
        scopes = dict(self.payload(self.stored)["listed"]) if self.stored else {}
        if self.stored and key in self.stored["revoked"]:
            return False
        if key in scopes and name == "pn" and version < self.stored["minimum"]:
            return False
        is_current = self.stored is not None and now < CREATED + timedelta(days=self.stored["days"])
        covers = (
            scopes.get(key) == "*" or scopes.get(key) == name or (scopes.get(key) == "q*" and name == "q1")
        )
        if key not in self.pinned and not (covers and (is_current or reason)):
            return False
        related = {key, *(scopes if key in scopes else ())}
        return all(version >= self.opened.get((other, name), 0) for other in related)

    @precondition(lambda self: self.stored is not None)
    @rule()
    def damage_the_stored_file(self):
        path = trust_folder() / f"acme-{self.stored['version']}.json"
        content = path.read_bytes()
        path.write_bytes(content[:-2])
        with pytest.raises(PlanearlyError, match="stored trust file"):
            read_trust()
        path.write_bytes(content)

    @invariant()
    def the_highest_version_never_falls(self):
        seen = seen_files().get("acme")
        assert (seen.version if seen else 0) == (self.highest["version"] if self.highest else 0)

    @invariant()
    def what_is_stored_is_what_was_accepted(self):
        versions = [trust.version for trust in stored_trust_files()]
        assert versions == ([self.stored["version"]] if self.stored else [])


def test_no_order_of_events_makes_an_owner_accept_a_rollback(monkeypatch):
    monkeypatch.setenv("PLANEARLY_HOME", "unused")  # both are put back after the machine has set them
    monkeypatch.setattr(owner.trust.remembering, "read_clock", owner.trust.remembering.read_clock)
    checks = list(HealthCheck)
    run_state_machine_as_test(
        OwnersTrust,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="PLANEARLY_TRUST_RUNS" not in os.environ,
            suppress_health_check=checks,
            database=None,
        ),
    )
