"""The parameters of a kernel as the JSON beside its PTX describes them: each with an example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8", torch.int8: "i8",
    torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
BYTES = {"i32": 4, "i64": 8, "fp32": 4, "bool": 1}  # of scalars


def pointer(name: str, example: Tensor, contents: str = "input", written: bool = False) -> dict[str, Any]:
    """A pointer to a tensor like `example`, at a multiple of 16 bytes, and what it must hold before the launch.

    contents: "input" (values), "undefined" (anything) or "zeros" (before the first launch; each leaves zeros).
    written: whether the kernel writes it.
    """
    return {
        "name": name, "kind": "pointer", "dtype": DTYPES[example.dtype], "shape": list(example.shape),
        "strides": list(example.stride()), "contents": contents, "written": written,
    }  # fmt: skip


def output(name: str, example: Tensor) -> dict[str, Any]:
    """A pointer to what the kernel writes and nobody has to."""
    return pointer(name, example, "undefined", True)


def null(name: str, dtype: str = "u8") -> dict[str, Any]:
    """A pointer that is null."""
    return {"name": name, "kind": "null", "dtype": dtype, "shape": []}


def scalar(name: str, dtype: str, value: int | float, multiple_of: int = 1) -> dict[str, Any]:
    """A number, and what another value than the example's must be a multiple of."""
    return {"name": name, "kind": "scalar", "dtype": dtype, "value": value, "multiple_of": multiple_of}


def scalars(name: str, dtype: str, values: Sequence[int]) -> list[dict[str, Any]]:
    """The entries of an array inside a struct."""
    return [scalar(f"{name}[{index}]", dtype, value) for index, value in enumerate(values)]


def struct(name: str, kind: str, fields: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A struct of the C++ type `kind` that is passed by value: its fields with their offsets, laid out as C++ does."""
    end, placed = 0, []
    for field in fields:
        size = BYTES[field["dtype"]] if field["kind"] == "scalar" else 8
        offset = -(-end // size) * size
        placed.append(field | {"offset": offset})
        end = offset + size
    return {"name": name, "kind": "struct", "type": kind, "bytes": -(-end // 8) * 8, "fields": placed}
