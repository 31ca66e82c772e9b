"""What a port of GPT-2 must compute: activations, loss, gradients and AdamW steps, in order."""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg

from ..config import GPT2Config, parameter_shapes
from ..hooks import STATISTICS
from ..model import GPT2

RULES = {               # the equation of a point's gradient, by the end of the point's name
    "logits": "cross_entropy.3", "attn.v": "attention.4", "attn.pattern": "attention.5",
    "attn.scores": "attention.5", "attn.q": "attention.6", "attn.k": "attention.7",
    "embed": "block.6", "pos_embed": "sum_to.4", "resid_pre": "block.6", "attn.out": "block.5",
    "resid_mid": "block.5", "ln_f.out": "linear.5",
}
FORBIDDEN = ("attn.scores", "attn.scores.grad", "attn.pattern.grad")
EPS32 = float(np.finfo(np.float32).eps)
PIECE = 1 << 22                                         # numbers compared at a time
PROCESS = 200 << 20                                     # bytes of Python and the libraries


class Adam(NamedTuple):
    """Settings of the AdamW steps, large enough that a mistake in them shows.

    Weight decay applies to all parameters; no gradient is clipped.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1


class Entry(NamedTuple):
    """A tensor of the manifest.

    unit, unit_rms: the error of our own float32 run, the largest (tolerance.7) and the root mean
    square. crc32: the checksum of the stored tensor; an older manifest has none.
    """

    name: str
    equation: str
    shape: list[int]
    dtype: str
    norm: float
    unit: float
    unit_rms: float
    crc32: str | None = None


def host(a: Any) -> np.ndarray:
    """A copy of an array of any backend."""
    return np.array(mg.backend.of(a).host(a))


def seen(a: Any) -> np.ndarray:
    """An array of any backend, on the host; not a copy if it is there already."""
    return np.asarray(mg.backend.of(a).host(a))


def gradient_of(p: mg.Tensor) -> Any:
    """The array of a parameter's gradient, after a backward pass."""
    assert p.grad is not None
    return p.grad.array


def permitted(name: str, a: np.ndarray) -> np.ndarray:
    """`a`, with 0 where the causal mask forbids.

    A causal kernel computes neither those scores nor the gradients of those weights.
    """
    return np.tril(a) if name.endswith(FORBIDDEN) else a


def judged(name: str, a: np.ndarray) -> np.ndarray:
    """`a` as it is compared with a port: after a step of AdamW, K's bias is set to 0.

    Softmax cancels K's bias, so its gradient is rounding noise, which AdamW scales up to a step of
    full size.
    """
    if not name.startswith("step.") or not name.endswith("attn.c_attn.bias"):
        return a
    q, k, v = np.split(a, 3)
    return np.concatenate([q, np.zeros_like(k), v])


def backward_order(names: Iterable[str]) -> list[str]:
    """Parameters in the order in which the backward pass completes their gradients.

    The last block comes first, the tables come last, and each weight comes before its bias.
    """
    own = list(names)
    blocks: dict[str, list[str]] = {}
    for name in own:
        blocks.setdefault(name.rpartition(".")[0], []).append(name)
    ends = [key for key in ("lm_head", "ln_f") if key in blocks]
    inner = [key for key in blocks if key.startswith("h.")]
    return [name for key in [*ends, *reversed(inner), "wpe", "wte"] for name in blocks[key]]


