"""What tests of python -m gpt2.train share: a small text, and the command run in this process."""
from __future__ import annotations

import pytest
from in_process import end_of
from tiny_gpt2 import TEXT, prepare_texts

import gpt2.train.__main__ as training


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A small text as gpt2.prepare writes it."""
    folder = tmp_path_factory.mktemp("data") / "poem"
    prepare_texts([TEXT * 8], folder, "train:300")
    return folder


@pytest.fixture
def run(capsys):
    """Run the command in this process: run(out, *flags) gives exit code, stdout and stderr."""

    def call(out, *flags):
        argv = ["--out-dir", str(out), *map(str, flags)]
        return end_of(lambda: training.main(argv), capsys, "gpt2.train")

    return call
