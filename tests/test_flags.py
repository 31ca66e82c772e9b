"""Flags that take lists, of every command of the project: each time a flag is given, its values are added to those before."""
from __future__ import annotations

import argparse
import re

import pytest
from data import ROOT

import gpt2.train.__main__ as training
from docs import commands
from gpt2.cli.settings import flags_given, merged, read_settings


def samples(action):
    """Two values of a flag as they are typed."""
    if action.choices:
        options = [str(choice) for choice in action.choices]
        return options[0], options[-1]
    return ("1", "2") if action.type not in (None, str) else ("a", "b")


def lists(parser):
    """The flags that take lists, with what each of two values becomes."""
    for action in parser._actions:
        if action.option_strings and action.nargs != 0:
            try:
                values = [parser._get_values(action, [one]) for one in samples(action)]
            except argparse.ArgumentError:              # "1" is no name of a picture, and that is no list
                continue
            if isinstance(values[0], list) or isinstance(action, argparse._AppendAction):
                yield action, [v if isinstance(v, list) else [v] for v in values]


@pytest.mark.parametrize("command", list(commands.modules()))
def test_lists_add_up(command, monkeypatch):
    """A flag that takes a list, given twice, is both lists, one after the other; and a default is no part of it."""
    for parser in commands.parsers(command):
        for action, (first, second) in lists(parser):
            for default in (action.default, None, ["x"]):
                space = argparse.Namespace(**{action.dest: default})
                monkeypatch.setattr(action, "default", default)
                given = []
                for text in samples(action):
                    action(parser, space, parser._get_values(action, [text]), action.option_strings[0])
                    given.append(getattr(space, action.dest))
                if isinstance(action, argparse._AppendAction) and default:
                    continue                            # argparse's own adds to the default, so it must not have one
                assert given == [first, [*first, *second]], f"{command} {action.option_strings[0]}"
            monkeypatch.undo()
            assert not isinstance(action, argparse._AppendAction) or not action.default


def test_there_are_such_flags():
    """The walk meets the flags that it is for."""
    met = {f"{command} {action.option_strings[-1]}" for command in commands.modules() for parser in commands.parsers(command)
           for action, _ in lists(parser)}
    assert met >= {"gpt2.train.__main__ --freeze", "gpt2.generate --stop", "gpt2.golden.__main__ --ids", "gpt2.inspect.__main__ --ids",
                   "benchmarks.run --row", "benchmarks.run --suite", "benchmarks.run --peers", "benchmarks.accuracy --peers",
                   "benchmarks.gpu --only", "docs.laboratory --run", "minigrad.testing.__main__ --op",
                   "minigrad.testing.__main__ --device", "minigrad.testing.mutate --op"}


def test_no_command_cuts_a_list_by_itself():
    """A comma-separated flag is cut by its type, where the walk sees it, and not after parsing."""
    for package in commands.PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert not re.search(r"args\.\w+\.split\(", path.read_text("utf-8")), path


def test_a_list_on_the_command_line_replaces_that_of_a_file(tmp_path):
    """--config gives one list, the flag another: the flag's counts; given twice it is both of its own."""
    path = tmp_path / "run.toml"
    path.write_text('freeze = ["ln_f.*"]\n')
    parser = training.parser()
    file = ("file", read_settings(parser, path))
    given = flags_given(parser, ["--freeze", "wte.*", "--freeze", "h.0.*", "h.1.*"])
    assert given == {"freeze": ["wte.*", "h.0.*", "h.1.*"]}
    assert merged(parser, file, ("command line", given))[0].freeze == ["wte.*", "h.0.*", "h.1.*"]
    assert merged(parser, file)[0].freeze == ["ln_f.*"]
    assert parser.get_default("freeze") == [] and flags_given(parser, []) == {}
