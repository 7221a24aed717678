"""The experiments of a study on one of its nets: lists of lesions, and the gradient by path length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict

from pathnet.analysis import GradientByLength, contribution
from pathnet.data import ImageData
from pathnet.models import PathNet
from pathnet.study.gradients import Gradients
from pathnet.study.lesions import Lesions, finite
from pathnet.study.parts import Part
from pathnet.study.results import Results
from pathnet.study.settings import Settings
from pathnet.study.subject import drawn_images


class Experiments(Lesions):
    """Every measurement that a study makes on one trained net; each experiment yields its parts."""

    def __init__(self, net: PathNet, data: ImageData, settings: Settings) -> None:
        super().__init__(
            net,
            drawn_images(data.test, settings.images, settings.seed),
            deletions=[count for count in settings.deletions if count <= net.num_blocks],
            swaps=settings.swaps,
            trials=settings.trials,
            seed=settings.seed,
        )
        batch = drawn_images(data.train, settings.gradient_images, settings.seed)
        # Asked for of residual nets alone.
        self._along_paths = Gradients(net, batch, settings.samples, settings.seed)  # type: ignore[arg-type]

    def gradients(self) -> Iterator[Part]:
        """Sampled paths of each length."""
        return self._along_paths.gradients()

    def spectrum(self) -> Iterator[Part]:
        """The exact sum over all paths of each length."""
        return self._along_paths.spectrum()


def summarise_gradients(results: Results, title: str) -> None:
    """Put frequency times magnitude and its window beside the measured norms."""
    norms = results.part(title, "gradients")
    measured = [
        GradientByLength(length, tuple(-math.inf if norm is None else norm for norm in norms[str(length)]))
        for length in range(len(norms))
    ]
    summary = asdict(contribution(measured))
    summary["log10_mean_norms"] = [finite(norm) for norm in summary["log10_mean_norms"]]
    results.document["nets"][title]["contribution"] = summary
