"""Gates and paths: which blocks of a residual net are alive, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import IntEnum

import torch
from torch import Tensor


class Gate(IntEnum):
    """What one residual block, y = act(h(x) + s f(x)), does in a step.

    | gate     | forward          | gradient to x   | weight gradients of f |
    |----------|------------------|-----------------|-----------------------|
    | OFF      | the shortcut     | through h       | none                  |
    | FULL     | act(h(x)+s f(x)) | through h and f | yes                   |
    | FORWARD  | as FULL          | through h only  | none                  |
    | FROZEN   | as FULL          | through h and f | none                  |
    | RESIDUAL | as FULL          | through f only  | yes                   |

    Source: Veit, Wilber, Belongie 2016, sections 4 (OFF) and 5 (RESIDUAL and FORWARD: one single path).
    """

    OFF = 0
    FULL = 1
    FORWARD = 2
    FROZEN = 3
    RESIDUAL = 4


_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Paths:
    """Gates, multipliers and order of a net's blocks for one forward; immutable.

    Shapes: `gates` int [blocks] (one gate for the batch) or [batch, blocks] (a gate per image); a bool mask means
    True = FULL and False = OFF. `multiplier` is float64 of either shape, or None for 1. `order[p]` is the block that
    stands at position p, or None for the net's own order. Gates and multipliers belong to the block, not to the
    position. `raw=True` switches a sampler's test-time rule off. `live` gates are those of `on_device`.

    Raises TypeError for gates that are no integers, ValueError for values that are no `Gate`.
    """

    __slots__ = ("gates", "live", "multiplier", "order", "present", "raw")

    gates: Tensor  # int8 [blocks] or [batch, blocks], on the CPU unless they are live
    multiplier: Tensor | None  # float64 [blocks] or [batch, blocks], on the CPU
    order: tuple[int, ...] | None
    raw: bool
    present: Tensor | None  # bool [blocks, 5]: gates that occur on any rank, where a sampler drew for all of them
    live: bool  # gates int8 [blocks] on the device of the images, which nobody reads on the host

    def __init__(self, gates: Tensor | Sequence, *, raw: bool = False) -> None:
        self._set(_checked_gates(gates), None, None, raw, None)

    def _set(self, gates, multiplier, order, raw: bool, present, live: bool = False) -> None:
        values = {
            "gates": gates, "multiplier": multiplier, "order": order, "raw": raw, "present": present, "live": live,
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Paths is immutable: make a new one instead of setting {name!r}")

    def __reduce__(self):
        return _restore, (self.gates, self.multiplier, self.order, self.raw, self.present, self.live)

    # ---- the paths that the paper and its users ask for -------------------------------------------------------------

    @classmethod
    def keep(cls, blocks: int, kept: Iterable[int]) -> Paths:
        """The `kept` blocks FULL, the rest OFF."""
        return cls(_select(blocks, kept, "kept", Gate.FULL, Gate.OFF))

    @classmethod
    def delete(cls, blocks: int, deleted: Iterable[int]) -> Paths:
        """The `deleted` blocks OFF, the rest FULL: a lesion (Veit et al. 2016, section 4)."""
        return cls(_select(blocks, deleted, "deleted", Gate.OFF, Gate.FULL))

    @classmethod
    def backward(cls, blocks: int, chosen: Iterable[int]) -> Paths:
        """The `chosen` blocks FULL, the rest FORWARD: the path-restricted backward."""
        return cls(_select(blocks, chosen, "chosen", Gate.FULL, Gate.FORWARD))

    @classmethod
    def single(cls, blocks: int, chosen: Iterable[int]) -> Paths:
        """The `chosen` blocks RESIDUAL, the rest FORWARD: exactly one of the 2^n paths carries gradient.

        Source: Veit et al. 2016, section 5.
        """
        return cls(_select(blocks, chosen, "chosen", Gate.RESIDUAL, Gate.FORWARD))

    @classmethod
    def frozen(cls, blocks: int, chosen: Iterable[int]) -> Paths:
        """The `chosen` blocks FROZEN, the rest FULL."""
        return cls(_select(blocks, chosen, "chosen", Gate.FROZEN, Gate.FULL))

    @classmethod
    def on_device(cls, gates: Tensor) -> Paths:
        """Gates int8 [blocks] that stay where they are and are read whenever the net runs: OFF, FULL or FORWARD each.

        Whoever holds the tensor may write other gates into it, so one captured CUDA graph serves them all; what it
        costs is in docs/gpu-kernels.md. It is checked here, once.
        Raises TypeError for another dtype, ValueError for another shape or other gates.
        """
        if not isinstance(gates, Tensor) or gates.dtype != torch.int8:
            kind = gates.dtype if isinstance(gates, Tensor) else type(gates).__name__
            raise TypeError(f"gates on the device must be an int8 tensor, got {kind}; make one with .to(torch.int8)")
        if gates.dim() != 1:
            raise ValueError(f"gates on the device must have the shape [blocks], got {list(gates.shape)}")
        other = [gate for gate in gates.tolist() if gate not in (Gate.OFF, Gate.FULL, Gate.FORWARD)]
        if other:
            raise ValueError(f"gates on the device must be OFF, FULL or FORWARD, got {other[0]}; use Paths(gates)")
        return _restore(gates, None, None, False, None, True)

    # ---- modified copies --------------------------------------------------------------------------------------------

    def scaled(self, multiplier: float | Sequence | Tensor) -> Paths:
        """A copy whose residual functions are multiplied by `multiplier` (a number, [blocks] or [batch, blocks])."""
        factor = torch.as_tensor(multiplier, dtype=torch.float64, device="cpu").detach().clone()
        if not torch.isfinite(factor).all():
            raise ValueError("multiplier must be finite, got NaN or infinity; remove or replace those entries")
        if factor.dim() > 2 or (factor.dim() and factor.shape[-1] != self.num_blocks):
            raise ValueError(
                f"multiplier must be a number or have the shape [{self.num_blocks}] or [batch, {self.num_blocks}], "
                f"got {list(factor.shape)}"
            )
        if self.live and factor.dim() == 2:
            raise ValueError("multiplier must be one a block where gates are on the device, got one for each image")
        return self._copy(multiplier=factor.expand(factor.shape or (self.num_blocks,)) * self._factor())

    def reordered(self, order: Sequence[int]) -> Paths:
        """A copy in which `order[p]` names the block that stands at position p (Veit et al. 2016, section 4.3).

        Applied to paths that are reordered already, positions refer to that order, so a swap undoes itself.
        """
        if self.live:
            raise ValueError("order must be the net's own where gates are on the device; use Paths(gates) to reorder")
        positions = [int(p) for p in order]
        if sorted(positions) != list(range(self.num_blocks)):
            raise ValueError(
                f"order must name each of the blocks 0..{self.num_blocks - 1} exactly once, got {positions}"
            )
        return self._copy(order=tuple(self.order[p] if self.order else p for p in positions))

    def drawn_with(self, present: Tensor) -> Paths:
        """A copy that knows which gates occur on any rank, bool [blocks, 5], where one draw serves several ranks."""
        return self._copy(present=present)

    def _factor(self) -> Tensor | float:
        return 1.0 if self.multiplier is None else self.multiplier

    def _copy(self, **changes) -> Paths:
        values = {name: changes.get(name, getattr(self, name)) for name in Paths.__slots__}
        return _restore(*(values[name] for name in ("gates", "multiplier", "order", "raw", "present", "live")))

    # ---- what a net reads -------------------------------------------------------------------------------------------

    @property
    def num_blocks(self) -> int:
        return self.gates.shape[-1]

    @property
    def per_sample(self) -> bool:
        return self.gates.dim() == 2 or (self.multiplier is not None and self.multiplier.dim() == 2)

    def check(self, blocks: int, batch: int) -> None:
        """Raise ValueError unless these paths are for a net of `blocks` blocks and a batch of `batch` images."""
        if self.num_blocks != blocks:
            raise ValueError(f"paths must have one gate for each of the net's {blocks} blocks, got {self.num_blocks}")
        for name, value in (("gates", self.gates), ("multiplier", self.multiplier)):
            if value is not None and value.dim() == 2 and value.shape[0] != batch:
                raise ValueError(
                    f"per-sample {name} must have one row for each of the {batch} images of x, got {value.shape[0]}"
                )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Paths):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        multiplier = None if self.multiplier is None else str(self.multiplier.tolist())
        return id(self.gates) if self.live else str(self.gates.tolist()), multiplier, self.order, self.raw

    def __repr__(self) -> str:
        counts = f"on {self.gates.device}" if self.live else self._counts()
        shape = " x ".join(str(n) for n in self.gates.shape)
        extras = [f"multiplier {list(self.multiplier.shape)}"] if self.multiplier is not None else []
        extras += ["reordered"] if self.order else []
        return f"Paths({shape}: {'; '.join([counts or 'empty', *extras])})"

    def _counts(self) -> str:
        return ", ".join(f"{int((self.gates == g).sum())} {g.name}" for g in Gate if (self.gates == g).any())


def _restore(gates, multiplier, order, raw, present, live=False) -> Paths:
    paths = object.__new__(Paths)
    paths._set(gates, multiplier, order, raw, present, live)
    return paths


def _checked_gates(gates: Tensor | Sequence) -> Tensor:
    gates = torch.as_tensor(gates)
    if gates.dtype not in _INTEGERS:
        raise TypeError(f"gates must be integers (Gate values) or a bool mask, got {gates.dtype}")
    if gates.dim() not in (1, 2):
        raise ValueError(f"gates must have the shape [blocks] or [batch, blocks], got {list(gates.shape)}")
    wrong = gates[(gates < 0) | (gates > max(Gate))] if gates.dtype != torch.bool else gates[:0]
    if wrong.numel():
        names = ", ".join(f"{g.value} = {g.name}" for g in Gate)
        raise ValueError(f"gates must be one of {names}; got {int(wrong.flatten()[0])}")
    return gates.detach().to("cpu", torch.int8, copy=True)


def _select(blocks: int, chosen: Iterable[int], name: str, inside: Gate, outside: Gate) -> Tensor:
    if blocks < 0 or math.floor(blocks) != blocks:
        raise ValueError(f"blocks must be the number of the net's residual blocks, got {blocks}")
    indices = [int(i) for i in chosen]
    out_of_range = [i for i in indices if not 0 <= i < blocks]
    if out_of_range:
        raise IndexError(f"{name} must hold block indices in 0..{blocks - 1} (counted from 0), got {out_of_range[0]}")
    if len(set(indices)) != len(indices):
        twice = next(i for i in indices if indices.count(i) > 1)
        raise ValueError(f"{name} must name each block at most once, got {twice} more than once")
    gates = torch.full((blocks,), outside, dtype=torch.int8)
    gates[indices] = int(inside)
    return gates
