"""A stage of gated blocks in evaluation, batch norm folded: no gradient, nothing saved."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType

import torch
from torch import Tensor

from pathnet import extension
from pathnet.backend import choose
from pathnet.ops.parameters import holds_modules
from pathnet.ops.schemas import library
from pathnet.ops.stage_traced import stage_traced
from pathnet.reference import Block, Conv, Norm, Pad, Relu, Step, host_steps
from pathnet.reference import stage as reference_stage
from pathnet.reference.layers import Layer
from pathnet.route import Route

FORMS: dict[
    tuple[type, ...], type
] = {  # what the kernels know, in the order of the layers; the position is the form's number
    (Conv, Norm, Relu, Conv, Norm): Relu,
    (Norm, Relu, Conv, Norm, Relu, Conv): NoneType,
    (Conv, Norm, Relu, Conv, Norm, Relu, Conv, Norm): Relu,
}  # layers of f -> act
IDENTITY, PAD, CONV = range(3)


def stage_eval(x: Tensor, blocks: Sequence[Block], route: Route | None = None, precision: str | None = None) -> Tensor:
    """`stage` without a gradient: x_i = act(h_i(x_{i-1}) + s_i f_i(x_{i-1})), OFF blocks cost nothing.

    `precision="bf16"`: the CPU kernel rounds the operands of its Winograd products to bf16; the reference does not.
    Shapes: x [N, C, H, W]. Raises RuntimeError if a forced backend cannot run the call.
    """
    if choose("stage_eval", SUPPORTS, x, blocks, precision, loses=LOSES) == "cpu":
        return _stage_eval_cpu(x, blocks, route, precision)
    if route is None:
        return reference_stage(x, blocks, [Step()] * len(blocks))
    if torch.compiler.is_compiling() and not holds_modules(blocks):
        return stage_traced(x, blocks, route, zero_unused=False)
    return reference_stage(x, blocks, host_steps(route.gates, route.multiplier, route.update, route.mask_rows))


def supports_cpu(x: Tensor, blocks: Sequence[Block], precision: str | None = None) -> str | None:
    """Why the compiled CPU kernel cannot run these blocks, in a sentence; None if it can."""
    if not extension.available():
        return extension.why_not()
    if x.device.type != "cpu":
        return f"x is on {x.device}, and this kernel reads CPU memory"
    if x.dtype != torch.float32:
        return f"x is {x.dtype}, and this kernel computes in float32"
    if torch.is_autocast_enabled("cpu"):
        return "autocast asks for another dtype than this kernel's float32"
    return _unfit_precision(precision) or next((reason for block in blocks if (reason := _unfit(block))), None)


def _unfit_precision(precision: str | None) -> str | None:
    if precision is None:
        return None
    instructions = extension.build_info()["cpu"]["instructions"]
    if instructions in MULTIPLY_BF16:
        return None
    return f'precision="bf16" needs AVX512-BF16 or AMX, and the kernels here run on {instructions}'


def _unfit(block: Block) -> str | None:
    form = tuple(type(layer) for layer in block.residual)
    if FORMS.get(form) is not type(block.act):
        return "the residual branch is not one of the known forms (basic, preact, bottleneck) of plain layers"
    if _shortcut_kind(block) is None:
        return "the shortcut is neither the identity, nor zero padding, nor a strided 1x1 convolution"
    for layer in (*block.residual, *block.shortcut):
        reason = (
            _unfit_conv(layer) if isinstance(layer, Conv) else _unfit_norm(layer) if isinstance(layer, Norm) else None
        )
        if reason:
            return reason
    strides = [layer.stride[0] for layer in block.residual if isinstance(layer, Conv)]
    strided = len(strides) - 2  # basic and preact stride their first convolution, bottlenecks the middle one
    if any(stride != 1 for i, stride in enumerate(strides) if i != strided):
        return f"the stride must stand on convolution {strided + 1} of the branch, but the strides are {strides}"
    return None


def _unfit_conv(conv: Conv) -> str | None:
    kernel = conv.weight.shape[-1]
    if conv.weight.dtype != torch.float32:
        return f"weights are {conv.weight.dtype}, and this kernel computes in float32"
    if conv.bias is not None or conv.groups != 1 or conv.dilation != (1, 1):
        return "a convolution has a bias, groups or a dilation"
    if kernel not in (1, 3) or conv.weight.shape[-2] != kernel or conv.padding != (kernel // 2, kernel // 2):
        return f"a convolution is not 1x1 or 3x3 with padding k // 2, but {kernel}x{kernel} with padding {conv.padding}"
    if conv.stride[0] != conv.stride[1]:
        return f"a convolution has the stride {conv.stride}, one for rows and another for columns"
    if kernel == 3 and conv.stride[0] > 2:
        return f"a 3x3 convolution has the stride {conv.stride[0]}, and this kernel knows 1 and 2"
    return None


def _unfit_norm(norm: Norm) -> str | None:
    if norm.batch_stats:
        return "a batch norm uses batch statistics (it is in training mode or tracks none)"
    if any(t is None or t.dtype != torch.float32 for t in norm[:4]):
        return "a batch norm has no affine weights or is not in float32"
    return None


def _shortcut_kind(block: Block) -> int | None:
    kinds = tuple(type(layer) for layer in block.shortcut)
    conv = (Conv, Norm) if block.act is not None else (Conv,)
    known: dict[tuple[type, ...], int] = {(): IDENTITY, (Pad,): PAD, conv: CONV}
    return known.get(kinds)


def loses_cpu(x: Tensor, blocks: Sequence[Block], precision: str | None = None) -> str | None:
    """Where the vendor's convolutions beat this kernel: few pixels share large weights (docs/benchmarks.md).

    Products in bf16 are this kernel's alone.
    """
    if precision == "bf16":
        return None
    weights = [layer.weight for block in blocks for layer in block.residual if isinstance(layer, Conv)]
    widest = max([weight.shape[0] for weight in weights if weight.shape[-1] == 3], default=0)
    if widest > WIDEST:
        return f"3x3 convolutions of {widest} channels are faster in the vendor library than in this kernel"
    return None


WIDEST = 256  # channels of a 3x3 convolution whose transformed weights are worth their making
MULTIPLY_BF16 = ("avx512_bf16", "amx")  # instruction sets (csrc/cpu/isa.h)
LOSES = {"cpu": loses_cpu}
SUPPORTS = {"cpu": supports_cpu, "reference": lambda *call: None}


def _stage_eval_cpu(x: Tensor, blocks: Sequence[Block], route: Route | None, precision: str | None) -> Tensor:
    """Peel off the OFF blocks where gates are known on the host, and call the kernel once for the rest."""
    gates, scales = torch.ones(len(blocks), dtype=torch.int8), torch.ones(len(blocks))
    if route is not None:
        gates, scales = route.gates, route.multiplier.float()
    if route is not None and not torch.compiler.is_compiling():
        alive = [
            i for i, on in enumerate((gates != 0).reshape(-1, len(blocks)).any(0).tolist()) if on or blocks[i].shortcut
        ]
        blocks, gates, scales = [blocks[i] for i in alive], gates[..., alive], scales[..., alive]
    if not blocks:
        return x
    tensors = [t for block in blocks for layer in (*block.residual, *block.shortcut) for t in _tensors(layer)]
    norms = [layer for block in blocks for layer in (*block.residual, *block.shortcut) if isinstance(layer, Norm)]
    described = [number for block in blocks for number in _describe(block)]
    eps = [norm.eps for norm in norms]
    return torch.ops.pathnet.stage_eval(x, gates, scales, tensors, described, eps, precision or "float32")


def _tensors(layer: Layer) -> list[Tensor]:
    if isinstance(layer, Conv):
        return [layer.weight]
    return [t for t in layer[:4] if t is not None] if isinstance(layer, Norm) else []


def _describe(block: Block) -> tuple[int, int, int, int]:
    """(form, stride, shortcut, zero channels before)."""
    form = list(FORMS).index(tuple(type(layer) for layer in block.residual))
    stride = max(layer.stride[0] for layer in block.residual if isinstance(layer, Conv))
    before = sum(layer.before for layer in block.shortcut if isinstance(layer, Pad))
    shortcut = _shortcut_kind(block)
    assert shortcut is not None  # supports_cpu has refused any other
    return form, stride, shortcut, before


def _fake(x, gates, scales, tensors, blocks, eps, precision):
    n, channels, h, w = x.shape
    weights = [t for t in tensors if t.dim() == 4]
    for form, stride, shortcut, _ in zip(*[iter(blocks)] * 4, strict=True):
        branch = 3 if form == 2 else 2
        channels, h, w = weights[branch - 1].shape[0], -(-h // stride), -(-w // stride)
        weights = weights[branch + (shortcut == CONV) :]
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return x.new_empty((n, channels, h, w)).to(memory_format=memory_format)


torch.library.register_fake("pathnet::stage_eval", _fake, lib=library)
