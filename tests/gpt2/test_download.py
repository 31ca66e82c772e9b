"""Laws of gpt2.download, with a hub that lives in the test: what came is checked, and what fails leaves one line."""
from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from data import ROOT
from huggingface_hub import constants

from gpt2 import download
from gpt2.download import fetch, find_downloaded, main
from gpt2.errors import MissingError, UsageError
from gpt2.io.outputs import MARK

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


class Hub:
    """A hub with one repository, whose files land in a cache laid out as huggingface_hub's."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.files = {name: f"the {name} of the hub".encode() for name in (*download.FILES, "README.md")}
        self.arrives = dict(self.files)                 # what is delivered, which may be something else
        self.calls: list[tuple[str, bool]] = []
        self.repositories: set[str] = set()

    def model_info(self, repository: str, *, files_metadata: bool, timeout: float) -> SimpleNamespace:
        assert files_metadata
        self.repositories.add(repository)
        return SimpleNamespace(siblings=[self.describe(name, data) for name, data in self.files.items()])

    def describe(self, name: str, data: bytes) -> SimpleNamespace:
        large = SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if name.endswith(".safetensors") else None
        return SimpleNamespace(rfilename=name, lfs=large, blob_id=hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())

    def hf_hub_download(self, repository: str, file: str, *, local_dir: str | None, force_download: bool) -> str:
        self.repositories.add(repository)
        self.calls.append((file, force_download))
        if local_dir is not None:
            path = Path(local_dir) / file
        else:
            root = self.cache / f"models--{repository.replace('/', '--')}"
            path = root / "snapshots" / COMMIT / file
            for folder in (root / "refs", root / "blobs", path.parent):
                folder.mkdir(parents=True, exist_ok=True)
            (root / "refs" / "main").write_text(COMMIT)
            if not path.is_symlink():
                path.symlink_to(Path("..", "..", "blobs", file))
        if force_download or not path.exists():
            path.write_bytes(self.arrives[file])
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub, in place of huggingface_hub's functions, with its weights taken for OpenAI's."""
    hub = Hub(tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)
    monkeypatch.setitem(download.PINNED, "gpt2", hashlib.sha256(hub.files["model.safetensors"]).hexdigest())
    return hub


