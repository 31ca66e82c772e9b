"""--check: what a device says first is what NumPy says, and a kernel or a sampler that is wrong is noticed."""
from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from device import HERE, needs_compiler
from hypothesis import assume, given
from hypothesis import strategies as st
from in_process import end_of
from tiny_gpt2 import tiny_config, tiny_model, tiny_tokenizer

import minigrad as mg
from gpt2.decoding.decode import steps
from gpt2.decoding.sampling import SamplingOptions, choose
from gpt2.errors import DifferentError, UsageError
from gpt2.generate import main
from gpt2.model import GPT2
from gpt2.verify import generation
from gpt2.verify.generation import Checked, check_generation
from minigrad.backend import cpu

PROMPT = [5, 6, 7]
GREEDY = SamplingOptions(greedy=True)
OPTIONS = {
    "greedy": GREEDY, "plain": SamplingOptions(), "penalty": SamplingOptions(greedy=True, repetition_penalty=3.0),
    "filters": SamplingOptions(temperature=1.5, top_k=40, top_p=0.8, min_p=0.01, repetition_penalty=1.5)}


def model_on(backend: str, dtype: str = "float32", **fields: Any) -> GPT2:
    return GPT2(tiny_config(initializer_range=0.3, **fields), backend=backend, dtype=dtype, seed=1).eval()


def checked(model: GPT2, options: SamplingOptions = GREEDY, rows: int = 1, n: int = 8, **more: Any) -> Checked:
    """A generation of n tokens, and its check."""
    made = list(steps(model, [PROMPT] * rows, max_new_tokens=n, options=options, seed=3, lookup=more.get("lookup", 0)))
    tokens = [[step.ids[row] for step in made] for row in range(rows)]
    return check_generation(model, PROMPT, tokens, options, 3, passes=n - 1, **more)


# ── right ──
@pytest.mark.rounding
@needs_compiler
@pytest.mark.parametrize("kind, rows", [("greedy", 1), ("plain", 2), ("penalty", 3), ("filters", 1)])
@pytest.mark.parametrize("backend", ["numpy", "fake:1"])
def test_what_is_right_agrees(backend: str, kind: str, rows: int):
    """Tokens and logits, of one sample and of several; the allowed difference is a small part of what logits differ by."""
    found = checked(model_on(backend), OPTIONS[kind], rows, n=14 if backend == "numpy" else 8)
    assert not found.wrong and found.tokens == generation.TOKENS and 0.0 < found.largest <= found.allowed < 1e-2 and not found.ties
    against = "those of the unfused definitions" if backend == "numpy" else "NumPy's"
    assert str(found) == (f"the first 8 tokens and their logits are {against}; the largest difference is {found.largest:.2g}, "
                          f"rounding allows {found.allowed:.2g}")


@pytest.mark.rounding
@needs_compiler
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "tf32"])
@pytest.mark.parametrize("backend", ["numpy", "fake"])
def test_in_every_dtype(backend: str, dtype: str):
    """The bound follows the dtype: float64 allows less than float32's rounding, and bfloat16 more than float16."""
    mg.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        model = GPT2(tiny_config(initializer_range=0.3), backend=backend, dtype="float32" if dtype == "tf32" else dtype).eval()
        found = checked(model, SamplingOptions())
    finally:
        mg.set_float32_matmul_precision("highest")
    low, high = {"float64": (1e-15, 1e-11), "float16": (1e-2, 0.4), "bfloat16": (0.1, 3.0),
                 "tf32": (1e-2, 0.4) if backend == "fake" else (1e-6, 1e-2)}[dtype]
    assert not found.wrong and low < found.allowed < high, found


@pytest.mark.parametrize("dtype, tf32, wanted", [
    ("float16", False, 4 * max(0.01, 0.3 / 8)), ("bfloat16", False, 4 * max(8 * 0.01, 0.3)), ("float32", True, 4 * max(0.01, 0.3 / 8)),
    ("float32", False, 0.0), ("float64", False, 0.0), ("float64", True, 0.0)])
def test_either_run_in_16_bits_may_be_right_by_chance(dtype: str, tf32: bool, wanted: float):
    """The larger error counts, each in proportion to its eps; a run that overflows, and a dtype that is not installed, tell nothing."""
    errors = {"float64": 0.0, "float32": 1e-6, "float16": 0.01, "bfloat16": 0.3}
    wide = np.linspace(-1.0, 1.0, 6).reshape(1, 2, 3)

    def logits(kind: str) -> np.ndarray:
        if errors[kind] is None:
            raise UsageError("not installed")
        return wide + errors[kind]

    def allowed() -> float:
        return generation._allowed(logits, wide + errors[dtype], wide, dtype, 9, tf32)

    sums = 32e-6 * (2.0**-29 if dtype == "float64" else 1.0)
    assert allowed() == pytest.approx(sums + wanted)
    other = "float16" if dtype == "bfloat16" else "bfloat16"
    for errors[other] in (np.inf, np.nan, None):        # type: ignore[assignment]
        assert allowed() == pytest.approx(sums + 4 * errors[dtype if dtype != "float32" else "float16"] * bool(wanted))


