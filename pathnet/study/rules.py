"""Rules for testing a net that was trained on some of its blocks a step, compared on its net as it is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor

from pathnet.analysis import evaluate, reestimate_batch_norm
from pathnet.models import PathNet
from pathnet.samplers import Sampler
from pathnet.study.parts import Part


class Rules:
    """Errors of `net`, trained under a sampler, with and without the sampler's multiplier of the residual branches,
    and with running statistics of training or estimated anew on the images `train`, all on `tested`."""

    def __init__(self, net: PathNet, train: tuple[Tensor, Tensor], tested: tuple[Tensor, Tensor]) -> None:
        self.net, self.train, self.tested = net, train, tested

    def rules(self) -> Iterator[Part]:
        """One part; none where the net was trained as it is tested."""
        if isinstance(self.net.paths, Sampler):
            yield Part([0], 4, lambda: [self._errors()])

    def _errors(self) -> dict[str, float]:
        none, scaled = copy.deepcopy(self.net), copy.deepcopy(self.net)
        none.paths = None
        errors = {"none": self._error(none), "multiplier": self._error(scaled)}
        for net in (none, scaled):
            reestimate_batch_norm(net, self.train)
        return errors | {"statistics": self._error(none), "both": self._error(scaled)}

    def _error(self, net: PathNet) -> float:
        (result,) = evaluate(net, self.tested, [None])
        return result.error
