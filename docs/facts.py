"""Sentences of the pages with the numbers, names and defaults that the code has: each has to stand on its page as it is made here."""
from __future__ import annotations

import functools
import inspect
import math
import re
import signal
from collections.abc import Iterator

import numpy as np

from .commands import default
from .pages import ROOT

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
        "nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def word(n: int) -> str:
    """A whole number below 100 in letters."""
    return ONES[n] if n < 20 else TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")


def of(page: str) -> list[str]:
    """What a page has to say, such as docs/softmax.md."""
    return everything().get(page, [])


@functools.cache
def everything() -> dict[str, list[str]]:
    """By page."""
    found: dict[str, list[str]] = {}
    for part in (laws, errors, floats, settings, sizes, operations, exit_codes, suite):
        for page, sentence in part():
            found.setdefault(page, []).append(sentence)
    return found


def first_sentence(doc: str | None) -> str:
    """The first paragraph of a docstring in one line, as a cell of a table has it: in small letters, without the full stop."""
    line = " ".join((doc or "").split("\n\n")[0].split()).removesuffix(".")
    return line if line[1:2].isupper() or line.startswith(("PyTorch", "VJP", "J")) else line[:1].lower() + line[1:]


# ── minigrad ──
def laws() -> Iterator[tuple[str, str]]:
    """How many there are, and what each says."""
    from minigrad.testing.laws.check import check
    from minigrad.testing.laws.laws import LAWS

    n = len(LAWS)
    yield "README.md", f"[{word(n)} laws](docs/testing.md)"
    yield "docs/adding-an-op.md", f"{word(n - 1).capitalize()} of the {word(n)}, in two dtypes"
    for name, f in LAWS.items():
        yield "docs/testing.md", f"| `{name}` | {first_sentence(f.__doc__)} |"
    examples = inspect.signature(check).parameters["examples"].default
    yield "docs/testing.md", f"Each law is tried on {'a hundred' if examples == 100 else examples} examples"


def errors() -> Iterator[tuple[str, str]]:
    """What else each type of error is."""
    from minigrad import errors as e

    def also(kind: type) -> str:
        return next(b.__name__ for b in kind.__mro__ if b.__module__ == "builtins" and b is not Exception)

    yield "docs/tensors.md", (
        f"`except {also(e.ShapeError)}` catches a `ShapeError`: `DTypeError` is a `{also(e.DTypeError)}`; `DeviceError`, `GraphError` and "
        f"`BackendUnavailable` are `{also(e.DeviceError)}`s, `OutOfMemoryError` is a `{also(e.OutOfMemoryError)}`")
    assert also(e.DeviceError) == also(e.GraphError) == also(e.BackendUnavailable)


def floats() -> Iterator[tuple[str, str]]:
    """The formats of numbers."""
    for name in ("float64", "float32", "float16"):
        f = np.finfo(name)
        digits, _, power = f"{f.max:.1e}".partition("e+")
        largest = str(int(f.max)) if name == "float16" else rf"${digits} \cdot 10^{{{int(power)}}}$"
        yield "docs/notation.md", f"| `{name}` | {f.nmant} | $2^{{{int(np.log2(f.eps))}}}$ | {largest} |"
    u = ", ".join(f"$2^{{{int(np.log2(np.finfo(name).eps)) - 1}}}$ in {name}" for name in ("float64", "float32", "float16"))
    yield "docs/numerics.md", f"from 1 to the next number of the dtype: {u}, $2^{{-8}}$ in bfloat16"
    yield "docs/softmax.md", f"float32 overflows at $e^{{{math.log(np.finfo('float32').max):.0f}}}$"
    yield "docs/numerics.md", f"float32 ends at $e^{{{math.log(np.finfo('float32').max):.1f}}}$"
    yield "docs/causal-mask.md", f"is not a float16: the largest float16 is {int(np.finfo('float16').max)}"
    yield "docs/mixed-precision.md", f"float16 ends at {int(np.finfo('float16').max)}"


