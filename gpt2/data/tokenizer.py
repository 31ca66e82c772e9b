"""Text to token ids and back: byte-level BPE served by tiktoken, kept as vocab.json + merges.txt."""
from __future__ import annotations

import codecs
import hashlib
import json
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import MissingError, UsageError
from ..io.atomic import write_files

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
BESIDE = ("tokenizer.json", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")   # read besides vocab.json, merges.txt

# GPT-2's rule for cutting text into words (Radford et al. 2019): contractions; letters, digits or other marks
# with the space before them; white space, whose last character is left to the word that follows. It gives the
# same pieces as the published
#     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# but is possessive where it can be, which keeps the regex engine's stack small.
GPT2_SPLIT = r"'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++(?!\S)|\s+(?!\S)|\s"

# GPT-2 numbers the 256 bytes and writes each as one visible character: printable Latin-1 as itself, then the
# rest as the characters from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES_IN_ORDER = [bytes([byte]) for byte in _PRINTABLE + _OTHERS]
_CHAR_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE}
_CHAR_OF_BYTE.update((byte, chr(256 + i)) for i, byte in enumerate(_OTHERS))
_BYTE_OF_CHAR = {ord(char): byte for byte, char in _CHAR_OF_BYTE.items()}

# Where tiktoken fetches GPT-2's merges from; its cache names a file by the sha1 of the address.
_GPT2_MERGES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
_GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