def test_a_step_of_several_guesses():
    """--lookup reads the guesses in one pass, and draws a number for each token all the same."""
    for options in (GREEDY, SamplingOptions(temperature=0.5)):
        assert not checked(model_on("numpy"), options, lookup=4).wrong


@pytest.mark.parametrize("length, n", [(64, 1), (62, 3), (63, 9)])
def test_a_context_that_is_almost_full(length: int, n: int):
    """As many tokens are compared as fit; a prompt that fills more than the context is refused."""
    prompt, model = [i % 200 for i in range(length)], model_on("numpy")
    made = list(steps(model, [prompt], max_new_tokens=n, options=GREEDY, overflow="slide"))
    assert check_generation(model, prompt, [[step.ids[0] for step in made]], GREEDY, 0).tokens == min(n, 65 - length)
    with pytest.raises(UsageError, match="context of 64, and this one has 65 tokens"):
        check_generation(model, [*prompt, *[1] * (65 - length)], [[1]], GREEDY, 0)


# ── wrong ──
def planted(monkeypatch: pytest.MonkeyPatch, name: str, **wrong: Any) -> None:
    """A kernel of the device with a wrong setting: functions of the right ones."""
    real = HERE.kernels[name]
    monkeypatch.setitem(HERE.kernels, name, lambda *args, **settings: real(
        *args, **settings | {key: f(settings[key]) for key, f in wrong.items()}))


@needs_compiler
@pytest.mark.parametrize("name, wrong", [
    ("step_attention", {"scale": lambda s: 1.001 * s}), ("step_qkv", {"eps": lambda e: 1e-3}), ("step_linear", {"eps": lambda e: 1e-3}),
    ("step_linear", {"act": lambda act: act and "gelu"}), ("step_linear", {"add": lambda add: False})])
def test_a_wrong_kernel_is_noticed(name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch):
    """Of the decoding step, by a thousandth: the first new token is right, the logits after it are not."""
    planted(monkeypatch, name, **wrong)
    found = checked(model_on("fake"), OPTIONS["plain"])
    assert "the logits are not NumPy's: before new token 2 that of id" in found.wrong and found.largest > found.allowed


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "tf32"])
def test_a_wrong_kernel_is_noticed_in_16_bits(dtype: str, monkeypatch: pytest.MonkeyPatch):
    """A residual that is left out, and a scale of 1/d in place of 1/√d."""
    mg.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        for name, wrong in (("step_linear", {"add": lambda add: False}), ("step_attention", {"scale": lambda s: s / 4.0})):
            with monkeypatch.context() as patch:
                planted(patch, name, **wrong)
                assert "the logits are not NumPy's" in checked(model_on("fake", dtype.replace("tf32", "float32"))).wrong
    finally:
        mg.set_float32_matmul_precision("highest")


@needs_compiler
def test_a_kernel_that_overflows_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """NaN on the device alone is a difference, even if it has drawn no token."""
    planted(monkeypatch, "step_attention", scale=lambda s: np.nan)
    found = check_generation(model_on("fake"), PROMPT, [], GREEDY, 0)
    assert found.wrong.startswith("the logits are not NumPy's: before new token 2 that of id 0 is nan, not ")
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["largest"] is None


@needs_compiler
@pytest.mark.parametrize("kind, name, wrong", [
    ("greedy", "step_greedy", {"vocab": lambda n: 9}), ("plain", "step_choose", {"temperature": lambda t: 0.1}),
    ("filters", "step_choose", {"top_k": lambda k: 1}), ("filters", "step_choose", {"top_p": lambda p: 1.0}),
    ("penalty", "step_choose", {"penalty": lambda p: 1.0})])
def test_a_wrong_sampler_is_noticed(kind: str, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch):
    """It chooses another id from logits that are right."""
    planted(monkeypatch, name, **wrong)
    found = checked(model_on("fake"), OPTIONS[kind], rows=2, n=8)
    assert "and NumPy chooses" in found.wrong and found.wrong.endswith("no tie that rounding decides") and found.largest <= found.allowed


