"""What to type here for names that PyTorch and NumPy have and minigrad does not. An unknown name says it in its error."""
from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

TENSOR: Mapping[str, str] = {
    "data": "x.detach(), or p.assign(value) to change a parameter", "clone": "copy.deepcopy(x), or x * 1.0 in a graph",
    "size": "x.shape, or x.numel() for NumPy's size",
    "contiguous": "x as it is: ops take any layout", "is_contiguous": "x.numpy().flags.c_contiguous",
    "item_": "x.item()", "detach_": "x = x.detach()", "retain_grad": "x.register_hook(f), or mg.gradients(loss, [x])",
    "view_as": "x.reshape(y.shape)", "reshape_as": "x.reshape(y.shape)", "expand": "mg.broadcast_to(x, shape=shape)",
    "expand_as": "mg.broadcast_to(x, shape=y.shape)", "repeat": "mg.concat([x] * n, axis=0)", "ravel": "x.reshape(-1)",
    "t": "x.T", "swapaxes": "x.transpose(axis0, axis1)", "unbind": "[x[i] for i in range(len(x))]",
    "chunk": "x.split(sections=n, axis=0)", "roll": "mg.concat([x[-n:], x[:-n]], axis=0)",
    "square": "x * x", "pow": "x ** p",
    "rsqrt": "1.0 / mg.sqrt(x)", "reciprocal": "1.0 / x", "add": "x + y", "sub": "x - y", "mul": "x * y", "div": "x / y", "neg": "-x",
    "matmul": "x @ y", "mm": "x @ y", "bmm": "x @ y", "mv": "x @ y", "dot": "(x * y).sum()", "outer": "x[:, None] * y[None, :]",
    "softmax": "mg.softmax(x, axis=-1)", "log_softmax": "mg.log_softmax(x, axis=-1)", "clamp": "x.clip(min=low, max=high)",
    "where": "mg.where(condition, x, y)", "masked_fill": "mg.where(mask, value, x)", "masked_select": "x[mask]",
    "index_select": "x.take(indices, axis=0)", "scatter": "x.scatter_add(index, source, axis=axis)",
    "sort": "mg.sort(x), which gives (values, indices); NumPy's method sorts in place", "any": "x.numpy().any()", "all": "x.numpy().all()",
    "amax": "x.max(axis=axis)", "amin": "x.min(axis=axis)", "nonzero": "np.nonzero(x.numpy())", "isnan": "np.isnan(x.numpy())",
    "round": "np.round(x.numpy())", "floor": "np.floor(x.numpy())",
    "zero_": "p.assign(p * 0.0) under mg.no_grad()", "fill_": "p.assign(...) under mg.no_grad()",
    "copy_": "p.assign(value)", "add_": "x += y", "sub_": "x -= y", "mul_": "x *= y", "div_": "x /= y", "relu_": "x = x.relu()",
    "new_zeros": "mg.zeros(size, dtype=x.dtype)", "type": "x.astype(dtype)", "stride": "x.numpy().strides", "is_cuda": "x.device",
    "nbytes": "x.numpy().nbytes", "itemsize": "x.dtype.itemsize", "is_floating_point": 'x.dtype.kind == "f"',
}
MODULE: Mapping[str, str] = {
    "from_numpy": "mg.tensor(a) for a copy, or mg.from_dlpack(a) to share its memory", "as_tensor": "mg.tensor(a)",
    "asarray": "mg.tensor(a)", "array": "mg.tensor(a)", "is_tensor": "isinstance(x, mg.Tensor)",
    "cat": "mg.concat([a, b], axis=0)", "concatenate": "mg.concat([a, b], axis=0)", "vstack": "mg.concat([a, b], axis=0)",
    "hstack": "mg.concat([a, b], axis=1)", "clamp": "mg.clip(x, min=low, max=high)", "mm": "a @ b", "bmm": "a @ b", "dot": "(a * b).sum()",
    "outer": "a[:, None] * b[None, :]", "square": "x * x", "rsqrt": "1.0 / mg.sqrt(x)", "add": "a + b", "sub": "a - b", "mul": "a * b",
    "div": "a / b", "pow": "mg.power(a, b)", "isnan": "np.isnan(x.numpy())",
    "allclose": "np.allclose(a.numpy(), b.numpy())", "equal": "np.array_equal(a.numpy(), b.numpy())",
    "manual_seed": "mg.random.manual_seed(seed)", "set_grad_enabled": "mg.no_grad() and mg.enable_grad()",
    "inference_mode": "mg.no_grad()", "autograd": "mg.gradients, mg.grad, mg.vjp, mg.jvp, mg.hvp", "func": "mg.grad, mg.vjp, mg.jvp",
    "save": "model.save_pretrained(folder), or np.savez", "load": "np.load", "compile": "nothing: kernels are fused by hand",
    "jit": "nothing: kernels are fused by hand", "vmap": "a batch axis: ops take leading axes", "cuda": 'x.to("cupy")',
    "float": '"float32"', "double": '"float64"', "half": '"float16"', "long": '"int64"', "int": '"int32"', "bool": '"bool"',
    "scaled_dot_product_attention": "mg.attention(q, k, v, causal=True)", "silu": "x * mg.sigmoid(x)", "mse_loss": "((x - y) ** 2).mean()",
    "nll_loss": "mg.cross_entropy(logits, targets)",
}


def unknown(whose: str, name: str, elsewhere: Mapping[str, str], known: Iterable[str]) -> AttributeError:
    """The error for a name that is not there: with what to type, or with the names that are near to it."""
    said = f"{whose} has no attribute {name!r}"
    if name in elsewhere:
        return AttributeError(f"{said}; type {elsewhere[name]}")
    near = difflib.get_close_matches(name, [n for n in known if not n.startswith("_")], 3)
    return AttributeError(f"{said}; near to it: {', '.join(near)}" if near else said)
