"""Wrong functions whose formulas are right: layout, writes, shared buffers, caches and state."""
from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import minigrad as mg
from minigrad.testing import arrays, shapes

from .entry import wrong
from .pieces import softmax, softmax_vjp

ROWS = shapes(least=1, side=1)


# ── memory that is read as if it lay in C order ──
@wrong("vllm-project/vllm#3324")
def tanh_of_the_buffer(check):
    """The value reads the memory in its own order, as if this were C order."""
    def tanh(x):
        return np.tanh(np.frombuffer(x.tobytes(order="A"), x.dtype).reshape(x.shape))

    check(tanh, arrays(), vjp=lambda g, x: g * (1 - tanh(x) ** 2))


@wrong("NVIDIA/TransformerEngine#1017")
def silu_raveled(check):
    """Both passes work on ravel(order="K"), but write the result in C order."""
    def silu(x):
        t = x.ravel(order="K")
        return (t / (1 + np.exp(-t))).reshape(x.shape)

    def silu_vjp(g, x):
        t = x.ravel(order="K")
        s = 1 / (1 + np.exp(-t))
        return (g.reshape(-1) * (s + t * s * (1 - s))).reshape(x.shape)

    check(silu, arrays(), vjp=silu_vjp)


@wrong("rahul-goel/fused-ssim#44")
def exp_into_zeros_like(check):
    """The output has the strides of the input, and is written through a flat copy."""
    def exp(x):
        out = np.zeros_like(x)
        out.reshape(-1)[...] = np.exp(x.reshape(-1))
        return out

    check(exp, arrays(), vjp=lambda g, x: g * np.exp(x))


@wrong("traveller59/spconv#469")
def row_sums_of_the_fastest_axis(check):
    """The axis whose numbers are contiguous is assumed to be the last one."""
    def axis(x):
        return int(np.argmin(np.abs(x.strides))) if x.ndim else None

    check(lambda x: x.sum(axis(x)), arrays((6, 6)),
          vjp=lambda g, x: np.broadcast_to(np.expand_dims(g, axis(x)), x.shape).copy())


@wrong("ROCm/aiter#5292")
def matmul_without_the_stride_of_b(check):
    """The second matrix is read as if its rows were contiguous, whatever its strides are."""
    def dense(b):
        return b.ravel(order="K").reshape(b.shape)

    check(lambda a, b: a @ dense(b), arrays((3, 4)), arrays((4, 5)),
          vjp=lambda g, a, b: (g @ dense(b).T, a.T @ g))


@wrong("iree-org/iree-turbine#635")
def cotangent_in_memory_order(check):
    """The forward pass uses the strides; the backward pass reads the cotangent as if in C order."""
    def vjp(g, x):
        return np.asarray(g).ravel(order="K").reshape(x.shape) * np.cos(x)

    check(np.sin, arrays(), vjp=vjp)


@wrong("zsef123/Connected_components_PyTorch#7")
def square_of_the_storage(check):
    """A slice is read from the beginning of the array that it is a part of."""
    def storage(x):
        base = x.base if isinstance(x.base, np.ndarray) and x.base.size >= x.size else x
        return base.ravel(order="K")[:x.size].reshape(x.shape)

    check(lambda x: storage(x) ** 2, arrays(), vjp=lambda g, x: 2 * g * storage(x))


@wrong()
def tanh_without_the_sign_of_strides(check):
    """An axis that runs backwards in memory is read forwards."""
    def forwards(x):
        return x[tuple(slice(None, None, -1 if s < 0 else 1) for s in x.strides)]

    check(lambda x: np.tanh(forwards(x)), arrays(),
          vjp=lambda g, x: g * (1 - np.tanh(forwards(x)) ** 2))


# ── memory that is not the kernel's to write ──
@wrong("tinygrad/tinygrad#16497")
def relu_in_place(check):
    """The value overwrites the argument."""
    def relu(x):
        np.maximum(x, 0, out=x)
        return x

    check(relu, arrays(avoid=[0.0]), vjp=lambda g, x: g * (x > 0))


