"""Laws of gpt2.io.safetensors: what the format allows is read, and nothing else; damage of a file of ours is noticed."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gpt2.errors import MissingError
from gpt2.io.safetensors import CHECKSUMS, Loader, read_header, safetensors_pieces

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.linspace(0, 1, 5), "c": np.zeros((0, 4), np.float16),
          "d": np.float32(2.5).reshape(())}
CODES = {"a": "F32", "b": "F64", "c": "F16", "d": "BF16"}


def ours(path: Path, arrays=ARRAYS, codes=CODES) -> bytes:
    path.write_bytes(b"".join(bytes(memoryview(piece)) for piece in safetensors_pieces(arrays, codes, {"format": "np", "x": "y"})))
    return path.read_bytes()


def made(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def everything(path: Path) -> dict[str, np.ndarray]:
    return {entry.key: Loader(np.dtype(np.float64))(entry) for entry in read_header(path)[0]}


def test_what_is_written_is_read(tmp_path):
    """By us, and by the library; the metadata come back without the checksums."""
    ours(tmp_path / "a.safetensors")
    assert read_header(tmp_path / "a.safetensors")[1] == {"format": "np", "x": "y"}
    for name, array in everything(tmp_path / "a.safetensors").items():
        np.testing.assert_array_equal(array, ARRAYS[name])
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {name: a.shape for name, a in ARRAYS.items()}


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize("header, data, reason", [
    (b"", b"", "a header of 0 by the first eight"),
    (b"[]", b"", "must be an object, not"),
    (b"{" * 9, b"", "is not JSON"),
    (b'{"a":' * 100_000, b"", "nested too deeply|is not JSON"),
    (b"\xff\xfe", b"", "is not UTF-8"),
    ({"a": 3}, b"", "a must be an object, not 3"),
    ({"a": {"dtype": "F32", "shape": [2]}}, b"", "a.data_offsets is missing"),
    ({"a": {**ENTRY, "dtype": "F33"}}, bytes(8), "a is of an unknown dtype, 'F33'"),
    ({"a": {**ENTRY, "dtype": ["F32"]}}, bytes(8), "a.dtype must be a text"),
    ({"a": {**ENTRY, "shape": [-2]}}, bytes(8), r"a.shape\[0\] must be an integer from 0 to"),
    ({"a": {**ENTRY, "shape": [2.0]}}, bytes(8), r"a.shape\[0\] must be an integer"),
    ({"a": {**ENTRY, "shape": [True, 2]}}, bytes(8), r"a.shape\[0\] must be an integer"),
    ({"a": {**ENTRY, "shape": [1] * 202 + [2]}}, bytes(8), "a.shape must be a list of size 0 to 32"),
    ({"a": {**ENTRY, "shape": [2**40] * 30}}, bytes(8), "a lies at bytes 0 to 8, which does not fit its shape"),
    ({"a": {**ENTRY, "shape": [10**39]}}, bytes(8), r"a.shape\[0\] must be"),
    ({"a": {**ENTRY, "data_offsets": [0, 10**39]}}, bytes(8), r"a.data_offsets\[1\] must be"),
    ({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8), "a lies at bytes 8 to 0"),
    ({"a": {**ENTRY, "data_offsets": [0]}}, bytes(8), "a.data_offsets must be a list of size 2 to 2"),
    ({"a": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12), "a lies at bytes 4 to 12"),
    ({"a": ENTRY, "b": ENTRY}, bytes(8), "b lies at bytes 0 to 8, which does not fit its shape or the tensor before it"),
    ({"a": ENTRY}, bytes(7), "its tensors have 8 bytes, and the file has 7 for them"),
    ({"a": ENTRY}, bytes(9), "its tensors have 8 bytes, and the file has 9 for them"),
    ({"__metadata__": {"x": 1}, "a": ENTRY}, bytes(8), "x must be a text, not 1"),
    ({"__metadata__": [], "a": ENTRY}, bytes(8), "must be an object or null, not"),
    (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8),
     "has the key 'a' twice"),
    ({"\ud800": ENTRY}, bytes(8), "valid Unicode"),
], ids=lambda x: str(x)[:30])
def test_a_header_that_is_none_is_refused(tmp_path, header, data, reason):
    """One line, that names the file and the tensor."""
    made(tmp_path / "a.safetensors", header, data)
    with pytest.raises(MissingError, match=reason) as caught:
        read_header(tmp_path / "a.safetensors")
    message = str(caught.value)
    assert "a.safetensors is not a complete safetensors file" in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize("length", [0, 1, 2**24 + 1, 2**40, 2**64 - 1])
def test_the_length_of_the_header_has_bounds(tmp_path, length):
    """It is not believed: nothing as long as it says is read."""
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + b'{"a":{}}')
    with pytest.raises(MissingError, match="not a complete safetensors file"):
        read_header(tmp_path / "a.safetensors")


def test_a_sparse_file_is_refused_at_once(tmp_path):
    """2 GB of zeros, as a disk that lost a file's contents has them."""
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(MissingError, match=r"it has 2,147,483,648 bytes, and a header of 0 by the first eight"):
        read_header(tmp_path / "a.safetensors")


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_library_reads_what_we_read(tmp_path, place, byte):
    """A header with any one byte replaced: what is read here is what the library reads."""
    path = tmp_path / "a.safetensors"
    save_file({name: a for name, a in ARRAYS.items() if name != "d"}, path, {"format": "np"})
    data = bytearray(path.read_bytes())
    data[int(place * (8 + int.from_bytes(data[:8], "little")))] = byte
    path.write_bytes(data)
    try:
        found = {entry.key: (entry.dtype, list(entry.shape)) for entry in read_header(path)[0]}
    except MissingError:
        return
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            assert {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()} == found
    except SafetensorError as error:
        raise AssertionError(f"the library refuses it: {error}") from None


