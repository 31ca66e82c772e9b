"""Mistakes before the first layer: batches, and loaded weights; a part of `forward`'s table."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..planting import (
    NORMS,
    OUTPUTS,
    Bug,
    Plant,
    Run,
    at_point,
    in_blocks,
    in_ids,
    in_parameters,
    last_norm_of,
    parameters,
    shared,
    with_parameters,
)


def of_row(row: int) -> Plant:
    return in_ids(lambda ids: np.broadcast_to(ids[row], ids.shape))


def loaded(name: Callable[[str], str]) -> Plant:
    """Plant the parameter name(key) for each parameter key, as if a port loaded the wrong array."""
    def plant(run: Run, layers: list[int], what: str) -> Run:
        own = parameters(run.model)
        return run._replace(model=with_parameters(run.model, {key: own[name(key)] for key in own}))

    return plant


def swapped(a: str, b: str, within: str = "") -> Callable[[str], str]:
    """A function of a name that swaps `a` and `b` in it, if it contains `within`."""
    def other(name: str) -> str:
        if within not in name:
            return name
        return name.replace(a, b) if a in name else name.replace(b, a)

    return other


def copied(name: str, mine: str, theirs: str) -> str:
    """The name with `theirs` instead of `mine`."""
    return name.replace(f".{mine}", f".{theirs}")


def said_of_copy(mine: str, theirs: str) -> str:
    if mine in ("ln_1", "ln_2"):
        return f"{mine} has {theirs}'s weight and bias"
    if mine.endswith("c_proj.bias"):
        return f"{mine.removesuffix('.bias')} has {theirs.removesuffix('.bias')}'s bias"
    return f"{mine} is loaded from {theirs}"


def filled(kinds: tuple[str, ...], number: float) -> Plant:
    """Plant parameters that were not loaded: those whose names end so are all 0, or all 1."""
    return in_parameters(lambda name, a: a * 0.0 + number if name.endswith(kinds) else a)


def unloaded(part: str) -> Plant:
    """Plant a weight of 0 in these blocks, as in memory that nothing was read into."""
    return lambda run, layers, what: in_parameters(
        lambda name, a: a * 0.0 if name in [f"h.{i}.{part}.weight" for i in layers]
        else a)(run, layers, what)


def first_skipped(run: Run, layers: list[int], what: str) -> Run:
    """The first block returns its input."""
    return at_point("resid_post", lambda here, x: here["resid_pre"] * 1.0)(run, [0], what)


def rounded(name: str, a: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        if kind == "float16":
            return a.astype(np.float16).astype(a.dtype)
        # bfloat16 is the upper half of a float32, rounded to nearest even
        bits = a.astype(np.float32).view(np.uint32)
        return (
            (bits + 0x7FFF
             + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(a.dtype)


def first_id(ids: np.ndarray, new: int | None) -> np.ndarray:
    """The ids with another first id in each row; None: the row's second id."""
    return np.concatenate(
        [ids[:, 1:2] if new is None else np.full_like(ids[:, :1], new), ids[:, 1:]], axis=1)


def of_block(which: Callable[[int], int]) -> Callable[[str], str]:
    """A function of a name that changes the block's number i to which(i)."""
    return lambda name: name if not name.startswith("h.") else ".".join(
        [*(parts := name.split("."))[:1], str(which(int(parts[1]))), *parts[2:]])


COPIES = (("ln_1", "ln_2"), ("ln_2", "ln_1"), ("ln_1.weight", "ln_2.weight"),
          ("ln_2.weight", "ln_1.weight"), ("ln_1.bias", "ln_2.bias"), ("ln_2.bias", "ln_1.bias"),
          ("attn.c_proj.bias", "mlp.c_proj.bias"), ("mlp.c_proj.bias", "attn.c_proj.bias"),
          ("ln_1.weight", "ln_1.bias"), ("ln_1.bias", "ln_1.weight"), ("ln_2.weight", "ln_2.bias"),
          ("ln_2.bias", "ln_2.weight"))
