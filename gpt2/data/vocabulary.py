"""The files of a vocabulary: tokenizer.json, or vocab.json and merges.txt, and what adds tokens."""
from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict, cast

from ..errors import MissingError
from ..io.records import MB, Between, Size, Wrong, checked, read_json, read_text

END_OF_TEXT = "<|endoftext|>"
# files that are read besides vocab.json and merges.txt
BESIDE = ("tokenizer.json", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
LARGEST = 64 * MB                                       # of a file of a vocabulary
Id = Annotated[int, Between(0, 2**32 - 2)]              # tiktoken's ids have 32 bits
Text = Annotated[str, Size(1, 100_000)]


class _Flags(TypedDict, total=False):
    """What else is read of an added token."""

    id: Id
    lstrip: bool | None
    rstrip: bool | None
    single_word: bool | None


class _Added(_Flags):
    """An added token, as transformers writes it."""

    content: Text


Token = str | _Added | None


class _Special(TypedDict, total=False):
    """What is read of special_tokens_map.json."""

    bos_token: Token
    eos_token: Token
    unk_token: Token
    sep_token: Token
    pad_token: Token
    cls_token: Token
    mask_token: Token
    additional_special_tokens: list[str | _Added] | dict[str, str | _Added] | None
    extra_special_tokens: list[str | _Added] | dict[str, str | _Added] | None


KINDS = [key for key in _Special.__annotations__ if key.endswith("_token")]


class _Config(_Special, total=False):
    """What is read of tokenizer_config.json."""

    add_bos_token: bool | None
    add_prefix_space: bool | None
    added_tokens_decoder: dict[str, _Added]


class _TokenizerJson(TypedDict, total=False):
    """What is read of tokenizer.json."""

    model: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    post_processor: dict[str, Any] | None
    normalizer: Any
    added_tokens: list[_Added] | None


class _Model(TypedDict):
    """A byte-level BPE in tokenizer.json."""

    vocab: dict[str, Id]
    merges: list[str | list[str]]


class Vocabulary(NamedTuple):
    """Where a vocabulary was read, its ids, the lines of its merges, and the added tokens' ids."""

    where: str
    ids: dict[str, int]
    merges: list[str]
    added: dict[str, int]


def read_vocabulary(directory: Path) -> Vocabulary | None:
    """The vocabulary in a directory; None if there is none. MissingError if it is damaged."""
    path, vocab, merges = (directory / name for name in
                           ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if path.is_file():
            ids, lines, own = _tokenizer_json(path)
            return Vocabulary(str(path), ids, lines, _added_tokens(directory, ids, own))
        if vocab.is_file() and merges.is_file():
            ids = read_json(vocab, dict[str, Id], LARGEST)
            lines = merge_lines(read_text(merges, LARGEST))
            return Vocabulary(str(directory), ids, lines, _added_tokens(directory, ids, []))
    except OSError as error:
        what = error.filename or directory
        raise MissingError(f"cannot read {what}: {error.strerror or error}") from None
    return None


def merge_lines(merges_txt: str) -> list[str]:
    """The merges of a merges.txt, one a line."""
    lines = merges_txt.replace("\r\n", "\n").rstrip("\n").split("\n")
    return [line for line in lines[lines[0].startswith("#version"):] if line]


def _added_tokens(directory: Path, vocab: Mapping[str, int], own: Sequence[_Added]
                  ) -> dict[str, int]:
    """The tokens that other files add to a vocabulary, with the ids that transformers gives them.

    own: the added tokens of tokenizer.json. Further added tokens are in added_tokens_decoder of
    tokenizer_config.json, or else in added_tokens.json, and those that tokenizer_config.json or
    special_tokens_map.json names, for example as pad_token. If the vocabulary has the token,
    transformers keeps its id; the others get the ids from the vocabulary's size on, whatever id the
    file has. MissingError if the file has another id, and for a token that matches the white space
    around it or only whole words, which tiktoken cannot do.
    """
    config: _Config = _read(directory / "tokenizer_config.json", _Config, {})
    named: _Special = _read(directory / "special_tokens_map.json", _Special, {})
    if wrong := [key for key in ("add_bos_token", "add_prefix_space") if config.get(key)]:
        raise MissingError(f"{directory / 'tokenizer_config.json'} sets {wrong[0]}, which GPT-2's "
                           "tokenizer does not have; remove it")
    tokens = list(own)
    if "added_tokens_decoder" in config:
        for i, token in config["added_tokens_decoder"].items():
            if not re.fullmatch("[0-9]{1,10}", i):
                raise MissingError(f"{directory / 'tokenizer_config.json'}: {i!r} is not an id")
            tokens.append({**token, "id": int(i)})
    else:
        more = _read(directory / "added_tokens.json", dict[Text, Id], {})
        tokens += [{"content": content, "id": i} for content, i in more.items()]
    tokens.sort(key=operator.itemgetter("id"))
    sources: list[dict[str, Any]] = [dict(named), dict(config)]
    for source in sources:
        special: list[Any] = [source.get(key) for key in KINDS]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            some = source.get(key) or []
            special += some.values() if isinstance(some, dict) else some
        tokens += [cast(_Added, token if isinstance(token, dict) else {"content": token})
                   for token in special if token]
    out: dict[str, int] = {}
    free = len(vocab)
    for token in tokens:
        content = token["content"]
        if wrong := [key for key in ("lstrip", "rstrip", "single_word") if token.get(key)]:
            raise MissingError(f"{directory}: the added token {content!r} sets {wrong[0]}, "
                               "which is not supported; set it to false")
        if content not in out:
            out[content] = vocab.get(content, free)
            free = max(free, out[content] + 1)
        if token.get("id", out[content]) != out[content]:
            raise MissingError(f"{directory}: the added token {content!r} has the id "
                               f"{token['id']}, and transformers would use {out[content]}, "
                               f"the next free id; give it the id {out[content]}")
    names = sorted({*out, END_OF_TEXT})
    if twice := [pair for pair in pairwise(names) if pair[1].startswith(pair[0])]:
        raise MissingError(f"{directory}: the added token {twice[0][1]!r} begins with the added "
                           f"token {twice[0][0]!r}; tiktoken might take either")
    return out


def _read(path: Path, schema: Any, default: Any) -> Any:
    """The record in a file, if there is one."""
    return read_json(path, schema, LARGEST) if path.is_file() else default


def _tokenizer_json(path: Path) -> tuple[dict[str, int], list[str], list[_Added]]:
    """Vocabulary, merges and added tokens of a tokenizer.json.

    MissingError with all reasons if it does not work as GPT-2's does.
    """
    whole = read_json(path, _TokenizerJson, LARGEST)
    model, cutter = whole.get("model") or {}, whole.get("pre_tokenizer") or {}
    after, added = whole.get("post_processor") or {}, whole.get("added_tokens") or []
    problems: dict[str, Any] = {
        "model is not BPE": model.get("type", "BPE") != "BPE"
        or not {"merges", "vocab"} <= model.keys(),
        "normalizer is set": whole.get("normalizer"),
        "pre_tokenizer is not ByteLevel": cutter.get("type") != "ByteLevel",
        "pre_tokenizer.add_prefix_space is set": cutter.get("add_prefix_space"),
        "pre_tokenizer.use_regex is off": not cutter.get("use_regex", True),
        "post_processor adds tokens": after.get("special_tokens")
        or after.get("type", "ByteLevel") not in ("ByteLevel", "TemplateProcessing"),
        **{f"model.{key} is set": model.get(key) for key in
           ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")},
    }
    if found := [problem for problem, present in problems.items() if present]:
        raise MissingError(f"{path} is not a byte-level BPE like GPT-2's: {', '.join(found)}")
    try:
        bpe = checked(model, _Model)
    except Wrong as error:
        raise MissingError(f"{path}: {error.inside('model')}; is it truncated?") from None
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    for token in added:
        if "id" not in token:
            raise MissingError(f"{path}: the added token {token['content']!r} has no id")
    return bpe["vocab"], merges, added
