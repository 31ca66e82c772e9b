"""Optimisers (SGD, Adam, AdamW with parameter groups), clipping by the global norm, and learning-rate schedules."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from . import backend
from .errors import GraphError
from .tensor import Tensor

Group = dict[str, Any]


class Optimizer:
    """Parameters in groups, each with settings of its own over the defaults. `param_groups` may be changed between steps."""

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], defaults: Group) -> None:
        given = list(params)
        groups: Sequence[Any] = given if given and isinstance(given[0], dict) else [{"params": given}]
        self.param_groups: list[Group] = [{**defaults, **g, "params": list(g["params"])} for g in groups]
        everything = [p for g in self.param_groups for p in g["params"]]
        if not everything:
            raise GraphError(f"{type(self).__name__}: there are no parameters to optimise")
        if len({id(p) for p in everything}) != len(everything):
            raise GraphError(f"{type(self).__name__}: a parameter is given twice")
        self.state: dict[int, dict[str, Any]] = {}      # by the parameter's place among all parameters
        self.steps = 0

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    p.grad = None

    def step(self) -> None:
        """Change every parameter that has a gradient, in place."""
        self.steps += 1
        place = 0
        with backend.explaining(f"{type(self).__name__}.step"):
            for group in self.param_groups:
                alike: dict[Any, list[tuple[Tensor, Any, Group]]] = {}             # what can be changed together
                for p in group["params"]:
                    if p.grad is not None:
                        state = self.state.setdefault(place, {"step": 0})
                        state["step"] += 1
                        alike.setdefault((p.device, p.dtype, state["step"]), []).append((p, p.grad.array, state))
                    place += 1
                for some in alike.values():
                    ps, gs, states = zip(*some)
                    here = backend.of(gs[0])
                    here.at(gs[0])
                    self.update(here, [p.array for p in ps], gs, states, group)
                    for p in ps:
                        p.changed()

    def update(self, xp: Any, ps: Sequence[Any], gs: Sequence[Any], states: Sequence[Group], group: Group) -> None:
        """Change the arrays ps in place, from their gradients gs. All are of one device and dtype, and take the step states[0]["step"]."""
        raise NotImplementedError


class SGD(Optimizer):
    """p ← p − lr·(g + weight_decay·p)   (sgd.1), or with momentum μ: b ← μ b + g + weight_decay·p, p ← p − lr·b   (sgd.2)."""

    def __init__(self, params: Any, lr: float = 1e-3, *, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def update(self, xp: Any, ps: Sequence[Any], gs: Sequence[Any], states: Sequence[Group], group: Group) -> None:
        for p, g, state in zip(ps, gs, states):
            if group["weight_decay"]:
                g = g + group["weight_decay"] * p
            if group["momentum"]:
                if "momentum" not in state:
                    state["momentum"] = xp.array(g)
                else:
                    state["momentum"] *= group["momentum"]
                    state["momentum"] += g
                g = state["momentum"]
            p -= group["lr"] * g


def adamw_update(
    xp: Any,
    ps: Sequence[Any],
    gs: Sequence[Any],
    ms: Sequence[Any],
    vs: Sequence[Any],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    correct1: float,
    correct2: float,
) -> None:
    """One AdamW step on arrays and their gradients and moments, in place   (adamw.1–4; Loshchilov, Hutter 2019).

    m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  p ← (1 − lr·λ)p − (lr/(1−β₁ᵗ))·m/(√(v/(1−β₂ᵗ)) + ε), with correct = 1 − βᵗ.
    """
    for p, g, m, v in zip(ps, gs, ms, vs):
        m *= beta1
        m += (1.0 - beta1) * g
        v *= beta2
        v += (1.0 - beta2) * (g * g)
        if weight_decay:
            p *= 1.0 - lr * weight_decay
        p -= (lr / correct1) * m / (xp.sqrt(v / correct2) + eps)


class Adam(Optimizer):
    """Adam (Kingma, Ba 2015); its weight_decay is added to the gradient   (adamw.5), as in PyTorch."""

    decoupled = False

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, xp: Any, ps: Sequence[Any], gs: Sequence[Any], states: Sequence[Group], group: Group) -> None:
        for p, state in zip(ps, states):
            if "exp_avg" not in state:
                state.update(exp_avg=xp.zeros_like(p), exp_avg_sq=xp.zeros_like(p))
        decay, step = group["weight_decay"], states[0]["step"]
        if decay and not self.decoupled:
            gs, decay = [g + decay * p for p, g in zip(ps, gs)], 0.0
        beta1, beta2 = group["betas"]
        xp.run("adamw_update", adamw_update, ps, gs, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], lr=group["lr"],
               beta1=beta1, beta2=beta2, eps=group["eps"], weight_decay=decay, correct1=1.0 - beta1**step, correct2=1.0 - beta2**step)


class AdamW(Adam):
    """Adam with the weight decay taken off the parameter itself (Loshchilov, Hutter 2019)."""

    decoupled = True

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 1e-2) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


def decay_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[Group]:
    """Two groups: matrices and tables decay, biases and LayerNorm parameters (fewer than two axes) do not."""
    everything = list(parameters)
    return [{"params": [p for p in everything if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in everything if p.ndim < 2], "weight_decay": 0.0}]


def sums_of_squares(xp: Any, arrays: Sequence[Any]) -> Any:
    """Numbers that add up to Σ x² over the arrays, as one array [n]."""
    return xp.stack([g.reshape(-1) @ g.reshape(-1) for g in arrays])


def scale(xp: Any, arrays: Sequence[Any], factor: float) -> None:
    """Each of the arrays times the factor, in place."""
    for g in arrays:
        g *= factor


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients so that their norm together is at most max_norm   (clip.1–2); returns the norm before.

    Where a gradient is infinite or NaN the norm is too, and nothing is scaled. On a GPU the host waits once, for the norm; twice more
    where its square overflows, and it is computed with the largest number taken out   (clip.3).
    """
    grads = [p.grad.array for p in parameters if p.grad is not None]
    if not grads:
        return 0.0
    xp = backend.of(grads[0])
    xp.at(grads[0])

    def squared(arrays: Sequence[Any]) -> list[float]:
        return xp.host(xp.run("sums_of_squares", sums_of_squares, arrays)).tolist()

    with xp.errstate(over="ignore", invalid="ignore"):
        squares = squared(grads)
    norm = math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.inf
    if norm == math.inf:                                # a square overflowed, or was not finite to begin with
        tops = xp.host(xp.stack([xp.max(xp.abs(g)) for g in grads if g.size])).tolist()
        top = math.nan if any(map(math.isnan, tops)) else max(tops)
        parts = [g.reshape(-1) / top for g in grads] if 0.0 < top < math.inf else []
        norm = top * math.sqrt(math.fsum(squared(parts))) if parts else top
    if max_norm < norm < math.inf:
        xp.run("scale", scale, grads, max_norm / (norm + 1e-6))
    return norm


