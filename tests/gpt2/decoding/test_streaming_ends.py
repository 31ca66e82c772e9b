"""Where texts begin and end: prompts of <|endoftext|>, of ids, of nothing; and one of several ids that end a text."""
from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_gpt2 import SAYS, scripted_model, tiny_config, tiny_model, tiny_tokenizer

from gpt2.config import GPT2Config, ids_of
from gpt2.decoding.streaming import continue_text
from gpt2.errors import MissingError, UsageError
from gpt2.generate import main
from gpt2.model import GPT2

END = "<|endoftext|>"


# ── several ids end a text ──
@pytest.mark.parametrize("made", [list, tuple, set, np.array, frozenset])
def test_any_of_several_ids_ends_a_row(made):
    """generate(eos_token_id=[a, b]) stops a row at the first a or b, as transformers does; each row by itself."""
    model = tiny_model(seed=3)
    prompts = [[1, 2, 3]] * 4
    whole = model.generate(prompts, 30, seed=0, eos_token_id=None)
    ends = [whole[0][12], whole[2][20]]
    for row, ended in zip(whole, model.generate(prompts, 30, seed=0, eos_token_id=made(ends))):
        at = [i for i in range(3, len(row)) if row[i] in ends]
        assert ended == (row[:at[0] + 1] if at else row)


def test_several_ids_are_transformers(tmp_path):
    """Greedy, transformers stops at the same token; a list in config.json or in generation_config.json counts, the latter before it."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = tiny_model(seed=3)
    free = model.generate([[1, 2, 3]], 20, greedy=True, eos_token_id=None)[0]
    model = GPT2(tiny_config(initializer_range=0.3, eos_token_id=[299, free[9]]), seed=3).eval()
    assert model.config.eos_token_id == (299, free[9]) and model.config.ends == {299, free[9]}
    model.save_pretrained(tmp_path, tokenizer=tiny_tokenizer())
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == [299, free[9]]
    for beside in (None, [299], free[6], [free[5], 299]):
        if beside is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": beside}))
        theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
        ids = theirs.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=20, do_sample=False, pad_token_id=0)[0].tolist()
        ours = GPT2.from_pretrained(tmp_path)
        assert ours.generate([[1, 2, 3]], 20, greedy=True) == [ids]
        [sample] = continue_text(ours, tiny_tokenizer(), [1, 2, 3], max_new_tokens=20, options=None, seed=0)
        assert sample.finish_reason == ("eos" if sample.tokens[-1] in ours.config.ends else "length")


def test_several_ids_end_a_text():
    """The command's text ends at any of the ids too, and the token is not printed."""
    tokenizer = tiny_tokenizer()
    says = tokenizer.encode(SAYS)
    model = scripted_model(says, eos_token_id=[tokenizer.eot, says[5]])
    [sample] = continue_text(model, tokenizer, "O", max_new_tokens=20)
    assert (sample.finish_reason, sample.tokens[-1]) == ("eos", says[5])
    assert sample.text == tokenizer.decode(says[:says.index(says[5])])


@pytest.mark.parametrize("wrong", [[], [1.0], 1.5, True, [True], "end", [[1]], {1: 2}, [None]])
def test_what_is_no_id_is_refused(wrong):
    """An eos_token_id that no row could end at is one line: no id, and an id outside the vocabulary."""
    with pytest.raises(UsageError, match="eos_token_id must be an id, a list of ids, or None"):
        tiny_model().generate([[1]], 2, eos_token_id=wrong)
    with pytest.raises(UsageError, match=r"eos_token_id 300 is outside the vocabulary 0 … 299"):
        tiny_model().generate([[1]], 2, eos_token_id=[3, 300])


def test_ids_of():
    """None is no id; NumPy's are Python's."""
    assert ids_of(None) == frozenset() and ids_of(np.int64(3)) == ids_of([3]) == {3}
    assert GPT2Config(eos_token_id=[7]).eos_token_id == 7 and GPT2Config.from_dict({"eos_token_id": [7, 8]}).ends == {7, 8}
    assert hash(GPT2Config(eos_token_id=[7, 8])) == hash(GPT2Config(eos_token_id=(7, 8)))


@pytest.mark.parametrize(("content", "kind", "said"), [
    ("{", MissingError, r"is not JSON \(Expecting"), ("[1]", MissingError, r"must be an object, not \[1\]"),
    ('{"eos_token_id": "x"}', MissingError, "eos_token_id must be an integer of 64 bits or a list or null, not 'x'"),
])
def test_a_damaged_generation_config_is_one_line(content, kind, said, tmp_path):
    """It is named; where it says nothing of ends, the configuration's count."""
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    assert GPT2.from_pretrained(tmp_path).config == tiny_model().config
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(kind, match=said) as caught:
        GPT2.from_pretrained(tmp_path)
    assert "generation_config.json" in str(caught.value)


# ── prompts ──
def document(result):
    assert result[0] == 0, result
    return json.loads(result[1])


