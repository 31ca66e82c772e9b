"""The equations of docs/training.md, data-parallel.md and mixed-precision.md, by numbers."""
from __future__ import annotations

import math

import numpy as np

import minigrad as mg
from minigrad.engine.hooks import turns
from minigrad.optim import SGD, Adam, AdamW, GradScaler, clip_grad_norm_, warmup_cosine

from .by_numbers import array, at_most, is_so, same, slope


def stepped(kind, p, gradients, **settings):
    """A number after a step of the optimiser for each gradient, and what the optimiser keeps of it."""
    q = mg.Parameter(mg.tensor(np.array(p)))
    optimizer = kind([q], **settings)
    for g in gradients:
        q.grad = mg.tensor(np.array(g))
        optimizer.step()
    return q.item(), optimizer.state[q]


def loss(w, x, y):
    """The mean over rows of a squared error."""
    return ((np.tanh(x @ w) - y) ** 2).mean()


def sgd_1(normal):
    r"""p \leftarrow p - \eta\,(g_t + \lambda p) ,"""
    p, g, eta, lam = *normal(2), 0.1, 0.3
    same(stepped(SGD, p, [g], lr=eta, weight_decay=lam)[0], p - eta * (g + lam * p))


def sgd_2(normal):
    r"""b \leftarrow \mu b + (g_t + \lambda p), \qquad p \leftarrow p - \eta\, b ."""
    p, g, eta, lam, mu, b = normal(), normal(3), 0.1, 0.3, 0.9, 0.0
    found = stepped(SGD, p, g, lr=eta, weight_decay=lam, momentum=mu)[0]
    for t in range(3):
        b = mu * b + (g[t] + lam * p)
        p = p - eta * b
    same(found, p)


def adamw_1(normal):
    r"""\begin{aligned} m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\ v_t &= \beta_2 v_{t-1} + (1
    - \beta_2)\, g_t^2 \end{aligned}"""
    g, b1, b2, m, v = normal(3), 0.9, 0.99, 0.0, 0.0
    kept = stepped(AdamW, 1.0, g, betas=(b1, b2))[1]
    for t in range(3):
        m = b1 * m + (1 - b1) * g[t]
        v = b2 * v + (1 - b2) * g[t] ** 2
    same(kept["exp_avg"], m)
    same(kept["exp_avg_sq"], v)


def adamw_2(normal):
    r"""\mathbb{E}\, m_t = (1 - \beta_1) \sum_{s=1}^{t} \beta_1^{\,t-s}\, \bar g = (1 -
    \beta_1^{\,t})\, \bar g ,"""
    mean, b1, t = normal(), 0.9, 5
    m = stepped(AdamW, 1.0, [mean] * t, betas=(b1, 0.99))[1]["exp_avg"]  # every gradient is the mean one
    same(m, (1 - b1) * sum(b1 ** (t - s) * mean for s in range(1, t + 1)), (1 - b1**t) * mean)


def adamw_3(normal):
    r"""\hat m_t = \frac{m_t}{1 - \beta_1^{\,t}}, \qquad \hat v_t = \frac{v_t}{1 - \beta_2^{\,t}} ."""
    mean, b1, b2, t = normal(), 0.9, 0.99, 5
    kept = stepped(AdamW, 1.0, [mean] * t, betas=(b1, b2))[1]
    same(kept["exp_avg"] / (1 - b1**t), mean)  # the bias is gone
    same(kept["exp_avg_sq"] / (1 - b2**t), mean**2)


def adamw_4(normal):
    r"""p_t = (1 - \eta\lambda)\, p_{t-1} - \eta\, \frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon} ."""
    g, p, b1, b2, m, v, eta, lam, eps = normal(3), 1.0, 0.9, 0.99, 0.0, 0.0, 0.1, 0.3, 1e-2
    found = stepped(AdamW, p, g, lr=eta, betas=(b1, b2), eps=eps, weight_decay=lam)[0]
    for t in range(1, 4):
        m, v = b1 * m + (1 - b1) * g[t - 1], b2 * v + (1 - b2) * g[t - 1] ** 2
        p = (1 - eta * lam) * p - eta * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    same(found, p)


