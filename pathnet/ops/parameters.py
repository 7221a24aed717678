"""The parameters of blocks, and which of them a step leaves alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from pathnet.gates import Gate
from pathnet.reference import Block, Conv, Norm
from pathnet.reference.block import RESIDUAL_FLOW, SHORTCUT_FLOW
from pathnet.reference.layers import Flow, Layer
from pathnet.route import Route, present_gates


def holds_modules(blocks: Sequence[Block]) -> bool:
    return any(
        isinstance(layer, nn.Module) for block in blocks for layer in (*block.residual, *block.shortcut, block.act)
    )


def parameters(block: Block) -> Iterator[Tensor]:
    yield from layer_parameters(block.residual)
    yield from layer_parameters(block.shortcut)


def layer_parameters(layers: Sequence[Layer]) -> Iterator[Tensor]:
    for layer in layers:
        if isinstance(layer, nn.Module):
            yield from layer.parameters()
        elif isinstance(layer, Conv | Norm):
            yield from (p for p in (layer.weight, layer.bias) if p is not None)


def idle_parameters(blocks: Sequence[Block], route: Route) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters that get no gradient on this rank: those of no rank, and those that another rank trains."""
    untouched: list[Tensor] = []
    elsewhere: list[Tensor] = []
    local = route._replace(present=present_gates(route.gates)).occurring()
    for block, here, anywhere in zip(blocks, local, route.occurring(), strict=True):
        for layers, flow in ((block.residual, RESIDUAL_FLOW), (block.shortcut, SHORTCUT_FLOW)):
            if not _train(here, flow):
                (elsewhere if _train(anywhere, flow) else untouched).extend(layer_parameters(layers))
    return untouched, elsewhere


def _train(gates: set[Gate], flow: dict[Gate, Flow]) -> bool:
    return any(flow.get(gate) is Flow.TRAIN for gate in gates)
