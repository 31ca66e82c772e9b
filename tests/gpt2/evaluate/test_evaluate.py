"""How well a model predicts: scores against ones counted token by token and transformers', and the command `gpt2.evaluate`."""
from __future__ import annotations

import json
import math
import re
import time

import numpy as np
import pytest
import torch
from agreement import theirs
from hypothesis import given
from hypothesis import strategies as st
from in_process import end_of
from tiny_gpt2 import CONTEXT, TEXT, prepare_texts, scripted_model, tiny_model, tiny_tokenizer

from gpt2.data.shards import load_data
from gpt2.errors import UsageError
from gpt2.evaluate import __main__ as evaluate
from gpt2.evaluate import likelihood as evaluation
from gpt2.evaluate import tasks
from gpt2.evaluate.likelihood import Score, Span, continuation_spans, scores, text_counts, text_spans, total_nll, windows

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model of random weights with its tokenizer."""
    path = tmp_path_factory.mktemp("evaluate") / "model"
    tiny_model(seed=2).save_pretrained(path, tokenizer=tiny_tokenizer())
    return path


@pytest.fixture
def command(directory, capsys):
    """Run `gpt2.evaluate` on that model: exit code, stdout, stderr."""
    def run(task, data, *flags):
        argv = ["--task", task, "--data", str(data), "--model", str(directory), *map(str, flags)]
        return end_of(lambda: evaluate.main(argv), capsys, "gpt2.evaluate")
    return run


def lines(path, records):
    """A JSONL file."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def logp(model, ids):
    """log p of each of ids [n] after those before it, [n − 1, V], in float64 from the logits of one row."""
    logits = model(np.asarray(ids)[None, :-1]).numpy()[0].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def counted(model, span):
    """Σ −log p of the counted tokens of a span, one by one."""
    table = logp(model, span.ids)
    return -sum(table[place - 1, span.ids[place]] for place in range(span.first, len(span.ids)))


# ── windows ──
@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_windows_count_every_token_once(n, window, data):
    """Every token from `counted` on is counted once, has all tokens since its window's start before it, and min(window − stride + 1,
    all there are) of them at least; no window is longer than the context."""
    stride, start_at = data.draw(st.integers(1, window)), data.draw(st.integers(1, max(1, n)))
    found = []
    for start, stop, first in windows(n, window, stride, start_at):
        assert 0 <= start < first < stop <= n and stop - 1 - start <= window
        assert all(token - start >= min(window - stride + 1, token) for token in range(first, stop))
        found += range(first, stop)
    assert found == list(range(start_at, n))


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30), st.lists(st.integers(100, 199), min_size=1, max_size=30),
       st.integers(1, 24), st.data())
def test_a_continuation_is_counted_once_after_its_context(context, continuation, window, data):
    """The spans count the continuation and nothing else; where all fits a window, in one span with the whole context, and where the
    continuation alone does, in one with as much of it as there is room for."""
    stride = data.draw(st.integers(1, window))
    spans = continuation_spans(context, continuation, window, stride)
    assert [i for span in spans for i in span.ids[span.first:]] == continuation
    assert all(1 <= span.first < len(span.ids) <= window + 1 for span in spans)
    if len(continuation) <= window:
        (span,) = spans
        assert list(span.ids) == [*context, *continuation][-(window + 1):]


# ── scores ──
@given(st.integers(2, 150), st.integers(1, CONTEXT), st.data())
def test_the_total_is_the_sum_over_tokens(n, window, data):
    """total_nll is Σ −log p(token | its window), for any window, stride and batch size, as counted token by token."""
    stride, batch_size = data.draw(st.integers(1, window)), data.draw(st.integers(1, 5))
    model = tiny_model(seed=2)
    ids = np.random.default_rng(n).integers(0, 300, n)
    expected = sum(counted(model, span) for span in text_spans(ids, window, stride))
    total, count = total_nll(model, ids, window=window, stride=stride, batch_size=batch_size)
    assert count == n - 1
    # each term is float32 after sums of up to 128 terms, and the mean of a span is float32
    assert abs(total - expected) < 128 * EPS * expected