def equation_of_gradient(name: str, forward: Mapping[str, str], tied: bool) -> str:
    """The label of the rule for the gradient of a point or a parameter.

    tied: whether wte is also the head's matrix.
    """
    if name in forward:
        end = name.split(".", 2)[-1] if name.startswith("blocks.") else name
        if end == "mlp.pre":
            activation = forward[name.replace("mlp.pre", "mlp.act")]
            return {"gelu.1": "gelu.3", "gelu.2": "gelu.4", "relu.1": "relu.1"}[activation]
        if end in ("mlp.out", "resid_post"):            # it comes from the next block, or from ln_f
            block = int(name.split(".")[1])
            return "block.6" if f"blocks.{block + 1}.resid_pre" in forward else "layer_norm.5"
        return RULES.get(end, "linear.4")
    if ".ln_" in name or name.startswith("ln_"):
        return "layer_norm.6" if name.endswith("weight") else "layer_norm.7"
    tables = {"wte.weight": "tying.2" if tied else "embedding.3",
              "wpe.weight": "embedding.3", "lm_head.weight": "linear.5"}
    return tables.get(name, "linear.4" if name.endswith("weight") else "linear.3")


class What(NamedTuple):
    """What a ground truth contains.

    ids, targets: [B, T]. grad: with gradients. steps: number of AdamW steps. losses_only: the
    losses, and no other tensor.
    """

    ids: np.ndarray
    targets: np.ndarray | None
    grad: bool
    steps: int
    adam: Adam
    losses_only: bool = False


