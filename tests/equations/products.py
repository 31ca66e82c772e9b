"""The equations of docs/matmul.md, embedding.md, reverse-mode.md and adding-an-op.md, by numbers."""
from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.nn import unfused

from .by_numbers import array, is_so, pulled, same, slope, weights

IDS, TARGETS = np.array([2, 0, 2]), np.array([3, 1, 2])  # token 2 twice, tokens 1 and 3 never


def loss_of(z, targets):
    """Mean cross-entropy of logits [K, V]."""
    return -np.mean([np.log(weights(row))[t] for row, t in zip(z, targets)])


def two_tables(W, H):
    """λ(W, H): tokens by one table, and logits by another."""
    return loss_of(np.tanh(W[IDS]) @ H.T, TARGETS)


def engine_loss(W):
    return mg.linear_cross_entropy(mg.tanh(mg.embedding(IDS, W)), W, TARGETS)


def pi(index):
    """The place of [3] that is read at a place of [2, 3]."""
    return index[1:]


def matmul_1(normal):
    r"""C_{ij} = \sum_{p=1}^{k} A_{ip}\, B_{pj} ."""
    A, B = normal(2, 3), normal(3, 4)
    same(mg.matmul(A, B), [[sum(A[i, p] * B[p, j] for p in range(3)) for j in range(4)] for i in range(2)])


def matmul_2(normal):
    r"""\bar A_{ap} = \sum_{i,j} G_{ij}\, \delta_{ia}\, B_{pj} = \sum_j G_{aj}\, B_{pj}, \quad \bar
    A = G B^\top ."""
    A, B, G, d = normal(2, 3), normal(3, 4), normal(2, 4), np.eye(2)
    by_index = [
        [sum(G[i, j] * d[i, a] * B[p, j] for i in range(2) for j in range(4)) for p in range(3)] for a in range(2)
    ]
    shorter = [[sum(G[a, j] * B[p, j] for j in range(4)) for p in range(3)] for a in range(2)]
    same(slope(lambda A: (G * (A @ B)).sum(), A), by_index, shorter, G @ B.T, pulled(mg.matmul, G, A, B)[0])


def matmul_3(normal):
    r"""\bar B_{pb} = \sum_{i,j} G_{ij}\, \delta_{jb}\, A_{ip} = \sum_i A_{ip}\, G_{ib}, \quad \bar
    B = A^\top G ."""
    A, B, G, d = normal(2, 3), normal(3, 4), normal(2, 4), np.eye(4)
    by_index = [
        [sum(G[i, j] * d[j, b] * A[i, p] for i in range(2) for j in range(4)) for b in range(4)] for p in range(3)
    ]
    shorter = [[sum(A[i, p] * G[i, b] for i in range(2)) for b in range(4)] for p in range(3)]
    same(slope(lambda B: (G * (A @ B)).sum(), B), by_index, shorter, A.T @ G, pulled(mg.matmul, G, A, B)[1])


def matmul_aside_1(normal):
    r"""dL = \langle G, dA\, B\rangle + \langle G, A\, dB\rangle = \langle G B^\top, dA\rangle +
    \langle A^\top G, dB\rangle ."""
    A, B, G, dA, dB = normal(2, 3), normal(3, 4), normal(2, 4), normal(2, 3), normal(3, 4)
    dL = slope(lambda h: (G * ((A + h * dA) @ (B + h * dB))).sum(), 0.0)
    same(dL, (G * (dA @ B)).sum() + (G * (A @ dB)).sum(), (G @ B.T * dA).sum() + (A.T @ G * dB).sum())


def matmul_4(normal):
    r"""\bar A = S_A\bigl(G\, B^\top\bigr), \qquad \bar B = S_B\bigl(A^\top G\bigr) ."""
    # B is repeated over the batch, and A in the second pair
    A, B, G = normal(5, 2, 3), normal(3, 4), normal(5, 2, 4)
    same(slope(lambda B: (G * (A @ B)).sum(), B), (A.mT @ G).sum(0), pulled(mg.matmul, G, A, B)[1])
    A, B = normal(2, 3), normal(5, 3, 4)
    same(slope(lambda A: (G * (A @ B)).sum(), A), (G @ B.mT).sum(0), pulled(mg.matmul, G, A, B)[0])


