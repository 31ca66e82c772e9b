"""The equations of docs/softmax.md, layer-norm.md and gelu.md, by numbers."""
from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

import minigrad as mg

from .by_numbers import integral, pulled, same, slope, weights

EPS = 1e-5


def row(x):
    """μ, σ², r and x̂ of LayerNorm."""
    mu, var = x.mean(), ((x - x.mean()) ** 2).mean()
    return mu, var, 1 / np.sqrt(var + EPS), (x - mu) / np.sqrt(var + EPS)


def phi(u):
    return np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)


def Phi(x):
    return np.array([NormalDist().cdf(v) for v in x])


def inner(x):
    return np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)


def tanh_of(x):
    return np.tanh(inner(x))


def exact(x):
    return mg.gelu(x, approximate="none")


def by_tanh(x):
    return mg.gelu(x, approximate="tanh")


def softmax_1(normal):
    r"""p_i = \frac{e^{x_i - m}}{\sum_j e^{x_j - m}}, \qquad m = \max_j x_j"""
    x = normal(5)
    m = max(x)
    same(mg.softmax(x), [np.exp(x[i] - m) / sum(np.exp(x[j] - m) for j in range(5)) for i in range(5)])


def softmax_aside_1(normal):
    r"""\frac{e^{x_i - m}}{\sum_j e^{x_j - m}} = \frac{e^{-m}\, e^{x_i}}{e^{-m} \sum_j e^{x_j}} ."""
    x, m = normal(5), 0.7
    same(np.exp(x - m) / sum(np.exp(x - m)), np.exp(-m) * np.exp(x) / (np.exp(-m) * sum(np.exp(x))), mg.softmax(x))


def softmax_2(normal):
    r"""\frac{\partial p_i}{\partial x_k} = \frac{\delta_{ik}\, e^{x_i}\, s - e^{x_i}\,
    e^{x_k}}{s^2} = p_i\,(\delta_{ik} - p_k) ."""
    x = normal(5)
    e, p, s, d = np.exp(x), weights(x), np.exp(x).sum(), np.eye(5)
    quotient = [[(d[i, k] * e[i] * s - e[i] * e[k]) / s**2 for k in range(5)] for i in range(5)]
    same(slope(weights, x), quotient, [[p[i] * (d[i, k] - p[k]) for k in range(5)] for i in range(5)])


def softmax_3(normal):
    r"""J = \mathrm{diag}(p) - p\,p^\top ."""
    x = normal(5)
    p = weights(x)
    same(slope(weights, x), np.diag(p) - np.outer(p, p))


def softmax_4(normal):
    r"""\begin{aligned} J^\top g &= \mathrm{diag}(p)\, g - p\,(p^\top g) \\ &= p \odot \bigl(g -
    \langle p, g\rangle\, \mathbf 1\bigr) . \end{aligned}"""
    x, g = normal(2, 5)
    p, J = weights(x), slope(weights, x)
    same(J.T @ g, np.diag(p) @ g - p * (p @ g), p * (g - (p @ g) * np.ones(5)), *pulled(mg.softmax, g, x))


def softmax_aside_2(normal):
    r"""p \odot (g - \tfrac16) = \bigl(\tfrac16\cdot\tfrac56,\; -\tfrac26\cdot\tfrac16,\;
    -\tfrac36\cdot\tfrac16\bigr) = \tfrac1{36}\,(5, -2, -3) ."""
    p, g = np.array([1, 2, 3]) / 6, np.array([1.0, 0.0, 0.0])
    written = [1 / 6 * 5 / 6, -2 / 6 * 1 / 6, -3 / 6 * 1 / 6]
    same(p * (g - 1 / 6), written, np.array([5, -2, -3]) / 36, *pulled(mg.softmax, g, np.log([1.0, 2.0, 3.0])))


def log_softmax_1(normal):
    r"""\ell_i = \log p_i = x_i - m - \log \sum_j e^{x_j - m} ."""
    x = normal(5)
    m = max(x)
    same(mg.log_softmax(x), np.log(weights(x)), x - m - np.log(sum(np.exp(x - m))))


def log_softmax_2(normal):
    r"""\frac{\partial \ell_i}{\partial x_k} = \delta_{ik} - p_k, \qquad J = I - \mathbf 1\, p^\top
    ."""
    x = normal(5)
    p, d = weights(x), np.eye(5)
    by_index = [[d[i, k] - p[k] for k in range(5)] for i in range(5)]
    same(slope(lambda x: np.log(weights(x)), x), by_index, np.eye(5) - np.outer(np.ones(5), p))


def log_softmax_3(normal):
    r"""J^\top g = g - p\,(\mathbf 1^\top g) = g - p \sum_i g_i, \qquad p = e^{\ell} ."""
    x, g = normal(2, 5)
    logs = np.log(weights(x))
    p, J = np.exp(logs), slope(lambda x: np.log(weights(x)), x)
    same(J.T @ g, g - p * (np.ones(5) @ g), g - p * sum(g), *pulled(mg.log_softmax, g, x))


