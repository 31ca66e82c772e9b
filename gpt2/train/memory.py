"""What a training step will need of memory, before it starts."""
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
    """Bytes of a step by what they are for, in one of world_size processes, under the settings `args` of `gpt2.train`.

    With N = batch·block tokens, width d, MLP n, h heads, a block keeps N (8 d + 2 n + h + 4) numbers for the backward pass: what goes into
    LayerNorm twice, into c_attn, c_fc and mlp.c_proj, into GELU, and attention's Q, K, V and result; h + 4 are statistics. At the peak,
    the pass over the last GELU, four arrays [N, n] come to that (tests/test_counts.py). Logits come in blocks.
    """
    sizes = {name: math.prod(shape) for name, shape in parameter_shapes(config).items()}
    numbers = sum(sizes.values())
    trained = sum(size for name, size in sizes.items() if not any(fnmatchcase(name, pattern) for pattern in args.freeze))
    stored, computed = 8 if args.dtype == "float64" else 4, {"float64": 8, "float16": 2, "bfloat16": 2}.get(args.dtype, 4)
    rows = rows_of(args, world_size)
    d, n, tokens = config.n_embd, config.n_inner or 4 * config.n_embd, min(args.batch_size, rows) * args.block_size
    block = tokens * (8 * d + 2 * n + config.n_head + 4) * computed
    kept = config.n_layer * tokens * d * computed + block if args.recompute else config.n_layer * block
    casts = numbers * computed if computed < stored else 0
    logits = min(tokens * config.vocab_size * computed, mg.backend.get(args.backend).backend.logits)
    head = config.vocab_size * d * stored               # the head's gradient is made with the loss
    walk = kept + casts + 3 * tokens * d * computed + max(logits, 4 * tokens * n * computed) + head
    own = trained * stored
    gradients = own if world_size == 1 else 2 * own     # and the buffer in which they are summed
    earlier = (own if rows > args.batch_size else 0) + gradients - own         # of the batches before
    return {"parameters": numbers * stored, "optimizer": 2 * trained * stored, "gradients": gradients, "activations": walk - head - logits,
            "logits": logits, "total": numbers * stored + 2 * trained * stored + max(walk + earlier, gradients + block)}


def table(needs: Mapping[str, int], free: int) -> str:
    """The needs and what is free, a line each."""
    return "\n".join(f"{name:12} {size_of(value):>10}" for name, value in [*needs.items(), ("free", free)])


def check_fits(needs: Mapping[str, int], free: int, args: argparse.Namespace) -> None:
    """UsageError where a step cannot fit, with what would help."""
    if needs["total"] <= free:
        return
    state = needs["parameters"] + needs["optimizer"] + needs["gradients"]
    if state > free:
        advice = "a smaller model (--n-layer, --n-embd), or --freeze"
    else:
        more = "" if args.recompute else "--recompute, "
        advice = f"{more}a smaller --batch-size with more --gradient-accumulation-steps" if args.batch_size > 1 else \
            f"{more}a smaller --block-size"
    raise UsageError(f"a step needs about {size_of(needs['total'])} and {size_of(free)} are free; try {advice}; --dry-run shows the parts")