@wrong("riga/tfdeploy#8")
def square_scales_the_cotangent(check):
    """The VJP multiplies the cotangent in place and returns it."""
    def vjp(g, x):
        g *= 2 * x
        return g

    check(np.square, arrays(), vjp=vjp)


@wrong()
def softmax_shifts_its_argument(check):
    """The maximum is subtracted in place; the value is right nevertheless."""
    def in_place(x):
        x -= x.max(-1, keepdims=True)
        e = np.exp(x)
        return e / e.sum(-1, keepdims=True)

    check(in_place, arrays(ROWS), vjp=softmax_vjp)


@wrong("ml-struct-bio/cryodrgn#226")
def norm_that_puts_the_mean_back(check):
    """The argument is centred in place and restored afterwards, except for its last bits."""
    def parts(x):
        mean = x.mean(-1, keepdims=True)
        x -= mean
        r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        n = x * r
        x += mean
        return n, r

    def vjp(g, x):
        n, r = parts(x)
        return r * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))

    check(lambda x: parts(x)[0], arrays((4, 16)), vjp=vjp)


@wrong()
def embedding_mends_its_ids(check):
    """Negative ids are replaced in the caller's array."""
    def forward(w, ids):
        ids[ids < 0] += len(w)
        return w[ids]

    def vjp(g, w, ids):
        d = np.zeros_like(w)
        np.add.at(d, ids, g)
        return d

    check(forward, arrays((5, 3)), vjp=vjp, ids=np.array([1, -1, 0, -2]))


@wrong()
def maximum_that_sorts(check):
    """The argument is sorted in place to find its maximum."""
    def largest(x):
        x.sort(axis=-1)
        return x[..., -1].copy()

    def vjp(g, x):
        return np.where(x == x.max(-1, keepdims=True), g[..., None], 0)

    check(largest, arrays(ROWS, kind="spread"), vjp=vjp)


@wrong()
def cube_doubles_its_argument(check):
    """The VJP overwrites its argument."""
    def vjp(g, x):
        np.multiply(x, x, out=x)
        return 3 * g * x

    check(lambda x: x ** 3, arrays((3, 4)), vjp=vjp)


# ── buffers ──
@wrong("NVIDIA/earth2studio#1133")
def sine_in_one_buffer(check):
    """Every call of the VJP returns the same memory, so an older gradient changes."""
    buffers = {}

    def vjp(g, x):
        out = buffers.setdefault((x.shape, x.dtype), np.empty(x.shape, x.dtype))
        return np.multiply(g, np.cos(x), out=out)

    check(np.sin, arrays(), vjp=vjp)


@wrong("microsoft/onnxruntime#7079")
def value_and_gradient_in_one_buffer(check):
    """The result of the VJP overwrites the value that was returned before."""
    buffers = {}

    def buffer(x):
        return buffers.setdefault((x.shape, x.dtype), np.empty(x.shape, x.dtype))

    check(lambda x: np.exp(x, out=buffer(x)), arrays(),
          vjp=lambda g, x: np.multiply(g, np.exp(x), out=buffer(x)))


@wrong()
def both_gradients_in_one_buffer(check):
    """The second gradient of a product overwrites the first."""
    def vjp(g, x, y):
        out = np.empty(x.shape, x.dtype)
        return np.multiply(g, y, out=out), np.multiply(g, x, out=out)

    check(np.multiply, arrays((3, 4)), arrays((3, 4)), vjp=vjp)


@wrong("karpathy/micrograd#102")
def gradient_that_adds_up(check):
    """A gradient is added to those of earlier calls with the same shape."""
    sums = {}

    def vjp(g, x):
        key = x.shape, x.dtype
        sums[key] = sums.get(key, 0) + g * (1 - np.tanh(x) ** 2)
        return sums[key]

    check(np.tanh, arrays(), vjp=vjp)


# ── what was remembered from another call ──
@wrong("tenstorrent/tt-metal#20031")
def tanh_cached_by_shape(check):
    """Values are cached by shape and dtype only."""
    seen = {}

    def tanh(x):
        return seen.setdefault((x.shape, x.dtype), np.tanh(x))

    check(tanh, arrays(), vjp=lambda g, x: g * (1 - np.tanh(x) ** 2))


