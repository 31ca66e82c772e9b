"""What a model does besides computing: weights in, weights out, and the checks at its door."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import minigrad as mg
from minigrad import nn
from minigrad.fused.packed_linear import FEW
from minigrad.hints import instead

from ..config import GPT2Config, as_int
from ..errors import UsageError

if TYPE_CHECKING:
    from ..decoding.kv_cache import KVCache

Model = TypeVar("Model", bound="PretrainedModel")
DTYPES = ("float32", "float64", "float16", "bfloat16")


class Part(nn.Module):
    """A module of a model, such as can be copied and pickled.

    A copy has neither the hooks nor the panels that are there for a while: they belong to the block of code that set them.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in ("taps", "panels")}


class Matrix(Part):
    """A module with one matrix, `weight`; `panels` holds it once more while `PretrainedModel.packed()` lasts."""

    weight: nn.Parameter
    panels: Any = None

    def packs(self, x: mg.Tensor) -> bool:
        """Whether the product with x [..., k] is to be that with the panels."""
        return self.panels is not None and x.numel() <= FEW * x.shape[-1]


class PretrainedModel(Part):
    """Base of GPT2: initialisation, loading, saving, and text out of it."""

    config: GPT2Config
    where: dict[str, Any]
    compute_dtype: str
    path: Path | None = None                            # where the weights came from

    def __init__(self, config: GPT2Config, **options: Any) -> None:
        raise NotImplementedError

    # ── weights in ──
    @classmethod
    @instead
    def from_pretrained(cls: type[Model], name_or_dir: str | Path, *, backend: str = "numpy", dtype: str = "float32",
                        explicit: bool = False, download: bool = False) -> Model:
        """A model from a directory that transformers or we wrote, a .safetensors file, or the name of a published size.

        Names are looked up among earlier downloads; download=True fetches. MissingError when weights are missing or bad.
        Weights of the wanted dtype are memory-mapped, not copied.
        """
        from .checkpoint import read_checkpoint
        from .locate import locate

        found = read_checkpoint(locate(name_or_dir, download=download), dtype=dtype)
        model = cls(found.config, backend=backend, dtype=dtype, explicit=explicit, parameters=found.parameters)
        model.path = found.path
        return model

    @staticmethod
    def place(backend: str, dtype: str) -> dict[str, Any]:
        """The device and dtype of the parameters. BackendUnavailable where the backend is not to be had."""
        return {"device": str(mg.backend.get(backend)), "dtype": PretrainedModel.floats(dtype)}

    @staticmethod
    def floats(dtype: str) -> str:
        """`dtype`, if it is one that a model can have. UsageError where it is not, or where its package is missing."""
        if dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r} is not supported; choose {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
        try:
            return str(mg.backend.dtype(dtype))
        except mg.errors.DTypeError as error:
            raise UsageError(str(error)) from None

    def fill(self, seed: int, parameters: Mapping[str, Any] | None) -> None:
        """Draw the weights from `seed`, which leaves training mode, or take `parameters`, and then evaluation mode."""
        there = mg.backend.get(self.where["device"])
        own = dict(self.named_parameters())
        if parameters is None:
            if (start := as_int(seed)) is None:
                raise UsageError(f"the seed must be a whole number, not {seed!r}")
            for i, (name, p) in enumerate(own.items()):
                p.assign(self._initial(name, p.shape, mg.random.fold_in(mg.random.key(start), i)))
        else:
            if own.keys() != parameters.keys():
                missing, unexpected = sorted(own.keys() - parameters.keys()), sorted(parameters.keys() - own.keys())
                raise UsageError(f"parameters: missing {missing}, unexpected {unexpected}")
            for name, p in own.items():
                p.assign(mg.Tensor(there.adopt(parameters[name], dtype=self.where["dtype"])))
            self.eval()

    def _initial(self, name: str, shape: tuple[int, ...], key: int) -> Any:
        """GPT-2's first weights: N(0, 0.02²), divided by √(2L) where a block writes to the residual stream (block.8); LayerNorm 1 and 0."""
        there = mg.backend.get(self.where["device"])
        if name.endswith("bias"):
            return there.zeros(shape, dtype=self.where["dtype"])
        if len(shape) == 1:
            return there.ones(shape, dtype=self.where["dtype"])
        std = self.config.initializer_range
        if name.endswith("c_proj.weight"):
            std /= math.sqrt(2 * self.config.n_layer)
        return mg.random.normal(key, shape, std=std, **self.where).array

    # ── weights out ──
    def save_pretrained(self, directory: str | Path, *, dtype: str | None = None, tokenizer: Any = None) -> None:
        """Write model.safetensors and config.json, which transformers reads, and the tokenizer's files when given one.

        dtype: of the stored weights ("float16" halves them); the parameters' own when left out. UsageError when the
        directory cannot be written; then nothing is left half-written.
        """
        from .checkpoint import write_checkpoint

        arrays = {name: mg.backend.of(p.array).host(p.array) for name, p in self.named_parameters()}
        write_checkpoint(directory, self.config, arrays, dtype=dtype, extra_files=tokenizer.files() if tokenizer else None)

    # ── at the door ──
    def integers(self, ids: Any, what: str = "ids") -> Any:
        """ids as an integer array on the model's device; looked at while they are on the host, for nothing is fetched back."""
        array = ids.array if isinstance(ids, mg.Tensor) else ids
        there = mg.backend.get(self.where["device"])
        if not isinstance(array, there.backend.array_types):
            try:
                array = mg.backend.cpu.adopt(array)
            except ValueError:
                raise UsageError(f"{what} must be a rectangle of integers; rows of different lengths need padding") from None
        if array.dtype.kind not in "iu":
            if array.size:
                raise UsageError(f"{what} must be integers; these are {array.dtype}{list(array.shape)}")
            array = array.astype("int64")
        if what == "ids" and not isinstance(ids, mg.Tensor) and isinstance(array, mg.backend.cpu.array_types) and array.size:
            low, high = int(array.min()), int(array.max())
            if low < 0 or high >= self.config.vocab_size:
                raise UsageError(f"id {low if low < 0 else high} is outside the vocabulary 0 … {self.config.vocab_size - 1}")
        return array if isinstance(array, there.backend.array_types) else there.adopt(array)

    def inputs(self, ids: Any, cache: KVCache | None) -> tuple[Any, Any, Any]:
        """ids [B, T] checked, their positions [T] or [B, T], and the mask of a cache with padding."""
        array = self.integers(ids)
        if array.ndim != 2 or array.size == 0:
            raise UsageError(f"ids must be [batch, tokens] with at least one token; this is {list(array.shape)}")
        past = cache.length if cache is not None else 0
        if past + array.shape[1] > self.config.n_positions:
            raise UsageError(f"{past + array.shape[1]} tokens do not fit the context of {self.config.n_positions}; shorten the input")
        if cache is not None:
            return array, *cache.layout(*array.shape)
        return array, mg.backend.get(self.where["device"]).arange(array.shape[1]), None

    # ── text out ──
    def train(self: Model, mode: bool = True) -> Model:
        """Training mode or not, for this module and all below it; for training, weights lie row by row again, as gradients do."""
        if mode:
            self.lay_out(False)
        super().train(mode)
        return self

    def refuse_dropout(self, what: str) -> None:
        """UsageError where dropout would draw: in training mode, of a configuration that has dropout."""
        config = self.config
        if max(config.embd_pdrop, config.resid_pdrop, config.attn_pdrop) > 0.0 and any(part.training for part in self.modules()):
            raise UsageError(f"{what}: the model is in training mode, and its dropout would change the numbers at random; "
                             "call model.eval() first")

    def lay_out(self, on: bool = True) -> None:
        """Put the matrices that rows are multiplied with into the layout that decoding one row reads fastest, or back.

        In training mode they stay as they are.
        """
        if on and self.training:
            return
        for module, matrix in self.matrices():
            here, p = mg.backend.of(matrix), module.weight
            here.at(matrix)
            made = here.lay_out(matrix) if on else here.ascontiguousarray(p.array)
            if made is not matrix and made is not p.array:
                p.assign(mg.Tensor(made.T if on and matrix is not p.array else made))

    def matrices(self) -> Iterator[tuple[Matrix, Any]]:
        """The modules that rows are multiplied with, and their matrices [in, out] as arrays."""
        raise NotImplementedError

    @contextlib.contextmanager
    def packed(self) -> Iterator[None]:
        """Inside the block a pass over 2 … FEW rows multiplies with panels, which is up to three times as fast; without gradients only.

        They are copies: the weights take as much memory again. The weights must not change meanwhile.
        """
        try:
            for module, array in self.matrices():
                panels = mg.backend.of(array).pack(array)
                module.panels = None if panels is None else mg.Tensor(panels)
            yield
        finally:
            for module, _ in self.matrices():
                module.panels = None

    @instead
    def generate(self, ids: Any, max_new_tokens: int = 20, **options: Any) -> Any:
        """Continue ids [B, T], or ragged rows, with greedy=True or by sampling. Returns a list of rows of ids.

        Options as in `gpt2.decoding.decode.generate`; UsageError where they say neither.
        """
        from ..decoding.decode import generate

        return generate(self, ids, max_new_tokens=max_new_tokens, **options)

    def num_parameters(self) -> int:
        """How many numbers are trained; a tied weight counts once."""
        return sum(p.numel() for p in self.parameters())
