"""The tensors of a port of GPT-2, under our names, and their distance from the ground truth."""
from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Any, NamedTuple

import numpy as np

from ..cli.settings import read_toml
from ..config import GPT2Config
from ..errors import MissingError, UsageError
from ..golden.__main__ import Golden
from ..golden.truth import EPS32, Entry, judged, permitted
from ..io.records import open_file
from ..io.safetensors import NAMES, Loader, Stored, read_header
from ..weights.llmc import read_state

ALLOWED = 32.0                                          # units
VOCABULARY = {"logits": -1, "wte.weight": 0, "lm_head.weight": 0}      # the axis of the vocabulary
EPS = {"float64": float(np.finfo(np.float64).eps), "float32": EPS32,
       "float16": 2.0**-10, "bfloat16": 2.0**-7}


class Tensor(NamedTuple):
    """A tensor of a port: the dtype it is stored in, and the array, in float64."""

    dtype: str
    array: np.ndarray


Port = Mapping[str, Callable[[], Tensor]]


def read_port(path: Path, golden: Golden) -> Port:
    """The tensors of a .safetensors, .npz or .npy file, or of all such files in a folder, by name.

    Each is read when it is called. The tensor of a .npy file has the file's name. A .bin file is a
    debug state of llm.c. MissingError if nothing can be read; UsageError for a name that occurs
    twice, and for a debug state with other ids than the truth.
    """
    try:
        files = [path]
        if path.is_dir():
            kinds = (".safetensors", ".npz", ".npy")
            files = sorted(p for p in path.iterdir() if p.suffix in kinds)
        found: dict[str, Callable[[], Tensor]] = {}
        most = max(map(_padded, golden.entries.values()))
        for file in files:
            for name, tensor in (_of_llmc(file, golden) if file.suffix == ".bin"
                                 else _tensors(file, most)):
                if name in found:
                    raise UsageError(f"{path} has {name!r} twice")
                found[name] = tensor
    except OSError as error:
        what = error.filename or path
        raise MissingError(f"cannot read {what}: {error.strerror or error}") from None
    if not found:
        raise MissingError(f"{path} holds no tensors in .safetensors, .npz or .npy files")
    return found


