"""Wrong products, gathers, rearrangements and convolutions."""
from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.testing import arrays, shapes

from .entry import wrong


# ── products ──
@wrong()
def matmul_with_gradients_swapped(check):
    """The two gradients are in the wrong order; for square matrices the shapes are still right."""
    check(np.matmul, arrays((4, 4)), arrays((4, 4)), vjp=lambda g, a, b: (a.T @ g, g @ b.T))


@wrong()
def matmul_with_b_not_transposed(check):
    """The gradient of a is g b instead of g bᵀ."""
    check(np.matmul, arrays((3, 4)), arrays((4, 4)), vjp=lambda g, a, b: (g @ b, a.T @ g))


@wrong("halide/Halide#656")
def matmul_without_the_tail(check):
    """From an inner size of 32 on, sums go in steps of 16, and the remaining terms are left out."""
    def product(a, b):
        k = a.shape[1] if a.shape[1] < 32 else a.shape[1] // 16 * 16
        return a[:, :k] @ b[:k]

    check(product, arrays((5, 70)), arrays((70, 3)), vjp=lambda g, a, b: (g @ b.T, a.T @ g))


@wrong()
def matmul_of_whole_row_blocks(check):
    """Rows past a multiple of 8 are zeros, both in the value and in the gradient."""
    def whole(a):
        return len(a) // 8 * 8

    def product(a, b):
        out = np.zeros((len(a), b.shape[1]), a.dtype)
        out[:whole(a)] = a[:whole(a)] @ b
        return out

    def vjp(g, a, b):
        da, n = np.zeros_like(a), whole(a)
        da[:n] = g[:n] @ b.T
        return da, a[:n].T @ g[:n]

    check(product, arrays((20, 6)), arrays((6, 3)), vjp=vjp, definition=mg.matmul)


@wrong()
def matmul_in_float32(check):
    """A product of float64 numbers is computed in float32."""
    def product(a, b):
        return (a.astype(np.float32) @ b.astype(np.float32)).astype(a.dtype)

    check(product, arrays((6, 8)), arrays((8, 5)),
          vjp=lambda g, a, b: (product(g, b.T), product(a.T, g)))


@wrong()
def batched_matmul_with_one_gradient(check):
    """The gradient of the matrix that all batches share is that of the last batch."""
    check(lambda a, b: a @ b, arrays((3, 2, 4)), arrays((4, 5)),
          vjp=lambda g, a, b: (g @ b.T, a[-1].T @ g[-1]))


@wrong()
def square_of_a_matrix_once(check):
    """A A is differentiated as if the second A were a constant."""
    check(lambda a: a @ a, arrays((4, 4)), vjp=lambda g, a: g @ a.T)


@wrong()
def gram_of_a_symmetric_cotangent(check):
    """The gradient of A Aᵀ is 2 g A, which is right only if g is symmetric."""
    check(lambda a: a @ a.T, arrays((3, 5)), vjp=lambda g, a: 2 * g @ a)


@wrong()
def quadratic_form_of_a_symmetric_matrix(check):
    """The gradient of xᵀ A x is 2 A x, which is right only if A is symmetric."""
    check(lambda x, a: x @ a @ x, arrays((4,)), arrays((4, 4)),
          vjp=lambda g, x, a: (2 * g * a @ x, g * np.outer(x, x)))


@wrong()
def outer_transposed(check):
    """The gradients of x yᵀ are computed from the transposed cotangent."""
    check(np.outer, arrays((5,)), arrays((5,)), vjp=lambda g, x, y: (g.T @ y, g @ x))


@wrong()
def bilinear_with_one_argument_too_few(check):
    """The gradient of the matrix does not use the cotangent."""
    check(lambda x, a, y: ((x @ a) * y).sum(-1), arrays((5, 3)), arrays((3, 4)), arrays((5, 4)),
          vjp=lambda g, x, a, y: (g[:, None] * (y @ a.T), x.T @ y, g[:, None] * (x @ a)))