@pytest.mark.parametrize("name", ["layer_norm", "gelu", "attention"])
def test_a_wrong_numpy_kernel_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch):
    """On NumPy the fused kernels are compared with the definitions."""
    real = cpu.kernels[name]

    def wrong(*args: Any, **settings: Any) -> Any:
        out = real(*args, **settings)
        getattr(out, "out", out)[...] *= np.float32(1.001)
        return out

    monkeypatch.setitem(cpu.kernels, name, wrong)
    assert "are not those of the unfused definitions: before new token 1" in checked(model_on("numpy")).wrong


# ── ties ──
@pytest.mark.parametrize("kind", OPTIONS)
@given(data=st.data())
def test_rounding_may_decide(kind: str, data: Any):
    """Whatever is chosen from logits within the bound is a tie, and what no such logits can choose is none."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    x, room = 2.0 * rng.standard_normal((1, 12)), data.draw(st.sampled_from([1e-3, 0.1, 1.0]))
    uniform, seen, options = rng.random(1), [rng.integers(0, 12, 3).tolist()], OPTIONS[kind]
    there = (options, seen, uniform)
    token = int(choose(x + room * rng.uniform(-1, 1, x.shape), *there)[0])
    if options.top_p is None:                           # the border of a nucleus jumps
        assert generation._tie(x, token, room, *there)
    tried = {int(choose(x + room * rng.uniform(-1, 1, x.shape), *there)[0]) for _ in range(300)}
    other = data.draw(st.sampled_from(range(12)))
    assume(other not in tried and room < 1.0)
    assert not generation._tie(x, other, 1e-3 * room, *there)


def test_a_tie_is_told(monkeypatch: pytest.MonkeyPatch):
    """Two equal rows of the head: the device may choose the one, and NumPy the other."""
    model = tiny_model(seed=2, tie_word_embeddings=False)
    head = model.lm_head.weight.array.copy()
    first = model.generate(PROMPT, 1, greedy=True)[0][-1]
    twin = (first + 9) % 200 if first < 150 else first - 9
    low, high = sorted((first, twin))
    head[low] = head[high] = head[first] + 0.0
    model.lm_head.weight.assign(head)
    found = check_generation(model, PROMPT, [[high]], GREEDY, 0)
    assert not found.wrong and str(found).endswith(f"; new token 1 is {high}, and NumPy chooses {low}: a tie that rounding decides")
    assert check_generation(model, PROMPT, [[low]], GREEDY, 0).ties == []
    assert check_generation(model, PROMPT, [[low + 1]], GREEDY, 0).wrong
    assert check_generation(model, PROMPT, [[low], [high]], GREEDY, 0).ties[0].startswith("new token 1 of sample 2 is")


# ── the command ──
@pytest.fixture
def run(tmp_path: Any, capsys: Any) -> Any:
    tiny_model(seed=1).save_pretrained(tmp_path, tokenizer=tiny_tokenizer())
    flags = ["--model", str(tmp_path), "--prompt", "Once", "--max-new-tokens", "9", "--check"]
    return lambda *more: end_of(lambda: main([*flags, *more]), capsys, "gpt2.generate")


@needs_compiler
@pytest.mark.parametrize("backend", ["fake", "numpy"])
def test_the_command_says_it_in_a_line(backend: str, run: Any):
    """On stderr, after the text; --json has it as "check"."""
    code, out, err = run("--backend", backend)
    assert code == 0 and out.startswith("Once") and err.startswith("check: the first 8 tokens") and err.count("\n") == 1
    code, out, err = run("--backend", backend, "--json", "--num-samples", "2", "--seed", "5")
    found = json.loads(out)["check"]
    assert code == 0 and found["tokens"] == 8 and found["largest"] <= found["allowed"] and (found["ties"], found["wrong"]) == ([], "")


@needs_compiler
def test_the_command_ends_with_its_own_code(run: Any, monkeypatch: pytest.MonkeyPatch):
    """5, with one line; the text, or the JSON document, is printed all the same. NaN of the device alone is no fault of the weights."""
    planted(monkeypatch, "step_linear", eps=lambda e: 1e-3)
    for flags in ((), ("--json",)):
        code, out, err = run("--backend", "fake", *flags)
        assert code == DifferentError.exit_code == 5 and err.count("\n") == 1 and out
        assert err.startswith("gpt2.generate: --check: the logits are not NumPy's") and err.endswith("please send its report\n")
    found = json.loads(out)["check"]
    assert found["wrong"] in err and found["largest"] > found["allowed"]
    planted(monkeypatch, "step_attention", scale=lambda s: np.nan)
    code, out, err = run("--backend", "fake", "--json")
    assert (code, out) == (5, "") and " is nan, not " in err
