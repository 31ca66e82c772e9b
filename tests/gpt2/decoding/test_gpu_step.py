"""The decoding step: as a definition on NumPy, and as captured launches on the fake CuPy, it says what the model says."""
from __future__ import annotations

import gc
import itertools
import types
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_gpt2 import scripted_model, tiny_config

import minigrad as mg
from gpt2.decoding import decode as decoding
from gpt2.decoding import gpu_ops
from gpt2.decoding.gpu_step import AHEAD, Stepper
from gpt2.decoding.kv_cache import KVCache
from gpt2.decoding.sampling import SamplingOptions
from gpt2.errors import MissingError
from gpt2.model import GPT2
from minigrad.backend.cupy import Captured
from minigrad.testing import fake_cupy
from minigrad.testing.fake_cupy import cuda
from minigrad.testing.laws.tolerance import bound, magnitude

HERE = fake_cupy.install()
mg.backend.dtype("bfloat16")
needs_kernels = pytest.mark.skipif(cuda.compiler() is None, reason="g++ is not installed: decode.cu cannot be run on a CPU")
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
PROMPT = [5, 6, 7]

configs = st.fixed_dictionaries({}, optional={
    "activation_function": st.sampled_from(["gelu_new", "gelu", "relu"]), "tie_word_embeddings": st.booleans(),
    "scale_attn_by_inverse_layer_idx": st.booleans(), "scale_attn_weights": st.booleans(), "n_inner": st.integers(1, 70),
    "n_head": st.sampled_from([1, 2, 4]), "n_layer": st.integers(1, 3), "vocab_size": st.integers(8, 60),
    "layer_norm_epsilon": st.sampled_from([1e-5, 1e-2])})


def _models(there: str = "fake", **fields: Any) -> tuple[GPT2, GPT2]:
    """The same weights on the fake and on NumPy, with opinions strong enough that no rounding changes what they say, and with biases."""
    config, some = tiny_config(**{"initializer_range": 0.3, **fields}), np.random.default_rng(2)
    own = {name: p.array + (some.normal(0.0, 0.1, p.shape) if p.ndim == 1 else np.zeros(p.shape)).astype(np.float32)
           for name, p in GPT2(config, seed=1).named_parameters()}
    made = [GPT2(config, backend=place, parameters=own).eval() for place in (there, "numpy")]
    return made[0], made[1]


def _stepper(model: GPT2, rows: list[list[int]], size: int) -> tuple[Stepper, np.ndarray]:
    """A stepper that goes on after rows, and their logits [B, V]."""
    width = max(map(len, rows))
    pad = [width - len(row) for row in rows]
    cache = KVCache(model.config, len(rows), size, pad=pad, device=model.where["device"], dtype=model.where["dtype"])
    with mg.no_grad():
        logits = model([[0] * n + row for n, row in zip(pad, rows)], cache=cache, last=1).numpy()[:, -1]
    return Stepper(model, cache), logits


