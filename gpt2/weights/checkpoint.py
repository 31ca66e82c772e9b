"""Checkpoints of transformers: read into memory maps, and written as a whole or not at all."""
from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np

import minigrad as mg

from ..config import PUBLISHED, GPT2Config, parameter_shapes
from ..errors import MissingError, UsageError
from ..io.atomic import staged
from ..io.records import MB, Like, checked, parsed, read_json
from ..io.safetensors import CODES, NAMES, Loader, Stored, read_header, safetensors_pieces

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
# settings of transformers' generate(); only its eos_token_id is read here
GENERATION = "generation_config.json"
# a copy of config.json, in the header of the weights
CONFIG_KEY = "gpt2_config"
# fields that change the logits, and that no shape shows
UNSEEN = ("n_head", "activation_function", "layer_norm_epsilon", "scale_attn_weights",
          "scale_attn_by_inverse_layer_idx")

_PREFIX = re.compile(r"^(?:transformer\.|_orig_mod\.|module\.)+")
_IN_BLOCK = re.compile(r"h\.([0-9]{1,6})\.")
_MASK = re.compile(r"h\.\d+\.attn\.(?:bias|masked_bias)")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


class _Index(TypedDict):
    """model.safetensors.index.json: the name of its shard for each tensor."""

    weight_map: dict[str, Annotated[str, Like(r"[^\0]+", "the name of a file")]]


class _Generation(TypedDict, total=False):
    """What is read of a generation_config.json."""

    eos_token_id: int | list[int] | None