def matmul_5(normal):
    r"""\sum_s A_s^\top G_s = \begin{pmatrix} A_1 \\ A_2 \\ \vdots \end{pmatrix}^{\!\top}
    \begin{pmatrix} G_1 \\ G_2 \\ \vdots \end{pmatrix} ."""
    A, G = normal(5, 2, 3), normal(5, 2, 4)
    same(sum(A[s].T @ G[s] for s in range(5)), np.concatenate(A).T @ np.concatenate(G))


def linear_1(normal):
    r"""y = x W + b, \quad W: [k, m],\; b: [m] ."""
    x, W, b = normal(2, 3), normal(3, 4), normal(4)
    same(mg.addmm(b, x, W), x @ W + b)


def linear_2(normal):
    r"""y = x W^\top + b, \quad W: [m, k],\; b: [m] ."""
    x, W, b = normal(2, 3), normal(4, 3), normal(4)
    same(mg.linear(x, W, b), x @ W.T + b)


def linear_3(normal):
    r"""\bar b = S\,g = \sum_t g_t ."""
    x, W, b, g = normal(2, 3), normal(3, 4), normal(4), normal(2, 4)
    same(slope(lambda b: (g * (x @ W + b)).sum(), b), sum(g[t] for t in range(2)), pulled(mg.addmm, g, b, x, W)[0])


def linear_4(normal):
    r"""\bar x = g\, W^\top, \qquad \bar W = x^\top g \qquad \text{for } y = x W + b ."""
    x, W, b, g = normal(2, 3), normal(3, 4), normal(4), normal(2, 4)
    _, dx, dW = pulled(mg.addmm, g, b, x, W)
    same(slope(lambda x: (g * (x @ W + b)).sum(), x), g @ W.T, dx)
    same(slope(lambda W: (g * (x @ W + b)).sum(), W), x.T @ g, dW)


def linear_5(normal):
    r"""\bar x = g\, W, \qquad \bar W = g^\top x \qquad \text{for } y = x W^\top + b ."""
    x, W, b, g = normal(2, 3), normal(4, 3), normal(4), normal(2, 4)
    dx, dW, _ = pulled(mg.linear, g, x, W, b)
    same(slope(lambda x: (g * (x @ W.T + b)).sum(), x), g @ W, dx)
    same(slope(lambda W: (g * (x @ W.T + b)).sum(), W), g.T @ x, dW)


def matmul_6(normal):
    r"""\mathrm{FLOP}(C) = 2\, n\, k\, m, \qquad \mathrm{FLOP}(\bar A) = \mathrm{FLOP}(\bar B) = 2\,
    n\, k\, m ."""
    n, k, m = 2, 3, 4

    def flop(A, B):
        """A multiplication and an addition for each term of each number."""
        return sum(2 for _ in range(A.shape[0]) for _ in range(B.shape[1]) for _ in range(A.shape[1]))

    A, B, G = normal(n, k), normal(k, m), normal(n, m)
    same(flop(A, B), 2 * n * k * m, flop(G, B.T), flop(A.T, G))


def einsum_1(normal):
    r"""C_o = \sum_{\iota\,:\,\iota|_{\mathrm{out}} = o}\; \prod_r X^{(r)}_{\iota_r} ."""
    A, B, C = normal(2, 3), normal(3, 4), np.zeros((2, 4))
    for i, j, k in np.ndindex(2, 3, 4):  # every assignment of the indices
        C[i, k] += A[i, j] * B[j, k]
    same(mg.einsum("ij,jk->ik", A, B), C)


