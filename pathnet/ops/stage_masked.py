"""A stage whose gates are a tensor on the device, which nobody reads on the host: for CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from torch import Tensor

from pathnet.backend import choose
from pathnet.ops.masked_train_triton import masked_train_triton, unfit
from pathnet.ops.triton_calls import loses_triton
from pathnet.reference import Block
from pathnet.reference.masked import masked_block
from pathnet.route import Route

LOSES = {"triton": loses_triton}
SUPPORTS = {"triton": unfit, "reference": lambda *call: None}


def stage_masked(x: Tensor, blocks: Sequence[Block], route: Route) -> Tensor:
    """`stage` under live gates int8 [blocks], each OFF, FULL or FORWARD, x [N, C, H, W].

    Launches and memory are those of all FULL; parameters that a gate does not train get zeros. A block whose shortcut
    is not the identity runs in plain PyTorch. Raises ValueError for gates on another device, RuntimeError if a forced
    backend cannot run the call.
    """
    if route.gates.device != x.device:
        raise ValueError(f"gates must be on the device of x, {x.device}, got {route.gates.device}; move them there")
    scales = route.multiplier.tolist()
    for own in _runs(blocks):
        run, gates = blocks[own], route.gates[own]
        if backend_of(x, run, gates) == "triton":
            x = masked_train_triton(x, run, gates, scales[own], route.update)
            continue
        for spec, gate, scale in zip(run, gates.unbind(0), scales[own], strict=True):
            x = masked_block(x, spec, gate, scale, route.update)
    return x


def backend_of(x: Tensor, blocks: Sequence[Block], gates: Tensor) -> str:
    """Which backend runs blocks of which all or none have a shortcut that is not the identity."""
    return "reference" if blocks[0].shortcut else choose("stage_masked", SUPPORTS, x, blocks, gates, loses=LOSES)


def _runs(blocks: Sequence[Block]) -> Iterator[slice]:
    """Where the blocks stand whose shortcut is the identity, and between them the others."""
    for _, run in groupby(range(len(blocks)), key=lambda place: bool(blocks[place].shortcut)):
        places = list(run)
        yield slice(places[0], places[-1] + 1)
