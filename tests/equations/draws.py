"""The equations of docs/sampling.md, by numbers."""
from __future__ import annotations

import math

import numpy as np

from gpt2.decoding.prompt_lookup import Lookup
from gpt2.decoding.sampling import SamplingOptions, choose, process_logits, sample

from .by_numbers import integral, is_so, same, slope, weights


def kept(z, **options):
    """The ids that options leave of one row of logits."""
    return np.flatnonzero(process_logits(z[None], SamplingOptions(**options))[0] > -np.inf).tolist()


def sampling_1(normal):
    r"""w_i = e^{(z_i - m)/\tau}, \quad p_i = \frac{w_i}{\sum_j w_j}, \quad m = \max_j z_j"""
    z, tau = normal(6), 0.7
    m = max(z)
    w = np.exp((z - m) / tau)
    same(np.exp(process_logits(z[None], SamplingOptions(temperature=tau))[0]), [w[i] / sum(w) for i in range(6)])


def sampling_2(normal):
    r"""\frac{p_i}{p_j} = e^{(z_i - z_j)/\tau} ."""
    z, tau = normal(6), 0.7
    p = np.exp(process_logits(z[None], SamplingOptions(temperature=tau))[0])
    for i, j in np.ndindex(6, 6):
        same(p[i] / p[j], np.exp((z[i] - z[j]) / tau))


def sampling_3(normal):
    r"""i^\ast = \min\,\{\, i : z_i = m \,\} ."""
    z = np.array([1.0, 3.0, 2.0, 3.0])
    m = max(z)
    same(choose(z[None], SamplingOptions(greedy=True), (), np.array([0.9]))[0], min(i for i in range(4) if z[i] == m))


def sampling_4(normal):
    r"""C_i = \sum_{j \le i} w_j, \quad i(u) = \min\,\{\, i : C_i > u\, C_V \,\} ."""
    z = normal(6)
    w = np.exp(z - max(z))
    C = [sum(w[j] for j in range(6) if j <= i) for i in range(6)]
    for u in (0.0, 0.2, 0.5, 0.8, 0.99):
        i = min(i for i in range(6) if C[i] > u * C[-1])
        same(sample(np.log(weights(z))[None], np.array([u]))[0] + 1, i + 1)


def sampling_5(normal):
    r"""P\bigl(i(u) = i\bigr) = P\bigl(C_{i-1} \le u\, C_V < C_i\bigr) = \frac{w_i}{C_V} = p_i ."""
    z = normal(6)
    w, p = np.exp(z - max(z)), weights(z)
    C, u = np.cumsum(w), (np.arange(20000) + 0.5) / 20000  # u as often in each part of [0, 1)
    ids = np.array([min(i for i in range(6) if C[i] > v * C[-1]) for v in u])
    for i in range(6):
        interval = np.mean(((C[i] - w[i]) <= u * C[-1]) & (u * C[-1] < C[i]))
        same(np.mean(ids == i), interval, w[i] / C[-1], p[i], within=2e-4)


def sampling_6(normal):
    r"""\begin{aligned} b &= \min\,\{\, b : S_b > t \,\}, \\ i &= \min\,\{\, i \in b : S_{b-1} +
    \textstyle\sum_{j \in b,\, j \le i} w_j > t \,\} . \end{aligned}"""
    z = normal(1000)
    w = np.exp(z - max(z))
    blocks = [range(b, min(b + 256, 1000)) for b in range(0, 1000, 256)]
    S = np.cumsum([sum(w[b]) for b in blocks])
    for u in (0.01, 0.3, 0.6, 0.9, 0.999):
        t = u * S[-1]
        b = min(b for b in range(4) if S[b] > t)
        below = S[b - 1] if b else 0.0
        i = min(i for i in blocks[b] if below + sum(w[j] for j in blocks[b] if j <= i) > t)
        same(sample(np.log(weights(z))[None], np.array([u]))[0], i, min(i for i in range(1000) if sum(w[: i + 1]) > t))


def sampling_7(normal):
    r"""i = \arg\max_i\,(a_i + G_i), \quad a_i = z_i/\tau, \quad G_i = -\ln(-\ln u_i) ."""
    z, tau, n = normal(4), 0.7, 200_000
    a, u = z / tau, np.random.default_rng(5).random((n, 4))
    G = -np.log(-np.log(u))
    drawn = np.argmax(a + G, axis=1)
    same(np.bincount(drawn) / n, weights(a), within=5 / math.sqrt(n))


def sampling_8(normal):
    r"""P(G_i \le x) = e^{-e^{-x}}, \quad \text{with density } e^{-x}\, e^{-e^{-x}} ."""
    u = (np.arange(100_000) + 0.5) / 100_000
    G = -np.log(-np.log(u))
    for x in (-0.5, 0.3, 1.0):
        same(np.mean(G <= x), math.exp(-math.exp(-x)), within=2e-5)
        same(slope(lambda x: np.exp(-np.exp(-x)), x), math.exp(-x) * math.exp(-math.exp(-x)))


