"""The model as a table, and its numbers of parameters, from the configuration alone."""
from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

from minigrad.debug import size_of

from ..cli.command import at_least
from ..cli.tables import number, table
from ..config import GPT2Config, parameter_shapes, training_flop_per_token
from ..errors import UsageError
from ..model_flags import add_weights, config_of
from .result import Found

KINDS = ("token embedding", "position embedding", "attention", "MLP", "LayerNorm", "head")


class Stage(NamedTuple):
    """A step of the forward pass: its module, what it computes, the shape of its result, its cost.

    times: how often the model has this step.
    """

    module: str
    computes: str
    shape: tuple[int, ...]
    parameters: int
    flop: int
    times: int


def stages(config: GPT2Config, batch: int, tokens: int) -> list[Stage]:
    """The steps of a forward pass over batch·tokens tokens in order; those of a block occur once.

    flop counts matrix products: 2·m·k·n for [m, k] @ [k, n]. Attention is counted as if every query
    read all T keys, as is usual. Elementwise operations are thousands of times fewer and are not
    counted.
    """
    B, T, V, L = batch, tokens, config.vocab_size, config.n_layer
    d, h, n = config.n_embd, config.n_head, config.n_inner or 4 * config.n_embd
    act = config.activation_function
    return [
        Stage("wte", "rows of the token table", (B, T, d), V * d, 0, 1),
        Stage("wpe", "rows of the position table", (T, d), config.n_positions * d, 0, 1),
        Stage("ln_1", "LayerNorm", (B, T, d), 2 * d, 0, L),
        Stage("attn.c_attn", "Q, K and V, x W + b", (B, T, 3 * d), 3 * d * d + 3 * d,
              6 * B * T * d * d, L),
        Stage("attn", "softmax(Q Kᵀ/√(d/h) + M)", (B, h, T, T), 0, 2 * B * T * T * d, L),
        Stage("attn", "weights times V", (B, h, T, d // h), 0, 2 * B * T * T * d, L),
        Stage("attn.c_proj", "x W + b, onto the residual stream", (B, T, d), d * d + d,
              2 * B * T * d * d, L),
        Stage("ln_2", "LayerNorm", (B, T, d), 2 * d, 0, L),
        Stage("mlp.c_fc", f"{act}(x W + b)", (B, T, n), d * n + n, 2 * B * T * d * n, L),
        Stage("mlp.c_proj", "x W + b, onto the residual stream", (B, T, d), n * d + d,
              2 * B * T * d * n, L),
        Stage("ln_f", "LayerNorm", (B, T, d), 2 * d, 0, 1),
        Stage("lm_head", "x Wᵀ with W = wte" if config.tie_word_embeddings else "x Wᵀ", (B, T, V),
              0 if config.tie_word_embeddings else V * d, 2 * B * T * d * V, 1),
    ]


def arch_flags(p: argparse.ArgumentParser) -> None:
    add_weights(p)
    p.add_argument("--batch-size", type=at_least(1), default=1, metavar="N",
                   help="rows of the batch (default: 1)")
    p.add_argument("--block-size", type=at_least(1), metavar="N",
                   help="tokens of a row (default: the model's context)")


def arch(args: argparse.Namespace) -> Found:
    config = config_of(args)
    tokens = args.block_size or config.n_positions
    if tokens > config.n_positions:
        raise UsageError(f"--block-size {tokens} is more than the context of {config.n_positions}")
    rows = stages(config, args.batch_size, tokens)
    parameters = sum(stage.parameters * stage.times for stage in rows)
    flop = sum(stage.flop * stage.times for stage in rows)
    totals = {
        "parameters": parameters, "bytes": 4 * parameters, "forward_flop": flop,
        "forward_flop_per_token": flop // (args.batch_size * tokens),
        "training_flop_per_token": training_flop_per_token(config, tokens),
        "kv_bytes_per_token": 2 * 4 * config.n_layer * config.n_embd,
        "untrained_loss": math.log(config.vocab_size),
    }
    per_token = _flop(flop / args.batch_size / tokens)
    cells = []
    for s in rows:
        in_block = (s.times == config.n_layer
                    and s.module.startswith(("ln_1", "ln_2", "attn", "mlp")))
        cells.append((f"h.i.{s.module}" if in_block else s.module, s.computes, str(list(s.shape)),
                      s.times, s.parameters, size_of(4 * s.parameters) if s.parameters else "",
                      _flop(s.flop) if s.flop else ""))
    header = ("module", "computes", "out", "×", "parameters", "float32", "FLOP")
    lines = [*table(header, cells, left=3), "",
             f"{parameters:,} parameters, {size_of(4 * parameters)} in float32; every × counted",
             f"forward, {args.batch_size} × {tokens} tokens: {_flop(flop)}FLOP in products, "
             f"{per_token}FLOP a token",
             f"training: 6 N + 12 L d T = {totals['training_flop_per_token']:,} FLOP a token, "
             "N without the position table",
             f"KV cache: {totals['kv_bytes_per_token']:,} B a token in float32; "
             f"loss untrained: ln V = {totals['untrained_loss']:.4f} nats"]
    document = {"model": args.model, "config": config.to_dict(),
                "stages": [s._asdict() for s in rows], **totals}
    return Found(document, lines)


def _flop(x: float) -> str:
    """A number of operations, with the prefix of its unit or a space."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if x >= size:
            return f"{x / size:.3f} {letter}"
    return f"{x:.0f} "


def kind_of(name: str) -> str:
    """Which of KINDS a parameter is."""
    tables = {"wte.weight": "token embedding", "wpe.weight": "position embedding",
              "lm_head.weight": "head"}
    if name in tables:
        return tables[name]
    if ".ln_" in name or name.startswith("ln_"):
        return "LayerNorm"
    return "attention" if ".attn." in name else "MLP"


def counts(config: GPT2Config) -> dict[str, dict[str, int]]:
    """Parameters by kind, each {"weight", "bias"}; a tied head has no parameters of its own."""
    out = {kind: {"weight": 0, "bias": 0} for kind in KINDS
           if kind != "head" or not config.tie_word_embeddings}
    for name, shape in parameter_shapes(config).items():
        out[kind_of(name)]["bias" if name.endswith(".bias") else "weight"] += math.prod(shape)
    return out


def params_flags(p: argparse.ArgumentParser) -> None:
    add_weights(p)


def params(args: argparse.Namespace) -> Found:
    config = config_of(args)
    by_kind, shapes = counts(config), parameter_shapes(config)
    total = sum(sum(parts.values()) for parts in by_kind.values())
    block = {name.removeprefix("h.0."): math.prod(shape) for name, shape in shapes.items()
             if name.startswith("h.0.")}
    weight, bias = (sum(parts[part] for parts in by_kind.values()) for part in ("weight", "bias"))
    tied = config.vocab_size * config.n_embd if config.tie_word_embeddings else 0
    percent = {kind: {"weight": 100 * p["weight"] / total,
                      "together": 100 * sum(p.values()) / total}
               for kind, p in by_kind.items()}
    rows: list[tuple[Any, ...]] = [
        (kind, p["weight"], p["bias"], sum(p.values()),
         *(f"{share:.3f}" for share in percent[kind].values()))
        for kind, p in by_kind.items()]
    rows.append(("all", weight, bias, total, f"{100 * weight / total:.3f}", "100.000"))
    of_block = [(name, size, str(list(shapes[f"h.0.{name}"]))) for name, size in block.items()]
    lines = [*table(("kind", "weight", "bias", "together", "weight, %", "together, %"), rows), "",
             *table((f"each of the {config.n_layer} blocks", "numbers", "shape"),
                    [*of_block, ("together", sum(block.values()), "")]), ""]
    if tied:
        lines.append("the head is the token embedding: an untied head would add "
                     f"{number(tied)}, {100 * tied / total:.2f} %")
    return Found({"model": args.model, "total": total, "weight": weight, "bias": bias,
                  "kinds": by_kind, "percent": percent, "block": block,
                  "blocks": config.n_layer, "saved_by_tying": tied}, lines)
