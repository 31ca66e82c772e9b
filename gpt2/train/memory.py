"""The memory that a training step needs, computed before the run starts."""
from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

import minigrad as mg
from minigrad.debug import size_of

from ..config import GPT2Config, parameter_shapes
from ..errors import UsageError
from .trainer import rows_of


def footprint(config: GPT2Config, args: argparse.Namespace, world_size: int = 1) -> dict[str, int]:
    """Bytes that a step needs in one of `world_size` processes, for each purpose and in total.

    args: the settings of `gpt2.train`. With N = batch·block tokens, width d, MLP width n and h
    heads, a block saves N (8 d + 2 n + h + 4) numbers for backward: the inputs of both LayerNorms,
    of c_attn, c_fc, mlp.c_proj and GELU, and Q, K, V and the result of attention; h + 4 are
    statistics. At the peak, the backward pass of the last GELU, four arrays [N, n] are added to
    that (tests/test_counts.py). Logits are computed in blocks of rows.
    """
    sizes = {name: math.prod(shape) for name, shape in parameter_shapes(config).items()}
    numbers = sum(sizes.values())
    trained = sum(size for name, size in sizes.items()
                  if not any(fnmatchcase(name, pattern) for pattern in args.freeze))
    stored = 8 if args.dtype == "float64" else 4                    # bytes of a stored number
    computed = {"float64": 8, "float16": 2, "bfloat16": 2}.get(args.dtype, 4)
    rows = rows_of(args, world_size)
    d, n = config.n_embd, config.n_inner or 4 * config.n_embd
    tokens = min(args.batch_size, rows) * args.block_size
    block = tokens * (8 * d + 2 * n + config.n_head + 4) * computed
    saved = config.n_layer * block
    if args.recompute:
        saved = config.n_layer * tokens * d * computed + block
    casts = numbers * computed if computed < stored else 0
    logits = min(tokens * config.vocab_size * computed, mg.backend.get(args.backend).backend.logits)
    head = config.vocab_size * d * stored       # the loss computes the head's gradient
    temporary = max(logits, 4 * tokens * n * computed)
    backward = saved + casts + 3 * tokens * d * computed + temporary + head
    own = trained * stored
    # several processes sum their gradients in a buffer of the same size
    gradients = own if world_size == 1 else 2 * own
    # the gradients of earlier batches, and that buffer
    earlier = (own if rows > args.batch_size else 0) + gradients - own
    return {
        "parameters": numbers * stored,
        "optimizer": 2 * trained * stored,
        "gradients": gradients,
        "activations": backward - head - logits,
        "logits": logits,
        "total": (numbers * stored + 2 * trained * stored
                  + max(backward + earlier, gradients + block)),
    }


def table(needs: Mapping[str, int], free: int) -> str:
    """A line for each purpose, the total, and the free memory."""
    return "\n".join(f"{name:12} {size_of(value):>10}"
                     for name, value in [*needs.items(), ("free", free)])


def check_fits(needs: Mapping[str, int], free: int, args: argparse.Namespace) -> None:
    """UsageError, with advice, if a step does not fit the free memory."""
    if needs["total"] <= free:
        return
    state = needs["parameters"] + needs["optimizer"] + needs["gradients"]
    if state > free:
        advice = "a smaller model (--n-layer, --n-embd), or --freeze"
    else:
        more = "" if args.recompute else "--recompute, "
        smaller = ("a smaller --batch-size with more --gradient-accumulation-steps"
                   if args.batch_size > 1 else "a smaller --block-size")
        advice = more + smaller
    raise UsageError(f"a step needs about {size_of(needs['total'])} and {size_of(free)} are free; "
                     f"try {advice}; --dry-run shows the parts")