def layer_norm_1(normal):
    r"""\hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}}, \qquad y = \hat x \odot w + b ."""
    x, w, b = normal(3, 5)
    mu, var = x.mean(), ((x - x.mean()) ** 2).mean()
    hat = (x - mu) / np.sqrt(var + EPS)
    same(mg.layer_norm(x, w, b, eps=EPS), hat * w + b)


def layer_norm_2(normal):
    r"""\frac{\partial \mu}{\partial x_k} = \frac1d, \qquad \frac{\partial (x_i - \mu)}{\partial
    x_k} = \delta_{ik} - \frac1d ."""
    x = normal(5)
    same(slope(np.mean, x), np.full(5, 1 / 5))
    same(slope(lambda x: x - x.mean(), x), np.eye(5) - 1 / 5)


def layer_norm_3(normal):
    r"""\begin{aligned} \frac{\partial r}{\partial x_k} &= -\tfrac12 (\sigma^2 + \varepsilon)^{-3/2}
    \cdot \tfrac2d (x_k - \mu) \\ &= -\frac{r^2}{d}\, \hat x_k . \end{aligned}"""
    x = normal(5)
    mu, var, r, hat = row(x)
    same(slope(lambda x: row(x)[2], x), -1 / 2 * (var + EPS) ** (-3 / 2) * 2 / 5 * (x - mu), -(r**2) / 5 * hat)


def layer_norm_4(normal):
    r"""\begin{aligned} \frac{\partial \hat x_i}{\partial x_k} &= r\Bigl(\delta_{ik} - \frac1d\Bigr)
    - \frac{r^2}{d}\,\hat x_k\,(x_i - \mu) \\ &= r\Bigl(\delta_{ik} - \frac1d - \frac1d\,\hat
    x_i \hat x_k\Bigr) . \end{aligned}"""
    x = normal(5)
    mu, var, r, hat = row(x)
    unfused = r * (np.eye(5) - 1 / 5) - r**2 / 5 * np.outer(x - mu, hat)
    same(slope(lambda x: row(x)[3], x), unfused, r * (np.eye(5) - 1 / 5 - 1 / 5 * np.outer(hat, hat)))


def layer_norm_5(normal):
    r"""\frac{\partial L}{\partial x} = r\,\bigl(\hat g - \mathrm{mean}(\hat g)\,\mathbf 1 - \hat
    x\; \mathrm{mean}(\hat g \odot \hat x)\bigr) ."""
    x, w, b, g = normal(4, 5)
    mu, var, r, hat = row(x)
    ghat = g * w
    loss = slope(lambda x: g @ (row(x)[3] * w + b), x)
    same(
        loss,
        r * (ghat - ghat.mean() * np.ones(5) - hat * (ghat * hat).mean()),
        pulled(lambda *a: mg.layer_norm(*a, eps=EPS), g, x, w, b)[0],
    )


def layer_norm_6(normal):
    r"""\frac{\partial L}{\partial w} = \sum_t g_t \odot \hat x_t ."""
    x, g, w, b = normal(3, 5), normal(3, 5), normal(5), normal(5)
    hat = np.array([row(one)[3] for one in x])
    same(
        slope(lambda w: (g * (hat * w + b)).sum(), w),
        sum(g[t] * hat[t] for t in range(3)),
        pulled(lambda *a: mg.layer_norm(*a, eps=EPS), g, x, w, b)[1],
    )


def layer_norm_7(normal):
    r"""\frac{\partial L}{\partial b} = \sum_t g_t ."""
    x, g, w, b = normal(3, 5), normal(3, 5), normal(5), normal(5)
    hat = np.array([row(one)[3] for one in x])
    same(
        slope(lambda b: (g * (hat * w + b)).sum(), b),
        sum(g[t] for t in range(3)),
        pulled(lambda *a: mg.layer_norm(*a, eps=EPS), g, x, w, b)[2],
    )


def layer_norm_aside_1(normal):
    r"""g - \tfrac13 \mathbf 1 - \hat x \cdot \bigl(-\tfrac13\sqrt{3/2}\bigr) = \bigl(\tfrac23 -
    \tfrac12,\; -\tfrac13,\; -\tfrac13 + \tfrac12\bigr) = \tfrac16\,(1, -2, 1) ."""
    g, hat = np.array([1.0, 0.0, 0.0]), np.array([-1.0, 0.0, 1.0]) * np.sqrt(3 / 2)
    same(
        g - 1 / 3 - hat * (-1 / 3 * np.sqrt(3 / 2)),
        [2 / 3 - 1 / 2, -1 / 3, -1 / 3 + 1 / 2],
        np.array([1, -2, 1]) / 6,
        pulled(lambda *a: mg.layer_norm(*a, eps=0.0), g, hat, np.ones(3), np.zeros(3))[0],
    )