@given(st.lists(st.integers(2, CONTEXT + 1), min_size=1, max_size=9), st.integers(1, 4), st.data())
def test_spans_of_any_lengths_in_batches(lengths, batch_size, data):
    """Each span's score is its own, whatever is beside it: filled up on the right, it reads nothing of that."""
    model, rng = tiny_model(seed=2), np.random.default_rng(sum(lengths))
    spans = [Span(rng.integers(0, 300, n), data.draw(st.integers(1, n - 1))) for n in lengths]
    for span, score in zip(spans, scores(model, spans, batch_size), strict=True):
        expected = counted(model, span)
        assert score.tokens == len(span.ids) - span.first
        assert abs(score.nll - expected) < 128 * EPS * expected


def test_the_scores_are_transformers(directory):
    """Σ −log p of each window is the sum that transformers' logits and PyTorch's cross entropy give."""
    ids = np.random.default_rng(1).integers(0, 300, 200)
    model = theirs(directory)
    for span, score in zip(text_spans(ids, CONTEXT, 20), scores(tiny_model(seed=2), text_spans(ids, CONTEXT, 20), 3), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor(span.ids[None, :-1])).logits[0, span.first - 1:]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(span.ids[span.first:]), reduction="sum").item()
        assert score.nll == pytest.approx(expected, rel=128 * EPS)


def test_greedy_is_for_every_token():
    """A continuation is greedy where each of its tokens is the most likely, and only there; its context does not matter."""
    says = [5, 6, 7, 8]
    model = scripted_model(says)
    rows = [[9, *says], [9, 5, 6, 7, 9], [9, 9, 6, 7, 8]]
    assert [score.greedy for score in scores(model, [Span(row, 1) for row in rows])] == [True, False, False]
    assert [score.greedy for score in scores(model, [Span(row, 2) for row in rows])] == [True, False, True]


def test_a_continuation_of_several_spans():
    """Its score is the sum over them, and it is greedy where all of them are."""
    parts = [Score(1.0, 2, True), Score(2.0, 3, False), Score(4.0, 1, True)]
    assert list(tasks.summed([[0, 0], [0]], iter(parts))) == [Score(3.0, 5, False), Score(4.0, 1, True)]


@pytest.mark.parametrize("window, stride, said", [
    (None, 0, "the stride must be from 1 to the window of 64, not 0"),
    (None, 65, "the stride must be from 1 to the window of 64, not 65"),
    (10, 11, "the stride must be from 1 to the window of 10, not 11"),
    (0, None, "the window must be from 1 to the context of 64, not 0"),
    (65, None, "the window must be from 1 to the context of 64, not 65"),
])
def test_windows_that_cannot_be(window, stride, said):
    """A window the model cannot read, or a stride that would leave tokens out, is refused."""
    with pytest.raises(UsageError, match=said):
        total_nll(tiny_model(), np.arange(10), window=window, stride=stride)


# ── normalisation ──
@given(st.lists(st.text(st.sampled_from("ab,é🤗 \n\t\u00a0\u3000"), max_size=12), min_size=1, max_size=4), st.integers(1, 5))
def test_bytes_characters_and_words(documents, chunk):
    """They are those of the documents' texts, however the ids are taken in chunks: words are what str.split gives."""
    tokenizer = tiny_tokenizer()
    ids = [i for text in documents for i in (*tokenizer.encode(text), tokenizer.eot)]
    was, evaluation.CHUNK = evaluation.CHUNK, chunk
    try:
        for part in (ids, ids[:-1]):
            assert text_counts(np.array(part), tokenizer) == tuple(
                sum(map(count, documents)) for count in (lambda text: len(text.encode()), len, lambda text: len(text.split())))
    finally:
        evaluation.CHUNK = was


@pytest.mark.parametrize("task, first", [("loss", "loss {nats:.4f} nats per token"),
                                         ("perplexity", "perplexity {perplexity:.2f} per token"),
                                         ("bits-per-byte", "bits per byte {bits:.4f}")])
