"""`pathnet gradients` as a function: the gradient of a trained net by path length, measured, resumed and shared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathnet.analysis.tape import PLACES, STATISTICS
from pathnet.study.environment import environment
from pathnet.study.experiments import summarise_gradients
from pathnet.study.gradients import Gradients
from pathnet.study.parts import run_parts
from pathnet.study.ranks import joined
from pathnet.study.results import opened
from pathnet.study.settings import LARGEST_SAMPLES
from pathnet.study.subject import TITLE, Subject, SubjectSettings


@dataclass(frozen=True)
class GradientSettings(SubjectSettings):
    """`samples` paths of each length, all through one batch of `images` images; `at` and `bn` as in the analysis."""

    part: str = "train"
    images: int | None = 32
    samples: int = 20
    at: str = "image"
    bn: str = "running"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.samples <= LARGEST_SAMPLES:
            raise ValueError(f"samples must lie in 1..{LARGEST_SAMPLES}, the paper's number, not {self.samples}")
        if self.at not in PLACES or self.bn not in STATISTICS:
            raise ValueError(f"at must be one of {PLACES} and bn one of {STATISTICS}, not {self.at!r} and {self.bn!r}")


def run_gradients(settings: GradientSettings, out: Path) -> dict[str, Any]:
    """Measure what is missing in the folder `out`: drawn paths, the exact spectrum, and frequency times magnitude.

    It resumes and shares as `run_lesions` does. ValueError, in a sentence, where weights, data or folder do not serve.
    """
    with joined() as ranks:
        subject = ranks.in_turn(lambda: Subject(settings))
        measures = Gradients(subject.net, subject.images, settings.samples, settings.seed, settings.at, settings.bn)
        parts = [(TITLE, name, part) for name in ("spectrum", "gradients") for part in getattr(measures, name)()]
        with opened(out, subject.header("gradients"), ranks) as results:
            results.document["environment"] = environment()
            run_parts(parts, results, ranks)
            summarise_gradients(results, TITLE)
        return results.document