class Tokenizer:
    """A tiktoken Encoding with the errors, streaming and files that a language model needs around it."""

    def __init__(self, encoding: tiktoken.Encoding):
        self.encoding = encoding
        self.name: str = encoding.name
        self.n_vocab: int = encoding.n_vocab
        self.eot: int | None = encoding._special_tokens.get(END_OF_TEXT)
        # added tokens such as <|pad|> may lie beyond a model's table: plain text never holds them
        self.n_plain: int = max(-1 if self.eot is None else self.eot, *encoding._mergeable_ranks.values()) + 1

    @classmethod
    def from_merged(cls, name: str, merged: Iterable[bytes]) -> Tokenizer:
        """The 256 bytes in GPT-2's order, the merged tokens in their merges' order, <|endoftext|> last."""
        ranks = {token: rank for rank, token in enumerate([*BYTES_IN_ORDER, *merged])}
        return cls(_encoding(name, ranks, {END_OF_TEXT: len(ranks)}))

    def encode(self, text: str, *, allow_special: bool | None = None) -> list[int]:
        """Token ids of `text`. With allow_special=True <|endoftext|> in it is that token, with False it is plain text.

        A text without special tokens needs neither; for one that holds some it has to be said, as in tiktoken:
        OpenAI's encoder takes them for text, transformers' for tokens. Raises UsageError where it is not said,
        and where the text holds half a surrogate pair, which bytes that are not UTF-8 leave behind, or a million
        white-space characters in a row, at which tiktoken gives up.
        """
        if allow_special not in (None, True, False):
            raise UsageError(f"allow_special must be True or False, not {allow_special!r}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not valid Unicode: lone surrogate U+{ord(text[error.start]):04X}"
                             f" at character {error.start}; was its source UTF-8?") from None
        if allow_special is None and (held := [token for token in self.encoding.special_tokens_set if token in text]):
            first = min(held, key=text.find)
            raise UsageError(f"the text holds {first} at character {text.find(first)}; say allow_special=True for the special token "
                             "(transformers' reading), or allow_special=False for plain text (OpenAI's encoder's)")
        try:
            if allow_special:
                return self.encoding.encode(text, allowed_special="all")
            return self.encoding.encode_ordinary(text)
        except BaseException as error:              # a Rust panic is no Exception and has no importable name
            if type(error).__name__ != "PanicException":
                raise
            raise UsageError("tiktoken cannot cut this text into words; if it holds a run of a million"
                             " white-space characters, break that up") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises UsageError for an unknown id."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, which need not be whole characters. Raises UsageError for an unknown id."""
        plain = [operator.index(token) for token in ids]
        try:
            return self.encoding.decode_bytes(plain)
        except (KeyError, OverflowError):
            known = {*self.encoding._mergeable_ranks.values(), *self.encoding._special_tokens.values()}
            place, token = next((i, token) for i, token in enumerate(plain) if token not in known)
            raise UsageError(f"token id {token} at place {place} is not in the vocabulary of {self.name!r}"
                             f" (ids 0 to {self.n_vocab - 1})") from None

    def label(self, token: int) -> str:
        """What a token looks like in a table: · for a space, ⏎ for a line's end, and <0xE2> for bytes that are no character."""
        data = self.decode_bytes([token])
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)
        return "".join({" ": "·", "\n": "⏎", "\t": "⇥"}.get(c, c if c.isprintable() else f"<U+{ord(c):04X}>") for c in text)

    def stream(self) -> StreamDecoder:
        """A decoder that takes one id at a time."""
        return StreamDecoder(self)

    @cached_property
    def sha256(self) -> str:
        """sha256 of the vocab.json that `save` writes: the same for the same vocabulary under any name."""
        return hashlib.sha256(self._vocab_json()).hexdigest()

    def _vocab_json(self) -> bytes:
        ids = {_visible(token): i for token, i in self.encoding._mergeable_ranks.items()}
        ids.update(self.encoding._special_tokens)
        return json.dumps(dict(sorted(ids.items(), key=lambda item: item[1]))).encode()

    def files(self) -> dict[str, bytes]:
        """vocab.json and merges.txt as GPT-2's were published, for transformers and `load_tokenizer`.

        Special tokens besides <|endoftext|> are in added_tokens.json too: transformers would take them for text.
        """
        ranks = self.encoding._mergeable_ranks
        merged = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
        merges = [_merge_of(token, ranks) for token in merged]
        special = {token: i for token, i in self.encoding._special_tokens.items() if token != END_OF_TEXT}
        added = {"added_tokens.json": json.dumps(special).encode()} if special else {}
        return {**added, "vocab.json": self._vocab_json(), "merges.txt": _merges_txt(merges)}

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `files` into `directory`, all or none. Raises UsageError where they cannot be written."""
        files = self.files()
        if held := [name for name in BESIDE if name not in files and (Path(directory) / name).exists()]:
            raise UsageError(f"{directory} holds a {held[0]}, which would count {'instead' if held[0] == BESIDE[0] else 'too'}; "
                             "remove it first")
        write_files(directory, files)


class StreamDecoder:
    """Text of a growing sequence: `push` gives whole characters only, though tokens may split one.

    Bytes that can no longer become a character turn into U+FFFD at once. What `push` and `flush` return, put
    together, is `Tokenizer.decode` of the whole.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, otherwise nothing."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(name_or_dir: str | os.PathLike[str], *, download: bool = False) -> Tokenizer:
    """GPT-2's tokenizer ("gpt2"), or the one in a directory: tokenizer.json, or vocab.json + merges.txt.

    "gpt2" is read from tiktoken's cache ($TIKTOKEN_CACHE_DIR); the network is touched only with `download`.
    A directory's tokenizer.json comes before its other files, as in transformers, and the tokens that
    tokenizer_config.json, added_tokens.json or special_tokens_map.json add are special ones. Raises MissingError
    where there is nothing to read, or where it is not a byte-level BPE for which tiktoken gives the same ids.
    """
    if name_or_dir == "gpt2":
        return Tokenizer.from_merged("gpt2", map(_hidden, _merged(_merge_lines(_gpt2_merges(download)))))
    directory = Path(name_or_dir)
    name, path = directory.resolve().name, directory / "tokenizer.json"
    paths = [directory / "vocab.json", directory / "merges.txt"]
    try:
        if path.is_file():
            vocabulary, lines, own = _tokenizer_json(path)
            return _build(name, str(path), vocabulary, lines, _added_tokens(directory, vocabulary, own))
        if all(path.is_file() for path in paths):
            vocab, merges = (path.read_bytes() for path in paths)
            vocabulary = json.loads(vocab)
            return _build(name, str(directory), vocabulary, _merge_lines(merges), _added_tokens(directory, vocabulary, []))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise MissingError(f"the vocabulary in {directory} cannot be read ({why})") from None
    if not directory.is_dir():
        raise MissingError(f"no tokenizer {str(directory)!r}: name a directory that holds one, or 'gpt2'")
    raise MissingError(f"no tokenizer in {directory}: it needs tokenizer.json, or vocab.json and merges.txt")


