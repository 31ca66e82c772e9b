"""Base classes of a model: loading, saving and laying out its weights, and checks of its input."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import minigrad as mg
from minigrad import nn
from minigrad.hints import instead

from ..config import GPT2Config, as_int
from ..errors import UsageError
from ..functions import Packed, casting, changing

if TYPE_CHECKING:
    from ..decoding.kv_cache import KVCache

Model = TypeVar("Model", bound="PretrainedModel")
DTYPES = ("float32", "float64", "float16", "bfloat16")


class PretrainedModel(nn.Module):
    """Base of GPT2: initialisation, loading, saving, checks of its input, and generation."""

    config: GPT2Config
    where: dict[str, Any]
    explicit: bool = False
    compute_dtype: str
    # inside packed(): copies of the weights by the parameter's id, and how many blocks use them
    panels: dict[int, mg.Tensor] | None = None
    packings = 0
    path: Path | None = None                            # where the weights came from

    def __init__(self, config: GPT2Config, **options: Any) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """The attributes of a copy, which has no panels: they belong to the `with` block."""
        return super().__getstate__() | {"panels": None, "packings": 0}

    # ── loading ──
    @classmethod
    @instead
    def from_pretrained(cls: type[Model], name_or_dir: str | Path, *, backend: str = "numpy",
                        dtype: str = "float32", explicit: bool = False,
                        download: bool = False) -> Model:
        """A model with the weights of a checkpoint, in evaluation mode.

        name_or_dir: a directory that transformers or `save_pretrained` wrote, a .safetensors file,
        "shakespeare", or a published size such as "gpt2". download=True downloads a published size
        that is not on this machine. Weights that are stored in `dtype` are memory-mapped, not
        copied. MissingError if weights are missing or damaged.
        """
        from .checkpoint import read_checkpoint
        from .locate import locate

        found = read_checkpoint(locate(name_or_dir, download=download), dtype=dtype)
        model = cls(found.config, backend=backend, dtype=dtype, explicit=explicit,
                    parameters=found.parameters)
        model.path = found.path
        return model

    @staticmethod
    def place(backend: str, dtype: str) -> dict[str, Any]:
        """The device and dtype of the parameters. BackendUnavailable if it cannot be used here."""
        return {"device": str(mg.backend.get(backend)), "dtype": PretrainedModel.floats(dtype)}

    @staticmethod
    def floats(dtype: str) -> str:
        """`dtype`, if a model can have it; UsageError if not, or if its package is missing."""
        if dtype not in DTYPES:
            known = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
            raise UsageError(f"dtype {dtype!r} is not supported; choose {known}")
        try:
            return str(mg.backend.dtype(dtype))
        except mg.errors.DTypeError as error:
            raise UsageError(str(error)) from None

    def fill(self, seed: int, parameters: Mapping[str, Any] | None) -> None:
        """Draw the weights from `seed`, or take `parameters` and switch to evaluation mode."""
        there = mg.backend.get(self.where["device"])
        own = dict(self.named_parameters())
        if parameters is None:
            if (start := as_int(seed)) is None:
                raise UsageError(f"the seed must be a whole number, not {seed!r}")
            for i, (name, p) in enumerate(own.items()):
                p.assign(self._initial(name, p.shape, mg.random.fold_in(mg.random.key(start), i)))
        else:
            if own.keys() != parameters.keys():
                missing = sorted(own.keys() - parameters.keys())
                unexpected = sorted(parameters.keys() - own.keys())
                raise UsageError(f"parameters: missing {missing}, unexpected {unexpected}")
            for name, p in own.items():
                p.assign(mg.Tensor(there.adopt(parameters[name], dtype=self.where["dtype"])))
            self.eval()

    def _initial(self, name: str, shape: tuple[int, ...], key: int) -> Any:
        """The initial value of a parameter, as in GPT-2.

        A matrix is drawn from N(0, 0.02²). Its deviation is divided by √(2L) if its product is
        added to the residual stream   (block.8). Biases are 0, and LayerNorm's weights are 1.
        """
        there = mg.backend.get(self.where["device"])
        if name.endswith("bias"):
            return there.zeros(shape, dtype=self.where["dtype"])
        if len(shape) == 1:
            return there.ones(shape, dtype=self.where["dtype"])
        std = self.config.initializer_range
        if name.endswith("c_proj.weight"):
            std /= math.sqrt(2 * self.config.n_layer)
        return mg.random.normal(key, shape, std=std, **self.where).array

    # ── saving ──
    def save_pretrained(self, directory: str | Path, *, dtype: str | None = None,
                        tokenizer: Any = None) -> None:
        """Write model.safetensors and config.json, which transformers reads.

        tokenizer: its files are written too. dtype: of the stored weights; without it they have the
        dtype of the parameters. UsageError if the directory cannot be written; then no file is left
        half-written.
        """
        from .checkpoint import write_checkpoint

        arrays = {name: mg.backend.of(p.array).host(p.array) for name, p in self.named_parameters()}
        write_checkpoint(directory, self.config, arrays, dtype=dtype,
                         extra_files=tokenizer.files() if tokenizer else None)

    # ── checks of the input ──
    def integers(self, ids: Any, what: str = "ids") -> Any:
        """ids as an integer array on the model's device.

        Arrays and lists on the host are checked against the vocabulary. Ids on a GPU are not copied
        back for that. what: the name of the ids in an error.
        """
        array = ids.array if isinstance(ids, mg.Tensor) else ids
        there = mg.backend.get(self.where["device"])
        if not isinstance(array, there.backend.array_types):
            try:
                array = mg.backend.cpu.adopt(array)
            except ValueError:
                raise UsageError(f"{what} must be a rectangle of integers; "
                                 "rows of different lengths need padding") from None
        if array.dtype.kind not in "iu":
            if array.size:
                raise UsageError(f"{what} must be integers; "
                                 f"these are {array.dtype}{list(array.shape)}")
            array = array.astype("int64")
        on_host = not isinstance(ids, mg.Tensor) and isinstance(array, mg.backend.cpu.array_types)
        if what == "ids" and on_host and array.size:
            low, high = int(array.min()), int(array.max())
            if low < 0 or high >= self.config.vocab_size:
                raise UsageError(f"id {low if low < 0 else high} is outside the vocabulary "
                                 f"0 … {self.config.vocab_size - 1}")
        return array if isinstance(array, there.backend.array_types) else there.adopt(array)

    def inputs(self, ids: Any, cache: KVCache | None) -> tuple[Any, Any, Any]:
        """ids [B, T] checked, their positions [T] or [B, T], and the mask of a padded cache."""
        array = self.integers(ids)
        if array.ndim != 2 or array.size == 0:
            raise UsageError("ids must be [batch, tokens] with at least one token; "
                             f"this is {list(array.shape)}")
        total = array.shape[1] + (cache.length if cache is not None else 0)
        if total > self.config.n_positions:
            raise UsageError(f"{total} tokens do not fit the context of {self.config.n_positions}; "
                             "shorten the input")
        if cache is not None:
            return array, *cache.layout(*array.shape)
        return array, mg.backend.get(self.where["device"]).arange(array.shape[1]), None

    # ── modes, functions, and layouts of the weights ──
    def functions(self) -> Any:
        """The functions that modules without hooks call: fused or not, with casts or panels."""
        F: Any = nn.unfused if self.explicit else nn.functional
        if self.compute_dtype != self.where["dtype"]:
            return casting(F.__name__)
        return Packed(F, self.panels) if self.panels else F

    def own_functions(self, F: Any) -> dict[int, Any]:
        """The functions of modules that call others than F, by the module's id."""
        return {}

    def set_functions(self) -> None:
        """Give every module the functions that it calls."""
        F = self.functions()
        own = self.own_functions(F)
        for module in self.modules():
            module.F = own.get(id(module), F)

    def train(self: Model, mode: bool = True) -> Model:
        """Set training mode, or with mode=False evaluation mode, here and in all modules below.

        In training mode weights are stored row by row, as their gradients are.
        """
        if mode:
            self.lay_out(False)
        super().train(mode)
        return self

    def refuse_dropout(self, what: str) -> None:
        """UsageError if the configuration has dropout and a module is in training mode."""
        config = self.config
        largest = max(config.embd_pdrop, config.resid_pdrop, config.attn_pdrop)
        if largest > 0.0 and any(part.training for part in self.modules()):
            raise UsageError(f"{what}: the model is in training mode, and its dropout would change "
                             "the numbers at random; call model.eval() first")

    def lay_out(self, on: bool = True) -> None:
        """Store the matrices in the layout that is fastest for decoding one row, or by rows again.

        In training mode they are left as they are.
        """
        if on and self.training:
            return
        for p, matrix in self.matrices():
            here = mg.backend.of(matrix)
            here.at(matrix)
            made = here.lay_out(matrix) if on else here.ascontiguousarray(p.array)
            if made is not matrix and made is not p.array:
                p.assign(mg.Tensor(made.T if on and matrix is not p.array else made))

    def matrices(self) -> Iterator[tuple[nn.Parameter, Any]]:
        """The parameters that rows are multiplied with, and these matrices [in, out] as arrays."""
        raise NotImplementedError

    @contextlib.contextmanager
    def packed(self) -> Iterator[None]:
        """Inside the block a pass over 2 … FEW rows multiplies with panels, without gradients.

        This is up to three times as fast. The panels are copies of the weights, so they take as
        much memory again, and the weights must not change inside the block. Blocks of several
        threads share the panels, which go with the last of these blocks.
        """
        with changing:
            if self.panels is None:
                packed = {id(p): mg.backend.of(array).pack(array) for p, array in self.matrices()}
                self.panels = {key: mg.Tensor(a) for key, a in packed.items() if a is not None}
                self.set_functions()
            self.packings += 1
        try:
            yield
        finally:
            with changing:
                self.packings -= 1
                if not self.packings:
                    self.panels = None
                    self.set_functions()

    # ── generation ──
    @instead
    def generate(self, ids: Any, max_new_tokens: int = 20, **options: Any) -> Any:
        """Continue ids [B, T], or rows of different lengths; returns a list of rows of ids.

        options: those of `gpt2.decoding.decode.generate`. UsageError if they choose neither greedy
        decoding (greedy=True) nor sampling.
        """
        from ..decoding.decode import generate

        return generate(self, ids, max_new_tokens=max_new_tokens, **options)

    def num_parameters(self) -> int:
        """The number of trained numbers; a tied weight counts once."""
        return sum(p.numel() for p in self.parameters())
