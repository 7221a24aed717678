"""A stage: blocks in a row, handed to the ops in runs as long as the user's changes allow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pathnet.blocks.describe import has_hooks
from pathnet.blocks.residual import ResidualBlock
from pathnet.blocks.snapshot import Snapshot
from pathnet.gates import Gate
from pathnet.ops import stage
from pathnet.ops.eval_blocks import known
from pathnet.ops.parameters import holds_modules
from pathnet.reference import Block
from pathnet.route import Route


class Stage(nn.Sequential):
    """Residual blocks one after the other, x [N, C, H, W]; called alone it is what plain PyTorch would run."""

    zero_unused = False  # unused_grad="zero" of the net
    precision: str | None = None  # of the net

    def forward(self, x: Tensor, route: Route | None = None, order: Sequence[int] | None = None) -> Tensor:
        """Run the blocks in `order` (indices in this stage); `route` has a column a block, in the stage's own order."""
        specs = specs_of(self)
        places = range(len(self)) if order is None else order
        for fusable, run in groupby(places, key=lambda place: specs[place] is not None):
            indices = list(run)
            if fusable:
                part = None if route is None else route.at(indices)
                fused = [specs[i] for i in indices]  # without None: groupby has parted them
                x = stage(x, fused, part, self.zero_unused, self.precision)  # type: ignore[arg-type]
                continue
            for i in indices:
                x = _call_block(self[i], x, None if route is None else route.at([i]))
        return x


class _Described(NamedTuple):
    blocks: list[nn.Module]
    snapshot: Snapshot
    specs: list[Block | None]


# Describing a deep net anew costs as much as running it on one image.
_described: WeakKeyDictionary[Stage, _Described] = WeakKeyDictionary()


def specs_of(stage: Stage) -> list[Block | None]:
    """The blocks as values, None for those that run module by module."""
    blocks = list(stage)
    if torch.compiler.is_compiling():
        return [fusable_spec(block) for block in blocks]
    kept = _described.get(stage)
    if kept is None or kept.blocks != blocks or not kept.snapshot.holds():
        snapshot = Snapshot(blocks)  # first: what changes meanwhile is found by the next call
        specs = [fusable_spec(block) for block in blocks]
        kept = _Described(blocks, snapshot, [None if spec is None else known(spec) for spec in specs])
        _described[stage] = kept
    return kept.specs


def fusable_spec(block: nn.Module) -> Block | None:
    """The block as values, where it may run without its own __call__: with no hook of its own and plain children."""
    if not isinstance(block, ResidualBlock) or block.forward_was_replaced() or has_hooks(block):
        return None
    spec = block.spec()
    return None if holds_modules([spec]) else spec


def _call_block(block: nn.Module, x: Tensor, route: Route | None) -> Tensor:
    if route is None:
        return block(x)
    if isinstance(block, ResidualBlock) and not block.forward_was_replaced():
        return block(x, route=route)
    if route.live or {*route.gates.flatten().tolist()} != {Gate.FULL} or bool((route.multiplier != 1).any()):
        raise TypeError(
            f"a {type(block).__name__} stands where a residual block was, and only the gate FULL without a multiplier "
            "can run a module whose shortcut and residual function are unknown; put a pathnet block there"
        )
    return block(x)
