"""What tests of python -m gpt2.inspect share: the command run in this process, and a tiny model."""
from __future__ import annotations

import json

import pytest
from in_process import end_of
from tiny_gpt2 import tiny_model, tiny_tokenizer

from gpt2.inspect.__main__ import main


@pytest.fixture
def run(capsys):
    """run(*flags): exit code, stdout and stderr."""

    def ended(*flags):
        return end_of(lambda: main([*map(str, flags)]), capsys, "gpt2.inspect")

    return ended


@pytest.fixture
def told(run):
    """told(*flags): the JSON document of a run that ends well."""

    def document(*flags):
        code, out, err = run(*flags, "--json")
        assert code == 0, err
        return json.loads(out, parse_constant=lambda c: pytest.fail(c))

    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model of random weights, saved."""
    where = tmp_path_factory.mktemp("tiny")
    tiny_model(seed=3).save_pretrained(where, tokenizer=tiny_tokenizer())
    return where