def test_the_weights_of_gpt2_are_pinned():
    """By the published sha256, so that a changed repository is noticed."""
    assert download.PINNED["gpt2"] == "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_a_download_is_found_again(hub, name, capsys):
    """The command prints the directory alone; it holds every file, and find_downloaded returns it without the network.

    So does huggingface_hub, which knows the layout of its cache better than we.
    """
    assert find_downloaded(name) is None
    assert main([name]) == 0
    directory = Path(capsys.readouterr().out.removesuffix("\n"))
    assert {file: (directory / file).read_bytes() for file in download.FILES} == {file: hub.files[file] for file in download.FILES}
    assert hub.repositories == {f"openai-community/{name}"}
    hub.model_info = hub.hf_hub_download = None  # type: ignore[assignment]
    assert find_downloaded(name) == directory
    theirs = huggingface_hub.try_to_load_from_cache(f"openai-community/{name}", "model.safetensors", cache_dir=hub.cache)
    assert theirs == str(directory / "model.safetensors")
    assert all(find_downloaded(other) is None for other in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl") if other != name)


def test_files_go_where_they_are_asked_to(hub, tmp_path, capsys):
    """--out makes the directory, which then holds the files themselves; the cache stays as it is."""
    out = tmp_path / "new" / "place"
    assert main(["gpt2", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(p.name for p in out.iterdir()) == sorted([MARK, *download.FILES])
    assert not hub.cache.exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_that_is_somebody_elses_stays(hub, tmp_path, linked):
    """A config.json, or a link to one, that is not the hub's is neither replaced nor removed; one that is the hub's is no obstacle."""
    (tmp_path / "mine.json").write_text("mine")
    (tmp_path / "out").mkdir()
    if linked:
        (tmp_path / "out" / "config.json").symlink_to(tmp_path / "mine.json")
    else:
        (tmp_path / "out" / "config.json").write_text("mine")
    with pytest.raises(UsageError, match=r"out holds config\.json, which gpt2\.download did not write"):
        fetch("gpt2", out=tmp_path / "out", force=True)
    assert (tmp_path / "out" / "config.json").read_text() == "mine" == (tmp_path / "mine.json").read_text() and not hub.calls
    (tmp_path / "mine.json").write_bytes(hub.files["config.json"])
    (tmp_path / "out" / "config.json").unlink()
    (tmp_path / "out" / "config.json").symlink_to(tmp_path / "mine.json")
    fetch("gpt2", out=tmp_path / "out")
    assert (tmp_path / "mine.json").read_bytes() == hub.files["config.json"]


def test_a_file_is_fetched_again_only_by_force(hub):
    """force is passed on, to every file."""
    fetch("gpt2")
    assert hub.calls == [(file, False) for file in download.FILES]
    hub.calls.clear()
    fetch("gpt2", force=True)
    assert hub.calls == [(file, True) for file in download.FILES]


@pytest.mark.parametrize("file", download.FILES)
@pytest.mark.parametrize("local", [False, True])
def test_a_file_with_another_hash_is_refused_and_removed(hub, tmp_path, file, local):
    """One byte is enough, in weights and in small files; a second try fetches it anew and succeeds."""
    hub.arrives[file] = b"X" + hub.files[file][1:]
    out = tmp_path / "out" if local else None
    with pytest.raises(MissingError, match=rf"{file} does not have the hash .* and was removed") as raised:
        fetch("gpt2", out=out)
    assert raised.value.exit_code == 3 and "\n" not in str(raised.value)
    left = [p for p in tmp_path.rglob("*") if p.name == file]
    assert left == [] and (local or find_downloaded("gpt2") is None)
    hub.arrives = dict(hub.files)
    assert (fetch("gpt2", out=out) / file).read_bytes() == hub.files[file]


def test_weights_other_than_the_pinned_ones_are_not_even_fetched(hub):
    """The hub may promise and deliver the same, and still not OpenAI's."""
    hub.files["model.safetensors"] = hub.arrives["model.safetensors"] = b"somebody else's"
    with pytest.raises(MissingError, match="not OpenAI's"):
        fetch("gpt2")
    assert hub.calls == []


@pytest.mark.parametrize("file", download.FILES)
def test_files_that_are_needed_must_be_offered(hub, file):
    """Others may be absent."""
    del hub.files[file]
    if file in download.OPTIONAL:
        assert not (fetch("gpt2") / file).exists()
    else:
        with pytest.raises(MissingError, match=rf"openai-community/gpt2 offers no {file}"):
            fetch("gpt2")


@pytest.mark.parametrize("where", ["model_info", "hf_hub_download"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("Connection refused\nsecond line"), ValueError()])
def test_a_hub_that_fails_is_one_line(hub, monkeypatch, where, error):
    """Whatever is raised, MissingError with its first line, or its type where it has none; Ctrl-C goes through."""
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub if where == "hf_hub_download" else hub, where, fail)
    with pytest.raises(MissingError, match=r"^cannot download gpt2 \(.+\); is there a network connection\?$") as raised:
        fetch("gpt2")
    assert (str(error).splitlines() or ["ValueError"])[0] in str(raised.value) and "\n" not in str(raised.value)
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fetch("gpt2")


def test_offline_an_earlier_download_is_pointed_to(hub, monkeypatch):
    """The error says where it is."""
    directory = fetch("gpt2")
    monkeypatch.setattr(hub, "model_info", None)
    with pytest.raises(MissingError, match="an earlier download is at ") as raised:
        fetch("gpt2")
    assert str(directory) in str(raised.value)


def test_half_a_download_is_not_found(hub):
    """Without weights or without a config there is none; the name transformers once used is looked up too."""
    directory = fetch("gpt2")
    elsewhere = hub.cache / "models--gpt2"
    os.rename(hub.cache / "models--openai-community--gpt2", elsewhere)
    found = find_downloaded("gpt2")
    assert found == elsewhere / directory.relative_to(hub.cache / "models--openai-community--gpt2")
    for file in ("config.json", "model.safetensors"):
        moved = (found / file).rename(found / "away")
        assert find_downloaded("gpt2") is None
        moved.rename(found / file)
    assert find_downloaded("gpt2") == found


def test_an_unknown_name_is_answered_with_the_names(hub):
    """UsageError before anything is fetched."""
    with pytest.raises(UsageError, match="gpt2-medium"):
        main(["gpt2-huge"])
    assert hub.repositories == set()


def test_an_out_that_cannot_be_written_is_refused(hub, tmp_path):
    """UsageError before anything is fetched."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot write"):
        main(["gpt2", "--out", str(tmp_path / "file")])
    assert hub.repositories == set() and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["gpt2"], 3, "gpt2.download: cannot download gpt2 ("),
        (["gpt-2"], 2, "gpt2.download: unknown model 'gpt-2'; did you mean 'gpt2'?"),
        ([], 2, "the following arguments are required: NAME"),
        (["gpt2", "--fast"], 2, "--fast"),
    ],
    ids=["offline", "name", "nothing", "flag"],
)
def test_the_command_ends_in_one_line_and_its_code(tmp_path, arguments, code, line):
    """Offline by huggingface_hub's own switch: nothing on stdout, one line on stderr, no traceback."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_CACHE", None)
    result = subprocess.run([sys.executable, "-m", "gpt2.download", *arguments], capture_output=True, text=True, env=environment)
    assert result.returncode == code and result.stdout == ""
    assert line in result.stderr and result.stderr.count("\n") == 1


def test_looking_for_a_download_stays_light(tmp_path):
    """No HTTP library and no progress bar are imported for it: the start of a command waits for it."""
    code = (
        "import sys; from gpt2.download import find_downloaded; assert find_downloaded('gpt2') is None; "
        "print([m for m in ('httpx', 'httpx2', 'requests', 'tqdm', 'huggingface_hub.file_download') if m in sys.modules])"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_CACHE", None)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout == "[]\n"
