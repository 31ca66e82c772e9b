"""Names that PyTorch and NumPy have and minigrad does not, and what to write in minigrad instead.

The error for such a name contains the hint.
"""
from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PYTORCHS = {"dim": "axis", "keepdim": "keepdims", "dims": "axes"}     # PyTorch's name: our name
TENSOR: Mapping[str, str] = {
    "data": "x.detach(), or p.assign(value) to change a parameter",
    "clone": "copy.deepcopy(x), or x * 1.0 in a graph",
    "size": "x.shape, or x.numel() for NumPy's size",
    "contiguous": "x itself: ops take any layout",
    "is_contiguous": "x.numpy().flags.c_contiguous",
    "item_": "x.item()", "detach_": "x = x.detach()",
    "retain_grad": "x.register_hook(f), or mg.gradients(loss, [x])",
    "view_as": "x.reshape(y.shape)", "reshape_as": "x.reshape(y.shape)",
    "expand": "mg.broadcast_to(x, shape=shape)",
    "expand_as": "mg.broadcast_to(x, shape=y.shape)", "repeat": "mg.concat([x] * n, axis=0)",
    "ravel": "x.reshape(-1)",
    "t": "x.T", "swapaxes": "x.transpose(axis0, axis1)", "unbind": "[x[i] for i in range(len(x))]",
    "chunk": "x.split(sections=n, axis=0)", "roll": "mg.concat([x[-n:], x[:-n]], axis=0)",
    "square": "x * x", "pow": "x ** p",
    "rsqrt": "1.0 / mg.sqrt(x)", "reciprocal": "1.0 / x", "add": "x + y", "sub": "x - y",
    "mul": "x * y", "div": "x / y", "neg": "-x",
    "matmul": "x @ y", "mm": "x @ y", "bmm": "x @ y", "mv": "x @ y", "dot": "(x * y).sum()",
    "outer": "x[:, None] * y[None, :]",
    "softmax": "mg.softmax(x, axis=-1)", "log_softmax": "mg.log_softmax(x, axis=-1)",
    "clamp": "x.clip(min=low, max=high)",
    "where": "mg.where(condition, x, y)", "masked_fill": "mg.where(mask, value, x)",
    "masked_select": "x[mask]",
    "index_select": "x.take(indices, axis=0)", "scatter": "x.scatter_add(index, source, axis=axis)",
    "sort": "mg.sort(x), which gives (values, indices); NumPy's method sorts in place",
    "any": "x.numpy().any()", "all": "x.numpy().all()",
    "amax": "x.max(axis=axis)", "amin": "x.min(axis=axis)", "nonzero": "np.nonzero(x.numpy())",
    "isnan": "np.isnan(x.numpy())",
    "round": "np.round(x.numpy())", "floor": "np.floor(x.numpy())",
    "zero_": "p.assign(p * 0.0) under mg.no_grad()", "fill_": "p.assign(...) under mg.no_grad()",
    "copy_": "p.assign(value)", "add_": "x += y", "sub_": "x -= y", "mul_": "x *= y",
    "div_": "x /= y", "relu_": "x = x.relu()",
    "new_zeros": "mg.zeros(size, dtype=x.dtype)", "type": "x.astype(dtype)",
    "stride": "x.numpy().strides", "is_cuda": "x.device",
    "nbytes": "x.numpy().nbytes", "itemsize": "x.dtype.itemsize",
    "is_floating_point": 'x.dtype.kind == "f"',
}
MODULE: Mapping[str, str] = {
    "from_numpy": "mg.tensor(a) for a copy, or mg.from_dlpack(a) to share its memory",
    "as_tensor": "mg.tensor(a)",
    "asarray": "mg.tensor(a)", "array": "mg.tensor(a)", "is_tensor": "isinstance(x, mg.Tensor)",
    "cat": "mg.concat([a, b], axis=0)", "concatenate": "mg.concat([a, b], axis=0)",
    "vstack": "mg.concat([a, b], axis=0)",
    "hstack": "mg.concat([a, b], axis=1)", "clamp": "mg.clip(x, min=low, max=high)", "mm": "a @ b",
    "bmm": "a @ b", "dot": "(a * b).sum()",
    "outer": "a[:, None] * b[None, :]", "square": "x * x", "rsqrt": "1.0 / mg.sqrt(x)",
    "add": "a + b", "sub": "a - b", "mul": "a * b",
    "div": "a / b", "pow": "mg.power(a, b)", "isnan": "np.isnan(x.numpy())",
    "allclose": "np.allclose(a.numpy(), b.numpy())",
    "equal": "np.array_equal(a.numpy(), b.numpy())",
    "manual_seed": "mg.random.manual_seed(seed)",
    "set_grad_enabled": "mg.no_grad() and mg.enable_grad()",
    "inference_mode": "mg.no_grad()", "autograd": "mg.gradients, mg.grad, mg.vjp, mg.jvp, mg.hvp",
    "func": "mg.grad, mg.vjp, mg.jvp",
    "save": "model.save_pretrained(folder), or np.savez", "load": "np.load",
    "compile": "leave it out: kernels are fused by hand",
    "jit": "leave it out: kernels are fused by hand",
    "vmap": "f(x) for an x with a batch axis: ops take leading axes",
    "cuda": 'x.to("cupy")',
    "float": '"float32"', "double": '"float64"', "half": '"float16"', "long": '"int64"',
    "int": '"int32"', "bool": '"bool"',
    "scaled_dot_product_attention": "mg.attention(q, k, v, causal=True)",
    "silu": "x * mg.sigmoid(x)", "mse_loss": "((x - y) ** 2).mean()",
    "nll_loss": "mg.cross_entropy(logits, targets)",
}

