"""The equations of docs/attention.md, causal-mask.md, kv-cache.md and gpu.md, by numbers."""
from __future__ import annotations

from itertools import product

import numpy as np

import minigrad as mg
from gpt2.config import GPT2Config
from gpt2.decoding.kv_cache import KVCache
from gpt2.model import GPT2
from minigrad.fused.attention import allowed, attention_weights
from minigrad.fused.packed_linear import unpack

from .by_numbers import array, differs, is_so, pulled, same, slope, weights, zero


def one_head(draw):
    """Q, K, V, the mask M, the scale s, the weights P, the result O and its cotangent g, of 4 queries and keys of 3 numbers."""
    Q, K, V, g = draw(4, 4, 3)
    M, s = np.where(np.tri(4) > 0, 0.0, -np.inf), 1 / np.sqrt(3)
    P = weights(s * Q @ K.T + M)
    return Q, K, V, M, s, P, P @ V, g


def small():
    """A model of two layers in float64, its configuration, and ids of one row."""
    config = GPT2Config(vocab_size=50, n_positions=16, n_layer=2, n_head=2, n_embd=8, initializer_range=0.3)
    return GPT2(config, dtype="float64", seed=1).eval(), config, np.array([[7, 3, 11, 2, 5]])


def causal(q, k, v):
    return mg.attention(q, k, v, causal=True)


def attention_1(normal):
    r"""O = \mathrm{softmax}\bigl(s\,Q K^\top + M\bigr)\, V, \qquad s = 1/\sqrt d"""
    Q, K, V, M, s, P, O, g = one_head(normal)
    same(mg.attention(Q, K, V, causal=True), weights(s * Q @ K.T + M) @ V)


def attention_2(normal):
    r"""S_{ij} = s \sum_a Q_{ia} K_{ja}, \qquad P_{ij} = \frac{e^{S_{ij} + M_{ij}}}{\sum_k e^{S_{ik}
    + M_{ik}}} ."""
    Q, K, V, M, s, P, O, g = one_head(normal)
    S = np.array([[s * sum(Q[i, a] * K[j, a] for a in range(3)) for j in range(4)] for i in range(4)])
    e = np.exp(S + M)
    same(
        attention_weights(Q, K, causal=True),
        [[e[i, j] / sum(e[i, k] for k in range(4)) for j in range(4)] for i in range(4)],
    )


def attention_3(normal):
    r"""O_{ia} = \sum_j P_{ij} V_{ja} \quad\text{or}\quad O = P V ."""
    Q, K, V, M, s, P, O, g = one_head(normal)
    same(
        mg.attention(Q, K, V, causal=True),
        [[sum(P[i, j] * V[j, a] for j in range(4)) for a in range(3)] for i in range(4)],
        P @ V,
    )


def attention_aside_1(normal):
    r"""\mathrm{Var}\,\langle q, k\rangle = \sum_a \mathrm{Var}(q_a k_a) = d, \qquad
    \mathrm{Var}\,(s \langle q, k \rangle) = s^2 d ,"""
    signs = np.array(list(product([-1, 1], repeat=6)))  # every q and k of 3 numbers with mean 0 and variance 1
    q, k, s = signs[:, :3], signs[:, 3:], 0.3
    same((q * k).sum(1).var(), sum((q * k)[:, a].var() for a in range(3)), 3)
    same((s * (q * k).sum(1)).var(), s**2 * 3)


def attention_4(normal):
    r"""\frac{\partial L}{\partial V_{ja}} = \sum_i P_{ij}\, g_{ia} \quad\text{or}\quad \partial V =
    P^\top g ."""
    Q, K, V, M, s, P, O, g = one_head(normal)
    by_index = [[sum(P[i, j] * g[i, a] for i in range(4)) for a in range(3)] for j in range(4)]
    same(slope(lambda V: (g * (P @ V)).sum(), V), by_index, P.T @ g, pulled(causal, g, Q, K, V)[2])


