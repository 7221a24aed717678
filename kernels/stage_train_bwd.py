"""The backward of a run of gated blocks: two launches a convolution, and two for the ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.kernels.block_run import BlockRun, Shapes, norm_tables, numbers_of, run_workspace, widest
from pathnet.kernels.copies import for_each
from pathnet.kernels.launch import Launch, run
from pathnet.kernels.partial_sums import PartialSums, partial_sums
from pathnet.kernels.passes import Before, Behind, Source, arrive_pass, inner_gradient_pass, outer_gradient_pass
from pathnet.kernels.rebuilt import Expansion
from pathnet.kernels.rebuilt_passes import rebuilt_arrive_pass, rebuilt_inner_pass, rebuilt_outer_pass
from pathnet.kernels.recompute import forward_again
from pathnet.kernels.separate import gradient_entering, separate_inner, separate_outer
from pathnet.kernels.stage_train_fwd import BESIDE
from pathnet.kernels.stage_train_plan import before, has_gradient, mask_at
from pathnet.kernels.vendor import cast_weights
from pathnet.kernels.workspace import Workspace


class Gradients(NamedTuple):
    """Of a run; None where `needs` asks for nothing."""

    x: Tensor | None
    skip: Tensor | None
    weights: Tensor | None  # of all convolutions that need one, in a row, each laid out as its weight is
    norms: Tensor  # float32 [norms, 2, most channels]: of weight and bias (`numbers_of`); unwritten for FORWARD blocks


def copies_of(grad_y: Tensor, shapes: Shapes) -> int:
    """How many gradients of one forward `grad_y` holds, one behind the other."""
    return len(grad_y) // shapes[0][0].images


class _Run(NamedTuple):
    blocks: BlockRun
    shapes: Shapes
    kept: Sequence[Tensor | None]
    slopes: Tensor  # float32 [norms, 2, most channels]
    gradients: Tensor  # as slopes
    space: Workspace
    partial: PartialSums
    vendors: frozenset[int]  # convolutions in the separate-pass form
    copies: int  # gradients at once; what is said of one here is that of the first
    rebuilds: bool  # nobody stores what last convolutions give

    def of_block(self, block: int) -> Sequence[Tensor | None]:
        width = self.blocks.depth + BESIDE
        return self.kept[width * block : width * (block + 1)]

    def run(self, launch: Launch) -> None:
        """Launch for all gradients."""
        run(for_each(launch, self.copies, self.slopes.numel()))

    def fresh(self, like: Tensor, images: int, *sides: int) -> Tensor:
        """Memory for a gradient of this shape, and behind it for those of the other copies."""
        shape = self.copies * images, *sides
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)[:images]

    def all_of(self, first: Tensor) -> Tensor:
        """The gradients of all copies."""
        return first.as_strided((self.copies * len(first), *first.shape[1:]), first.stride())


def stage_train_bwd(
    grad_y: Tensor, x: Tensor, kept: Sequence[Tensor | None], blocks: BlockRun, has_skip: bool,
    needs_x: bool, needs_skip: bool, needs_weights: Sequence[bool],
) -> Gradients:  # fmt: skip
    """The gradients asked for; grad_y and x are in channels_last, and `kept` is that of `stage_train_fwd`.

    With `has_skip` that of the shortcut leaves block 0 beside that of x, and where block 0 is FORWARD instead of it.
    grad_y may hold k gradients, [k N, C, H, W]: then all is k-fold, norms [k norms, 2, C], weights are not asked for,
    and no convolution is the vendor's.
    """
    shapes, gates = blocks.shapes(x.shape[0], x.shape[2], x.shape[3]), blocks.gates
    copies = copies_of(grad_y, shapes)
    tables = [norm_tables(grad_y, copies * len(blocks.norms), 2, widest(shapes)) for _ in range(2)]
    slopes, gradients = (table[: len(blocks.norms)] for table in tables)
    vendors, space = blocks.vendors(shapes, x.dtype), run_workspace(x, shapes, copies)
    partial = partial_sums(blocks, shapes, grad_y, needs_weights, vendors)
    read = [place for place in vendors if has_gradient(gates[place // blocks.depth])]
    blocks = blocks._replace(weights=cast_weights(blocks.weights, read, grad_y.dtype))
    rebuilds = blocks.rebuilds(shapes, x.dtype)
    state = _Run(blocks, shapes, kept, slopes, gradients, space, partial, vendors, copies, rebuilds)
    block, grad_y = before(gates, len(gates)), grad_y[: len(x)]
    g, bits = state.fresh(grad_y, *grad_y.shape), kept[-1]
    assert bits is not None
    last = _before(state, block)
    if last is None or last.expansion is None:
        state.run(arrive_pass("arrive", grad_y, None, "bits", bits, last, g, space))
    else:
        state.run(rebuilt_arrive_pass(grad_y, bits, last, g, space, blocks.precision))
    grad_x, grad_skip = None, None
    separate = has_skip and has_gradient(gates[0])
    while block is not None and last is not None:
        if block == 0 and separate:
            grad_skip = g
        below = before(gates, block)
        inner = _inner(state, block, _with_gradient(last, g), x)
        del last  # what was made anew goes before the next is made
        last = _before(state, below)
        wanted = below is not None or (needs_skip if has_skip and not separate else needs_x)
        g = _outer(state, block, last, inner, None if block == 0 and separate else g, x) if wanted else None
        block = below
    if has_skip and not separate:
        grad_skip = g
    else:
        grad_x = g
    wanted_x, wanted_skip = (
        state.all_of(grad) if need and grad is not None else None
        for need, grad in ((needs_x, grad_x), (needs_skip, grad_skip))
    )
    return Gradients(wanted_x, wanted_skip, partial.total(), tables[1])


def _inner(state: _Run, block: int, behind: Behind, x: Tensor) -> Behind:
    """From the gradient behind a block's last norm to that behind its first, and the gradients of all its weights.

    Where the vendor's first convolution is trained, it is that of what the convolution gave.
    """
    kept_x, *_ = state.of_block(block)
    depth, precision = state.blocks.depth, state.blocks.precision
    for index in range(depth - 1, 0, -1):
        place, geometry = depth * block + index, state.shapes[block][index]
        norm, weight = _norm_before(state, block, index - 1), state.blocks.weights[place]
        if place in state.vendors:
            entered = gradient_entering(index + 1, behind)
            behind = separate_inner(index + 1, geometry, entered, weight, norm, state.space, state.partial, place)
            continue
        inner = _with_gradient(norm, state.fresh(norm.u, *norm.u.shape))
        make = inner_gradient_pass if behind.expansion is None else rebuilt_inner_pass
        name = f"data gradient conv{index + 1}"
        state.run(make(name, geometry, behind, weight, norm, inner.g, state.space, precision))
        state.partial.add(place, behind, "norm", Source(u=norm.u, state=norm.state))
        behind = inner
    if depth * block in state.partial.whole:
        behind = Behind(gradient_entering(1, behind))
    state.partial.add(depth * block, behind, "input", Source(x=x if block == 0 else kept_x))
    return behind


def _outer(state: _Run, block: int, norm: Before | None, behind: Behind, skip: Tensor | None, x: Tensor) -> Tensor:
    """From the gradient behind the first norm to that behind the `norm` before the block, or of the run's input."""
    first = state.shapes[block][0]
    gates, precision = state.blocks.gates, state.blocks.precision
    mask, (kept_x, *_, bits) = mask_at(gates, block), state.of_block(block)
    alive = bits if mask == "bits" else kept_x if mask == "values" else None
    skip = None if gates[block] == Gate.RESIDUAL else skip
    g_in = state.fresh(x, first.images, first.inputs, first.height, first.width)
    place = state.blocks.depth * block
    masked = state.blocks.weights[place], skip, mask, alive, norm, g_in, state.space
    if place in state.vendors:
        return separate_outer(first, behind, *masked)
    make = outer_gradient_pass if norm is None or norm.expansion is None else rebuilt_outer_pass
    state.run(make("data gradient conv1", first, behind, *masked, precision))
    return g_in


