"""The tensors of somebody's port of GPT-2, under our names, and how far they are from the ground truth."""
from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import GPT2Config
from ..errors import MissingError, UsageError
from ..golden.__main__ import Golden
from ..golden.truth import EPS32, Entry, judged, permitted
from ..io.atomic import read_toml
from ..io.safetensors import NAMES, Loader, Stored, read_header
from ..weights.llmc import read_state

ALLOWED = 32.0                                          # units
VOCABULARY = {"logits": -1, "wte.weight": 0, "lm_head.weight": 0}      # the axis of the vocabulary
EPS = {"float64": float(np.finfo(np.float64).eps), "float32": EPS32, "float16": 2.0**-10, "bfloat16": 2.0**-7}


class Tensor(NamedTuple):
    """A tensor of a port: the dtype it is stored in, and the array, in float64."""

    dtype: str
    array: np.ndarray


Port = Mapping[str, Callable[[], Tensor]]


def read_port(path: Path, golden: Golden) -> Port:
    """The tensors in a .safetensors, .npz or .npy file, or in all such files of a folder, by name; each is read when called.

    A .npy file's name is the tensor's. A .bin file is a debug state of llm.c. MissingError where nothing can be read, UsageError for a
    name that is there twice, and for a debug state of other ids than the truth has.
    """
    try:
        files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".npz", ".npy")) if path.is_dir() else [path]
        found: dict[str, Callable[[], Tensor]] = {}
        for file in files:
            for name, tensor in _of_llmc(file, golden) if file.suffix == ".bin" else _tensors(file):
                if name in found:
                    raise UsageError(f"{path} has {name!r} twice")
                found[name] = tensor
    except OSError as error:
        raise MissingError(f"cannot read {error.filename or path}: {error.strerror or error}") from None
    if not found:
        raise MissingError(f"{path} holds no tensors in .safetensors, .npz or .npy files")
    return found