def attention_aside_2(normal):
    r"""\begin{aligned} D_i &= \sum_j P_{ij} \sum_a g_{ia} V_{ja} \\ &= \sum_a g_{ia} \sum_j P_{ij}
    V_{ja} = \sum_a g_{ia} O_{ia} . \end{aligned}"""
    Q, K, V, M, s, P, O, g = one_head(normal)
    A, J = range(3), range(4)
    for i in range(4):
        same(
            sum(P[i, j] * sum(g[i, a] * V[j, a] for a in A) for j in J),
            sum(g[i, a] * sum(P[i, j] * V[j, a] for j in J) for a in A),
            sum(g[i, a] * O[i, a] for a in A),
        )


def attention_5(normal):
    r"""\begin{aligned} \partial P &= g\, V^\top, \\ D &= \mathrm{rowsum}(P \odot \partial P) =
    \mathrm{rowsum}(g \odot O), \\ \partial S &= P \odot (\partial P - D\, \mathbf 1^\top) .
    \end{aligned}"""
    Q, K, V, M, s, P, O, g = one_head(normal)
    dP = g @ V.T
    same(slope(lambda P: (g * (P @ V)).sum(), P), dP)
    D = (P * dP).sum(1)
    same(D, (g * O).sum(1))
    same(slope(lambda S: (g * (weights(S + M) @ V)).sum(), s * Q @ K.T), P * (dP - np.outer(D, np.ones(4))))


def attention_6(normal):
    r"""\frac{\partial L}{\partial Q_{ia}} = s \sum_j \partial S_{ij}\, K_{ja} \quad\text{or}\quad
    \partial Q = s\, \partial S\, K ."""
    Q, K, V, M, s, P, O, g = one_head(normal)
    dS = slope(lambda S: (g * (weights(S + M) @ V)).sum(), s * Q @ K.T)
    by_index = [[s * sum(dS[i, j] * K[j, a] for j in range(4)) for a in range(3)] for i in range(4)]
    same(
        slope(lambda Q: (g * (weights(s * Q @ K.T + M) @ V)).sum(), Q),
        by_index,
        s * dS @ K,
        pulled(causal, g, Q, K, V)[0],
    )


def attention_7(normal):
    r"""\frac{\partial L}{\partial K_{ja}} = s \sum_i \partial S_{ij}\, Q_{ia} \quad\text{or}\quad
    \partial K = s\, \partial S^\top Q ."""
    Q, K, V, M, s, P, O, g = one_head(normal)
    dS = slope(lambda S: (g * (weights(S + M) @ V)).sum(), s * Q @ K.T)
    by_index = [[s * sum(dS[i, j] * Q[i, a] for i in range(4)) for a in range(3)] for j in range(4)]
    same(
        slope(lambda K: (g * (weights(s * Q @ K.T + M) @ V)).sum(), K),
        by_index,
        s * dS.T @ Q,
        pulled(causal, g, Q, K, V)[1],
    )


def attention_8(normal):
    r"""X^{(c, j)}_{ta} = Z_{t,\; (c h + j)\, d + a} ."""
    h, d, T = 2, 3, 4
    Z = normal(T, 3 * h * d)
    for c, part in enumerate(mg.split_heads(Z, heads=h, parts=3)):
        same(part, [[[Z[t, (c * h + j) * d + a] for a in range(d)] for t in range(T)] for j in range(h)])


def attention_9(normal):
    r"""\begin{aligned} \mathrm{join}(\mathrm{split}(Z)) &= \Pi^\top \Pi\, z = Z, \\
    \mathrm{split}^\top &= \mathrm{join}, \quad \mathrm{join}^\top = \mathrm{split} .
    \end{aligned}"""
    Z, heads = normal(4, 6), normal(2, 4, 3)
    same(mg.join_heads(*mg.split_heads(Z, heads=2)), Z)
    same(*pulled(lambda Z: mg.split_heads(Z, heads=2)[0], heads, Z), mg.join_heads(heads))
    same(*pulled(mg.join_heads, Z, heads), *mg.split_heads(Z, heads=2))


