"""The forward of a run of gated blocks: a launch a convolution, and one for the value that the run puts out.

Basic blocks have two convolutions, bottlenecks three: behind the first, each reads the one before through its norm.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from pathnet.kernels.block_run import (
    BlockRun,
    Shapes,
    empty,
    empty_bits,
    norm_tables,
    numbers_of,
    run_workspace,
    widest,
)
from pathnet.kernels.launch import run
from pathnet.kernels.passes import Source, forward_pass, merge_pass
from pathnet.kernels.rebuilt_passes import expanded, rebuilt_forward_pass, rebuilt_merge_pass, statistics_pass
from pathnet.kernels.separate import separate_forward
from pathnet.kernels.stage_train_plan import bits_at, has_gradient, keeps_input, mask_at, owner
from pathnet.kernels.vendor import cast_weights

BESIDE = 3  # tensors that a run keeps of a block beside what its convolutions put out: x, the norms' states, the mask


def keeps(gates: Sequence[int], depth: int, recomputes: bool = False) -> list[bool]:
    """What the backward of a run reads of each block: x, each u, the norms' states, the mask before the block.

    Then the mask behind the run's last ReLUs. Where it `recomputes` the last u of a block, nobody keeps that.
    """
    kept = []
    for block, gate in enumerate(gates):
        gradient = has_gradient(gate)
        us = [*[gradient] * (depth - 1), gradient and not recomputes]
        kept += [keeps_input(gates, block), *us, gradient, gradient and mask_at(gates, block) == "bits"]
    return [*kept, True]


def kept_tensors(
    gates: Sequence[int], x: Tensor, shapes: Shapes, vendors: Collection[int] = (), recomputes: bool = False
) -> list[Tensor | None]:
    """Fresh memory for what `keeps` lists, None for the rest, and for what the vendor's convolutions put out."""
    depth = len(shapes[0])
    wanted, kept = iter(keeps(gates, depth, recomputes)), list[Tensor | None]()
    for block, convs in enumerate(shapes):
        kept += [empty(x, convs[-1]) if next(wanted) else None]  # a block that keeps its input has a stride of 1
        for place, geometry in enumerate(convs, depth * block):
            kept += [empty(x, geometry) if next(wanted) and place not in vendors else None]
        kept += [norm_tables(x, depth, 4, widest(shapes)) if next(wanted) else None]
        kept += [empty_bits(x, convs[-1]) if next(wanted) else None]
    return [*kept, empty_bits(x, shapes[-1][-1])]


def stage_train_fwd(x: Tensor, skip: Tensor | None, blocks: BlockRun) -> tuple[Tensor, list[Tensor | None]]:
    """Run the blocks; returns y and what `kept_tensors` lists. x and skip (h(x) of block 0) are in channels_last."""
    shapes = blocks.shapes(x.shape[0], x.shape[2], x.shape[3])
    vendors, space = blocks.vendors(shapes, x.dtype), run_workspace(x, shapes)
    rebuilds = blocks.rebuilds(shapes, x.dtype)
    kept = kept_tensors(blocks.gates, x, shapes, vendors, blocks.recomputes)
    wanted, width = keeps(blocks.gates, blocks.depth, blocks.recomputes), blocks.depth + BESIDE
    blocks = blocks._replace(weights=cast_weights(blocks.weights, vendors, x.dtype))
    stream, source, prologue = x if skip is None else skip, Source(x=x), "input"
    for block, convs in enumerate(shapes):
        first = width * block
        _, *us, states, _ = kept[first : first + width]
        states = norm_tables(x, blocks.depth, 4, widest(shapes)) if states is None else states
        bits, join = _mask(blocks, block, kept)
        for index, geometry in enumerate(convs):
            state, place = numbers_of(states[index], 4, geometry.outputs), blocks.depth * block + index
            name, read = f"forward conv{index + 1}", (source, bits, join, blocks.weights[place], blocks.norms[place])
            write = state, space, blocks.precision
            if rebuilds and index == blocks.depth - 1:
                run(statistics_pass(name, geometry, source, *read[3:], *write))
                source = expanded(source, read[3], state)
                break
            if place in vendors:
                u = separate_forward(index + 1, geometry, prologue, *read, state, space)
                kept[first + 1 + index] = u if wanted[first + 1 + index] else None
            else:
                u = empty(x, geometry) if (own := us[index]) is None else own
                if source.expansion is None:
                    run(forward_pass(name, geometry, prologue, *read, u, *write))
                else:
                    run(rebuilt_forward_pass(name, geometry, *read, u, *write))
            stream = stream if source.merged is None else source.merged
            source, prologue, bits, join = Source(u=u, state=state), "norm", None, "none"
        merged = kept[first + width] if block + 1 < len(shapes) else None
        merged = empty(x, convs[-1]) if merged is None else merged
        source, prologue = source._replace(x=stream, merged=merged), "merge"
    bits, join = _mask(blocks, len(shapes), kept)
    assert source.merged is not None
    if source.expansion is None:
        run(merge_pass(source, bits, join))
    else:
        run(rebuilt_merge_pass(source, bits, join, blocks.precision))
    return source.merged, kept


def _mask(blocks: BlockRun, position: int, kept: Sequence[Tensor | None]) -> tuple[Tensor | None, str]:
    """The bits that the program making this position of the stream writes, and how."""
    gates = blocks.gates
    if position == 0 or (join := bits_at(gates, position)) == "none":
        return None, "none"
    place, width = owner(gates, position), blocks.depth + BESIDE
    return kept[-1] if place == len(gates) else kept[width * (place + 1) - 1], join