def _gpt2_merges(download: bool) -> bytes:
    """The published merges out of tiktoken's cache, put there first if `download`; the hash is checked."""
    import tempfile

    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = Path(tempfile.gettempdir(), "data-gym-cache") if not cache else Path(cache)
    path = folder / hashlib.sha1(_GPT2_MERGES.encode()).hexdigest()
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() == _GPT2_MERGES_SHA256:
        return data
    if not download:
        raise MissingError(f"GPT-2's vocabulary is {'damaged' if data else 'not'} in tiktoken's cache"
                           f" ({folder}); set TIKTOKEN_CACHE_DIR to a folder that has it, name a directory"
                           " that holds vocab.json and merges.txt, or allow a download")
    data = _fetch(_GPT2_MERGES)
    if hashlib.sha256(data).hexdigest() != _GPT2_MERGES_SHA256:
        raise MissingError(f"{_GPT2_MERGES} is not the file that was expected (its sha256 differs)")
    write_files(folder, {path.name: data})
    return data


def _fetch(address: str) -> bytes:
    # not tiktoken's own fetch: that has no time limit and would hang on a network that drops packets
    import requests  # type: ignore[import-untyped]  # tiktoken depends on it

    try:
        response = requests.get(address, timeout=10)
        response.raise_for_status()
    except requests.RequestException as error:
        why = type(error).__name__
        raise MissingError(f"{address} cannot be had ({why}); is this machine offline?") from None
    return response.content