NN: Mapping[str, str] = {
    "Sigmoid": "mg.sigmoid(x) in forward", "Softmax": "mg.softmax(x, axis=-1) in forward",
    "SiLU": "x * mg.sigmoid(x) in forward",
    "Identity": "mg.nn.Sequential()", "Flatten": "x.flatten(1) in forward",
    "CrossEntropyLoss": "mg.cross_entropy(logits, targets), a function",
    "MSELoss": "((x - y) ** 2).mean()",
    "NLLLoss": "mg.cross_entropy(logits, targets), which takes logits",
    "MultiheadAttention": "mg.attention(q, k, v, causal=False) and mg.split_heads",
    "ModuleDict": "a dict of modules as an attribute",
    "ParameterList": "a list of Parameters as an attribute",
    "ParameterDict": "a dict of Parameters as an attribute",
    "init": "p.assign(mg.random.normal(key, p.shape)), p.assign(mg.zeros_like(p))",
    "utils": "mg.optim.clip_grad_norm_(parameters, max_norm)",
    "Conv2d": "mg.einsum of windows; there is no convolution",
    "RMSNorm": "x / mg.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight",
}
OPTIM: Mapping[str, str] = {
    "lr_scheduler": 'for group in optimizer.param_groups: group["lr"] = '
                    "mg.optim.warmup_cosine(step, …), or any number",
    "RMSprop": "mg.optim.Adam(params, lr, betas=(0.0, 0.99)), which also corrects its mean square "
               "for the first steps",
    "clip_grad_value_": "p.grad = p.grad.clip(-c, c) for each parameter",
}
NN_MODULE: Mapping[str, str] = {
    "apply": "for module in model.modules(): …",
    "double": 'Linear(2, 3, dtype="float64"): a module has the dtype with which it was made',
    "half": 'Linear(2, 3, dtype="float16"): a module has the dtype with which it was made',
    "float": 'Linear(2, 3, dtype="float32"): a module has the dtype with which it was made',
    "bfloat16": 'Linear(2, 3, dtype="bfloat16"): a module has the dtype with which it was made',
    "cuda": 'model.to("cupy")', "cpu": 'model.to("numpy")',
    "device": "next(model.parameters()).device", "dtype": "next(model.parameters()).dtype",
    "register_parameter": "self.name = mg.nn.Parameter(value)", "add_module": "self.name = module",
    "register_module": "self.name = module",
    "register_buffer": "self.name = value, a Tensor without a gradient or an array",
    "buffers": "vars(module): Tensors without gradients are plain attributes",
    "compile": "leave it out: kernels are fused by hand",
    "register_forward_hook": "your own forward, or for GPT-2 model.hooks({name: f})",
    "transformer": "model.wte, model.h[0] and so on: they are attributes of the model itself",
    "append": "Sequential(*layers, module)",
    "resize_token_embeddings": "GPT2Config(vocab_size=…) with parameters of that size",
    "gradient_checkpointing_enable": "GPT2(config, recompute=True)",
    "num_parameters": "sum(p.numel() for p in model.parameters())",
}
# names of other libraries for settings of any op or function
SETTINGS: Mapping[str, str] = {
    "dim": "axis=", "keepdim": "keepdims=", "dims": "axes=", "is_causal": "causal=True",
    "attn_mask": "mask=, which is True for the keys that a query may see",
    "dropout_p": "p=, and training=True if the function has it",
    "inplace": "leave it out: an op makes a new Tensor",
    "dtype": "a cast, as in x.astype(dtype)",
    "alpha": "the factor itself, as in alpha * x",
    "order": "leave it out: elements are in C order",
    "grad_outputs": "cotangent=",
    "allow_unused": "leave it out: an unused input has a gradient of zeros",
    "padding_idx": "leave it out: no row of the table is special",
    "strict": "a dict of all names, such as {**model.state_dict(), **arrays}",
    "out": "leave it out: an op makes a new Tensor",
    "elementwise_affine": "mg.layer_norm(x, weight, bias) with constants",
    "dampening": "your own update under mg.no_grad()",
    "nesterov": "your own update under mg.no_grad()",
    "amsgrad": "your own update under mg.no_grad()",
    "maximize": "-loss, which is minimised",
    "fused": "leave it out: the backend chooses the kernel",
    "foreach": "leave it out: all parameters are updated together already",
    "input_ids": "the ids as a positional argument: model(ids)",
    "labels": "model.loss(ids, targets), where targets are one position later",
    "attention_mask": "model.generate for prompts of several lengths, or one prompt at a time",
    "position_ids": "leave it out: positions are counted from 0",
    "use_cache": "cache=gpt2.KVCache(model.config, rows)",
    "output_attentions": 'model.trace(ids), which has "blocks.0.attn.pattern"',
    "output_hidden_states": 'model.trace(ids), which has "blocks.0.resid_pre"',
    "inputs_embeds": 'model.hooks({"embed": f})',
    "past_key_values": "cache=", "do_sample": "greedy=True, or a temperature",
    "max_length": "max_new_tokens=",
    "num_beams": "greedy=True: there is no beam search",
    "num_return_sequences": "a prompt for each, as in [prompt] * n",
    "min_new_tokens": "max_new_tokens=, and stop=",
    "pad_token_id": "leave it out: rows are padded on the left automatically",
    "torch_dtype": "dtype=", "device_map": "backend=",
}


