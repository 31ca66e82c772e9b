"""From what a user calls a model to where its files are."""
from __future__ import annotations

import difflib
import os
from pathlib import Path

from ..config import PUBLISHED
from ..errors import MissingError, UsageError

MODELS = Path(__file__).parents[1] / "models"             # those that ship with the package
SHIPPED = ("shakespeare",)


def locate(name: str | Path, *, download: bool = False) -> Path:
    """The directory or .safetensors file of a model: a path, "shakespeare", or a published size downloaded before.

    A text that is a name means that model, also where a directory is called so: "./gpt2" and Path("gpt2") mean the
    directory. download=True fetches a published size that is not here yet. UsageError for an unknown name (with the names
    there are), MissingError for a path where nothing is and for a published size that is not here (with the command that
    gets it).
    """
    text = str(name)
    if name in SHIPPED:
        return MODELS / text
    if name in PUBLISHED:
        from ..download import fetch, find_downloaded

        found = find_downloaded(text)
        if found is None and download:
            found = fetch(text)
        if found is None:
            raise MissingError(f"the weights of {text} are not on this machine; get them with: python -m gpt2.download {text}")
        return found
    path = Path(name)
    if path.exists():
        return path
    names = [*SHIPPED, *PUBLISHED]
    short = text.lower().removeprefix("openai-community/")
    near = difflib.get_close_matches(short, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    is_path = isinstance(name, Path) or not {"/", os.sep}.isdisjoint(short) or short.endswith(".safetensors")
    raise (MissingError if is_path else UsageError)(
        f"there is no model or directory {text!r}{hint} (models: {', '.join(names)}, or a directory)")
