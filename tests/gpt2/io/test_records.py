"""Laws of gpt2.io.records: what a schema says is read, all else is named with its place, and nothing is read without bounds."""
from __future__ import annotations

import json
import math
import os
import time
from typing import Annotated, Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import MissingError
from gpt2.io.records import (
    Between,
    Count,
    Like,
    Size,
    Wrong,
    checked,
    open_file,
    parsed,
    read_json,
    read_lines,
    read_text,
    sealed,
    unsealed,
)


class Optional(TypedDict, total=False):
    note: str | None


class Record(Optional):
    size: Annotated[int, Between(1, 9)]
    rate: float
    kind: Literal["a", "b"]
    parts: Annotated[list[Count], Size(1, 3)]
    named: dict[str, bool]
    mixed: int | list[int]
    word: Annotated[str, Like("[a-z]+", "a word")]


GOOD: dict[str, Any] = {"size": 3, "rate": 0.5, "kind": "a", "parts": [1, 2], "named": {"x": True}, "mixed": [1], "word": "abc"}


def test_what_a_schema_says_is_taken():
    """With its fields alone, and whole numbers as floats where a float is meant."""
    found = checked({**GOOD, "rate": 2, "unknown": object(), "note": None}, Record)
    assert found == {**GOOD, "rate": 2.0, "note": None} and isinstance(found["rate"], float)
    assert checked({**GOOD, "mixed": 7}, Record)["mixed"] == 7 and "note" not in checked(GOOD, Record)


@pytest.mark.parametrize("change, reason", [
    ({"size": 0}, "size must be an integer from 1 to 9, not 0"),
    ({"size": True}, "size must be an integer of 64 bits, not True"),
    ({"size": 3.0}, "size must be an integer of 64 bits, not 3.0"),
    ({"size": "3"}, "size must be an integer of 64 bits, not '3'"),
    ({"size": 10**39}, "size must be an integer of 64 bits, not 1000"),
    ({"size": None}, "size must be an integer of 64 bits, not None"),
    ({"rate": math.nan}, "rate must be a finite number, not nan"),
    ({"rate": -math.inf}, "rate must be a finite number, not -inf"),
    ({"rate": 10**400}, "rate must be a finite number, not 1000"),
    ({"rate": False}, "rate must be a finite number, not False"),
    ({"kind": "c"}, 'kind must be "a" or "b", not \'c\''),
    ({"kind": []}, 'kind must be "a" or "b", not []'),
    ({"parts": []}, "parts must be a list of size 1 to 3, not []"),
    ({"parts": [1, 2, 3, 4]}, "parts must be a list of size 1 to 3, not [1, 2, 3, 4]"),
    ({"parts": [1, -1]}, "parts[1] must be an integer from 0 to 9007199254740992, not -1"),
    ({"parts": "12"}, "parts must be a list, not '12'"),
    ({"named": {"x": 1}}, "named.x must be true or false, not 1"),
    ({"named": {"a b": 1}}, "named.'a b' must be true or false, not 1"),
    ({"named": {"\ud800": True}}, "named.'\\ud800' is a key that is not valid Unicode"),
    ({"named": []}, "named must be an object, not []"),
    ({"mixed": "x"}, "mixed must be an integer of 64 bits or a list, not 'x'"),
    ({"mixed": ["x"]}, "mixed[0] must be an integer of 64 bits, not 'x'"),
    ({"word": "ABC"}, "word must be a text that is a word, not 'ABC'"),
    ({"word": "a\n"}, "word must be a text that is a word, not 'a\\n'"),
    ({"word": "\ud800"}, "word must be a text, not '\\ud800'"),
    ({"note": 3}, "note must be a text or null, not 3"),
])
def test_what_a_schema_does_not_say_is_named_with_its_place(change, reason):
    with pytest.raises(Wrong) as caught:
        checked({**GOOD, **change}, Record)
    assert str(caught.value).startswith(reason)