def sampling_9(normal):
    r"""P(i) = \int_{-\infty}^{\infty} e^{a_i - x}\, e^{-S e^{-x}}\, \mathrm{d}x = e^{a_i}\!
    \int_0^\infty e^{-S t}\, \mathrm{d}t = \frac{e^{a_i}}{S} = p_i ."""
    a = normal(4)
    S = sum(np.exp(a))
    for i in range(4):
        same(
            integral(lambda x: np.exp(a[i] - x) * np.exp(-S * np.exp(-x)), -5, 30),
            math.exp(a[i]) * integral(lambda t: np.exp(-S * t), 0, 40),
            math.exp(a[i]) / S,
            weights(a)[i],
        )


def sampling_10(normal):
    r"""\text{kept} = \{\, i : z_i \ge z_{(k)} \,\} ."""
    z = np.array([1.0, 2.0, 1.0, 0.0, 1.5])
    for k in (1, 2, 3, 4):
        z_k = sorted(z, reverse=True)[k - 1]
        is_so(kept(z, top_k=k) == [i for i in range(5) if z[i] >= z_k])


def sampling_11(normal):
    r"""N = \min\,\{\, n : w_{(1)} + \dots + w_{(n)} \ge p\, W \,\} ."""
    z = normal(8)
    w = np.sort(np.exp(z - max(z)))[::-1]
    for p in (0.1, 0.5, 0.9, 0.99):
        N = min(n for n in range(1, 9) if sum(w[:n]) >= p * sum(w))
        same(len(kept(z, top_p=p)), N)


def sampling_12(normal):
    r"""V - N = \max\,\{\, n : w_{(V)} + \dots + w_{(V-n+1)} \le (1 - p)\, W \,\} ,"""
    z = normal(8)
    w, V = np.sort(np.exp(z - max(z)))[::-1], 8
    for p in (0.1, 0.5, 0.9, 0.99):
        gone = max(n for n in range(8) if sum(w[V - n :]) <= (1 - p) * sum(w))
        same(len(kept(z, top_p=p)), V - gone)


def sampling_13(normal):
    r"""w_i \le (1 - p)\, W / V \;\Rightarrow\; i \text{ is dropped,}"""
    z, V = normal(50), 50
    w = np.exp(z - max(z))
    for p in (0.5, 0.8):
        small = [i for i in range(V) if w[i] <= (1 - p) * sum(w) / V]
        is_so(small and not set(small) & set(kept(z, top_p=p)))


def sampling_14(normal):
    r"""\text{kept} = \{\, i : p_i \ge q\, \max_j p_j \,\} = \{\, i : w_i \ge q \,\} ."""
    z, q = normal(8), 0.3
    w, p = np.exp(z - max(z)), weights(z)
    is_so(kept(z, min_p=q) == [i for i in range(8) if p[i] >= q * max(p)] == [i for i in range(8) if w[i] >= q])


def sampling_15(normal):
    r"""z_i \leftarrow \begin{cases} z_i / r & z_i > 0 \\ z_i\, r & z_i \le 0 \end{cases} \qquad (i
    \text{ seen}) ."""
    z, r, seen = normal(8), 1.3, [0, 3, 4, 7]
    by_hand = [z[i] if i not in seen else z[i] / r if z[i] > 0 else z[i] * r for i in range(8)]
    same(np.exp(process_logits(z[None], SamplingOptions(repetition_penalty=r), [seen])[0]), weights(np.array(by_hand)))
    is_so({z[i] > 0 for i in seen} == {True, False})


def sampling_16(normal):
    r"""\hat x_{n+i} = x_{a + (i \bmod (n - a))} , \quad i = 0, 1, \dots"""
    x = [5, 1, 2, 3, 7, 8, 1, 2, 3]  # the last three stood at 1, so the place after that is 4
    n, a = len(x), 4
    is_so(Lookup(x).propose(8) == [x[a + i % (n - a)] for i in range(8)])


def sampling_17(normal):
    r"""x_{n+i} = f\bigl(z_{n+i},\; u_{n+i},\; x_{<n+i}\bigr), \quad \text{stop at the first }
    x_{n+i} \ne \hat x_{n+i} ."""

    def f(place, before):
        """The next token: of its place, for the logits and the draw belong to it, and of the tokens before."""
        return (sum(before[-2:]) * 3 + place % 2) % 4

    def text(guesses):
        """Tokens one pass after the other; each pass accepts until a guess is another token."""
        x, passes = [1, 2], 0
        while len(x) < 40:
            hat = Lookup(x).propose(guesses)
            passes += 1
            for i in range(len(hat) + 1):
                x.append(f(len(x), x))  # of real tokens alone, for all guesses so far were right
                if i == len(hat) or x[-1] != hat[i]:
                    break
        return x[:40], passes

    (alone, many), (ahead, few) = text(0), text(4)
    is_so(alone == ahead and few < many)
