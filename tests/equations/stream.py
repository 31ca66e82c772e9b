"""The equations of docs/block.md and gpt2.md, by numbers."""
from __future__ import annotations

from itertools import combinations, product

import numpy as np

import minigrad as mg
from gpt2.config import GPT2Config, num_parameters, training_flop_per_token
from gpt2.model import GPT2

from .by_numbers import array, is_so, pulled, same, slope


def small():
    """A model of two layers in float64, what its points say of a batch, and the batch."""
    config = GPT2Config(vocab_size=50, n_positions=16, n_layer=2, n_head=2, n_embd=8, initializer_range=0.3)
    model, ids = GPT2(config, dtype="float64", seed=1).eval(), np.array([[7, 3, 11, 2], [5, 5, 0, 1]])
    return model, model.trace(ids), ids


def toy(draw):
    """Two branches that stand for a(N₁(x)) and f(N₂(m)), and a row."""
    A, F = draw(2, 3, 3)
    return (lambda x: np.tanh(A @ x)), (lambda m: np.sin(F @ m)), draw(3)


def mlp(x, W1, b1, W2, b2):
    return np.tanh(x @ W1 + b1) @ W2 + b2


def block_1(normal):
    r"""x^{(0)} = \mathrm{wte}[\mathrm{ids}] + \mathrm{wpe}[\mathrm{positions}], \quad x^{(\ell +
    1)} = y^{(\ell)} ."""
    model, seen, ids = small()
    wte, wpe = array(model.wte.weight), array(model.wpe.weight)
    same(seen["blocks.0.resid_pre"], wte[ids] + wpe[np.arange(4)])
    same(seen["blocks.1.resid_pre"], seen["blocks.0.resid_post"])


def block_2(normal):
    r"""m = x + a(N_1(x)) ."""
    model, seen, ids = small()
    x, block = mg.tensor(seen["blocks.0.resid_pre"]), model.h[0]
    same(seen["blocks.0.resid_mid"], array(x) + array(block.attn(block.ln_1(x))))


def block_3(normal):
    r"""y = m + f(N_2(m)) ."""
    model, seen, ids = small()
    m, block = mg.tensor(seen["blocks.0.resid_mid"]), model.h[0]
    same(seen["blocks.0.resid_post"], array(m) + array(block.mlp(block.ln_2(m))))


def block_4(normal):
    r"""\frac{\partial m_i}{\partial x_k} = \delta_{ik} + A_{ik}, \quad \frac{\partial y_i}{\partial
    m_k} = \delta_{ik} + F_{ik} ."""
    a, f, x = toy(normal)
    m, d = x + a(x), np.eye(3)
    A, F = slope(a, x), slope(f, m)
    same(slope(lambda x: x + a(x), x), [[d[i, k] + A[i, k] for k in range(3)] for i in range(3)])
    same(slope(lambda m: m + f(m), m), [[d[i, k] + F[i, k] for k in range(3)] for i in range(3)])


def block_5(normal):
    r"""\bar m = \bar y + F^\top \bar y ."""
    a, f, x = toy(normal)
    m, y_ = x + a(x), normal(3)
    same(slope(lambda m: y_ @ (m + f(m)), m), y_ + slope(f, m).T @ y_)


def block_6(normal):
    r"""\bar x = \bar m + A^\top \bar m ."""
    a, f, x = toy(normal)
    m, y_ = x + a(x), normal(3)
    m_ = y_ + slope(f, m).T @ y_

    def whole(x):
        m = x + a(x)
        return y_ @ (m + f(m))

    same(slope(whole, x), m_ + slope(a, x).T @ m_)


def block_7(normal):
    r"""\bar x^{(0)} = \prod_{\ell=0}^{L-1} (I + J_\ell)^\top\, \bar x^{(L)} = \bar x^{(L)} +
    \sum_{\ell} J_\ell^\top \bar x^{(L)} + \dots"""
    J, g, I = normal(3, 3, 3), normal(3), np.eye(3)
    blocks = [lambda x, J=one: x + J @ x for one in J]  # block l adds J_l x
    direct = slope(lambda x: g @ blocks[2](blocks[1](blocks[0](x))), normal(3))
    same(direct, (I + J[0]).T @ (I + J[1]).T @ (I + J[2]).T @ g)
    sets = [s for n in range(4) for s in combinations(range(3), n)]
    terms = {s: np.linalg.multi_dot([I, *(J[i].T for i in s), I]) @ g for s in sets}
    same(direct, g + sum(J[i].T @ g for i in range(3)) + sum(terms[s] for s in sets if len(s) > 1))
    same(len(sets), 2**3)


def block_aside_1(normal):
    r"""\begin{aligned} \mathbb E\,\|x + uW\|^2 &= \|x\|^2 + 2 \sum_{ij} x_j u_i\, \mathbb E\,
    W_{ij} \\ &\quad + \sum_{ijk} u_i u_k\, \mathbb E\, W_{ij} W_{kj} \\ &= \|x\|^2 +
    d\,\sigma^2 \|u\|^2 : \end{aligned}"""
    x, u, sigma, d = normal(2), normal(2), 0.5, 2
    W = sigma * np.array(list(product([-1, 1], repeat=4))).reshape(-1, 2, 2)  # every W with mean 0 and variance σ²
    E = W.mean(0)
    EE = np.einsum("nij,nkj->ikj", W, W) / len(W)
    middle = 2 * sum(x[j] * u[i] * E[i, j] for i in range(2) for j in range(2))
    last = sum(u[i] * u[k] * EE[i, k, j] for i in range(2) for j in range(2) for k in range(2))
    same(((x + u @ W) ** 2).sum(1).mean(), x @ x + middle + last, x @ x + d * sigma**2 * (u @ u))


