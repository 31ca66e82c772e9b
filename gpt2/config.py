"""The configuration of a GPT-2: its sizes and switches, and the shapes of its parameters."""
from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from .errors import MissingError, UsageError
from .io.records import read_json

PUBLISHED: dict[str, dict[str, int]] = {                # Radford et al. 2019, table 2
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}

# No GPT-2 comes near to these sizes: an error for a larger one comes at once, before anything as
# large as it is computed.
LARGEST = {"vocab_size": 2**32, "n_positions": 2**32, "n_embd": 2**20, "n_layer": 10_000,
           "n_head": 2**20, "n_inner": 2**24}

# transformers' names of the activations that are implemented here. gelu_fast writes √(2/π) with ten
# digits: that is the same number in float32, and changes the result by less than 1e-12·|x| in
# float64.
ACTIVATION_NAMES = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
}

# other names that transformers' GPT2Config accepts for the same fields
_SYNONYMS = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

# Fields that change what is computed and that are not implemented here, with the values that change
# nothing, as null does.
_REFUSED_UNLESS: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, []),
    "quantization_config": ({},),
    "position_embedding_type": ("absolute",),
    "rope_theta": (),
    "rope_scaling": ({},),
    "rope_parameters": ({},),
}


@dataclass(frozen=True)
class GPT2Config:
    """Sizes and switches of a GPT-2, with the names and defaults of transformers' GPT2Config.

    n_inner: width of the MLP; None is 4·n_embd. The dropouts are probabilities in [0, 1).
    activation_function: gelu_new, gelu or relu; synonyms are replaced by one of these names.
    reorder_and_upcast_attn: a 16-bit model computes the scores in float32 and scales them before
    they can overflow; this package always does so, and the field changes nothing. eos_token_id: an
    id, or several, any of which ends a text.

    NumPy's numbers are taken as Python's. Raises UsageError for a value out of range (for sizes,
    `LARGEST`) or of the wrong type; a bool or a float is not accepted as an integer.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | Sequence[int] | None = 50256

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if name == "n_inner" and value is None:
                continue
            if (size := as_int(value)) is None or size <= 0:
                raise UsageError(f"{name} must be a positive integer, not {brief(value)}")
            if size > LARGEST[name]:
                raise UsageError(f"{name} must be {LARGEST[name]:,} at most, not {brief(value)}")
            object.__setattr__(self, name, size)
        if self.n_embd % self.n_head:
            raise UsageError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if not 0 <= self._number(name) < 1:
                raise UsageError(f"{name} must be a number in [0, 1), "
                                 f"not {brief(getattr(self, name))}")
        if not 0 < self._number("layer_norm_epsilon") < math.inf:
            raise UsageError("layer_norm_epsilon must be positive, "
                             f"not {brief(self.layer_norm_epsilon)}")
        if not 0 <= self._number("initializer_range") < math.inf:
            raise UsageError("initializer_range must be 0 or more, "
                             f"not {brief(self.initializer_range)}")
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx",
                     "reorder_and_upcast_attn", "tie_word_embeddings"):
            if not isinstance(value := getattr(self, name), bool):
                raise UsageError(f"{name} must be true or false, not {brief(value)}")
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            several = name == "eos_token_id" and isinstance(value, list | tuple) and len(value) > 0
            ids = [as_int(one) for one in (value if several else [] if value is None else [value])]
            # transformers writes its default 50256 for any vocabulary
            if not all(i is not None and (0 <= i < self.vocab_size or i == 50256) for i in ids):
                below = f"an id below vocab_size={self.vocab_size}"
                raise UsageError(f"{name} must be null or {below}, not {brief(value)}")
            object.__setattr__(self, name, tuple(ids) if len(ids) > 1 else ids[0] if ids else None)
        act = self.activation_function
        if not isinstance(act, str) or act not in ACTIVATION_NAMES:
            known = ", ".join(ACTIVATION_NAMES)
            raise UsageError(f"activation_function {brief(act)} is not supported; "
                             f"choose one of {known}")
        object.__setattr__(self, "activation_function", ACTIVATION_NAMES[act])

    def _number(self, name: str) -> float:
        """The field as a float; NaN, which is in no range, if the field is not a number."""
        number = as_float(getattr(self, name))
        if not math.isnan(number):
            object.__setattr__(self, name, number)
        return number

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a text."""
        return ids_of(self.eos_token_id)

    @classmethod
    def from_name(cls, name: str) -> GPT2Config:
        """The configuration of a published size. UsageError with the names for any other."""
        if name not in PUBLISHED:
            nearest = [f"did you mean {n!r}? "
                       for n in difflib.get_close_matches(name, PUBLISHED, n=1)]
            names = ", ".join(PUBLISHED)
            raise UsageError(f"unknown model {name!r}; {''.join(nearest)}the names are {names}")
        return cls(**PUBLISHED[name])  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> GPT2Config:
        """The configuration in the fields of a transformers config.json.

        A field that changes what is computed, and is not implemented here, raises a UsageError with
        its name: another model_type, cross-attention, pruned heads, quantised weights, other
        position embeddings, code of the checkpoint. All other unknown fields are ignored: a
        config.json has many of them, and transformers' GPT-2 computes the same logits without them.
        """
        if not isinstance(fields, Mapping):
            raise UsageError(f"a configuration is a JSON object of fields, not {brief(fields)}")
        for name, neutral in _REFUSED_UNLESS.items():
            value = fields.get(name)
            if value is not None and value not in neutral:
                raise UsageError(f"{name}={brief(value)} is not supported; "
                                 "this is not OpenAI's GPT-2")
        code = fields.get("auto_map") or {}
        if not isinstance(code, Mapping) or any(str(key).startswith("AutoModel") for key in code):
            raise UsageError(f"auto_map={brief(code)} is not supported: "
                             "it names a model with its own code")
        names = [field.name for field in dataclasses.fields(cls)]
        ours = {name: fields[name] for name in names if name in fields}
        for synonym, name in _SYNONYMS.items():
            if synonym in fields and ours.setdefault(name, fields[synonym]) != fields[synonym]:
                both = f"{name}={brief(ours[name])} and {synonym}={brief(fields[synonym])}"
                raise UsageError(f"{both} are one field and differ")
        return cls(**ours)

    @classmethod
    def from_file(cls, path: str | Path) -> GPT2Config:
        """The configuration in a config.json, or in the directory that holds it.

        MissingError, with the path, if there is no such file, and for a field that is damaged or
        not supported.
        """
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        fields = read_json(path, dict[str, Any])
        try:
            return cls.from_dict(fields)
        except UsageError as error:
            raise MissingError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The fields of a config.json that transformers reads as a GPT2LMHeadModel."""
        fields = dataclasses.asdict(self)
        if isinstance(self.eos_token_id, tuple):
            fields["eos_token_id"] = list(self.eos_token_id)            # JSON has no tuples
        return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **fields}


def as_int(value: Any) -> int | None:
    """value as an int, if it is an integer of Python or NumPy; None for a bool and all else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def as_float(value: Any) -> float:
    """value as a float, if it is a number of Python or NumPy; NaN for a bool and all else."""
    try:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return math.nan                             # NaN is in no range
        return float(value)
    except OverflowError:                               # JSON has integers of any length
        return math.nan