@dataclass
class Checkpoint:
    """Parameters by name, in the order of `parameter_shapes(config)`.

    dtype: the name of the dtype in which the file stores them.
    """

    config: GPT2Config
    parameters: dict[str, np.ndarray]
    dtype: str
    path: Path

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters in memory, in the dtype in which they were read."""
        return sum(a.nbytes for a in self.parameters.values())


@dataclass
class Tensors:
    """The tensors of a file, which may be a whole checkpoint, a part of one, or another model.

    Arrays are read one by one. stored: by parameter name, in the file's order. buffers: the names
    of mask buffers, which are not parameters. config: None if it is not known.
    """

    source: Path
    stored: dict[str, Stored]
    buffers: list[str]
    config: GPT2Config | None

    def __call__(self, name: str, dtype: str = "float32") -> np.ndarray:
        """The array of this name. MissingError if there is none, or if its dtype is not a float."""
        entry = self.stored.get(name)
        if entry is None:
            raise MissingError(f"{self.source} has no tensor '{name}'")
        if entry.dtype not in NAMES:
            raise MissingError(f"{self.source}: '{name}' is stored as {entry.dtype}; "
                               f"only {', '.join(NAMES)} can be read")
        return Loader(np.dtype(dtype))(entry)

    def missing(self) -> list[str]:
        """The parameters of the configuration that the file does not have."""
        if not self.config:
            return []
        return [name for name in parameter_shapes(self.config) if name not in self.stored]


# ── reading ──
def read_tensors(path: str | Path) -> Tensors:
    """The tensors in a directory or a .safetensors file. MissingError if it is none, or damaged."""
    try:
        source, stored, metadata = open_checkpoint(Path(path))
        found, config, guessed = _with_dropped(by_name(source, stored), metadata), None, ""
        try:
            config, _, guessed = _find_config(source, metadata, found, Loader(np.dtype("float32")))
        except MissingError:
            if (source.parent / CONFIG).exists():
                raise
            # else it is not a GPT-2, or not of a published size
    except OSError as error:
        raise _unreadable(path, error) from None
    if guessed:
        warnings.warn(guessed, stacklevel=2)
    named = {entry.key for entry in found.values()}
    return Tensors(source, found, [entry.key for entry in stored if entry.key not in named], config)


def _unreadable(path: str | Path, error: OSError) -> MissingError:
    return MissingError(f"cannot read {error.filename or path}: {error.strerror or error}")


def read_checkpoint(path: str | Path, *, dtype: str | None = None,
                    config: GPT2Config | None = None) -> Checkpoint:
    """The checkpoint in a directory or in a file.

    A directory holds config.json, and model.safetensors or an index and shards. dtype: "float32"
    (also None), "float64", "float16" or "bfloat16". Tensors that are stored in this dtype are
    copy-on-write memory maps: they can be written to, and the file does not change. Others are
    converted one by one. Prefixes of transformers, DataParallel and torch.compile are removed from
    the names. Mask buffers are left out. If `lm_head.weight` and `wte.weight` are tied, one of them
    is enough, and the result has only `wte.weight`.

    Without `config` the configuration is that of the config.json beside the weights, else the copy
    that `write_checkpoint` stores in them, else it follows from the shapes. n_head does not follow
    from shapes: the published size of the same width decides it, and a warning says so.

    Warns of NaN and infinity. Raises MissingError for files that are missing, damaged, not GPT-2,
    of a configuration that is not supported, or disagree with it, and UsageError for a dtype that
    is not supported.
    """
    if dtype not in (None, *CODES):
        raise UsageError(f"dtype {dtype!r} is not supported; "
                         "choose float32, float64, float16 or bfloat16")
    try:
        path, load = Path(path), Loader(np.dtype(mg.backend.dtype(dtype or "float32")))
    except mg.errors.DTypeError as error:               # no ml_dtypes
        raise UsageError(str(error)) from None
    try:
        source, stored, metadata = open_checkpoint(path)
        found = _with_dropped(by_name(source, stored), metadata)
        origin, guessed = "the config given", ""
        if config is None:
            config, origin, guessed = _find_config(source, metadata, found, load)
        head = found.pop("lm_head.weight", None) if config.tie_word_embeddings else None
        if head:
            found.setdefault("wte.weight", head)        # the file may store only one of the two
        _check(source, found, config, origin)
        if head and not load.same(head, found["wte.weight"]):
            raise MissingError(f"{source}: 'lm_head.weight' differs from 'wte.weight', but "
                               f"{origin} ties them; is tie_word_embeddings=false missing there?")
        parameters = {name: load(found[name]) for name in parameter_shapes(config)}
    except OSError as error:
        raise _unreadable(path, error) from None
    if guessed:                                         # no warning if an error was raised above
        warnings.warn(guessed, stacklevel=2)
    if bad := [name for name, array in parameters.items() if not _finite(array)]:
        warnings.warn(f"{source}: NaN or infinity in {_some(bad)}", stacklevel=2)
    return Checkpoint(config, parameters, NAMES[found["wte.weight"].dtype], path)


def open_checkpoint(path: Path) -> tuple[Path, list[Stored], dict[str, str]]:
    """The file to name in errors, the tensors stored in it or its shards, and its metadata."""
    if not path.exists():
        raise MissingError(f"{path} does not exist")
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir())
        pickles = [name for name in names if Path(name).suffix in _PICKLES]
        weights = [name for name in (WEIGHTS, INDEX) if name in names]
        if not weights:
            if pickles:
                raise _pickled(path / pickles[0])
            raise MissingError(f"{path} holds no {WEIGHTS}")
        path = path / weights[0]
    if path.suffix in _PICKLES:
        raise _pickled(path)
    if not path.name.endswith(".index.json"):
        return path, *read_header(path)
    shard_of = read_json(path, _Index, 16 * MB,
                         advice="it is not an index of shards; is it truncated?")["weight_map"]
    stored: list[Stored] = []
    for shard in sorted({path.parent / Path(name).name for name in shard_of.values()}):
        if not shard.is_file():
            raise MissingError(f"{path} names {shard.name}, which is not there; "
                               "is the download complete?")
        stored += read_header(shard)[0]
    found = {(entry.key, entry.file.name) for entry in stored}
    for key, name in shard_of.items():
        if (key, Path(name).name) not in found:
            raise MissingError(f"{path} says that {Path(name).name} holds '{key}', "
                               "which is not in it; are both of the same model?")
    return path, stored, {}


def _pickled(path: Path) -> MissingError:
    return MissingError(f"{path} is a pickle, which is never loaded, because it can run any code; "
                        "if you trust it, convert it with transformers: GPT2LMHeadModel"
                        ".from_pretrained(directory).save_pretrained(new_directory)")


def by_name(source: Path, stored: Iterable[Stored]) -> dict[str, Stored]:
    """Stored tensors by parameter name, without prefixes and without mask buffers."""
    found: dict[str, Stored] = {}
    for entry in stored:
        name = _PREFIX.sub("", entry.key)
        if name in found:
            raise MissingError(f"{source} has '{name}' twice, as '{found[name].key}' "
                               f"and as '{entry.key}'")
        if not _MASK.fullmatch(name):
            found[name] = entry
    return found


def _with_dropped(found: dict[str, Stored], metadata: Mapping[str, str]) -> dict[str, Stored]:
    """The tensors, with those that safetensors' `save_model` left out as duplicates.

    The metadata name them. Of GPT2LMHeadModel the file stores lm_head.weight, and the metadata have
    {"transformer.wte.weight": "lm_head.weight"}.
    """
    dropped = {_PREFIX.sub("", name): _PREFIX.sub("", twin) for name, twin in metadata.items()}
    return found | {name: found[twin] for name, twin in dropped.items()
                    if name not in found and twin in found}


def _find_config(source: Path, metadata: Mapping[str, str], found: Mapping[str, Stored],
                 load: Loader) -> tuple[GPT2Config, str, str]:
    """The configuration, where it comes from, and a warning if a part of it is guessed, else ""."""
    beside = source.parent / CONFIG
    if beside.exists():
        config = GPT2Config.from_file(beside)
        if CONFIG_KEY in metadata:
            _check_copy(config, beside, source, metadata[CONFIG_KEY])
        return _with_ends(config, source.parent / GENERATION), str(beside), ""
    if CONFIG_KEY in metadata:
        with contextlib.suppress(ValueError):           # not written by us: the shapes decide
            own = checked(parsed(metadata[CONFIG_KEY]), dict[str, Any])
            return GPT2Config.from_dict(own), "its metadata", ""
    wte, wpe, c_fc = (found[name].shape if name in found and len(found[name].shape) == 2 else None
                      for name in ("wte.weight", "wpe.weight", "h.0.mlp.c_fc.weight"))
    width = (wte or wpe or (0, 0))[1]
    if not width:
        raise MissingError(f"{source} is not a GPT-2 checkpoint: it has neither a 'wte.weight' "
                           "nor a 'wpe.weight' with two axes")
    name = next((name for name, sizes in PUBLISHED.items() if sizes["n_embd"] == width), None)
    if name is None:
        raise MissingError(f"{source} does not contain n_head, and no published size has the width "
                           f"{width}; put its {CONFIG} beside it")
    fields: dict[str, Any] = dict(PUBLISHED[name])
    if layers := [int(match[1]) for match in map(_IN_BLOCK.match, found) if match]:
        fields["n_layer"] = max(layers) + 1
    if wte:
        fields["vocab_size"] = wte[0]
    if wpe:
        fields["n_positions"] = wpe[0]
    if c_fc and c_fc[1] != 4 * width:
        fields["n_inner"] = c_fc[1]
    if head := found.get("lm_head.weight"):             # without wte.weight: assumed to be untied
        fields["tie_word_embeddings"] = bool(wte) and load.same(head, found["wte.weight"])
    try:
        config = GPT2Config(**fields)
    except UsageError as error:
        raise MissingError(f"{source}: {error}, by its shapes") from None
    guessed = (f"{beside} is not there; n_head={config.n_head} and all other settings that do not "
               f"follow from shapes are those of {name}")
    return config, "its other shapes", guessed


def _with_ends(config: GPT2Config, path: Path) -> GPT2Config:
    """The configuration, with the eos_token_id of a generation_config.json if that has one.

    transformers uses this one too if config.json has another. MissingError if the file is not such
    a record, or if the value is not an id.
    """
    if not path.exists():
        return config
    eos = read_json(path, _Generation).get("eos_token_id")
    try:
        return config if eos is None else replace(config, eos_token_id=eos)
    except UsageError as error:
        raise MissingError(f"{path}: {error}") from None


def _check_copy(config: GPT2Config, beside: Path, source: Path, copy: str) -> None:
    """MissingError if a config.json and the copy in the weights' header are of different models."""
    try:
        other = GPT2Config.from_dict(checked(parsed(copy), dict[str, Any]))
    except ValueError:                                  # not written by us
        return
    for name in UNSEEN:
        if (here := getattr(config, name)) != (there := getattr(other, name)):
            raise MissingError(f"{beside} has {name}={here}, and {source} was written with "
                               f"{name}={there}; one of the two is damaged")