def settings() -> Iterator[tuple[str, str]]:
    """What is so where nobody says otherwise."""
    from gpt2.config import GPT2Config
    from gpt2.decoding.prompt_lookup import LONGEST
    from gpt2.decoding.sampling import BLOCK
    from gpt2.verify.port import ALLOWED
    from minigrad.backend.numpy.sizes import SIZES
    from minigrad.distributed import BUCKET
    from minigrad.optim import GradScaler
    from minigrad.testing.laws.tolerance import ROUNDINGS
    from minigrad.testing.program import Program

    scaler, config = GradScaler(), GPT2Config()
    yield "docs/mixed-precision.md", f"$S$ begins at $2^{{{int(math.log2(scaler.factor))}}}$"
    yield "docs/mixed-precision.md", rf"2S & \text{{{scaler.growth_interval} good steps on end,}}"
    yield "docs/kv-cache.md", f"`--overflow {default('gpt2.generate', '--overflow')}`, the default,"
    yield "docs/gpu.md", f"`--backend {default('gpt2.generate', '--backend')}` (the default)"
    yield "docs/any-language.md", f"`--timeout` seconds ({inspect.signature(Program).parameters['timeout'].default:g})"
    yield "docs/data-parallel.md", f"Buckets here are of {BUCKET >> 20} MiB"
    yield "docs/sampling.md", f"`_drawn` adds up blocks of {BLOCK} first"
    yield "docs/sampling.md", f"takes the highest logit of each block of {BLOCK}"
    yield "docs/sampling.md", f"let the last {word(LONGEST)} of them (else two, else one)"
    yield "docs/porting.md", f"units, where {ALLOWED:g} are allowed"
    yield "docs/porting.md", f"round {ALLOWED:g} times as badly"
    yield "docs/numerics.md", f"$k$ is {ROUNDINGS} for each derivative taken"
    yield "docs/numerics.md", f"large float32 products are cut into chunks of {SIZES.chunk} here"
    yield "docs/layer-norm.md", rf"$\varepsilon = 10^{{{int(math.log10(config.layer_norm_epsilon))}}}$ is inside the root"
    yield "docs/block.md", f"with probability $p$ ({config.resid_pdrop} in GPT-2)"


