"""Optimisers, clipping by the global norm, and learning-rate schedules.

The optimisers are SGD, Adam and AdamW, with groups of parameters.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from . import backend, hints
from .backend.base import half
from .engine.graph import enable_grad
from .engine.making import Parameter
from .engine.tensor import Tensor
from .errors import GraphError
from .nn import Module, forget
from .widen import narrowed, widened

Group = dict[str, Any]


def number(where: str, value: Any, below: float = math.inf) -> float:
    """A setting as a Python number: an operation with it does not change an array's dtype.

    TypeError for a value that is not a number; ValueError for NaN, a number below 0, or one that is
    not below `below`.
    """
    if not isinstance(value, Real):
        raise TypeError(f"{where} is {value!r}, a {type(value).__name__}; a number is needed")
    if not 0.0 <= float(value) < below:
        top = f" and below {below:g}" if below < math.inf else ""
        raise ValueError(f"{where} must be a finite number, at least 0{top}, not {value}")
    return float(value)


_HINT = "pass a list of Tensors, such as list(model.parameters())"


def listed(where: str, params: Any) -> list[Any]:
    """The argument `params` as a list.

    TypeError if it is not an ordered collection; GraphError for a generator that was used up.
    """
    kind = type(params).__name__
    refused = (Tensor, Module, str, dict, set, frozenset)
    if isinstance(params, refused) or not isinstance(params, Iterable):
        raise TypeError(f"{where}: the parameters are a {kind}; {_HINT}")
    found = list(params)
    if not found and iter(params) is params:
        raise GraphError(f"{where}: the {kind} is empty; it can be read only once; {_HINT}")
    return found


def tensors(where: str, params: Any) -> list[Tensor]:
    """The Tensors of a list or generator of Tensors, or of pairs as in `model.named_parameters()`.

    TypeError for anything else.
    """
    found = [p[1] if isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) else p
             for p in listed(where, params)]
    for i, p in enumerate(found):
        if not isinstance(p, Tensor):
            raise TypeError(f"{where}: parameter {i} is a {type(p).__name__}; {_HINT}")
    return found


class Optimizer:
    """Parameters in groups; the settings of a group override the defaults.

    params: Tensors, or pairs of a name and a Tensor, or groups: dicts with "params" and settings.
    `param_groups` may be changed between steps; `state` holds each parameter's moments and step.
    TypeError for something that is not a parameter or not a setting; ValueError for a setting out
    of its range. GraphError if there are no parameters, if one is passed twice, if one is a result
    and not a leaf, or if a Tensor requires no gradient. A frozen Parameter is accepted.
    """

    def __init__(self, params: Iterable[Any], defaults: Group) -> None:
        self.defaults = defaults
        self.param_groups: list[Group] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.steps = 0                                  # the number of steps so far
        given = listed(type(self).__name__, params)
        groups = given if any(isinstance(g, dict) for g in given) else [{"params": given}]
        for group in groups:
            self.add_param_group(group)
        if not any(group["params"] for group in self.param_groups):
            raise GraphError(f"{type(self).__name__}: there are no parameters to optimise")

    def add_param_group(self, group: Group) -> None:
        """Add a group, with the same checks as for the first groups."""
        me = type(self).__name__
        if not isinstance(group, dict) or "params" not in group:
            what = f"a {type(group).__name__}"
            what += f" of {[*group]}" if isinstance(group, dict) else ""
            raise TypeError(f"{me}: a group is a dict such as "
                            f"{{\"params\": model.parameters(), \"lr\": 0.1}}, not {what}")
        if unknown := group.keys() - self.defaults.keys() - {"params"}:
            raise TypeError(f"{me}: a group has no setting {min(map(str, unknown))}; "
                            f"the settings are {', '.join(self.defaults)}")
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else tensors(me, params)
        known = {id(p) for p in self._parameters()}
        for i, p in enumerate(params):
            if not p.is_leaf:
                raise GraphError(f"{me}: parameter {i}, {p.node!r}, is a result, not a leaf, and "
                                 "changing it has no effect; pass the leaves that it was computed "
                                 "from")
            if not p.requires_grad and not isinstance(p, Parameter):
                raise GraphError(f"{me}: parameter {i}, {p.dtype}{list(p.shape)}, requires no "
                                 "gradient and would never change; call requires_grad_() first")
            if id(p) in known:
                raise GraphError(f"{me}: parameter {i} of the group was passed twice")
            known.add(id(p))
        made = {**self.defaults, **group, "params": params}
        self.check(made)
        self.param_groups.append(made)

    def check(self, group: Group) -> None:
        """Raise an error for a setting out of its range; convert NumPy's numbers to Python's."""
        me = type(self).__name__
        for name in ("lr", "momentum", "eps", "weight_decay"):
            if name in group:
                group[name] = number(f"{me}: {name}", group[name])
        if "betas" in group:
            betas = group["betas"]
            if not isinstance(betas, (tuple, list)) or len(betas) != 2:
                raise TypeError(f"{me}: betas is {betas!r}; pass two numbers, such as "
                                "(0.9, 0.999)")
            group["betas"] = tuple(number(f"{me}: betas[{i}]", b, below=1.0)
                                   for i, b in enumerate(betas))

    def _parameters(self) -> list[Tensor]:
        """The parameters of all groups, in order."""
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and settings, in PyTorch's format.

        The keys of `state` are the parameters' numbers; a group has these numbers and its settings.
        The moments are the optimiser's own arrays, so its steps change them.
        """
        at = {p: i for i, p in enumerate(self._parameters())}
        state = {at[p]: dict(kept) for p, kept in self.state.items()}
        groups = [{**group, "params": [at[p] for p in group["params"]]}
                  for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; its arrays are copied.

        ValueError if its groups have other sizes or a setting is out of range; then nothing is
        changed.
        """
        me, groups = type(self).__name__, kept["param_groups"]
        sizes = [len(group["params"]) for group in self.param_groups]
        given = [len(group["params"]) for group in groups]
        if sizes != given:
            raise ValueError(f"{me}.load_state_dict: the groups have {given} parameters, but the "
                             f"groups of this optimiser have {sizes}")
        places = [i for group in groups for i in group["params"]]
        made = {}
        for p, i in zip(self._parameters(), places):
            if i in kept["state"]:
                there = backend.of(p.array).device(p.array)
                made[p] = {name: there.array(value) if hasattr(value, "shape") else value
                           for name, value in kept["state"][i].items()}
        settings = [{name: value for name, value in group.items() if name != "params"}
                    for group in groups]
        for other in settings:
            self.check(other)
        for group, other in zip(self.param_groups, settings):
            group.update(other)
        self.state = made

    def __repr__(self) -> str:
        """The settings and the sizes of each group."""
        rows = []
        for group in self.param_groups:
            settings = [f"{name}={value!r}" for name, value in group.items() if name != "params"]
            numbers = sum(p.numel() for p in group["params"])
            size = f"{len(group['params'])} Tensors of {numbers:,} numbers"
            rows.append(", ".join([size, *settings]))
        inside = rows[0] if len(rows) == 1 else "\n" + "".join(f"  {row}\n" for row in rows)
        return f"{type(self).__name__}({inside})"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients; with set_to_none=False make them zero instead."""
        for group in self.param_groups:
            forget(group["params"], set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change every parameter that has a gradient, in place.

        closure: a function that computes and returns the loss; it is called first, with recording
        on, and `step` returns the loss.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        self.steps += 1
        with backend.explaining(f"{type(self).__name__}.step"):
            for group in self.param_groups:
                self.check(group)                       # a schedule may have changed it
                alike: dict[Any, list[tuple[Tensor, Any, Group]]] = {}  # updated in one call
                for p in group["params"]:
                    if p.grad is not None:
                        state = self.state.setdefault(p, {"step": 0})
                        state["step"] += 1
                        kind = (p.device, p.dtype, state["step"])
                        alike.setdefault(kind, []).append((p, p.grad.array, state))
                for some in alike.values():
                    ps, gs, states = zip(*some)
                    here = backend.of(gs[0])
                    here.at(gs[0])
                    arrays = [p.array for p in ps]
                    ready = [widened(a) for a in arrays]  # 16-bit parameters have float32 moments
                    self.update(here, ready, [widened(g) for g in gs], states, group)
                    for p, array, made in zip(ps, arrays, ready):
                        if made is not array:
                            array[...] = narrowed(made, array.dtype)
                        p.changed()
        return loss

    def update(self, xp: Any, ps: Sequence[Any], gs: Sequence[Any], states: Sequence[Group],
               group: Group) -> None:
        """Change the arrays ps in place, from their gradients gs.

        All are on one device and have one dtype; states[0]["step"] is the number of this step.
        """
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent: p ← p − lr·(g + weight_decay·p)   (sgd.1).

    With momentum μ: b ← μ b + g + weight_decay·p, p ← p − lr·b   (sgd.2).
    """

    @hints.instead
    def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.0, *,
                 weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def update(self, xp: Any, ps: Sequence[Any], gs: Sequence[Any], states: Sequence[Group],
               group: Group) -> None:
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


def adamw_update(xp: Any, ps: Sequence[Any], gs: Sequence[Any], ms: Sequence[Any],
                 vs: Sequence[Any], *, lr: float, beta1: float, beta2: float, eps: float,
                 weight_decay: float, correct1: float, correct2: float) -> None:
    """One AdamW step, which changes arrays and their moments in place   (adamw.1–4).

    m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  p ← (1 − lr·λ)p − (lr/(1−β₁ᵗ))·m/(√(v/(1−β₂ᵗ)) + ε),
    with correct = 1 − βᵗ (Loshchilov, Hutter 2019).
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
    """Adam (Kingma, Ba 2015); weight decay is part of the gradient   (adamw.5), as in PyTorch."""

    decoupled = False

    @hints.instead
    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps,
                                  "weight_decay": weight_decay})

    def update(self, xp: Any, ps: Sequence[Any], gs: Sequence[Any], states: Sequence[Group],
               group: Group) -> None:
        for p, state in zip(ps, states):
            if "exp_avg" not in state:
                state.update(exp_avg=xp.zeros_like(p), exp_avg_sq=xp.zeros_like(p))
        decay, step = group["weight_decay"], states[0]["step"]
        if decay and not self.decoupled:
            gs, decay = [g + decay * p for p, g in zip(ps, gs)], 0.0
        beta1, beta2 = group["betas"]
        ms, vs = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        xp.run("adamw_update", adamw_update, ps, gs, ms, vs, lr=group["lr"], beta1=beta1,
               beta2=beta2, eps=group["eps"], weight_decay=decay, correct1=1.0 - beta1**step,
               correct2=1.0 - beta2**step)


