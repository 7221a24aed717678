"""What PyTorch must know of stage_train_fwd and stage_train_bwd: shapes for tracing, and several gradients at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.ops.schemas import library

BASIC, PREACT = range(2)  # forms of blocks, as the ops number them
LANES = 16  # channels are kept in blocks of so many (kBlock in csrc/cpu/image.h)


def _fwd_fake(x, skip, weights, norms, running, blocks, scales, norm_flags, norm_constants):
    """csrc/cpu/stage_train_kept.cpp: states of the norms, then what each block keeps: batches and bits."""
    (n, channels, h, w), forms, gates = x.shape, blocks[::3], blocks[2::3]
    widest = max(_padded(c) for c in (channels, *(len(weight) for weight in weights)))
    saved = [x.new_empty((2 * sum(gate != Gate.FORWARD for gate in gates), 4, widest))]
    if forms[0] == BASIC and gates[0] == Gate.FORWARD:
        saved.append(_bits(x, len(weights[0]), -(-h // blocks[1]), -(-w // blocks[1])))
    for form, stride, gate, weight in zip(forms, blocks[1::3], gates, weights[::2], strict=True):
        batch_in, channels, h, w = (n, channels, h, w), len(weight), -(-h // stride), -(-w // stride)
        if gate == Gate.FORWARD:
            continue
        keeps_x = form == PREACT or gate != Gate.FROZEN
        values = [batch_in] * keeps_x + [(n, channels, h, w)] * (1 if form == PREACT else 2)
        saved.extend(x.new_empty((n, _padded(c) // LANES, rows, columns, LANES)) for n, c, rows, columns in values)
        saved.extend([_bits(x, channels, h, w)] if form == BASIC else [])
    return _like(x, (n, channels, h, w)), saved


def _bits(x: Tensor, channels: int, h: int, w: int) -> Tensor:
    """Words of 16 bits, a channel each, two in a float."""
    return x.new_empty(-(-len(x) * _padded(channels) // LANES * h * w // 2))


def _padded(channels: int) -> int:
    return -(-channels // LANES) * LANES


def _bwd_fake(grad_y, x, saved, weights, norms, running, *rest):
    needs_x, needs_skip, *others = rest[-1]
    given = [_like(x, x.shape)] if needs_x else []
    given += [_like(x, grad_y.shape)] if needs_skip else []
    return given + [torch.empty_like(p) for p, need in zip((*weights, *norms), others, strict=True) if need]


def _like(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of this shape in the memory format of x."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


# ---- several incoming gradients at once: torch.vmap, and is_grads_batched of torch.autograd.grad --------------------


def _bwd_vmap(info, in_dims, grad_y, *rest):
    grads = _one_by_one(grad_y.movedim(in_dims[0], 0), *rest)
    return grads, [0] * len(grads)


def _bwd_batched(grad_y, *rest):
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    grads = _one_by_one(torch._remove_batch_dim(grad_y, level, 0, 0), *rest)
    return [torch._add_batch_dim(grad, 0, level) for grad in grads]


def _one_by_one(grads_y: Tensor, *rest) -> list[Tensor]:
    each = [torch.ops.pathnet.stage_train_bwd(grad_y, *rest) for grad_y in grads_y.unbind(0)]
    return [torch.stack(grads) for grads in zip(*each, strict=True)]


torch.library.register_fake("pathnet::stage_train_fwd", _fwd_fake, lib=library)
torch.library.register_fake("pathnet::stage_train_bwd", _bwd_fake, lib=library)
torch.library.register_vmap("pathnet::stage_train_bwd", _bwd_vmap, lib=library)
library.impl("stage_train_bwd", _bwd_batched, "Batched")