def einsum_2(normal):
    r"""\bar X^{(q)}_a = \sum_{\iota\,:\,\iota_q = a} G_{\iota|_{\mathrm{out}}} \prod_{r \ne q}
    X^{(r)}_{\iota_r} ."""
    A, B, G, dA, dB = normal(2, 3), normal(3, 4), normal(2, 4), np.zeros((2, 3)), np.zeros((3, 4))
    for i, j, k in np.ndindex(2, 3, 4):
        dA[i, j] += G[i, k] * B[j, k]
        dB[j, k] += G[i, k] * A[i, j]
    found = pulled(lambda A, B: mg.einsum("ij,jk->ik", A, B), G, A, B)
    same(found[0], dA)
    same(found[1], dB)


def embedding_1(normal):
    r"""y_k = W_{i_k} = e_{i_k} W ."""
    W = normal(4, 3)
    for k, i in enumerate(IDS):
        same(mg.embedding(IDS, W)[k], W[i], np.eye(4)[i] @ W)


def embedding_2(normal):
    r"""\frac{\partial y_{kc}}{\partial W_{rb}} = \delta_{r\, i_k}\, \delta_{cb} ."""
    W, d = normal(4, 3), np.eye(4)
    found = slope(lambda W: W[IDS], W)
    same(
        found,
        [[[[d[r, IDS[k]] * np.eye(3)[c, b] for b in range(3)] for r in range(4)] for c in range(3)] for k in range(3)],
    )


def embedding_3(normal):
    r"""\frac{\partial L}{\partial W_r} = \sum_{k\,:\; i_k = r} g_k, \qquad \frac{\partial
    L}{\partial W} = E^\top g ,"""
    W, g, E = normal(4, 3), normal(3, 3), np.eye(4)[IDS]
    by_rows = np.array([sum((g[k] for k in range(3) if IDS[k] == r), np.zeros(3)) for r in range(4)])
    same(slope(lambda W: (g * W[IDS]).sum(), W), by_rows, E.T @ g, *pulled(lambda W: mg.embedding(IDS, W), g, W))


def tying_1(normal):
    r"""L(W) = \lambda(W, W) ."""
    W = normal(4, 3)
    same(engine_loss(mg.tensor(W)), two_tables(W, W))


def tying_2(normal):
    r"""\frac{\partial L}{\partial W} = \frac{\partial \lambda}{\partial W} + \frac{\partial
    \lambda}{\partial H} = E^\top \bar x^{(0)} + \bar z^\top x ."""
    W = normal(4, 3)
    E, x = np.eye(4)[IDS], np.tanh(W[IDS])
    dz = slope(lambda z: loss_of(z, TARGETS), x @ W.T)
    dx0 = dz @ W * (1 - x**2)
    by_first, by_second = slope(lambda A: two_tables(A, W), W), slope(lambda H: two_tables(W, H), W)
    same(slope(lambda W: two_tables(W, W), W), by_first + by_second, E.T @ dx0 + dz.T @ x, *pulled(engine_loss, 1.0, W))


def tying_3(normal):
    r"""\begin{aligned} \text{two entries:}\quad W' &= W + \Delta(g_E) + \Delta(g_H), \\ \text{a
    tie:}\quad W' &= W + \Delta(g_E + g_H) . \end{aligned}"""
    W, gE, gH = normal(3, 4, 3)

    def stepped(*gradients):
        """The table after AdamW's step with an entry for each gradient, all on the same memory."""
        one = mg.Parameter(mg.tensor(W))
        entries = [one, *(mg.Parameter(one) for _ in gradients[1:])]
        for entry, g in zip(entries, gradients):
            entry.grad = mg.tensor(g)
        mg.optim.AdamW(entries, lr=0.1, weight_decay=0.0).step()
        return array(one)

    def delta(g):
        return -0.1 * g / (np.abs(g) + 1e-8)  # (adamw.4) in the first step

    same(stepped(gE, gH), W + delta(gE) + delta(gH))
    same(stepped(gE + gH), W + delta(gE + gH))


