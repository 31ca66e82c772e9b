"""The CuPy kernels that choose a token: what calls choose.cu."""
from __future__ import annotations

from .kernels import fits

FILE, THREADS = "choose.cu", 1024
SUMS = 48 * 1024 // 8 - 96                              # that fit a block's shared memory


def step_choose(xp, logits, uniforms, step, seen, weights, ids, *, vocab, temperature,
                top_k, top_p, min_p, penalty):
    if not fits(logits) or logits.dtype.itemsize < 4:
        return NotImplemented
    # finite: what is 0 apart has a weight of 1
    inverse = min(1.0 / temperature, 1e30) if temperature else 0.0
    rows, width = logits.shape
    span = -(-vocab // (32 * SUMS))                     # times 32 tokens to a sum
    xp.launch("step_choose", logits.dtype, (rows,), (THREADS,), logits, uniforms, step, seen,
              weights, ids, width, vocab, top_k, span, inverse, top_p, min_p, penalty,
              shared=8 * (96 + -(-vocab // (32 * span))), file=FILE)


def step_greedy(xp, logits, ids, *, vocab):
    if not fits(logits):
        return NotImplemented
    xp.launch("step_greedy", logits.dtype, (logits.shape[0],), (THREADS,), logits, ids,
              logits.shape[1], vocab, shared=32 * (logits.dtype.itemsize + 8), file=FILE)
