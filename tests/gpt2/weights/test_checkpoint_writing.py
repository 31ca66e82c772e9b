"""Writing a checkpoint: what is refused, and what a crash, a full disk or Ctrl-C leaves."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data import ROOT
from safetensors import safe_open
from tiny_weights import TINY, assert_same, weights

from gpt2.config import GPT2Config
from gpt2.errors import UsageError
from gpt2.weights.checkpoint import read_checkpoint, write_checkpoint


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ln_f.bias": None}, r"missing parameter 'ln_f\.bias'"),
        ({"extra": np.zeros(3, np.float32)}, "unexpected parameter 'extra'"),
        ({"lm_head.weight": np.zeros((5, 6), np.float32)}, r"unexpected parameter 'lm_head\.weight'"),
        ({"ln_f.bias": np.zeros(7, np.float32)}, r"'ln_f\.bias' is \[7\], but \[6\]"),
        ({"ln_f.bias": np.zeros(6, np.int64)}, "cannot be stored as int64"),
    ],
)
def test_parameters_that_do_not_fit_the_config_are_not_written(tmp_path, change, match):
    """UsageError with the name, and no directory."""
    given_ = {name: a for name, a in {**weights(), **change}.items() if a is not None}
    with pytest.raises(UsageError, match=match):
        write_checkpoint(tmp_path / "out", TINY, given_)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given_", "stored"), [("float32", "float16"), ("float64", "float16"), ("float64", "float32"), ("float64", "bfloat16")]
)
def test_a_number_too_large_for_the_stored_dtype_is_not_written(tmp_path, given_, stored):
    """UsageError with the tensor and the dtype, and nothing is left; an infinity that was there before is kept."""
    large = weights(dtype=given_)
    large["ln_f.bias"][3] = 1e39 if given_ == "float64" else 1e5
    with pytest.raises(UsageError, match=rf"'ln_f\.bias' has values too large for {stored}"):
        write_checkpoint(tmp_path / "out", TINY, large, dtype=stored)
    assert not (tmp_path / "out").exists()
    large["ln_f.bias"][3] = np.inf
    write_checkpoint(tmp_path / "out", TINY, large, dtype=stored)


def test_extra_files_and_metadata_are_written(tmp_path):
    """The header keeps transformers' format "pt"; extra files hold the bytes given."""
    write_checkpoint(tmp_path, TINY, weights(), metadata={"steps": "12"}, extra_files={"merges.txt": b"a b\n"})
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as f:
        assert f.metadata()["format"] == "pt" and f.metadata()["steps"] == "12"
    assert (tmp_path / "merges.txt").read_bytes() == b"a b\n"


def test_files_have_the_rights_that_the_umask_gives(tmp_path):
    """Not those of a temporary file, which nobody else may read."""
    old = os.umask(0o022)
    try:
        write_checkpoint(tmp_path, TINY, weights())
    finally:
        os.umask(old)
    assert all(p.stat().st_mode & 0o777 == 0o644 for p in tmp_path.iterdir())


def _outcomes(path: Path, old: dict, new: dict, old_config: GPT2Config, new_config: GPT2Config) -> str:
    read = read_checkpoint(path)
    first = read.parameters["wte.weight"].tobytes()
    which = "old" if first == old["wte.weight"].tobytes() else "new"
    assert_same(read.parameters, old if which == "old" else new)
    assert read.config == (old_config if which == "old" else new_config)
    return which


class _Crash(BaseException):
    """The process is gone: no handler runs that a killed process would not run."""


@pytest.mark.parametrize("same_config", [True, False])
def test_a_crash_at_any_moment_leaves_weights_and_their_own_config(tmp_path, monkeypatch, same_config):
    """Killed before any system call that changes the directory, it holds the old pair or the new one, never a mixture.

    The shapes of both configurations agree, so that only the pair itself can tell.
    """
    new_config = TINY if same_config else GPT2Config.from_dict({**TINY.to_dict(), "n_head": 2})
    old, new = weights(seed=1), weights(seed=2)
    seen = set()
    for moment in range(30):
        place = tmp_path / str(moment)
        write_checkpoint(place, TINY, old)
        count = 0

        def guarded(call):
            def wrapped(*args, **kwargs):
                nonlocal count
                count += 1
                if count > moment:                      # from here on nothing happens any more  # noqa: B023
                    raise _Crash
                return call(*args, **kwargs)
            return wrapped

        with monkeypatch.context() as m:
            for module, name in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir")):
                m.setattr(module, name, guarded(getattr(module, name)))
            try:
                write_checkpoint(place, new_config, new, extra_files={"merges.txt": b"x"})
                finished = True
            except _Crash:
                finished = False
        seen.add(_outcomes(place, old, new, TINY, new_config))
        if finished:
            break
    assert finished and seen == {"old", "new"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, call, at, exists):
    """A full disk at any file: UsageError, no temporary files, no new directory, and no pair that disagrees."""
    old, new, place = weights(seed=1), weights(seed=2), tmp_path / "out"
    new_config = GPT2Config.from_dict({**TINY.to_dict(), "n_head": 2})
    if exists:
        write_checkpoint(place, TINY, old)
    original, count = getattr(os, call), 0

    def failing(*args):
        nonlocal count
        count += 1
        if count == at:
            raise OSError(28, "No space left on device")
        return original(*args)

    with monkeypatch.context() as m:
        m.setattr(os, call, failing)
        try:
            write_checkpoint(place, new_config, new, extra_files={"merges.txt": b"x"})
        except UsageError as error:
            where, _, why = str(error).removeprefix("cannot write ").partition(": ")
            assert Path(where).parent == place and Path(where).name in ("model.safetensors", "merges.txt", "config.json")
            assert why == "No space left on device"
    assert not list(tmp_path.rglob(".*"))
    if exists and _outcomes(place, old, new, TINY, new_config) == "old":
        assert GPT2Config.from_file(place) == TINY


def test_a_file_that_cannot_grow_is_one_line(tmp_path):
    """The operating system's own refusal in the midst of writing; nothing is left."""
    resource = pytest.importorskip("resource", reason="limits on the size of a file are POSIX's")
    code = """if True:
        import resource, signal, sys
        import numpy as np
        from gpt2.weights.checkpoint import write_checkpoint
        from gpt2.config import GPT2Config, parameter_shapes
        from gpt2.errors import UsageError
        config = GPT2Config(vocab_size=50, n_positions=4, n_embd=6, n_layer=2, n_head=3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        try:
            write_checkpoint(sys.argv[1], config, {n: np.zeros(s, np.float32) for n, s in parameter_shapes(config).items()})
        except UsageError as error:
            print(error)
    """
    assert resource.RLIMIT_FSIZE is not None
    out = tmp_path / "out"
    result = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.stdout == f"cannot write {out / 'model.safetensors'}: File too large\n"
    assert not out.exists()


def test_ctrl_c_while_writing_leaves_nothing(tmp_path, monkeypatch):
    """The interruption goes on as itself."""
    def interrupted(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "out", TINY, weights())
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    """A file where the directory should be, or in its path; exit code 2."""
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(UsageError, match="cannot write") as raised:
            write_checkpoint(place, TINY, weights())
        assert "\n" not in str(raised.value) and raised.value.exit_code == 2
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "out" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot write"):
        write_checkpoint(tmp_path / "out", TINY, weights())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.safetensors"]
