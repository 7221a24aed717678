"""From what a caller says (paths=, net.paths, train or eval) to the route of one forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pathnet.gates import Paths
from pathnet.models.draws import recomputing
from pathnet.ops.draw import draw
from pathnet.route import Route
from pathnet.samplers import Sampler

if TYPE_CHECKING:
    from pathnet.models import PathNet
    from pathnet.models.path_resnet import PathResNet


def resolve(net: PathNet, x: Tensor, paths: Paths | None) -> tuple[Route | None, tuple[int, ...] | None]:
    """The route of this forward and the order of its blocks; None for all FULL and for the net's own order.

    An explicit `paths` replaces the draw; in evaluation the sampler's rule still multiplies s, unless paths are raw.
    """
    if paths is not None and not isinstance(paths, Paths):
        raise TypeError(f"paths must be a pathnet.Paths, got {type(paths).__name__}; samplers go to net.paths")
    sampler = net.paths if isinstance(net.paths, Sampler) else None
    fixed = paths if paths is not None else net.paths if isinstance(net.paths, Paths) else None
    update = not recomputing()
    if fixed is None and sampler is not None and net.training:
        return _drawn(net, x, sampler, update), None  # type: ignore[arg-type]  # only residual nets take samplers
    rule = sampler.test_multiplier(net.num_blocks) if sampler is not None and not net.training else None
    if fixed is None:
        return _plain(net, rule, update), None
    fixed.check(net.num_blocks, len(x))
    _check_order(net, fixed.order)
    route = _route(net, fixed, update)
    if rule is not None and not fixed.raw:
        route = route._replace(multiplier=route.multiplier * torch.tensor(rule, dtype=torch.float64))
    return route, fixed.order


def _plain(net: PathNet, rule: list[float] | None, update: bool) -> Route | None:
    """Every block FULL: no route at all, unless a sampler's rule multiplies or a recomputation must move nothing."""
    if rule is None and update:
        return None
    factor = torch.tensor(rule or [1.0] * net.num_blocks, dtype=torch.float64)
    return Route(torch.ones(net.num_blocks, dtype=torch.int8), factor, None, update)


def _drawn(net: PathResNet, x: Tensor, sampler: Sampler, update: bool) -> Route:
    if torch.compiler.is_compiling():
        route = draw(net._draws.step, net._sampler_text, len(x), net.num_blocks)
        return route._replace(mask_rows=net.row_statistics == "all")
    return _route(net, net._draws.next(sampler, x, net.num_blocks), update)


def _route(net: PathNet, paths: Paths, update: bool) -> Route:
    factor = torch.ones(paths.num_blocks, dtype=torch.float64) if paths.multiplier is None else paths.multiplier
    return Route(paths.gates, factor, paths.present, update, net.row_statistics == "all", paths.live)


def _check_order(net: PathNet, order: tuple[int, ...] | None) -> None:
    if order is None:
        return
    group_of = {block: i for i, group in enumerate(net.swappable()) for block in group}
    for position, block in enumerate(order):
        if group_of[block] != group_of[position]:
            raise ValueError(
                f"order may only exchange blocks of equal shape, but puts block {block} at position {position}, where "
                "the shape differs; exchange blocks inside one group of net.swappable()"
            )


def check_paths(paths: object, blocks: int) -> None:
    """Raise unless `paths` may be a net's `paths`."""
    if isinstance(paths, Sampler):
        paths.check(blocks)
    elif isinstance(paths, Paths):
        paths.check(blocks, paths.gates.shape[0] if paths.gates.dim() == 2 else 0)
    elif paths is not None:
        raise TypeError(f"paths must be a Paths, a sampler or None, got {type(paths).__name__}")


def check_images(x: Tensor, net: PathNet) -> None:
    """Raise TypeError or ValueError, in a sentence, where x cannot be a batch of images for this net."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must hold floating-point images, got {kind}; convert them, for instance x.float() / 255")
    if x.dim() != 4 or x.shape[1] != net.in_channels:
        raise ValueError(f"x must have the shape [N, {net.in_channels}, H, W], got {list(x.shape)}")
    smallest = net.smallest_image
    if min(x.shape[2:]) < smallest:
        raise ValueError(
            f"x must hold images of at least {smallest}x{smallest} pixels, since the net halves them on its way, "
            f"got {x.shape[2]}x{x.shape[3]}"
        )
    if net.training and len(x) == 0:
        raise ValueError("x must hold at least one image in training, got none; skip empty batches")
    if x.device != net.conv1.weight.device:
        raise ValueError(
            f"x and the net must be on one device, got x on {x.device} and the net on {net.conv1.weight.device}; "
            "move one with .to(device)"
        )
