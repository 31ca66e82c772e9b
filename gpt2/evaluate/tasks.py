"""The tasks HellaSwag and LAMBADA: items from JSONL files, ids of their texts, and accuracies."""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np

from ..data.corpus import JSONL
from ..errors import MissingError, UsageError
from ..io.records import MB, Between, Like, Size, Wrong, checked, open_file, parsed, read_lines
from .likelihood import Score, exp


class Item(NamedTuple):
    """A context, its possible endings, and the index of the right one."""

    context: str
    endings: list[str]
    label: int


Label = Annotated[int, Between(0, 99)] | Annotated[str, Like("[0-9]{1,2}", "a number")]


class _Endings(TypedDict):
    endings: Annotated[list[str], Size(2, 100)]
    label: Label


class _Cleaned(_Endings):
    """A line of HellaSwag, with what the protocol lm-eval reads of it."""

    activity_label: str
    ctx_a: str
    ctx_b: str


class _Raw(_Endings):
    """A line of HellaSwag, with what the protocol llm.c reads of it."""

    ctx: Annotated[str, Size(1, MB)]


class _Passage(TypedDict):
    """A line of LAMBADA."""

    text: str


def hellaswag(line: Any) -> Item:
    """A line of HellaSwag (Zellers et al. 2019) as the item that lm-evaluation-harness makes of it.

    Wrong for a line that is not an item.
    """
    found: _Cleaned = checked(line, _Cleaned)
    context = f"{found['activity_label']}: {found['ctx_a']} {found['ctx_b'].capitalize()}"
    return _chosen_of(clean(context), [clean(ending) for ending in found["endings"]], found)


def clean(text: str) -> str:
    """The text without WikiHow's marks: [title] ends a sentence, other brackets are removed."""
    lines = []
    for line in text.strip().replace(" [title]", ". ").split("\n"):
        # from every "[" after the last "]", a search for "]" would go to the end
        marked, end, rest = line.rpartition("]")
        lines.append(re.sub(r"\[.*?\]", "", marked + end) + rest)
    return "\n".join(lines).replace("  ", " ")


def hellaswag_raw(line: Any) -> Item:
    """A line of HellaSwag as the item that llm.c's script makes of it, with the texts unchanged.

    The errors are those of `hellaswag`.
    """
    found: _Raw = checked(line, _Raw)
    return _chosen_of(found["ctx"], found["endings"], found)


def _chosen_of(context: str, endings: list[str], line: _Endings) -> Item:
    label = int(line["label"])
    if label >= len(endings):
        raise Wrong(f"label {label} of {len(endings)} endings")
    if "" in endings:
        raise Wrong("an ending is empty")
    return Item(context, [f" {ending}" for ending in endings], label)


def lambada(line: Any) -> Item:
    """A passage of LAMBADA (Paperno et al. 2016): the context, and its last word as the ending.

    Wrong if there is no word before the last one.
    """
    found: _Passage = checked(line, _Passage)
    context, space, word = found["text"].rpartition(" ")
    if not context.strip() or not word:
        raise Wrong("there is no last word after other words")
    return Item(context, [space + word], 0)


def read_items(path: Path, made: Callable[[Any], Item], limit: int | None) -> list[Item]:
    """The items of a JSONL file; limit: at most so many.

    MissingError for a file that cannot be read or is empty, and for a line that is not an item.
    """
    if path.is_dir() or path.suffix.lower() not in JSONL:
        raise UsageError(f"--task {made.__name__} reads a JSONL file of items, "
                         f"and {path} is not one")
    items: list[Item] = []
    try:
        with open_file(path) as file:
            for at, line in enumerate(read_lines(file, MB), 1):
                if line.strip():
                    items.append(read_item(line, made, f"{path}, line {at}"))
                if len(items) == limit:
                    break
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror}") from None
    if not items:
        raise MissingError(f"{path} holds no item")
    return items


def read_item(line: bytes, made: Callable[[Any], Item], where: str) -> Item:
    """The item that `made` makes of a line. MissingError for a line that is not an item."""
    try:
        if len(line) > MB:
            raise Wrong(f"it has more than {MB:,} bytes")
        return made(parsed(line))
    except Wrong as error:
        raise MissingError(f"{where} is not an item of {made.__name__} ({error})") from None