def tying_4(normal):
    r"""W' - H' = (W - \eta\, g_E) - (W - \eta\, g_H) = \eta\, (g_H - g_E) ,"""
    W, gE, gH, eta = *normal(3, 4, 3), 0.1
    same((W - eta * gE) - (W - eta * gH), eta * (gH - gE))


def cross_entropy_1(normal):
    r"""L = -\frac{1}{|C|} \sum_{k \in C} \log \mathrm{softmax}(z_k)_{t_k} ."""
    z, t = normal(3, 4), np.array([2, -100, 1])
    counts = [k for k in range(3) if t[k] != -100]
    same(mg.cross_entropy(z, t), -1 / len(counts) * sum(np.log(weights(z[k]))[t[k]] for k in counts))


def cross_entropy_2(normal):
    r"""\frac{\partial (-\ell_t)}{\partial z_j} = p_j - \delta_{jt} ."""
    z, t, d = normal(4), 2, np.eye(4)
    same(slope(lambda z: -np.log(weights(z))[t], z), [weights(z)[j] - d[j, t] for j in range(4)])


def cross_entropy_3(normal):
    r"""\bar z_k = \begin{cases} \frac{g}{|C|}\,(p_k - e_{t_k}) & k \in C \\ 0 & \text{else.}
    \end{cases}"""
    z, t, g = normal(3, 4), np.array([2, -100, 1]), 0.7
    rows = [g / 2 * (weights(z[k]) - np.eye(4)[t[k]]) if t[k] != -100 else np.zeros(4) for k in range(3)]
    same(*pulled(lambda z: mg.cross_entropy(z, t), g, z), rows)


def linear_cross_entropy_1(normal):
    r"""L = \mathrm{cross\_entropy}(x W^\top, t) ."""
    x, W = normal(3, 5), normal(4, 5)
    same(mg.linear_cross_entropy(x, W, TARGETS), mg.cross_entropy(x @ W.T, TARGETS), loss_of(x @ W.T, TARGETS))


def linear_cross_entropy_2(normal):
    r"""\bar x = \bar z\, W = g \cdot G W ,"""
    x, W, g = normal(3, 5), normal(4, 5), 0.7
    G = slope(lambda z: loss_of(z, TARGETS), x @ W.T)
    dz = g * G
    same(pulled(lambda x, W: mg.linear_cross_entropy(x, W, TARGETS), g, x, W)[0], dz @ W, g * (G @ W))


def linear_cross_entropy_3(normal):
    r"""\bar W = \bar z^\top x = g \cdot G^\top x ."""
    x, W, g = normal(3, 5), normal(4, 5), 0.7
    G = slope(lambda z: loss_of(z, TARGETS), x @ W.T)
    dz = g * G
    same(pulled(lambda x, W: mg.linear_cross_entropy(x, W, TARGETS), g, x, W)[1], dz.T @ x, g * (G.T @ x))


def embedding_aside_1(normal):
    r"""G^\top x = \sum_b G_b^\top x_b ."""
    G, x = normal(6, 4), normal(6, 5)
    same(G.T @ x, sum(G[b : b + 2].T @ x[b : b + 2] for b in (0, 2, 4)))


def reverse_1(normal):
    r"""J = J_K\, J_{K-1} \cdots J_1 ."""
    A, B, C, x = *normal(3, 3, 3), normal(3)
    one, two, three = (lambda x: np.tanh(A @ x)), (lambda x: np.exp(B @ x)), (lambda x: np.tanh(C @ x))
    J1, J2, J3 = slope(one, x), slope(two, one(x)), slope(three, two(one(x)))
    same(slope(lambda x: three(two(one(x))), x), J3 @ J2 @ J1)