def test_one_bit_is_noticed_wherever_it_is(tmp_path):
    """Of a file of ours: in the header the reading of it fails, in the numbers that of its tensor, which is named."""
    path = tmp_path / "a.safetensors"
    data = ours(path)
    before = everything(path)
    start, silent = 8 + int.from_bytes(data[:8], "little"), []
    for at in range(len(data)):
        for bit in (0, 3, 7):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:])
            try:
                found = everything(path)
            except MissingError as error:
                assert "a.safetensors" in str(error) and "\n" not in str(error)
                assert at < start or "'" in str(error)
            else:
                silent.append((at, bit))
                assert all(np.array_equal(found[name], before[name]) for name in before)
    name = data.index(CHECKSUMS.encode())               # where the checksums' own name is damaged, they are no checksums
    assert silent and all(name <= at < name + len(CHECKSUMS) for at, _ in silent)


def test_a_file_of_others_has_no_checksum(tmp_path):
    """It is read, whatever its bytes are."""
    save_file({"a": ARRAYS["a"]}, tmp_path / "a.safetensors")
    assert read_header(tmp_path / "a.safetensors")[0][0].crc is None
    np.testing.assert_array_equal(everything(tmp_path / "a.safetensors")["a"], ARRAYS["a"])


@pytest.mark.parametrize("sums", ["", "[]", "{}", '{"": "0"}', '{"a": 3}'])
def test_checksums_that_are_none_are_damage(tmp_path, sums):
    save_file({"a": ARRAYS["a"]}, tmp_path / "a.safetensors", {CHECKSUMS: sums})
    with pytest.raises(MissingError, match="is damaged: its header does not have the checksums that it names"):
        read_header(tmp_path / "a.safetensors")


def test_a_tensor_is_compared_once(tmp_path):
    """By loaders that share what was found sound; mapped, and converted piece by piece."""
    ours(tmp_path / "a.safetensors")
    sound: set = set()
    entries = {entry.key: entry for entry in read_header(tmp_path / "a.safetensors")[0]}
    for dtype in (np.float32, np.float64):
        Loader(np.dtype(dtype), sound)(entries["a"])
        assert sound == {(tmp_path / "a.safetensors", "a")}
        wrong = entries["a"]._replace(crc="00000000")
        Loader(np.dtype(dtype), sound)(wrong)
        with pytest.raises(MissingError, match="'a' does not have its checksum"):
            Loader(np.dtype(dtype))(wrong)
