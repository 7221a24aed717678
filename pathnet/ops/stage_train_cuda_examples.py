"""An example of each launch of stage_train on CUDA: 128 images of a CIFAR stage, as pathnet.ops.cuda_examples has them.

Structs stand inside structs there; here their fields have the names that C++ gives them, such as batch.images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from pathnet.machine_code.parameters import null, output, pointer, scalar, struct
from pathnet.ops import stage_train_cuda_limits as limits
from pathnet.ops.stage_train_cuda_limits import MOST_BLOCKS, band_rows, weight_slots

IMAGES, EIGHTS_OF_BLOCK = 128, 256
SIDES = {16: 32, 32: 16, 64: 8}
MERGE, NEW_BITS = 2, 1  # Prologue and Bits of csrc/cuda/stage_train_fwd.cuh
NORMED, BITS = 1, 3  # Mask of csrc/cuda/stage_train_epilogue.cuh
Fields = list[dict[str, Any]]


class Launched(NamedTuple):
    """A launch: thread blocks of so many threads, their dynamic shared memory, and what they get."""

    blocks: int
    threads: int
    shared: int
    parameters: Callable[[], Fields]


def forward(dtype: torch.dtype, channels: int) -> Launched:
    """ForwardPlan: a block's first convolution, which merges what the block before it has left."""

    def parameters() -> Fields:
        fields = [
            *_batch(channels), scalar("prologue", "i32", MERGE), pointer("x", _stream(dtype, channels)),
            pointer("u", _stream(dtype, channels)), pointer("state", _state(channels)),
            output("merged", _stream(dtype, channels)), output("bits", _bits(channels)),
            scalar("join", "i32", NEW_BITS), *_weights(dtype, channels, by_k=9, by_n=9 * channels),
            null("skip"), scalar("scale", "fp32", 0.0), output("out", _stream(dtype, channels)), *_norm(channels),
            output("state_out", _state(channels)), output("slots", _floats(MOST_BLOCKS, channels, 3)),
            _counter("counter"),
        ]  # fmt: skip
        return [struct("plan", "ForwardPlan", fields)]

    side = SIDES[channels]
    return Launched(
        _blocks(channels), limits.threads(channels), limits.forward_bytes(dtype, channels, side, side), parameters
    )


def backward(dtype: torch.dtype, channels: int, of_sum: bool) -> Launched:
    """BackwardPlan: a block's second convolution, behind which a norm stands or the sum with the skip; the weight's
    taps lie backwards."""

    def parameters() -> Fields:
        stream = _stream(dtype, channels)
        fields = [
            *_batch(channels), pointer("g", stream), pointer("u", stream), pointer("state", _state(channels)),
            pointer("slopes", _floats(2, channels)), *_sum(stream, of_sum), pointer("source", stream),
            pointer("source_state", _state(channels)), *_weights(dtype, channels, by_k=9 * channels, by_n=9),
            output("partial", _floats(slots, 9 * channels**2)), scalar("slot_size", "i64", 9 * channels**2),
            scalar("by_output", "i64", 9 * channels), scalar("by_input", "i64", 9), scalar("by_tap", "i64", 1),
            *_epilogue(dtype, channels, NORMED),
        ]  # fmt: skip
        return [struct("plan", "BackwardPlan", fields)]

    side = SIDES[channels]
    slots = weight_slots(dtype, IMAGES, channels, side, side)
    return Launched(slots, limits.threads(channels), limits.shared_bytes(dtype, channels, side, side), parameters)


def _sum(stream: torch.Tensor, of_sum: bool) -> Fields:
    """What a backward has where a sum follows the convolution, and no norm."""
    beside = [pointer("next", stream), output("entered", stream)] if of_sum else [null("next"), null("entered")]
    return [*beside, scalar("scale", "fp32", 1.0)]


def first_norm(dtype: torch.dtype, channels: int) -> Launched:
    """FirstNormPlan: the statistics of what a run of pre-activation blocks reads."""

    def parameters() -> Fields:
        fields = [
            pointer("x", _stream(dtype, channels)), scalar("pixels", "i64", IMAGES * SIDES[channels] ** 2),
            *_norm(channels), output("state", _state(channels)), output("slots", _floats(MOST_BLOCKS, channels, 3)),
            _counter("counter"),
        ]  # fmt: skip
        return [struct("plan", "FirstNormPlan", fields)]

    return Launched(MOST_BLOCKS, limits.threads(channels), limits.statistics_bytes(channels), parameters)


def arrive(dtype: torch.dtype, channels: int) -> Launched:
    """ArrivePlan: the gradient that comes to a run."""

    def parameters() -> Fields:
        pixels = scalar("pixels", "i64", IMAGES * SIDES[channels] ** 2)
        fields = [pointer("g", _stream(dtype, channels)), pixels, *_epilogue(dtype, channels, BITS)]
        return [struct("plan", "ArrivePlan", fields)]

    return Launched(MOST_BLOCKS, limits.threads(channels), limits.arrival_bytes(channels), parameters)