def block_8(normal):
    r"""\tfrac1d\, \mathbb E\, \|x^{(L)}\|^2 = \tfrac1d \|x^{(0)}\|^2 + \sigma^2 \sum_{j=1}^{2L}
    \mathbb E\, \|u_j\|^2 ."""
    x, u, sigma, d = normal(2), normal(2, 2), 0.5, 2  # two branches, so L is 1
    W = sigma * np.array(list(product([-1, 1], repeat=8))).reshape(-1, 2, 2, 2)
    end = x + u[0] @ W[:, 0] + u[1] @ W[:, 1]
    same(1 / d * (end**2).sum(1).mean(), 1 / d * (x @ x) + sigma**2 * sum(u[j] @ u[j] for j in range(2)))


def mlp_1(normal):
    r"""h = x W_1 + b_1, \quad u = \phi(h), \quad f(x) = u W_2 + b_2 ."""
    model, seen, ids = small()
    m = model.h[0].mlp
    W1, b1, W2, b2 = (array(p) for p in (m.c_fc.weight, m.c_fc.bias, m.c_proj.weight, m.c_proj.bias))
    h = seen["blocks.0.ln_2.out"] @ W1 + b1
    u = mg.gelu(h, approximate="tanh")
    same(seen["blocks.0.mlp.pre"], h)
    same(seen["blocks.0.mlp.act"], u)
    same(seen["blocks.0.mlp.out"], u @ W2 + b2)


def mlp_2(normal):
    r"""\begin{aligned} \bar u &= g\, W_2^\top, & \bar W_2 &= u^\top g, & \bar b_2 &= \mathbf 1^\top
    g, \\ \bar h &= \bar u \odot \phi'(h), & & & & \\ \bar x &= \bar h\, W_1^\top, & \bar W_1 &=
    x^\top \bar h, & \bar b_1 &= \mathbf 1^\top \bar h , \end{aligned}"""
    x, W1, b1, W2, b2, g = normal(2, 3), normal(3, 5), normal(5), normal(5, 3), normal(3), normal(2, 3)
    h = x @ W1 + b1
    u, ones = np.tanh(h), np.ones(2)
    u_ = g @ W2.T
    h_ = u_ * (1 - u**2)  # tanh' = 1 - tanh²
    same(slope(lambda u: (g * (u @ W2 + b2)).sum(), u), u_)
    same(slope(lambda h: (g * (np.tanh(h) @ W2 + b2)).sum(), h), h_)
    for name, found in {"x": h_ @ W1.T, "W1": x.T @ h_, "b1": ones @ h_, "W2": u.T @ g, "b2": ones @ g}.items():
        given = {"x": x, "W1": W1, "b1": b1, "W2": W2, "b2": b2}
        same(slope(lambda v: (g * mlp(**(given | {name: v}))).sum(), given[name]), found)


def dropout_1(normal):
    r"""y_i = \frac{\mu_i}{1 - p}\, x_i ."""
    x, p = normal(50), 0.25
    y = mg.dropout(x, p=p, key=3)
    mu = array(y) != 0
    is_so(5 < mu.sum() < 50)
    same(y, mu / (1 - p) * x)


def dropout_2(normal):
    r"""J = \tfrac{1}{1 - p}\,\mathrm{diag}(\mu) = J^\top, \qquad J^\top g = \tfrac{1}{1 - p}\, \mu
    \odot g ."""
    x, g, p = normal(8), normal(8), 0.25
    mu = array(mg.dropout(np.ones(8), p=p, key=3)) != 0
    J = slope(lambda x: mg.dropout(x, p=p, key=3), x)
    same(J, 1 / (1 - p) * np.diag(mu), J.T)
    same(J.T @ g, 1 / (1 - p) * mu * g, *pulled(lambda x: mg.dropout(x, p=p, key=3), g, x))


def size_1(normal):
    r"""N = (V + T_{\max})\,d + L\,(4d^2 + 2dn + 9d + n) + 2d"""
    config = GPT2Config(vocab_size=50, n_positions=16, n_layer=3, n_head=2, n_embd=8, n_inner=20)
    V, T_max, d, L, n = 50, 16, 8, 3, 20
    N = (V + T_max) * d + L * (4 * d**2 + 2 * d * n + 9 * d + n) + 2 * d
    same(num_parameters(config), sum(array(p).size for p in GPT2(config).parameters()), N)


def size_2(normal):
    r"""C = 6\,(N - T_{\max}\,d) + 12\,L\,d\,T ."""
    config = GPT2Config(vocab_size=50, n_positions=16, n_layer=3, n_head=2, n_embd=8, n_inner=20)
    T_max, d, L, T = 16, 8, 3, 12
    N = num_parameters(config)
    same(training_flop_per_token(config, T), 6 * (N - T_max * d) + 12 * L * d * T)
