"""Text to token ids and back: byte-level BPE by tiktoken, stored as vocab.json and merges.txt."""
from __future__ import annotations

import codecs
import hashlib
import json
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from heapq import heappop, heappush
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import MissingError, UsageError
from ..io.atomic import write_files
from ..io.records import read_bytes
from .vocabulary import BESIDE as BESIDE
from .vocabulary import END_OF_TEXT as END_OF_TEXT
from .vocabulary import LARGEST, merge_lines, read_vocabulary

if TYPE_CHECKING:
    import tiktoken

# GPT-2's rule for cutting text into words (Radford et al. 2019): contractions; letters, digits or
# other marks with the space before them; white space, whose last character belongs to the word that
# follows. It cuts a text into the same words as the published rule
#     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# but uses possessive quantifiers where it can, which keep the stack of the regex engine small.
GPT2_SPLIT = r"'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++(?!\S)|\s+(?!\S)|\s"

# GPT-2 numbers the 256 bytes and writes each as one visible character: first the printable
# characters of Latin-1 as themselves, then all other bytes as the characters from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES_IN_ORDER = [bytes([byte]) for byte in _PRINTABLE + _OTHERS]
_CHAR_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE}
_CHAR_OF_BYTE.update((byte, chr(256 + i)) for i, byte in enumerate(_OTHERS))
_BYTE_OF_CHAR = {ord(char): byte for byte, char in _CHAR_OF_BYTE.items()}

# The address from which tiktoken downloads GPT-2's merges; its sha1 is the name of the file in
# tiktoken's cache.
_GPT2_MERGES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
_GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


