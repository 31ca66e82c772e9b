"""Right products, gathers, rearrangements and convolutions on plain NumPy arrays."""
from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.testing import arrays, shapes

from .entry import right


# ── products ──
@right
def matmul(check):
    """NumPy's matmul of two matrices."""
    check(np.matmul, arrays((3, 4)), arrays((4, 5)), vjp=lambda g, a, b: (g @ b.T, a.T @ g))


@right
def matmul_in_tiles(check):
    """A product in tiles of 4 × 4 × 4, the last ones smaller, added up in a separate buffer."""
    def product(a, b):
        (n, k), m = a.shape, b.shape[1]
        out = np.zeros((n, m), a.dtype)
        for i in range(0, n, 4):
            for j in range(0, m, 4):
                for t in range(0, k, 4):
                    out[i:i + 4, j:j + 4] += a[i:i + 4, t:t + 4] @ b[t:t + 4, j:j + 4]
        return out

    def product_vjp(g, a, b):
        return product(g, b.T), product(a.T, g)

    check(product, arrays((9, 6)), arrays((6, 10)), vjp=product_vjp, definition=mg.matmul)


@right
def batched_matmul(check):
    """A batch of matrices by one matrix, with einsum."""
    check(lambda a, b: np.einsum("bij,jk->bik", a, b), arrays((3, 2, 4)), arrays((4, 5)),
          vjp=lambda g, a, b: (np.einsum("bik,jk->bij", g, b), np.einsum("bij,bik->jk", a, g)))


@right
def outer(check):
    """The outer product of two vectors."""
    check(np.outer, arrays((4,)), arrays((6,)), vjp=lambda g, a, b: [g @ b, a @ g])


@right
def inner(check):
    """A dot product computed with Python numbers, returned as an array without axes."""
    def dot(a, b):
        total = 0.0
        for x, y in zip(a.tolist(), b.tolist()):
            total += x * y
        return np.array(total, a.dtype)

    check(dot, arrays((17,)), arrays((17,)), vjp=lambda g, a, b: (g * b, g * a))


@right
def bilinear(check):
    """xᵀ A y for rows of x and y."""
    check(lambda x, a, y: np.einsum("ni,ij,nj->n", x, a, y),
          arrays((5, 3)), arrays((3, 4)), arrays((5, 4)),
          vjp=lambda g, x, a, y: (g[:, None] * (y @ a.T), (x * g[:, None]).T @ y,
                                  g[:, None] * (x @ a)))


@right
def linear(check):
    """The linear layer of PyTorch, x Wᵀ + b, with any leading axes."""
    def linear_vjp(g, x, w, b):
        rows = g.reshape(-1, g.shape[-1])
        return g @ w, rows.T @ x.reshape(-1, x.shape[-1]), rows.sum(0)

    check(lambda x, w, b: x @ w.T + b, arrays((2, 3, 4)), arrays((5, 4)), arrays((5,)),
          vjp=linear_vjp)


@right
def square_of_a_matrix(check):
    """A A, in which A is used twice."""
    check(lambda a: a @ a, arrays((4, 4)), vjp=lambda g, a: g @ a.T + a.T @ g)


@right
def gram(check):
    """A Aᵀ."""
    check(lambda a: a @ a.T, arrays((3, 7)), vjp=lambda g, a: (g + g.T) @ a)


@right
def quadratic_form(check):
    """xᵀ A x with a matrix that is not symmetric."""
    check(lambda x, a: x @ a @ x, arrays((5,)), arrays((5, 5)),
          vjp=lambda g, x, a: (g * (a + a.T) @ x, g * np.outer(x, x)))


@right
def two_layers(check):
    """tanh(x W) V, as one kernel with a by-product computed twice."""
    def forward(x, w, v):
        return np.tanh(x @ w) @ v

    def backward(g, x, w, v):
        h = np.tanh(x @ w)
        dz = (g @ v.T) * (1 - h ** 2)
        return dz @ w.T, x.T @ dz, h.T @ g

    check(forward, arrays((4, 3)), arrays((3, 6)), arrays((6, 2)), vjp=backward)


@right
def trace(check):
    """The trace of a matrix that need not be square."""
    check(np.trace, arrays((4, 6)), vjp=lambda g, a: g * np.eye(4, 6, dtype=a.dtype))


# ── gathers and rearrangements ──
@right
def embedding(check):
    """Rows of a table; the ids are a setting, and some of them are repeated."""
    def vjp(g, w, ids):
        d = np.zeros_like(w)
        np.add.at(d, ids, g)
        return d

    check(lambda w, ids: w[ids], arrays((7, 4)), vjp=vjp, ids=np.array([[3, 1, 3], [0, 6, 3]]))


@right
def embedding_by_one_hot(check):
    """Rows of a table by products with one-hot rows, compared with the definition."""
    ids = np.array([2, 2, 0, 4])

    def hot(w):
        return np.eye(len(w), dtype=w.dtype)[ids]

    check(lambda w: hot(w) @ w, arrays((5, 3)), vjp=lambda g, w: hot(w).T @ g,
          definition=lambda w: mg.embedding(ids, w))