def _added_tokens(directory: Path, vocab: Mapping[str, int], own: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The tokens that the files beside a vocabulary add to it, with the ids that transformers gives them.

    own: those of tokenizer.json. Further ones are in tokenizer_config.json's added_tokens_decoder, or else in
    added_tokens.json, and any that tokenizer_config.json or special_tokens_map.json names, as pad_token say.
    transformers keeps the id of a token that the vocabulary has and counts on from the vocabulary's size for the
    others, whatever id the file gives them. MissingError where that is another id, and for a token that takes the
    white space around it or whole words alone, which tiktoken cannot do.
    """
    config, named = _json_of(directory / "tokenizer_config.json"), _json_of(directory / "special_tokens_map.json")
    if wrong := [key for key in ("add_bos_token", "add_prefix_space") if config.get(key)]:
        raise MissingError(f"{directory / 'tokenizer_config.json'} sets {wrong[0]}, which GPT-2's tokenizer does not have; remove it")
    tokens = [dict(token) for token in own]
    if "added_tokens_decoder" in config:
        tokens += [{**token, "id": int(i)} for i, token in config["added_tokens_decoder"].items()]
    else:
        tokens += [{"content": content, "id": i} for content, i in _json_of(directory / "added_tokens.json").items()]
    tokens.sort(key=operator.itemgetter("id"))
    for source in (named, config):
        more = [source.get(f"{kind}_token") for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            some = source.get(key) or []
            more += some.values() if isinstance(some, Mapping) else some
        tokens += [dict(token) if isinstance(token, Mapping) else {"content": token} for token in more if token]
    out: dict[str, int] = {}
    for token in tokens:
        content = token["content"]
        if wrong := [key for key in ("lstrip", "rstrip", "single_word") if token.get(key)]:
            raise MissingError(f"{directory}: the added token {content!r} sets {wrong[0]}, which is not supported; set it to false")
        if content not in out:
            out[content] = vocab.get(content, max([len(vocab), *(i + 1 for i in out.values())]))
        if token.get("id", out[content]) != out[content]:
            raise MissingError(f"{directory}: the added token {content!r} has the id {token['id']}, and transformers would make it "
                               f"{out[content]}, the next that is free; give it that one")
    names = sorted({*out, END_OF_TEXT})
    if twice := [pair for pair in pairwise(names) if pair[1].startswith(pair[0])]:
        raise MissingError(f"{directory}: the added token {twice[0][1]!r} begins with the added token {twice[0][0]!r}; "
                           "tiktoken might take either")
    return out


def _json_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _tokenizer_json(path: Path) -> tuple[dict[str, int], list[str], list[dict[str, Any]]]:
    """Vocabulary, merges and added tokens of a tokenizer.json, refused by name if it works unlike GPT-2's."""
    whole = json.loads(path.read_bytes())
    model, cutter, after = (whole.get(key) or {} for key in ("model", "pre_tokenizer", "post_processor"))
    problems: dict[str, Any] = {
        "model is not BPE": model.get("type", "BPE") != "BPE" or not {"merges", "vocab"} <= model.keys(),
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
        raise MissingError(f"{path} is no byte-level BPE like GPT-2's: {', '.join(found)}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return model["vocab"], merges, whole.get("added_tokens") or []


def _build(name: str, where: str, vocab: Mapping[str, int], merges: Sequence[str],
           added: Mapping[str, int] = MappingProxyType({})) -> Tokenizer:
    """The Encoding of a vocabulary. Tokens that no merge makes are special: those in `added`, <…> and […].

    tiktoken knows no merges: it joins the neighbours whose joint bytes have the lowest id. That is the same
    as making the merges in their order if the merged ids rise and if every merged token, taken apart and put
    together again with lower ids alone, ends at the pair that makes it: by induction over ids the two then
    agree on any text.
    """
    ids = {**vocab, **added}
    if len(set(ids.values())) != len(ids) or not all(isinstance(i, int) and i >= 0 for i in ids.values()):
        raise MissingError(f"{where}: the ids of the vocabulary are not distinct integers from 0 on")
    alphabet = [_visible(byte) for byte in BYTES_IN_ORDER]
    if absent := set(alphabet) - ids.keys():
        raise MissingError(f"{where}: the vocabulary lacks {len(absent)} of the 256 bytes")
    merged = _merged(merges)
    if foreign := {char for char in set().union(*merged) if char not in alphabet}:
        raise MissingError(f"{where}: the merges hold {min(foreign)!r}, which stands for no byte")
    before = -1
    for line, (merge, token) in enumerate(zip(merges, merged), 1):
        if token not in ids or " " not in merge:
            raise MissingError(f"{where}: merge {line} ({merge!r}) makes no token of the vocabulary")
        if ids[token] <= before:
            raise MissingError(f"{where}: merge {line} ({merge!r}) makes id {ids[token]} after id {before};"
                               " tiktoken serves only vocabularies whose ids follow the order of the merges")
        before = ids[token]
    ranks = {_hidden(token): ids[token] for token in alphabet + merged}
    # GPT-2's own merges need no check, which for 50,000 of them takes half a second
    if hashlib.sha256(_merges_txt(merges)).hexdigest() != _GPT2_MERGES_SHA256:
        for line, (merge, token) in enumerate(zip(merges, merged), 1):
            if merge != (ends := _merge_of(_hidden(token), ranks)):
                raise MissingError(f"{where}: merge {line} ({merge!r}) is never made, those before it end at"
                                   f" {ends!r}; tiktoken would encode some texts differently")
    special = {token: ids[token] for token in (ids.keys() - {*alphabet, *merged}) | added.keys()}
    if stray := [token for token in special.keys() - added.keys() if not re.fullmatch(r"<.*>|\[.*\]", token)]:
        raise MissingError(f"{where}: no merge makes {min(stray)!r} and {len(stray) - 1} other tokens of the"
                           " vocabulary; are the merges cut short?")
    return Tokenizer(_encoding(name, ranks, special))


def _encoding(name: str, ranks: dict[bytes, int], special: dict[str, int]) -> tiktoken.Encoding:
    import tiktoken

    return tiktoken.Encoding(name, pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens=special)


def _merge_of(token: bytes, ranks: Mapping[bytes, int]) -> str:
    """The line of merges.txt that makes `token`: what the merges ranked below it make of its bytes."""
    own = ranks[token]
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 1:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], own), i) for i in range(len(parts) - 1))
        if rank >= own:
            break
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return " ".join(map(_visible, parts))


def _merge_lines(merges_txt: bytes) -> list[str]:
    lines = merges_txt.decode().replace("\r\n", "\n").rstrip("\n").split("\n")
    return [line for line in lines[lines[0].startswith("#version"):] if line]


def _merges_txt(merges: Iterable[str]) -> bytes:
    return "\n".join(["#version: 0.2", *merges, ""]).encode()


def _merged(merges: Iterable[str]) -> list[str]:
    return [merge.replace(" ", "") for merge in merges]


def _visible(token: bytes) -> str:
    return token.decode("latin-1").translate(_CHAR_OF_BYTE)


def _hidden(token: str) -> bytes:
    return token.translate(_BYTE_OF_CHAR).encode("latin-1")
