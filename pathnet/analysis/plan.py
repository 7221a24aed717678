"""From lesions to logits: which blocks of a net run, in which order, from which activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from pathnet.analysis.masks import masks_of
from pathnet.analysis.prefixes import Operation, Run, Sequenced, shared_runs, slots
from pathnet.blocks import Stage
from pathnet.blocks.describe import has_hooks
from pathnet.blocks.stage import fusable_spec
from pathnet.gates import Gate, Paths
from pathnet.models import PathNet, PathResNet, PathVGG
from pathnet.models.resolve import resolve
from pathnet.models.whole import in_one_launch
from pathnet.route import Route


class Plan:
    """How the logits of every entry come about: all in one launch where the kernel of the whole net takes them, else by
    shared runs, or where a user's hooks watch the net, one by one."""

    def __init__(self, net: PathNet, entries: Sequence[Paths | None]) -> None:
        self.net, self.entries = net, entries
        self.fusable = [fusable_spec(block) for block in net.blocks]
        absent = [spec is not None and not spec.shortcut for spec in self.fusable]  # an identity no hook watches
        self.routes: list[Route] = []
        self.orders: list[tuple[int, ...] | None] = []
        self.sequences = []
        for entry in entries:
            route, order, sequence = _sequence(net, entry, absent)
            self.routes.append(route)
            self.orders.append(order)
            self.sequences.append(sequence)
        self.runs = shared_runs(self.sequences) if _runs_in_pieces(net) else None

    @property
    def kept(self) -> int:
        """Activations that live at a time, the input and the output of the running block among them."""
        return 2 if self.runs is None else slots(self.runs) + 2

    def logits(self, x: Tensor) -> Iterator[tuple[Sequence[int], Tensor]]:
        """The entries that have these logits `[N, classes]`, for images x `[N, C, H, W]`."""
        if self.runs is None:
            yield from (([index], self.net(x, paths=entry)) for index, entry in enumerate(self.entries))
            return
        whole = in_one_launch(self.net, x) if isinstance(self.net, PathResNet) and self.entries else None
        if whole is not None:
            masks = masks_of(self.routes, self.orders, self.sequences)
            yield from zip(masks.ending, masks.logits(x, whole), strict=True)
            return
        held: list[Tensor] = [self.net.stem(x)] * slots(self.runs)
        for run in self.runs:
            held[run.target] = self._after(run, held[run.source])
            if run.ending:
                yield run.ending, self.net.head(held[run.target])

    def _after(self, run: Run, x: Tensor) -> Tensor:
        order = [operation.block for operation in run.operations]
        if order and self.fusable[order[0]] is None:
            x = x.clone()  # a user's module may work in place, and others start from x too
        return self.net.through(x, order, self.routes[run.guide])


def _sequence(
    net: PathNet, entry: Paths | None, absent: Sequence[bool]
) -> tuple[Route, tuple[int, ...] | None, Sequenced]:
    """Route and order of `entry`, and what it does, block after block; an `absent` block does nothing when deleted."""
    asked = net.paths if entry is None else entry
    if isinstance(asked, Paths) and asked.per_sample:
        raise ValueError(
            "paths must hold one gate and one multiplier for each block, but an entry holds one for each image; "
            "call net(x, paths=...) for those"
        )
    route, order = resolve(net, torch.empty(0), entry)
    if route is None:
        route = Route(torch.ones(net.num_blocks, dtype=torch.int8), torch.ones(net.num_blocks, dtype=torch.float64))
    gates, multipliers = route.gates.tolist(), route.multiplier.tolist()
    operations = []
    for block in range(net.num_blocks) if order is None else order:
        on = gates[block] != Gate.OFF
        if on or not absent[block]:
            operations.append(Operation(block, on, multipliers[block] if on else 1.0))
    return route, order, tuple(operations)


def _runs_in_pieces(net: PathNet) -> bool:
    """Whether stem, blocks and head, called one after the other, are what a call of the net is."""
    parts: list[nn.Module] = [net, *net.stages]
    watched = _has_any_global_hook() or any(has_hooks(part) or "forward" in vars(part) for part in parts)
    plain = type(net).forward in (PathResNet.forward, PathVGG.forward) and all(
        type(stage).forward in (Stage.forward, nn.Sequential.forward) for stage in net.stages
    )
    return plain and not watched