@wrong()
def linear_with_bias_in_two_axes(check):
    """The gradient of the bias keeps the axis over which it was summed."""
    check(lambda x, w, b: x @ w + b, arrays((4, 3)), arrays((3, 2)), arrays((2,)),
          vjp=lambda g, x, w, b: (g @ w.T, x.T @ g, g.sum(0, keepdims=True)))


@wrong()
def linear_with_the_weight_transposed(check):
    """The gradient of a square weight matrix is transposed."""
    check(lambda x, w: x @ w, arrays((5, 3)), arrays((3, 3)),
          vjp=lambda g, x, w: (g @ w.T, g.T @ x))


@wrong()
def linear_that_forgets_its_bias(check):
    """With one row the bias is not added, but its gradient is right."""
    def linear(x, w, b):
        return x @ w if len(x) == 1 else x @ w + b

    check(linear, arrays((1, 4)), arrays((4, 3)), arrays((3,)),
          definition=lambda x, w, b: x @ w + b,
          vjp=lambda g, x, w, b: (g @ w.T, x.T @ g, g.sum(0)))


@wrong()
def trace_of_ones(check):
    """The gradient of a trace is 1 everywhere."""
    check(np.trace, arrays((4, 4)), vjp=lambda g, a: np.full(a.shape, g, a.dtype))


# ── gathers ──
@wrong("tenstorrent/tt-metal#6232")
def embedding_overwritten(check):
    """A row that is looked up twice gets only the gradient of the last time."""
    def vjp(g, w, ids):
        d = np.zeros_like(w)
        d[ids] = g
        return d

    check(lambda w, ids: w[ids], arrays((6, 3)), vjp=vjp, ids=np.array([4, 1, 4, 0, 1]))


@wrong("ooples/AiDotNet.Tensors#894")
def take_with_a_fancy_sum(check):
    """`d[index] += g` adds only once for each index, however often the index occurs."""
    index = np.array([0, 2, 2])

    def vjp(g, x):
        d = np.zeros_like(x)
        d[:, index] += g
        return d

    check(lambda x: np.take(x, index, axis=1), arrays((4, 3)), vjp=vjp)


@wrong("pytorch/pytorch#473")
def scatter_that_overwrites(check):
    """Numbers with the same index replace each other, but the gradient is that of a sum."""
    places = np.array([0, 1, 1, 2])

    def forward(x):
        out = np.zeros((3, x.shape[1]), x.dtype)
        out[places] += x
        return out

    check(forward, arrays((4, 2)), vjp=lambda g, x: g[places])


@wrong()
def embedding_without_row_0(check):
    """Row 0 is treated as padding and gets no gradient."""
    def vjp(g, w, ids):
        d = np.zeros_like(w)
        np.add.at(d, ids, g)
        d[0] = 0
        return d

    check(lambda w, ids: w[ids], arrays((4, 3)), vjp=vjp, ids=np.array([0, 2, 3]))


# ── rearrangements ──
@wrong()
def pad_cut_one_too_far(check):
    """The gradient is a slice of the cotangent that starts one column too far to the right."""
    check(lambda x: np.pad(x, ((0, 0), (1, 2))), arrays((3, 4)), vjp=lambda g, x: g[:, 2:6])


@wrong()
def roll_in_one_direction(check):
    """The gradient is rolled in the same direction as the value, instead of the opposite one."""
    check(lambda x: np.roll(x, 1, axis=-1), arrays((2, 5)), vjp=lambda g, x: np.roll(g, 1, axis=-1))


@wrong()
def transpose_there_and_there_again(check):
    """The gradient uses the same permutation instead of its inverse, which fits a cube."""
    check(lambda x: x.transpose(2, 0, 1), arrays((3, 3, 3)), vjp=lambda g, x: g.transpose(2, 0, 1))


@wrong("apache/mxnet#14340")
def concatenate_with_halves_swapped(check):
    """The two gradients are returned in the wrong order."""
    check(lambda a, b: np.concatenate([a, b], 1), arrays((2, 3)), arrays((2, 3)),
          vjp=lambda g, a, b: (g[:, 3:], g[:, :3]))


