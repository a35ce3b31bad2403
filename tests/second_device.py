"""A second device that is not there, for what runs on a GPU: its numbers lie in CPU tensors, and it mixes with none.

    PYTHONPATH=. python tests/second_device.py PROFILE OUT OVERRIDES NOTEBOOK …

runs the notebooks' cells on it, in this process, and fails where two devices meet in an operation, as CUDA would. torch
knows the device by its hooks for backends written in Python, which cannot be taken back: so it is a process of its own.
Not like a GPU: kernels in Triton are not reached, and of autocast only the operations below are cast.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"
HALF = [torch.float16, torch.bfloat16]
aten = torch.ops.aten
COPY = aten.copy_.default
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
LOW = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "scaled_dot_product_attention")
FULL = ("softmax.int", "log_softmax.int", "layer_norm", "group_norm", "nll_loss", "sum", "exp", "log")


class Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return HALF


class Second(Tensor):
    """A tensor on the second device; `held` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Second:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.shape, **layout, device=f"{NAME}:0")

    def __init__(self, held: Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Second) -> None:
        Tensor.data.__set__(self, value)
        self.held = value.held

    def tolist(self) -> list:
        return self.held.tolist()

    def storage(self) -> torch.TypedStorage:
        return self.held.storage()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()


class Draws(torch.Generator):
    """A generator on the CPU, told apart by the device it was made for."""

    places: ClassVar[dict[int, str]] = {}  # by what torch itself hands on

    def __new__(cls, device: torch.device | str = "cpu") -> Draws:
        made = super().__new__(cls)
        cls.places[made._cdata] = torch.device(device).type
        return made


class Mode(TorchDispatchMode):
    """Sees what makes a tensor from none, too."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and saying so at every operation takes time

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


def dispatched(func, args: tuple, kwargs: dict):
    """`func` of the held tensors. Raises RuntimeError where tensors or a generator of both devices meet."""
    given = parts((*args, *kwargs.values()))
    second = any(isinstance(part, Second) for part in given)
    asked = kwargs.get("device")
    target = (NAME if second else "cpu") if asked is None else torch.device(asked).type
    if second and func is not COPY:
        refuse_both(func, args, kwargs, given)
    draws = kwargs.get("generator")
    if draws is not None and Draws.places.get(draws._cdata, "cpu") != target:
        raise RuntimeError(f"{func}: a generator of another device than {target}")
    if asked is not None:
        kwargs = kwargs | {"device": "cpu"}
    out = func(*of_parts(held, args), **{name: of_parts(held, part) for name, part in kwargs.items()})
    if func is COPY:
        return args[0]
    if target != NAME:
        return out
    out = of_parts(lambda part: Second(part) if isinstance(part, Tensor) else part, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def refuse_both(func, args: tuple, kwargs: dict, given: list) -> None:
    """As on CUDA: single numbers on the CPU are taken, and so are indices into what lies on the device."""
    if func in INDEXED and isinstance(args[0], Second):
        given = parts((args[0], *args[2:], *kwargs.values()))
    for part in given:
        if isinstance(part, Tensor) and not isinstance(part, Second) and part.ndim:
            raise RuntimeError(f"{func}: {list(part.shape)} on the CPU and another tensor on the second device")


def parts(given: tuple | list) -> list:
    """What an operation is given, taken out of tuples and lists: torch's own walk takes longer than the operations."""
    flat = []
    for each in given:
        if isinstance(each, (tuple, list)):
            flat += parts(each)
        else:
            flat.append(each)
    return flat


def of_parts(function, given):
    """`function` of what is given, or of every part of a tuple or list."""
    if isinstance(given, (tuple, list)):
        return tuple([of_parts(function, each) for each in given])
    return function(given)


def held(part):
    return part.held if isinstance(part, Second) else part


def register() -> None:
    """Makes the device known to torch, with autocast, and the few calls that reach it past the mode."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(name: str, low: bool) -> None:
        base, _, overload = name.partition(".")
        operation = getattr(getattr(aten, base), overload or "default")

        def kernel(*args, **kwargs):
            dtype = torch.get_autocast_dtype(NAME) if low else torch.float32
            with torch._C._ExcludeDispatchKeyGuard(autocast):
                args = of_parts(lambda part: part.to(dtype) if floating(part) else part, args)
                return operation(*args, **kwargs)

        torch.library.impl(f"aten::{name}", "AutocastPrivateUse1")(kernel)

    for name in (*LOW, *FULL):
        cast(name, name in LOW)
    others.fallback(torch.library.fallthrough_kernel)

    @torch.library.impl("aten::empty_strided", "PrivateUse1")
    def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
        return Second(torch.empty_strided(size, stride, dtype=dtype))

    @torch.library.impl("aten::_copy_from", "PrivateUse1")
    def copy_from(source, target, non_blocking=False):
        held(target).copy_(held(source))
        return target


others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")  # what autocast leaves as it is


def floating(part) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point() and part.dtype != torch.float64


@contextmanager
def second_device() -> Iterator[None]:
    """Within, `NAME` is a device for torch and for accelerate."""
    with patch.object(torch, "Generator", Draws), patch.dict(os.environ, ACCELERATE_TORCH_DEVICE=f"{NAME}:0"), Mode():
        yield


def main(profile: str, out: str, overrides: str, *notebooks: str) -> None:
    from cells import run_all

    from lib.figures import style
    from lib.runtime import devices
    from lib.studies import run

    parameters = {"profile": profile, "seed": 0, "device": NAME, "out": out, "overrides": json.loads(overrides)}
    where = patch.object(devices, "resolve_device", torch.device), patch.object(run, "BUILD", Path(out) / "build")
    drawn_letters = patch.dict(style.STYLE, {"pdf.fonttype": 3})  # sooner written than embedded fonts
    with where[0], where[1], drawn_letters, second_device():
        run_all(dict.fromkeys(notebooks, parameters))


register()
if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
