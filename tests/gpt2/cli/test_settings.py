"""Settings from flags, a TOML file and an earlier run: who goes before whom, and what is refused."""
from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpt2.train.__main__ as training
from gpt2.cli.settings import as_toml, flags_given, merged, read_settings
from gpt2.errors import MissingError, UsageError

PARSER = training.parser()
NUMBERS = st.fixed_dictionaries({}, optional={
    "n_layer": st.integers(1, 9), "learning_rate": st.floats(0, 1), "recompute": st.booleans(),
    "freeze": st.lists(st.sampled_from("abc"), min_size=1),
    "out_dir": st.text("abc 😀de'\"\\é", min_size=1), "min_lr": st.floats(0, 1), "dtype": st.sampled_from(["float32", "tf32"])})


def write(tmp_path, text):
    path = tmp_path / "train.toml"
    path.write_text(text, encoding="utf-8")
    return path


@given(stored=NUMBERS, file=NUMBERS, given_=NUMBERS)
def test_who_goes_before_whom(stored, file, given_):
    """The command line before the file, the file before the checkpoint, that before the defaults; and each says where it is from."""
    args, sources = merged(PARSER, ("checkpoint", stored), ("file", file), ("command line", given_))
    for name, value in vars(args).items():
        layers = [("command line", given_), ("file", file), ("checkpoint", stored)]
        source, wanted = next(((s, layer[name]) for s, layer in layers if name in layer), ("default", PARSER.get_default(name)))
        assert (sources[name], value) == (source, wanted)


@given(settings=NUMBERS)
def test_what_is_shown_is_a_file(settings, tmp_path_factory):
    """The settings as they are printed, read as a file, are the settings."""
    args, sources = merged(PARSER, ("command line", settings))
    shown = {name: value for name, value in vars(args).items() if name != "config"}
    path = write(tmp_path_factory.mktemp("t"), as_toml(shown, sources))
    assert merged(PARSER, ("file", read_settings(PARSER, path)))[0] == args


def test_flags_and_names(tmp_path):
    """Only the flags that were given count as given; a file may write dashes."""
    assert flags_given(PARSER, ["--n-layer", "3", "--recompute"]) == {"n_layer": 3, "recompute": True}
    assert read_settings(PARSER, write(tmp_path, "n-layer = 3\nlearning_rate = 1\nfreeze = ['wte.*']\n")) == \
        {"n_layer": 3, "learning_rate": 1.0, "freeze": ["wte.*"]}


@pytest.mark.parametrize(("text", "message"), [
    ("n_layers = 3", "there is no setting 'n_layers'; is n_layer meant?"),
    ("learning-rat = 3", "there is no setting 'learning-rat'; is learning_rate meant?"),
    ("zzz = 3", "there is no setting 'zzz'"),
    ("config = 'x'", "there is no setting 'config'"),
    ("n_layer = 2.5", "n_layer: '2.5' is not a whole number"),
    ("n_layer = 0", "n_layer: 0 is less than 1"),
    ("n_layer = true", "n_layer cannot be True"),
    ("n_layer = 'many'", "n_layer: 'many' is not a whole number"),
    ("learning_rate = 'fast'", "learning_rate: 'fast' is not a number"),
    ("recompute = 1", "recompute must be true or false, not 1"),
    ("freeze = 'wte'", "freeze must be a list, not 'wte'"),
    ("data = 3", "data cannot be 3"),
    ("dtype = 'int8'", "dtype is 'int8'; choose from float32, tf32"),
    ("n_layer = 1\nn-layer = 2", "n_layer is given twice"),
    ("[model]\nn_layer = 1", "there is no setting 'model'"),
    ("n_layer = = 1", "is not TOML: "),
    ("n_layer = " + "9" * 5000, "a line has 5,010 characters, and 2,000 at most are read"),
    ("n_layer = " + "9" * 1900, "n_layer: 99"),
    ("a = " + "[\n" * 60_000, "is nested too deeply"),
    ("a" + ".a" * 30_000 + " = 1", "a line has 60,005 characters"),
    ("max_iters = 1e400", "max_iters: 'inf' is not a whole number"),
    ("keep = 10000000000000000000000000000000000000000", "is not a number of 64 bits"),
    ("n_layer = 1979-05-27", "n_layer cannot be datetime.date(1979, 5, 27)"),
])
def test_a_wrong_file_is_one_line(text, message, tmp_path):
    """An unknown key, with the nearest name; a value that the flag would not take; what is no TOML."""
    with pytest.raises(UsageError, match="--config") as raised:
        read_settings(PARSER, write(tmp_path, text))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read(tmp_path):
    """One that is not there, a directory, and bytes that are no UTF-8."""
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(MissingError, match="cannot be read"):
            read_settings(PARSER, path)
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * 200_000)
    for path, message in ((tmp_path / "pipe.toml", "is not a regular file"), (Path("/dev/zero"), "is not a regular file"),
                          (tmp_path / "large.toml", "has 200,000 bytes, and a file of its kind has 131,072 at most")):
        with pytest.raises(MissingError, match=message):
            read_settings(PARSER, path)
    (tmp_path / "x.toml").write_bytes(b"data = '\xff'")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_settings(PARSER, tmp_path / "x.toml")
