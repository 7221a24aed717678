"""What bounds `net_eval`: registers bound the pixels of a stage, shared memory the bytes of one image. One place."""

from __future__ import annotations

import torch

from pathnet.machine_code import CHIPS

MOST_PIXELS = (1024, 256, 64)  # of the three stages: Split<C>::kMostPixels in csrc/cuda/net_eval_tile.cuh
RING = 24 << 10  # weights on their way: kRingBytes
POOLING = 1280  # bytes of the last step
SHARED_KIB = {
    divmod(arch, 10): chip.shared_kib - 1 for arch, chip in CHIPS.items()
}  # that one thread block may have, by compute capability


def shared_bytes(dtype: torch.dtype, height: int, width: int) -> int:
    """Shared memory of one thread block: the ring of weights, and the largest tile of a stage with its halo."""
    tiles, channels = [], 16
    for _ in MOST_PIXELS:
        tiles.append((height + 2) * (width + 2) * channels * dtype.itemsize)
        height, width, channels = -(-height // 2), -(-width // 2), channels * 2
    return RING + max(*tiles, POOLING)


def unfit_image(height: int, width: int) -> str | None:
    """Why images of this size do not fit the registers, in a sentence."""
    for stage, most in enumerate(MOST_PIXELS):
        if height * width > most:
            return (
                f"stage {stage + 1} has {height}x{width} = {height * width} pixels, and this kernel holds at most "
                f"{most} there in registers"
            )
        height, width = -(-height // 2), -(-width // 2)
    return None


def missing_memory(capability: tuple[int, int], dtype: torch.dtype, height: int, width: int) -> str | None:
    """Which KiB of shared memory are missing on a chip of this compute capability, in a sentence."""
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]} has no asynchronous copies; this kernel needs 8.0"
    there = SHARED_KIB.get(capability, min(SHARED_KIB.values()))
    need = shared_bytes(dtype, height, width) / 1024
    if need <= there:
        return None
    return (
        f"an image of {height}x{width} in {dtype} needs {need:.1f} KiB of shared memory, and compute capability "
        f"{capability[0]}.{capability[1]} gives a thread block {there} KiB: {need - there:.1f} KiB are missing"
    )