def instead(f: Callable[P, R]) -> Callable[P, R]:
    """f, whose error says what to write if a setting was passed by another library's name."""
    @functools.wraps(f)
    def call(*args: P.args, **settings: P.kwargs) -> R:
        try:
            return f(*args, **settings)
        except TypeError:
            refuse(call, settings)
            raise

    return call


def refuse(f: Callable[..., Any], settings: Iterable[str]) -> None:
    """Raise TypeError if a setting has another library's name, and f has no such setting."""
    for name in foreign(settings, inspect.signature(f).parameters):
        what = f.__qualname__.removesuffix(".__init__").removesuffix(".forward")
        what = what.rpartition("<locals>.")[2]
        raise TypeError(f"{what}: there is no {name}=; {remedy(SETTINGS[name])}") from None


def pytorchs(names: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings and those passed by PyTorch's names; TypeError for one passed by both names."""
    for name, value in names.items():
        ours = PYTORCHS.get(name, name)
        if settings.get(ours) not in (None, False):
            raise TypeError(f"{name} is PyTorch's name of {ours}; pass only one of them")
        settings[ours] = value
    return settings


def foreign(settings: Iterable[str], known: Iterable[str]) -> list[str]:
    """The settings that have another library's name and are not known here."""
    return [name for name in settings if name in SETTINGS and name not in known]


def remedy(hint: str) -> str:
    """A hint of the tables as a part of an error message: "write axis=" or "leave it out: …"."""
    return hint if hint.startswith("leave it out") else f"write {hint}"


def missing(module: str, elsewhere: Mapping[str, str],
            known: Callable[[], Iterable[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a module, whose error for an unknown name says what to write."""
    def getattr(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        raise unknown(module, name, elsewhere, known())

    return getattr


def unknown(whose: str, name: str, elsewhere: Mapping[str, str],
            known: Iterable[str]) -> AttributeError:
    """The error for a name that does not exist.

    It says what to write instead, or lists similar names.
    """
    said = f"{whose} has no attribute {name!r}"
    if name in elsewhere:
        return AttributeError(f"{said}; {remedy(elsewhere[name])}")
    near = difflib.get_close_matches(name, [n for n in known if not n.startswith("_")], 3)
    return AttributeError(f"{said}; similar names: {', '.join(near)}" if near else said)
