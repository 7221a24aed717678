"""One draw for each training forward, and the same draw again where checkpointing recomputes it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from pathnet.gates import Paths
from pathnet.samplers import Sampler

_REMEMBERED = 1024  # draws that may still be recomputed; a few integers each


def recomputing() -> bool:
    """Whether this forward runs inside a backward: checkpointing."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Draws:
    """The step counter of a net (a CPU tensor, no buffer) and the steps of its recent forwards."""

    def __init__(self) -> None:
        self.step = torch.zeros((), dtype=torch.int64)
        self._recent: OrderedDict[tuple, int] = OrderedDict()

    def next(self, sampler: Sampler, x: Tensor, blocks: int) -> Paths:
        """Draw for the batch x [N, C, H, W]; inside a backward, repeat the draw of the forward that is recomputed.

        Checkpointing hands the forward's own input in again, which names the call; where the input is made anew inside
        the checkpointed function, the latest call of that shape is meant.
        """
        step = self._recall(x) if recomputing() else self._advance(x)
        return sampler.draw(step, len(x), blocks)

    def _advance(self, x: Tensor) -> int:
        step = int(self.step)
        self.step += 1
        self._recent[_name(x)] = step
        self._recent.move_to_end(_name(x))
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        return step

    def _recall(self, x: Tensor) -> int:
        if _name(x) in self._recent:
            return self._recent[_name(x)]
        same_shape = (step for (_, shape), step in reversed(self._recent.items()) if shape == x.shape)
        return next(same_shape, max(int(self.step) - 1, 0))


def _name(x: Tensor) -> tuple[int, torch.Size]:
    return x.data_ptr(), x.shape
