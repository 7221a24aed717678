"""An example of each CUDA kernel's parameters, on tensors without memory, in the order of the C++.

What nvcc compiles asserts the size and the offsets of every struct that is described here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pathnet.machine_code.parameters import output, pointer, scalar, scalars, struct
from pathnet.ops.net_eval_pack import pack
from pathnet.reference import Block, Conv, Norm, Pad, Relu

IMAGES, BLOCKS, CLASSES, SIDE = 4, 3, 10, 32
Example = Callable[[], list[dict[str, Any]]]


def _meta(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _conv(out: int, inside: int, stride: int = 1) -> Conv:
    return Conv(_meta(torch.float32, out, inside, 3, 3), None, (stride, stride), (1, 1), (1, 1), 1)


def _norm(channels: int) -> Norm:
    numbers = _meta(torch.float32, channels)
    return Norm(numbers, numbers, numbers, numbers, None, 0.1, 1e-5, False)


def _block(inside: int, out: int, preact: bool) -> Block:
    stride, shortcut = (1, ()) if inside == out else (2, (Pad(2, inside // 2, inside // 2),))
    first, second = _conv(out, inside, stride), _conv(out, out)
    if preact:
        return Block((_norm(inside), Relu(), first, _norm(out), Relu(), second), shortcut, None)
    return Block((first, _norm(out), Relu(), second, _norm(out)), shortcut, Relu())


def net_eval(dtype: torch.dtype, preact: bool, width: int) -> Example:
    """NetEvalPlan: a net of one block a stage, each image under two sets of gates."""

    def example() -> list[dict[str, Any]]:
        blocks = [_block(inside, out, preact) for inside, out in ((width, width), (width, 2 * width))]
        blocks.append(_block(2 * width, 4 * width, preact))
        stem = _conv(width, 3), None if preact else _norm(width)
        last = _norm(4 * width) if preact else None
        fc = _meta(torch.float32, CLASSES, 4 * width), _meta(torch.float32, CLASSES)
        packed, x = pack(stem, blocks, last, fc, dtype), _meta(dtype, IMAGES, 3, SIDE, SIDE)
        fields = [
            pointer("images", x), *scalars("image_strides", "i64", x.stride()),
            pointer("weights", packed.weights), pointer("first_slice", packed.first_slice),
            pointer("vectors", packed.vectors), pointer("classifier", packed.classifier),
            pointer("gates", _meta(torch.int8, 2, BLOCKS)), pointer("order", _meta(torch.int32, 2, BLOCKS)),
            pointer("scales", _meta(torch.float32, 2, BLOCKS)), output("logits", _meta(dtype, 2 * IMAGES, CLASSES)),
            scalar("masks", "i64", 2), scalar("repeat", "i64", 2), scalar("channels", "i32", 3),
            scalar("height", "i32", SIDE), scalar("width", "i32", SIDE), scalar("classes", "i32", CLASSES),
            *scalars("stage_blocks", "i32", [1, 1, 1]), *scalars("shortcut_slices", "i32", [0, 0]),
            *scalars("pad_before", "i32", [width // 2, width]),
        ]  # fmt: skip
        return [struct("plan", "NetEvalPlan", fields)]

    return example


def probe() -> Example:
    """count and out."""

    def example() -> list[dict[str, Any]]:
        return [scalar("count", "i64", 300), output("out", _meta(torch.int32, 300))]

    return example
