"""Settings of a command from its flags, from a TOML file, and from what an earlier run stored; each knows where it came from."""
from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..io.atomic import read_toml

_UNSET = object()


def flags_given(parser: argparse.ArgumentParser, argv: list[str] | None) -> dict[str, Any]:
    """The settings that the command line names, and no default."""
    blank = argparse.Namespace(**dict.fromkeys(_actions(parser), _UNSET))
    return {name: value for name, value in vars(parser.parse_args(argv, blank)).items() if value is not _UNSET}


def read_settings(parser: argparse.ArgumentParser, path: str | Path) -> dict[str, Any]:
    """The settings of a TOML file: the parser's flags without their dashes, `batch_size` or `batch-size`.

    MissingError where it cannot be read, UsageError for what is no TOML, no flag, or no value that the flag takes.
    """
    found = read_toml(path, "--config")
    actions, settings = _actions(parser), {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in actions or name == "config":
            near = difflib.get_close_matches(name, set(actions) - {"config"}, 1)
            raise UsageError(f"--config {path}: there is no setting {key!r}{f'; is {near[0]} meant?' if near else ''}")
        if name in settings:
            raise UsageError(f"--config {path}: {name} is given twice")
        settings[name] = _value(actions[name], value, f"--config {path}: {key}")
    return settings


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {a.dest: a for a in parser._actions if a.dest != "help"}


def _value(action: argparse.Action, value: Any, where: str) -> Any:
    """A value of a file as the flag would give it."""
    if action.nargs == 0:                               # a switch
        if not isinstance(value, bool):
            raise UsageError(f"{where} is true or false, not {value!r}")
        return value
    if action.nargs in ("+", "*"):
        if not isinstance(value, list):
            raise UsageError(f"{where} is a list, not {value!r}")
        return [_one(action, v, where) for v in value]
    return _one(action, value, where)


def _one(action: argparse.Action, value: Any, where: str) -> Any:
    wanted = (str, Path) if action.type in (None, str, Path) else (int, float)
    if isinstance(value, bool) or not isinstance(value, (str, *wanted)):
        raise UsageError(f"{where} cannot be {value!r}")
    try:
        value = action.type(str(value)) if callable(action.type) else str(value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        said = error if isinstance(error, argparse.ArgumentTypeError) else f"{value!r} is not a number"
        raise UsageError(f"{where}: {said}") from None
    if action.choices is not None and value not in action.choices:
        raise UsageError(f"{where} is {value!r}; choose from {', '.join(map(str, action.choices))}")
    return value


def merged(parser: argparse.ArgumentParser, *layers: tuple[str, Mapping[str, Any]]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The parser's defaults under the layers, later ones on top, and by name the layer that a setting came from."""
    values = {name: action.default for name, action in _actions(parser).items()}
    sources = dict.fromkeys(values, "default")
    for source, layer in layers:
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    return argparse.Namespace(**values), sources


def as_toml(settings: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """The settings as a file that `read_settings` takes; those that are not set are left out."""
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items() if value is not None and value != []]
    width = min(40, max(map(len, lines), default=0))
    names = [name for name, value in settings.items() if value is not None and value != []]
    return "\n".join(f"{line:{width}}  # {sources[name]}" for name, line in zip(names, lines))