def _tensors(file: Path, most: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The tensors of a file by name. most: how many numbers one may have."""
    if file.suffix == ".safetensors":
        load = Loader(np.dtype(np.float64))
        for entry in read_header(file)[0]:
            yield entry.key, lambda entry=entry: _stored(entry, load)          # type: ignore[misc]
    elif file.suffix in (".npz", ".npy"):
        open_file(file).close()                         # an error if it is a pipe or a device
        loaded = _whole(file, lambda: np.load(file, mmap_mode="r", allow_pickle=False))
        if isinstance(loaded, np.lib.npyio.NpzFile) != (file.suffix == ".npz"):
            raise MissingError(f"{file} is no {file.suffix} file, though it is called so; "
                               "save it again")
        sizes = {file.stem: 0}                          # bytes to be unpacked
        if file.suffix == ".npz":
            sizes = {name: member.file_size
                     for name, member in zip(loaded.files, loaded.zip.infolist())}
        for name, size in sizes.items():
            yield name, lambda name=name, size=size: _numpy(                   # type: ignore[misc]
                loaded, name, file, size, most)
    else:
        raise MissingError(f"{file} is not a file of tensors: its name must end in .safetensors, "
                           ".npz or .npy, or in .bin for llm.c's debug state")


def _of_llmc(file: Path, golden: Golden) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    ids, targets, arrays = read_state(file, GPT2Config.from_dict(golden.manifest["config"]))
    for what, theirs in (("ids", ids), ("targets", targets)):
        if not np.array_equal(theirs, np.array(golden.manifest[what])):
            raise UsageError(f"{file} has other {what} than the truth; make a truth for llm.c "
                             "with: python -m gpt2.golden --format llmc")
    for name, array in arrays.items():
        yield name, lambda array=array: Tensor(                                # type: ignore[misc]
            "float32", array.astype(np.float64))


def _whole(file: Path, read: Callable[[], Any], what: str = "") -> Any:
    """What read() returns. MissingError if the file is damaged.

    what: the name of the tensor that is read; empty if the file is opened.
    """
    try:
        return read()
    except Exception as error:          # NumPy, zipfile, zlib and tokenize raise ten kinds and more
        if isinstance(error, OSError) and not what:     # the file cannot be opened
            raise
        raise MissingError(f"{file} is no whole {file.suffix} file ({what}{error}); "
                           "save it again") from None


def _stored(entry: Stored, load: Loader) -> Tensor:
    if entry.dtype not in NAMES:
        letters = {"I": "int", "U": "uint"}
        kind = re.sub(r"^([IU])(\d+)$", lambda m: letters[m[1]] + m[2], entry.dtype)
        raise _not_compared(entry.key, kind)
    return Tensor(NAMES[entry.dtype], load(entry))


def _numpy(loaded: Any, name: str, file: Path, size: int, most: int) -> Tensor:
    """An array of a .npz or .npy file. size: the bytes that are unpacked for it.

    MissingError if it is larger than any tensor of the truth: a small file may unpack to anything.
    """
    if size > 8 * most + (1 << 16) or (file.suffix == ".npy" and loaded.size > most):
        raise MissingError(f"{file}: {name!r} is larger than any tensor of the truth; leave it out")
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
    """The port's name of a tensor, and the axes that turn its array into ours, as for NumPy."""

    name: str
    transpose: tuple[int, ...] | None


def read_map(path: Path | None) -> dict[str, Named]:
    """Read patterns of our names, and of the port's names for them, from a TOML file.

        "blocks.*.attn.out" = "layer*.attention"        # * stands for the same text on both sides
        "blocks.*.attn.q" = { name = "q*", transpose = [0, 2, 1, 3] }

    UsageError for any other value.
    """
    out = {}
    for ours, value in (read_toml(path, "--map") if path else {}).items():
        fields: dict[str, Any] = {"name": value} if isinstance(value, str) else value
        if (not isinstance(fields, dict) or not isinstance(fields.get("name"), str)
                or fields.keys() - {"name", "transpose"}):
            raise UsageError(f"--map {path}: {ours!r} must be a name, or "
                             '{ name = "…", transpose = [0, 2, 1, 3] }')
        axes = fields.get("transpose")
        if axes is not None and not _permutes(axes):
            raise UsageError(f"--map {path}: {ours!r}: transpose must list the axes 0 … n − 1, "
                             f"each once; it is {brief(axes)}")
        if ours.count("*") != fields["name"].count("*") or ours.count("*") > 1:
            raise UsageError(f"--map {path}: {ours!r} and {fields['name']!r} must have one * each, "
                             "or none")
        out[ours] = Named(fields["name"], None if axes is None else tuple(axes))
    return out


def _permutes(axes: Any) -> bool:
    """Whether these are the axes 0 … n − 1 in some order."""
    return (isinstance(axes, list) and all(type(axis) is int for axis in axes)
            and sorted(axes) == list(range(len(axes))))


def _match(pattern: str, name: str) -> re.Match[str] | None:
    return re.fullmatch(re.escape(pattern).replace(r"\*", "(.+)"), name)


def check_map(names: Mapping[str, Named], known: Iterable[str]) -> None:
    """UsageError, with similar names, for a pattern that matches no known name of ours."""
    known = list(known)
    for ours in names:
        if not any(_match(ours, name) for name in known):
            near = difflib.get_close_matches(ours.replace("*", "0"), known, 3)
            hint = (f"similar names: {', '.join(near)}" if near
                    else f"there are {known[0]} … {known[-1]}")
            raise UsageError(f"--map: {ours!r} matches no tensor of the golden file; {hint}")


def name_in(port: Port, name: str, names: Mapping[str, Named]) -> Named | None:
    """The port's name, and axes, of our tensor `name`; None if the port does not have it."""
    for ours, theirs in names.items():
        if hit := _match(ours, name):
            called = theirs.name.replace("*", hit[1]) if hit.groups() else theirs.name
            return Named(called, theirs.transpose) if called in port else None
    return Named(name, None) if name in port else None


# ── how far ──
class Compared(NamedTuple):
    """A tensor of the port beside ours.

    units: its error in units, the larger of two ratios; `ok` means at most ALLOWED. worst: the
    largest error; `at` is its index, with the port's and our value there. trouble: what else is
    wrong, such as its shape or a NaN.
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
    """The unit of the largest error, and of the root mean square, for a port that uses dtype.

    They are the errors of our own float32 run, times the ratio of the dtype's rounding to
    float32's; they are never below the truth's own rounding   (tolerance.8).
    """
    scale = max(EPS[dtype], EPS[entry.dtype]) / EPS32
    return entry.unit * scale, entry.unit_rms * scale


def rounding(entry: Entry, ours: np.ndarray, theirs: np.ndarray, dtype: str) -> float:
    """How much two numbers of these arrays may differ by rounding, which grows with their size."""
    grown = float(np.abs(theirs).max()) / max(float(np.abs(ours).max()), 1e-300)
    return ALLOWED * unit_of(entry, dtype)[0] * max(1.0, grown)


def distance(entry: Entry, a: np.ndarray, b: np.ndarray, dtype: str) -> float:
    """The difference of a and b in units: by its largest error, or by its root mean square.

    The larger of the two counts.
    """
    gap, (most, mean) = np.abs(b - a), unit_of(entry, dtype)
    if not gap.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        largest, square = float(gap.max()), float(np.sqrt(np.square(gap).mean()))
    return max(_ratio(largest, most), _ratio(square, mean))


def _ratio(x: float, unit: float) -> float:
    return x / unit if unit else (0.0 if x == 0.0 else float("inf"))


def aligned(theirs: np.ndarray, named: Named, entry: Entry) -> np.ndarray | None:
    """The port's array in our axes, with 0 where a mask forbids. None if the shapes do not fit.

    Axes of length 1 may be present or not.
    """
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
    """`a` without the rows, or columns, that fill up a port's vocabulary.

    Ports fill it up to a multiple of at most 128.
    """
    axis = _axis(name)
    if axis is None or a.ndim == 0 or not 0 < a.shape[axis] - shape[axis] < 128:
        return a
    return a[:shape[0]] if axis == 0 else a[..., :shape[-1]]


def _axis(name: str) -> int | None:
    """The axis of the vocabulary, if the tensor has one."""
    return VOCABULARY.get(re.sub(r"^step\.\d+\.|\.grad$", "", name))


def _padded(entry: Entry) -> int:
    """How many numbers a port's tensor has at most, with the rows that fill up its vocabulary."""
    axis = _axis(entry.name)
    extra = 0 if axis is None else 128 * math.prod(entry.shape) // max(1, entry.shape[axis])
    return math.prod(entry.shape) + extra


def compare(golden: Golden, port: Port,
            names: Mapping[str, Named]) -> tuple[list[Compared], list[str]]:
    """Every tensor that both have, in order of computation, and the names that the port lacks.

    MissingError, with similar names, if they have no tensor in common.
    """
    out, missing = [], []
    for name in golden.entries:
        if (named := name_in(port, name, names)) is None:
            missing.append(name)
        else:
            out.append(_compared(golden, golden.entries[name], port[named.name](), named))
    if not out:
        wanted = next(iter(golden.entries))
        near = difflib.get_close_matches(wanted, list(port), 1, 0.3) or [next(iter(port))]
        raise MissingError(f"the port has none of the {len(missing)} tensors, such as {wanted!r}; "
                           f"it has {near[0]!r} and {len(port) - 1} more; map names with --map")
    return out, missing


def _compared(golden: Golden, entry: Entry, port: Tensor, named: Named) -> Compared:
    """One tensor of the port beside ours."""
    (dtype, raw), name, nan = port, entry.name, float("nan")
    theirs = aligned(raw, named, entry)
    if theirs is None:
        hint = ", the transpose" if list(raw.shape) == entry.shape[::-1] else ""
        if name.endswith(".bias.grad") and list(raw.shape[-1:]) == entry.shape:
            hint = ", not summed over the batch"
        return Compared(name, entry.equation, float("inf"), nan, (), nan, nan,
                        f"has shape {list(raw.shape)}{hint}; the truth has {entry.shape}")
    ours = golden.array(name)
    finite = np.isfinite(theirs)
    if not finite.all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        return Compared(name, entry.equation, float("inf"), nan, at,
                        float(theirs[at]), float(ours[at]),
                        f"has {int((~finite).sum()):,} × NaN or infinity, the first at {list(at)}")
    gap = np.abs(theirs - ours)
    at = ()
    if gap.size:
        at = tuple(int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape))
    return Compared(name, entry.equation, distance(entry, ours, theirs, dtype),
                    float(gap.max(initial=0.0)), at,
                    float(theirs[at]) if gap.size else 0.0, float(ours[at]) if gap.size else 0.0)
