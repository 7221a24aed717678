"""What bounds `net_eval`: its threads bound the pixels of a stage, shared memory the bytes of one image. One place."""

from __future__ import annotations

import torch

from pathnet.machine_code import CHIPS

MOST_PIXELS = {
    16: (1024, 256, 64),
    32: (1024, 256, 64),
}  # channels of the first stage -> pixels of the three: the forms of csrc/cuda/net_eval_forms.cuh
IMAGE_CHANNELS = 16  # at most, and as many stand in shared memory
RING = 24 << 10  # weights on their way: kRingBytes
POOLING = 1536  # bytes of the last step, at most
SHARED_KIB = {
    divmod(arch, 10): chip.shared_kib - 1 for arch, chip in CHIPS.items()
}  # that one thread block may have, by compute capability


def shared_bytes(dtype: torch.dtype, height: int, width: int, channels: int = 16) -> int:
    """Shared memory of one thread block: the ring of weights, and the largest tile of a stage with its halo.

    channels: of the first stage.
    """
    tiles = []
    for _ in range(3):
        tiles.append((height + 2) * (width + 2) * channels * dtype.itemsize)
        height, width, channels = -(-height // 2), -(-width // 2), channels * 2
    return RING + max(*tiles, POOLING)


def unfit_image(height: int, width: int, channels: int) -> str | None:
    """Why images of this size are too large for the threads, in a sentence; channels: of the first stage."""
    for stage, most in enumerate(MOST_PIXELS[channels]):
        if height * width > most:
            return (
                f"stage {stage + 1} has {height}x{width} = {height * width} pixels, and this kernel's threads hold at "
                f"most {most} there"
            )
        height, width = -(-height // 2), -(-width // 2)
    return None


def missing_memory(
    capability: tuple[int, int], dtype: torch.dtype, height: int, width: int, channels: int = 16
) -> str | None:
    """Which KiB of shared memory are missing on a chip of this compute capability, in a sentence."""
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]} has no asynchronous copies; this kernel needs 8.0"
    there = SHARED_KIB.get(capability, min(SHARED_KIB.values()))
    need = shared_bytes(dtype, height, width, channels) / 1024
    if need <= there:
        return None
    return (
        f"an image of {height}x{width} with {channels} channels in {dtype} needs {need:.1f} KiB of shared memory, and "
        f"compute capability {capability[0]}.{capability[1]} gives a thread block {there} KiB: "
        f"{need - there:.1f} KiB are missing"
    )
