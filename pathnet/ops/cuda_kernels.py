"""Every CUDA C++ kernel with every choice of its template's arguments: what `pathnet kernels` compiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from pathnet.ops import cuda_examples as examples
from pathnet.ops.net_eval_limits import shared_bytes

OPERANDS = {
    "Bf16": (torch.bfloat16, "bfloat16"),
    "Fp16": (torch.float16, "float16"),
    "Tf32": (torch.float32, "tf32"),
}  # of csrc/cuda/operand.cuh -> dtype of the activations, and its name in `pathnet kernels`


class Kernel(NamedTuple):
    """One kernel with one choice of its template's arguments."""

    name: str
    header: str
    arguments: str  # of the template, empty for a plain function
    parameters: str  # of the function
    settings: dict[str, Any]  # dtype and channels select, where they are there
    threads: int
    shared: int  # dynamic, for the example
    tensor_core_exempt: str | None  # why it has no tensor-core instructions
    grid: tuple[int, int, int]  # of the example
    example: Callable[[], list[dict[str, Any]]]  # its parameters as pathnet.machine_code.parameters describes them


def selected(channels: Sequence[int] | None, dtypes: Sequence[str] | None) -> list[Kernel]:
    """The kernels for these channels and dtypes, None for all; those that know no such choice are always there."""
    return [
        kernel
        for kernel in KERNELS
        if (channels is None or kernel.settings.get("channels", channels[0]) in channels)
        and (dtypes is None or kernel.settings.get("dtype", dtypes[0]) in dtypes)
    ]


def _net_eval() -> list[Kernel]:
    return [
        Kernel(
            "net_eval_kernel", "net_eval.cuh", f"pathnet::{operand}, {str(preact).lower()}, {width}, {tiles}",
            "const __grid_constant__ pathnet::NetEvalPlan",
            {"dtype": name, "preact": preact, "channels": width}, 512,
            shared_bytes(dtype, 32, 32, width), None, (2 * examples.IMAGES, 1, 1),
            examples.net_eval(dtype, preact, width),
        )
        for width, tiles in ((16, 4), (32, 8))
        for operand, (dtype, name) in OPERANDS.items()
        for preact in (False, True)
    ]  # fmt: skip


def _forward_run() -> list[Kernel]:
    reason = "it multiplies no matrices"
    kernels = []
    for operand, (dtype, name) in OPERANDS.items():
        element = f"typename pathnet::{operand}::Element"
        for function, parameters, grid, example in (
            ("merge", "const __grid_constant__ pathnet::ForwardRunPlan", (8, examples.IMAGES, 1),
             examples.forward_run_merge(dtype)),
            ("backward", f"const {element}*, const uint8_t*, {element}*, int64_t", (8 * examples.IMAGES, 1, 1),
             examples.forward_run_backward(dtype)),
        ):  # fmt: skip
            kernels.append(
                Kernel(f"forward_run_{function}_kernel", "forward_run.cuh", f"pathnet::{operand}", parameters,
                       {"dtype": name}, 256, 0, reason, grid, example)
            )  # fmt: skip
    tables = "const int8_t*, int*, int*, int, int"
    grid = (examples.BLOCKS, 1, 1)
    return [
        *kernels,
        Kernel("row_tables_kernel", "forward_run.cuh", "", tables, {}, 256, 32, reason, grid, examples.row_tables()),
    ]


KERNELS = (*_net_eval(), *_forward_run())