class AdamW(Adam):
    """Adam with decoupled weight decay: the parameter itself decays (Loshchilov, Hutter 2019)."""

    decoupled = True

    @hints.instead
    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


def decay_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[Group]:
    """Two groups: matrices and tables decay, biases and the parameters of LayerNorm do not.

    A parameter decays if it has at least two axes.
    """
    everything = tensors("decay_groups", parameters)
    return [{"params": [p for p in everything if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in everything if p.ndim < 2], "weight_decay": 0.0}]


def sums_of_squares(xp: Any, arrays: Sequence[Any]) -> Any:
    """Numbers that add up to Σ x² over the arrays, as one array [n]."""
    rows = [widened(g).reshape(-1) for g in arrays]
    return xp.stack([g @ g for g in rows])


def scale(xp: Any, arrays: Sequence[Any], factor: float) -> None:
    """Multiply each of the arrays by the factor, in place."""
    for g in arrays:
        if half(g.dtype):                               # 16 bits may not hold the factor
            g[...] = narrowed(widened(g) * factor, g.dtype)
        else:
            g *= factor


def clip_grad_norm_(parameters: Tensor | Iterable[Any], max_norm: float, norm_type: float = 2.0,
                    error_if_nonfinite: bool = False) -> float:
    """Scale all gradients so that their common norm is at most max_norm   (clip.1–2).

    Returns the norm before scaling. If a gradient is infinite or NaN, so is the norm, and scaled
    gradients are 0 or NaN, as in PyTorch; with error_if_nonfinite=True that is a GraphError. On a
    GPU the host waits once, for the norm. If the norm's square overflows, the gradients are divided
    by the largest number first   (clip.3), and the host waits twice more. ValueError if max_norm is
    below 0 or NaN, and for any norm other than the 2-norm.
    """
    me = "clip_grad_norm_"
    if not isinstance(max_norm, Real):
        raise TypeError(f"{me}: max_norm is {max_norm!r}, a {type(max_norm).__name__}; a number is "
                        "needed")
    if not float(max_norm) >= 0.0:
        raise ValueError(f"{me}: max_norm must be a number, at least 0, not {max_norm}")
    if norm_type != 2.0:
        raise ValueError(f"{me}: norm_type {norm_type!r} is not supported; leave it out for the "
                         "2-norm")
    everything = [parameters] if isinstance(parameters, Tensor) else tensors(me, parameters)
    grads = [p.grad.array for p in everything if p.grad is not None]
    if not grads:
        return 0.0
    xp = backend.of(grads[0])
    xp.at(grads[0])

    def norm_of(arrays: Sequence[Any]) -> float:
        squares = xp.host(xp.run("sums_of_squares", sums_of_squares, arrays)).tolist()
        return math.hypot(*map(math.sqrt, squares))     # the sum of the squares may overflow

    with xp.errstate(over="ignore", invalid="ignore"):
        norm = norm_of(grads)
    if norm == math.inf:                                # a square overflowed, or was not finite
        tops = xp.host(xp.stack([xp.max(xp.abs(g)) for g in grads if g.size])).tolist()
        top = math.nan if any(map(math.isnan, tops)) else max(tops)
        norm = top * norm_of([g.reshape(-1) / top for g in grads]) if top < math.inf else top
    if error_if_nonfinite and not math.isfinite(norm):
        raise GraphError(f"{me}: the norm of the gradients is {norm}; "
                         "minigrad.debug.detect_anomaly() names the op that produced it")
    if not norm <= max_norm:
        with xp.errstate(invalid="ignore"):             # infinity times 0 is NaN
            xp.run("scale", scale, grads, float(max_norm) / (norm + 1e-6))
    return norm