def reverse_2(normal):
    r"""\bar x = J^\top \bar y = J_1^\top \bigl( J_2^\top \cdots (J_K^\top \bar y) \bigr) ."""
    A, B, C, x, g = *normal(3, 3, 3), *normal(2, 3)
    one, two, three = (lambda x: np.tanh(A @ x)), (lambda x: np.exp(B @ x)), (lambda x: np.tanh(C @ x))
    J1, J2, J3 = slope(one, x), slope(two, one(x)), slope(three, two(one(x)))
    J = slope(lambda x: three(two(one(x))), x)
    A, B, C = map(mg.tensor, (A, B, C))
    same(J.T @ g, J1.T @ (J2.T @ (J3.T @ g)), *pulled(lambda x: mg.tanh(C @ mg.exp(B @ mg.tanh(A @ x))), g, x))


def reverse_3(normal):
    r"""f \text{ sends to } a_i: \quad J_i^\top\, \bar y ."""
    a, b, g = normal(3, 3)
    J1, J2 = slope(lambda a: np.tanh(a * b), a), slope(lambda b: np.tanh(a * b), b)
    sent = pulled(lambda a, b: mg.tanh(a * b), g, a, b)
    same(sent[0], J1.T @ g)
    same(sent[1], J2.T @ g)


def reverse_4(normal):
    r"""\bar v = \sum_{w \text{ uses } v} J_w^\top\, \bar w ."""
    v, g1, g2 = normal(3, 3)
    J1, J2 = slope(np.tanh, v), slope(np.exp, v)
    same(
        slope(lambda v: g1 @ np.tanh(v) + g2 @ np.exp(v), v),
        J1.T @ g1 + J2.T @ g2,
        *pulled(lambda v: mg.sum(mg.tanh(v) * g1) + mg.sum(mg.exp(v) * g2), 1.0, v),
    )


def reverse_5(normal):
    r"""p \text{ is a parent of } v \;\Longrightarrow\; \mathrm{id}(p) < \mathrm{id}(v) ."""
    x = mg.tensor(normal(3), requires_grad=True)
    y = mg.tanh(x)
    z = mg.exp(y) * x + y
    waiting, pairs = [z.node], 0
    while waiting:
        v = waiting.pop()
        for p in getattr(v, "parents", ()):
            is_so(p.id < v.id)
            waiting.append(p)
            pairs += 1
    assert pairs > 5


def reverse_6(normal):
    r"""\bar g = J(x)\, u, \qquad \bar x = \nabla_x \bigl\langle u,\, J(x)^\top g \bigr\rangle ."""
    A, x, g, u = normal(3, 3), *normal(3, 3)
    J = slope(lambda x: np.tanh(A @ x), x)

    def rule(g, x):
        return mg.vjp(lambda x: mg.tanh(mg.matmul(mg.tensor(A), x)), x)[1](g)[0]

    dg, dx = pulled(rule, u, g, x)
    same(dg, J @ u)
    same(dx, slope(lambda x: u @ (A.T @ ((1 - np.tanh(A @ x) ** 2) * g)), x), within=1e-6)


def reverse_7(normal):
    r"""J_f(x)^\top g = J_D(x)^\top g ."""
    x, w, b, g = normal(4, 5)
    same(pulled(lambda x, w, b: mg.layer_norm(x, w, b), g, x, w, b)[0], pulled(unfused.layer_norm, g, x, w, b)[0])
    same(*pulled(mg.softmax, g, x), *pulled(unfused.softmax, g, x))


def reverse_8(normal):
    r"""\nabla_u \bigl\langle J(x)^\top u,\, v \bigr\rangle = \nabla_u \bigl\langle u,\, J(x)\,v
    \bigr\rangle = J(x)\, v ."""
    A, x, u, v = normal(3, 3), *normal(3, 3)
    J = slope(lambda x: np.tanh(A @ x), x)
    same(
        slope(lambda u: (J.T @ u) @ v, u),
        slope(lambda u: u @ (J @ v), u),
        J @ v,
        mg.jvp(lambda x: mg.tanh(mg.matmul(mg.tensor(A), x)), (mg.tensor(x),), (mg.tensor(v),))[1],
    )