def _check(source: Path, found: Mapping[str, Stored], config: GPT2Config, origin: str) -> None:
    """MissingError unless the file has every parameter, as floats of its shape, and nothing else.

    origin: where the configuration comes from.
    """
    # first of all, as the loops below take a time that grows with n_layer, which may be mistaken
    if config.n_layer > len(found) > 0:
        raise MissingError(f"{source} has {len(found)} tensors; "
                           f"{origin} has n_layer={config.n_layer}")
    shapes = parameter_shapes(config)
    _check_names(source, found, shapes, origin)
    for name, shape in shapes.items():
        entry = found[name]
        if entry.dtype not in NAMES:
            raise MissingError(f"{source}: '{name}' is stored as {entry.dtype}; "
                               f"only {', '.join(NAMES)} can be read")
        if entry.shape != shape:
            hint = "is it of another model?"
            if entry.shape == shape[::-1]:
                hint = "it is the transpose: GPT-2 stores [in, out] (Conv1D), nn.Linear [out, in]"
            raise MissingError(f"{source}: '{name}' is {list(entry.shape)}, but {list(shape)} "
                               f"by {origin}; {hint}")
    if unexpected := sorted(name for name in found if name not in shapes):
        raise MissingError(f"{source} has tensors that are not parameters by {origin}: "
                           f"{_some(unexpected)}")


