"""Wrong losses."""
from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.testing import arrays

from .entry import wrong
from .pieces import log_p, nll, nll_vjp

TARGETS = np.array([1, 0, 4, 4, 2, 3])


@wrong("paiml/aprender#2182")
def cross_entropy_summed(check):
    """The value is the mean over rows, but the gradient is that of their sum."""
    check(nll, arrays((6, 5)), vjp=lambda g, x, targets: nll_vjp(g, x, targets) * len(x),
          targets=TARGETS)


@wrong()
def cross_entropy_without_the_cotangent(check):
    """The gradient is right for a cotangent of 1 and ignores any other."""
    check(nll, arrays((6, 5)), vjp=lambda g, x, targets: nll_vjp(x.dtype.type(1), x, targets),
          targets=TARGETS)


@wrong()
def cross_entropy_twice_softmaxed(check):
    """A softmax is applied to the logits twice, in value and gradient."""
    def vjp(g, x, targets):
        p = np.exp(log_p(x))
        d = nll_vjp(g, p, targets)
        return p * (d - (d * p).sum(-1, keepdims=True))

    check(lambda x, targets: nll(np.exp(log_p(x)), targets), arrays((6, 5)), vjp=vjp,
          targets=TARGETS, definition=mg.cross_entropy)


@wrong()
def cross_entropy_one_class_further(check):
    """Targets are counted from 1."""
    check(lambda x, targets: nll(x, targets - 1), arrays((6, 5)), targets=TARGETS,
          vjp=lambda g, x, targets: nll_vjp(g, x, targets - 1), definition=mg.cross_entropy)


@wrong()
def cross_entropy_with_eps_in_the_logarithm(check):
    """−log(p + 1e-7) is slightly wrong everywhere, and bounded where the loss must grow."""
    def p(x):
        return np.exp(log_p(x))

    def forward(x, targets):
        return -np.log(p(x)[np.arange(len(x)), targets] + 1e-7).mean()

    check(forward, arrays((6, 5)), vjp=nll_vjp, targets=TARGETS, definition=mg.cross_entropy)


@wrong()
def cross_entropy_by_one_hot_rows(check):
    """One-hot rows times log(softmax): 0·(−inf) is NaN where a class has no probability left."""
    def forward(x, targets):
        e = np.exp(x - x.max(-1, keepdims=True))
        hot = np.eye(x.shape[-1], dtype=x.dtype)[targets]
        return -(hot * np.log(e / e.sum(-1, keepdims=True))).sum(-1).mean()

    check(forward, arrays((6, 5)), vjp=nll_vjp, targets=TARGETS, definition=mg.cross_entropy)


@wrong("PaddlePaddle/Paddle#23708")
def cross_entropy_that_counts_ignored_rows(check):
    """Rows with target −100 add nothing, but the mean is over all rows."""
    def forward(x, targets):
        seen = targets != -100
        return -log_p(x)[seen, targets[seen]].sum() / len(x)

    def vjp(g, x, targets):
        seen = targets != -100
        d = np.zeros_like(x)
        d[seen] = np.exp(log_p(x[seen]))
        d[seen, targets[seen]] -= 1
        return d * (g / len(x))

    check(forward, arrays((4, 3)), vjp=vjp, targets=np.array([2, -100, 0, -100]),
          definition=mg.cross_entropy)


@wrong()
def mean_squared_error_without_its_two(check):
    """The gradient of the square lacks its factor 2."""
    check(lambda x, y: ((x - y) ** 2).mean(), arrays((3, 4)), arrays((3, 4)),
          vjp=lambda g, x, y: (g * (x - y) / x.size, -g * (x - y) / x.size))


@wrong()
def mean_squared_error_over_rows(check):
    """The gradient is divided by the number of rows, the value by the number of elements."""
    check(lambda x, y: ((x - y) ** 2).mean(), arrays((3, 4)), arrays((3, 4)),
          vjp=lambda g, x, y: (2 * g * (x - y) / len(x), -2 * g * (x - y) / len(x)))


@wrong()
def binary_cross_entropy_with_target_backwards(check):
    """The gradient of the target has the wrong sign."""
    def forward(x, t):
        return np.mean(np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x))))

    check(forward, arrays((5,)), arrays((5,)),
          vjp=lambda g, x, t: (g * (1 / (1 + np.exp(-x)) - t) / x.size, g * x / x.size))


@wrong("huggingface/candle#2561")
def binary_cross_entropy_by_logarithms(check):
    """t log σ(x) + (1 − t) log(1 − σ(x)), which is infinite or NaN for x of 40 (in float32, 20)."""
    def forward(x, t):
        s = 1 / (1 + np.exp(-x))
        return -np.mean(t * np.log(s) + (1 - t) * np.log(1 - s))

    check(forward, arrays((5,)), arrays((5,)),
          vjp=lambda g, x, t: (g * (1 / (1 + np.exp(-x)) - t) / x.size, -g * x / x.size))


@wrong()
def huber_with_slope_one(check):
    """Beyond δ the gradient is ±1 instead of ±δ."""
    def forward(x, delta):
        a = np.abs(x)
        return np.where(a <= delta, x * x / 2, delta * (a - delta / 2)).sum()

    check(forward, arrays((4, 5), avoid=[-0.5, 0.5]), delta=0.5,
          vjp=lambda g, x, delta: g * np.where(np.abs(x) <= delta, x, np.sign(x)))


@wrong()
def kl_divergence_backwards(check):
    """The gradient of the second argument is p − q."""
    def forward(a, b):
        return np.exp(log_p(a)) @ (log_p(a) - log_p(b))

    def vjp(g, a, b):
        la, lb = log_p(a), log_p(b)
        p = np.exp(la)
        return g * p * (la - lb - p @ (la - lb)), g * (p - np.exp(lb))

    check(forward, arrays((7,)), arrays((7,)), vjp=vjp)
