"""The vendor's convolutions, cuDNN's on a GPU, and what they and PyTorch's copies around them read and write."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from pathnet.kernels.launch import note
from pathnet.kernels.traffic import Geometry

_convolution = torch.ops.aten.convolution.default
_backward = torch.ops.aten.convolution_backward.default


def cast_weights(weights: Sequence[Tensor], places: Collection[int], dtype: torch.dtype) -> Sequence[Tensor]:
    """The weights, those at `places` in the dtype that the vendor's products take."""
    others = [place for place in sorted(places) if weights[place].dtype != dtype]
    if not others:
        return weights
    fresh = {place: torch.empty_like(weights[place], dtype=dtype) for place in others}
    copy_all("cast of weights", list(fresh.values()), [weights[place] for place in others])
    return [fresh.get(place, weight) for place, weight in enumerate(weights)]


def vendor_convolution(name: str, geometry: Geometry, x: Tensor, weight: Tensor) -> Tensor:
    """conv(x), in channels_last as x is."""
    u = _channels_last(_convolution(x, weight, None, *_settings(geometry)))
    note(name, {"x": x, "weight": weight}, {"u": u})
    return u


def vendor_data_gradient(name: str, geometry: Geometry, g: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """The gradient of the input, whose shape `like` tells: nobody reads it."""
    found, _, _ = _backward(g, like, weight, None, *_settings(geometry), [True, False, False])
    found = _channels_last(found)
    note(name, {"g": g, "weight": weight}, {"g_in": found})
    return found


def vendor_weight_gradient(
    name: str, geometry: Geometry, g: Tensor, x: Tensor, weight: Tensor, scale: float = 1.0
) -> Tensor:
    """The gradient of the weight where g is that of scale conv(x), in the dtype of x."""
    shape = torch.empty_like(weight, dtype=x.dtype)
    _, found, _ = _backward(g, x, shape, None, *_settings(geometry), [False, True, False])
    note(name, {"g": g, "x": x}, {"gradient": found})
    if scale != 1.0:
        found.mul_(scale)
        note("scale of a weight gradient", {"gradient": found}, {"gradient": found})
    return found


def copy_all(name: str, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """targets = sources, in the dtypes of the targets."""
    torch._foreach_copy_(targets, sources)
    note(name, dict(_numbered("source", sources)), dict(_numbered("target", targets)))


def _numbered(word: str, tensors: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"{word}{index}", tensor) for index, tensor in enumerate(tensors)]


def _settings(geometry: Geometry) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
    """Stride, padding, dilation, whether transposed, output padding and groups."""
    return [geometry.stride] * 2, [geometry.side // 2] * 2, [1, 1], False, [0, 0], geometry.groups


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