BATCHES = [
    Bug("embed", "ids are stored in 8 bits, so those above 255 are others; 50257 need 16",
        in_ids(lambda ids: ids & 0xFF)),
    Bug("embed", "all rows of the batch are row 0: where a row begins is not multiplied by T",
        of_row(0)),
    Bug("embed", "all rows of the batch are the last row", of_row(-1)),
    Bug("embed", "the rows of the batch are in reverse order", in_ids(lambda ids: ids[::-1])),
    Bug("embed", "the rows of the batch are moved on by one",
        in_ids(lambda ids: np.roll(ids, 1, 0))),
    Bug("embed", "the rows of the batch are moved back by one",
        in_ids(lambda ids: np.roll(ids, -1, 0))),
    Bug("embed", "ids are read as [T, B]; they are [B, T]",
        in_ids(lambda ids: ids.reshape(ids.shape[::-1]).T)),
    Bug("embed", "each row begins one id after the row before it, not T ids after",
        in_ids(lambda ids: np.lib.stride_tricks.sliding_window_view(
                   ids.reshape(-1), ids.shape[1])[:len(ids)])),
    Bug("embed", "the targets are read instead of the ids: they are one position further",
        in_ids(lambda ids: np.concatenate([ids.reshape(-1)[1:],
                                           ids.reshape(-1)[-1:]]).reshape(ids.shape))),
    Bug("embed", "the ids of each row are in reverse order", in_ids(lambda ids: ids[:, ::-1])),
    *(Bug("embed", f"the first id of each row is {said}", in_ids(partial(first_id, new=new)))
      for said, new in (("0", 0), ("the row's second", None))),
    Bug("embed", "ids are one too large", in_ids(lambda ids: ids + 1)),
    Bug("embed", "ids are one too small", in_ids(lambda ids: np.maximum(ids - 1, 0))),
]
LOADED = [
    Bug("",
        "blocks are loaded in the order of their names as text: h.1, h.10, h.11, h.2; sort by "
        "number",
        in_blocks(lambda n: sorted(range(n), key=str))),
    Bug("", "all blocks have the weights of the first one", in_blocks(lambda n: [0] * n)),
    Bug("", "all blocks have the weights of the last one", in_blocks(lambda n: [n - 1] * n)),
    Bug("", "blocks are loaded in reverse order", in_blocks(lambda n: list(range(n))[::-1])),
    Bug("", "each block has the weights of the next one",
        in_blocks(lambda n: [*range(1, n), n - 1])),
    Bug("", "each block has the weights of the one before it",
        in_blocks(lambda n: [0, *range(n - 1)])),
    *(Bug("", f"all blocks are one object, the {said} one: its gradients add up",
          lambda run, layers, what, at=at: shared(  # type: ignore[misc]
              of_block(lambda i: at % run.model.config.n_layer))(run, layers, what))
      for at, said in ((-1, "last"), (0, "first"))),
    *(Bug(f"{mine[:4]}.out" if mine[:4] in NORMS else OUTPUTS[mine.removesuffix(".bias")][0],
          said_of_copy(mine, theirs), loaded(partial(copied, mine=mine, theirs=theirs)))
      for mine, theirs in COPIES),
    Bug("ln_2.out", "ln_1 and ln_2 are one object, ln_1: its gradients add up",
        shared(lambda name: name.replace("ln_2", "ln_1"))),
    Bug("ln_1.out", "ln_1 and ln_2 are one object, ln_2: its gradients add up",
        shared(lambda name: name.replace("ln_1", "ln_2"))),
    # as formulas they are in `norms`, where the parameter that is used gets the gradient
    Bug("ln_1.out", "ln_1 and ln_2 are swapped", loaded(swapped("ln_1", "ln_2"))),
    Bug("ln_1.out", "LayerNorm's weight and bias are swapped",
        loaded(swapped(".weight", ".bias", "ln_"))),
    Bug("ln_1.out", "in the blocks, and not in ln_f, LayerNorm's weight and bias are swapped",
        loaded(swapped(".weight", ".bias", ".ln_"))),
    Bug("ln_1.out", "LayerNorm's weight is not applied",
        filled(("ln_1.weight", "ln_2.weight", "ln_f.weight"), 1.0)),
    Bug("ln_1.out", "LayerNorm's bias is not added",
        filled(("ln_1.bias", "ln_2.bias", "ln_f.bias"), 0.0)),
    Bug("attn.q", "no bias is added in the blocks' matrices",
        filled(("c_attn.bias", "c_proj.bias", "c_fc.bias"), 0.0)),
    Bug("attn.q", "c_attn's bias is not added", filled(("c_attn.bias",), 0.0)),
    *(Bug(at, f"{part}'s bias is not added", filled((f"{part}.bias",), 0.0)) for at, part in (
        ("attn.out", "attn.c_proj"), ("mlp.pre", "mlp.c_fc"), ("mlp.out", "mlp.c_proj"))),
    *(Bug(points[0], f"{part}'s weight is 0: it was not loaded", unloaded(part))
      for part, points in OUTPUTS.items()),
    *(Bug("", f"the weights are rounded to {kind} when they are loaded",
          in_parameters(partial(rounded, kind=kind)))
      for kind in ("float16", "bfloat16")),
    Bug("ln_f.mean", "the last block is skipped: the loop over blocks ends one too early",
        last_norm_of(lambda n: f"blocks.{n - 1}.resid_pre")),
    Bug("resid_post", "the first block is skipped: the loop over blocks starts at 1",
        first_skipped),
]