def attention_10(normal):
    r"""\begin{aligned} m_i &= \max_j\,(S_{ij} + M_{ij}), \\ \lambda_i &= m_i + \log \sum_j
    e^{S_{ij} + M_{ij} - m_i}, \\ P_{ij} &= e^{S_{ij} + M_{ij} - \lambda_i} . \end{aligned}"""
    Q, K, V, M, s, P, O, g = one_head(normal)
    S = s * Q @ K.T + M
    m = S.max(1)
    lam = m + np.log([sum(np.exp(S[i, j] - m[i]) for j in range(4)) for i in range(4)])
    same(P, np.exp(S - lam[:, None]), attention_weights(Q, K, causal=True))


def attention_11(normal):
    r"""\begin{aligned} m' &= \max\bigl(m,\; \max_{j \in J} S_{ij}\bigr), \\ z' &= e^{m - m'} z +
    \sum_{j \in J} e^{S_{ij} - m'}, \\ o' &= e^{m - m'} o + \sum_{j \in J} e^{S_{ij} - m'}\, V_j
    . \end{aligned}"""
    S, V = normal(10), normal(10, 3)
    m, z, o = -np.inf, 0.0, np.zeros(3)
    for J in (range(4), range(4, 8), range(8, 10)):
        new = max(m, max(S[j] for j in J))
        z = np.exp(m - new) * z + sum(np.exp(S[j] - new) for j in J)
        o = np.exp(m - new) * o + sum(np.exp(S[j] - new) * V[j] for j in J)
        m, seen = new, range(J[-1] + 1)
        same(m, max(S[seen]))
        same(z, sum(np.exp(S[j] - m) for j in seen))
        same(o, sum(np.exp(S[j] - m) * V[j] for j in seen))


def attention_12(normal):
    r"""O_i = o / z, \qquad \lambda_i = m + \log z ."""
    S, V = normal(10), normal(10, 3)
    m = max(S)
    z, o = sum(np.exp(S - m)), np.exp(S - m) @ V
    same(weights(S) @ V, o / z)
    same(np.log(sum(np.exp(S))), m + np.log(z))


def attention_13(normal):
    r"""j_0 \le T_k - T + i_1 - 1 ."""
    T, T_k = 5, 8
    seen = allowed(np, T, T_k, True, None)
    for i1 in range(1, T + 1):  # the last query of a block is i1 - 1
        for j0 in range(T_k):
            is_so(seen[i1 - 1, j0] == (j0 <= T_k - T + i1 - 1))


def attention_14(normal):
    r"""\begin{aligned} \partial V_J &= \sum_I P_{IJ}^\top\, g_I, \qquad \partial K_J = s \sum_I
    \partial S_{IJ}^\top\, Q_I, \\ \partial Q_I &= s \sum_J \partial S_{IJ}\, K_J .
    \end{aligned}"""
    Q, K, V, M, s, P, O, g = one_head(normal)
    dS = slope(lambda S: (g * (weights(S + M) @ V)).sum(), s * Q @ K.T)
    dQ, dK, dV = pulled(causal, g, Q, K, V)
    tiles = [slice(0, 2), slice(2, 4)]
    for J in tiles:
        same(dV[J], sum(P[I, J].T @ g[I] for I in tiles))
        same(dK[J], s * sum(dS[I, J].T @ Q[I] for I in tiles))
    for I in tiles:
        same(dQ[I], s * sum(dS[I, J] @ K[J] for J in tiles))


def causal_1(normal):
    r"""C_{ts} = [s \le t], \qquad A_{ts} = \frac{C_{ts}}{\sum_u C_{tu}} = \frac{[s \le t]}{t + 1} ."""
    T, X = 4, normal(4, 3)
    C = np.array([[float(s <= t) for s in range(T)] for t in range(T)])
    A = C / np.array([[sum(C[t, u] for u in range(T))] for t in range(T)])
    same(A, [[(s <= t) / (t + 1) for s in range(T)] for t in range(T)])
    same(A @ X, [X[: t + 1].mean(0) for t in range(T)])
    same(allowed(np, T, T, True, None), C)


