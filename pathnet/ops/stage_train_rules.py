"""What PyTorch must know of stage_train_fwd and stage_train_bwd: shapes for tracing, and several gradients at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.ops.one_by_one import batch_one_by_one
from pathnet.ops.schemas import library
from pathnet.ops.stage_train_forms import PREACTS, PROJECTION, by_block, strides

LANES = 16  # channels are kept in blocks of so many (kBlock in csrc/cpu/image.h)


def _fwd_fake(x, skip, rows, weights, norms, running, blocks, scales, norm_flags, norm_constants):
    """csrc/cpu/stage_train_kept.cpp: states of the norms, then what each block keeps: batches and bits."""
    images = len(x) if rows is None else len(rows)
    shape, layers, saved = (images, *x.shape[1:]), 0, list[Tensor]()
    widest = max(_padded(c) for c in (x.shape[1], *(len(weight) for weight in weights)))
    described = zip(blocks[::3], blocks[1::3], blocks[2::3], by_block(blocks[::3], weights), strict=True)
    projects = blocks[-3] == PROJECTION and blocks[-1] == Gate.FULL  # and then reads x in its backward
    post = blocks[0] not in PREACTS
    for index, (form, stride, gate, own) in enumerate(described):
        trained, block = gate != Gate.FORWARD, form != PROJECTION
        inputs = shape if block else (images, *x.shape[1:])
        outputs = list(_outputs(inputs, own, strides(form, stride)))
        shape = outputs[-1] if block else shape
        if post and index == 0 and not trained:
            saved.append(_bits(x, *shape))
        reads_x = block and ((trained and (not post or gate != Gate.FROZEN)) or (index == 0 and projects))
        kept = [inputs] * reads_x + (outputs if post else outputs[:-1]) * trained
        saved.extend(x.new_empty((n, _padded(c) // LANES, h, w, LANES)) for n, c, h, w in kept)
        layers += len(own) * (trained and (block or post))
        if post and trained and block:
            saved.append(_bits(x, *shape))
    return _like(x, (len(x), *shape[1:])), [x.new_empty((layers, 4, widest)), *saved]


def _outputs(inputs: tuple[int, ...], weights: Sequence[Tensor], strides: Sequence[int]) -> Iterator[tuple[int, ...]]:
    n, _, h, w = inputs
    for weight, stride in zip(weights, strides, strict=True):
        h, w = -(-h // stride), -(-w // stride)
        yield n, len(weight), h, w


def _bits(x: Tensor, images: int, channels: int, h: int, w: int) -> Tensor:
    """Words of 16 bits, a channel each, two in a float."""
    return x.new_empty(-(-images * _padded(channels) // LANES * h * w // 2))


def _padded(channels: int) -> int:
    return -(-channels // LANES) * LANES


def _bwd_fake(grad_y, x, rows, saved, weights, norms, running, *rest):
    needs_x, needs_skip, *others = rest[-1]
    given = [_like(x, x.shape)] if needs_x else []
    given += [_like(x, grad_y.shape)] if needs_skip else []
    return given + [torch.empty_like(p) for p, need in zip((*weights, *norms), others, strict=True) if need]


def _like(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of this shape in the memory format of x."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


torch.library.register_fake("pathnet::stage_train_fwd", _fwd_fake, lib=library)
torch.library.register_fake("pathnet::stage_train_bwd", _bwd_fake, lib=library)
batch_one_by_one("stage_train_bwd")
