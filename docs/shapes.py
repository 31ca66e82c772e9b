"""Shapes in the comments of samples, beside those of the arrays that the samples make.

    logits = model(ids)                 # [B, T] -> [B, T, V]           of the first argument, and of the result
    found = model.trace(ids)            # found["embed"] [B, T, d]      of an expression
    return x.reshape(3, 4)              # [T, d] -> [h, T, d/h]         of the function's first argument, and of what it returns

A letter is one number within a block, whichever it is.
"""
from __future__ import annotations

import ast
import contextlib
import re
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SHAPE = r"\[(?:[A-Za-z]\w*(?:/\w+)?(?:, |(?=\])))*\]"
_CLAIM = re.compile(rf"#\s+(?:(\w+\[\"[^\"]+\"\])\s)?({_SHAPE})(?: -> ({_SHAPE}))?")
Shapes = list[tuple[str, Any]]                          # what a comment says, and the array that it says it of


def claims(text: str) -> dict[int, tuple[str, re.Match[str]]]:
    """The lines of a block that end in a shape, by their numbers from 1: the code, and the comment."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := _CLAIM.search(line):
            found[number] = line[:match.start()].removeprefix(">>> ").strip(), match
    return found


@contextlib.contextmanager
def returned(name: str, lines: dict[int, tuple[str, re.Match[str]]]) -> Iterator[Shapes]:
    """What the functions of the file `name` take and return at those of the lines that are a return, while the block runs."""
    found: Shapes = []
    wanted = {number: match for number, (code, match) in lines.items() if code.startswith("return ")}

    def look(frame: FrameType, event: str, value: Any) -> None:
        if event == "return" and frame.f_lineno in wanted and frame.f_code.co_filename == name:
            match = wanted[frame.f_lineno]
            found.append((match[2], frame.f_locals[frame.f_code.co_varnames[0]]))
            found.append((match[3] or match[2], value))

    sys.setprofile(look if wanted else None)
    try:
        yield found
    finally:
        sys.setprofile(None)


def assigned(text: str, space: dict[str, object]) -> Shapes:
    """What the other lines with a shape have made, once the block has run."""
    found: Shapes = []
    for code, match in claims(text).values():
        if match[1]:
            found.append((match[2], eval(match[1], dict(space))))
        elif not code.startswith(("return ", "def ")):
            made = ast.parse(code).body[0]
            assert isinstance(made, ast.Assign) and isinstance(made.targets[0], ast.Name), f"{code!r} makes nothing that has a shape"
            found.append((match[3] or match[2], space[made.targets[0].id]))
            if match[3] and isinstance(made.value, ast.Call) and isinstance(made.value.args[0], ast.Name):
                found.append((match[2], space[made.value.args[0].id]))
    return found


def wrong(shapes: Shapes, **known: int) -> Iterator[str]:
    """The shapes that are others, or in which a letter is two numbers, or not the number that is known."""
    sizes = dict(known)
    for said, array in shapes:
        names, shape = [name for name in said.strip("[]").split(", ") if name], tuple(array.shape)
        for name, size in zip(names, shape):
            if "/" not in name:
                sizes.setdefault(name, size)
        whole = [sizes.get(name.split("/")[0], 0) // sizes.get(name.split("/")[1], 1) if "/" in name else sizes[name]
                 for name in names[:len(shape)]]
        if len(names) != len(shape) or tuple(whole) != shape:
            yield f"{said} is {list(shape)}, where {', '.join(f'{name} = {size}' for name, size in sizes.items())}"