def test_end_of_text_is_a_token_where_it_is_allowed(run):
    """--allow-special makes <|endoftext|> in --prompt one id; without it, it is text. It is printed as it was typed."""
    eot, plain = tiny_tokenizer().eot, tiny_tokenizer().encode(END + "O", allow_special=False)
    flags = ("--prompt", END + "O", "--max-new-tokens", 8, "--json")
    special, text = document(run("random", *flags, "--allow-special")), document(run("random", *flags))
    model = tiny_model(seed=1)
    for found, ids in ((special, [eot, *tiny_tokenizer().encode("O")]), (text, plain)):
        assert found["timing"]["prompt_tokens"] == len(ids)
        assert found["prompt"] == END + "O"
        assert found["samples"][0]["tokens"] == model.generate([ids], 8, seed=1337)[0][len(ids):]
    assert run("random", *flags[:-1], "--allow-special")[1] == END + "O" + special["samples"][0]["text"] + "\n"


@pytest.mark.parametrize("flags", [["--ids", "40,7,299"], ["--ids", "40 7 299"], ["--ids", "40", "--ids", "7, 299"]])
def test_a_prompt_of_ids(flags, run):
    """--ids takes ids, with commas or blanks, and may be repeated; their text is printed before what follows."""
    found = document(run("random", *flags, "--max-new-tokens", 8, "--json"))
    assert found["ids"] == [40, 7, 299]
    assert found["samples"][0]["tokens"] == tiny_model(seed=1).generate([[40, 7, 299]], 8, seed=1337)[0][3:]
    assert run("random", *flags, "--max-new-tokens", 8)[1] == tiny_tokenizer().decode([40, 7, 299]) + found["samples"][0]["text"] + "\n"


def test_ids_may_end_within_a_character(run, models):
    """Bytes of a character that the prompt's ids begin and the text ends come out as that character."""
    emoji = tiny_tokenizer().encode("🤗")
    assert len(emoji) == 4
    scripted_model(emoji[2:], n_positions=2, eos_token_id=None).save_pretrained(models / "half", tokenizer=tiny_tokenizer())
    code, out, _ = run("half", "--ids", ",".join(map(str, emoji[:1])), "--max-new-tokens", 1)
    assert code == 0 and out == "\ufffd\n"
    scripted_model([0, *emoji[2:]], n_positions=4, eos_token_id=None).save_pretrained(models / "rest", tokenizer=tiny_tokenizer())
    code, out, _ = run("rest", "--ids", ",".join(map(str, emoji[:2])), "--max-new-tokens", 2)
    assert (code, out) == (0, "🤗\n")


def test_an_empty_prompt_starts_from_end_of_text(run, models):
    """--prompt '' is unconditional: what follows <|endoftext|>, which is not printed, as OpenAI's samples are."""
    found = document(run("random", "--prompt", "", "--max-new-tokens", 8, "--json", "--num-samples", 2))
    eot = tiny_tokenizer().eot
    rows = tiny_model(seed=1).generate([[eot], [eot]], 8, seed=1337)
    assert found["prompt"] == "" and found["timing"]["prompt_tokens"] == 1
    assert [sample["tokens"] for sample in found["samples"]] == [row[1:] for row in rows]
    code, out, err = run("random", "--prompt", "", "--max-new-tokens", 8)
    assert (code, out, err) == (0, tiny_tokenizer().decode(tiny_model(seed=1).generate([[eot]], 8, seed=1337)[0][1:]) + "\n", "")


def test_an_empty_prompt_without_the_token_says_so(run, models):
    """A tokenizer that has no <|endoftext|> has nothing to start from; a model without a tokenizer has no text to print."""
    files = tiny_tokenizer().files()
    tiny_model(vocab_size=299, bos_token_id=None, eos_token_id=None).save_pretrained(models / "endless")
    vocabulary = {token: i for token, i in json.loads(files["vocab.json"]).items() if token != END}
    (models / "endless" / "vocab.json").write_text(json.dumps(vocabulary))
    (models / "endless" / "merges.txt").write_bytes(files["merges.txt"])
    assert run("endless", "--prompt", "") == (2, "", "gpt2.generate: the prompt is empty, and this tokenizer has no <|endoftext|> to start "
                                                     "from; give --prompt TEXT or --ids\n")
    (models / "endless" / "vocab.json").unlink()
    code, out, err = run("endless", "--ids", "3")
    assert (code, out) == (3, "") and "has no tokenizer to turn its tokens into text" in err


@pytest.mark.parametrize(("flags", "said"), [
    (["--ids", "3", "--allow-special"], "--ids has no text; leave out --allow-special"),
    (["--ids", "3", "--prompt", "x"], "not allowed with argument"),
    (["--ids", "3,x"], "is not a list of ids; write ids as 15496,11,314"),
    (["--ids", "300"], "token id 300"), (["--ids=-1"], "token id -1"),
    (["--ids", " , "], "the prompt is empty"),
])
def test_wrong_prompts_are_one_line(flags, said, run):
    """Both a text and ids, what is no id, none at all, and one that the model does not have."""
    code, out, err = run("random", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err


def test_help_says_how_to_start(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "'' starts from <|endoftext|>" in out and "--allow-special" in out and "--ids" in out
