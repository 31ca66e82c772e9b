"""python -m gpt2.download: fetch OpenAI's weights and vocabulary with huggingface_hub."""
from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cli.command import Parser, run_command
from .config import PUBLISHED, GPT2Config
from .errors import MissingError
from .io.outputs import claim, open_folder
from .io.records import read_text

BY, WEIGHTS = "gpt2.download", "model.safetensors"
FILES = ("config.json", "vocab.json", "merges.txt", "tokenizer.json", "generation_config.json",
         WEIGHTS)
OPTIONAL = ("tokenizer.json", "generation_config.json")
# sha256 of the weights
PINNED = {"gpt2": "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"}


def find_downloaded(name: str) -> Path | None:
    """The directory of an earlier download of a published size, or None; no network is used.

    A download by transformers counts too.
    """
    from huggingface_hub import constants  # quick to import, unlike the functions for the cache

    for repository in (f"openai-community/{name}", name):
        cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
        try:
            commit = read_text(cache / "refs" / "main", 1000).strip()
            directory = cache / "snapshots" / Path(commit).name
        except (OSError, ValueError, MissingError):
            continue
        if all((directory / file).is_file() for file in ("config.json", WEIGHTS)):
            return directory
    return None


def fetch(name: str, *, out: str | Path | None = None, force: bool = False) -> Path:
    """Download a published size, and return the directory: `out`, or one in the hub's cache.

    Files that are there already are not fetched again, unless `force`. The hash of each file is
    checked, and a file with another hash is removed. UsageError for an unknown name, for an `out`
    that cannot be written, and for a file in it that is not the hub's and that no download wrote;
    MissingError if the hub cannot be reached, or if a file is missing or wrong.
    """
    GPT2Config.from_name(name)                          # an error for an unknown name
    if out is None:
        return _fetch(name, None, force)
    with open_folder(Path(out), BY):
        return _fetch(name, Path(out), force)


def _fetch(name: str, out: Path | None, force: bool) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    repository = f"openai-community/{name}"
    try:
        info = HfApi().model_info(repository, files_metadata=True, timeout=10)
        offered = {file.rfilename: file for file in info.siblings or ()}
    except Exception as error:          # from the hub, the system, or one of several HTTP libraries
        raise _failed(name, error) from None
    for file in FILES:
        if file not in offered and file not in OPTIONAL:
            raise MissingError(f"{repository} offers no {file}")
    weights = offered[WEIGHTS].lfs
    if name in PINNED and (weights is None or weights.sha256 != PINNED[name]):
        raise MissingError(f"{repository} offers a {WEIGHTS} that is not OpenAI's: "
                           "its sha256 differs")
    wanted = [file for file in FILES if file in offered]
    if out is not None:
        # a file that is as the hub has it may be there already
        claim(out, BY, [file for file in wanted if not _is(out / file, offered[file])])
    path = Path()
    for file in wanted:
        try:
            path = Path(hf_hub_download(repository, file, local_dir=out, force_download=force))
        except Exception as error:
            raise _failed(name, error) from None
        _check(path, offered[file], cached=out is None)
    return path.parent


def _failed(name: str, error: Exception) -> MissingError:
    lines = str(error).splitlines() or [type(error).__name__]
    here = find_downloaded(name)
    advice = f"an earlier download is at {here}" if here else "is there a network connection?"
    return MissingError(f"cannot download {name} ({lines[0]}); {advice}")


def _is(path: Path, offered: Any) -> bool:
    """Whether a file has the hash that the hub lists.

    The hash is the sha256 of a large file, and git's hash of a small one.
    """
    if not path.is_file():
        return False
    if offered.lfs is not None:
        print(f"checking {path.name}", file=sys.stderr)
        digest, promised = hashlib.sha256(), offered.lfs.sha256
    else:
        digest, promised = hashlib.sha1(b"blob %d\0" % path.stat().st_size), offered.blob_id
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest() == promised


def _check(path: Path, offered: Any, cached: bool) -> None:
    """Remove a file whose hash is not the one that the hub lists, and raise MissingError."""
    if not _is(path, offered):
        if cached:
            path.resolve().unlink(missing_ok=True)      # in the cache, `path` is a link to it
        path.unlink(missing_ok=True)
        promised = offered.lfs.sha256 if offered.lfs is not None else offered.blob_id
        raise MissingError(f"{path.name} does not have the hash {promised} that the hub lists, "
                           "and was removed; try again")


def main(argv: Sequence[str] | None = None) -> int:
    """Download, and print the directory."""
    p = Parser("python -m gpt2.download",
               description="Download OpenAI's weights of GPT-2, and print their directory.")
    p.add_argument("model", metavar="NAME", help=", ".join(PUBLISHED))
    p.add_argument("--out", metavar="DIR",
                   help="write the files to this directory, not to the cache of huggingface_hub")
    p.add_argument("--force", action="store_true",
                   help="download files again that are there already")
    args = p.parse_args(argv)
    print(fetch(args.model, out=args.out, force=args.force))
    return 0


if __name__ == "__main__":
    run_command(main, "gpt2.download")
