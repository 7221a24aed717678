"""A stage cut into runs of blocks that share one call of a kernel, and what no such kernel can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pathnet.gates import Gate
from pathnet.ops.parameters import layer_parameters
from pathnet.reference import Block, Step, host_steps
from pathnet.reference import block as reference_block
from pathnet.reference.block import RESIDUAL_FLOW, SHORTCUT_FLOW, masked
from pathnet.reference.layers import Flow, Rows, run_layers
from pathnet.route import Route

Gated = tuple[Block, Step]


def skip_of(x: Tensor, spec: Block, step: Step) -> Tensor | None:
    """h(x) by plain PyTorch, with the gradient that the gate lets through; None for the identity."""
    if not spec.shortcut:
        return None
    rows = Rows(x, SHORTCUT_FLOW[step.gate])  # type: ignore[index]  # one gate for the batch
    return run_layers(spec.shortcut, [rows], step.update)[0]


def stage_in_runs(
    x: Tensor,
    blocks: Sequence[Block],
    route: Route | None,
    train_run: Callable[[Tensor, Any, list[Gated]], Tensor],
    skip_of: Callable[[Tensor, Block, Step], Any] = skip_of,
    block_of_rows: Callable[[Tensor, Block, Step], Tensor] | None = None,
) -> Tensor:
    """The stage of x [N, C, H, W], run by run; OFF blocks with an identity shortcut are left out.

    `train_run` gets x, what `skip_of` makes of it for the first block, and the blocks. Where gates differ from image to
    image a step has a gate an image, int8 [N]; `block_of_rows` then runs such a block alone, where it is given.
    """

    def alone(spec: Block, step: Step) -> bool:
        """Whether no run takes the block: what is left of it is its shortcut, or differs from image to image."""
        return step.gate is Gate.OFF or (_differs(step) and (block_of_rows is not None or bool(spec.shortcut)))

    for run in _runs(x, blocks, _steps(blocks, route), alone):
        spec, step = run[0]
        if alone(spec, step):
            x = (block_of_rows if block_of_rows and _differs(step) else reference_block)(x, spec, step)
        else:
            x = train_run(x, skip_of(x, spec, step), run)
    return x


def _runs(
    x: Tensor, blocks: Sequence[Block], steps: Sequence[Step], alone: Callable[[Block, Step], bool]
) -> Iterator[list[Gated]]:
    """Blocks that share one call: a shortcut that is not the identity begins a run, or stands alone.

    The first block that has a gradient begins one too, so that what stands before it saves nothing.
    """
    run: list[Gated] = []
    recorded = x.requires_grad
    for spec, step in zip(blocks, steps, strict=True):
        if step.gate is Gate.OFF and not spec.shortcut:
            continue
        begins = not recorded and _trains(spec, step)
        recorded = recorded or begins
        other_form = bool(run) and run[0][0].act != spec.act
        if run and (begins or spec.shortcut or alone(spec, step) or alone(*run[0]) or other_form):
            yield run
            run = []
        run.append((spec, step))
    if run:
        yield run


def _differs(step: Step) -> bool:
    return isinstance(step.gate, Tensor)


def _trains(spec: Block, step: Step) -> bool:
    """Whether the block has parameters whose gradient is asked for and that one of its gates trains."""
    gates = step.gate.unique().tolist() if isinstance(step.gate, Tensor) else [step.gate]
    flows = (spec.residual, RESIDUAL_FLOW), (spec.shortcut, SHORTCUT_FLOW)
    trained = [layers for layers, flow in flows if any(flow.get(gate) is Flow.TRAIN for gate in gates)]
    return any(p.requires_grad for layers in trained for p in layer_parameters(layers))


def _steps(blocks: Sequence[Block], route: Route | None) -> list[Step]:
    if route is None:
        return [Step()] * len(blocks)
    return [_for_batch(step) for step in host_steps(route.gates, route.multiplier, route.update, route.mask_rows)]


def _for_batch(step: Step) -> Step:
    """One gate, and one multiplier, where all images have the same; a masked OFF row computes, times zero."""
    step = masked(step)
    gate, factor = _common(step.gate), _common(step.multiplier)
    return step._replace(gate=gate if isinstance(gate, Tensor) else Gate(gate), multiplier=factor)


def _common(values: Any) -> Any:
    """The value that all images share, else the values."""
    same = isinstance(values, Tensor) and len(values) > 0 and bool((values == values[0]).all())
    return values[0].item() if same else values


def one_gate(step: Step) -> tuple[Step, Tensor] | None:
    """The step of the images that run, and which those are; None where these differ or where the others compute too."""
    if step.mask_rows or not isinstance(step.gate, Tensor):
        return None
    rows = torch.nonzero(step.gate != Gate.OFF).flatten()
    factor = step.multiplier[rows] if isinstance(step.multiplier, Tensor) else step.multiplier
    running = _for_batch(Step(step.gate[rows], factor, step.update))
    return None if _differs(running) else (running, rows)


def gates_of_rows(run: Sequence[Gated], images: int) -> Tensor:
    """The gates of a run, int8 [images, blocks]."""
    gates = [torch.as_tensor(step.gate, dtype=torch.int8).expand(images) for _, step in run]
    return torch.stack(gates, 1)


# ---- what no kernel of a whole run takes -----------------------------------------------------------------------------


def unfit_transform() -> str | None:
    if torch.compiler.is_compiling():
        return "in a compiled graph gates are data, and this kernel reads them on the host"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms need every operation, and this kernel is one"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation needs every operation, and this kernel is one"
    return None


def unfit_route(route: Route | None) -> str | None:
    """Gates and multipliers must be those of the whole batch."""
    if route is None:
        return None
    if differs(route.gates):
        return "gates differ from image to image, and this kernel trains a whole batch under one gate a block"
    return unfit_multipliers(route)


def unfit_rows(route: Route | None) -> str | None:
    """Gates may differ from image to image, multipliers not, and so not `bn="all"`."""
    if route is None:
        return None
    if route.mask_rows and differs(route.gates):
        return 'bn="all" computes every image, and this kernel leaves out those that a gate shuts'
    return unfit_multipliers(route)


def unfit_multipliers(route: Route) -> str | None:
    if differs(route.multiplier):
        return "multipliers differ from image to image, and this kernel takes one a block for the whole batch"
    return None


def differs(table: Tensor) -> bool:
    """Whether gates or multipliers, [blocks] or [batch, blocks], are not the same for every image."""
    return table.dim() == 2 and (len(table) == 0 or bool((table != table[:1]).any()))
