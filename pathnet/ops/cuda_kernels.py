"""Every CUDA C++ kernel with every choice of its template's arguments: what `pathnet kernels` compiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from pathnet.ops import cuda_examples as examples
from pathnet.ops import stage_train_cuda_examples as training
from pathnet.ops.net_eval_limits import shared_bytes
from pathnet.ops.stage_train_cuda_limits import CHANNELS

OPERANDS = {
    "Bf16": (torch.bfloat16, "bfloat16"),
    "Fp16": (torch.float16, "float16"),
    "Tf32": (torch.float32, "tf32"),
}  # of csrc/cuda/operand.cuh -> dtype of the activations, and its name in `pathnet kernels`


class Kernel(NamedTuple):
    """One kernel with one choice of its template's arguments."""

    namespace: str
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

    @property
    def function(self) -> str:
        """As C++ names it."""
        arguments = f"<{self.arguments}>" if self.arguments else ""
        return f"{self.namespace}::{self.name}{arguments}"


NO_PRODUCT = "it multiplies no matrices"


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
            "pathnet", "net_eval_kernel", "net_eval.cuh",
            f"pathnet::{operand}, {str(preact).lower()}, {width}, {tiles}",
            "const __grid_constant__ pathnet::NetEvalPlan",
            {"dtype": name, "preact": preact, "channels": width}, 512,
            shared_bytes(dtype, 32, 32, width), None, (2 * examples.IMAGES, 1, 1),
            examples.net_eval(dtype, preact, width),
        )
        for width, tiles in ((16, 4), (32, 8))
        for operand, (dtype, name) in OPERANDS.items()
        for preact in (False, True)
    ]  # fmt: skip


def _stage_train() -> list[Kernel]:
    kernels = []
    for operand, (dtype, name) in OPERANDS.items():
        by_type, op = {"dtype": name}, f"pathnet::{operand}"
        kernels += [
            _training("merge", "ends", "Merge", op, by_type, training.merge(dtype)),
            _training("depart", "ends", "Depart", op, by_type, training.depart(dtype)),
            _training("sum", "ends", "Sum", op, by_type, training.sum_of_slots(dtype)),
        ]
        for channels in CHANNELS:
            settings, arguments = by_type | {"channels": channels}, f"{op}, {channels}"
            kernels += [
                _training("forward", "fwd", "Forward", arguments, settings, training.forward(dtype, channels)),
                _training("first_norm", "ends", "FirstNorm", arguments, settings, training.first_norm(dtype, channels)),
                _training("arrive", "ends", "Arrive", arguments, settings, training.arrive(dtype, channels)),
            ]
            for number, follows in enumerate(("norm", "sum")):  # Follows in csrc/cuda/stage_train_bwd.cuh
                example = training.backward(dtype, channels, follows == "sum")
                with_form = f"{arguments}, (pathnet::train::Follows){number}"
                kernels.append(
                    _training("backward", "bwd", "Backward", with_form, settings | {"follows": follows}, example)
                )
    return kernels


def _training(
    what: str, header: str, plan: str, arguments: str, settings: dict[str, Any], example: training.Launched
) -> Kernel:
    """A kernel of stage_train, which takes one struct."""
    return Kernel(
        "pathnet::train", f"stage_train_{what}_kernel", f"stage_train_{header}.cuh", arguments,
        f"const __grid_constant__ pathnet::train::{plan}Plan", settings, example.threads, example.shared,
        None if what in ("forward", "backward") else NO_PRODUCT, (example.blocks, 1, 1), example.parameters,
    )  # fmt: skip


def _probe() -> Kernel:
    return Kernel("pathnet", "probe_kernel", "probe.cuh", "", "int64_t, int32_t*", {}, 256, 0, NO_PRODUCT, (2, 1, 1),
                  examples.probe())  # fmt: skip


KERNELS = (*_net_eval(), *_stage_train(), _probe())
