"""stage_train by the compiled CPU kernels: what they run, and what they do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pathnet import extension
from pathnet.ops.eval_blocks import unfit_conv
from pathnet.ops.input_grad import gives_input_grad, input_grad
from pathnet.ops.stage_train_forms import BASIC, KERNELS, form_of, strides
from pathnet.ops.stage_train_run import Projection, stage_train_run
from pathnet.ops.stage_train_runs import Gated, one_gate, skip_of, stage_in_runs, unfit_transform
from pathnet.reference import Block, Conv, Norm, Pad, Step
from pathnet.reference import block as reference_block
from pathnet.reference.block import RESIDUAL_FLOW, SHORTCUT_FLOW, activated
from pathnet.reference.layers import Flow, Layer
from pathnet.route import Route


def stage_train_cpu(x: Tensor, blocks: Sequence[Block], route: Route | None) -> Tensor:
    """`stage_train` for calls that `supports_cpu` has accepted, x [N, C, H, W]."""
    return stage_in_runs(x, blocks, route, _train_run, _skip, _block_of_rows)


def _train_run(x: Tensor, skip: Tensor | Pad | Projection | None, run: list[Gated]) -> Tensor:
    behind = 0 if skip is None else 1
    input_alone = gives_input_grad(x, run[behind:])
    if behind or not input_alone:
        x = stage_train_run(_with_even_sides(x, run[0][0]), skip, run[:behind] if input_alone else run)
    return input_grad(x, run[behind:]) if input_alone else x


def _block_of_rows(x: Tensor, spec: Block, step: Step) -> Tensor:
    """A block that some images pass: the kernel runs the others, of which it wants as many values as of a batch."""
    running, stride = one_gate(step), _stride(spec)
    if running is None or len(running[1]) * -(-x.shape[2] // stride) * -(-x.shape[3] // stride) < FEWEST_VALUES:
        return reference_block(x, spec, step)
    one_step, rows = running
    if not spec.shortcut:
        return stage_train_run(x, None, [(spec, one_step)], rows)
    if SHORTCUT_FLOW[one_step.gate] is not Flow.TRAIN:  # type: ignore[index]  # h of the others passes all gradient
        return reference_block(x, spec, step)
    return _behind_shortcut(x, spec, one_step, rows)


def _behind_shortcut(x: Tensor, spec: Block, step: Step, rows: Tensor) -> Tensor:
    """h(x) of all images, whose batch norm sees them all, and the branch of those of `rows`."""
    skip = skip_of(x, spec, step)
    assert skip is not None
    own = _with_even_sides(x.index_select(0, rows), spec)
    y = stage_train_run(own, skip.index_select(0, rows), [(spec, step)])
    return activated(spec, skip).index_copy(0, rows, y)


def _skip(x: Tensor, spec: Block, step: Step) -> Tensor | Pad | Projection | None:
    """h(x), or a layer that the call itself runs: a projection, or option A where both ways give x a gradient."""
    both = SHORTCUT_FLOW[step.gate] is not Flow.NONE and RESIDUAL_FLOW[step.gate] is not Flow.NONE  # type: ignore[index]
    first = next(iter(spec.shortcut), None)
    if isinstance(first, Pad) and both:
        return first
    if isinstance(first, Conv) and unfit_shortcut(spec) is None:
        return Projection(*spec.shortcut)  # type: ignore[arg-type]  # a batch norm behind it, or nothing
    return skip_of(x, spec, step)


def _with_even_sides(x: Tensor, spec: Block) -> Tensor:
    """x as a strided basic block takes it: one more row or column of the zeros that its first convolution reads."""
    stride = _stride(spec)
    h, w = x.shape[2:]
    return F.pad(x, (0, w % stride, 0, h % stride)) if h % stride or w % stride else x


def _stride(spec: Block) -> int:
    return max(layer.stride[0] for layer in spec.residual if isinstance(layer, Conv))


# ---- what the kernels cannot run ------------------------------------------------------------------------------------


FEWEST_VALUES = 160  # a channel of a batch: with fewer, gradients err more than 4 times what plain PyTorch errs


def supports_cpu(x: Tensor, blocks: Sequence[Block], route: Route | None = None) -> str | None:
    """Why the compiled CPU kernels cannot train these blocks, in a sentence; None if they can."""
    if not extension.available():
        return extension.why_not()
    unfit_block = (reason for block in blocks if (reason := _unfit(block)))
    return unfit_mode() or unfit_input(x) or next(unfit_block, None) or _unfit_sides(x, blocks)


def loses_cpu(x: Tensor, blocks: Sequence[Block], route: Route | None = None) -> str | None:
    """Where plain PyTorch is the better choice: batches of a few pixels, in which errors do not even out."""
    _, _, h, w = x.shape
    for block in blocks:
        h, w = -(-h // _stride(block)), -(-w // _stride(block))
    if len(x) * h * w < FEWEST_VALUES:
        return (
            f"{len(x)} images of {h}x{w} give fewer than {FEWEST_VALUES} values a channel, and gradients over so few "
            "are more exact in plain PyTorch"
        )
    return None


def unfit_input(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"x is on {x.device}, and this kernel reads CPU memory"
    if x.dtype != torch.float32:
        return f"x is {x.dtype}, and this kernel computes in float32"
    return "x holds no image" if len(x) == 0 else None


def unfit_mode() -> str | None:
    if torch.is_autocast_enabled("cpu"):
        return "autocast asks for another dtype than this kernel's float32"
    return unfit_transform()


def _unfit(block: Block) -> str | None:
    form = form_of(block)
    if form is None:
        return "the residual branch is not one of the known forms (basic, preact, bottleneck) of plain layers"
    convs = [layer for layer in block.residual if isinstance(layer, Conv)]
    norms = [layer for layer in block.residual if isinstance(layer, Norm)]
    unfit_layer = next(filter(None, (*map(unfit_conv, convs), *map(unfit_norm, norms))), None)
    return unfit_layer or unfit_shape(form, convs)


def unfit_shortcut(block: Block) -> str | None:
    """Why plain PyTorch computes the shortcut and hands it in, in a sentence; None if it does not."""
    kinds = tuple(type(layer) for layer in block.shortcut)
    if kinds in ((), (Pad,)):
        return None
    if kinds != ((Conv,) if block.act is None else (Conv, Norm)):
        return "it is not a convolution with a batch norm, or in a pre-activation block a convolution alone"
    return next(filter(None, (_unfit_part(layer, _stride(block)) for layer in block.shortcut)), None)


def _unfit_part(layer: Layer, stride: int) -> str | None:
    """What is against a layer of a projection."""
    if isinstance(layer, Norm):
        return unfit_norm(layer)
    assert isinstance(layer, Conv)
    if layer.weight.shape[-1] != 1 or layer.stride[0] != stride:
        return "its convolution is not 1x1 with the stride of the branch"
    return unfit_conv(layer)


def unfit_norm(norm: Norm) -> str | None:
    if any(t is None or t.dtype != torch.float32 for t in norm[:4]):
        return "a batch norm has no affine weights, tracks no statistics, or is not in float32"
    if norm.batch_stats and norm.momentum is None:
        return "a batch norm averages its statistics over all batches (momentum=None)"
    return None


def _unfit_sides(x: Tensor, blocks: Sequence[Block]) -> str | None:
    h, w = x.shape[2:]
    for block in blocks:
        stride = _stride(block)
        if form_of(block) != BASIC and (h % stride or w % stride):  # a batch norm would meet the added zeros
            return f"a block strides over images of {h}x{w}, and this kernel needs even sides in all but basic blocks"
        h, w = -(-h // stride), -(-w // stride)
        if h * w == 1:
            return "images shrink to one pixel, where this kernel's tiles of 4x4 round too much"
    return None


def unfit_shape(form: int, convs: Sequence[Conv]) -> str | None:
    """Whether kernel sides and strides are those of the form."""
    kernels, found = tuple(conv.weight.shape[-1] for conv in convs), [conv.stride[0] for conv in convs]
    if kernels != KERNELS[form]:
        return f"this kernel trains convolutions of {KERNELS[form]}, but the branch has kernels of {kernels}"
    if found not in (strides(form, 1), strides(form, 2)):
        return f"the strides of the branch must be 1, but 1 or 2 in the first 3x3 convolution, and they are {found}"
    return None
