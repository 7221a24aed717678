"""`pathnet lesion` as a function: lists of lesions of a trained net, measured, resumed and shared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathnet.analysis.evaluate import MEMORY
from pathnet.analysis.plan import Plan
from pathnet.gates import Paths
from pathnet.models import PathResNet
from pathnet.study.environment import environment
from pathnet.study.lesions import Entry, Lesions, best_to_drop
from pathnet.study.parts import Part, run_parts
from pathnet.study.ranks import joined
from pathnet.study.results import opened
from pathnet.study.subject import TITLE, Subject, SubjectSettings

Wanted = tuple[str, str, Part]
DROP = "drop_greedily"  # what the candidates are called in the results
WORDS = ("delete", "order", "multiplier")  # of an entry in a user's list


@dataclass(frozen=True)
class LesionSettings(SubjectSettings):
    """What is measured: `lists` names methods of `Lesions`; `entries` is a list of the user's own (`read_entries`).

    `drop` is a number of blocks to drop for good, greedily: each time the one without which the net errs least.
    """

    lists: tuple[str, ...] = ("delete_each",)
    deletions: tuple[int, ...] = ()
    swaps: tuple[int, ...] = ()
    trials: int = 10
    drop: int = 0
    entries: tuple[dict[str, Any], ...] = ()
    memory: int = MEMORY
    predictions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, not {self.trials}")
        if any(count < 0 for count in self.swaps):
            raise ValueError(f"swaps must be at least 0, but one is {min(self.swaps)}")


def run_lesions(settings: LesionSettings, out: Path) -> dict[str, Any]:
    """Measure what is missing in the folder `out`, which holds results and tables afterwards; the results.

    Every finished part is on disk before the next begins, so an interrupted run resumes with the same call. Started by
    torchrun, all processes share the parts. ValueError, in a sentence, where weights, data, lists or folder do not
    serve.
    """
    with joined() as ranks:
        subject, lesions, parts = ranks.in_turn(lambda: _prepared(settings))
        with opened(out, subject.header("lesion"), ranks) as results:
            results.document["environment"] = environment()
            run_parts(parts, results, ranks)
            dropped: tuple[int, ...] = ()
            for _ in range(settings.drop):
                run_parts([(TITLE, DROP, part) for part in lesions.without_one_more(dropped)], results, ranks)
                dropped = best_to_drop(results.part(TITLE, DROP), len(dropped) + 1)
        return results.document


def _prepared(settings: LesionSettings) -> tuple[Subject, Lesions, list[Wanted]]:
    """The net, its images and all parts, checked before anything runs."""
    subject = Subject(settings)
    if not 0 <= settings.drop <= subject.net.num_blocks:
        raise ValueError(f"drop must lie in 0..{subject.net.num_blocks}, the blocks of the net, not {settings.drop}")
    lesions = Lesions(
        subject.net,
        subject.images,
        deletions=settings.deletions,
        swaps=settings.swaps,
        trials=settings.trials,
        seed=settings.seed,
        entries=[_entry(subject.net, place, entry) for place, entry in enumerate(settings.entries)],
        memory=settings.memory,
        predictions=settings.predictions,
    )
    lists = ("whole", *settings.lists)
    return subject, lesions, [(TITLE, name, part) for name in lists for part in getattr(lesions, name)()]


def read_entries(path: Path) -> tuple[dict[str, Any], ...]:
    """A list of lesions from a JSON file: objects with `delete`, `order` or `multiplier`, in the meaning of `Paths`."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"list must be a readable JSON file, but {path} is not ({error})") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and {*entry} <= {*WORDS} for entry in entries):
        raise ValueError(f"list must hold objects with no other keys than {', '.join(WORDS)}, but {path} does not")
    return tuple(entries)


def _entry(net: PathResNet, place: int, entry: dict[str, Any]) -> Entry:
    """An entry of a user's list as paths that fit the net; ValueError, naming its place, where they do not."""
    try:
        paths = Paths.delete(net.num_blocks, entry.get("delete", []))
        paths = paths.scaled(entry["multiplier"]) if "multiplier" in entry else paths
        paths = paths.reordered(entry["order"]) if "order" in entry else paths
        Plan(net, [paths])
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"list has an entry that does not fit the net, number {place} (from 0): {error}") from error
    said = {"deleted": entry.get("delete", [])}
    return Entry(paths, said | {name: entry[name] for name in ("order", "multiplier") if name in entry})
