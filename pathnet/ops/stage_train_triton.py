"""stage_train by the Triton kernels: what they run, and what they do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.ops.eval_blocks import unfit_geometry
from pathnet.ops.rows_train_triton import rows_train_triton_run
from pathnet.ops.stage_train_cpu import unfit_shape
from pathnet.ops.stage_train_forms import BASIC, BOTTLENECK, PREACT_BOTTLENECK, form_of
from pathnet.ops.stage_train_runs import Gated, differs, stage_in_runs, unfit_rows, unfit_transform
from pathnet.ops.stage_train_triton_run import stage_train_triton_run
from pathnet.ops.triton_calls import DTYPES, unfit_device, unfit_input
from pathnet.reference import Block, Conv, Norm
from pathnet.route import Route


def stage_train_triton(x: Tensor, blocks: Sequence[Block], route: Route | None) -> Tensor:
    """`stage_train` for calls that `supports_triton` has accepted, x [N, C, H, W]."""
    return stage_in_runs(x, blocks, route, _run)


def _run(x: Tensor, skip: Tensor | None, blocks: list[Gated]) -> Tensor:
    if any(isinstance(step.gate, Tensor) for _, step in blocks):
        return rows_train_triton_run(x, blocks)  # without a skip, since such a block stands alone with it
    return stage_train_triton_run(x, skip, blocks)


def supports_triton(x: Tensor, blocks: Sequence[Block], route: Route | None = None) -> str | None:
    """Why the Triton kernels cannot train these blocks, in a sentence; None if they can."""
    return unfit_rows(route) or supports_blocks(x, blocks) or _unfit_gates(x, blocks, route)


def supports_blocks(x: Tensor, blocks: Sequence[Block]) -> str | None:
    """The same under any gates."""
    unfit = (reason for block in blocks if (reason := unfit_block(x, block)))
    return (
        unfit_transform()  # first: a graph that is traced must not look for Triton
        or unfit_device(x)
        or unfit_input(x)
        or next(unfit, None)
        or unfit_values(x, blocks)
    )


def _unfit_gates(x: Tensor, blocks: Sequence[Block], route: Route | None) -> str | None:
    """What gates of each image ask for that these kernels do not sum up."""
    if route is None or not differs(route.gates):
        return None
    if reason := unfit_form(blocks):
        return reason
    train = (route.gates == Gate.FULL) | (route.gates == Gate.RESIDUAL)
    if bool(((route.gates == Gate.FROZEN).any(0) & train.any(0)).any()):
        return "a block is FROZEN for one image and trained by another, and these kernels sum both up alike"
    images = (route.gates != Gate.OFF).sum(0).tolist()
    return few_values(x, blocks, images)


def unfit_form(blocks: Sequence[Block]) -> str | None:
    """Where gates differ from image to image."""
    if any(form_of(block) != BASIC for block in blocks):
        return "gates differ from image to image, and so these kernels run basic blocks alone"
    return None


def unfit_block(x: Tensor, block: Block) -> str | None:
    form = form_of(block)
    if form is None:
        return "the residual branch is none of those that these kernels train (basic, bottleneck, either preact)"
    convs = [_as_one_group(form, layer) for layer in block.residual if isinstance(layer, Conv)]
    norms = [layer for layer in block.residual if isinstance(layer, Norm)]
    unfit_layer = next(filter(None, (*(_unfit_conv(x, conv) for conv in convs), *map(_unfit_norm, norms))), None)
    return unfit_layer or unfit_shape(form, convs)


def _as_one_group(form: int, conv: Conv) -> Conv:
    """The groups of a bottleneck's 3x3 convolution are no reason: the vendor's library runs it."""
    return conv._replace(groups=1) if form in (BOTTLENECK, PREACT_BOTTLENECK) and conv.weight.shape[-1] == 3 else conv


def _unfit_conv(x: Tensor, conv: Conv) -> str | None:
    if conv.weight.dtype not in (x.dtype, torch.float32):
        return f"weights are {conv.weight.dtype} and x is {x.dtype}"
    if conv.weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        return f"weights are {conv.weight.dtype} and x is {x.dtype}, which only autocast joins"
    return unfit_geometry(conv)


def _unfit_norm(norm: Norm) -> str | None:
    if any(t is None or t.dtype not in DTYPES for t in norm[:4]):
        return "a batch norm has no affine weights, tracks no statistics, or is in float64"
    if not all(t is None or t.is_contiguous() for t in norm[:5]):
        return "the numbers of a batch norm do not lie side by side in memory"
    if norm.batch_stats and norm.momentum is None:
        return "a batch norm averages its statistics over all batches (momentum=None)"
    return None


def few_values(x: Tensor, blocks: Sequence[Block], images: Sequence[int]) -> str | None:
    """Batch statistics need two values a channel in each block, over its images; the reference raises the error."""
    h, w = x.shape[2:]
    for block, count in zip(blocks, images, strict=True):
        stride = max(layer.stride[0] for layer in block.residual if isinstance(layer, Conv))
        h, w = -(-h // stride), -(-w // stride)
        norms = [layer for layer in block.residual if isinstance(layer, Norm)]
        if 0 < count * h * w < 2 and any(norm.batch_stats for norm in norms):
            return "batch statistics need at least two values a channel"
    return None


def unfit_values(x: Tensor, blocks: Sequence[Block]) -> str | None:
    if reason := few_values(x, blocks, [len(x)] * len(blocks)):
        return reason
    if len({layer.weight.dtype for block in blocks for layer in block.residual if isinstance(layer, Conv)}) > 1:
        return "the convolutions of the stage have weights of several dtypes"
    if len({form_of(block) for block in blocks}) > 1:
        return "the stage mixes blocks of several forms"
    return None