def adamw_5(normal):
    r"""g_t \leftarrow g_t + \lambda\, p_{t-1} ."""
    g, p, lam = normal(1), 1.0, 0.3
    same(stepped(Adam, p, g, lr=0.1, eps=1e-2, weight_decay=lam)[0], stepped(Adam, p, g + lam * p, lr=0.1, eps=1e-2)[0])


def clip_1(normal):
    r"""n = \sqrt{\textstyle\sum_i g_i^2} \quad \text{over all numbers of all tensors,}"""
    g = normal(3, 4)
    p = [mg.Parameter(mg.tensor(np.zeros(4))) for _ in range(3)]
    for one, its in zip(p, g):
        one.grad = mg.tensor(its)
    same(clip_grad_norm_(p, 1e9), np.sqrt(sum(one**2 for one in g.ravel())))


def clip_2(normal):
    r"""g \leftarrow g\, \frac{c}{n + 10^{-6}} \quad \text{if } c < n ."""
    for g, c in ((normal(4), 0.5), (normal(4), 50.0)):
        p = mg.Parameter(mg.tensor(np.zeros(4)))
        p.grad, n = mg.tensor(g), np.sqrt(sum(g**2))
        clip_grad_norm_([p], c)
        same(p.grad, g * c / (n + 1e-6) if c < n else g, within=1e-12)


def clip_3(normal):
    r"""n = a \sqrt{\textstyle\sum_i (g_i / a)^2} ."""
    g = normal(4)
    a = max(abs(g))
    same(np.sqrt(sum(g**2)), a * np.sqrt(sum((g / a) ** 2)))
    p = mg.Parameter(mg.tensor(np.zeros(4, np.float32)))
    p.grad = mg.tensor((1e25 * g).astype(np.float32))  # whose squares overflow
    same(clip_grad_norm_([p], 1.0) / 1e25, np.sqrt(sum(g**2)), within=1e-6)


def schedule_1(normal):
    r"""\eta_k = \eta_{\max}\, \frac{k + 1}{w + 1}, \qquad k < w ,"""
    w, n, high, low = 4, 20, 0.3, 0.1
    for k in range(w):
        same(warmup_cosine(k, max_lr=high, min_lr=low, warmup_steps=w, total_steps=n), high * (k + 1) / (w + 1))


def schedule_2(normal):
    r"""\eta_k = \eta_{\min} + \frac{\eta_{\max} - \eta_{\min}}{2} \Bigl(1 + \cos \pi \frac{k - w}{n
    - w}\Bigr), \qquad w \le k < n ."""
    w, n, high, low = 4, 20, 0.3, 0.1
    for k in range(w, n):
        same(
            warmup_cosine(k, max_lr=high, min_lr=low, warmup_steps=w, total_steps=n),
            low + (high - low) / 2 * (1 + math.cos(math.pi * (k - w) / (n - w))),
        )


def accumulate_1(normal):
    r"""L = \frac1{AN} \sum_{a=1}^{A} \sum_{i=1}^{N} \ell_{a,i} = \sum_{a=1}^{A} \frac{L_a}{A} ."""
    w, x, y = normal(3), normal(6, 3), normal(6)
    each = (np.tanh(x @ w) - y) ** 2
    A, N = 3, 2
    parts = [loss(w, x[2 * a : 2 * a + 2], y[2 * a : 2 * a + 2]) for a in range(A)]
    same(
        loss(w, x, y),
        1 / (A * N) * sum(sum(each[2 * a + i] for i in range(N)) for a in range(A)),
        sum(L / A for L in parts),
    )


def accumulate_2(normal):
    r"""\frac{\partial L}{\partial p} = \sum_{a=1}^{A} \frac{\partial}{\partial p} \frac{L_a}{A} ."""
    w, x, y, A = normal(3), normal(6, 3), normal(6), 3
    same(
        slope(loss, w, x, y),
        sum(slope(lambda w, a=a: loss(w, x[2 * a : 2 * a + 2], y[2 * a : 2 * a + 2]) / A, w) for a in range(A)),
    )


