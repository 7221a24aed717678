"""The draw of a sampler inside a compiled graph: an opaque op, so that one graph serves every draw."""

from __future__ import annotations

import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.ops.schemas import library
from pathnet.route import Route
from pathnet.samplers.base import parse


def draw(step: Tensor, sampler: str, batch: int, blocks: int) -> Route:
    """Gates [blocks] or [batch, blocks] of step `step`, an int64 CPU tensor that moves on; `sampler` is a repr."""
    return Route(*torch.ops.pathnet.draw(step, sampler, batch, blocks))


def _draw(step: Tensor, sampler: str, batch: int, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    paths = parse(sampler).draw(int(step), batch, blocks)
    step += 1
    assert paths.multiplier is not None and paths.present is not None  # a draw has both
    return paths.gates, paths.multiplier, paths.present


def _draw_fake(step: Tensor, sampler: str, batch: int, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (batch, blocks) if parse(sampler).per_sample else (blocks,)
    present = step.new_empty((blocks, len(Gate)), dtype=torch.bool)
    return step.new_empty(shape, dtype=torch.int8), step.new_empty((blocks,), dtype=torch.float64), present


library.impl("draw", _draw, "CompositeExplicitAutograd")
torch.library.register_fake("pathnet::draw", _draw_fake, lib=library)
