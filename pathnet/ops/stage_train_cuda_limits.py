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


def threads(channels: int) -> int:
    """Of a thread block: Warps in csrc/cuda/stage_train_band.cuh."""
    return 512 if channels == 64 else 256


def shared_bytes(dtype: torch.dtype, channels: int, height: int, width: int) -> int:
    """Of a thread block of the merged backward, which needs the most: weights, vectors, two tiles and one band."""
    rows, pixel = band_rows(channels, height, width), channels * dtype.itemsize
    tiles = 2 * _tile_bytes(dtype, channels, height, width) + rows * width * pixel
    weights = {16: 9216, 32: 36864, 64: 0}[channels]
    return 9 * channels * pixel + 6 * channels * 4 + arrival_bytes(channels) + max(tiles, weights)


def forward_bytes(dtype: torch.dtype, channels: int, height: int, width: int) -> int:
    """Of a thread block of the forward: weights, two vectors, and a tile or sums of three floats."""
    tile = _tile_bytes(dtype, channels, height, width)
    return 9 * channels**2 * dtype.itemsize + 2 * channels * 4 + max(tile, statistics_bytes(channels))


def arrival_bytes(channels: int) -> int:
    """Of a thread block that takes the gradient coming to a run: four vectors, and sums of two floats."""
    return 4 * channels * 4 + _sums_bytes(channels, 2)


def statistics_bytes(channels: int) -> int:
    """Of a thread block that forms the statistics of a value: sums of three floats."""
    return _sums_bytes(channels, 3)


def _tile_bytes(dtype: torch.dtype, channels: int, height: int, width: int) -> int:
    return (band_rows(channels, height, width) + 2) * (width + 2) * channels * dtype.itemsize


def _sums_bytes(channels: int, floats: int) -> int:
    """SumRows in csrc/cuda/stage_train_sums.cuh: a row for each part of the slots, and a flag."""
    return threads(channels) * floats * 4 + 16


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