def parallel_1(normal):
    r"""L = \frac1N \sum_i \ell_i = \frac1n \sum_r L_r, \qquad L_r = \frac1{m_r} \sum_{i \in R_r}
    \ell_i ."""
    w, x, y, n = normal(3), normal(6, 3), normal(6), 3
    each = (np.tanh(x @ w) - y) ** 2
    ranks = [1 / 2 * sum(each[i] for i in (2 * r, 2 * r + 1)) for r in range(n)]
    same(loss(w, x, y), 1 / 6 * sum(each), 1 / n * sum(ranks))


def parallel_2(normal):
    r"""\nabla L = \frac1n \sum_r \nabla L_r ."""
    w, x, y, n = normal(3), normal(6, 3), normal(6), 3
    same(
        slope(loss, w, x, y), 1 / n * sum(slope(loss, w, x[2 * r : 2 * r + 2], y[2 * r : 2 * r + 2]) for r in range(n))
    )


def parallel_3(normal):
    r"""L = \sum_r \frac{m_r}{N}\, L_r = \frac1n \sum_r \Bigl( \frac{n\, m_r}{N}\, L_r \Bigr) ."""
    w, x, y = normal(3), normal(6, 3), normal(6)
    R, n, N = [range(0, 1), range(1, 3), range(3, 6)], 3, 6
    m, L = [len(rows) for rows in R], [loss(w, x[rows], y[rows]) for rows in R]
    same(loss(w, x, y), sum(m[r] / N * L[r] for r in range(n)), 1 / n * sum(n * m[r] / N * L[r] for r in range(n)))


def parallel_4(normal):
    r"""\nabla L_r = \frac1A \sum_{a=1}^{A} \nabla L_{r,a} ."""
    w, x, y, A = normal(3), normal(6, 3), normal(6), 2
    same(
        slope(loss, w, x, y), 1 / A * sum(slope(loss, w, x[3 * a : 3 * a + 3], y[3 * a : 3 * a + 3]) for a in range(A))
    )


def parallel_5(normal):
    r"""\text{bytes sent by each rank} = 2\,(n - 1)\,\frac{b}{n} = \frac{2(n-1)}{n}\, b ,"""
    for n in (2, 3, 8):
        b = 24.0 * n
        steps = [b / n for _ in range(n - 1)] + [b / n for _ in range(n - 1)]  # to add up, and to hand around
        same(sum(steps), 2 * (n - 1) * b / n, 2 * (n - 1) / n * b)


def parallel_6(normal):
    r"""c(b) = 2\,(n - 1)\,\alpha + \frac{2(n-1)}{n} \cdot \frac{b}{\beta} ."""
    alpha, beta, b, n = 0.3, 5.0, 24.0, 4
    messages = [alpha + b / n / beta for _ in range(2 * (n - 1))]
    same(sum(messages), 2 * (n - 1) * alpha + 2 * (n - 1) / n * b / beta)


def parallel_7(normal):
    r"""s_k = \max\bigl(r_k,\; s_{k-1} + c(b_{k-1})\bigr) ,"""
    ready, c = [1.0, 2.0, 7.0, 7.5], [3.0, 2.0, 1.0, 4.0]
    starts, free = [], 0.0
    for r, cost in zip(ready, c):  # minute by minute: a bucket leaves when it is there and the line is free
        now = 0.0
        while now < r or now < free:
            now += 0.5
        starts.append(now)
        free = now + cost
    s = [ready[0]]
    for k in range(1, 4):
        s.append(max(ready[k], s[k - 1] + c[k - 1]))
    same(starts, s)


def parallel_8(normal):
    r"""\text{turn of leaf } i = -\min_{v\ \text{reads}\ i} \mathrm{id}(v) + \frac{i + 1}{m + 1} ,"""
    leaves = [mg.tensor(normal(3), requires_grad=True) for _ in range(3)]
    for leaf in leaves:
        leaf.register_post_accumulate_grad_hook(lambda leaf: None)
    a = leaves[0] * leaves[1]
    b = mg.tanh(a) * leaves[2]
    end = b * leaves[0]
    found, readers = turns([end.node]), {leaf.node: [] for leaf in leaves}
    for v in (a, b, end):
        for parent in v.node.parents:
            if parent in readers:
                readers[parent].append(v.node.id)
    m = len(found)
    for i, leaf in enumerate(found):
        same(found[leaf], -min(readers[leaf]) + (i + 1) / (m + 1), within=1e-12)