def _check_names(source: Path, found: Mapping[str, Stored], shapes: Mapping[str, Any],
                 origin: str) -> None:
    """MissingError if a parameter is missing."""
    missing = [name for name in shapes if name not in found]
    if len(missing) == len(shapes):
        raise MissingError(f"{source} is not a GPT-2 checkpoint: it has none of the parameters; "
                           f"it has {_some(sorted(found))}")
    if missing == ["lm_head.weight"]:
        raise MissingError(f"{source} has no tensor 'lm_head.weight', and {origin} does not tie it")
    if missing:
        raise MissingError(f"{source} has no tensor '{missing[0]}'; is it a partial checkpoint? "
                           f"({len(shapes) - len(missing)} of {len(shapes)} tensors found)")


def _some(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more if names else "nothing"


def _finite(array: np.ndarray) -> bool:
    """Whether the array has neither NaN nor infinity."""
    flat = array.reshape(-1)
    # ⟨a, a⟩ is fast and finite only if all of a is; as it may overflow, the slow check decides
    with np.errstate(all="ignore"):
        fast = array.dtype.itemsize > 2 and np.isfinite(np.dot(flat, flat))
    return bool(fast or np.isfinite(flat).all())


# ── writing ──
def write_checkpoint(directory: str | Path, config: GPT2Config,
                     parameters: Mapping[str, np.ndarray], *, dtype: str | None = None,
                     metadata: Mapping[str, str] | None = None,
                     extra_files: Mapping[str, bytes] | None = None) -> None:
    """Write model.safetensors and config.json for transformers' GPT2LMHeadModel.

    dtype: "float32", "float16", "bfloat16", "float64", or None for the dtype of the parameters.
    metadata: more strings for the header of the weights. extra_files: contents of more files by
    name. Each file is written under another name, synced and renamed. New weights never lie beside
    an old config.json of other contents, not even for a moment.

    Raises UsageError if the parameters do not fit the configuration or the dtype, or the directory
    cannot be written; then nothing is left behind.
    """
    directory, shapes = Path(directory), parameter_shapes(config)
    for name in [*shapes, *parameters]:
        if name not in shapes or name not in parameters:
            what = "unexpected" if name in parameters else "missing"
            raise UsageError(f"{what} parameter '{name}' for this config")
        if parameters[name].shape != shapes[name]:
            have, want = list(parameters[name].shape), list(shapes[name])
            raise UsageError(f"'{name}' is {have}, but {want} by the config")
    stored = {name: dtype or parameters[name].dtype.name for name in shapes}
    if unknown := set(stored.values()) - set(CODES):
        known = ", ".join(CODES)
        raise UsageError(f"weights cannot be stored as {unknown.pop()}; choose one of {known}")
    fields = config.to_dict()
    header = {"format": "pt", CONFIG_KEY: json.dumps(fields), **(metadata or {})}
    fields["dtype"] = stored["wte.weight"]
    keys = {name: name if name == "lm_head.weight" else f"transformer.{name}" for name in stored}
    weights = safetensors_pieces({keys[name]: a for name, a in parameters.items()},
                                 {keys[name]: CODES[kind] for name, kind in stored.items()}, header)
    with staged(directory, CONFIG) as stage:
        stage.write(WEIGHTS, weights)
        for name, data in (extra_files or {}).items():
            stage.write(name, [data])
        stage.write(CONFIG, [json.dumps(fields, indent=2, sort_keys=True).encode() + b"\n"])
