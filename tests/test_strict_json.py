"""One meaning for one text: every message of shared/strict_json.py, and every limit from both sides."""

import re

import pytest

from shared.strict_json import (
    MAX_DEPTH,
    MAX_INTEGER,
    Malformed,
    canonical_json,
    check_integer,
    check_match,
    check_object,
    check_text,
    check_values,
    parse_json,
    quote,
)


def refusal(check, *arguments):
    with pytest.raises(Malformed) as error:
        check(*arguments)
    assert error.value.__cause__ is None
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[NaN]", "NaN is not a JSON number"),
        (b"-Infinity", "-Infinity is not a JSON number"),
        (b'{"a":1,"b":2,"b":3}', "duplicate key 'b'"),
        (b'[{"a":{"":1,"":1}}]', "duplicate key ''"),
        (b'"\xc3\xa9"', "is not strict ASCII JSON"),
        (b"{'a':1}", "is not strict ASCII JSON"),
        (b"1" * 5000, "is not strict ASCII JSON"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "is nested deeper than 9 levels"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "is nested deeper than 9 levels"),
        (b"[" * 100_000, "is nested deeper than 9 levels"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(text, message):
    assert refusal(parse_json, text) == message


def test_what_is_deep_but_not_too_deep_is_read():
    assert parse_json(b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH) == [[[[[[[[[1]]]]]]]]]
    assert parse_json(b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH)


def test_a_value_is_quoted_in_ascii_and_at_most_80_characters():
    assert quote("é\n") == r"'\xe9\n'"
    assert quote("x" * 78) == f"'{'x' * 78}'"
    assert quote("x" * 79) == f"'{'x' * 76}..."


def test_there_is_one_canonical_text():
    assert canonical_json({"b": [1, 1e-5, 1e16, None], "a": "é/\u2028\U0001f600"}) == (
        b'{"a":"\\u00e9/\\u2028\\ud83d\\ude00","b":[1,1e-05,1e+16,null]}'
    )


def test_what_has_no_canonical_text_is_refused():
    assert refusal(canonical_json, {1}).startswith("cannot be written as JSON: ")
    assert refusal(canonical_json, [float("nan")]).startswith("cannot be written as JSON: ")
    loop = []
    loop.append(loop)
    assert refusal(canonical_json, loop).startswith("cannot be written as JSON: ")


def test_an_object_has_its_fields_and_no_other():
    assert check_object({"a": 1, "b": 2}, "x", ["b", "a"]) == {"a": 1, "b": 2}
    assert refusal(check_object, [], "x", ["a"]) == "x is not an object"
    assert refusal(check_object, {}, "x", ["a"]) == "x: field a is missing"
    assert refusal(check_object, {"a": 1, "b\n": 2}, "x", ["a"]) == r"x: unknown field 'b\n'"


def test_an_integer_is_in_its_range():
    assert [check_integer(value, "x", 1, 3) for value in (1, 3)] == [1, 3]
    for value in (0, 4, True, 2.0, "2", None):
        assert refusal(check_integer, value, "x", 1, 3) == f"x is {value!r}, expected an integer from 1 to 3"


def test_a_text_is_as_long_as_it_may_be():
    assert [check_text(value, "x", 3) for value in ("a", "abc")] == ["a", "abc"]
    for value in ("", "abcd", 5, None, ["a"]):
        assert refusal(check_text, value, "x", 3) == f"x is {value!r}, expected a text of 1 to 3 characters"


def test_a_pattern_matches_the_whole_text():
    pattern = re.compile("[a-c]+")
    assert check_match("abc", "x", pattern) == "abc"
    for value in ("abcd", "", "abc\n", 5):
        assert refusal(check_match, value, "x", pattern) == f"x is {value!r}, expected [a-c]+"


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [0, v], lambda v: {"a": v}, lambda v: [{"a": [v]}]])
def test_what_no_field_may_hold_is_found_wherever_it_is(wrap):
    for value in (MAX_INTEGER, -MAX_INTEGER, 1e300, True, None, "\t\n ~é\ue000"):
        check_values(wrap(value), "x")
    for value in (MAX_INTEGER + 1, -MAX_INTEGER - 1):
        assert refusal(check_values, wrap(value), "x") == "x holds an integer beyond 2^63 - 1"
    for character in "\x00\x08\x0b\x1f\x7f\x9f\ud800\udfff":
        message = "x holds a control character or half a surrogate pair"
        assert refusal(check_values, wrap(f"a{character}b"), "x") == message


def test_a_name_that_a_terminal_would_obey_is_found():
    assert "control character" in refusal(check_values, {"\x1b[2J": 1}, "x")
