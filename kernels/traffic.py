"""Bytes that the programs of a launch request: each tap and each tile of activations, masks and weights.

A cache absorbs most of them; docs/gpu-kernels.md compares them with the unique bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Geometry(NamedTuple):
    """A 3x3 convolution with padding 1."""

    images: int
    height: int  # of its input
    width: int
    inputs: int
    outputs: int
    stride: int

    @property
    def rows(self) -> int:
        return -(-self.height // self.stride)

    @property
    def columns(self) -> int:
        return -(-self.width // self.stride)

    @property
    def pixels_in(self) -> int:
        return self.images * self.height * self.width

    @property
    def pixels_out(self) -> int:
        return self.images * self.rows * self.columns

    @property
    def pairs(self) -> int:
        """How many pairs of an output and an input pixel a tap joins."""
        return self.images * _pairs(self.height, self.stride) * _pairs(self.width, self.stride)


def _pairs(side: int, stride: int) -> int:
    return sum(0 <= place + tap < side for place in range(0, side, stride) for tap in (-1, 0, 1))


def requested(arguments: dict[str, Any], *once: str, **elements: int) -> dict[str, int]:
    """Argument name -> bytes: so many elements of some arguments, and each of `once` as it is; None is left out.

    Numbers a channel and slots of norms stand in `once`: programs read them again and again, but from registers.
    """
    counts = {name: t.numel() for name in once if (t := arguments[name]) is not None} | elements
    return {
        name: count * arguments[name].element_size()
        for name, count in counts.items()
        if count and arguments[name] is not None
    }