@wrong()
def softmax_cached_by_id(check):
    """Values are cached by the id of the array, even if its numbers have changed."""
    seen = {}

    def cached(x):
        if id(x) not in seen:
            seen[id(x)] = softmax(x)
        return seen[id(x)]

    check(cached, arrays((3, 5)), vjp=softmax_vjp)


@wrong("tenstorrent/tt-metal#54138")
def softmax_compiled_for_one_axis(check):
    """A program is compiled for each shape, and keeps the axis of its first call."""
    programs = {}

    def program(x, axis):
        return programs.setdefault(x.shape, axis)

    check(lambda x, axis: softmax(x, program(x, axis)), arrays((4, 4)),
          axis=st.sampled_from([0, 1]),
          vjp=lambda g, x, axis: softmax_vjp(g, x, program(x, axis)), definition=mg.softmax)


@wrong("tenstorrent/tt-metal#55167")
def mean_with_the_first_length(check):
    """1/n is computed only once, at the first call."""
    first = []

    def n(x):
        first.append(x.shape[-1])
        return first[0]

    check(lambda x: x.sum(-1) / n(x), arrays(ROWS), definition=lambda x: mg.mean(x, axis=-1),
          vjp=lambda g, x: np.repeat(g[..., None], x.shape[-1], -1) / n(x))


@wrong("NVIDIA/warp#1350")
def sigmoid_with_the_last_activation(check):
    """The VJP uses the activation of the last forward call instead of its argument."""
    saved = {}

    def sigmoid(x):
        saved["y"] = 1 / (1 + np.exp(-x))
        return saved["y"]

    def vjp(g, x):
        y = saved.get("y", x)
        y = y if y.shape == x.shape and y.dtype == x.dtype else sigmoid(x)
        return g * y * (1 - y)

    check(sigmoid, arrays(), vjp=vjp)


@wrong()
def linear_with_the_last_input(check):
    """The gradient of the weights uses the input of the last forward call."""
    saved = []

    def forward(x, w):
        saved.append(x)
        return x @ w

    check(forward, arrays((4, 3)), arrays((3, 2)),
          vjp=lambda g, x, w: (g @ w.T, (saved[-1] if saved else x).T @ g))


@wrong()
def positions_of_the_first_dtype(check):
    """A table is made once, in the dtype of the first call."""
    tables = {}

    def table(x):
        made = np.cos(np.arange(x.size)).reshape(x.shape).astype(x.dtype)
        return tables.setdefault(x.shape, made)

    check(lambda x: x * table(x), arrays((3, 4)), vjp=lambda g, x: g * table(x))


# ── state ──
@wrong()
def dropout_left_on(check):
    """A new mask is drawn at each call, so that value and gradient have different masks."""
    rng = np.random.default_rng(0)

    def kept(x):
        return ((rng.random(x.shape) > 0.1) / 0.9).astype(x.dtype)

    check(lambda x: x * kept(x), arrays((8, 8)), vjp=lambda g, x: g * kept(x))


@wrong("SauersML/gam#2535")
def sum_in_any_order(check):
    """Numbers are added in another order at each call, so two calls differ in the last bits."""
    rng = np.random.default_rng(0)

    def total(x):
        return np.add.accumulate(rng.permutation(x.ravel()))[-1]

    check(total, arrays((10, 10)), vjp=lambda g, x: np.full(x.shape, g, x.dtype))


@wrong()
def first_call_is_empty(check):
    """The first call with a shape returns the zeros with which the kernel was tuned."""
    tuned = set()

    def exp(x):
        if x.shape in tuned:
            return np.exp(x)
        tuned.add(x.shape)
        return np.zeros_like(x)

    check(exp, arrays(), vjp=lambda g, x: g * np.exp(x))


@wrong()
def every_tenth_call(check):
    """One call in ten leaves out the last number."""
    calls = []

    def sine(x):
        calls.append(x)
        out = np.sin(x)
        if len(calls) % 10 == 0 and out.size:
            out[(-1,) * out.ndim] = 0
        return out

    check(sine, arrays((3, 4)), vjp=lambda g, x: g * np.cos(x))
