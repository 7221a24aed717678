"""Cases of the Triton kernels: stages on their device, and loads and stores as the interpreter makes them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import triton.language as tl
from training_cases import check, images, route_of
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from pathnet.kernels.launch import INTERPRETED, Launch

_call_anew = InterpretedFunction.__call__


def _call(self, *args, **kwargs):
    """Call a helper. Triton would patch its language again, as the kernel's launch has done: half of the time."""
    ours = self.fn.__module__.startswith("pathnet.")
    return self.rewrite()(*args, **kwargs) if ours else _call_anew(self, *args, **kwargs)


_cast_anew = InterpreterBuilder.cast_impl


def _cast(self, value, target):
    """Cast a value. Triton's interpreter cuts float32 to bfloat16 where GPUs round to the nearest."""
    if value.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
        return _cast_anew(self, value, target)
    rounded = torch.from_numpy(np.ascontiguousarray(value.data)).bfloat16()
    return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)


InterpretedFunction.__call__ = _call
InterpreterBuilder.cast_impl = _cast
DIRECT = 2.0  # how much more than eager PyTorch a direct sum may err
DEVICE = "cpu" if INTERPRETED else "cuda"
on_gpu = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_products")]
on_device = [] if INTERPRETED else on_gpu  # of whole files: `pytest -m gpu` runs the same cases on a GPU
interpreted = pytest.mark.skipif(not INTERPRETED, reason="reads what the interpreter does")


def compare(stage, shape, gates=None, multiplier=None, **kwargs):
    """`training_cases.check` of a step on images of this shape; `kwargs` are those of `images`."""
    route = None if gates is None else route_of(gates, multiplier)
    x = images(stage, shape, route, **kwargs)
    return check("triton", stage.to(DEVICE), x.to(DEVICE), route, DIRECT)


def halves(stage, dtype: torch.dtype):
    """The stage in `dtype`, batch norms in float32 apart, as autocast leaves them.

    Norms are moved so far up that no ReLU is near its kink: in half precision one that flips is no rare event.
    """
    stage = copy.deepcopy(stage)
    for name, bias in stage.named_parameters():
        if name.endswith(("bn1.bias", "bn2.bias", "bn3.bias")):
            torch.nn.init.constant_(bias, 6.0)
    for module in stage.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(dtype)
    return stage


@contextmanager
def requests(launches: list[Launch]) -> Iterator[Counter]:
    """Bytes that the interpreter loads and stores, by (launch, argument, "read" or "write")."""
    counted: Counter = Counter()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def count(pointers, mask, kind: str) -> None:
        addresses = pointers.data[mask.data.astype(bool)] if mask is not None else pointers.data
        if not addresses.size:
            return
        index, launch = len(launches) - 1, launches[-1]
        for name, t in launch.tensors.items():
            if t.numel() and (kind, name) in _sides(launch):
                begin = t.data_ptr()
                end = begin + t.untyped_storage().nbytes() - t.storage_offset() * t.element_size()
                hits = (addresses >= begin) & (addresses < end)
                counted[index, name, kind] += int(np.count_nonzero(hits)) * t.element_size()

    def counting_load(self, ptrs, mask, *rest):
        count(ptrs, mask, "read")
        return load(self, ptrs, mask, *rest)

    def counting_store(self, ptrs, value, mask, *rest):
        count(ptrs, mask, "write")
        return store(self, ptrs, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_masked_load", counting_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", counting_store)
        yield counted


def assert_requested(launches: list[Launch], counted: Counter, least: int) -> None:
    """What launches claim to request is what was counted, for at least so many arguments that are no few numbers."""
    checked = 0
    for index, launch in enumerate(launches):
        if launch.kernel is None:
            continue  # the vendor's library does not tell
        for kind, sides in (("read", launch.reads), ("write", launch.writes)):
            for name, claimed in sides.items():
                if launch.tensors[name].numel() > 1000:
                    assert counted[index, name, kind] == claimed, (launch.name, name, kind)
                    checked += 1
    assert checked >= least


def _sides(launch: Launch) -> set[tuple[str, str]]:
    return {("read", name) for name in launch.reads} | {("write", name) for name in launch.writes}
