"""Bytes that the programs of a launch request: each tap and each tile of activations, masks and weights.

A cache absorbs most of them; docs/gpu-kernels.md compares them with the unique bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Geometry(NamedTuple):
    """A convolution of side x side taps with padding side // 2."""

    images: int
    height: int  # of its input
    width: int
    inputs: int
    outputs: int
    stride: int
    side: int = 3
    groups: int = 1  # of channels that convolve among themselves

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
        return self.images * self._pairs(self.height) * self._pairs(self.width)

    @property
    def weights(self) -> int:
        return self.side**2 * self.inputs * self.outputs // self.groups

    def _pairs(self, length: int) -> int:
        places, reach = range(0, length, self.stride), self.side // 2
        return sum(0 <= place + tap < length for place in places for tap in range(-reach, reach + 1))


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
