"""The path of a model's files, from the name that a user types."""
from __future__ import annotations

import difflib
import os
from pathlib import Path

from ..config import PUBLISHED
from ..errors import MissingError, UsageError

MODELS = Path(__file__).parents[1] / "models"           # the models that the package contains
SHIPPED = ("shakespeare",)


def locate(name: str | Path, *, download: bool = False) -> Path:
    """The directory or .safetensors file of a model.

    name: a path, "shakespeare", or a published size such as "gpt2". A string that is the name of a
    model means that model, even if there is a directory of the same name: write "./gpt2" or
    Path("gpt2") for the directory. download=True downloads a published size that is not on this
    machine.

    Raises UsageError for an unknown name (the error lists the known ones), and MissingError for a
    path that does not exist and for a published size that is not on this machine (the error has the
    command that downloads it).
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
            raise MissingError(f"the weights of {text} are not on this machine; "
                               f"get them with: python -m gpt2.download {text}")
        return found
    path = Path(name)
    if path.exists():
        return path
    names = [*SHIPPED, *PUBLISHED]
    short = text.lower().removeprefix("openai-community/")
    near = difflib.get_close_matches(short, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    is_path = (isinstance(name, Path) or not {"/", os.sep}.isdisjoint(short)
               or short.endswith(".safetensors"))
    raise (MissingError if is_path else UsageError)(
        f"there is no model or directory {text!r}{hint} "
        f"(models: {', '.join(names)}, or a directory)")
