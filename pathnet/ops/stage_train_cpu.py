"""stage_train by the compiled CPU kernels: a stage cut into runs of blocks, one autograd function each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from pathnet import extension
from pathnet.gates import Gate
from pathnet.ops.eval_blocks import unfit_conv
from pathnet.ops.parameters import layer_parameters
from pathnet.ops.stage_train_forms import BASIC, BOTTLENECK, KERNELS, PREACT_BOTTLENECK, form_of, strides
from pathnet.ops.stage_train_run import stage_train_run
from pathnet.reference import Block, Conv, Norm, Pad, Step, host_steps
from pathnet.reference import block as reference_block
from pathnet.reference.block import RESIDUAL_FLOW, SHORTCUT_FLOW
from pathnet.reference.layers import Flow, Rows, run_layers
from pathnet.route import Route

Gated = tuple[Block, Step]


def stage_train_cpu(x: Tensor, blocks: Sequence[Block], route: Route | None) -> Tensor:
    """`stage_train` for calls that `supports_cpu` has accepted, x [N, C, H, W]."""
    for run in _runs(x, blocks, _steps(blocks, route)):
        spec, step = run[0]
        if step.gate is Gate.OFF:
            x = reference_block(x, spec, step)
        else:
            x, shortcut = _with_even_sides(x, spec), _pad_shortcut(spec, step)
            x = stage_train_run(x, shortcut or _skip(x, spec, step), run)
    return x


def _with_even_sides(x: Tensor, spec: Block) -> Tensor:
    """x as a strided basic block takes it: one more row or column of the zeros that its first convolution reads."""
    stride = _stride(spec)
    h, w = x.shape[2:]
    return F.pad(x, (0, w % stride, 0, h % stride)) if h % stride or w % stride else x


def _stride(spec: Block) -> int:
    return max(layer.stride[0] for layer in spec.residual if isinstance(layer, Conv))


def _runs(x: Tensor, blocks: Sequence[Block], steps: Sequence[Step]) -> Iterator[list[Gated]]:
    """Blocks that share one call: a shortcut that is not the identity begins a run, and its OFF block stands alone.

    The first block that has a gradient begins one too, so that what stands before it saves nothing.
    """
    run: list[Gated] = []
    recorded = x.requires_grad
    for spec, step in zip(blocks, steps, strict=True):
        if step.gate is Gate.OFF and not spec.shortcut:
            continue
        begins = not recorded and _trains(spec, step)
        recorded = recorded or begins
        other_form = bool(run) and run[0][0].act != spec.act
        if run and (begins or spec.shortcut or run[0][1].gate is Gate.OFF or other_form):
            yield run
            run = []
        run.append((spec, step))
    if run:
        yield run


def _trains(spec: Block, step: Step) -> bool:
    """Whether the block has parameters whose gradient is asked for and that its gate trains."""
    flows = (spec.residual, RESIDUAL_FLOW), (spec.shortcut, SHORTCUT_FLOW)
    trained = [layers for layers, flow in flows if flow.get(step.gate) is Flow.TRAIN]  # type: ignore[arg-type]
    return any(p.requires_grad for layers in trained for p in layer_parameters(layers))


def _pad_shortcut(spec: Block, step: Step) -> Pad | None:
    """Option A as the shortcut of a block whose both ways give x a gradient, which the call then adds in place."""
    both = SHORTCUT_FLOW[step.gate] is not Flow.NONE and RESIDUAL_FLOW[step.gate] is not Flow.NONE  # type: ignore[index]
    return spec.shortcut[0] if both and len(spec.shortcut) == 1 and isinstance(spec.shortcut[0], Pad) else None


def _skip(x: Tensor, spec: Block, step: Step) -> Tensor | None:
    """h(x) by plain PyTorch, with the gradient that the gate lets through; None for the identity."""
    if not spec.shortcut:
        return None
    rows = Rows(x, SHORTCUT_FLOW[step.gate])  # type: ignore[index]  # one gate for the batch
    return run_layers(spec.shortcut, [rows], step.update)[0]


def _steps(blocks: Sequence[Block], route: Route | None) -> list[Step]:
    if route is None:
        return [Step()] * len(blocks)
    gates, multiplier = route.gates, route.multiplier
    if gates.dim() == 2:
        gates = gates[0]
        if route.mask_rows:  # a masked OFF row computes, times zero
            gates, multiplier = torch.where(gates == Gate.OFF, int(Gate.FULL), gates), multiplier * (gates != Gate.OFF)
    return host_steps(gates, multiplier if multiplier.dim() == 1 else multiplier[0], route.update, mask_rows=False)


# ---- what the kernels cannot run ------------------------------------------------------------------------------------


FEWEST_VALUES = 160  # a channel of a batch: with fewer, gradients err more than 4 times what plain PyTorch errs

WIDEST_BOTTLENECK = 256  # channels of its 3x3 convolution


def supports_cpu(x: Tensor, blocks: Sequence[Block], route: Route | None = None) -> str | None:
    """Why the compiled CPU kernels cannot train these blocks, in a sentence; None if they can."""
    if not extension.available():
        return extension.why_not()
    unfit_block = (reason for block in blocks if (reason := _unfit(block)))
    return unfit_mode() or unfit_input(x) or _unfit_route(route) or next(unfit_block, None) or _unfit_sides(x, blocks)


def loses_cpu(x: Tensor, blocks: Sequence[Block], route: Route | None = None) -> str | None:
    """Where plain PyTorch is the better choice: batches of a few pixels, in which errors do not even out, and wide
    bottlenecks, whose few pixels share large weights (docs/benchmarks.md)."""
    _, _, h, w = x.shape
    for block in blocks:
        h, w = -(-h // _stride(block)), -(-w // _stride(block))
    if len(x) * h * w < FEWEST_VALUES:
        return (
            f"{len(x)} images of {h}x{w} give fewer than {FEWEST_VALUES} values a channel, and gradients over so few "
            "are more exact in plain PyTorch"
        )
    bottlenecks = [block for block in blocks if form_of(block) in (BOTTLENECK, PREACT_BOTTLENECK)]
    layers = (layer for block in bottlenecks for layer in block.residual if isinstance(layer, Conv))
    widest = max([len(conv.weight) for conv in layers if conv.weight.shape[-1] == 3], default=0)
    if widest > WIDEST_BOTTLENECK:
        return f"bottlenecks with 3x3 convolutions of {widest} channels train faster by the vendor library"
    return None


def unfit_input(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"x is on {x.device}, and this kernel reads CPU memory"
    if x.dtype != torch.float32:
        return f"x is {x.dtype}, and this kernel computes in float32"
    return "x holds no image" if len(x) == 0 else None


def unfit_mode() -> str | None:
    if torch.compiler.is_compiling():
        return "in a compiled graph gates are data, and this kernel reads them on the host"
    if torch.is_autocast_enabled("cpu"):
        return "autocast asks for another dtype than this kernel's float32"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms need every operation, and this kernel is one"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation needs every operation, and this kernel is one"
    return None


def _unfit_route(route: Route | None) -> str | None:
    """Gates and multipliers must be those of the whole batch."""
    if route is None:
        return None
    for name, table in (("gates", route.gates), ("multipliers", route.multiplier)):
        if table.dim() == 2 and (len(table) == 0 or bool((table != table[:1]).any())):
            return f"{name} differ from image to image, and this kernel trains a whole batch under one gate a block"
    return None


def _unfit(block: Block) -> str | None:
    form = form_of(block)
    if form is None:
        return "the residual branch is not one of the known forms (basic, preact, bottleneck) of plain layers"
    convs = [layer for layer in block.residual if isinstance(layer, Conv)]
    norms = [layer for layer in block.residual if isinstance(layer, Norm)]
    unfit_layer = next(filter(None, (*map(unfit_conv, convs), *map(unfit_norm, norms))), None)
    return unfit_layer or _unfit_shape(form, convs)


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


def _unfit_shape(form: int, convs: Sequence[Conv]) -> str | None:
    kernels, found = tuple(conv.weight.shape[-1] for conv in convs), [conv.stride[0] for conv in convs]
    if kernels != KERNELS[form]:
        return f"this kernel trains convolutions of {KERNELS[form]}, but the branch has kernels of {kernels}"
    if found not in (strides(form, 1), strides(form, 2)):
        return f"the strides of the branch must be 1, but 1 or 2 in the first 3x3 convolution, and they are {found}"
    return None
