"""Laws of text to ids and back."""
from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
import regex
from data import test_data as data_file
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data.tokenizer import BYTES_IN_ORDER, GPT2_SPLIT, Tokenizer, _merge_of, _visible, load_tokenizer
from gpt2.data.train_bpe import _merge, count_words, train_bpe
from gpt2.errors import MissingError, UsageError
from gpt2.io.atomic import write_files

PUBLISHED_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CORPUS = ("The quick brown fox doesn't jump over 12 lazy dogs; they're sleeping.\n\n  \tŒuvre naïve, 東京と京都, 🤗🤗🤗 😀!\n"
          "the then there these other weather\n") * 3


def known_to_all(char: str) -> bool:
    """Regex engines know different editions of Unicode; all of them know 3.2 and the first emoji."""
    return unicodedata.ucd_3_2_0.category(char) != "Cn" or "\U0001F300" <= char <= "\U0001F5FF"


pieces = st.sampled_from([" ", "  ", "\n", " \n ", "'s", "'ll", "'S", "the", " other", "12", "🤗", "東京", "<|endoftext|>"])
characters = st.characters(exclude_categories=["Cs", "Cn", "Co"]).filter(known_to_all)
texts = st.lists(pieces | st.text(characters, max_size=5), max_size=12).map("".join)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train_bpe(CORPUS, 340)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(data_file("tiktoken_cache")))
    return data_file("tiktoken_cache")


@pytest.fixture
def gpt2(cache: Path) -> Tokenizer:
    return load_tokenizer("gpt2")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# ── GPT-2's own ──

def test_gpt2_is_tiktokens_gpt2(gpt2: Tokenizer) -> None:
    """load_tokenizer("gpt2") has the ranks, special tokens and name of tiktoken's own gpt2 encoding."""
    import tiktoken

    reference = tiktoken.get_encoding("gpt2")
    assert gpt2.encoding._mergeable_ranks == reference._mergeable_ranks
    assert gpt2.encoding._special_tokens == reference._special_tokens
    assert (gpt2.name, gpt2.n_vocab, gpt2.eot) == ("gpt2", 50257, 50256)


@pytest.mark.parametrize("text, ids", [
    ("hello world", [31373, 995]),
    ("Hello, I am", [15496, 11, 314, 716]),
    ("Hello!! I'm Andrej Karpathy. It's 2022. w00t :D 🤗",
     [15496, 3228, 314, 1101, 10948, 73, 509, 5117, 10036, 13, 632, 338, 33160, 13, 266, 405, 83, 1058, 35, 12520, 97, 245]),
    ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
    ("", []),
])
def test_published_encodings(gpt2: Tokenizer, text: str, ids: list[int]) -> None:
    """GPT-2's ids are the published ones; <|endoftext|> in ordinary text is 7 ordinary tokens."""
    assert gpt2.encode(text, allow_special=False) == ids
    assert gpt2.decode(ids) == text


def test_special_tokens_only_when_asked(gpt2: Tokenizer) -> None:
    """allow_special turns the characters of <|endoftext|> into the one special id."""
    assert gpt2.encode("a<|endoftext|>", allow_special=True) == [64, 50256]
    assert gpt2.encode("a<|endoftext|>", allow_special=False) == [64, 27, 91, 437, 1659, 5239, 91, 29]
    assert gpt2.decode([64, 50256]) == "a<|endoftext|>"


def test_tiny_shakespeare_has_338025_tokens(gpt2: Tokenizer) -> None:
    """The corpus has its published number of tokens, and decodes to itself."""
    text = data_file("tinyshakespeare.txt").read_text(encoding="utf-8")
    ids = gpt2.encode(text)
    assert len(ids) == 338_025
    assert gpt2.decode(ids) == text


def test_files_are_the_published_bytes(gpt2: Tokenizer) -> None:
    """What we write for GPT-2 is OpenAI's encoder.json and vocab.bpe, byte for byte: merges are recovered from ids alone."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in gpt2.files().items()}
    assert hashes == {"vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
                      "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"}
    assert gpt2.sha256 == hashes["vocab.json"]


# ── laws of any vocabulary ──

@given(texts | st.text())
def test_the_split_is_the_published_one(text: str) -> None:
    """Our possessive pattern cuts every text where GPT-2's published pattern does."""
    assert regex.findall(GPT2_SPLIT, text) == regex.findall(PUBLISHED_SPLIT, text)


