"""The meaning of a stage of gated blocks, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.reference.block import Block, Step, block
from pathnet.reference.forward_run import forward_run
from pathnet.reference.layers import Relu


def stage(x: Tensor, blocks: Sequence[Block], steps: Sequence[Step]) -> Tensor:
    """x [N, C, H, W] through `blocks`, gated by `steps`; runs of FORWARD blocks store one bit an element."""
    if not torch.is_grad_enabled():
        for spec, step in zip(blocks, steps, strict=True):
            x = block(x, spec, step)
        return x
    for joins, run in groupby(zip(blocks, steps, strict=True), key=_joins_run):
        specs, gates = zip(*run, strict=True)
        if joins:
            x = forward_run(x, specs, gates)
        else:
            for spec, step in zip(specs, gates, strict=True):
                x = block(x, spec, step)
    return x


def _joins_run(pair: tuple[Block, Step]) -> bool:
    spec, step = pair
    whole_batch = not isinstance(step.gate, Tensor) and step.gate is Gate.FORWARD
    return whole_batch and not spec.shortcut and (spec.act is None or isinstance(spec.act, Relu))