class GradScaler:
    """Loss scaling for float16 (Micikevicius et al. 2018), under PyTorch's name: gradients below float16's least number are lifted
    above it   (scaler.1–3), and a scale that makes them overflow is halved   (scaler.4).

        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = clip_grad_norm_(parameters, 1.0)         # infinite or NaN where they overflowed
        scaler.step(optimizer, norm)                    # then nothing is changed but the scale

    init_scale: the first factor. growth_interval: after so many steps without an overflow it is doubled. enabled=False: every method
    but step does nothing, and step always steps. All of it is decided on the host, by a number that is there already.
    """

    def __init__(self, init_scale: float = 65536.0, *, growth_factor: float = 2.0, backoff_factor: float = 0.5,
                 growth_interval: int = 2000, enabled: bool = True) -> None:
        self.factor, self.enabled = init_scale if enabled else 1.0, enabled
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        self.good = 0                                   # steps since the factor last changed

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the factor, and so every gradient on the way back   (scaler.1)."""
        return loss * self.factor if self.enabled else loss

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of the optimiser's parameters by the factor, in place   (scaler.2)."""
        grads = [p.grad.array for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.enabled and grads:
            xp = backend.of(grads[0])
            xp.at(grads[0])
            xp.run("scale", scale, grads, 1.0 / self.factor)

    def step(self, optimizer: Optimizer, norm: float) -> bool:
        """Let the optimiser step where the gradients' norm is finite, and set the next factor   (scaler.4); whether it did."""
        finite = math.isfinite(norm) or not self.enabled
        if finite:
            optimizer.step()
        if self.enabled:
            self.good = self.good + 1 if finite else 0
            if not finite:
                self.factor *= self.backoff_factor
            elif self.good == self.growth_interval:
                self.factor, self.good = self.factor * self.growth_factor, 0
        return finite


def warmup_cosine(step: int, *, max_lr: float, min_lr: float, warmup_steps: int, total_steps: int) -> float:
    """Linear up to max_lr over warmup_steps (schedule.1), then half a cosine down to min_lr at total_steps (schedule.2), min_lr after."""
    if step < warmup_steps:
        return max_lr * (step + 1) / (warmup_steps + 1)
    if step >= total_steps:
        return min_lr
    along = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return min_lr + 0.5 * (max_lr - min_lr) * (1.0 + math.cos(math.pi * along))
