"""Fast paths: each a Triton file beside its plain torch path, and one function that chooses.

`confidence`, `fisher`, `loss` and `bootstrap` hold what to call and the torch path; `<name>_triton` the
kernel, which runs on CUDA tensors, and on CPU tensors in Triton's interpreter (`TRITON_INTERPRET=1`), for tests.
"""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor


def on_gpu(x: Tensor) -> bool:
    """Whether the kernel rather than plain torch is to run: on CUDA tensors, where Triton is installed."""
    return x.is_cuda and find_spec("triton") is not None


def describe(value: object) -> str:
    """Dtype and shape of a tensor, the type of anything else: what an error says was given."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
