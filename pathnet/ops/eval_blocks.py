"""What `stage_eval` asks of a block: whether the CPU kernel knows it, and its tensors and numbers in a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import NoneType
from typing import NamedTuple

import torch
from torch import Tensor

from pathnet.reference import Block, Conv, Norm, Pad, Relu
from pathnet.reference.layers import Layer

FORMS: dict[
    tuple[type, ...], type
] = {  # what the kernels know, in the order of the layers; the position is the form's number
    (Conv, Norm, Relu, Conv, Norm): Relu,
    (Norm, Relu, Conv, Norm, Relu, Conv): NoneType,
    (Conv, Norm, Relu, Conv, Norm, Relu, Conv, Norm): Relu,
}  # layers of f -> act
STEMS: dict[tuple[type, ...], type] = {
    (Conv, Norm): Relu,
    (Conv,): NoneType,
}  # the same of the shortcut of a block without f, numbered on from the forms
IDENTITY, PAD, CONV = range(3)
WIDE = 128  # channels; with more, few images do not pay for transformed weights


class Facts(NamedTuple):
    """What `stage_eval` asks of a block."""

    batch_stats: bool  # a norm uses the statistics of the batch
    unfit: str | None  # why the kernel cannot run it; then there are no numbers
    stride: int
    widest: int  # channels of its widest 3x3 convolution
    tensors: list[Tensor]  # of the convolutions and norms
    numbers: tuple[int, ...]  # form, stride, shortcut, zero channels before
    eps: list[float]  # of the norms


class KnownBlock(Block):
    """A block whose facts were found once, for many calls: its tensors may change in place, not in dtype or shape."""

    facts: Facts


def known(block: Block) -> KnownBlock:
    result = KnownBlock(*block)
    result.facts = _facts(block)
    return result


class Chain(list[KnownBlock]):
    """Known blocks that always run in this order: what one call of `stage_eval` gets of them was put together once."""

    def __init__(self, blocks: Iterable[KnownBlock]) -> None:
        super().__init__(blocks)
        self.facts = [block.facts for block in self]
        self.arguments = arguments(self.facts)


def facts_of(blocks: Sequence[Block]) -> list[Facts]:
    if isinstance(blocks, Chain):
        return blocks.facts
    return [block.facts if isinstance(block, KnownBlock) else _facts(block) for block in blocks]


def arguments(facts: Sequence[Facts]) -> tuple[list[Tensor], list[int], list[float]]:
    """Tensors, numbers and eps of blocks in a row."""
    return (
        [tensor for fact in facts for tensor in fact.tensors],
        [number for fact in facts for number in fact.numbers],
        [value for fact in facts for value in fact.eps],
    )


def _facts(block: Block) -> Facts:
    layers = (*block.residual, *block.shortcut)
    norms = [layer for layer in layers if isinstance(layer, Norm)]
    unfit = _unfit(block)
    return Facts(
        any(norm.batch_stats for norm in norms),
        unfit,
        _stride(block),
        _widest(block),
        [tensor for layer in layers for tensor in _tensors(layer)],
        () if unfit else _numbers(block),
        [norm.eps for norm in norms],
    )


def _tensors(layer: Layer) -> list[Tensor]:
    if isinstance(layer, Conv):
        return [layer.weight]
    return [t for t in layer[:4] if t is not None] if isinstance(layer, Norm) else []


def _numbers(block: Block) -> tuple[int, ...]:
    form = list(FORMS).index(_kinds(block.residual)) if block.residual else _stem_form(block)
    before = sum(layer.before for layer in block.shortcut if isinstance(layer, Pad))
    shortcut = _shortcut_kind(block)
    assert shortcut is not None  # _unfit has refused any other
    return form, _stride(block), shortcut, before


def _stem_form(block: Block) -> int:
    return len(FORMS) + list(STEMS).index(_kinds(block.shortcut))


def _kinds(layers: Sequence[Layer]) -> tuple[type, ...]:
    return tuple(type(layer) for layer in layers)


def _widest(block: Block) -> int:
    convs = [layer for layer in block.residual if isinstance(layer, Conv)]
    return max([len(conv.weight) for conv in convs if conv.weight.shape[-1] == 3], default=0)


def _stride(block: Block) -> int:
    return max([layer.stride[0] for layer in block.residual if isinstance(layer, Conv)], default=1)


def _unfit(block: Block) -> str | None:
    if not block.residual:
        return _unfit_stem(block)
    if FORMS.get(_kinds(block.residual)) is not type(block.act):
        return "the residual branch is not one of the known forms (basic, preact, bottleneck) of plain layers"
    if _shortcut_kind(block) is None:
        return "the shortcut is neither the identity, nor zero padding, nor a strided 1x1 convolution"
    reason = _unfit_layers((*block.residual, *block.shortcut))
    if reason:
        return reason
    strides = [layer.stride[0] for layer in block.residual if isinstance(layer, Conv)]
    strided = len(strides) - 2  # basic and preact stride their first convolution, bottlenecks the middle one
    if any(stride != 1 for i, stride in enumerate(strides) if i != strided):
        return f"the stride must stand on convolution {strided + 1} of the branch, but the strides are {strides}"
    return None


def _unfit_stem(block: Block) -> str | None:
    if STEMS.get(_kinds(block.shortcut)) is not type(block.act):
        return "the stem is neither a convolution, batch norm and ReLU, nor a convolution alone"
    conv = block.shortcut[0]
    assert isinstance(conv, Conv)
    if conv.weight.shape[-1] != 3 or conv.stride != (1, 1):
        return f"the stem's convolution is not 3x3 of stride 1, but {conv.weight.shape[-1]}x of stride {conv.stride}"
    return _unfit_layers(block.shortcut)


def _unfit_layers(layers: Sequence[Layer]) -> str | None:
    convs = (unfit_conv(layer) for layer in layers if isinstance(layer, Conv))
    norms = (unfit_norm(layer) for layer in layers if isinstance(layer, Norm))
    return next(filter(None, (*convs, *norms)), None)


def unfit_conv(conv: Conv) -> str | None:
    if conv.weight.dtype != torch.float32:
        return f"weights are {conv.weight.dtype}, and this kernel computes in float32"
    return unfit_geometry(conv)


def unfit_geometry(conv: Conv) -> str | None:
    kernel = conv.weight.shape[-1]
    if conv.bias is not None or conv.groups != 1 or conv.dilation != (1, 1):
        return "a convolution has a bias, groups or a dilation"
    if kernel not in (1, 3) or conv.weight.shape[-2] != kernel or conv.padding != (kernel // 2, kernel // 2):
        return f"a convolution is not 1x1 or 3x3 with padding k // 2, but {kernel}x{kernel} with padding {conv.padding}"
    if conv.stride[0] != conv.stride[1]:
        return f"a convolution has the stride {conv.stride}, one for rows and another for columns"
    if kernel == 3 and conv.stride[0] > 2:
        return f"a 3x3 convolution has the stride {conv.stride[0]}, and this kernel knows 1 and 2"
    return None


def unfit_norm(norm: Norm) -> str | None:
    if norm.batch_stats:
        return "a batch norm uses batch statistics (it is in training mode or tracks none)"
    if any(t is None or t.dtype != torch.float32 for t in norm[:4]):
        return "a batch norm has no affine weights or is not in float32"
    return None


def _shortcut_kind(block: Block) -> int | None:
    kinds = _kinds(block.shortcut)
    conv = (Conv, Norm) if block.act is not None else (Conv,)
    known: dict[tuple[type, ...], int] = {(): IDENTITY, (Pad,): PAD, conv: CONV}
    return known.get(kinds)