def merge(dtype: torch.dtype) -> Launched:
    """MergePlan: what a run of 16 channels puts out."""
    pixels = IMAGES * SIDES[16] ** 2

    def parameters() -> Fields:
        fields = [
            pointer("x", _stream(dtype, 16)), pointer("u", _stream(dtype, 16)), pointer("state", _state(16)),
            output("merged", _stream(dtype, 16)), output("bits", _bits(16)), scalar("join", "i32", NEW_BITS),
            scalar("pixels", "i64", pixels), scalar("channels", "i32", 16),
        ]  # fmt: skip
        return [struct("plan", "MergePlan", fields)]

    return Launched(pixels * 16 // 8 // EIGHTS_OF_BLOCK, EIGHTS_OF_BLOCK, 0, parameters)


def depart(dtype: torch.dtype) -> Launched:
    """DepartPlan: the gradient that leaves a run of 16 channels."""
    pixels, stream = IMAGES * SIDES[16] ** 2, _stream(dtype, 16)

    def parameters() -> Fields:
        fields = [
            pointer("g", stream), pointer("u", stream), pointer("state", _state(16)), pointer("slopes", _floats(2, 16)),
            pointer("next", stream), output("to", stream), scalar("pixels", "i64", pixels),
            scalar("channels", "i32", 16),
        ]  # fmt: skip
        return [struct("plan", "DepartPlan", fields)]

    return Launched(pixels * 16 // 8 // EIGHTS_OF_BLOCK, EIGHTS_OF_BLOCK, 0, parameters)


def sum_of_slots(dtype: torch.dtype) -> Launched:
    """SumPlan: the weight gradients of a block of 16 channels."""
    slots, size = weight_slots(dtype, IMAGES, 16, 32, 32), 2 * 9 * 16**2

    def parameters() -> Fields:
        fields = [
            pointer("partial", _floats(slots, size)), output("total", _meta(dtype, size)),
            scalar("slots", "i32", slots), scalar("size", "i64", size),
        ]  # fmt: skip
        return [struct("plan", "SumPlan", fields)]

    return Launched(size // EIGHTS_OF_BLOCK, EIGHTS_OF_BLOCK, 0, parameters)


def _blocks(channels: int) -> int:
    side = SIDES[channels]
    return min(IMAGES * -(-side // band_rows(channels, side, side)), MOST_BLOCKS)


# ---- memory, and structs inside structs ------------------------------------------------------------------------------


def _meta(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _floats(*shape: int) -> torch.Tensor:
    return _meta(torch.float32, *shape)


def _stream(dtype: torch.dtype, channels: int) -> torch.Tensor:
    return _meta(dtype, IMAGES, SIDES[channels], SIDES[channels], channels)


def _state(channels: int) -> torch.Tensor:
    return _floats(4, channels)


def _bits(channels: int) -> torch.Tensor:
    return _meta(torch.uint8, IMAGES * SIDES[channels] ** 2, channels // 8)


def _counter(name: str) -> dict[str, Any]:
    return pointer(name, _meta(torch.int32, 1), "zeros", True)


def _batch(channels: int) -> Fields:
    side = SIDES[channels]
    rows = band_rows(channels, side, side)
    sizes = {"images": IMAGES, "height": side, "width": side, "rows": rows, "bands": -(-side // rows)}
    return [scalar(f"batch.{name}", "i32", value) for name, value in sizes.items()]


def _weights(dtype: torch.dtype, channels: int, by_k: int, by_n: int) -> Fields:
    return [
        pointer("weights.first", _meta(dtype, channels, channels, 3, 3)), scalar("weights.is_float", "bool", 0),
        scalar("weights.by_k", "i64", by_k), scalar("weights.by_n", "i64", by_n), scalar("weights.by_tap", "i64", 1),
    ]  # fmt: skip


def _norm(channels: int) -> Fields:
    return [
        pointer("norm.weight", _floats(channels)), pointer("norm.bias", _floats(channels)),
        pointer("norm.running_mean", _floats(channels), written=True),
        pointer("norm.running_var", _floats(channels), written=True),
        pointer("norm.batches", _meta(torch.int64), written=True), scalar("norm.eps", "fp32", 1e-5),
        scalar("norm.momentum", "fp32", 0.1), scalar("norm.multiplier", "fp32", 1.0),
        scalar("norm.batch_stats", "bool", 1), scalar("norm.moves", "bool", 1),
    ]  # fmt: skip


def _epilogue(dtype: torch.dtype, channels: int, mask: int) -> Fields:
    """With no gradient of a skip; the norm before is by batch statistics."""
    bits = pointer("epilogue.bits", _bits(channels)) if mask == BITS else null("epilogue.bits")
    return [
        null("epilogue.skip"), scalar("epilogue.mask", "i32", mask), bits,
        pointer("epilogue.u", _stream(dtype, channels)), pointer("epilogue.state", _state(channels)),
        scalar("epilogue.multiplier", "fp32", 1.0), scalar("epilogue.batch_stats", "bool", 1),
        output("epilogue.g_in", _stream(dtype, channels)), output("epilogue.slopes", _floats(2, channels)),
        output("epilogue.gradients", _floats(2, channels)),
        output("epilogue.slots", _floats(MOST_BLOCKS, channels, 2)), _counter("epilogue.counter"),
    ]  # fmt: skip
