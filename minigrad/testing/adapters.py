"""Functions of PyTorch, JAX and CuPy as subjects of `check`, on any of their devices.

    check(torch_function(MyGelu), arrays((4, 8)), definition=mg.gelu, approximate="tanh")

The laws pass NumPy arrays to each function and get NumPy arrays back. The library computes the VJP,
so a backward pass written by hand in that library is tested. A setting that is a NumPy array (ids,
a mask) becomes an array of the library as well. Several results become one array, in which all of
them are flattened, one after the other.
"""
from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import backend
from ..errors import DeviceError
from .laws.strategies import lay
from .laws.subject import Subject


def torch_function(f: Any, *, device: str = "cpu", name: str | None = None) -> Subject:
    """A `torch.autograd.Function`, or any function of torch tensors, as a subject.

    Its VJP is torch.autograd.grad. f: the class of the Function, whose `apply` gets the settings in
    the order of `forward`, or a callable that gets them by name. device: the device of the tensors.
    bfloat16 arrays are converted bit by bit. ModuleNotFoundError if PyTorch is not installed;
    DeviceError for a device that PyTorch does not have.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise DeviceError(f"torch_function: device {device!r}: {why}") from None
    call = f
    if isinstance(f, type) and issubclass(f, torch.autograd.Function):
        parameters = list(inspect.signature(f.forward).parameters.values())
        # if the class defines setup_context, `forward` gets no ctx
        apart = f.setup_context is not torch.autograd.Function.setup_context
        signature = inspect.Signature(parameters if apart else parameters[1:])

        def call(*tensors: Any, **settings: Any) -> Any:
            bound = signature.bind(*tensors, **settings)
            bound.apply_defaults()
            return f.apply(*bound.args)

    def tensor(array: Any) -> Any:
        array = np.asarray(array)
        if any(stride < 0 for stride in array.strides):
            array = array.copy()                        # PyTorch has no negative strides
        bits = array.view(np.int16) if array.dtype.name == "bfloat16" else array
        with warnings.catch_warnings():
            # PyTorch warns about read-only arrays, which are shared as well
            warnings.simplefilter("ignore", UserWarning)
            t = torch.from_numpy(bits)
        return (t if bits is array else t.view(torch.bfloat16)).to(device)

    def numbers(t: Any) -> Any:
        t = t.detach().cpu()
        if t.dtype == torch.bfloat16:
            return t.contiguous().view(torch.int16).numpy().view(backend.dtype("bfloat16"))
        return t.numpy()

    def together(y: Any) -> Any:
        return torch.cat([part.reshape(-1) for part in y]) if isinstance(y, tuple | list) else y

    def value(*arrays: Any, **settings: Any) -> Any:
        with torch.no_grad():
            return numbers(together(call(*map(tensor, arrays), **_converted(settings, tensor))))

    def pull(u: Any, *arrays: Any, **settings: Any) -> tuple[Any, ...]:
        leaves = [tensor(a).requires_grad_() for a in arrays]
        y = together(call(*leaves, **_converted(settings, tensor)))
        if not y.requires_grad:                         # PyTorch treats the result as a constant
            return tuple(np.zeros_like(a) for a in arrays)
        grads = torch.autograd.grad(y, leaves, tensor(np.asarray(u)), allow_unused=True)
        return tuple(np.zeros_like(a) if g is None else numbers(g) for a, g in zip(arrays, grads))

    return Subject(name or _name(f), None, value=value, pull=pull)


def jax_function(f: Callable[..., Any], *, device: Any = None, name: str | None = None) -> Subject:
    """A function of JAX arrays as a subject; it may be jitted, or a `jax.custom_vjp`.

    Its VJP is jax.vjp, and it gets its settings by name. float64 is computed in float64, even if
    `jax_enable_x64` is off. device: one of jax.devices(). ModuleNotFoundError if JAX is not
    installed.
    """
    import jax
    import jax.numpy as jnp

    def array(a: Any) -> Any:
        return jax.device_put(np.array(a, order="C"), device)

    def together(y: Any) -> Any:
        several = isinstance(y, tuple | list)
        return jnp.concatenate([part.reshape(-1) for part in y]) if several else y

    def value(*arrays: Any, **settings: Any) -> Any:
        with _wide(jax):
            return np.array(together(f(*map(array, arrays), **_converted(settings, array))))

    def pull(u: Any, *arrays: Any, **settings: Any) -> tuple[Any, ...]:
        with _wide(jax):
            constants = _converted(settings, array)
            _, back = jax.vjp(lambda *xs: together(f(*xs, **constants)), *map(array, arrays))
            return tuple(np.array(g) for g in back(array(u)))

    return Subject(name or _name(f), None, value=value, pull=pull)


def cupy_function(value: Callable[..., Any], vjp: Callable[..., Any], *, device: str = "cupy",
                  name: str | None = None) -> Subject:
    """Two functions of CuPy arrays as a subject; for example, each may launch a RawKernel.

    value(*arrays, **settings) -> array; vjp(cotangent, *arrays, **settings) -> array, or a tuple
    with one array for each argument. device: "cupy", "cupy:1", or "fake", which behaves like CuPy
    on a CPU. The arrays have the memory layouts that the laws draw, so a kernel that assumes C
    order breaks a law. BackendUnavailable without CuPy or a GPU.
    """
    there = backend.get(device)

    def array(a: Any) -> Any:
        how = "C"
        if not a.flags.c_contiguous:
            how = "F" if a.flags.f_contiguous else "reversed" if min(a.strides) < 0 else "strided"
        return lay(there.backend, there.array(np.array(a, order="C")), how)

    def numbers(y: Any) -> Any:
        return there.backend.host(y)

    def computed(*arrays: Any, **settings: Any) -> Any:
        return numbers(value(*map(array, arrays), **_converted(settings, array)))

    def pull(u: Any, *arrays: Any, **settings: Any) -> tuple[Any, ...]:
        grads = vjp(array(np.asarray(u)), *map(array, arrays), **_converted(settings, array))
        return tuple(numbers(g) for g in (grads if isinstance(grads, tuple | list) else [grads]))

    return Subject(name or _name(value), None, value=computed, pull=pull)


def _name(f: Any) -> str:
    return getattr(f, "__name__", type(f).__name__)


def _wide(jax: Any) -> Any:
    """A context in which JAX computes in float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    # JAX before 0.8 has no jax.enable_x64
    from jax.experimental import enable_x64  # type: ignore[attr-defined,unused-ignore]

    return enable_x64()


def _converted(settings: dict[str, Any], array: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: array(v) if isinstance(v, np.ndarray) else v for name, v in settings.items()}
