"""The stem and all blocks of a net as one chain, for the one call that runs them on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pathnet.backend import forced, refusal
from pathnet.blocks.snapshot import Snapshot
from pathnet.blocks.stem import cifar_stem
from pathnet.models.whole import is_overridden, stage_values
from pathnet.ops.eval_blocks import Chain, known
from pathnet.ops.stage_eval import LOSES, SUPPORTS, stage_eval_cpu
from pathnet.route import Route

if TYPE_CHECKING:
    from pathnet.models.path_resnet import PathResNet


def in_one_chain(net: PathResNet, x: Tensor, route: Route | None) -> Chain | None:
    """The stem and blocks of `net` where `run_chain` takes x through them, else None: they then run stage by stage."""
    trains = net.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
    elsewhere = x.device.type != "cpu" or forced() not in (None, "cpu") or (route is not None and route.live)
    if trains or elsewhere or net.maxpool is not None or is_overridden(net, ("stem", "through")):
        return None
    if any(stage.precision for stage in net.stages):  # which the stem does not have
        return None
    chain = _chain_of(net)
    return (
        chain if chain is not None and refusal("stage_eval", "cpu", SUPPORTS, x, chain, loses=LOSES) is None else None
    )


def run_chain(x: Tensor, chain: Chain, route: Route | None, order: Sequence[int] | None) -> Tensor:
    """What `net.through(net.stem(x), order, route)` gives; `route` has a column for every block of the net."""
    if route is None:
        return stage_eval_cpu(x, chain)
    places = range(len(chain) - 1) if order is None else order
    return stage_eval_cpu(x, [chain[0], *(chain[1 + place] for place in places)], _behind_stem(route.at(places)))


def _behind_stem(route: Route) -> Route:
    """`route` with a column in front."""
    gates, multiplier = (torch.cat([table[..., :1], table], -1) for table in (route.gates, route.multiplier))
    return route._replace(gates=gates, multiplier=multiplier, present=None)


class _Described(NamedTuple):
    parts: list[nn.Module | None]
    snapshot: Snapshot
    chain: Chain | None


_described: WeakKeyDictionary[PathResNet, _Described] = WeakKeyDictionary()


def _chain_of(net: PathResNet) -> Chain | None:
    """None where a part of the net is not what its class says, or is called by somebody's own code."""
    parts: list[nn.Module | None] = [net.conv1, net.bn1, net.relu, *net.stages]
    kept = _described.get(net)
    if kept is None or kept.parts != parts or not kept.snapshot.holds():
        snapshot = Snapshot(filter(None, parts))  # first: what changes meanwhile is found by the next call
        kept = _Described(parts, snapshot, _describe(net))
        _described[net] = kept
    return kept.chain


def _describe(net: PathResNet) -> Chain | None:
    stages = [stage_values(stage) for stage in net.stages]
    if None in stages:
        return None
    stem = cifar_stem(net.conv1, net.bn1, None if net.bn1 is None else net.relu)
    return Chain(known(block) for stage in [(stem,), *stages] for block in stage)  # type: ignore[union-attr]  # no None
