"""From what a user calls a model to where it lies."""
from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from gpt2.config import PUBLISHED
from gpt2.errors import MissingError, UsageError
from gpt2.weights.locate import MODELS, SHIPPED, locate


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """A gpt2.download that has gpt2-medium, can fetch all, and keeps a list of what it fetched."""
    fake = types.SimpleNamespace(
        fetched=[],
        find_downloaded=lambda name: tmp_path / "cache" / name if name == "gpt2-medium" else None,
        fetch=lambda name: fake.fetched.append(name) or tmp_path / "fetched" / name,
    )
    monkeypatch.setitem(sys.modules, "gpt2.download", fake)
    monkeypatch.chdir(tmp_path)
    return fake


def test_the_shipped_model_lies_in_the_package(downloads):
    """"shakespeare" is a directory beside the code, and nothing is asked of the network."""
    assert locate("shakespeare") == MODELS / "shakespeare" == locate("shakespeare", download=True)
    assert MODELS.parent == Path(sys.modules["gpt2"].__file__).parent and downloads.fetched == []


@pytest.mark.parametrize("name", [*SHIPPED, *PUBLISHED])
def test_a_name_wins_over_a_directory_of_that_name(name, downloads, tmp_path):
    """A text that is a name means the model of that name; ./name, name/ and a Path mean the directory."""
    (tmp_path / name).mkdir()
    for path in (f"./{name}", f"{name}/", Path(name), Path(f"./{name}"), str(tmp_path / name)):
        assert Path(locate(path)).resolve() == tmp_path / name
        assert Path(locate(locate(path))).resolve() == tmp_path / name        # what a command hands on is found again
    assert Path(locate(name, download=True)).resolve() != tmp_path / name


def test_a_published_model_is_one_downloaded_before(downloads, tmp_path):
    """A download that is here is used; nothing is fetched again, even when that is allowed."""
    assert locate("gpt2-medium") == locate("gpt2-medium", download=True) == tmp_path / "cache" / "gpt2-medium"
    assert downloads.fetched == []


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "gpt2-medium"])
def test_the_network_is_asked_only_when_allowed(name, downloads, tmp_path):
    """A published model that is not here is an error with the command that gets it, unless download=True fetches it."""
    with pytest.raises(MissingError, match=f"^the weights of {name} are not on this machine; .*: python -m gpt2.download {name}$"):
        locate(name)
    assert downloads.fetched == []
    assert locate(name, download=True) == tmp_path / "fetched" / name
    assert downloads.fetched == [name]


def test_a_path_is_itself(downloads, tmp_path):
    """Any file or directory that exists is what it says; whether it is a model, its reader judges."""
    (tmp_path / "weights.safetensors").touch()
    assert locate("weights.safetensors") == Path("weights.safetensors")
    assert locate(tmp_path) == tmp_path


@pytest.mark.parametrize(("name", "meant"), [
    ("shakspeare", "shakespeare"), ("Shakespeare", "shakespeare"), ("GPT2", "gpt2"), ("gpt2-meduim", "gpt2-medium"), ("gpt-2", "gpt2"),
    ("GPT2-XL", "gpt2-xl"), ("openai-community/gpt2", "gpt2"), ("openai-community/gpt2-large", "gpt2-large"), ("gpt2xl", "gpt2-xl"),
    ("llama", None), ("", None),
])
def test_an_unknown_name_is_answered_with_the_names(name, meant, downloads):
    """What is neither a name nor a path raises UsageError (exit 2) with all names, and with the one that was probably meant."""
    if not name:
        assert locate(name) == Path()                   # the current directory, as Path has it
        return
    with pytest.raises(UsageError) as error:
        locate(name, download=True)
    message = str(error.value)
    assert message.startswith(f"there is no model or directory {name!r}") and all(n in message for n in (*SHIPPED, *PUBLISHED))
    assert (f"; did you mean {meant}? (" in message) if meant else "did you mean" not in message
    assert downloads.fetched == [] and "\n" not in message and error.value.exit_code == 2


@pytest.mark.parametrize("path", ["models/mine", "./gpt3", "/nonexistent", "gpt2-124M.safetensors", "models/", Path("nowhere")])
def test_a_path_where_nothing_is_is_missing(path, downloads):
    """Exit 3, as for all weights that are not there."""
    with pytest.raises(MissingError, match=r"^there is no model or directory ") as error:
        locate(path, download=True)
    assert error.value.exit_code == 3 and repr(str(path)) in str(error.value) and downloads.fetched == []