@given(config=configs, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_the_step_is_the_model(config: dict[str, Any], lengths: list[int], seed: int):
    """Logits of three more tokens, for rows of any lengths, by the definitions of the step and by the model, in float64."""
    config = {"vocab_size": 300, "bos_token_id": None, "eos_token_id": None, **config}
    model = GPT2(tiny_config(**config), dtype="float64", seed=seed).eval()
    rng = np.random.default_rng(seed)
    for p in model.parameters():                        # biases that are not 0, and gains that are not 1
        if p.ndim == 1:
            p.assign(p.array + rng.normal(0.0, 0.1, p.shape))
    rows = [rng.integers(0, model.config.vocab_size, n).tolist() for n in lengths]
    step, _ = _stepper(model, rows, 9)
    for _ in range(3):
        token = rng.integers(0, model.config.vocab_size, len(rows)).tolist()
        found = step.read(token)
        for row, t in zip(rows, token):
            row.append(t)
        for i, row in enumerate(rows):
            with mg.no_grad():
                wanted = model([row], last=1).numpy()[0, 0]
            # a dozen products of at most 128 numbers, whose errors LayerNorm may make 1/√ε larger
            assert np.abs(found[i] - wanted).max() <= bound("float64", 8 * 128, 300.0 * magnitude(wanted))


@needs_kernels
@pytest.mark.parametrize(("fields", "batches"), [
    ({}, [1, 2, 4, 8, 16, 29]),
    ({"activation_function": "gelu", "tie_word_embeddings": False, "n_head": 4, "n_inner": 50}, [1, 2, 4, 2])], ids=["64", "odd"])
def test_tokens_by_replays(fields: dict[str, Any], batches: list[int]):
    """NumPy's ids; a wait for the prompt and for each batch; 5 launches a layer and 3 each token; no memory but at the start."""
    model, same = _models(**fields)
    L, n = model.config.n_layer, 1 + sum(batches)
    said, after = [], []
    with fake_cupy.counting() as counts:
        for step in decoding.steps(model, [PROMPT], max_new_tokens=n, options=SamplingOptions(greedy=True)):
            said.append(step.ids[0])
            after.append((counts.syncs, counts.uploads, counts.allocations, counts.replays))
    assert said == same.generate(PROMPT, n, greedy=True, eos_token_id=None)[0][len(PROMPT):]
    assert counts.syncs == 1 + len(batches)             # of the n − 1 after the first
    kinds = {"step_embed": 1, "step_qkv": L, "step_attention": L, "step_linear": 3 * L + 1, "step_greedy": 1}
    assert {k: v for k, v in counts.launches.items() if k.startswith("step")} == {k: v * (n - 1) for k, v in kinds.items()}
    assert counts.replays == n - 2                      # the first step runs by itself
    # from the third token on nothing is uploaded, and nothing allocated
    assert len({(uploads, allocations) for _, uploads, allocations, _ in after[2:]}) == 1 and "float64" not in counts.dtypes


@needs_kernels
@pytest.mark.parametrize("fields", [{}, {"n_head": 1, "n_embd": 36, "n_layer": 3}])
@pytest.mark.parametrize("rows", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_rows_of_different_lengths(rows: int, fields: dict[str, Any]):
    """Each says what it says on NumPy."""
    model, same = _models(**fields)
    prompts = [[5, 6, 7, 8, 9][:1 + i % 5] for i in range(rows)]
    assert model.generate(prompts, 12, greedy=True, eos_token_id=None) == same.generate(prompts, 12, greedy=True, eos_token_id=None)


@needs_kernels
def test_without_a_cache_and_past_the_end_of_the_context():
    """The same ids as on NumPy: without a cache there is no step, and what was said before the context slid is still penalised after."""
    model, same = _models(n_positions=8)
    assert model.generate(PROMPT, 4, greedy=True, eos_token_id=None, use_cache=False) == same.generate(
        PROMPT, 4, greedy=True, eos_token_id=None)
    how = {"greedy": True, "repetition_penalty": 3.0, "overflow": "slide", "eos_token_id": None}
    assert model.generate(PROMPT, 20, **how) == same.generate(PROMPT, 20, **how)


@needs_kernels
def test_tokens_are_drawn_by_the_draws_of_the_seed(monkeypatch: pytest.MonkeyPatch):
    """One for each row and token; the first token's was used by the host."""
    model, given = _models()[0], []
    monkeypatch.setattr(decoding, "chooser", lambda *args, f=decoding.chooser: given.append(args[3]) or f(*args))
    model.generate([PROMPT, PROMPT], 4, seed=5, eos_token_id=None)
    draws = np.random.Generator(np.random.PCG64(5)).random((4, 2))
    np.testing.assert_array_equal(np.concatenate(given)[1:], draws[1:])


@needs_kernels
def test_more_rows_than_the_kernels_take():
    """Go through the model's own pass, as does a model in training mode, and one on the unfused definitions."""
    model, same = _models()
    prompts = [[i + 1, 2] for i in range(9)]
    with fake_cupy.counting() as counts:
        said = model.generate(prompts, 3, greedy=True, eos_token_id=None)
    assert said == same.generate(prompts, 3, greedy=True, eos_token_id=None) and "step_qkv" not in counts.launches
    assert not Stepper.fits(model, 9) and Stepper.fits(model, 8) and not Stepper.fits(same, 1)
    assert not Stepper.fits(GPT2(tiny_config(), backend="fake", explicit=True).eval(), 1)
    model.train()
    assert not Stepper.fits(model, 1)


@needs_kernels
def test_which_models_go_step_by_step(monkeypatch: pytest.MonkeyPatch):
    """Not one with hooks, nor one that computes in another dtype than it is kept in, nor of too wide heads, nor where a kernel lacks."""
    def fits(**how: Any) -> bool:
        compute = how.pop("compute_dtype", None)
        return Stepper.fits(GPT2(tiny_config(n_layer=1, **how), backend="fake", compute_dtype=compute).eval(), 1)

    assert fits() and fits(n_embd=256, n_head=1) and not fits(n_embd=257, n_head=1) and not fits(compute_dtype="float16")
    model = GPT2(tiny_config(n_layer=1), backend="fake").eval()
    with model.hooks({"embed": lambda x, name: None}):
        assert not Stepper.fits(model, 1)
    assert Stepper.fits(model, 1)
    monkeypatch.setattr(HERE, "kernels", {name: f for name, f in HERE.kernels.items() if name != "step_embed"})
    assert not Stepper.fits(model, 1)


def test_a_step_may_be_read_and_then_go_on_by_itself():
    """The host chooses two tokens, and the device those after them, where the text then is; the cache knows how far it was read."""
    model, ids = GPT2(tiny_config(initializer_range=0.3), dtype="float64", seed=2).eval(), [9, 1]
    wanted = model.generate(ids, 8, greedy=True, eos_token_id=None)[0][len(ids):]
    assert len(set(wanted)) == 7                        # so that one in the place of another shows
    cache = KVCache(model.config, 1, 12, dtype="float64")
    with mg.no_grad():
        token = int(model([ids], cache=cache, last=1).numpy()[0, 0].argmax())
    step = Stepper(model, cache, lambda logits, ids, number: gpu_ops.greedy(logits, ids, vocab=model.config.vocab_size))
    assert step.parts.shape == (1, model.config.n_head, gpu_ops.PARTS, model.config.n_embd // model.config.n_head + 2)
    found = [token]
    for n in (1, 2):
        found.append(int(step.read([found[-1]])[0].argmax()))
        assert cache.length == len(ids) + n
    found += [row[0] for batch in step.tokens([found[-1]], 5) for row in batch]
    assert found == wanted and cache.length == len(ids) + 7


@needs_kernels
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 9}, {"top_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.2},
                                     {"greedy": True, "repetition_penalty": 1.5}])
@pytest.mark.parametrize("rows", [[PROMPT], [[5], [6, 7, 8, 9]]])
def test_the_same_draws_give_the_same_tokens(rows: list[list[int]], options: dict[str, Any]):
    """Sampled on the device they are those that NumPy samples, with a wait for the prompt and one for each batch of 1, 2, 4 and 2."""
    model, same = _models()
    with fake_cupy.counting() as counts:
        said = model.generate(rows, 10, seed=3, eos_token_id=None, **options)
    assert said == same.generate(rows, 10, seed=3, eos_token_id=None, **options)
    assert counts.launches["step_choose"] == 9 and counts.replays == 8 and counts.syncs == 1 + 4


@needs_kernels
def test_the_same_draws_in_float64():
    """What is chosen with has the logits' dtype."""
    model, same = (GPT2(tiny_config(initializer_range=0.3), backend=place, dtype="float64", seed=1).eval() for place in ("fake", "numpy"))
    said = [m.generate([PROMPT], 6, seed=3, top_p=0.9, eos_token_id=None) for m in (model, same)]
    assert said[0] == said[1]


@needs_kernels
def test_the_host_may_choose():
    """Where it is to say how likely tokens are: it chooses as ever, and waits for each token."""
    model, same = (GPT2(tiny_config(initializer_range=0.3), backend=place, dtype="float64", seed=1).eval() for place in ("fake", "numpy"))
    with fake_cupy.counting() as counts:
        top = [[step.top[0] for step in decoding.steps(m, [PROMPT], max_new_tokens=4, logprobs=2)] for m in (model, same)]
    assert [[i for i, _ in row] for row in top[0]] == [[i for i, _ in row] for row in top[1]]
    size = np.abs(same([PROMPT]).numpy()).max()
    np.testing.assert_allclose(*([[lp for _, lp in row] for row in rows] for rows in top), rtol=0, atol=bound("float64", 8 * 128, size))
    assert counts.launches["step_qkv"] == 3 * model.config.n_layer and counts.replays == 2


@needs_kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("how", [{"top_p": 0.95}, {"top_k": 9, "temperature": 1.3}, {"min_p": 0.05, "repetition_penalty": 1.2}], ids=str)
def test_draws_in_16_bits_are_those_of_its_logits(dtype: str, how: dict[str, Any]):
    """The step's logits are float32 and NumPy's are rounded to 16 bits, so their tokens may differ; but of its logits the device chooses
    what the host chooses, with the same random numbers."""
    for seed in range(2):
        model = GPT2(tiny_config(initializer_range=0.3), backend="fake", dtype=dtype, seed=seed).eval()
        chosen = [[step.ids for step in decoding.steps(model, [PROMPT], max_new_tokens=10, options=SamplingOptions(**how), seed=seed,
                                                       logprobs=count)] for count in (0, 2)]
        assert chosen[0] == chosen[1]


@needs_kernels
def test_lookup_goes_through_the_model_s_own_pass():
    """A step reads one token, and lookup some: they are guessed on a GPU too."""
    model, same = _models()
    prompt, costs, greedy = [5, 6, 5, 6, 5], [decoding.Timing(), decoding.Timing()], SamplingOptions(greedy=True)
    said = [[step.ids for step in decoding.steps(m, [prompt], max_new_tokens=8, options=greedy, lookup=3, timing=cost)]
            for m, cost in zip((model, same), costs)]
    assert said[0] == said[1] and costs[0].proposed == costs[1].proposed > 0


@pytest.mark.parametrize("place", [pytest.param("fake", marks=needs_kernels), "numpy"])
def test_what_a_run_cost(place: str, monkeypatch: pytest.MonkeyPatch):
    """By a clock that is a second later at each look: one for the prompt, and one for each wait after it, be it of one token or more."""
    model, timing = GPT2(tiny_config(), backend=place).eval(), decoding.Timing()
    looks = itertools.count()
    monkeypatch.setattr(decoding, "time", types.SimpleNamespace(perf_counter=lambda: float(next(looks))))
    assert len(list(decoding.steps(model, [PROMPT], max_new_tokens=8, options=SamplingOptions(greedy=True), timing=timing))) == 8
    waits = 3 if place == "fake" else 7               # of batches of 1, 2 and 4
    assert (timing.prefill, timing.decode, timing.tokens, timing.passes) == (1.0, float(waits), 7, 7)


@needs_kernels
@pytest.mark.parametrize("rows", [[PROMPT], [[5], [6, 7, 8, 9]]])
def test_a_full_context_slides(rows: list[list[int]]):
    """Read again by the model, and then on by steps: the ids are NumPy's."""
    model, same = _models(n_positions=10)
    said = [m.generate(rows, 33, greedy=True, eos_token_id=None, overflow="slide") for m in (model, same)]
    assert said[0] == said[1]


@needs_kernels
def test_one_who_stops_early_gets_what_was_said_until_then():
    """In the middle of a batch; a row that has ended does not hold up the others."""
    model, same = _models()
    said = same.generate(PROMPT, 20, greedy=True, eos_token_id=None)[0]
    for eos in said[len(PROMPT):][1:8:3]:
        assert model.generate(PROMPT, 20, greedy=True, eos_token_id=eos)[0] == same.generate(PROMPT, 20, greedy=True, eos_token_id=eos)[0]
    steps = decoding.steps(model, [PROMPT], max_new_tokens=20, options=SamplingOptions(greedy=True))
    first = [next(steps).ids[0] for _ in range(5)]
    steps.close()
    assert first == said[len(PROMPT):][:5]


@pytest.mark.parametrize("place", [pytest.param("fake", marks=needs_kernels), "numpy"])
@pytest.mark.parametrize("how", [{"greedy": True}, {"seed": 3, "top_p": 0.9}, {"greedy": True, "overflow": "slide"}], ids=str)
def test_a_finished_generation_leaves_nothing(place: str, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """The KV cache, the stepper and its graph are freed at once, without Python's garbage collector."""
    model, kept = GPT2(tiny_config(n_positions=16), backend=place, seed=1).eval(), weakref.WeakSet[Any]()
    for kind in (KVCache, Stepper, Captured):
        def noted(self: Any, *args: Any, init: Any = kind.__init__, **options: Any) -> None:
            kept.add(self)
            init(self, *args, **options)

        monkeypatch.setattr(kind, "__init__", noted)
    gc.collect()
    gc.disable()
    try:
        model.generate([PROMPT], 24 if "overflow" in how else 12, eos_token_id=None, **how)
        left = [type(x).__name__ for x in kept]
    finally:
        gc.enable()
    assert left == []


@needs_kernels
def test_ids_that_do_not_exist_are_not_chosen():
    """A padded embedding has rows beyond the vocabulary."""
    model, same = _models()
    ends = [[s.ids for s in decoding.steps(m, [PROMPT], max_new_tokens=12, options=SamplingOptions(greedy=True), vocab=40)]
            for m in (model, same)]
    assert ends[0] == ends[1] and max(ends[0])[0] < 40


@needs_kernels
@pytest.mark.parametrize("options", [{"greedy": True}, {"top_p": 0.9, "repetition_penalty": 1.2}], ids=["greedy", "sampled"])
def test_on_the_second_device(options: dict[str, Any]):
    """Whatever the current one becomes meanwhile."""
    model, same = _models("fake:1")
    said = []
    for step in decoding.steps(model, [PROMPT], max_new_tokens=9, options=SamplingOptions(**options), seed=3):
        said.append(step.ids[0])
        HERE.use(0)
    HERE.use(0)
    assert said == same.generate(PROMPT, 9, seed=3, eos_token_id=None, **options)[0][len(PROMPT):]


@needs_kernels
def test_a_broken_model_is_noticed():
    """NaN that comes up after some tokens: these are said, and then what is wrong."""
    script = list(range(3, 15))
    model = scripted_model(script, n_positions=len(script), eos_token_id=None)
    wpe = model.wpe.weight.array.copy()
    wpe[7] = np.nan
    broken = GPT2(model.config, backend="fake", parameters={n: p.array for n, p in model.named_parameters()} | {"wpe.weight": wpe})
    said = []
    with pytest.raises(MissingError, match="logits are NaN or infinite"):
        for step in decoding.steps(broken, [[1]], max_new_tokens=12, options=SamplingOptions(greedy=True)):
            said.append(step.ids[0])
    assert said == script[:7]


def _per_logit(model: GPT2, ids: list[int], at: int) -> float:
    """Σ |∂ logit/∂ c| |c| over the keys and values c of all layers: what a relative error of 1 in each of them can do to a logit."""
    d, real = model.config.n_embd, [block.attn.c_attn for block in model.h]

    class Shifted:
        def __init__(self, inner: Any) -> None:
            self.inner, self.shift = inner, mg.tensor(np.zeros((1, len(ids), 3 * d)), requires_grad=True)

        def __call__(self, x: Any) -> Any:
            self.out = self.inner(x)
            return self.out + self.shift

    shifted = [Shifted(c) for c in real]
    try:
        for block, s in zip(model.h, shifted):
            object.__setattr__(block.attn, "c_attn", s)
        logit = model([ids], last=1)[0, 0, at]
        grads = mg.gradients(logit, [s.shift for s in shifted])
    finally:
        for block, c in zip(model.h, real):
            object.__setattr__(block.attn, "c_attn", c)
    return sum(float((np.abs(g.numpy()) * np.abs(s.out.numpy()))[..., d:].sum()) for g, s in zip(grads, shifted))


@needs_kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits(dtype: str):
    """With weights of 16 bits nothing but the cache is rounded to 16 bits: logits are the exact ones to that, and to float32's error."""
    exact = GPT2(tiny_config(initializer_range=0.1), dtype="float64", seed=2)
    weights = {n: p.array.astype(dtype) for n, p in exact.named_parameters()}
    exact = GPT2(exact.config, dtype="float64", parameters={n: w.astype(np.float64) for n, w in weights.items()})
    model, ids = GPT2(exact.config, backend="fake", dtype=dtype, parameters=weights), [5, 9, 200, 31, 7]
    step = Stepper(model, KVCache(model.config, 1, 8, device="fake", dtype=dtype))
    for token in ids:
        found = step.read([token])
    with mg.no_grad():
        wanted = exact([ids], last=1).numpy()[0, 0]
    assert found.dtype == np.float32
    for at in (0, 31, 299):
        # to first order; the rest is smaller by another factor of UNIT, and twice is more than that
        allowed = 2.0 * UNIT[dtype] * _per_logit(exact, ids, at) + bound("float32", 8 * 128, magnitude(wanted))
        assert abs(found[0, at] - wanted[at]) <= allowed
    said = model.generate(ids, 8, greedy=True, eos_token_id=None)[0]
    assert len(said) == len(ids) + 8 and said[:len(ids)] == ids


def test_a_capture_refuses_what_a_gpu_refuses():
    """Waits, uploads, products by cuBLAS, and memory that nobody keeps."""
    x = HERE.array(np.ones((2, 2), np.float32))
    for what, f in {"syncs": lambda: HERE.host(x), "uploads": lambda: HERE.array([1.0]), "cuBLAS": lambda: HERE.matmul(x, x),
                    "none of ours": lambda: x + x}.items():
        g = HERE.captured(f)
        g()
        with pytest.raises(RuntimeError, match=f"{what}.* while a stream is captured"):
            g()
    with pytest.raises(RuntimeError, match="memory that the graph does not keep"):
        stream = HERE.namespace.cuda.Stream(non_blocking=True)
        stream.begin_capture()
        try:
            HERE.empty(3)
        finally:
            stream.end_capture()


@given(n=st.integers(1, 100))
@example(n=AHEAD)
@needs_kernels
def test_batches_keep_every_token(n: int):
    """Whatever their number, and wherever the ring of tokens begins."""
    step = object.__new__(Stepper)
    step.there, step.read_so_far = mg.backend.get("numpy"), 0
    step.ids, state = np.zeros((1 + AHEAD, 1), np.int64), [0]

    class Cache:
        length = 0

        def advance(self, tokens: int) -> None:
            self.length += tokens

    def next_token() -> None:
        step.ids[1 + state[0] % AHEAD] = step.ids[0]
        state[0] += 1
        step.ids[0] += 1

    step.next, step.cache = next_token, Cache()  # type: ignore[assignment]
    batches = list(step.tokens([0], n))
    assert [row[0] for batch in batches for row in batch] == list(range(1, n + 1)) and step.cache.length == n
    assert [len(b) for b in batches][:3] == [1, 2, 4][:len(batches)] or n < 7


@needs_kernels
def test_token_0_is_a_token():
    """Logits that are not finite are told by −1 in the place of a token; 0 is the first one of the vocabulary."""
    source = scripted_model([0, 3, 0, 0, 2])
    parameters = {name: p.array for name, p in source.named_parameters()}
    model = GPT2(source.config, backend="fake", parameters=parameters).eval()
    assert Stepper.fits(model, 1)
    assert model.generate([[5]], max_new_tokens=5, greedy=True, eos_token_id=None) == [[5, 0, 3, 0, 0, 2]]