# ── GPT-2 ──
def sizes() -> Iterator[tuple[str, str]]:
    """Parameters, points and bytes of the published sizes, and of the model that ships."""
    from gpt2.config import PUBLISHED, GPT2Config, num_parameters, parameter_shapes
    from gpt2.experiments import NAMES
    from gpt2.hooks import BLOCK, EQUATIONS
    from gpt2.verify.mistakes.adamw import STEPS
    from gpt2.verify.mistakes.any_step import GENERAL
    from gpt2.verify.mistakes.any_step_backward import GENERAL_BACK
    from gpt2.verify.mistakes.backward import BACKWARD
    from gpt2.verify.mistakes.forward import FORWARD
    from gpt2.weights.locate import locate

    config = [GPT2Config.from_name(name) for name in PUBLISHED]
    small, N = config[0], num_parameters(config[0])
    d, n, h, L, V, T = small.n_embd, 4 * small.n_embd, small.n_head, small.n_layer, small.vocab_size, small.n_positions
    yield "docs/gpt2.md", "| name | " + " | ".join(f"`{name}`" for name in PUBLISHED) + " |"
    yield "docs/gpt2.md", "| $L$ / $h$ / $d$ | " + " | ".join(f"{c.n_layer} / {c.n_head} / {c.n_embd}" for c in config) + " |"
    yield "docs/gpt2.md", "| parameters | " + " | ".join(f"{num_parameters(c):,}" for c in config) + " |"
    yield "docs/gpt2.md", rf"$V = {V}$ and $T_{{\max}} = {T}$ in all of them, and every head has $d/h = {d // h}$ numbers"
    assert all((c.vocab_size, c.n_positions, c.n_embd // c.n_head) == (V, T, d // h) for c in config)
    norms = [100 * (2 * c.n_layer + 1) * 2 * c.n_embd / num_parameters(c) for c in config]
    yield "docs/gpt2.md", f"it is {norms[0]:.3f} % in small and {norms[-1]:.3f} % in xl"
    yield "docs/gpt2.md", rf"more than $\ln V = {math.log(V):.2f}$"
    yield "docs/notation.md", f"| $d$ | width: numbers that stand for one token | {d} |"
    yield "docs/notation.md", f"| $h$ | heads; each has $d/h$ numbers of a token | {h} |"
    yield "docs/notation.md", f"| $n$ | width of the MLP's hidden layer; on pages about one op, the length of a row | {n} |"
    yield "docs/notation.md", f"| $V$ | vocabulary: different tokens | {V} |"
    yield "docs/notation.md", f"| $L$ | layers; where there is a derivative, the loss | {L} |"
    yield "docs/reverse-mode.md", f"$n = {N:,}$".replace(",", "{,}")
    yield "docs/gpu.md", f"{len(parameter_shapes(small))} parameters would be {len(parameter_shapes(small))} launches"
    yield "docs/performance.md", f"GPT-2 small has {L * len(BLOCK) + len(EQUATIONS) - len(BLOCK)} points"
    yield "docs/kv-cache.md", f"One row of {T:,} tokens is {2 * L * d * T * 4 / 1e6:.0f} MB beside {4 * N / 1e6:.0f} MB of weights"
    yield "docs/gpt2.md", f"$2Ld$ numbers, {2 * L * d * 4:,} bytes a token of small"
    yield "docs/embedding.md", f"{2 * V * d / 1e6:.0f} million, to copy {d} numbers"
    yield "docs/attention.md", rf"$3 \cdot {h} \cdot {T}^2$ numbers a layer, {3 * h * T * T * 4 * L / 1e9:.1f} GB for the model"
    yield "docs/data-parallel.md", (f"For the 124M, $b$ is {4 * N / 1e6:.0f} MB in float32; at $n = 2$ each rank sends as many bytes "
                                    f"in each step, and at $n = 8$ {2 * 7 / 8 * 4 * N / 1e6:.0f} MB")
    yield "docs/matmul.md", f"weights of a block are $[{d}, {3 * d}]$, $[{d}, {d}]$, $[{d}, {n}]$ and $[{n}, {d}]$"
    kept = 4 * (8 * d + 2 * n + h + 4)
    yield "docs/performance.md", f"for the 124M {kept / 1e3:.0f} kB a token and block, {kept * L / 1e3:.0f} kB a token in all"
    yield "docs/performance.md", f"{4 * 4 * N / 1e9:.2f} GB of ours are parameters, gradients and AdamW's two moments"
    yield "docs/layer-norm.md", rf"$y$ is too small by $\sqrt{{1 - 1/d}}$: {100 * (1 - math.sqrt(1 - 1 / d)):.2f} % for $d = {d}$"
    yield "README.md", f"measures {word(len(NAMES))} claims about GPT-2"
    yield "docs/porting.md", f"some {word(round((len(FORWARD) + len(BACKWARD) + len(STEPS)) / 100))} hundred mistakes, in batches"
    yield "docs/porting.md", f"none does, some {round(len(GENERAL) + len(GENERAL_BACK), -2):,} more general ones are tried"
    shipped = GPT2Config.from_file(locate("shakespeare") / "config.json")
    heads = word(shipped.n_layer * shipped.n_head)
    yield "README.md", f"![Where each of the {heads} heads of the Shakespeare model looks]"
    yield "README.md", f"The {heads} heads of the model that ships"
    before = 2 + list(BLOCK).index("mlp.act")
    yield "docs/porting.md", f"all {before} before it agree, up to blocks.0.mlp.pre"
    yield "docs/porting.md", (f"{shipped.n_layer * len(BLOCK) + len(EQUATIONS) - len(BLOCK) + 1} tensors compared, "
                              f"{before} agree")
    B, T, d, h = 1, 6, shipped.n_embd, shipped.n_head
    for name, shape in (("embed", [B, T, d]), ("pos_embed", [T, d]), ("resid_pre", [B, T, d]), ("ln_1.out", [B, T, d]),
                        ("attn.q", [B, h, T, d // h])):
        yield "docs/porting.md", f"{name if 'embed' in name else f'blocks.0.{name}'} {EQUATIONS[name]} {shape}"


def operations() -> Iterator[tuple[str, str]]:
    """Multiplications and additions of a training step of the 124M, and the launches of a token."""
    from gpt2.config import GPT2Config

    c = GPT2Config()
    d, L, V = c.n_embd, c.n_layer, c.vocab_size
    blocks, head = 12 * L * d * d, V * d
    yield "docs/performance.md", f"blocks 3 · 2 · n · {blocks / 1e6:.1f} M"
    yield "docs/performance.md", f"classifier 3 · 2 · n · {head / 1e6:.1f} M"

    def step(B: int, T: int) -> float:
        n = B * T
        return 6 * n * (blocks + head) + 6 * n * L * d * T

    few, many = (float(f"{step(4, T) / 1e9:.2g}") for T in (64, 256))
    yield "docs/performance.md", f"That is {few:.0f} GFLOP for B4 T64 and {many:.0f} for B4 T256"
    for name, layers in (("124M", 12), ("1.5B", 48)):
        yield "docs/performance.md", f"| {name} | {5 * layers + 3} |"
    yield "docs/performance.md", "`5 L + 3` launches a token"


# ── commands ──
def exit_codes() -> Iterator[tuple[str, str]]:
    """What commands end with."""
    from gpt2.errors import DifferentError, MissingError, UsageError
    from gpt2.verify.__main__ import AGREES, DIFFERS
    from minigrad.errors import BackendUnavailable
    from minigrad.testing.foreign import BROKEN, CANNOT_RUN, HELD, TRIES

    usage, missing, unavailable = UsageError.exit_code, MissingError.exit_code, BackendUnavailable.exit_code
    interrupted, ended = 128 + signal.SIGINT, 128 + signal.SIGTERM
    yield "README.md", (f"The exit code is {usage} for a wrong flag or value, {missing} for missing or broken weights or data, "
                        f"{unavailable} for a backend that is not there, {DifferentError.exit_code} for numbers that `--check` finds "
                        f"wrong, and {interrupted} on Ctrl-C.")
    yield "docs/gpu.md", f"with exit code {DifferentError.exit_code} if they differ by more"
    yield "docs/tensors.md", f"(`BackendUnavailable`, exit code {unavailable} of the commands)"
    yield "docs/gpu.md", f"one line says what is missing and what to do, with exit code {unavailable}"
    yield "docs/sampling.md", f"that ends the run with one line and exit code {missing}"
    yield "docs/training.md", f"write a checkpoint and exit with {interrupted} or {ended}"
    yield "benchmarks/README.md", f"prints and writes what there is and exits with {interrupted}"
    yield "docs/porting.md", f"The exit code is {AGREES} where all agree and {DIFFERS} where something does not."
    yield "docs/porting.md", (f"the exit code is {AGREES} where all that ran agree, {DIFFERS} where one does not, and {missing} where "
                              "nothing could be run")
    yield "docs/any-language.md", f"| {HELD} | all laws hold | | {BROKEN} | a law is broken,"
    yield "docs/any-language.md", f"| {usage} | the flags are wrong |"
    yield "docs/any-language.md", (f"| {CANNOT_RUN} | the program cannot be run: it does not start, or has answered none of the first "
                                   f"{word(TRIES)} examples")


# ── the suite ──
def suite() -> Iterator[tuple[str, str]]:
    """How hard the tests search."""
    told = dict(re.findall(r'register_profile\("(\w+)", max_examples=(\d+)', (ROOT / "tests" / "conftest.py").read_text("utf-8")))
    yield "CONTRIBUTING.md", f"| `HYPOTHESIS_PROFILE=quick pytest` (the default) | {told['quick']} examples a property |"
    yield "CONTRIBUTING.md", f"| `HYPOTHESIS_PROFILE=ci pytest` | {told['ci']}, the same ones each time |"
    yield "CONTRIBUTING.md", f"| `HYPOTHESIS_PROFILE=thorough pytest tests/minigrad/test_laws.py` | {int(told['thorough']):,} |"
    yield "CONTRIBUTING.md", f"| `HYPOTHESIS_PROFILE=kernels pytest -m kernels` | {told['kernels']} shapes a CUDA kernel, on a CPU |"
    python = re.findall(r'python_requires=">=([\d.]+)"', (ROOT / "setup.py").read_text("utf-8"))
    for page in ("README.md", "CONTRIBUTING.md"):
        yield page, f"Python {python[0]} or later"