@wrong()
def triangle_whose_gradient_is_full(check):
    """The gradient of a lower triangle is not 0 above the diagonal."""
    check(np.tril, arrays((4, 4)), vjp=lambda g, x: g)


@wrong()
def where_with_branches_swapped(check):
    """The gradients go to the branch that was not chosen."""
    mask = np.array([True, False, True, True])
    check(lambda x, y: np.where(mask, x, y), arrays((4,)), arrays((4,)),
          vjp=lambda g, x, y: (np.where(mask, 0, g), np.where(mask, g, 0)))


@wrong()
def repeat_with_a_mean(check):
    """The gradients of the copies are averaged."""
    check(lambda x: np.repeat(x, 3, axis=0), arrays((2, 4)),
          vjp=lambda g, x: g.reshape(2, 3, 4).mean(1))


@wrong()
def reshape_in_the_other_order(check):
    """The value is read in C order, the gradient written in Fortran order."""
    check(lambda x: x.reshape(6, 2), arrays((3, 4)), vjp=lambda g, x: g.reshape(3, 4, order="F"))


# ── convolutions and pools ──
def windows(x, k):
    return np.lib.stride_tricks.sliding_window_view(x, k, axis=-1)


def conv(x, w):
    return np.einsum("bilk,oik->bol", windows(x, w.shape[-1]), w)


def conv_vjp(g, x, w, flip=False, add=True):
    k = w.shape[-1]
    dx = np.zeros_like(x)
    for t in range(k):
        part = np.einsum("bol,oi->bil", g, w[..., k - 1 - t if flip else t])
        dx[..., t:t + g.shape[-1]] = part + (dx[..., t:t + g.shape[-1]] if add else 0)
    return dx, np.einsum("bol,bilk->oik", g, windows(x, k))


@wrong()
def conv1d_with_the_kernel_flipped(check):
    """The gradient of the input uses the reversed kernel."""
    check(conv, arrays((2, 2, 8)), arrays((3, 2, 3)),
          vjp=lambda g, x, w: conv_vjp(g, x, w, flip=True))


@wrong()
def conv1d_with_windows_overwritten(check):
    """Where windows overlap, the gradient of the input is only that of the last window."""
    check(conv, arrays((2, 2, 8)), arrays((3, 2, 3)),
          vjp=lambda g, x, w: conv_vjp(g, x, w, add=False))


@wrong()
def conv1d_with_one_output_channel(check):
    """The gradient of the input is only that of the first output channel."""
    check(conv, arrays((1, 2, 6)), arrays((3, 2, 3)),
          vjp=lambda g, x, w: (conv_vjp(g[:, :1], x, w[:1])[0], conv_vjp(g, x, w)[1]))


@wrong("pytorch/pytorch#80204")
def max_pool_with_windows_overwritten(check):
    """A number that is the largest of two windows gets only the gradient of one of them."""
    def vjp(g, x):
        d = np.zeros_like(x)
        for j in range(g.shape[-1]):
            best = j + x[:, j:j + 3].argmax(-1)
            d[np.arange(len(x)), best] = g[:, j]
        return d

    check(lambda x: windows(x, 3).max(-1), arrays((4, 9), kind="spread"), vjp=vjp)


@wrong()
def average_pool_without_its_half(check):
    """The gradient of a mean of two lacks its ½."""
    check(lambda x: x.reshape(*x.shape[:-1], -1, 2).mean(-1), arrays((3, 8)),
          vjp=lambda g, x: np.repeat(g, 2, -1))


@wrong()
def difference_without_its_end(check):
    """The gradient of x[1:] − x[:-1] leaves out the first number."""
    def vjp(g, x):
        d = np.zeros_like(x)
        d[..., 1:] += g
        d[..., 1:-1] -= g[..., 1:]
        return d

    check(lambda x: np.diff(x, axis=-1), arrays(shapes(least=1, side=2)), vjp=vjp)