def computed(model: GPT2, what: What, folder: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, equation, array on the host) of each tensor for comparison, in order of computation.

    An array may be the model's own memory, so it is right only until the next tensor is computed.

    The names are those of points, as in `Hooked.points`; "loss"; NAME.grad of points, the last
    point first, and then of parameters; "step.K.loss" before the K-th AdamW step, and
    "step.K.PARAMETER" after it. folder: for the files with AdamW's moments between the steps.
    """
    ids, targets, grad, steps, adam, losses_only = what
    equations, tied = model.equations(), model.config.tie_word_embeddings
    found = model.trace(ids, targets, gradients=grad and not losses_only,
                        only="logits" if losses_only else "*")
    for name, label in equations.items():
        if not losses_only:
            yield name, label, permitted(name, seen(found.pop(name)))
    if targets is None:
        return
    yield "loss", "cross_entropy.1", seen(found["loss"])
    parameters = dict(model.named_parameters())
    order = backward_order(parameters)
    if grad and not losses_only:
        for name in [name for name in reversed(equations) if not name.endswith(STATISTICS)]:
            key = f"{name}.grad"
            label = equation_of_gradient(name, equations, tied)
            yield key, label, permitted(key, seen(found.pop(key)))
    del found
    model.recompute = True          # the same numbers, with the inside of one block in memory
    if grad and not losses_only:
        model.loss(ids, targets).backward()
        for name in order:
            label = equation_of_gradient(name, equations, tied)
            yield f"{name}.grad", label, seen(gradient_of(parameters[name]))
    moments = Moments(parameters, adam, folder)
    for step in range(1, steps + 1):
        model.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        yield f"step.{step}.loss", "cross_entropy.1", seen(loss.array)
        del loss
        for name in order:
            moments.step(name)
            if not losses_only:
                yield f"step.{step}.{name}", "adamw.4", seen(parameters[name].array)


class Moments:
    """One AdamW for each parameter, with its moments in files between the steps.

    So only the moments of one parameter are in memory at a time.
    """

    def __init__(self, parameters: Mapping[str, mg.Tensor], adam: Adam, folder: Path) -> None:
        self.parameters, self.folder, self.steps = parameters, folder, dict.fromkeys(parameters, 0)
        self.made = lambda p: mg.optim.AdamW([p], adam.lr, (adam.beta1, adam.beta2), adam.eps,
                                             adam.weight_decay)

    def step(self, name: str) -> None:
        """Change one parameter, and clear its gradient."""
        p = self.parameters[name]
        optimizer = self.made(p)
        files = {key: self.folder / f"{name}.{key}.npy" for key in ("exp_avg", "exp_avg_sq")}
        if self.steps[name]:
            moments = {key: mg.Tensor(np.load(file)).to(p.device).array
                       for key, file in files.items()}
            optimizer.state[p] = {"step": self.steps[name], **moments}
            del moments
        optimizer.step()
        for key, file in files.items():
            np.save(file, host(optimizer.state[p][key]))
        self.steps[name], p.grad = self.steps[name] + 1, None


class Spool:
    """Arrays that are written to a file one after the other, and read again in the same order."""

    def __init__(self, path: Path) -> None:
        self.path, self.kinds = path, list[tuple[str, np.dtype[Any], tuple[int, ...]]]()
        self.file = open(path, "wb")

    def append(self, name: str, a: np.ndarray) -> None:
        self.kinds.append((name, a.dtype, a.shape))
        self.file.write(np.ascontiguousarray(a).data)

    def __iter__(self) -> Iterator[np.ndarray]:
        self.file.close()
        with open(self.path, "rb") as file:
            for _, dtype, shape in self.kinds:
                yield np.fromfile(file, dtype, math.prod(shape)).reshape(shape)


def longest_sum(name: str, config: GPT2Config, ids: np.ndarray) -> int:
    """The largest number of terms in one sum on the way to a tensor."""
    n = max(config.n_inner or 4 * config.n_embd, ids.shape[1])
    behind_the_head = name == "loss" or name.endswith(".grad") or name.startswith("step.")
    return max(n, config.vocab_size, ids.size) if behind_the_head else n


def entry(name: str, equation: str, wide: np.ndarray, narrow: np.ndarray, dtype: str,
          longest: int = 1) -> Entry:
    """The manifest's entry of a tensor   (tolerance.7).

    wide: its value in float64, unfused. narrow: its value in float32, by our kernels. longest: the
    number of terms in its longest sum; a port may add them one by one.
    """
    right, narrow = judged(name, wide), judged(name, narrow)
    times = max(1.0, math.sqrt(longest) / 64.0)
    least = 0.5 * EPS32                                 # relative error of rounding to float32
    size = most = 0.0
    squares, gaps = list[float](), list[float]()
    for at in range(0, wide.size, PIECE):               # in pieces, to save memory
        whole, a, b = (x.reshape(-1)[at:at + PIECE].astype(np.float64, copy=False)
                       for x in (wide, right, narrow))
        gap = np.abs(b - a)
        size, most = max(size, float(np.abs(a).max())), max(most, float(gap.max()))
        squares.append(float(np.square(whole).sum()))
        gaps.append(float(np.square(gap).sum()))
    norm, n = math.sqrt(math.fsum(squares)), max(1, wide.size)
    return Entry(name, equation, list(wide.shape), dtype, norm, times * max(most, least * size),
                 times * max(math.sqrt(math.fsum(gaps) / n), least * norm / math.sqrt(n)))


def needs(config: GPT2Config, what: What) -> tuple[int, int]:
    """About how many bytes of memory, and of disk, the ground truth of a model takes.

    Memory: the parameters in float64, and the larger of two amounts. While activations are
    written: the activations with their gradients, and what the unfused definitions record. In a
    step: the gradients of all parameters, the logits and their parts, and some arrays as large as
    the largest parameter. Disk: for the written files and the temporary ones.
    """
    sizes = [math.prod(shape) for shape in parameter_shapes(config).values()]
    numbers, tokens = sum(sizes), what.ids.size
    d, n = config.n_embd, config.n_inner or 4 * config.n_embd
    block = 10 * d + 2 * n + 2 * config.n_head * what.ids.shape[1]
    points = tokens * (2 * d + config.n_layer * block + config.vocab_size)
    trace = points * (3 if what.grad and not what.losses_only else 1)
    step = numbers + max(sizes) + 2 * tokens * config.vocab_size if what.grad or what.steps else 0
    gradients = numbers * (what.grad + what.steps)
    told = 0 if what.losses_only else points * (2 if what.grad else 1) + gradients
    return PROCESS + 8 * (numbers + max(trace, step)), 12 * told + 16 * numbers * bool(what.steps)
