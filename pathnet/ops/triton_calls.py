"""What calls of the Triton kernels share: where they run, and what they take."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_CAPABILITY = (8, 0)  # of a GPU: asynchronous copies, and tensor cores for TF32 and bfloat16


def loses_triton(x: Tensor, *call) -> str | None:
    """Where another backend is the better choice."""
    return "on the CPU Triton has an interpreter only, for tests" if x.device.type == "cpu" else None


def unfit_device(x: Tensor) -> str | None:
    """Whether Triton is there, and runs on x's device."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if x.device.type == "cpu" and not _interpreted():
        return "x is on the CPU, where Triton needs its interpreter (set TRITON_INTERPRET=1 before Python starts)"
    if x.device.type not in ("cpu", "cuda"):
        return f"x is on {x.device}, and these kernels are for CUDA devices"
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name(x.device)} is older than compute capability 8.0"
    return None


@cache
def _interpreted() -> bool:
    if "TRITON_INTERPRET" not in os.environ:
        return False  # without importing Triton, which takes a second

    from pathnet.kernels.launch import INTERPRETED

    return INTERPRETED


def unfit_input(x: Tensor) -> str | None:
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}, and these kernels take float32, float16 and bfloat16"
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != x.dtype:
        return f"x is {x.dtype}, and autocast asks for {torch.get_autocast_dtype(kind)}"
    return "x holds no image" if len(x) == 0 else None


def product_precision() -> str:
    """How float32 products are made: tf32 or ieee, as PyTorch's own convolutions on a GPU."""
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if tf32 else "ieee"


def dense(weight: Tensor) -> Tensor:
    """A weight whose nine taps lie evenly in memory, with no gaps anywhere: in either format, else a copy."""
    last = weight.is_contiguous(memory_format=torch.channels_last)
    return weight if weight.is_contiguous() or last else weight.contiguous()


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def channels_last(x: Tensor) -> Tensor:
    """x in the memory that the kernels read."""
    return x.contiguous(memory_format=torch.channels_last)