def test_a_text(command, tmp_path, task, first):
    """The table has Σ −log p by tokens, words, characters and bytes of what is predicted, and says its window and stride."""
    text = TEXT + "naïve 🤗\n"
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    ids = tiny_tokenizer().encode(text)
    nll, tokens = total_nll(tiny_model(seed=2), ids, window=40, stride=30)
    rest = tiny_tokenizer().decode(ids[1:])
    code, out, err = command(task, tmp_path / "text.txt", "--max-length", 40, "--stride", 30, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["window"], found["stride"], found["done"], found["total"], found["partial"]) == (40, 30, tokens, len(ids) - 1, False)
    for unit, count in (("token", len(ids) - 1), ("word", len(rest.split())), ("character", len(rest)), ("byte", len(rest.encode()))):
        per = found["per"][unit]
        assert per["count"] == count
        assert per["nats"] == pytest.approx(nll / count, rel=1e-6)
        assert per["bits"] == pytest.approx(nll / count / math.log(2), rel=1e-6)
        assert per["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-4)
    code, out, err = command(task, tmp_path / "text.txt", "--max-length", 40, "--stride", 30)
    head, titles, *rows, last = out.splitlines()
    assert head == first.format(**found["per"]["byte" if task == "bits-per-byte" else "token"])
    assert titles.split() == ["per", "nats", "bits", "perplexity", "count"]
    assert [row.split()[0] for row in rows] == ["token", "word", "character", "byte"]
    assert last.endswith(f"in float32: {tokens:,} tokens, window 40 tokens, stride 30")


def test_prepared_data(command, tmp_path, directory):
    """Of a prepared directory the validation part is read, at its own counts; --limit takes its first tokens."""
    prepare_texts([TEXT * 8], tmp_path / "data", str(directory))
    data = load_data(tmp_path / "data")
    found = json.loads(command("loss", tmp_path / "data", "--json")[1])
    nll, tokens = total_nll(tiny_model(seed=2), np.asarray(data.val))
    first = tiny_tokenizer().decode_bytes(data.val[:1])
    assert (found["done"], found["per"]["byte"]["count"]) == (tokens, data.meta["val"]["bytes"] - len(first))
    assert found["nll"] == pytest.approx(nll, rel=1e-6)
    found = json.loads(command("loss", tmp_path / "data", "--json", "--limit", 7)[1])
    assert (found["done"], found["total"]) == (7, 7)
    prepare_texts([TEXT * 8], tmp_path / "other", "train:290")
    code, out, err = command("loss", tmp_path / "other")
    assert (code, out) == (2, "") and "has another one" in err and f"--tokenizer {directory}" in err


# ── items ──
ITEM = {"activity_label": "Baking", "ctx_a": "A woman [header] bakes [title] Then", "ctx_b": "she rests", "label": "1",
        "endings": ["on a chair.", "on [substeps] a  very long  bench.", "  and eats.", "x"]}


def test_an_item_of_hellaswag():
    """As lm-evaluation-harness has it: the second part begins with a capital, marks in brackets and double spaces go."""
    context, endings, label = tasks.hellaswag(ITEM)
    assert context == "Baking: A woman bakes. Then She rests"
    assert endings == [" on a chair.", " on a very long bench.", " and eats.", " x"] and label == 1


@given(st.text("[]a \n", max_size=12))
def test_marks_are_removed_as_the_expression_says(text):
    """That of lm-evaluation-harness, which takes hours for a text of a million brackets."""
    assert tasks.clean(text) == re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
    started = time.perf_counter()
    assert tasks.clean(f"a {'[' * 10**6} b") == f"a {'[' * 10**6} b" and time.perf_counter() - started < 1.0


def test_the_choice_of_hellaswag(command, tmp_path):
    """acc is the likeliest ending, acc_norm the likeliest by its characters, acc_per_token by its tokens; counted one by one."""
    rng = np.random.default_rng(5)
    words = TEXT.replace("\n", " ").split()
    records = [{"activity_label": "A", "ctx_a": " ".join(rng.choice(words, 3)), "ctx_b": "then", "label": int(rng.integers(4)),
                "endings": [" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(4)]} for _ in range(30)]
    model, tokenizer, hits = tiny_model(seed=2), tiny_tokenizer(), []
    for record in records:
        context = tokenizer.encode(f"A: {record['ctx_a']} Then")
        endings = [tokenizer.encode(f" {ending}") for ending in record["endings"]]
        nll = np.array([counted(model, Span([*context, *ending], len(context))) for ending in endings])
        characters, tokens = np.array([len(e) for e in record["endings"]]), np.array([len(e) for e in endings])
        hits.append([np.argmin(nll / size) == record["label"] for size in (1, characters, tokens, characters + 1)])
    *expected, wrong = np.mean(hits, axis=0)
    assert len({*expected, wrong}) == 4                 # the three are told apart, and from one that counts the space before an ending
    found = json.loads(command("hellaswag", lines(tmp_path / "h.jsonl", records), "--json", "--batch-size", 3)[1])
    assert [found[name]["value"] for name in ("acc", "acc_norm", "acc_per_token")] == pytest.approx(expected)
    assert found["acc"]["stderr"] == pytest.approx(math.sqrt(expected[0] * (1 - expected[0]) / 29))
    code, out, err = command("hellaswag", tmp_path / "h.jsonl", "--limit", 10)
    assert (code, err) == (0, "") and [line.split()[0] for line in out.splitlines()[:3]] == ["acc", "acc_norm", "acc_per_token"]
    assert out.splitlines()[3].endswith("10 items by the protocol of lm-eval, window 64 tokens, stride 32")


def test_hellaswag_as_llm_c_has_it(command, tmp_path):
    """The texts as they are, context and ending encoded by themselves, and no activity before them."""
    rng = np.random.default_rng(6)
    words = TEXT.replace("\n", " ").split()
    records = [{"activity_label": "A", "ctx_a": "x", "ctx_b": "y", "ctx": " ".join(rng.choice(words, 3)) + " [title] then",
                "label": int(rng.integers(4)),
                "endings": [" ".join(rng.choice(words, rng.integers(1, 6))) + "  [step]" for _ in range(4)]} for _ in range(30)]
    model, tokenizer, hits = tiny_model(seed=2), tiny_tokenizer(), []
    for record in records:
        context = tokenizer.encode(record["ctx"])
        endings = [tokenizer.encode(f" {ending}") for ending in record["endings"]]
        nll = np.array([counted(model, Span([*context, *ending], len(context))) for ending in endings])
        hits.append([np.argmin(nll / size) == record["label"] for size in (1, np.array([len(e) for e in endings]))])
    data = lines(tmp_path / "h.jsonl", records)
    found = json.loads(command("hellaswag", data, "--json", "--protocol", "llm.c")[1])
    assert [found[name]["value"] for name in ("acc", "acc_per_token")] == pytest.approx(np.mean(hits, axis=0))
    assert found["protocol"] == "llm.c"
    other = json.loads(command("hellaswag", data, "--json")[1])
    assert other["acc_per_token"] != found["acc_per_token"] and other["protocol"] == "lm-eval"


def test_lambada_as_openai_has_it(command, tmp_path):
    """The last token alone, after all others: a word of several tokens counts where its last one is said."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("Once upon a midnight")
    assert len(tokenizer.encode(" midnight")) > 1
    scripted_model([*ids[1:-2], 0, ids[-1]]).save_pretrained(tmp_path / "model", tokenizer=tokenizer)     # the last but one is not said
    data = lines(tmp_path / "l.jsonl", [{"text": "Once upon a midnight"}])
    for protocol, wanted in (("openai", 1.0), ("lm-eval", 0.0)):
        found = json.loads(command("lambada", data, "--json", "--model", tmp_path / "model", "--protocol", protocol)[1])
        assert found["acc"]["value"] == wanted, protocol


@pytest.mark.parametrize("task, protocol, says", [
    ("hellaswag", "openai", "has the protocols lm-eval and llm.c"), ("lambada", "llm.c", "has the protocols lm-eval and openai"),
    ("loss", "llm.c", "has no protocol; leave it out")])
def test_a_protocol_that_a_task_has_not(command, tmp_path, task, protocol, says):
    code, out, err = command(task, lines(tmp_path / "x.jsonl", [{"text": "a b"}]), "--protocol", protocol)
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err


def test_an_ending_is_as_long_as_its_characters():
    """acc_norm divides by characters, as lm-evaluation-harness does, and not by bytes, which non-ASCII endings have more of."""
    endings = ["ab", "abcdefgh", "abc", "日本語日本語"]    # the best as a whole, by characters, by tokens, and by its 18 bytes
    rows = [[Score(4.0, 1, False), Score(8.0, 2, False), Score(6.0, 6, False), Score(9.0, 3, False)]]
    for label, name in enumerate(("acc", "acc_norm", "acc_per_token", None)):
        found = tasks.chosen([tasks.Item("A", [f" {ending}" for ending in endings], label)], rows)
        assert [one for one in found if found[one]["value"] == 1.0] == [name] * (name is not None)


def test_last_words(command, tmp_path):
    """The perplexity of LAMBADA is e to the mean of Σ −log p over a last word's tokens, the space before it among them."""
    texts = [line.strip(" ,.") for line in TEXT.splitlines()]
    model, tokenizer, nll = tiny_model(seed=2), tiny_tokenizer(), []
    for text in texts:
        context, word = text.rsplit(" ", 1)
        ids = tokenizer.encode(context)
        nll.append(counted(model, Span([*ids, *tokenizer.encode(f" {word}")], len(ids))))
    found = json.loads(command("lambada", lines(tmp_path / "l.jsonl", [{"text": text} for text in texts]), "--json")[1])
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(nll)), rel=1e-4) and found["done"] == 4 and found["longer"] == 0


def test_last_words_that_are_said(command, tmp_path, directory):
    """acc of LAMBADA is the share of last words the model says when it takes the likeliest token each time."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("Once upon a midnight")
    scripted_model(ids[1:]).save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    data = lines(tmp_path / "l.jsonl", [{"text": "Once upon a midnight"}, {"text": "Once upon a door"}])
    found = json.loads(command("lambada", data, "--json", "--model", tmp_path / "model")[1])
    assert found["acc"]["value"] == 0.5


# ── what goes wrong ──
@pytest.mark.parametrize("task, done", [("loss", "partial: 30 of 60 tokens"), ("hellaswag", "partial: 1 of 3 items"),
                                        ("lambada", "partial: 5 of 9 items")])
def test_ctrl_c_prints_what_there_is(command, tmp_path, monkeypatch, task, done):
    """What was counted until then is printed as partial, with exit code 130; of HellaSwag, the items whose endings are all there."""
    def interrupted(*rest):
        for n, score in enumerate(scores(*rest)):
            if n == (1 if task == "loss" else 5):
                raise KeyboardInterrupt
            yield score

    monkeypatch.setattr(evaluate, "scores", interrupted)
    if task == "loss":
        data = tmp_path / "t.txt"
        data.write_text(TEXT)
        flags = ["--limit", 60, "--max-length", 30, "--stride", 30]
    else:
        data, flags = lines(tmp_path / "i.jsonl", [{**ITEM, "text": "a rare door"}] * (3 if task == "hellaswag" else 9)), []
    code, out, err = command(task, data, *flags)
    assert (code, err) == (130, "gpt2.evaluate: interrupted\n") and done in out.splitlines()[-1]
    assert json.loads(command(task, data, *flags, "--json")[1])["partial"] is True


@pytest.mark.parametrize("task", ["loss", "hellaswag"])
def test_ctrl_c_before_there_is_anything(command, tmp_path, monkeypatch, task):
    """Then nothing is printed."""
    def interrupted(*rest):
        yield from list(scores(*rest))[:0 if task == "loss" else 3]
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "scores", interrupted)
    (tmp_path / "t.txt").write_text(TEXT)
    data = tmp_path / "t.txt" if task == "loss" else lines(tmp_path / "i.jsonl", [ITEM])
    assert command(task, data) == (130, "", "gpt2.evaluate: interrupted\n")


@pytest.mark.parametrize("task, name, content, flags, code, said", [
    ("loss", "none.txt", None, [], 3, "--data {} does not exist"),
    ("loss", "t.txt", "", [], 3, "{} is empty"),
    ("loss", "t.txt", "a", [], 3, "{} holds 1 token; the first token is not predicted, so at least 2 are needed"),
    ("loss", "t.txt", b"ab\xff", [], 3, "{} is not UTF-8 (byte 0xff at offset 2)"),
    ("loss", "t.txt", TEXT, ["--max-length", 65], 2, "the window must be from 1 to the context of 64, not 65"),
    ("loss", "t.txt", TEXT, ["--stride", 65], 2, "the stride must be from 1 to the window of 64, not 65"),
    ("loss", "t.jsonl", '{"text": "a b"}\n{"txt": 1}\n', [], 3, '{}, line 2 has no "text" that is a string'),
    ("hellaswag", "t.txt", TEXT, [], 2, "--task hellaswag reads a JSONL file of items, and {} is not one"),
    ("hellaswag", "t.jsonl", "\n", [], 3, "{} holds no item"),
    ("hellaswag", "t.jsonl", json.dumps(ITEM) + "\n{", [], 3,
     "{}, line 2 is not an item of hellaswag (is not JSON (Expecting property name"),
    ("hellaswag", "t.jsonl", '{"text": "a b"}', [], 3, "{}, line 1 is not an item of hellaswag (endings is missing)"),
    ("hellaswag", "t.jsonl", json.dumps({**ITEM, "label": 4}), [], 3, "{}, line 1 is not an item of hellaswag (label 4 of 4 endings)"),
    ("hellaswag", "t.jsonl", json.dumps({**ITEM, "label": ""}), [], 3,
     "{}, line 1 is not an item of hellaswag (label must be an integer from 0 to 99 or a text that is a number, not ''"),
    ("hellaswag", "t.jsonl", json.dumps({**ITEM, "endings": ["a", "[b]"]}), [], 3,
     "{}, line 1 is not an item of hellaswag (an ending is empty)"),
    ("hellaswag", "t.jsonl", "[1]", [], 3, "{}, line 1 is not an item of hellaswag ("),
    ("hellaswag", "t.jsonl", json.dumps({**ITEM, "endings": "abcd"}), [], 3,
     "{}, line 1 is not an item of hellaswag (endings must be a list, not 'abcd')"),
    ("hellaswag", "t.jsonl", json.dumps({**ITEM, "endings": "a" * 100_000}), [], 3, "{}, line 1 is not an item of hellaswag (endings must"),
    ("hellaswag", "t.jsonl", json.dumps({**ITEM, "endings": ["a", 3]}), [], 3,
     "{}, line 1 is not an item of hellaswag (endings[1] must be a text, not 3)"),
    ("hellaswag", "t.jsonl", json.dumps({**ITEM, "ctx_b": "\ud800"}), [], 3,
     "{}, line 1 is not an item of hellaswag (ctx_b must be a text"),
    ("hellaswag", "t.jsonl", json.dumps({**ITEM, "label": True}), [], 3, "{}, line 1 is not an item of hellaswag (label must be"),
    ("hellaswag", "t.jsonl", json.dumps({**ITEM, "ctx": "a", "endings": ["a", ""]}), ["--protocol", "llm.c"], 3,
     "{}, line 1 is not an item of hellaswag_raw (an ending is empty)"),
    ("hellaswag", "t.jsonl", "[" * 100_000, [], 3, "{}, line 1 is not an item of hellaswag ("),
    ("lambada", "t.jsonl", "[" * 100_000, [], 3, "{}, line 1 is not an item of lambada ("),
    ("lambada", "t.jsonl", '{"text": "a b"}\n' + '{"text": "a b", "text": "c d"}', [], 3,
     "{}, line 2 is not an item of lambada (has the key 'text' twice)"),
    ("hellaswag", "t.jsonl", json.dumps({**ITEM, "ctx": ""}), ["--protocol", "llm.c"], 3,
     "{}, line 1 is not an item of hellaswag_raw (ctx must be a text of size 1 to"),
    ("lambada", "t.jsonl", "x" * (1 << 20) + "x", [], 3, "{}, line 1 is not an item of lambada (it has more than 1,048,576 bytes)"),
    ("loss", "t.jsonl", '{"text": "a b"}\n' + "[" * 100_000, [], 3, "{}, line 2 is not "),
    ("lambada", "t.jsonl", '{"text": "alone"}', [], 3, "{}, line 1 is not an item of lambada (there is no last word after other words)"),
    ("lambada", "t.jsonl", '{"text": "ends with "}', [], 3,
     "{}, line 1 is not an item of lambada (there is no last word after other words)"),
    ("lambada", "t.jsonl", '{"text": 3}', [], 3, "{}, line 1 is not an item of lambada ("),
    ("lambada", "t.jsonl", b'{"text": "\xff"}', [], 3, "{}, line 1 is not an item of lambada ("),
])
def test_what_cannot_be_evaluated(command, tmp_path, task, name, content, flags, code, said):
    """One line says what is wrong and where, and nothing is printed."""
    data = tmp_path / name
    if content is not None:
        data.write_bytes(content if isinstance(content, bytes) else content.encode())
    found, out, err = command(task, data, *flags)
    assert (found, out, err.count("\n")) == (code, "", 1) and err.startswith(f"gpt2.evaluate: {said.format(data)}")


def test_weights_that_are_not_numbers(command, tmp_path):
    """A model whose loss is NaN is not given a figure."""
    model = tiny_model()
    model.wte.weight.assign(model.wte.weight.array * np.float32(np.nan))
    model.save_pretrained(tmp_path / "model", tokenizer=tiny_tokenizer())
    (tmp_path / "t.txt").write_text(TEXT)
    code, out, err = command("loss", tmp_path / "t.txt", "--model", tmp_path / "model")
    assert (code, out) == (1, "") and "negative log-likelihood of token 1 or of a later one is nan" in err