def gelu_aside_1(normal):
    r"""\varphi(u) = \frac1{\sqrt{2\pi}}\, e^{-u^2/2}, \quad \Phi(x) = P(Z \le x) = \int_{-\infty}^x
    \! \varphi(u)\, du ."""
    u = normal(5)
    same([NormalDist().pdf(v) for v in u], 1 / np.sqrt(2 * np.pi) * np.exp(-(u**2) / 2))
    same(
        [NormalDist().cdf(x) for x in u],
        [integral(lambda u: 1 / np.sqrt(2 * np.pi) * np.exp(-(u**2) / 2), -12, x) for x in u],
    )


def gelu_aside_2(normal):
    r"""\mathbb E\bigl[x \cdot [Z \le x]\bigr] = x\, P(Z \le x) = x\, \Phi(x) ."""
    for x in normal(3):
        passed = integral(lambda z: x * phi(z), -12, x)  # x where Z ≤ x, else 0
        same(passed, x * NormalDist().cdf(x), mg.gelu(np.array(x), approximate="none"))


def gelu_1(normal):
    r"""y = x\,\Phi(x) = \tfrac12 x \Bigl(1 + \mathrm{erf}\frac{x}{\sqrt 2}\Bigr) ."""
    x = normal(5)
    erf = [math.erf(v / math.sqrt(2)) for v in x]
    same(mg.gelu(x, approximate="none"), x * Phi(x), 1 / 2 * x * (1 + np.array(erf)))


def gelu_2(normal):
    r"""\begin{aligned} y &= \tfrac12 x\,(1 + t), \qquad t = \tanh u, \\ u &= c\,(x + a x^3), \quad
    c = \sqrt{2/\pi}, \quad a = 0.044715 . \end{aligned}"""
    x = normal(5)
    c, a = np.sqrt(2 / np.pi), 0.044715
    u = c * (x + a * x**3)
    t = np.tanh(u)
    same(mg.gelu(x, approximate="tanh"), 1 / 2 * x * (1 + t))


def gelu_3(normal):
    r"""y' = 1 \cdot \Phi(x) + x\, \Phi'(x) = \Phi(x) + x\,\varphi(x) ."""
    x = normal(5)
    y = np.diag(slope(lambda x: x * Phi(x), x))
    same(y, 1 * Phi(x) + x * np.diag(slope(Phi, x)), Phi(x) + x * phi(x), *pulled(exact, np.ones(5), x))


def gelu_4(normal):
    r"""\begin{aligned} y' &= \tfrac12 (1 + t) + \tfrac12 x\, t' \\ &= \tfrac12 (1 + t) + \tfrac12
    x\,(1 - t^2)\, c\,(1 + 3a x^2) . \end{aligned}"""
    x = normal(5)
    c, a = np.sqrt(2 / np.pi), 0.044715
    t, tt = tanh_of(x), np.diag(slope(tanh_of, x))
    same(
        np.diag(slope(lambda x: 1 / 2 * x * (1 + tanh_of(x)), x)),
        1 / 2 * (1 + t) + 1 / 2 * x * tt,
        1 / 2 * (1 + t) + 1 / 2 * x * (1 - t**2) * c * (1 + 3 * a * x**2),
        *pulled(by_tanh, np.ones(5), x),
    )


def gelu_6(normal):
    r"""y' = \sigma\,\bigl(1 + (1 - \sigma)\, 2x\,u'\bigr), \qquad 1 - \sigma = e^{-2u}\,\sigma ."""
    x = normal(5)
    u, uu = inner(x), np.diag(slope(inner, x))
    s = 1 / (1 + np.exp(-2 * u))
    same(*pulled(by_tanh, np.ones(5), x), s * (1 + (1 - s) * 2 * x * uu))
    same(1 - s, np.exp(-2 * u) * s)


def gelu_5(normal):
    r"""\begin{aligned} \frac{\partial L}{\partial x_{ij}} &= g_{ij}\; y'(x_{ij} + b_j), \\
    \frac{\partial L}{\partial b_j} &= \sum_i \frac{\partial L}{\partial x_{ij}} . \end{aligned}"""
    x, g, b = normal(3, 5), normal(3, 5), normal(5)
    dx, db = pulled(lambda x, b: mg.gelu(x, b, approximate="tanh"), g, x, b)
    y = [[slope(lambda v: v / 2 * (1 + tanh_of(v)), x[i, j] + b[j]) for j in range(5)] for i in range(3)]
    same(dx, g * np.array(y))
    same(db, [sum(dx[i, j] for i in range(3)) for j in range(5)])


def relu_1(normal):
    r"""y = \max(x, 0), \qquad J^\top g = g \odot [x > 0] ."""
    x, g = normal(2, 5)
    same(mg.relu(x), [max(v, 0) for v in x])
    same(*pulled(mg.relu, g, x), g * (x > 0), slope(lambda x: g @ np.maximum(x, 0), x))
