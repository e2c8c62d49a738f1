"""A pretend accelerator: its tensors live in main memory, and operations that mix it with the CPU raise, as on a GPU.

It shows, without a GPU, whether code leaves tensors behind on the CPU, and how often the host would wait for the
device. Like CUDA it accepts numbers (tensors without dimensions) and indices from the CPU. Import this module before
the first backward pass of a process: later, PyTorch has no queue for the device's gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class PretendTensor(Tensor):
    """A tensor of the pretend device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        found = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{NAME}:0",
        )
        found.inner = inner
        return found

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})

    def tolist(self) -> Any:
        """Return the values, for which the host waits."""
        WAITS.append("tolist")
        return self.inner.tolist()


WAITS: list[str] = []
"""The operations for which the host would have waited for the device."""

_lacks_float64 = False
"""Whether the device refuses float64, as Apple's MPS does."""


def _run(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on the tensors in main memory, after a check of their devices."""
    leaves = tree_leaves((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, PretendTensor)]
    device = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    if operation not in _COPIES and ours:
        values = [args[0], *args[2:]] if operation in _INDEXING else leaves
        foreign = [each for each in values if isinstance(each, Tensor) and each.dim() and each.device.type == "cpu"]
        if foreign:
            shapes = [tuple(each.shape) for each in foreign]
            raise RuntimeError(f"{operation} mixes tensors of two devices; those with shapes {shapes} are on the CPU")
    if operation is _aten._local_scalar_dense.default and ours:
        WAITS.append("item")
    here = tree_map(_in_main_memory, (tuple(args), dict(kwargs)))
    result = operation(*here[0], **here[1])
    if ours and operation._schema.is_mutable and isinstance(result, Tensor):
        return next(each for each in ours if each.inner is result)
    on_device = bool(ours) if device is None else device.type == NAME
    made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
    if on_device and _lacks_float64 and any(each.dtype == torch.float64 for each in made):
        raise TypeError(f"{operation}: the device has no float64")
    return tree_map(_on_device, result) if on_device else result


def _in_main_memory(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return value.inner if isinstance(value, PretendTensor) else value


def _on_device(value: Any) -> Any:
    return PretendTensor(value) if isinstance(value, Tensor) else value


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


_setup_privateuseone_for_python_backend(NAME)
getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]


@contextmanager
def pretend_device(*, float64: bool = True) -> Iterator[str]:
    """Yield the name of the device, which can be used within the context; without `float64` it refuses that type."""
    global _lacks_float64
    WAITS.clear()
    tensor = torch.tensor

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:  # it creates tensors unseen by modes
        return tensor(data, *args, **kwargs).to(device) if device is not None else tensor(data, *args, **kwargs)

    _lacks_float64 = not float64
    try:
        with _Mode(), mock.patch.object(torch, "tensor", made):
            yield NAME
    finally:
        _lacks_float64 = False
