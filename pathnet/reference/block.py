"""The meaning of a gated residual block: act(h(x) + s f(x)), in plain PyTorch, any dtype, float64 included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathnet.gates import Gate
from pathnet.reference.layers import Flow, Layer, Relu, Rows, run_layers


class Block(NamedTuple):
    """A residual block as values: the layers of f and h (empty: the identity), and act (None: nothing).

    `recompute`: kernels that can keep less for the backward and compute it anew do so; the values are the same.
    """

    residual: tuple[Layer, ...]
    shortcut: tuple[Layer, ...]
    act: Relu | nn.Module | None
    recompute: bool = False


class Step(NamedTuple):
    """What one block does in one forward."""

    gate: Gate | Tensor = Gate.FULL  # one for the batch, or int8 [batch] on the CPU
    multiplier: float | Tensor = 1.0  # s: one for the batch, or [batch] on the CPU
    update: bool = True  # whether running statistics move: not on recomputation
    mask_rows: bool = False  # bn="all": OFF rows compute too and their f is multiplied by zero


RESIDUAL_FLOW = {
    Gate.FULL: Flow.TRAIN,
    Gate.RESIDUAL: Flow.TRAIN,
    Gate.FROZEN: Flow.INPUT,
    Gate.FORWARD: Flow.NONE,
}  # an OFF block does not run f at all
SHORTCUT_FLOW = {
    Gate.OFF: Flow.TRAIN,
    Gate.FULL: Flow.TRAIN,
    Gate.FORWARD: Flow.TRAIN,
    Gate.FROZEN: Flow.INPUT,
    Gate.RESIDUAL: Flow.NONE,
}


def host_steps(gates: Tensor, multiplier: Tensor, update: bool, mask_rows: bool) -> list[Step]:
    """Read gates and multipliers [blocks] or [batch, blocks] on the host, a step a block."""
    gate_of: Sequence[Gate | Tensor] = list(gates.unbind(1)) if gates.dim() == 2 else [Gate(g) for g in gates.tolist()]
    factor_of = list(multiplier.unbind(1)) if multiplier.dim() == 2 else multiplier.tolist()
    return [Step(gate, factor, update, mask_rows) for gate, factor in zip(gate_of, factor_of, strict=True)]


def block(x: Tensor, spec: Block, step: Step) -> Tensor:
    """One gated block, x [N, C, H, W] -> [N, C', H', W']."""
    step = masked(step)
    gates = step.gate
    if not isinstance(gates, Tensor):
        return _whole_batch(x, spec, step, gates)
    present = [Gate(g) for g in torch.unique(gates).tolist()]
    if len(present) < 2:  # no image, no gate: then nothing runs
        return _whole_batch(x, spec, step, present[0] if present else Gate.OFF)
    return _rows(x, spec, step, {gate: torch.nonzero(gates == gate).flatten() for gate in present})


def _whole_batch(x: Tensor, spec: Block, step: Step, gate: Gate) -> Tensor:
    skip = _shortcut(spec, [(x, gate)], step.update)[0]
    if gate is Gate.OFF:
        return activated(spec, skip) if spec.shortcut else skip
    residual = run_layers(spec.residual, [Rows(x, RESIDUAL_FLOW[gate])], _moves([gate], step))[0]
    return _merge(spec, skip, residual, step.multiplier)


def _rows(x: Tensor, spec: Block, step: Step, index: dict[Gate, Tensor]) -> Tensor:
    """Rows of one gate stay together; f never sees an OFF row; the rows return to their places at the end."""
    present = list(index)
    groups = [(x.index_select(0, index[gate].to(x.device)), gate) for gate in present]
    skips = dict(zip(present, _shortcut(spec, groups, step.update), strict=True))
    running = [(rows, gate) for rows, gate in groups if gate is not Gate.OFF]
    parts = [Rows(rows, RESIDUAL_FLOW[gate]) for rows, gate in running]
    residuals = run_layers(spec.residual, parts, _moves(present, step))
    outputs = dict(skips)
    if Gate.OFF in outputs and spec.shortcut:
        outputs[Gate.OFF] = activated(spec, outputs[Gate.OFF])
    for (_, gate), residual in zip(running, residuals, strict=True):
        s = step.multiplier
        s = s.index_select(0, index[gate]) if isinstance(s, Tensor) else s
        outputs[gate] = _merge(spec, skips[gate], residual, s)
    places = torch.cat([index[gate] for gate in present]).argsort().to(x.device)
    return torch.cat([outputs[gate] for gate in present]).index_select(0, places)


def masked(step: Step) -> Step:
    """The step with FULL in place of OFF and a multiplier of zero there, where OFF rows of a gate an image compute."""
    if not step.mask_rows or not isinstance(step.gate, Tensor):
        return step
    on, factor = step.gate != Gate.OFF, torch.as_tensor(step.multiplier, dtype=torch.float64)
    return step._replace(gate=torch.where(on, step.gate, int(Gate.FULL)), multiplier=factor * on)


def _moves(present: list[Gate], step: Step) -> bool:
    """Running statistics of f move once, and not for a FROZEN block."""
    return step.update and any(gate not in (Gate.OFF, Gate.FROZEN) for gate in present)


def _shortcut(spec: Block, groups: list[tuple[Tensor, Gate]], update: bool) -> list[Tensor]:
    return run_layers(spec.shortcut, [Rows(x, SHORTCUT_FLOW[gate]) for x, gate in groups], update)


def _merge(spec: Block, skip: Tensor, residual: Tensor, multiplier: float | Tensor) -> Tensor:
    if isinstance(multiplier, Tensor):
        residual = residual * multiplier.to(residual).view(-1, 1, 1, 1)
    elif multiplier != 1.0:
        residual = residual * multiplier
    return activated(spec, residual + skip)


def activated(spec: Block, z: Tensor) -> Tensor:
    if spec.act is None:
        return z
    return spec.act(z) if isinstance(spec.act, nn.Module) else F.relu(z, spec.act.inplace)
