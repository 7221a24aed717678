"""What the CUDA kernels of training need: shared memory, and thread blocks of a merged backward."""

from __future__ import annotations

import torch

from pathnet.ops.net_eval_limits import SHARED_KIB

CHANNELS = (16, 32, 64)
BAND_PIXELS = {16: 256, 32: 256, 64: 128}  # batch_of in csrc/cuda/stage_train_run.cuh
MOST_BLOCKS = 256  # kMostBlocks there
LEAST_BLOCKS = 64  # thread blocks of a merged backward: with fewer most of a large GPU stands still
LEAST_ROWS = 5  # of a band that is not a whole image: with fewer, its halo is more than 1.3 times the bytes


def band_rows(channels: int, height: int, width: int) -> int:
    """Rows of a band, the part of an image that a thread block holds in shared memory."""
    return min(max(BAND_PIXELS[channels] // width, 1), height)


def weight_slots(dtype: torch.dtype, images: int, channels: int, height: int, width: int) -> int:
    """Thread blocks of a merged backward: each writes a slot, and the slots of a convolution may take half of T."""
    items = images * -(-height // band_rows(channels, height, width))
    affordable = images * height * width * dtype.itemsize // (2 * 9 * channels * 4)
    return min(affordable, items, MOST_BLOCKS)


def shared_bytes(dtype: torch.dtype, channels: int, height: int, width: int) -> int:
    """Of a thread block of the merged backward, which needs the most: weights, vectors, two tiles and one band."""
    rows, pixel = band_rows(channels, height, width), channels * dtype.itemsize
    tiles = (2 * (rows + 2) * (width + 2) + rows * width) * pixel
    sums, weights = {16: 2048, 32: 2048, 64: 4096}[channels] + 16, {16: 9216, 32: 36864, 64: 0}[channels]
    return 9 * channels * pixel + 10 * channels * 4 + sums + max(tiles, weights)


def unfit_size(dtype: torch.dtype, images: int, channels: int, height: int, width: int) -> str | None:
    """Channels, rows and slots that the kernels do not take, in a sentence; None if they take them."""
    if channels not in CHANNELS:
        return f"a block has {channels} channels, and these kernels take {', '.join(map(str, CHANNELS))}"
    if band_rows(channels, height, width) < min(LEAST_ROWS, height):
        most = BAND_PIXELS[channels] // LEAST_ROWS
        return f"images of {channels} channels are {width} pixels wide, and this kernel takes at most {most}"
    if weight_slots(dtype, images, channels, height, width) < 1:
        return f"the partial sums of weights of {channels} channels would take more than half of an activation"
    return None


def missing_memory(
    capability: tuple[int, int], dtype: torch.dtype, channels: int, height: int, width: int
) -> str | None:
    """How many KiB a GPU lacks, in a sentence; None if it has enough."""
    known = [chip for chip in SHARED_KIB if chip <= capability]
    has, needs = SHARED_KIB[max(known)] if known else 0, shared_bytes(dtype, channels, height, width)
    if needs <= has << 10:
        return None
    return (
        f"training {channels} channels of {height}x{width} images in {dtype} needs {needs / 1024:.1f} KiB of shared"
        f" memory a thread block, and this GPU gives {has}"
    )
