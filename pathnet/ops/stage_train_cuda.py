"""stage_train by the CUDA kernels: what they run, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import pathnet.ops.stage_train_cuda_rules  # noqa: F401  # what PyTorch must know of the ops
from pathnet import extension
from pathnet.ops.stage_train_cuda_limits import LEAST_BLOCKS, missing_memory, unfit_size, weight_slots
from pathnet.ops.stage_train_forms import BASIC, PREACT, form_of
from pathnet.ops.stage_train_runs import Gated, skip_of, stage_in_runs, unfit_route, unfit_transform
from pathnet.ops.stage_train_triton import supports_triton, unfit_block, unfit_values
from pathnet.ops.stage_train_triton_run import stage_train_gpu_run, stage_train_triton_run
from pathnet.ops.triton_calls import product_precision, unfit_input
from pathnet.reference import Block, Conv, Norm, Step
from pathnet.reference import block as reference_block
from pathnet.route import Route


def stage_train_cuda(x: Tensor, blocks: Sequence[Block], route: Route | None) -> Tensor:
    """`stage_train` for calls that `supports_cuda` has accepted, x [N, C, H, W]."""
    return stage_in_runs(x, blocks, route, _train_run, _skip_of)


def _train_run(x: Tensor, skip: Tensor | None, run: Sequence[Gated]) -> Tensor:
    """A first block that strides goes another way."""
    (spec, step), rest = run[0], run[1:]
    if _keeps_shape(spec):
        return stage_train_gpu_run("stage_train_cuda", x, skip, run)
    x = _train_strided(x, spec, step)
    return stage_train_gpu_run("stage_train_cuda", x, None, rest) if rest else x


def _train_strided(x: Tensor, spec: Block, step: Step) -> Tensor:
    if supports_triton(x, [spec]) is None:
        return stage_train_triton_run(x, skip_of(x, spec, step), [(spec, step)])
    return reference_block(x, spec, step)


def _skip_of(x: Tensor, spec: Block, step: Step) -> Tensor | None:
    return skip_of(x, spec, step) if _keeps_shape(spec) else None


def _convs(block: Block) -> list[Conv]:
    return [layer for layer in block.residual if isinstance(layer, Conv)]


def _keeps_shape(block: Block) -> bool:
    first = _convs(block)[0]
    return first.stride[0] == 1 and first.weight.shape[0] == first.weight.shape[1]


# ---- what is refused -------------------------------------------------------------------------------------------------


def supports_cuda(x: Tensor, blocks: Sequence[Block], route: Route | None = None) -> str | None:
    """Why the CUDA kernels cannot train these blocks, in a sentence; None if they can."""
    if not extension.available("cuda"):
        return extension.why_not("cuda")
    if x.device.type != "cuda":
        return f"x is on {x.device}, and these kernels read the memory of an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(x.device)
    sizes = _sizes(x, blocks) if unfit(x, blocks, route) is None else ()
    return unfit(x, blocks, route) or next(
        filter(None, (missing_memory(capability, x.dtype, *size) for size in sizes)), None
    )


def loses_cuda(x: Tensor, blocks: Sequence[Block], route: Route | None = None) -> str | None:
    """Where the split form of Triton is faster: the limit on slots leaves few thread blocks."""
    fewest = min(weight_slots(x.dtype, len(x), *size) for size in _sizes(x, blocks))
    if fewest >= LEAST_BLOCKS or supports_triton(x, blocks, route) is not None:
        return None
    return f"the weight gradients' slots allow {fewest} thread blocks, and Triton's split form fills a GPU"


def unfit(x: Tensor, blocks: Sequence[Block], route: Route | None = None) -> str | None:
    """What of the call the kernels do not know, whatever the GPU."""
    reasons = (reason for block in blocks if (reason := _unfit_block(x, block)))
    return (
        unfit_transform()
        or unfit_input(x)
        or _unfit_precision(x)
        or unfit_route(route)
        or next(reasons, None)
        or unfit_values(x, blocks)
        or _unfit_sizes(x, blocks)
    )


def _unfit_precision(x: Tensor) -> str | None:
    if x.dtype == torch.float32 and product_precision() != "tf32":
        return "float32 is multiplied in TF32, which torch.backends.cudnn.conv.fp32_precision forbids"
    return None


def _unfit_block(x: Tensor, block: Block) -> str | None:
    if form_of(block) not in (BASIC, PREACT):
        return "the block is neither a basic nor a pre-activation block of plain layers with two convolutions"
    reason = unfit_block(x, block)
    if reason is not None:
        return reason
    if any(conv.weight.shape[-1] != 3 for conv in _convs(block)):
        return "a convolution is not 3x3"
    norms = [layer for layer in block.residual if isinstance(layer, Norm)]
    other = [t.dtype for norm in norms for t in norm[:4] if t is not None and t.dtype != torch.float32]
    return f"a batch norm is in {other[0]}, and these kernels read float32" if other else None


def _unfit_sizes(x: Tensor, blocks: Sequence[Block]) -> str | None:
    sizes = list(_sizes(x, blocks))
    if not sizes:
        return "every block strides, and these kernels train blocks that keep their shape"
    return next(filter(None, (unfit_size(x.dtype, len(x), *size) for size in sizes)), None)


def _sizes(x: Tensor, blocks: Sequence[Block]) -> Iterator[tuple[int, int, int]]:
    """Channels, height and width of each block that keeps its shape."""
    height, width = x.shape[2:]
    for block in blocks:
        stride = _convs(block)[0].stride[0]
        height, width = -(-height // stride), -(-width // stride)
        if _keeps_shape(block):
            yield len(_convs(block)[0].weight), height, width