def pair(tokenizer: Any, context: str, ending: str) -> tuple[list[int], list[int]]:
    """Ids of a context and of its ending.

    White space between the two belongs to the ending, because GPT-2's tokens begin with a space.
    """
    bare = context.rstrip()
    return (tokenizer.encode(bare, allow_special=False),
            tokenizer.encode(context[len(bare):] + ending, allow_special=False))


def pair_raw(tokenizer: Any, context: str, ending: str) -> tuple[list[int], list[int]]:
    """Ids of a context and of its ending, each encoded separately."""
    return (tokenizer.encode(context, allow_special=False),
            tokenizer.encode(ending, allow_special=False))


def last_token(tokenizer: Any, context: str, ending: str) -> tuple[list[int], list[int]]:
    """All ids of a passage but the last, and the last one."""
    ids = tokenizer.encode(context + ending, allow_special=False)
    return ids[:-1], ids[-1:]


class Protocol(NamedTuple):
    """`made` turns a line of the file into an item, `pair` a context and an ending into ids."""

    made: Callable[[Any], Item]
    pair: Callable[[Any, str, str], tuple[list[int], list[int]]]


PROTOCOLS = {                                           # the first of a task is the default
    ("hellaswag", "lm-eval"): Protocol(hellaswag, pair),
    ("hellaswag", "llm.c"): Protocol(hellaswag_raw, pair_raw),
    ("lambada", "lm-eval"): Protocol(lambada, pair),
    ("lambada", "openai"): Protocol(lambada, last_token),
}


def protocol_of(task: str, name: str | None) -> Protocol:
    """The protocol of a task. UsageError if the task has no protocol of that name."""
    known = [own for of, own in PROTOCOLS if of == task]
    if name is not None and name not in known:
        has = f"the protocols {' and '.join(known)}" if known else "no protocol; leave it out"
        raise UsageError(f"--protocol {name}: --task {task} has {has}")
    return PROTOCOLS[task, name or known[0]]


def complete(items: list[Item], endings: int) -> int:
    """How many items have all their endings among the first `endings` endings."""
    done = 0
    while done < len(items) and len(items[done].endings) <= endings:
        endings -= len(items[done].endings)
        done += 1
    return done


def summed(spans: list[list[Any]], found: Iterator[Score]) -> Iterator[Score]:
    """The score of each ending, from the scores of its spans."""
    for some in spans:
        parts = [next(found) for _ in some]
        yield Score(sum(part.nll for part in parts), sum(part.tokens for part in parts),
                    all(part.greedy for part in parts))


def chosen(items: list[Item], rows: list[list[Score]]) -> dict[str, Any]:
    """How often the right ending is the likeliest: in all, per character, and per token."""
    per: dict[str, Callable[[Score, str], float]] = {
        "acc": lambda score, ending: score.nll,
        # the space before the ending does not count
        "acc_norm": lambda score, ending: score.nll / (len(ending) - 1),
        "acc_per_token": lambda score, ending: score.nll / score.tokens,
    }
    out = {}
    for name, cost in per.items():
        hits = []
        for item, row in zip(items, rows):
            costs = [cost(score, ending) for score, ending in zip(row, item.endings)]
            hits.append(np.argmin(costs) == item.label)
        out[name] = share(hits)
    return out


def last_words(rows: list[list[Score]]) -> dict[str, Any]:
    """How often all tokens of the last word are the most likely ones, and the words' perplexity."""
    return {"acc": share([row[0].greedy for row in rows]),
            "perplexity": exp(math.fsum(row[0].nll for row in rows) / len(rows)) if rows else None}


def share(hits: list[Any]) -> dict[str, float] | None:
    """The share of hits that are true, and its standard error."""
    if not hits:
        return None
    mean = sum(map(bool, hits)) / len(hits)
    return {"value": mean, "stderr": math.sqrt(mean * (1 - mean) / max(1, len(hits) - 1))}
