"""gpt2.experiments.ablate_query: what an ablation replaces, and how what it finds is judged."""
from __future__ import annotations

import numpy as np
import pytest
from tiny_gpt2 import tiny_model, tiny_tokenizer

from gpt2.experiments import (
    ablate_query,
    lab,
)


@pytest.mark.parametrize("how", ["noise", "zero", "permuted"])
def test_an_ablation_replaces_what_it_says_and_restores_it(how):
    """One part's columns, of the layers and the head that are named; noise has the same mean and deviation; an error restores too."""
    model = tiny_model(n_embd=64, n_head=4)
    before = [b.attn.c_attn.weight.numpy().copy() for b in model.h]
    with ablate_query.replaced(model, "K", [1], how, 3):
        now = [b.attn.c_attn.weight.numpy().copy() for b in model.h]
        k, old = now[1][:, 64:128], before[1][:, 64:128]
        assert np.array_equal(now[0], before[0]) and not np.array_equal(k, old)
        assert np.array_equal(np.delete(now[1], np.s_[64:128], 1), np.delete(before[1], np.s_[64:128], 1))
        if how == "noise":
            assert k.mean() == pytest.approx(old.mean(), abs=0.02) and k.std() == pytest.approx(old.std(), rel=0.05)
        elif how == "permuted":
            assert np.array_equal(np.sort(k, axis=None), np.sort(old, axis=None))
        else:
            assert not k.any()
    with pytest.raises(KeyError), ablate_query.replaced(model, "Q", [0, 1], how, 3, head=2):
        changed = model.h[0].attn.c_attn.weight.numpy() != before[0]
        assert changed[:, 32:48].any() and not np.delete(changed, np.s_[32:48], 1).any()
        raise KeyError
    assert all(np.array_equal(b.attn.c_attn.weight.numpy(), w) for b, w in zip(model.h, before))


def test_the_bias_is_ablated_too():
    model = tiny_model()
    bias = model.h[1].attn.c_attn.bias
    bias.assign(np.arange(96, dtype=np.float32))
    with ablate_query.replaced(model, "bias", [1], "zero", 0):
        assert not bias.numpy().any()
    with ablate_query.replaced(model, "bias", [1], "permuted", 0):
        assert sorted(bias.numpy()) == list(range(96)) != bias.numpy().tolist()
    assert bias.numpy().tolist() == list(range(96))


def test_what_is_before_an_ablation_is_not_computed_again():
    """From the first block that changed on, the pass gives what the whole one does, to the last bit."""
    model = tiny_model(n_layer=3)
    x = np.arange(24).reshape(2, 12) % model.config.vocab_size
    clean = ablate_query.look(model, x)
    for first in range(3):
        with ablate_query.replaced(model, "Q", [first], "noise", 0):
            short, whole = ablate_query.look(model, x, first, clean), ablate_query.look(model, x)
        assert all(np.array_equal(short[key], whole[key]) for key in ("logp", "pattern"))
        assert not np.array_equal(whole["pattern"], clean["pattern"])
    assert all(np.array_equal(ablate_query.look(model, x)[key], clean[key]) for key in ("logp", "pattern", "before"))


def deep(layers, greedy, clean=3.0):
    """What is found of a model of so many layers with W_Q of the first n made noise; greedy: n to the share of repeated 4-grams."""
    def row(what, part, change, n):
        return {"what": what, "part": part, "by": "noise", "Δ loss": change, "±": 0.01, "layers": n}

    changes = {n: 0.0 if n <= layers / 4 else 1.0 if n <= 3 * layers / 4 else 7.5 for n in range(1, layers + 1)}
    return {"layers": layers, "clean": clean, "uniform": 10.8, "restored": 0.0,
            "rows": [*(row(f"layer {i}", part, 0.5, 1) for part in "QKV" for i in range(layers)),
                     *(row(f"layers 0 … {n - 1}", "Q", change, n) for n, change in changes.items())],
            "greedy": [{"layers": n, "repeated": greedy(n), "±": 0.01} for n in range(layers + 1)]}


def test_the_whole_claim_is_judged_by_quarters():
    """1–3 harmless, 4–6 lose meaning, 7–9 loop, above 9 noise; another depth in the same shares; one that has no such quarter is open."""
    said = [v.verdict for v in ablate_query.judge(deep(12, lambda n: 0.9 if 7 <= n <= 9 else 0.1))]
    assert said[:4] == ["confirmed"] * 4
    assert ["".join(str(ablate_query.quarter(n, layers)) for n in range(1, layers + 1)) for layers in (12, 4, 2, 6)] == [
        "000111222333", "0123", "13", "011233"]
    for n in (7, 8, 9):                                 # each of a quarter has to
        assert ablate_query.judge(deep(12, lambda m, n=n: 0.9 if 7 <= m <= 9 and m != n else 0.1))[2].verdict == "contradicted"
    assert ablate_query.judge(deep(12, lambda n: 0.9))[2].verdict == "inconclusive", "the clean model loops"
    shallow = ablate_query.judge(deep(2, lambda n: 0.1))
    assert [shallow[k].verdict for k in (0, 2)] == ["inconclusive"] * 2 and shallow[0].because == "no n of 2 layers is in this quarter"


def test_a_model_of_a_short_context_is_ablated(tmp_path):
    """Greedy text slides on where the context ends."""
    tiny_model(n_layer=2, n_positions=4).save_pretrained(tmp_path, tokenizer=tiny_tokenizer())
    found = ablate_query.measure(lab.Lab(str(tmp_path)))
    assert [g["layers"] for g in found["greedy"]] == [0, 1, 2] and all(0.0 <= g["repeated"] <= 1.0 for g in found["greedy"])


def test_a_long_ablation_says_how_far_it_is(capsys, monkeypatch):
    clock = iter([1.0, 4.9, 5.0, 11.0])
    monkeypatch.setattr(ablate_query.time, "monotonic", lambda: next(clock))
    said = 0.0
    for i in range(4):
        said = ablate_query.progress(said, f"part {i}")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "".join(f"gpt2.experiments: ablate-query: part {i}\n" for i in (2, 3))
