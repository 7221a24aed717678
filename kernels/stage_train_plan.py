"""What a run of gated blocks keeps, and how the gradient is masked between them.

Position p of the stream is the input of block p; block p - 1 put it out. The gradient that leaves block i passes the
ReLUs at the positions down to the gradient block before it: by x itself where block i keeps its input, else by one
mask of one bit an element, into which all of them are joined.
"""

from __future__ import annotations

from collections.abc import Sequence

from pathnet.gates import Gate


def has_gradient(gate: int) -> bool:
    return gate != Gate.FORWARD


def keeps_input(gates: Sequence[int], block: int) -> bool:
    """Whether the run keeps x of this block: its weights want it. That of block 0 is the run's own input."""
    return block > 0 and gates[block] in (Gate.FULL, Gate.RESIDUAL)


def mask_at(gates: Sequence[int], block: int) -> str:
    """How the gradient leaving `block` is masked ("none", "values", "bits"); len(gates) is the end of the run."""
    if block == 0:
        return "none"
    alone = has_gradient(gates[block - 1]) and block < len(gates) and keeps_input(gates, block)
    return "values" if alone else "bits"


def owner(gates: Sequence[int], position: int) -> int:
    """Whose mask the ReLU at `position` is part of: the next block with a gradient, or the end of the run."""
    return next((i for i in range(position, len(gates)) if has_gradient(gates[i])), len(gates))


def bits_at(gates: Sequence[int], position: int) -> str:
    """What the program that makes `position` does with the mask of its owner: "none", "new" or "join"."""
    if mask_at(gates, owner(gates, position)) != "bits":
        return "none"
    return "new" if position == 1 or has_gradient(gates[position - 1]) else "join"


def before(gates: Sequence[int], block: int) -> int | None:
    """The block with a gradient before `block`."""
    return next((i for i in reversed(range(block)) if has_gradient(gates[i])), None)