def cast_1(normal):
    r"""\mathrm{round}(x) = (1 + \delta)\, x, \qquad |\delta| \le u ."""
    x = normal(1000)
    for dtype in ("float16", "float32"):
        u = float(np.finfo(dtype).eps) / 2
        delta = x.astype(dtype).astype(np.float64) / x - 1
        at_most(np.abs(delta), u * np.ones(1000), share=0.9)


def cast_2(normal):
    r"""\frac{\partial L}{\partial x} = \mathrm{round}_{\mathrm{dtype}(x)}\, \frac{\partial
    L}{\partial\, \mathrm{round}(x)} ."""
    x, g = mg.tensor(normal(5).astype(np.float16), requires_grad=True), normal(5).astype(np.float32)
    (x.astype("float32") * mg.tensor(g)).sum().backward()
    is_so(x.grad.dtype == "float16")
    same(x.grad, g.astype(np.float16))  # ∂L/∂round(x) is g


def scaler_1(normal):
    r"""L' = S L \;\Rightarrow\; \frac{\partial L'}{\partial x} = S\, \frac{\partial L}{\partial x}
    \quad \text{for every } x ."""
    x, A, S = normal(3), normal(3, 3), 8.0
    f = lambda x: mg.sum(mg.tanh(mg.tensor(A) @ x))
    same(
        mg.grad(lambda x: f(x) * S)(mg.tensor(x)),
        S * array(mg.grad(f)(mg.tensor(x))),
        slope(lambda x: S * np.tanh(A @ x).sum(), x),
    )


def scaler_2(normal):
    r"""g = \frac{1}{S}\, \frac{\partial L'}{\partial p} ."""
    x, S = normal(3), 8.0
    p = mg.Parameter(mg.tensor(x))
    optimizer, scaler = SGD([p], lr=1.0), GradScaler(S)
    scaler.scale(mg.sum(mg.tanh(p))).backward()
    scaled = array(p.grad)
    scaler.unscale_(optimizer)
    same(p.grad, 1 / S * scaled, slope(lambda x: np.tanh(x).sum(), x))


def scaler_3(normal):
    r"""2^{-25} < S\,|g| < 65520 ,"""
    S = 1024.0
    for g, survives in ((2.0**-25 / S, False), (2.0**-25 / S * 1.01, True), (65519.0 / S, True), (65520.0 / S, False)):
        with np.errstate(over="ignore"):
            stored = np.float16(S * g)
        is_so((0 < stored < np.inf) == survives == (2.0**-25 < S * abs(g) < 65520))


def scaler_4(normal):
    r"""S \leftarrow \begin{cases} S/2, \text{ no step} & \lVert g \rVert \text{ not finite,} \\ 2S
    & \text{2000 good steps on end,} \\ S & \text{else.} \end{cases}"""
    p, S = mg.Parameter(mg.tensor(1.0)), 16.0
    optimizer, scaler = SGD([p], lr=0.0), GradScaler(S)
    for norm, after in ((np.inf, S / 2), (np.nan, S / 4), *((1.0, S / 4),) * 1999, (1.0, S / 2), (1.0, S / 2)):
        p.grad = mg.tensor(np.float32(1.0))
        scaler.unscale_(optimizer)
        is_so(scaler.step(optimizer, norm) == math.isfinite(norm))
        scaler.update()
        is_so(scaler.factor == after)


def mixed_precision_aside_1(normal):
    r"""\begin{aligned} \mathrm{eps} &= 2^{-M}, & \text{largest} &= (2 - 2^{-M})\, 2^{b}, \\
    \text{least normal} &= 2^{1-b}, & \text{least} &= 2^{1-b-M} . \end{aligned}"""
    for name, E, M in (("float16", 5, 10), ("float32", 8, 23), ("float64", 11, 52)):
        f, b = np.finfo(name), 2 ** (E - 1) - 1
        is_so(float(f.eps) == 2.0**-M and float(f.max) == (2 - 2.0**-M) * 2.0**b)
        is_so(float(f.tiny) == 2.0 ** (1 - b) and float(f.smallest_subnormal) == 2.0 ** (1 - b - M))
