"""The rows of each suite with their targets, and the work (FLOP and bytes) that each of them needs at least."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

# Sizes that are not published ones. tiny: for tests, and for a quick check that everything runs.
OWN_SIZES: dict[str, dict[str, Any]] = {"tiny": {"vocab_size": 211, "n_positions": 1024, "n_embd": 24, "n_layer": 2, "n_head": 3,
                                                 "initializer_range": 0.2}}
NICKNAMES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1.5B", "tiny": "tiny"}
PUBLISHED_SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


@dataclass(frozen=True)
class Row:
    """One piece of work that several peers do, and minigrad's targets for it.

    kind: "train" (forward, backward, AdamW), "forward" (logits of all positions), "decode" (a prompt, then `new` tokens, greedy), "start"
    (a new process up to its first token), "chain" and "op" (see `benchmarks.engines`). batch: B. tokens: T, or the prompt's length. axes:
    the axes of the scaling plots in which it is a point. The targets are ratio (the least of a peer's median divided by ours), share (the
    least share of the floor), memory (the most of our peak divided by a peer's) and seconds (the most).
    """

    name: str
    kind: str
    peers: tuple[str, ...]
    size: str = "gpt2"
    batch: int = 1
    tokens: int = 0
    new: int = 0
    threads: int | None = None
    axes: tuple[str, ...] = ()
    ratio: Mapping[str, float] = field(default_factory=dict)
    share: float | None = None
    memory: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def model(self) -> bool:
        """Whether the row runs GPT-2, for which it needs a checkpoint."""
        return self.kind in ("train", "forward", "decode", "start")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "peers": list(self.peers), "axes": list(self.axes)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Row:
        return cls(**{**fields, "peers": tuple(fields["peers"]), "axes": tuple(fields["axes"])})


# ── the rows ──
TRAIN = ("torch", "torch-compile", "jax", "llm.c")
FORWARD = ("torch", "torch-compile", "jax")
DECODE = ("transformers", "ctranslate2", "ctranslate2-int8")
CHAIN = Row("gradient of a 9-op chain on 10 numbers", "chain", ("mygrad", "autograd", "torch"), seconds=45e-6,
            ratio={"mygrad": 1.0, "autograd": 1.0})


def train(batch: int, tokens: int, **fields: Any) -> Row:
    return Row(**{"name": f"train step B{batch} T{tokens}", "kind": "train", "peers": TRAIN, "batch": batch, "tokens": tokens, **fields})


def forward(batch: int, tokens: int, **fields: Any) -> Row:
    return Row(**{"name": f"forward B{batch} T{tokens}", "kind": "forward", "peers": FORWARD, "batch": batch, "tokens": tokens, **fields})


def decode(batch: int, new: int, **fields: Any) -> Row:
    return Row(**{"name": f"decode B{batch}, {new} tokens", "kind": "decode", "peers": DECODE, "batch": batch, "tokens": 16, "new": new,
                  **fields})


def _cpu() -> list[Row]:
    return [
        train(4, 64, ratio={"torch": 2.0, "torch-compile": 2.0}, share=0.8),
        train(4, 256, ratio={"torch": 2.2, "torch-compile": 2.2, "jax": 3.0, "llm.c": 6.0}, share=0.8, memory={"torch": 0.5}),
        train(2, 1024, ratio={"torch": 2.4, "torch-compile": 2.2}, share=0.8),
        forward(4, 256, ratio={"torch": 2.1, "jax": 1.1}),
        forward(1, 1024, ratio={"torch": 2.1, "jax": 1.1}),
        decode(1, 100, ratio={"transformers": 3.0, "ctranslate2": 1.15}, share=0.9),
        decode(8, 100, ratio={"transformers": 2.5}),
        Row("process start to first token", "start", ("transformers", "ctranslate2"), tokens=16, new=1, ratio={"transformers": 8.0}),
        CHAIN,
    ]


def _ops() -> list[Row]:
    def op(name: str, shape: str, batch: int, tokens: int) -> Row:
        return Row(f"{name} {shape}", f"op {name}", ("torch",), batch=batch, tokens=tokens)

    return [CHAIN, op("layer_norm", "[1024, 768]", 1024, 768), op("gelu", "[1024, 3072]", 1024, 3072),
            op("attention", "B4 h12 T256 d64", 4, 256), op("cross_entropy", "[1024, 50257]", 1024, 50257),
            op("adamw", "38.6M numbers", 1, 38_597_376)]


def _large() -> list[Row]:
    return [
        forward(1, 256, name="355M forward B1 T256", size="gpt2-medium", peers=("torch",)),
        forward(1, 256, name="774M forward B1 T256", size="gpt2-large", peers=("torch",)),
        decode(1, 64, name="1.5B decode B1, 64 tokens", size="gpt2-xl", peers=("transformers",), share=0.9),
    ]


def _scaling() -> list[Row]:
    """The rows for time and memory over T, B, model size and cores; a row that belongs to several plots is measured once."""
    rows: dict[str, Row] = {}
    for kind, make in (("forward", forward), ("train step", train)):
        points: list[tuple[str, int, int, str, int | None]] = [("tokens", 1, T, "gpt2", None) for T in (64, 128, 256, 512, 1024)]
        points += [("batch", B, 64, "gpt2", None) for B in (1, 2, 4, 8, 16)]
        points += [("size", 1, 64, size, None) for size in PUBLISHED_SIZES]
        points += [("threads", 4, 256, "gpt2", n) for n in (1, 2)]
        for axis, B, T, size, threads in points:
            name = f"{NICKNAMES[size]} {kind} B{B} T{T}" + (f", {threads} core{'s' * (threads > 1)}" if threads else "")
            axes = (*rows[name].axes, axis) if name in rows else (axis,)
            rows[name] = make(B, T, name=name, size=size, threads=threads, axes=axes, peers=("torch",))
    return list(rows.values())


SUITES: dict[str, Callable[[], list[Row]]] = {"cpu": _cpu, "ops": _ops, "large": _large, "scaling": _scaling}


def rows_of(suites: list[str], size: str | None = None) -> list[Row]:
    """The rows of the suites, each once. size: use this model size in all rows."""
    rows = {row.name: row for suite in suites for row in SUITES[suite]()}
    return [replace(row, size=size) if size and row.model else row for row in rows.values()]


def config_of(size: str) -> Any:
    """The GPT2Config of a size, without dropout: a published one or one of OWN_SIZES."""
    from gpt2 import GPT2Config
    from gpt2.config import PUBLISHED

    fields: dict[str, Any] = PUBLISHED.get(size) or OWN_SIZES[size]
    end = 50256 if "vocab_size" not in fields else None
    return GPT2Config(**{**fields, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": end, "eos_token_id": end})


# ── the work that each row needs at least ──
def linear_flop(config: Any, positions: int) -> float:
    """FLOP of the products with weights in the forward pass: 2 for each weight of a matrix and each position."""
    d, n = config.n_embd, config.n_inner or 4 * config.n_embd
    return 2.0 * positions * (config.n_layer * (4 * d * d + 2 * d * n) + config.vocab_size * d)


def attention_flop(config: Any, batch: int, tokens: int, whole: bool = False) -> float:
    """FLOP of Q Kᵀ and P V in the forward pass: 4·d for each query and each key that it sees. whole: also for masked keys."""
    pairs = tokens * tokens if whole else tokens * (tokens + 1) / 2
    return 4.0 * config.n_layer * config.n_embd * batch * pairs


def product_flop(row: Row, config: Any, whole: bool = False) -> float:
    """FLOP of the products of a "train" or "forward" row; backward has two products for each product of forward."""
    forward = linear_flop(config, row.batch * row.tokens) + attention_flop(config, row.batch, row.tokens, whole)
    return forward * (3.0 if row.kind == "train" else 1.0)


def decode_bytes(row: Row, config: Any, itemsize: int = 4) -> float:
    """Bytes that generating `row.new` tokens must read: in each pass the weights, without the position table, and the cache."""
    from gpt2.config import num_parameters

    weights = num_parameters(config) - config.n_positions * config.n_embd
    seen = sum(row.tokens + i for i in range(1, row.new))               # the first pass reads no cache
    return float(itemsize) * (row.new * weights + 2 * config.n_layer * config.n_embd * row.batch * seen)


def memory_estimate(row: Row, config: Any, peer: str) -> float:
    """A high estimate of a peer's memory for a row, in bytes; it only decides which processes run at the same time."""
    from gpt2.config import num_parameters

    base = 0.3e9 if peer in ("minigrad", "mygrad", "autograd") else 1.0e9
    if not row.model:
        return base + 1e9 * row.kind.startswith("op ")
    d, positions = config.n_embd, row.batch * row.tokens
    weights = 4.0 * num_parameters(config)
    if peer == "floor":
        return base + 8.0 * config.vocab_size * (d + (positions if row.kind in ("train", "forward") else 0))
    logits = 4.0 * positions * config.vocab_size
    if row.kind == "train":
        scores = row.tokens * config.n_head * 3 if peer in ("jax", "llm.c") else 0
        return base + 4 * weights + 3 * logits + 4.0 * positions * config.n_layer * (34 * d + scores)
    copies = 2.0 if peer.startswith("ctranslate2") or peer == "jax" else 1.2
    return base + copies * weights + (2 * logits if row.kind == "forward" else 0)