def ids_of(eos: Any) -> frozenset[int]:
    """The ids of an eos_token_id, which may be one, several, or None. UsageError for all else."""
    if eos is None:
        return frozenset()
    if hasattr(eos, "tolist"):
        eos = eos.tolist()                              # an array, or a Tensor
    ids = [as_int(i) for i in (eos if isinstance(eos, list | tuple | set | frozenset) else [eos])]
    if not ids or None in ids:
        raise UsageError(f"eos_token_id must be an id, a list of ids, or None, not {brief(eos)}")
    return frozenset(i for i in ids if i is not None)


def parameter_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its name, in model order.

    Names are transformers' without `transformer.`; weights of linear maps are [in, out] (Conv1D).
    `lm_head.weight` [vocab_size, n_embd] is included only when it is not tied to `wte.weight`.
    """
    d = config.n_embd
    n = config.n_inner or 4 * d
    block: dict[str, tuple[int, ...]] = {
        "ln_1.weight": (d,), "ln_1.bias": (d,),
        "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,),
        "ln_2.weight": (d,), "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, n), "mlp.c_fc.bias": (n,),
        "mlp.c_proj.weight": (n, d), "mlp.c_proj.bias": (d,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, d), "wpe.weight": (config.n_positions, d),
        **{f"h.{layer}.{name}": shape
           for layer in range(config.n_layer) for name, shape in block.items()},
        "ln_f.weight": (d,), "ln_f.bias": (d,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)
    return shapes


def num_parameters(config: GPT2Config) -> int:
    """How many numbers the parameters have together; a tied weight counts once   (size.1)."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def training_flop_per_token(config: GPT2Config, tokens: int) -> int:
    """Floating-point operations of a training step for each token: 6 N + 12 L d T   (size.2).

    tokens: T, of a row. N is the number of parameters without the tables in which rows are only
    looked up: the position table, and the token table where the head is not tied to it. 6 N is
    from Kaplan et al. 2020, the term for attention from Chowdhery et al. 2022.
    """
    d = config.n_embd
    looked_up = config.n_positions + (0 if config.tie_word_embeddings else config.vocab_size)
    return 6 * (num_parameters(config) - looked_up * d) + 12 * config.n_layer * d * tokens