def test_a_field_that_is_missing_is_named():
    for name in GOOD:
        with pytest.raises(Wrong) as caught:
            checked({key: value for key, value in GOOD.items() if key != name}, Record)
        assert str(caught.value) == f"{name} is missing"
    for value in ([], 3, None, "x", True):
        with pytest.raises(Wrong, match=r"^must be an object, not "):
            checked(value, Record)


@pytest.mark.parametrize("text, reason", [
    (b"", "is not JSON"), (b"{", "is not JSON"), (b"{} x", "is not JSON"), (b"\xff", "is not UTF-8 (byte 0xff at offset 0)"),
    (b"\xff\xfe{\x00}\x00", "is not UTF-8"), (b"9" * 5000, "is not JSON"), (b"\xef\xbb\xbf{}", "is not JSON"),
    (b'{"a": 1, "b": {"c": 1, "c": 1}}', "has the key 'c' twice"), (b"\x00" * 99, "is not JSON"),
])
def test_what_is_no_json_is_refused(text, reason):
    with pytest.raises(Wrong) as caught:
        parsed(text)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000, '{"a":' * 99_999 + "1" + "}" * 99_999])
def test_deep_nesting_is_one_line(tmp_path, text):
    """Whether a Python reads it or not: the record has other fields."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(MissingError, match=r"a\.json") as caught:
        read_json(tmp_path / "a.json", Record)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


@given(st.dictionaries(st.text().filter(lambda key: key != "crc32"), JSON, max_size=4))
def test_a_sealed_record_is_the_same_afterwards(document):
    """Whatever it holds, written with other blanks too."""
    text = sealed(document)
    assert unsealed(parsed(text)) == document
    assert unsealed(json.loads(json.dumps(json.loads(text)))) == document


def test_one_bit_of_a_sealed_record_is_noticed():
    """Every bit that changes a value; but where the checksum's own name is damaged, it is a field that no schema has."""
    document = {"step": 30, "losses": [1.25, -3e-7], "name": "wte", "flag": True, "nothing": None}
    text = sealed(document)
    for at in range(len(text)):
        for bit in range(8):
            damaged = text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1:]
            try:
                found = unsealed(parsed(damaged))
            except Wrong:
                continue
            assert {name: found[name] for name in document} == document, (at, bit, found)


def test_an_older_record_has_no_checksum():
    assert unsealed({"a": 1}) == {"a": 1} and unsealed([1]) == [1]


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "missing", "large", "sparse"])
def test_what_is_no_file_of_its_kind_is_refused_at_once(tmp_path, kind):
    """One line; nothing waits, and nothing large is read."""
    path = tmp_path / "a.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind in ("large", "sparse"):
        with open(path, "wb") as file:
            file.truncate((1 << 20) + 1 if kind == "large" else 1 << 40)
    started = time.perf_counter()
    with pytest.raises(MissingError) as caught:
        read_json(path, Record)
    assert time.perf_counter() - started < 1.0
    message = {"fifo": f"{path} is not a regular file", "device": f"{path} is not a regular file",
               "folder": f"{path} cannot be read: Is a directory", "missing": f"{path} cannot be read: No such file",
               "large": f"{path} has 1,048,577 bytes, and a file of its kind has 1,048,576 at most",
               "sparse": f"{path} has 1,099,511,627,776 bytes"}[kind]
    assert str(caught.value).startswith(message)


def test_texts_and_lines(tmp_path):
    """A text is UTF-8; of a line that is too long there is enough to see that it is."""
    (tmp_path / "a").write_bytes(b"abc\n" + b"x" * 50 + b"\n\nde")
    with open_file(tmp_path / "a") as file:
        assert list(read_lines(file, 9)) == [b"abc\n", b"x" * 10, b"\n", b"de"]
    with open_file(tmp_path / "a") as file:
        assert list(read_lines(file, 51)) == [b"abc\n", b"x" * 50 + b"\n", b"\n", b"de"]
    assert read_text(tmp_path / "a", 99).startswith("abc\n")
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(MissingError, match=r"a is not UTF-8 \(byte 0xff at offset 2\)"):
        read_text(tmp_path / "a", 99)
