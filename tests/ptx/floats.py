"""Floating point as PTX rounds it, on bits: what NumPy has no word for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint32]


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(value: NDArray[np.float32]) -> NDArray[np.uint16]:
    """To the nearest, ties to even; every NaN becomes 0x7fff."""
    bits = value.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(value), 0x7FFF, rounded).astype(np.uint16)


def to_f16(value: NDArray[np.float32]) -> NDArray[np.uint16]:
    """To the nearest, ties to even; every NaN becomes 0x7fff."""
    return np.where(np.isnan(value), 0x7FFF, value.astype(np.float16).view(np.uint16)).astype(np.uint16)


def to_tf32(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """cvt.rna: to the nearest of 10 bits of mantissa, ties away from zero."""
    bits = value.view(np.uint32)
    rounded = (bits + 0x1000) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(value), rounded, bits).astype(np.uint32).view(np.float32)


def flush(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """.ftz: subnormal numbers become zeros of their sign."""
    return np.where(np.abs(value) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), value), value)


def fma(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]) -> NDArray[np.float32]:
    """a b + c rounded once: the product is exact in float64, and its sum with c is made such that a second rounding
    does no harm."""
    product = a.astype(np.float64) * b
    total = product + c
    doubtful = (total.view(np.uint64) & 0x1FFFFFFF) == 0x10000000  # half way between two float32
    if doubtful.any() or (np.abs(total) < np.finfo(np.float32).tiny).any():
        total = _to_odd(product, c.astype(np.float64), total)
    return total.astype(np.float32)


def _to_odd(a: NDArray[np.float64], b: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """a + b rounded to odd where it is not exact (Boldo and Melquiond 2008)."""
    moved = total - a
    rest = (a - (total - moved)) + (b - moved)  # what rounding left (Knuth's two-sum)
    changes = (rest != 0) & np.isfinite(rest) & ((total.view(np.uint64) & 1) == 0)
    return np.where(changes, np.nextafter(total, np.copysign(np.inf, rest)), total)