def causal_mask_aside_1(normal):
    r"""A = \begin{pmatrix} 1 & 0 & 0 & 0 \\ \tfrac12 & \tfrac12 & 0 & 0 \\ \tfrac13 & \tfrac13 &
    \tfrac13 & 0 \\ \tfrac14 & \tfrac14 & \tfrac14 & \tfrac14 \end{pmatrix}"""
    same(
        np.tri(4) / np.arange(1, 5)[:, None],
        [[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [1 / 4, 1 / 4, 1 / 4, 1 / 4]],
    )


def causal_2(normal):
    r"""M = \log C, \qquad A = \mathrm{softmax}(M) ."""
    C = np.tri(4)
    with np.errstate(divide="ignore"):
        M = np.log(C)
    same(C / C.sum(1, keepdims=True), weights(M), mg.softmax(M))


def causal_3(normal):
    r"""P = \mathrm{softmax}(S + M), \qquad P_{ts} = \frac{C_{ts}\, e^{S_{ts}}}{\sum_u C_{tu}\,
    e^{S_{tu}}} ."""
    S, C = normal(4, 4), np.tri(4)
    with np.errstate(divide="ignore"):
        M = np.log(C)
    e = np.exp(S)
    same(
        weights(S + M),
        [[C[t, s] * e[t, s] / sum(C[t, u] * e[t, u] for u in range(4)) for s in range(4)] for t in range(4)],
    )


def causal_mask_aside_2(normal):
    r"""\frac{\partial y_t}{\partial x_r} = \sum_s P_{ts}\, \frac{\partial v_s}{\partial x_r} +
    \sum_s \sum_u v_s\, P_{ts}\,(\delta_{su} - P_{tu})\, \frac{\partial S_{tu}}{\partial x_r} ."""
    x, d = normal(4), np.eye(4)

    def parts(x):
        """P, v, and the slopes of the scores and of v, where token t's score of s is sin(x_t) cos(x_s)."""
        S = np.outer(np.sin(x), np.cos(x))
        return (
            np.tril(np.exp(S)) / np.tril(np.exp(S)).sum(1, keepdims=True),
            np.tanh(x),
            slope(lambda x: np.outer(np.sin(x), np.cos(x)), x),
        )

    P, v, dS = parts(x)
    dv, R = slope(np.tanh, x), range(4)
    same(
        slope(lambda x: parts(x)[0] @ np.tanh(x), x),
        [
            [
                sum(P[t, s] * dv[s, r] for s in R)
                + sum(v[s] * P[t, s] * (d[s, u] - P[t, u]) * dS[t, u, r] for s in R for u in R)
                for r in R
            ]
            for t in R
        ],
    )


def causal_4(normal):
    r"""\frac{\partial y_t}{\partial x_r} = 0 \quad\text{for all } r > t ."""
    q, k, v = normal(3, 3, 3)
    q, k, v = map(mg.tensor, (q, k, v))
    J = array(mg.jacobian(lambda x: causal(x @ q, x @ k, x @ v))(mg.tensor(normal(4, 3))))
    for t in range(4):
        for r in range(4):
            if r > t:
                zero(J[t, :, r], J[t, :, t])


def causal_mask_aside_3(normal):
    r"""\frac{\partial\,(C \odot p)_{ts}}{\partial S_{tr}} = -p_{ts}\, p_{tr} \ne 0 \quad\text{for }
    s \le t < r ."""
    S, C = normal(4, 4), np.tri(4)
    p = weights(S)
    J = slope(lambda S: C * weights(S), S)
    for t in range(4):
        for s in range(t + 1):
            for r in range(t + 1, 4):
                same(J[t, s, t, r], -p[t, s] * p[t, r])


def causal_5(normal):
    r"""P_{ts} = 0 \text{ for all } s \quad\text{where } C_{ts} = 0 \text{ for all } s,"""
    q, k = normal(2, 4, 3)
    mask = np.array([False, True, True, True])  # so query 0 may see no key
    P = attention_weights(q, k, mask, causal=True)
    zero(P[0], P[3, 1:])


def causal_6(normal):
    r"""C_{is} = [\,s \le T_k - T_q + i\,] \cdot m_s ."""
    T_q, T_k, m = 3, 5, np.array([False, True, True, True, True])
    C = allowed(np, T_q, T_k, True, m)
    same(C, [[(s <= T_k - T_q + i) * m[s] for s in range(T_k)] for i in range(T_q)])


def decode_1(normal):
    r"""y = \frac{\sum_p e^{m_p - m}\, o_p}{\sum_p e^{m_p - m}\, z_p} ."""
    a, v = normal(10), normal(10, 3)
    cuts = [slice(0, 3), slice(3, 8), slice(8, 10)]
    m_p = [max(a[p]) for p in cuts]
    z_p = [sum(np.exp(a[p] - m)) for p, m in zip(cuts, m_p)]
    o_p = [np.exp(a[p] - m) @ v[p] for p, m in zip(cuts, m_p)]
    m = max(m_p)
    share = [np.exp(one - m) for one in m_p]
    same(weights(a) @ v, sum(e * o for e, o in zip(share, o_p)) / sum(e * z for e, z in zip(share, z_p)))


def cache_1(normal):
    r"""x_t^{(l+1)} = F_l\bigl(x_t^{(l)};\, k_1^{(l)}, v_1^{(l)}, \dots, k_t^{(l)}, v_t^{(l)}\bigr)
    ."""
    model, config, ids = small()
    other = ids.copy()
    other[0, 3] = 9  # another token at position 3
    one, two = model.trace(ids), model.trace(other)
    for name in ("blocks.0.resid_post", "blocks.1.resid_post"):
        same(one[name][0, :3], two[name][0, :3])
        differs(one[name][0, 3:], two[name][0, 3:])
    for name in ("blocks.1.attn.k", "blocks.1.attn.v"):
        same(one[name][0, :, :3], two[name][0, :, :3])
        differs(one[name][0, :, 3:], two[name][0, :, 3:])


def cache_2(normal):
    r"""y_t = \mathrm{softmax}\bigl(s\, q_t K_{\le t}^\top\bigr)\, V_{\le t} ,"""
    Q, K, V, M, s, P, O, g = one_head(normal)
    for t in range(4):
        same(
            mg.attention(Q, K, V, causal=True)[t],
            weights(s * Q[t] @ K[: t + 1].T) @ V[: t + 1],
            mg.attention(Q[t : t + 1], K[: t + 1], V[: t + 1], causal=True)[0],
        )


def kv_cache_aside_1(normal):
    r"""\begin{aligned} \text{with the cache:} &\quad 2N + 2Vd + 4Ld\,t, \\ \text{without:} &\quad
    2N t + 2Vd + 2Ld\,t(t+1) , \end{aligned}"""
    N, V, L, d = 12 * 2 * 8 * 8, 50, 2, 8
    token, head, key = 2 * N, 2 * V * d, 4 * L * d  # of all blocks for a token, of the head, of attention to a key
    for t in (1, 7):
        same(token + head + key * t, 2 * N + 2 * V * d + 4 * L * d * t)
        same(sum(token + key * s for s in range(1, t + 1)) + head, 2 * N * t + 2 * V * d + 2 * L * d * t * (t + 1))


def cache_3(normal):
    r"""\text{bytes} = 2\, L\, d\, S\, B\, b ."""
    for dtype, b in (("float32", 4), ("float16", 2)):
        config = GPT2Config(vocab_size=50, n_positions=16, n_layer=3, n_head=2, n_embd=8)
        L, d, S, B = 3, 8, 5, 4
        same(KVCache(config, batch=B, size=S, dtype=dtype).nbytes, 2 * L * d * S * B * b)


def cache_4(normal):
    r"""\mathrm{pos}_{r,j} = \max(j - c_r,\, 0), \qquad \text{seen}_{r,j} = (j \ge c_r) ."""
    model, config, ids = small()
    c = [3, 0]
    cache = KVCache(config, batch=2, size=8, pad=c)
    cache.advance(2)
    pos, seen = cache.layout(rows=2, tokens=4)
    same(pos, [[max(j - c[r], 0) for j in range(2, 6)] for r in range(2)])
    same(seen[:, 0, 0], [[j >= c[r] for j in range(6)] for r in range(2)])


def cache_5(normal):
    r"""\frac{e^{a_j}\,[\,j \ge c_r\,]}{\sum_i e^{a_i}\,[\,i \ge c_r\,]} = \frac{e^{a_j}}{\sum_{i
    \ge c_r} e^{a_i}} ,"""
    a, c = normal(6), 2
    for j in range(c, 6):
        same(
            np.exp(a[j]) * (j >= c) / sum(np.exp(a[i]) * (i >= c) for i in range(6)),
            np.exp(a[j]) / sum(np.exp(a[i]) for i in range(c, 6)),
        )


def cache_6(normal):
    r"""x_t^{(0)} = \mathrm{wte}[\mathrm{id}_t] + \mathrm{wpe}[t - c] \;\ne\;
    \mathrm{wte}[\mathrm{id}_t] + \mathrm{wpe}[t] ,"""
    model, config, ids = small()
    wte, wpe, c = array(model.wte.weight), array(model.wpe.weight), 2
    before, moved = (model.trace(part)["blocks.0.resid_pre"][0] for part in (ids, ids[:, c:]))
    for t in range(c, 5):
        same(moved[t - c], wte[ids[0, t]] + wpe[t - c])
        same(before[t], wte[ids[0, t]] + wpe[t])
        differs(moved[t - c], before[t])


def packed_linear_1(normal):
    r"""W_{sc + t,\; pw + j} = \mathrm{panels}_{p,s,t,j} \qquad \begin{aligned} &0 \le p < P,\; 0
    \le s < q, \\ &0 \le t < c,\; 0 \le j < w . \end{aligned}"""
    P, q, c, w = 2, 2, 3, 4
    panels = normal(P, q, c, w)
    W = array(unpack(panels, P * w))
    for p, s, t, j in np.ndindex(P, q, c, w):
        same(W[s * c + t, p * w + j], panels[p, s, t, j])


def packed_linear_2(normal):
    r"""Y = X W + \mathbf 1\, b^\top ."""
    X, panels, b = normal(2, 6), normal(2, 2, 3, 4), normal(7)
    W = array(unpack(panels, 7))
    same(mg.packed_linear(X, panels, b, size=7), X @ W + np.outer(np.ones(2), b))


def packed_linear_3(normal):
    r"""\begin{aligned} \frac{\partial L}{\partial\, \mathrm{panels}_{p,s,t,j}} &= \sum_i
    X_{i,\,sc+t}\, G_{i,\,pw+j} \\ &= (X^\top G)_{sc+t,\; pw+j} \end{aligned}"""
    X, panels, G = normal(2, 6), normal(2, 2, 3, 4), normal(2, 8)
    found = pulled(lambda x, p: mg.packed_linear(x, p, size=8), G, X, panels)[1]
    same(found, slope(lambda p: (G * (X @ array(unpack(p, 8)))).sum(), panels))
    for p, s, t, j in np.ndindex(2, 2, 3, 4):
        same(
            found[p, s, t, j], sum(X[i, s * 3 + t] * G[i, p * 4 + j] for i in range(2)), (X.T @ G)[s * 3 + t, p * 4 + j]
        )


def packed_linear_4(normal):
    r"""Y_{i,\,pw+j} = \sum_{s<q} \Bigl(\, \sum_{t<c} X_{i,\,sc+t}\; \mathrm{panels}_{p,s,t,j}
    \Bigr) + b_{pw+j} ."""
    X, panels, b, c, w = normal(2, 6), normal(2, 2, 3, 4), normal(8), 3, 4
    Y = mg.packed_linear(X, panels, b, size=8)
    for i, p, j in np.ndindex(2, 2, 4):
        same(
            Y[i, p * w + j],
            sum(sum(X[i, s * c + t] * panels[p, s, t, j] for t in range(c)) for s in range(2)) + b[p * w + j],
        )
