"""Weights of a whole net in the order in which the tensor cores of `net_eval` take them, batch norms folded in.

The layout is that of csrc/cuda/net_eval_conv.cuh: slices of 8 KiB, each a few steps; a step is 32 bytes of input
channels of one tap times all output channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pathnet.reference import Block, Conv, Norm

SLICE_BYTES = 8192  # kSliceBytes
FIRST_BIAS, SECOND_BIAS, SHORTCUT_BIAS, VECTORS = 0, 1, 2, 4  # Vector
NORM_SCALE, NORM_SHIFT = 2, 3


class Packed(NamedTuple):
    """The device tensors of NetEvalPlan."""

    weights: Tensor  # uint8 [slices, 8192]
    first_slice: Tensor  # int32 [blocks + 2]; a block's slices, the stem before them
    vectors: Tensor  # float32 [blocks + 1, 4, C], C channels in the last stage
    classifier: Tensor  # float32 [classes * C + classes]
    projects: bool  # the shortcuts of strided blocks


def pack(
    stem: tuple[Conv, Norm | None],
    blocks: Sequence[Block],
    last: Norm | None,
    fc: tuple[Tensor, Tensor],
    dtype: torch.dtype,
) -> Packed:
    """Pack a net whose layers `net_eval` supports, products in `dtype`.

    stem: the convolution and its batch norm, None in pre-activation nets, whose last batch norm is `last`.
    """
    conv, norm = stem
    scale, shift = _affine([norm]) if norm else (None, None)
    parts = [_slices(_folded([conv], scale, in_channels=16), dtype)[0]]
    vectors = conv.weight.new_zeros((len(blocks) + 1, VECTORS, fc[0].shape[1]), dtype=torch.float32)
    if shift is not None:
        vectors[0, FIRST_BIAS, : shift.shape[1]] = shift[0]
    if last is not None:
        scale, shift = _affine([last])
        vectors[0, NORM_SCALE], vectors[0, NORM_SHIFT] = scale[0], shift[0]
    counts, start = [len(parts[0])], 0
    for _, alike in groupby(
        blocks, key=lambda block: [t.shape for t in (_convs(block)[0].weight, _convs(block)[1].weight)]
    ):
        group = list(alike)
        slices, rows = _pack_alike(group, dtype)
        vectors[start + 1 : start + 1 + len(group), :, : rows.shape[-1]] = rows
        start += len(group)
        counts += [slices.shape[1]] * len(group)
        parts.append(slices.flatten(0, 1))
    first = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32, device=conv.weight.device)
    classifier = torch.cat([fc[0].flatten(), fc[1]]).float()
    projects = any(isinstance(layer, Conv) for block in blocks for layer in block.shortcut)
    return Packed(torch.cat(parts), first, vectors, classifier, projects)


def _pack_alike(blocks: Sequence[Block], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Slices [blocks, n, 8192] and vectors [blocks, 4, C] of blocks of one shape."""
    convs = [_convs(block) for block in blocks]
    norms = [[layer for layer in block.residual if isinstance(layer, Norm)] for block in blocks]
    preact = blocks[0].act is None
    inner = _affine([pair[1 if preact else 0] for pair in norms])  # follows the first convolution
    outer = _affine([pair[0 if preact else 1] for pair in norms])
    out, inside = convs[0][0].weight.shape[:2]
    rows = inner[0].new_zeros((len(blocks), VECTORS, out))
    rows[:, FIRST_BIAS] = inner[1]
    parts = []
    shortcut = blocks[0].shortcut
    if shortcut and isinstance(shortcut[0], Conv):
        assert len(blocks) == 1  # the strided block of a stage
        affine = (None, None) if preact else _affine([shortcut[1]])  # type: ignore[list-item]
        parts.append(_slices(_folded([shortcut[0]], affine[0]), dtype))
        if affine[1] is not None:
            rows[:, SHORTCUT_BIAS] = affine[1]
    if preact:
        rows[:, NORM_SCALE, :inside], rows[:, NORM_SHIFT, :inside] = outer
    else:
        rows[:, SECOND_BIAS] = outer[1]
    parts.append(_slices(_folded([pair[0] for pair in convs], inner[0]), dtype))
    parts.append(_slices(_folded([pair[1] for pair in convs], None if preact else outer[0]), dtype))
    return torch.cat(parts, dim=1), rows


def _convs(block: Block) -> list[Conv]:
    return [layer for layer in block.residual if isinstance(layer, Conv)]


def _affine(norms: Sequence[Norm]) -> tuple[Tensor, Tensor]:
    """Scale and shift [norms, C] of batch norms with running statistics: y = scale x + shift."""
    weight, bias, mean, var = (torch.stack([norm[i] for norm in norms]).double() for i in range(4))  # type: ignore[misc]
    scale = weight * torch.rsqrt(var + torch.tensor([norm.eps for norm in norms], device=var.device).unsqueeze(1))
    return scale.float(), (bias - mean * scale).float()


def _folded(convs: Sequence[Conv], scale: Tensor | None, in_channels: int | None = None) -> Tensor:
    """Weights [convs, C_out, C_in, taps] times scale [convs, C_out]; input channels filled up with zeros."""
    weight = torch.stack([conv.weight for conv in convs]).float().flatten(3)
    weight = weight if scale is None else weight * scale[..., None, None]
    return weight if in_channels is None else F.pad(weight, (0, 0, 0, in_channels - weight.shape[2]))


def _slices(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[convs, C_out, C_in, taps] -> uint8 [convs, slices, 8192]."""
    convs, out, inside, taps = weight.shape
    in_word = 4 // dtype.itemsize
    values = _round_tf32(weight) if dtype == torch.float32 else weight.to(dtype)
    #          convs, across, j, n,                  k step,               half, t, element, tap
    parted = values.reshape(convs, out // 16, 2, 8, inside // (8 * in_word), 2, 4, in_word, taps)
    steps = parted.permute(0, 8, 4, 1, 3, 6, 2, 5, 7).reshape(convs, taps * inside // (8 * in_word), -1)
    bytes_of = steps.contiguous().view(torch.uint8)
    in_slice = _largest_divisor(bytes_of.shape[1], SLICE_BYTES // bytes_of.shape[2])
    slices = bytes_of.reshape(convs, bytes_of.shape[1] // in_slice, -1)
    return F.pad(slices, (0, SLICE_BYTES - slices.shape[-1]))


def _largest_divisor(n: int, most: int) -> int:
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)


def _round_tf32(x: Tensor) -> Tensor:
    """To 10 bits of mantissa, the nearest, ties away from zero, as cvt.rna.tf32.f32 does."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