class Tokenizer:
    """A tiktoken Encoding with the errors, streaming and files that a language model needs."""

    def __init__(self, encoding: tiktoken.Encoding):
        self.encoding = encoding
        self.name: str = encoding.name
        self.n_vocab: int = encoding.n_vocab
        self.eot: int | None = encoding._special_tokens.get(END_OF_TEXT)
        # added tokens such as <|pad|> may be outside a model's vocabulary; plain text has none
        eot = -1 if self.eot is None else self.eot
        self.n_plain: int = max(eot, *encoding._mergeable_ranks.values()) + 1

    @classmethod
    def from_merged(cls, name: str, merged: Iterable[bytes]) -> Tokenizer:
        """A tokenizer of the 256 bytes in GPT-2's order, the merged tokens, and <|endoftext|> last.

        merged: the tokens that merges make, in the order of the merges.
        """
        ranks = {token: rank for rank, token in enumerate([*BYTES_IN_ORDER, *merged])}
        return cls(_encoding(name, ranks, {END_OF_TEXT: len(ranks)}))

    def encode(self, text: str, *, allow_special: bool | None = None) -> list[int]:
        """Token ids of `text`.

        allow_special: with True, <|endoftext|> in the text is that token; with False it is plain
        text. It must be given for a text with special tokens, as in tiktoken, because OpenAI's
        encoder reads them as text, and transformers' as tokens.

        Raises UsageError if it is not given for such a text, if the text holds half a surrogate
        pair (Python's replacement for bytes that are not UTF-8), or if it holds a million
        white-space characters in a row, which tiktoken cannot split.
        """
        if allow_special not in (None, True, False):
            raise UsageError(f"allow_special must be True or False, not {allow_special!r}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("the text is not valid Unicode: lone surrogate "
                             f"U+{ord(text[error.start]):04X} at character {error.start}; "
                             "was its source UTF-8?") from None
        special = self.encoding.special_tokens_set
        if allow_special is None and (held := [token for token in special if token in text]):
            first = min(held, key=text.find)
            raise UsageError(f"the text holds {first} at character {text.find(first)}; pass "
                             "allow_special=True to read it as the special token (transformers "
                             "does), or allow_special=False as plain text (OpenAI's encoder does)")
        try:
            if allow_special:
                return self.encoding.encode(text, allowed_special="all")
            return self.encoding.encode_ordinary(text)
        except BaseException as error:
            # a Rust panic is not an Exception, and its class cannot be imported
            if type(error).__name__ != "PanicException":
                raise
            raise UsageError("tiktoken cannot cut this text into words; if it holds a run of a "
                             "million white-space characters, break that up") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. UsageError for unknown ids."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, which may end inside a character. UsageError for an unknown id."""
        plain = [operator.index(token) for token in ids]
        try:
            return self.encoding.decode_bytes(plain)
        except (KeyError, OverflowError):
            known = {*self.encoding._mergeable_ranks.values(),
                     *self.encoding._special_tokens.values()}
            index, token = next((i, token) for i, token in enumerate(plain) if token not in known)
            raise UsageError(f"token id {token} at position {index} is not in the vocabulary of "
                             f"{self.name!r} (ids 0 to {self.n_vocab - 1})") from None

    def label(self, token: int) -> str:
        """A token's text for a table: · for a space, ⏎ for the end of a line, <0xE2> for a byte.

        Bytes are shown if the token is not a text of whole characters.
        """
        data = self.decode_bytes([token])
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)
        visible = {" ": "·", "\n": "⏎", "\t": "⇥"}
        return "".join(visible.get(c, c if c.isprintable() else f"<U+{ord(c):04X}>") for c in text)

    def stream(self) -> StreamDecoder:
        """A decoder that takes one id at a time."""
        return StreamDecoder(self)

    @cached_property
    def sha256(self) -> str:
        """sha256 of the vocab.json that `save` writes; it does not depend on the name."""
        return hashlib.sha256(self._vocab_json()).hexdigest()

    def _vocab_json(self) -> bytes:
        ids = {_visible(token): i for token, i in self.encoding._mergeable_ranks.items()}
        ids.update(self.encoding._special_tokens)
        return json.dumps(dict(sorted(ids.items(), key=lambda item: item[1]))).encode()

    def files(self) -> dict[str, bytes]:
        """The files vocab.json and merges.txt, which transformers and `load_tokenizer` read.

        Special tokens besides <|endoftext|> are also in added_tokens.json: without it, transformers
        would read them as text.
        """
        ranks = self.encoding._mergeable_ranks
        merged = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
        merges = [_merge_of(token, ranks) for token in merged]
        special = {token: i for token, i in self.encoding._special_tokens.items()
                   if token != END_OF_TEXT}
        added = {"added_tokens.json": json.dumps(special).encode()} if special else {}
        return {**added, "vocab.json": self._vocab_json(), "merges.txt": _merges_txt(merges)}

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `files` into `directory`, all or none. UsageError if they cannot be written."""
        files = self.files()
        if held := [name for name in BESIDE
                    if name not in files and (Path(directory) / name).exists()]:
            instead = "instead" if held[0] == BESIDE[0] else "too"
            raise UsageError(f"{directory} holds a {held[0]}, which would be read {instead}; "
                             "remove it first")
        write_files(directory, files)


class StreamDecoder:
    """The text of a growing sequence, in whole characters, though a token may end inside one.

    Bytes that can no longer become a character turn into U+FFFD at once. The results of `push` and
    `flush`, joined, are `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """The rest of the text: U+FFFD for a character that was not completed, else nothing."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(name_or_dir: str | os.PathLike[str], *, download: bool = False) -> Tokenizer:
    """GPT-2's tokenizer ("gpt2"), or the tokenizer in a directory.

    "gpt2" is read from tiktoken's cache ($TIKTOKEN_CACHE_DIR); the network is used only with
    `download`. In a directory, tokenizer.json is preferred to vocab.json and merges.txt, as in
    transformers. The tokens that tokenizer_config.json, added_tokens.json or
    special_tokens_map.json add are special tokens. Raises MissingError if there is no tokenizer, or
    if it is not a byte-level BPE for which tiktoken computes the same ids.
    """
    if name_or_dir == "gpt2":
        merged = _merged(merge_lines(_gpt2_merges(download).decode()))
        return Tokenizer.from_merged("gpt2", map(_hidden, merged))
    directory = Path(name_or_dir)
    if (found := read_vocabulary(directory)) is not None:
        return _build(directory.resolve().name, *found)
    if not directory.is_dir():
        raise MissingError(f"no tokenizer {str(directory)!r}: "
                           "name a directory that holds one, or 'gpt2'")
    raise MissingError(f"no tokenizer in {directory}: "
                       "it needs tokenizer.json, or vocab.json and merges.txt")


def _gpt2_merges(download: bool) -> bytes:
    """The published merges from tiktoken's cache, with their hash checked.

    download: if the cache does not have them, download them into it.
    """
    import tempfile

    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = Path(tempfile.gettempdir(), "data-gym-cache") if not cache else Path(cache)
    path = folder / hashlib.sha1(_GPT2_MERGES.encode()).hexdigest()
    data = read_bytes(path, LARGEST) if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() == _GPT2_MERGES_SHA256:
        return data
    if not download:
        raise MissingError(f"GPT-2's vocabulary is {'damaged' if data else 'not'} in tiktoken's "
                           f"cache ({folder}); set TIKTOKEN_CACHE_DIR to a folder that has it, "
                           "name a directory that holds vocab.json and merges.txt, or allow a "
                           "download")
    data = _fetch(_GPT2_MERGES)
    if hashlib.sha256(data).hexdigest() != _GPT2_MERGES_SHA256:
        raise MissingError(f"{_GPT2_MERGES} is not the file that was expected (its sha256 differs)")
    write_files(folder, {path.name: data})
    return data


def _fetch(address: str) -> bytes:
    # tiktoken's own download has no time limit, and hangs on a network that drops packets
    import requests  # type: ignore[import-untyped]  # tiktoken depends on it

    try:
        response = requests.get(address, timeout=10)
        response.raise_for_status()
    except requests.RequestException as error:
        why = type(error).__name__
        raise MissingError(f"{address} cannot be downloaded ({why}); "
                           "is this machine offline?") from None
    return response.content


def _build(name: str, where: str, vocab: Mapping[str, int], merges: Sequence[str],
           added: Mapping[str, int] = MappingProxyType({})) -> Tokenizer:
    """The tokenizer of a vocabulary. Tokens that no merge makes are special: `added`, <…> and […].

    tiktoken has no merges: it joins the two neighbours whose joined bytes have the lowest id. This
    is the same as applying the merges in their order if two conditions hold: the ids of merged
    tokens rise, and joining the bytes of each merged token by lower ids only ends at the pair that
    its merge joins. By induction over the ids, both methods then agree on every text.
    """
    ids = {**vocab, **added}
    if len(set(ids.values())) != len(ids):
        raise MissingError(f"{where}: the ids of the vocabulary are not distinct")
    alphabet = [_visible(byte) for byte in BYTES_IN_ORDER]
    if absent := set(alphabet) - ids.keys():
        raise MissingError(f"{where}: the vocabulary lacks {len(absent)} of the 256 bytes")
    merged = _merged(merges)
    if foreign := {char for char in set().union(*merged) if char not in alphabet}:
        raise MissingError(f"{where}: the merges hold {min(foreign)!r}, which stands for no byte")
    before = -1
    for line, (merge, token) in enumerate(zip(merges, merged), 1):
        if token not in ids or " " not in merge:
            raise MissingError(f"{where}: merge {line} ({merge!r}) makes no token of the "
                               "vocabulary")
        if ids[token] <= before:
            raise MissingError(f"{where}: merge {line} ({merge!r}) makes id {ids[token]} after id "
                               f"{before}; tiktoken needs ids in the order of the merges")
        before = ids[token]
    ranks = {_hidden(token): ids[token] for token in alphabet + merged}
    # GPT-2's own merges need no check, which for 50,000 of them takes half a second
    if hashlib.sha256(_merges_txt(merges)).hexdigest() != _GPT2_MERGES_SHA256:
        for line, (merge, token) in enumerate(zip(merges, merged), 1):
            if merge != (ends := _merge_of(_hidden(token), ranks)):
                raise MissingError(f"{where}: merge {line} ({merge!r}) is never made, the merges "
                                   f"before it end at {ends!r}; "
                                   "tiktoken would encode some texts differently")
    special = {token: ids[token] for token in (ids.keys() - {*alphabet, *merged}) | added.keys()}
    if stray := [token for token in special.keys() - added.keys()
                 if not re.fullmatch(r"<.*>|\[.*\]", token)]:
        raise MissingError(f"{where}: no merge makes {min(stray)!r} and {len(stray) - 1} other "
                           "tokens of the vocabulary; are the merges cut short?")
    return Tokenizer(_encoding(name, ranks, special))


def _encoding(name: str, ranks: dict[bytes, int], special: dict[str, int]) -> tiktoken.Encoding:
    import tiktoken

    return tiktoken.Encoding(name, pat_str=GPT2_SPLIT, mergeable_ranks=ranks,
                             special_tokens=special)


def _merge_of(token: bytes, ranks: Mapping[bytes, int]) -> str:
    """The line of merges.txt that makes `token`: its bytes after all merges of lower rank.

    The part that begins at i ends at after[i], which is −1 once i is inside a part, and the part
    before it begins at before[i]. A heap has the pairs of neighbours that can be merged, so a
    token of n bytes takes n log n steps: a run of equal characters makes long tokens.
    """
    own, n = ranks[token], len(token)
    after, before = list(range(1, n + 1)), list(range(-1, n - 1))
    heap: list[tuple[int, int, int]] = []               # rank, begin and end of two parts

    def offer(begin: int, end: int) -> None:
        if (rank := ranks.get(token[begin:end], own)) < own:
            heappush(heap, (rank, begin, end))

    for i in range(n - 1):
        offer(i, i + 2)
    while heap:
        _, i, end = heappop(heap)
        j = after[i]
        if not 0 < j < n or after[j] != end:            # one of the two was merged with another
            continue
        after[i], after[j] = end, -1
        if end < n:
            before[end] = i
            offer(i, after[end])
        if i > 0:
            offer(before[i], end)
    parts, i = list[bytes](), 0
    while i < n:
        parts.append(token[i:after[i]])
        i = after[i]
    return " ".join(map(_visible, parts))


def _merges_txt(merges: Iterable[str]) -> bytes:
    return "\n".join(["#version: 0.2", *merges, ""]).encode()


def _merged(merges: Iterable[str]) -> list[str]:
    return [merge.replace(" ", "") for merge in merges]


def _visible(token: bytes) -> str:
    """A token as vocab.json writes it, with one visible character for each byte."""
    return token.decode("latin-1").translate(_CHAR_OF_BYTE)


def _hidden(token: str) -> bytes:
    """The bytes of a token of vocab.json; the inverse of `_visible`."""
    return token.translate(_BYTE_OF_CHAR).encode("latin-1")
