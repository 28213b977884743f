"""Files with public keys: their hints, their limits, and how they are opened."""

import os

import pytest

from shared.errors import SignatureError
from shared.signature import MAX_KEY_FILE_BYTES, public_key_pem, read_key_file, read_public_key
from tests.vectors.build import PROVIDER

PEM = public_key_pem(PROVIDER.public_key)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (
            b"-----BEGIN PRIVATE KEY-----",
            "its provider should keep that file secret; the public one ends in .pub",
        ),
        (b"no key", "it should begin with -----BEGIN PUBLIC KEY-----"),
    ],
)
def test_a_file_that_is_no_public_key_says_what_one_is(tmp_path, content, hint):
    (tmp_path / "x.pub").write_bytes(content)
    with pytest.raises(SignatureError) as error:
        read_public_key(tmp_path / "x.pub")
    assert error.value.hint == hint


def test_a_key_file_may_be_as_large_as_the_limit(tmp_path):
    path = tmp_path / "x.pub"
    path.write_bytes(PEM.ljust(MAX_KEY_FILE_BYTES))
    assert read_public_key(path) == PROVIDER.public_key
    path.write_bytes(PEM.ljust(MAX_KEY_FILE_BYTES + 1))
    with pytest.raises(SignatureError, match="has over 4096 bytes"):
        read_public_key(path)


def test_of_a_file_that_is_too_large_no_more_is_read_than_shows_it(tmp_path):
    path = tmp_path / "x.pub"
    path.write_bytes(PEM)
    os.truncate(path, 1 << 40)
    with pytest.raises(SignatureError, match="has over 4096 bytes"):
        read_key_file(path)