class GradScaler:
    """Loss scaling for float16 (Micikevicius et al. 2018), under PyTorch's name.

    The factor lifts gradients above float16's smallest number   (scaler.1–3). A factor with which
    they overflow is halved   (scaler.4).

        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = clip_grad_norm_(parameters, 1.0)         # infinite or NaN after an overflow
        scaler.step(optimizer, norm)                    # after an overflow it changes nothing
        scaler.update()                                 # after an overflow it halves the factor

    init_scale: the first factor. growth_interval: the number of steps without an overflow after
    which the factor is doubled. enabled=False: every method except step does nothing, and step
    always steps. The norm is already on the host, so these decisions wait for no GPU.
    """

    def __init__(self, init_scale: float = 65536.0, *, growth_factor: float = 2.0,
                 backoff_factor: float = 0.5, growth_interval: int = 2000,
                 enabled: bool = True) -> None:
        self.factor, self.enabled = init_scale if enabled else 1.0, enabled
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval = growth_interval
        self.good = 0                                   # steps since the factor last changed
        self.applied: float | None = None               # the factor of the last loss
        self.unscaled: list[Optimizer] = []             # optimisers unscaled since their last step
        self.overflowed = False                         # a step since the last update overflowed

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the factor, which scales every gradient as well   (scaler.1)."""
        self.applied = self.factor
        return loss * self.factor if self.enabled else loss

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of the optimiser's parameters by the factor, in place   (scaler.2).

        GraphError for a second call before the optimiser's next step.
        """
        if not self.enabled:
            return
        if optimizer in self.unscaled:
            raise GraphError("GradScaler.unscale_: the gradients of this optimiser are already "
                             "unscaled; call unscale_ once before each step")
        self.unscaled.append(optimizer)
        grads = [p.grad.array for p in optimizer._parameters() if p.grad is not None]
        if grads:
            xp = backend.of(grads[0])
            xp.at(grads[0])
            xp.run("scale", scale, grads, 1.0 / (self.applied or self.factor))

    def step(self, optimizer: Optimizer, norm: float | None = None) -> bool:
        """Step the optimiser if its gradients are finite; return whether it stepped   (scaler.4).

        norm: the norm of the gradients, if it is known; otherwise it is computed. Gradients that
        were not unscaled since the last step are unscaled first.
        """
        if norm is None and self.enabled:
            norm = clip_grad_norm_(optimizer._parameters(), math.inf)
        finite = norm is None or math.isfinite(norm) or not self.enabled
        if finite:
            if optimizer not in self.unscaled:
                self.unscale_(optimizer)
            optimizer.step()
        self.overflowed |= not finite
        self.unscaled = [other for other in self.unscaled if other is not optimizer]
        return finite

    def update(self) -> None:
        """Set the factor of the next loss   (scaler.4).

        The factor is smaller if a step was skipped since the last update.
        """
        if not self.enabled:
            return
        self.good = 0 if self.overflowed else self.good + 1
        if self.overflowed:
            self.factor *= self.backoff_factor
        elif self.good == self.growth_interval:
            self.factor, self.good = self.factor * self.growth_factor, 0
        self.overflowed = False


def warmup_cosine(step: int, *, max_lr: float, min_lr: float, warmup_steps: int,
                  total_steps: int) -> float:
    """The learning rate of a step: linear up to max_lr, then half a cosine down to min_lr.

    It rises for warmup_steps (schedule.1), reaches min_lr at total_steps (schedule.2), and stays
    there.
    """
    if step < warmup_steps:
        return max_lr * (step + 1) / (warmup_steps + 1)
    if step >= total_steps:
        return min_lr
    along = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + 0.5 * (max_lr - min_lr) * (1.0 + math.cos(math.pi * along))


if not TYPE_CHECKING:
    __getattr__ = hints.missing("minigrad.optim", hints.OPTIM, lambda: [*globals()])