def _tensors(file: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    if file.suffix == ".safetensors":
        load = Loader(np.dtype(np.float64))
        for entry in read_header(file)[0]:
            yield entry.key, lambda entry=entry: _stored(entry, load)          # type: ignore[misc]
    elif file.suffix in (".npz", ".npy"):
        loaded = _whole(file, lambda: np.load(file, allow_pickle=False))
        if isinstance(loaded, np.lib.npyio.NpzFile) != (file.suffix == ".npz"):
            raise MissingError(f"{file} is no {file.suffix} file, though it is called so; save it again")
        for name in loaded.files if file.suffix == ".npz" else [file.stem]:
            yield name, lambda name=name: _numpy(loaded, name, file)           # type: ignore[misc]
    else:
        raise MissingError(f"{file} is no tensors' file: it must end in .safetensors, .npz or .npy, or in .bin for llm.c's debug state")


def _of_llmc(file: Path, golden: Golden) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    ids, targets, arrays = read_state(file, GPT2Config.from_dict(golden.manifest["config"]))
    for what, theirs in (("ids", ids), ("targets", targets)):
        if not np.array_equal(theirs, np.array(golden.manifest[what])):
            raise UsageError(f"{file} is of other {what} than the truth; make one for these with: python -m gpt2.golden --format llmc")
    for name, array in arrays.items():
        yield name, lambda array=array: Tensor("float32", array.astype(np.float64))    # type: ignore[misc]


def _whole(file: Path, read: Callable[[], Any], what: str = "") -> Any:
    """What read() gives. MissingError where the file is damaged; what: the tensor that is read, where it is not the file that is opened."""
    try:
        return read()
    except Exception as error:                          # of NumPy, zipfile, zlib, tokenize: there are ten kinds and more
        if isinstance(error, OSError) and not what:     # it cannot be opened at all
            raise
        raise MissingError(f"{file} is no whole {file.suffix} file ({what}{error}); save it again") from None


def _stored(entry: Stored, load: Loader) -> Tensor:
    if entry.dtype not in NAMES:
        raise _not_compared(entry.key, re.sub(r"^([IU])(\d+)$", lambda m: {"I": "int", "U": "uint"}[m[1]] + m[2], entry.dtype))
    return Tensor(NAMES[entry.dtype], load(entry))


def _numpy(loaded: Any, name: str, file: Path) -> Tensor:
    array = _whole(file, lambda: loaded[name], f"{name!r}: ") if file.suffix == ".npz" else loaded
    if not isinstance(array, np.ndarray):
        raise MissingError(f"{file}: {name!r} is no array; save arrays alone, with np.savez")
    if array.dtype.name not in EPS:
        raise _not_compared(name, array.dtype.name)
    return Tensor(array.dtype.name, array.astype(np.float64))


def _not_compared(name: str, dtype: str) -> MissingError:
    return MissingError(f"{name!r}: {dtype} is not compared; only {', '.join(EPS)} are")


# ── names ──
class Named(NamedTuple):
    """What a port calls a tensor of ours, and the axes in which it has it ("transpose", as in NumPy), if others."""

    name: str
    transpose: tuple[int, ...] | None


def read_map(path: Path | None) -> dict[str, Named]:
    """Patterns of our names to names of a port, from a TOML file:

        "blocks.*.attn.out" = "layer*.attention"                # one * stands for the same text on both sides
        "blocks.*.attn.q" = { name = "q*", transpose = [0, 2, 1, 3] }

    UsageError for what is neither.
    """
    out = {}
    for ours, value in (read_toml(path, "--map") if path else {}).items():
        fields = {"name": value} if isinstance(value, str) else value
        if not isinstance(fields, dict) or not isinstance(fields.get("name"), str) or fields.keys() - {"name", "transpose"}:
            raise UsageError(f'--map {path}: {ours!r} must be a name, or {{ name = "…", transpose = [0, 2, 1, 3] }}')
        axes = fields.get("transpose")
        if axes is not None and (not isinstance(axes, list) or sorted(map(str, axes)) != sorted(map(str, range(len(axes))))):
            raise UsageError(f"--map {path}: {ours!r}: transpose must be the axes 0 … n − 1 in another order, is {axes}")
        if ours.count("*") != fields["name"].count("*") or ours.count("*") > 1:
            raise UsageError(f"--map {path}: {ours!r} and {fields['name']!r} must have one * each, or none")
        out[ours] = Named(fields["name"], None if axes is None else tuple(axes))
    return out


def _match(pattern: str, name: str) -> re.Match[str] | None:
    return re.fullmatch(re.escape(pattern).replace(r"\*", "(.+)"), name)


def check_map(names: Mapping[str, Named], known: Iterable[str]) -> None:
    """UsageError, with near names, for a pattern of ours that none of the known names matches: it would have no effect."""
    known = list(known)
    for ours in names:
        if not any(_match(ours, name) for name in known):
            near = difflib.get_close_matches(ours.replace("*", "0"), known, 3)
            hint = f"near to it: {', '.join(near)}" if near else f"there are {known[0]} … {known[-1]}"
            raise UsageError(f"--map: {ours!r} matches no tensor of the golden file; {hint}")


def name_in(port: Port, name: str, names: Mapping[str, Named]) -> Named | None:
    """What the port calls our tensor `name`; None where it has none."""
    for ours, theirs in names.items():
        if hit := _match(ours, name):
            called = theirs.name.replace("*", hit[1]) if hit.groups() else theirs.name
            return Named(called, theirs.transpose) if called in port else None
    return Named(name, None) if name in port else None


# ── how far ──
class Compared(NamedTuple):
    """A tensor of the port beside ours. units: how often the bound's unit its error is, the larger of two; ok: within ALLOWED.

    worst: the largest error, `at` which index, with both values there. trouble: what is wrong with it besides: its shape, a NaN.
    """

    name: str
    equation: str
    units: float
    worst: float
    at: tuple[int, ...]
    found: float
    wanted: float
    trouble: str = ""

    @property
    def ok(self) -> bool:
        return not self.trouble and self.units <= ALLOWED


def unit_of(entry: Entry, dtype: str) -> tuple[float, float]:
    """The units of an error, at most and in the mean square, for a port that computes in dtype.

    They are what our own float32 run is off by, and as much more or less as the dtype rounds more or less; the truth's own rounding
    stays   (tolerance.8).
    """
    scale = max(EPS[dtype], EPS[entry.dtype]) / EPS32
    return entry.unit * scale, entry.unit_rms * scale


def rounding(entry: Entry, ours: np.ndarray, theirs: np.ndarray, dtype: str) -> float:
    """How far apart two numbers of these arrays may be by rounding, which grows with them."""
    return ALLOWED * unit_of(entry, dtype)[0] * max(1.0, float(np.abs(theirs).max()) / max(float(np.abs(ours).max()), 1e-300))


def distance(entry: Entry, a: np.ndarray, b: np.ndarray, dtype: str) -> float:
    """How many units b is from a: by its largest error, or by the mean square where that says more."""
    gap, (most, mean) = np.abs(b - a), unit_of(entry, dtype)
    if not gap.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        largest, square = float(gap.max()), float(np.sqrt(np.square(gap).mean()))
    return max(_ratio(largest, most), _ratio(square, mean))


def _ratio(x: float, unit: float) -> float:
    return x / unit if unit else (0.0 if x == 0.0 else float("inf"))


def aligned(theirs: np.ndarray, named: Named, entry: Entry) -> np.ndarray | None:
    """The port's array in our axes, with 0 where a mask forbids; axes of length 1 may be there or not. None where the shapes do not fit."""
    shape = tuple(entry.shape)
    if named.transpose is not None:
        if len(named.transpose) != theirs.ndim:
            return None
        theirs = theirs.transpose(named.transpose)
    theirs = unpadded(entry.name, theirs, shape)
    bare = [size for size in shape if size != 1]
    if [size for size in theirs.shape if size != 1] != bare:
        return None
    return judged(entry.name, permitted(entry.name, theirs.reshape(shape)))


def unpadded(name: str, a: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """a without the rows, or columns, that a port added to fill its vocabulary up to a multiple of at most 128."""
    axis = VOCABULARY.get(re.sub(r"^step\.\d+\.|\.grad$", "", name))
    if axis is None or a.ndim == 0 or not 0 < a.shape[axis] - shape[axis] < 128:
        return a
    return a[:shape[0]] if axis == 0 else a[..., :shape[-1]]


def compare(golden: Golden, port: Port, names: Mapping[str, Named]) -> tuple[list[Compared], list[str]]:
    """Every tensor that both have, in the order in which it is computed, and the names that the port has not.

    MissingError, with near names, where they have none in common.
    """
    out, missing = [], []
    for name, entry in golden.entries.items():
        named = name_in(port, name, names)
        if named is None:
            missing.append(name)
            continue
        dtype, raw = port[named.name]()
        theirs = aligned(raw, named, entry)
        if theirs is None:
            hint = ", the transpose" if list(raw.shape) == entry.shape[::-1] else ""
            if name.endswith(".bias.grad") and list(raw.shape[-1:]) == entry.shape:
                hint = ", not summed over the batch"
            out.append(Compared(name, entry.equation, float("inf"), float("nan"), (), float("nan"), float("nan"),
                                f"is {list(raw.shape)}{hint}; {entry.shape} is wanted"))
            continue
        ours = golden.array(name)
        if not np.isfinite(theirs).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(theirs))[0])
            out.append(Compared(name, entry.equation, float("inf"), float("nan"), at, float(theirs[at]), float(ours[at]),
                                f"has {int((~np.isfinite(theirs)).sum()):,} × NaN or infinity, the first at {list(at)}"))
            continue
        gap = np.abs(theirs - ours)
        at = tuple(int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape)) if gap.size else ()
        out.append(Compared(name, entry.equation, distance(entry, ours, theirs, dtype), float(gap.max(initial=0.0)), at,
                            float(theirs[at]) if gap.size else 0.0, float(ours[at]) if gap.size else 0.0))
    if not out:
        wanted = next(iter(golden.entries))
        near = difflib.get_close_matches(wanted, list(port), 1, 0.3) or [next(iter(port))]
        raise MissingError(f"the port has none of the {len(missing)} tensors, such as {wanted!r}; it has {near[0]!r} and "
                           f"{len(port) - 1} more; name them with --map")
    return out, missing
