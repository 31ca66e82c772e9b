"""python -m gpt2, or minigrad-gpt2: the commands of this package."""
from __future__ import annotations

import sys

from minigrad.commands import run

COMMANDS = {
    "generate": "continue a prompt",
    "train": "train a model from nothing, from a model, or from where a run was stopped",
    "prepare": "turn text or JSONL files into token shards for training and evaluation",
    "evaluate": "measure how well a model predicts a text, or run HellaSwag and LAMBADA",
    "download": "fetch OpenAI's weights and vocabulary",
    "inspect": "show a model's sizes, weights, attention and activations",
    "golden": "write the ground truth for a port of GPT-2",
    "verify": "compare a port's tensors with the ground truth, and say why they differ",
    "experiments": "measure what GPT-2's equations say",
}


def main(argv: list[str] | None = None) -> int:
    """Run one of COMMANDS, or list them."""
    return run("gpt2", COMMANDS, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