@given(texts | st.text())
def test_round_trip(small: Tokenizer, text: str) -> None:
    """decode(encode(s)) = s, with and without special tokens."""
    assert small.decode(small.encode(text, allow_special=False)) == text
    assert small.decode(small.encode(text, allow_special=True)) == text


@given(texts)
def test_special_tokens_have_to_be_decided_on(small: Tokenizer, text: str) -> None:
    """As in tiktoken a text that holds a special token is refused until allow_special says what it is; others need nothing said."""
    try:
        wanted = small.encoding.encode(text)
    except ValueError:
        at = text.find("<|endoftext|>")
        with pytest.raises(UsageError, match=rf"holds <\|endoftext\|> at character {at}; pass allow_special=True .* allow_special=False"):
            small.encode(text)
        assert small.encode(text, allow_special=True) != small.encode(text, allow_special=False)
    else:
        assert small.encode(text) == small.encode(text, allow_special=True) == small.encode(text, allow_special=False) == wanted


@pytest.mark.parametrize("wrong", ["all", {"<|endoftext|>"}, set(), 2, "none"], ids=repr)
def test_allow_special_is_a_bool(small: Tokenizer, wrong: object) -> None:
    """tiktoken's sets and "all" are no bools: a set of one token would allow all of them."""
    with pytest.raises(UsageError, match="allow_special must be True or False, not"):
        small.encode("a<|endoftext|>", allow_special=wrong)


