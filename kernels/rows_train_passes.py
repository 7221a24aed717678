"""The launches at the ends of a block whose gates differ from image to image; between them stand those of passes.py."""

from __future__ import annotations

from typing import NamedTuple

import triton
from torch import Tensor

from pathnet.kernels.launch import Launch
from pathnet.kernels.passes import Before, Behind, conv_arguments, product, wide
from pathnet.kernels.rows import Table, reads_rows, writes_rows
from pathnet.kernels.rows_train import arrive_rows, mask_rows, merge_rows, outer_rows
from pathnet.kernels.settings import STREAM_PIXELS, WARPS, conv_tile
from pathnet.kernels.traffic import Geometry, requested
from pathnet.kernels.workspace import Workspace


class Masks(NamedTuple):
    """Masks of one bit an element, and which are those of the listed images."""

    bits: Tensor  # uint8 [masks, pixels of an image, ceil(C / 8)]
    table: Table  # a mask an image; -1 - mask joins it

    def bytes_of(self, images: int) -> int:
        return images * self.bits[0].numel()


def merge_rows_pass(
    u: Tensor,
    state: Tensor,
    sources: Table,
    targets: Table,
    masks: Masks,
    joins: int,
    x: Tensor,
    y: Tensor,
    kept: Tensor,
) -> Launch:
    """The value of the block, relu(scale u + shift + x), of which `joins` images join their mask."""
    images, size = len(u), u[0, 0].numel()
    arguments = {
        "u": u, "state": state, "x_in": x, "rows": sources.rows, "y_out": y, "rows_out": targets.rows,
        "bits": masks.bits, "masks": masks.table.rows, "count": images * size, "size": size,
    }  # fmt: skip
    constants = {
        "CHANNELS": u.shape[1], "ALIGN": min(sources.align, targets.align), "JOINS": joins > 0, "WIDE": wide(u, kept),
        "BLOCK_M": STREAM_PIXELS, "BLOCK_K": 32,
    }  # fmt: skip
    reads = requested(arguments, "u", "state", "rows", "rows_out", "masks", x_in=u.numel(), bits=masks.bytes_of(joins))
    writes = requested(arguments, y_out=u.numel(), bits=masks.bytes_of(images))
    grid = (triton.cdiv(images * size, STREAM_PIXELS),)
    launch = Launch("rows: merge", merge_rows, grid, arguments, constants, WARPS, 1, reads, writes)
    launch = writes_rows(reads_rows(launch, sources, x_in=x, y=y, kept=kept), targets, y_out=y, kept_out=kept)
    return launch._replace(touched={**launch.touched, "bits": masks.bytes_of(images)})


def arrive_rows_pass(
    g: Tensor,
    grad_x: Tensor,
    arrivals: Table,
    masks: Masks,
    before: Before,
    values: int,
    g_in: Tensor,
    space: Workspace,
) -> Launch:
    """g_in: the gradient of the sum, from where it stands, with the sums of the last norm, of `values` a channel."""
    images, size, channels = len(g_in), g_in[0, 0].numel(), g_in.shape[1]
    arguments = {
        "g": g, "rows": arrivals.rows, "bits": masks.bits, "masks": masks.table.rows, "u_in": before.u, "g_in": g_in,
        "state_in": before.state, "slopes_in": before.slopes, "gradients_in": before.gradients, "slots": space.slots,
        "counter": space.counter, "multiplier": before.multiplier, "count": images * size, "size": size,
        "values": values,
    }  # fmt: skip
    block = min(64, max(16, triton.next_power_of_2(channels)))
    constants = {
        "IN": channels, "ALIGN": arrivals.align, "BATCH_STATS": before.batch_stats, "WIDE": wide(g, g_in),
        "BLOCK_M": STREAM_PIXELS, "BLOCK_N": block,
    }  # fmt: skip
    reads = requested(
        arguments, "rows", "masks", "u_in", "state_in", "slots", g=g_in.numel(), bits=masks.bytes_of(images)
    )  # fmt: skip
    writes = requested(arguments, "g_in", "slopes_in", "gradients_in", "slots")
    grid = triton.cdiv(images * size, STREAM_PIXELS), triton.cdiv(channels, block)
    launch = Launch("rows: arrive", arrive_rows, grid, arguments, constants, WARPS, 1, reads, writes)
    launch = reads_rows(launch, arrivals, g=g, grad_x=grad_x)
    return launch._replace(touched={**launch.touched, "bits": masks.bytes_of(images)})


def outer_rows_pass(
    geometry: Geometry, behind: Behind, weight: Tensor, skip: Tensor, skips: int, grad_x: Tensor, targets: Table,
    precision: str,
) -> Launch:  # fmt: skip
    """The gradient of the block's input, where it stands in grad_x; that of the skip joins for `skips` images."""
    g, tile = geometry, conv_tile(geometry.outputs, geometry.inputs, grad_x.dtype, precision)
    tiles, columns = triton.cdiv(g.pixels_in, tile.m), triton.cdiv(g.inputs, tile.n)
    pixels = g.pixels_in // g.images
    arguments = {
        **behind.of_norm(), "weight": weight, "skip": skip, "g_in": grad_x, "rows_in": targets.rows,
        "count": g.pixels_in, "skipped": skips * pixels, **conv_arguments(g, weight),
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "ALIGN": targets.align, **product(grad_x.dtype, precision),
        "WIDE": wide(grad_x), "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    taps, skipped = g.pairs * g.outputs * columns, skips * pixels * g.inputs
    reads = requested(
        arguments, "rows_in", "state", "slopes", g=taps, u=taps, weight=g.weights * tiles, skip=skipped
    )  # fmt: skip
    writes, grid = requested(arguments, g_in=g.pixels_in * g.inputs), (tiles, columns)
    launch = Launch(
        "rows: data gradient conv1",
        outer_rows,
        grid,
        arguments,
        constants,
        tile.warps,
        tile.stages,
        reads,
        writes,
        True,
    )
    launch = writes_rows(launch, targets, g_in=grad_x)
    return launch._replace(touched={**launch.touched, "skip": skipped * skip.element_size()})


def mask_rows_pass(g: Tensor, grad_x: Tensor, arrivals: Table, targets: Table, masks: Masks) -> Launch:
    """The listed rows of grad_x: those of g or of grad_x itself behind their masks."""
    images, size = targets.images, grad_x[0, 0].numel()
    arguments = {
        "g": g, "rows": arrivals.rows, "bits": masks.bits, "masks": masks.table.rows, "g_in": grad_x,
        "rows_in": targets.rows, "count": images * size, "size": size,
    }  # fmt: skip
    constants = {
        "CHANNELS": grad_x.shape[1], "ALIGN": min(arrivals.align, targets.align), "WIDE": wide(grad_x),
        "BLOCK_M": STREAM_PIXELS, "BLOCK_K": 32,
    }  # fmt: skip
    elements = images * grad_x[0].numel()
    reads = requested(arguments, "rows", "masks", "rows_in", g=elements, bits=masks.bytes_of(images))
    writes, grid = requested(arguments, g_in=elements), (triton.cdiv(images * size, STREAM_PIXELS),)
    launch = Launch("rows: mask", mask_rows, grid, arguments, constants, WARPS, 1, reads, writes)
    launch = writes_rows(reads_rows(launch, arrivals, g=g, grad_x=grad_x), targets, g_in=grad_x)
    return launch._replace(touched={**launch.touched, "bits": masks.bytes_of(images)})
