"""Blocks as the flat lists that an op's schema can carry, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from pathnet.reference import Block, Conv, Norm, Pad, Relu
from pathnet.reference.layers import Layer

CONV, NORM, RELU, PAD = range(4)


class Packed(NamedTuple):
    params: list[Tensor]  # what may need a gradient
    moving: list[Tensor]  # running statistics of batch norms on batch statistics: updated
    fixed: list[Tensor]  # running statistics that normalise: read
    layout: list[int]
    constants: list[float]


def pack(blocks: Sequence[Block]) -> Packed:
    packed = Packed([], [], [], [], [])
    for block in blocks:
        packed.layout.extend((int(block.act is not None), len(block.residual), len(block.shortcut)))
        for layer in (*block.residual, *block.shortcut):
            _pack_layer(packed, layer)
    return packed


def _pack_layer(packed: Packed, layer: Layer) -> None:
    params, moving, fixed, layout, constants = packed
    if isinstance(layer, Conv):
        layout.extend((CONV, *layer.stride, *layer.padding, *layer.dilation, layer.groups, int(layer.bias is not None)))
        params.extend((layer.weight,) if layer.bias is None else (layer.weight, layer.bias))
    elif isinstance(layer, Norm):
        weights = [t for t in layer[:2] if t is not None]  # two or none, as below three or none
        statistics = [t for t in layer[2:5] if t is not None]
        flags = layer.batch_stats, weights, statistics, layer.momentum is not None
        layout.extend((NORM, *(int(bool(flag)) for flag in flags)))
        constants.extend((layer.eps, layer.momentum or 0.0))
        params.extend(weights)
        (moving if layer.batch_stats else fixed).extend(statistics)
    elif isinstance(layer, Pad):
        layout.extend((PAD, *layer))
    elif isinstance(layer, Relu):
        layout.append(RELU)
    else:
        raise TypeError(f"a {type(layer).__name__} runs as the module it is and has no place in an op's lists")


def unpack(packed: Packed) -> list[Block]:
    """The blocks that `pack` flattened; batch norms come without running statistics where `moving` is empty."""
    tensors = {name: iter(getattr(packed, name)) for name in ("params", "moving", "fixed")}
    layout, constants = iter(packed.layout), iter(packed.constants)
    has_moving = bool(packed.moving)
    blocks = []
    for relu in layout:
        counts = next(layout), next(layout)
        residual, shortcut = (
            tuple(_unpack_layer(layout, constants, tensors, has_moving) for _ in range(count)) for count in counts
        )
        blocks.append(Block(residual, shortcut, Relu() if relu else None))
    return blocks


def _unpack_layer(
    layout: Iterator[int], constants: Iterator[float], tensors: dict[str, Iterator[Tensor]], has_moving: bool
) -> Conv | Norm | Relu | Pad:
    kind = next(layout)
    if kind == CONV:
        stride, padding, dilation = ((next(layout), next(layout)) for _ in range(3))
        groups, has_bias = next(layout), next(layout)
        kernel = next(tensors["params"])
        bias = next(tensors["params"]) if has_bias else None
        return Conv(kernel, bias, stride, padding, dilation, groups)
    if kind == NORM:
        batch_stats, affine, tracked, has_momentum = (bool(next(layout)) for _ in range(4))
        eps, momentum = next(constants), next(constants)
        weight, bias = (next(tensors["params"]) if affine else None for _ in range(2))
        read = tracked and (has_moving or not batch_stats)
        source = tensors["moving" if batch_stats else "fixed"]
        mean, var, count = (next(source) if read else None for _ in range(3))
        return Norm(weight, bias, mean, var, count, momentum if has_momentum else None, eps, batch_stats)
    return Pad(next(layout), next(layout), next(layout)) if kind == PAD else Relu()