@pytest.fixture(scope="module")
def transformers_small(small: Tokenizer, tmp_path_factory: pytest.TempPathFactory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("small")
    small.save(folder)
    return transformers.GPT2TokenizerFast.from_pretrained(folder)


@given(texts)
def test_ids_are_those_of_transformers(small: Tokenizer, transformers_small, text: str) -> None:
    """From the files we write, transformers' GPT-2 tokenizer gives the same ids and the same text."""
    assert small.encode(text, allow_special=True) == transformers_small(text)["input_ids"]
    ids = small.encode(text, allow_special=False)
    assert small.decode(ids) == transformers_small.decode(ids, clean_up_tokenization_spaces=False)


@given(st.lists(st.integers(0, 339), max_size=40))
def test_streaming_is_decoding(small: Tokenizer, ids: list[int]) -> None:
    """For any ids, whole characters or not, what push and flush return is decode of all of them."""
    stream = small.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == small.decode(ids)


@given(st.text())
def test_streaming_gives_whole_characters(small: Tokenizer, text: str) -> None:
    """Pushing the bytes of a text one by one gives each character with its last byte, and nothing is left to flush."""
    stream = small.stream()
    for char in text:
        ids = [i for byte in char.encode() for i in small.encoding._encode_bytes(bytes([byte]))]
        assert [stream.push(i) for i in ids] == [""] * (len(ids) - 1) + [char]
    assert stream.flush() == ""


def test_streaming_does_not_wait_for_what_cannot_come(small: Tokenizer) -> None:
    """A byte that cannot begin or continue a character is U+FFFD at once; an unfinished character waits for flush."""
    lead, space = (small.encoding._encode_bytes(byte)[0] for byte in (b"\xe2", b" "))
    stream = small.stream()
    assert [stream.push(i) for i in (lead, lead, space, lead)] == ["", "\ufffd", "\ufffd ", ""]
    assert [stream.flush(), stream.flush()] == ["\ufffd", ""]


@pytest.mark.parametrize("bad", [340, -1, 2**40])
def test_unknown_ids_are_named(small: Tokenizer, bad: int) -> None:
    """An id outside the vocabulary is a UsageError with the id and its place, in decode and in a stream."""
    with pytest.raises(UsageError, match=f"id {bad} at position 2 "):
        small.decode([65, 66, bad])
    with pytest.raises(UsageError, match=f"id {bad} "):
        small.stream().push(bad)


def test_lone_surrogates_are_refused(small: Tokenizer) -> None:
    """Text that was read from bytes that are not UTF-8 is refused, not replaced."""
    with pytest.raises(UsageError, match=r"lone surrogate U\+DC80 at character 2"):
        small.encode(b"ab\x80".decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("text", [" " * 400_000 + "a", "a" * 200_000, " \n" * 200_000, "'" * 200_000])
def test_long_runs_are_encoded(small: Tokenizer, text: str) -> None:
    """Runs of hundreds of thousands of equal characters do not exhaust the regex engine."""
    assert small.decode(small.encode(text)) == text


def test_the_hash_is_of_the_vocabulary(small: Tokenizer) -> None:
    """Equal vocabularies have equal hashes whatever their name, others do not."""
    assert train_bpe(CORPUS, 340, name="other").sha256 == small.sha256
    assert train_bpe(CORPUS, 339).sha256 != small.sha256


# ── files ──

def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_save_and_load(small: Tokenizer, tmp_path: Path) -> None:
    """load_tokenizer of what save wrote is the same tokenizer, under the directory's name; nothing else is left there."""
    small.save(tmp_path / "deep" / "mine")
    assert files_of(tmp_path / "deep" / "mine") == small.files()
    again = load_tokenizer(tmp_path / "deep" / "mine")
    assert again.encoding._mergeable_ranks == small.encoding._mergeable_ranks
    assert (again.name, again.eot, again.n_vocab, again.sha256) == ("mine", 339, 340, small.sha256)


def test_tokenizer_json_of_transformers_loads(small: Tokenizer, transformers_small, tmp_path: Path) -> None:
    """The tokenizer.json that transformers writes gives the same tokenizer, and comes before the other files."""
    transformers_small.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    assert load_tokenizer(tmp_path).sha256 == small.sha256
    write_files(tmp_path, train_bpe(CORPUS, 300).files())
    assert load_tokenizer(tmp_path).sha256 == small.sha256
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        small.save(tmp_path)


def test_a_tokenizer_trained_elsewhere_loads(tmp_path: Path) -> None:
    """Ids that start with special tokens are kept: tiktoken needs only that merged ids rise."""
    tokenizers = pytest.importorskip("tokenizers")
    level = tokenizers.pre_tokenizers.ByteLevel
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = level(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=330, initial_alphabet=level.alphabet(), show_progress=False,
                                             special_tokens=["<|endoftext|>", "strange"])
    theirs.train_from_iterator([CORPUS], trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert (ours.eot, ours.n_vocab) == (0, 330)
    assert ours.encode(CORPUS) == theirs.encode(CORPUS).ids
    assert ours.decode([1]) == "strange"


@pytest.mark.parametrize("change, reason", [
    (lambda t: t.update(normalizer={"type": "NFC"}), "normalizer"),
    (lambda t: t["model"].update(type="WordPiece"), "model is not BPE"),
    (lambda t: t["pre_tokenizer"].update(type="Whitespace"), "pre_tokenizer is not ByteLevel"),
    (lambda t: t.update(pre_tokenizer=None), "pre_tokenizer is not ByteLevel"),
    (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space"),
    (lambda t: t["pre_tokenizer"].update(use_regex=False), "use_regex"),
    (lambda t: t.update(post_processor={"type": "TemplateProcessing", "special_tokens": {"<s>": {}}}), "post_processor"),
    (lambda t: t["model"].update(dropout=0.1), "dropout"),
    (lambda t: t["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    (lambda t: t["model"].update(merges=[["a"]]), "merge 1 "),
    (lambda t: t["model"].update(vocab=[]), r"tokenizer\.json: model\.vocab must be an object"),
    (lambda t: t["model"]["vocab"].update(x=2**32), r"model\.vocab\.x must be an integer from 0 to"),
    (lambda t: t["model"].update(merges=[3]), r"model\.merges\[0\] must be a text or a list, not 3"),
    (lambda t: t["added_tokens"][0].pop("id"), r"added token '<\|endoftext\|>' has no id"),
])
def test_other_tokenizers_are_refused_by_name(transformers_small, tmp_path: Path, change, reason: str) -> None:
    """A tokenizer.json that is not a byte-level BPE like GPT-2's is a MissingError that names what differs."""
    transformers_small.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(MissingError, match=reason):
        load_tokenizer(tmp_path)


def without(files: dict[str, bytes], token: str) -> dict[str, bytes]:
    vocab = json.loads(files["vocab.json"])
    del vocab[token]
    return {**files, "vocab.json": json.dumps(vocab).encode()}


def swapped(files: dict[str, bytes]) -> dict[str, bytes]:
    vocab = json.loads(files["vocab.json"])
    names = list(vocab)
    vocab[names[256]], vocab[names[257]] = vocab[names[257]], vocab[names[256]]
    return {**files, "vocab.json": json.dumps(vocab).encode()}


def unmade(files: dict[str, bytes]) -> dict[str, bytes]:
    """With merges 'b c', 'a b', 'ab c': the last is never made, since 'b c' comes first; tiktoken would make it."""
    vocab = {char: i for i, char in enumerate(list(json.loads(files["vocab.json"]))[:256])}
    vocab.update({"bc": 256, "ab": 257, "abc": 258})
    return {"vocab.json": json.dumps(vocab).encode(), "merges.txt": b"b c\na b\nab c\n"}


@pytest.mark.parametrize("change, reason", [
    (lambda f: {"vocab.json": f["vocab.json"]}, "needs tokenizer.json, or vocab.json and merges.txt"),
    (lambda f: {**f, "vocab.json": f["vocab.json"][:1000]}, r"vocab\.json is not JSON"),
    (lambda f: {**f, "vocab.json": b"[1, 2]"}, r"vocab\.json must be an object"),
    (lambda f: {**f, "vocab.json": f["vocab.json"].replace(b": 7,", b": 10000000000,")}, r"vocab\.json: .* must be an integer from 0 to"),
    (lambda f: {**f, "vocab.json": f["vocab.json"].replace(b": 7,", b": 7.0,")}, r"vocab\.json: .* must be an integer"),
    (lambda f: {**f, "vocab.json": f["vocab.json"].replace(b'{', b'{"!": 9, ', 1)}, "has the key '!' twice"),
    (lambda f: {**f, "vocab.json": f["vocab.json"].replace(b": 7,", b": 8,")}, "distinct"),
    (lambda f: {**f, "merges.txt": b"\xff"}, r"merges\.txt is not UTF-8"),
    (lambda f: {**f, "merges.txt": f["merges.txt"][:200]}, "merge"),
    (lambda f: {**f, "merges.txt": f["merges.txt"].rsplit(b"\n", 3)[0] + b"\n"}, "cut short"),
    (lambda f: {**f, "merges.txt": f["merges.txt"] + b"t\n"}, "makes no token"),
    (lambda f: {**f, "merges.txt": f["merges.txt"] + "東 京\n".encode()}, "stands for no byte"),
    (lambda f: without(f, "he"), "makes no token"),
    (lambda f: without(f, "!"), "lacks 1 of the 256 bytes"),
    (swapped, "ids in the order of the merges"),
    (unmade, r"merge 3 \('ab c'\) is never made, the merges before it end at 'a bc'"),
])
def test_damaged_vocabularies_are_refused(small: Tokenizer, tmp_path: Path, change, reason: str) -> None:
    """Files that are cut short, foreign or inconsistent, or that tiktoken would serve differently, are refused."""
    for name, content in change(small.files()).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MissingError, match=reason) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def merged_by_definition(token: bytes, ranks: dict[bytes, int]) -> str:
    """The pair of neighbours of the lowest rank is joined, the leftmost of equals, as long as its rank is below the token's own."""
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 1:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], ranks[token]), i) for i in range(len(parts) - 1))
        if rank >= ranks[token]:
            break
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return " ".join(map(_visible, parts))


@given(st.text("ab c", min_size=40, max_size=80), st.randoms(use_true_random=False))
def test_merges_are_found_as_they_are_defined(text: str, random) -> None:
    """With the ranks that training gives, and with any others."""
    merged = _merge(count_words([text]), 30)
    for order in (merged, random.sample(merged, len(merged))):
        ranks = {token: rank for rank, token in enumerate([*BYTES_IN_ORDER, *order])}
        for token in order:
            assert _merge_of(token, ranks) == merged_by_definition(token, ranks)


def test_a_long_run_of_one_character_is_no_trouble(tmp_path: Path) -> None:
    """Its tokens are thousands of bytes long; saving and loading take a time in proportion to that."""
    ours = train_bpe("a" * 16_000 + " b", 276)
    assert max(map(len, ours.encoding._mergeable_ranks)) >= 8_000
    started = time.perf_counter()
    ours.save(tmp_path)
    assert load_tokenizer(tmp_path).sha256 == ours.sha256 and time.perf_counter() - started < 5.0


def test_windows_line_ends_load(small: Tokenizer, tmp_path: Path) -> None:
    """merges.txt means the same with CRLF."""
    files = small.files()
    write_files(tmp_path, {**files, "merges.txt": files["merges.txt"].replace(b"\n", b"\r\n")})
    assert load_tokenizer(tmp_path).encoding._mergeable_ranks == small.encoding._mergeable_ranks


def test_an_unknown_name_is_missing() -> None:
    """A name that is neither "gpt2" nor a directory is a MissingError that says what is possible."""
    with pytest.raises(MissingError, match=r"gpt3.*directory.*'gpt2'"):
        load_tokenizer("gpt3")


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_offline_and_uncached_is_one_line(tmp_path: Path, monkeypatch, no_network, content: bytes | None) -> None:
    """Without a sound cache "gpt2" is a MissingError with advice; the network is not touched and the cache not changed."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    if content is not None:
        (tmp_path / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee").write_bytes(content)
    before = files_of(tmp_path)
    with pytest.raises(MissingError, match="TIKTOKEN_CACHE_DIR"):
        load_tokenizer("gpt2")
    assert files_of(tmp_path) == before


def test_download_fills_tiktokens_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With download the file is fetched once, with a time limit, checked, and kept where tiktoken looks for it."""
    requests = pytest.importorskip("requests")
    calls: list[dict] = []

    class Answer:
        content = (cache / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee").read_bytes()

        def raise_for_status(self) -> None: ...

    def get(address: str, **options: object) -> Answer:
        calls.append(options)
        return Answer()

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert load_tokenizer("gpt2", download=True).n_vocab == load_tokenizer("gpt2").n_vocab == 50257
    assert [call["timeout"] for call in calls] == [10]
    assert files_of(tmp_path) == {"6d1cbeee0f20b3d9449abfede4726ed8212e3aee": Answer.content}
    Answer.content = b"something else"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "other"))
    with pytest.raises(MissingError, match="sha256"):
        load_tokenizer("gpt2", download=True)


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that fails is a MissingError, and no cache is begun."""
    requests = pytest.importorskip("requests")

    def get(address: str, **options: object) -> None:
        raise requests.ConnectionError("many\nlines")

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(MissingError, match=r"\(ConnectionError\); is this machine offline\?$"):
        load_tokenizer("gpt2", download=True)
    assert files_of(tmp_path) == {}


def test_importing_the_tokenizer_is_light() -> None:
    """tiktoken and requests are imported when they are needed, not before."""
    code = "import sys, gpt2.data.tokenizer; print(sorted({'tiktoken', 'requests', 'regex', 'numpy.random'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         cwd=Path(__file__).parents[3]).stdout
    assert "tiktoken" not in out and "requests" not in out and "regex" not in out


# ── writing ──

@pytest.mark.parametrize("at", range(1, 10))
def test_an_interrupted_write_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Whatever step fails, the directory holds the old files, or lacks the last one, or holds the new; no leftovers."""
    old, new = ({"a": word + b"a", "b": word + b"b", "c": word + b"c"} for word in (b"old ", b"new "))
    write_files(tmp_path, old)
    steps = iter(range(1, 100))

    def failing(real):
        def step(*args, **kwargs):
            if next(steps) == at:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)
        return step

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", failing(lambda fd: None))
        patch.setattr(Path, "replace", failing(Path.replace))
        if at <= 7:
            with pytest.raises(UsageError, match="No space left"):
                write_files(tmp_path, new)
        else:
            write_files(tmp_path, new)
    held = files_of(tmp_path)
    assert held == (old if at <= 5 else new) if "c" in held else 6 <= at <= 7
    assert held.keys() <= old.keys()


def test_an_unwritable_place_is_named(tmp_path: Path, small: Tokenizer) -> None:
    """Saving below a file is a UsageError that names the place."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"cannot write .*file"):
        small.save(tmp_path / "file" / "deeper")
