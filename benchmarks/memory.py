"""Memory of a step: what is kept for the backward."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.cases import TRAINING, Case
from benchmarks.providers import CHANNELS_LAST, PATHNET, Provider, Shared
from pathnet import Gate, Paths

RUN = slice(1, 4)  # the three neighbours in stage 1 of ResNet-32 whose gates vary


def saved_bytes(step: Callable[[], object], module: nn.Module) -> int:
    """Return the bytes of the distinct storages that autograd keeps for the backward of one step.

    Parameters and buffers of the module are not counted: they exist anyway. Every storage is held until the
    end, so that no address can come back under another tensor.
    """
    owned = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in owned)


def kept_by_gates(block: str, batch: int = 4, size: int = 32) -> dict[str, dict[str, float]]:
    """Return, for plain PyTorch and for pathnet, what three neighbours of stage 1 under each gate keep together, in T.

    T is the bytes of one activation [batch, 16, size, size] in float32. The figure is the difference to the same net
    without the three blocks; all others are FULL. Plain PyTorch knows OFF, FULL and FORWARD alone.
    """
    shared = Shared.of(Case(32, block, TRAINING, batch, size))
    unit = batch * 16 * size * size * 4
    who = {
        CHANNELS_LAST: (shared.eager(), (Gate.OFF, Gate.FULL, Gate.FORWARD), list),
        PATHNET: (shared.pathnet(), tuple(Gate), Paths),
    }
    return {
        name: {gate.name: (_kept(provider, wrap, gate) - _kept(provider, wrap, None)) / unit for gate in gates}
        for name, (provider, gates, wrap) in who.items()
    }


def _kept(provider: Provider, wrap: Callable[[list[int]], object], gate: Gate | None) -> int:
    """Bytes that one step keeps with the blocks of `RUN` under `gate`, or without them."""
    net = copy.deepcopy(provider.net)
    gates = [Gate.FULL] * sum(len(layer) for layer in (net.layer1, net.layer2, net.layer3))
    if gate is None:
        del net.layer1[RUN], gates[RUN]
    else:
        gates[RUN] = [gate] * len(gates[RUN])
    return saved_bytes(lambda: net(provider.x, wrap([int(gate) for gate in gates])).sum().backward(), net)
