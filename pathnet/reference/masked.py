"""A block whose gate is a number on the device, in plain PyTorch: all of it runs, and nobody waits for the gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathnet.gates import Gate
from pathnet.reference.block import Block, activated
from pathnet.reference.layers import Flow, Layer, Norm, Rows, run_layers


def masked_block(x: Tensor, spec: Block, gate: Tensor, multiplier: float, update: bool) -> Tensor:
    """act(h(x) + s f(x)), x [N, C, H, W], gate int8 []: OFF, FULL or FORWARD.

    What the gate shuts is computed, and then left out: of the value, of running statistics, and of the gradient, where
    parameters of f get zeros. Raises ValueError if a child runs as the module it is.
    """
    if any(isinstance(layer, nn.Module) for layer in (*spec.residual, *spec.shortcut, spec.act)):
        raise ValueError(
            "gates on the device need blocks of plain convolutions, batch norms and ReLUs, but a child was hooked or "
            "swapped; use Paths(gates), whose gates the host knows"
        )
    runs, trains = gate != Gate.OFF, gate == Gate.FULL
    skip = run_layers(spec.shortcut, [Rows(x, Flow.TRAIN)], update)[0]
    residual = multiplier * _residual(x, spec, runs, update)
    residual = torch.where(trains, residual, residual.detach())
    if spec.shortcut:
        return activated(spec, skip + torch.where(runs, residual, 0.0))
    return torch.where(runs, activated(spec, skip + residual), x)


def _residual(x: Tensor, spec: Block, runs: Tensor, update: bool) -> Tensor:
    """f(x); its running statistics move where `runs`."""
    layers = [_apart(layer) for layer in spec.residual]
    residual = run_layers(layers, [Rows(x, Flow.TRAIN)], update)[0]
    with torch.no_grad():
        for old, new in zip(spec.residual, layers, strict=True):
            if update and isinstance(old, Norm) and isinstance(new, Norm) and old.batch_stats:
                for own, moved in zip(_moving(old), _moving(new), strict=True):
                    own.copy_(torch.where(runs, moved, own))
    return residual


def _apart(layer: Layer) -> Layer:
    """The layer, whose running statistics are copies: those that move are saved for the backward."""
    if not isinstance(layer, Norm) or not layer.batch_stats or layer.running_mean is None:
        return layer
    mean, var, count = (tensor.clone() for tensor in _moving(layer))
    return layer._replace(running_mean=mean, running_var=var, num_batches_tracked=count)


def _moving(norm: Norm) -> list[Tensor]:
    return [t for t in (norm.running_mean, norm.running_var, norm.num_batches_tracked) if t is not None]
