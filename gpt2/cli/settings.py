"""Settings of a command: from its flags, a TOML file, and the checkpoint of an earlier run.

For each setting, the source is known.
"""
from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from ..errors import MissingError, UsageError
from ..io.records import checked, read_bytes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# bytes of a TOML file, and characters of a line, whose dotted key takes a time that grows with n²
LARGEST, LINE = 128 << 10, 2000
_UNSET = object()


def read_toml(path: str | Path, flag: str) -> dict[str, Any]:
    """The contents of a TOML file.

    flag: the flag that names the file, for errors. MissingError if the file cannot be read,
    UsageError if it is not TOML.
    """
    try:
        text = read_bytes(path, LARGEST).decode()
        if longest := [line for line in text.splitlines() if len(line) > LINE]:
            raise UsageError(f"{flag} {path}: a line has {len(longest[0]):,} characters, "
                             f"and {LINE:,} at most are read")
        return tomllib.loads(text)
    except OSError as error:
        raise MissingError(f"{flag} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{flag} {path} is not UTF-8") from None
    except UsageError:
        raise
    except ValueError as error:         # also of an integer with thousands of digits
        raise UsageError(f"{flag} {path} is not TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{flag} {path} is nested too deeply") from None


def flags_given(parser: argparse.ArgumentParser, argv: list[str] | None) -> dict[str, Any]:
    """The settings that the command line names, without the defaults of the others."""
    blank = argparse.Namespace(**dict.fromkeys(_actions(parser), _UNSET))
    parsed = vars(parser.parse_args(argv, blank))
    return {name: value for name, value in parsed.items() if value is not _UNSET}


def read_settings(parser: argparse.ArgumentParser, path: str | Path) -> dict[str, Any]:
    """The settings in a TOML file.

    Their names are the parser's flags without the leading dashes, `batch_size` or `batch-size`.
    MissingError if the file cannot be read; UsageError if it is not TOML, if a name is not a flag,
    or if a value is not one that the flag accepts.
    """
    found = read_toml(path, "--config")
    actions, settings = _actions(parser), {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in actions or name == "config":
            near = difflib.get_close_matches(name, set(actions) - {"config"}, 1)
            hint = f"; is {near[0]} meant?" if near else ""
            raise UsageError(f"--config {path}: there is no setting {key!r}{hint}")
        if name in settings:
            raise UsageError(f"--config {path}: {name} is given twice")
        settings[name] = _value(actions[name], value, f"--config {path}: {key}")
    return settings


def check_stored(parser: argparse.ArgumentParser, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an earlier run that the parser knows, each as its flag has it.

    UsageError for a value that the flag does not give.
    """
    actions, out = _actions(parser), {}
    for name in settings.keys() & actions.keys():
        action, value = actions[name], settings[name]
        if value is not None or action.default is not None:
            found = _value(action, value, name)
            if type(found) is not type(value) or found != value:
                raise UsageError(f"{name} cannot be {brief(value)}")
        out[name] = value
    return out


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {a.dest: a for a in parser._actions if a.dest != "help"}


def _value(action: argparse.Action, value: Any, where: str) -> Any:
    """A value of the file, checked and converted as the flag does it."""
    if action.nargs == 0:                               # a switch
        if not isinstance(value, bool):
            raise UsageError(f"{where} must be true or false, not {brief(value)}")
        return value
    if action.nargs in ("+", "*"):
        if not isinstance(value, list):
            raise UsageError(f"{where} must be a list, not {brief(value)}")
        return [_one(action, v, where) for v in value]
    return _one(action, value, where)


def _one(action: argparse.Action, value: Any, where: str) -> Any:
    wanted = (str, Path) if action.type in (None, str, Path) else (int, float)
    if isinstance(value, bool) or not isinstance(value, (str, *wanted)):
        raise UsageError(f"{where} cannot be {brief(value)}")
    try:
        checked(str(value), str)                        # without half a surrogate pair
        value = action.type(str(value)) if callable(action.type) else str(value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        typed = isinstance(error, argparse.ArgumentTypeError)
        reason = error if typed else f"{brief(value)} is not a number"
        raise UsageError(f"{where}: {reason}") from None
    if action.choices is not None and value not in action.choices:
        raise UsageError(f"{where} is {brief(value)}; "
                         f"choose from {', '.join(map(str, action.choices))}")
    return value


def merged(parser: argparse.ArgumentParser, *layers: tuple[str, Mapping[str, Any]]
           ) -> tuple[argparse.Namespace, dict[str, str]]:
    """All settings, and for each name the layer that its value comes from.

    layers: pairs of a layer's name and its settings. Later layers override earlier ones, and all of
    them override the parser's defaults.
    """
    values = {name: action.default for name, action in _actions(parser).items()}
    sources = dict.fromkeys(values, "default")
    for source, layer in layers:
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    return argparse.Namespace(**values), sources


def as_toml(settings: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """The settings as text that `read_settings` can read; settings without a value are left out."""
    lines = {name: f"{name} = {json.dumps(value, ensure_ascii=False)}"
             for name, value in settings.items() if value is not None and value != []}
    width = min(40, max(map(len, lines.values()), default=0))
    return "\n".join(f"{line:{width}}  # {sources[name]}" for name, line in lines.items())