def reverse_9(normal):
    r"""\nabla_x \bigl\langle \nabla f(x),\, v \bigr\rangle = H^\top v = H v ."""
    A, x, v = normal(3, 3), *normal(2, 3)

    def gradient(x):
        return A.T @ (1 - np.tanh(A @ x) ** 2)  # of the sum of tanh(A x)

    H = slope(gradient, x)
    found = mg.hvp(lambda x: mg.sum(mg.tanh(mg.matmul(mg.tensor(A), x))), (mg.tensor(x),), (mg.tensor(v),))[0]
    same(slope(lambda x: gradient(x) @ v, x), H.T @ v, H @ v, found)


def reverse_10(normal):
    r"""\text{row } i \text{ of } J = (J^\top e_i)^\top, \qquad H = J_{\nabla f} ."""
    A, x, I = normal(2, 3), normal(3), np.eye(2)
    f = lambda x: mg.tanh(mg.matmul(mg.tensor(A), x))
    J = slope(lambda x: np.tanh(A @ x), x)
    for i in range(2):
        same(mg.jacobian(f)(mg.tensor(x))[i], J[i], (J.T @ I[i]).T)
    s = lambda x: mg.sum(f(x))
    same(
        mg.hessian(s)(mg.tensor(x)),
        slope(lambda x: A.T @ (1 - np.tanh(A @ x) ** 2), x),
        mg.jacobian(mg.grad(s))(mg.tensor(x)),
    )


def sum_to_1(normal):
    r"""(S y)_j = \sum_{i\,:\,\pi(i) = j} y_i ."""
    y = normal(2, 3)
    found = [sum(y[i] for i in np.ndindex(2, 3) if pi(i) == (j,)) for j in range(3)]
    same(mg.ops.shape.sum_to(y, shape=(3,)), found)


def sum_to_2(normal):
    r"""(B x)_i = x_{\pi(i)} ."""
    x = normal(3)
    same(mg.broadcast_to(x, shape=(2, 3)), [[x[pi((i, j))] for j in range(3)] for i in range(2)])


def sum_to_3(normal):
    r"""\langle y, B x \rangle = \sum_i y_i\, x_{\pi(i)} = \sum_j x_j \sum_{i\,:\,\pi(i) = j} y_i =
    \langle S y, x \rangle ,"""
    x, y, places = normal(3), normal(2, 3), list(np.ndindex(2, 3))
    B = np.broadcast_to(x, (2, 3))
    S = np.array([sum(y[i] for i in places if pi(i) == (j,)) for j in range(3)])
    same(
        (y * B).sum(),
        sum(y[i] * x[pi(i)] for i in places),
        sum(x[j] * sum(y[i] for i in places if pi(i) == (j,)) for j in range(3)),
        S @ x,
    )


def sum_to_4(normal):
    r"""\bar a = S_a \Bigl( g \odot \frac{\partial f}{\partial a} \Bigr) ."""
    a, b, g = normal(3), normal(2, 3), normal(2, 3)
    df = (1 - np.tanh(a * b) ** 2) * b
    same(
        slope(lambda a: (g * np.tanh(a * b)).sum(), a), (g * df).sum(0), pulled(lambda a, b: mg.tanh(a * b), g, a, b)[0]
    )


def adding_an_op_aside_1(normal):
    r"""\frac{d}{dx}\, x\,\sigma(x) = \sigma(x) + x\,\sigma(x)\,(1 - \sigma(x)) = \sigma(x)\,\bigl(1
    + x\,(1 - \sigma(x))\bigr) ."""
    x = normal(5)
    s = 1 / (1 + np.exp(-x))
    same(
        np.diag(slope(lambda x: x / (1 + np.exp(-x)), x)),
        s + x * s * (1 - s),
        s * (1 + x * (1 - s)),
        *pulled(lambda x: x * mg.sigmoid(x), np.ones(5), x),
    )