@right
def take_columns(check):
    """Columns in another order, one of them twice; the gradient is summed column by column."""
    index = [2, 0, 2]

    def vjp(g, x):
        d = np.zeros(x.shape, x.dtype)
        for place, j in enumerate(index):
            d[:, j] += g[:, place]
        return d

    check(lambda x: x[:, index], arrays((4, 3)), vjp=vjp)


@right
def scatter_add(check):
    """Rows are added to rows of the result; the indices may repeat."""
    places = np.array([0, 2, 2, 1])

    def forward(x):
        out = np.zeros((3, x.shape[1]), x.dtype)
        np.add.at(out, places, x)
        return out

    check(forward, arrays((4, 5)), vjp=lambda g, x: g[places])


@right
def pad(check):
    """Padding with zeros; the gradient is a view of the cotangent."""
    check(lambda x: np.pad(x, ((1, 2), (0, 3))), arrays((4, 3)), vjp=lambda g, x: g[1:-2, :-3])


@right
def roll(check):
    """A shift along the last axis, which wraps around."""
    check(lambda x, shift: np.roll(x, shift, axis=-1), arrays(shapes(least=1)),
          vjp=lambda g, x, shift: np.roll(g, -shift, axis=-1), shift=2)


@right
def transpose(check):
    """A transposition whose value and gradient are views."""
    check(lambda x: x.transpose(2, 0, 1), arrays((2, 3, 4)), vjp=lambda g, x: g.transpose(1, 2, 0))


@right
def reverse(check):
    """Every second number, from the end: a view with a negative stride."""
    def vjp(g, x):
        d = np.zeros_like(x)
        d[..., ::-2] = g
        return d

    check(lambda x: x[..., ::-2], arrays(shapes(least=1)), vjp=vjp)


@right
def concatenate(check):
    """Two arrays along axis 1; the gradients are views of the cotangent."""
    check(lambda a, b: np.concatenate([a, b], axis=1), arrays((3, 2)), arrays((3, 5)),
          vjp=lambda g, a, b: np.split(g, [2], axis=1))


@right
def stack(check):
    """Two arrays along a new last axis."""
    check(lambda a, b: np.stack((a, b), -1), arrays((2, 3)), arrays((2, 3)),
          vjp=lambda g, a, b: (g[..., 0], g[..., 1]))


@right
def lower_triangle(check):
    """np.tril is its own adjoint."""
    check(np.tril, arrays((5, 5)), vjp=lambda g, x: np.tril(g))


@right
def where_with_a_mask(check):
    """A mask as a setting chooses between two arrays."""
    mask = np.array([[True, False, True], [False, False, True]])

    check(lambda x, y, mask: np.where(mask, x, y), arrays((2, 3)), arrays((2, 3)), mask=mask,
          vjp=lambda g, x, y, mask: (np.where(mask, g, 0), np.where(mask, 0, g)))


@right
def repeat_rows(check):
    """Each row several times."""
    check(lambda x, times: x.repeat(times, axis=0), arrays((3, 4)), times=3,
          vjp=lambda g, x, times: g.reshape(3, times, 4).sum(1))


# ── convolutions and pools ──
@right
def conv1d(check):
    """[batch, in, length] with [out, in, width], by a window view."""
    def forward(x, w):
        windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[-1], axis=-1)
        return np.einsum("bilk,oik->bol", windows, w)

    def backward(g, x, w):
        k = w.shape[-1]
        windows = np.lib.stride_tricks.sliding_window_view(x, k, axis=-1)
        dx = np.zeros_like(x)
        for t in range(k):
            dx[..., t:t + g.shape[-1]] += np.einsum("bol,oi->bil", g, w[..., t])
        return dx, np.einsum("bol,bilk->oik", g, windows)

    check(forward, arrays((2, 3, 9)), arrays((4, 3, 3)), vjp=backward)


@right
def average_pool(check):
    """The mean of windows of two numbers that do not overlap."""
    check(lambda x: x.reshape(*x.shape[:-1], -1, 2).mean(-1), arrays((3, 10)),
          vjp=lambda g, x: np.repeat(g, 2, axis=-1) / 2)


@right
def max_pool(check):
    """The maximum of windows of three numbers that overlap by one; no two numbers are equal."""
    def starts(x):
        return range(0, x.shape[-1] - 2, 2)

    def vjp(g, x):
        d = np.zeros_like(x)
        for j, s in enumerate(starts(x)):
            for i in range(len(x)):
                d[i, s + x[i, s:s + 3].argmax()] += g[i, j]
        return d

    check(lambda x: np.stack([x[:, s:s + 3].max(-1) for s in starts(x)], -1),
          arrays((3, 9), kind="spread"), vjp=vjp)


@right
def moving_average(check):
    """A causal average of the last four numbers, by a difference of running sums."""
    def forward(x):
        total = np.cumsum(np.pad(x, ((0, 0), (4, 0))), axis=1, dtype=np.float64)
        return ((total[:, 4:] - total[:, :-4]) / 4).astype(x.dtype)

    check(forward, arrays((2, 12)), vjp=lambda g, x: forward(g[:, ::-1])[:, ::-1])
