"""Where the images of a run stand whose gates differ from image to image, and which mask each passes: all on the host.

An image reads the value of its last block that ran. A block writes its value into memory of its own, which is kept, if
the image's next block trains its weights on it, else into y, over an earlier value. A mask of one bit an element begins
with a block that passes a gradient, or with the first one; the FORWARD blocks behind it join theirs, so that the
gradient meets one mask when it comes to the first of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pathnet.gates import Gate

NOWHERE = -1


class BlockRows(NamedTuple):
    """The images that run a block: those that pass a gradient first, and of these those with a skip first."""

    images: np.ndarray  # int64 [images]
    skips: int  # how many of them have a gradient through the skip too
    gradients: int  # how many have a gradient
    trains: bool  # whether the weights have one
    sources: np.ndarray  # rows of x, y and the kept values, one after the other
    targets: np.ndarray  # rows of y and the kept values
    masks: np.ndarray  # whose mask the block begins or, as -1 - mask, joins
    arrivals: np.ndarray  # rows of grad_y and grad_x, where the gradient of the first `gradients` comes from


class RowsPlan(NamedTuple):
    """A whole run."""

    blocks: list[BlockRows]
    kept: int  # values that the backward reads
    masks: int
    untouched: np.ndarray  # images that run nothing
    ends: np.ndarray  # images whose first block is FORWARD: the gradient passes a last mask
    end_masks: np.ndarray
    end_arrivals: np.ndarray  # as `arrivals`


def plan_rows(gates: np.ndarray) -> RowsPlan:
    """The plan for gates int8 [images, blocks], each of which runs at least one image."""
    images = len(gates)
    runs, keeps = gates != Gate.OFF, _keeps(gates)
    place, mask, first = np.arange(images), np.full(images, NOWHERE), np.full(images, NOWHERE)
    kept, masks, blocks = 0, 0, list[BlockRows]()
    for index, column in enumerate(gates.T):
        own = _ordered(column)
        passes, stays = column[own] != Gate.FORWARD, keeps[own, index]
        begins = passes | (mask[own] == NOWHERE)
        new = masks + begins.cumsum() - 1
        first[own] = np.where(begins & ~passes, new, first[own])
        mask[own] = np.where(begins, new, mask[own])
        targets = np.where(stays, images + kept + stays.cumsum() - 1, own)
        later = runs[own, index + 1 :] & (gates[own, index + 1 :] != Gate.FORWARD)
        gradients = int(passes.sum())
        blocks.append(
            BlockRows(own, int((passes & (column[own] != Gate.RESIDUAL)).sum()), gradients, bool(_trains(column).any()),
                      place[own], targets, np.where(begins, new, -1 - mask[own]),
                      (own + images * later.any(1))[:gradients])
        )  # fmt: skip
        place[own], kept, masks = targets + images, kept + int(stays.sum()), masks + int(begins.sum())
    ends = (first != NOWHERE).nonzero()[0]
    passing = (runs & (gates != Gate.FORWARD)).any(1)
    return RowsPlan(blocks, kept, masks, (~runs.any(1)).nonzero()[0], ends, first[ends], ends + images * passing[ends])


def _trains(gates: np.ndarray) -> np.ndarray:
    return (gates == Gate.FULL) | (gates == Gate.RESIDUAL)


def _keeps(gates: np.ndarray) -> np.ndarray:
    """Whether the value that a block makes of an image is that on which the image's next block trains."""
    keeps, coming = np.zeros(gates.shape, bool), np.zeros(len(gates), bool)
    for index in reversed(range(gates.shape[1])):
        keeps[:, index] = coming
        column = gates[:, index]
        coming = np.where(column == Gate.OFF, coming, _trains(column))
    return keeps


ORDER = np.array([4, 0, 2, 0, 1])  # of each gate: with a skip, without, no gradient, not at all


def _ordered(column: np.ndarray) -> np.ndarray:
    order = ORDER[column]
    return np.argsort(order, kind="stable")[: int((order < ORDER[Gate.OFF]).sum())]