def _before(state: _Run, block: int | None) -> Before | None:
    """The last norm of `block`, whose sums the pass that makes its gradient forms; called once a block."""
    return None if block is None else _norm_before(state, block, state.blocks.depth - 1)


def _norm_before(state: _Run, block: int, index: int) -> Before:
    """The norm behind convolution `index` of a block."""
    _, *us, states, _ = state.of_block(block)
    place, channels = state.blocks.depth * block + index, state.shapes[block][index].outputs
    assert states is not None
    u, expansion = us[index], None
    if u is None and state.rebuilds:
        source = _norm_before(state, block, index - 1)
        u, expansion = source.u, Expansion(source.state, state.blocks.weights[place])
    elif u is None:
        u = _again(state, block, index)
    norm, own = state.blocks.norms[place], numbers_of(states[index], 4, channels)
    slopes, gradients = (numbers_of(table[place], 2, channels) for table in (state.slopes, state.gradients))
    return Before(u, own, slopes, gradients, norm.multiplier, norm.batch_stats, expansion)


def _again(state: _Run, block: int, index: int) -> Tensor:
    """What convolution `index` of a block gave, where nobody has kept it."""
    norm, place = _norm_before(state, block, index - 1), state.blocks.depth * block + index
    geometry, weight = state.shapes[block][index], state.blocks.weights[place]
    source, vendor = Source(u=norm.u, state=norm.state), place in state.vendors
    return forward_again(index + 1, geometry, source, weight, vendor, state.blocks.precision)


def _with_gradient(norm: Before, g: Tensor) -> Behind:
    return Behind(g, norm.u, norm.state, norm.slopes, expansion=norm.expansion)
