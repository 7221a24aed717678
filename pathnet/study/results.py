"""The results of a run: read from its journal, added to it piece by piece, written as `results.json` and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

from pathnet.files import writable_folder, write_atomically
from pathnet.study.journal import Journal, Record, as_text
from pathnet.study.ranks import Ranks
from pathnet.study.tables import write_tables

SCHEMA_VERSION = 1
FILE_NAME = "results.json"
JOURNAL = "journal.jsonl"


class Results:
    """The results of one run: a journal, and the JSON document that follows from it.

    Each rank has a journal of its own while it runs, `journal.jsonl` or `journal.RANK.jsonl`; in the end the first
    holds everything and the others are gone.
    """

    def __init__(self, folder: Path, journal: Journal, header: Record, ranks: Ranks) -> None:
        self.folder, self._journal, self._ranks = folder, journal, ranks
        self._known: set[str] = set()
        self._done: dict[tuple[str, str], dict[str, Any]] = {}
        self.document: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "complete": False,
            **header,
            "training": {},
            "nets": {},
            "seconds": {},
        }
        self._take_in(journal.records)

    @classmethod
    def open(cls, folder: Path, header: Record, ranks: Ranks) -> Results:
        """Continue the results in `folder` if they belong to the run of `header`, or begin new ones.

        `header` holds `command`, `settings`, `identity`, `net` and `data`. ValueError where the journal is locked,
        damaged or that of another run, and where there are results without their journal.
        """
        path, rank = folder / JOURNAL, ranks.rank
        if rank == 0 and not path.exists() and (folder / FILE_NAME).exists():
            raise ValueError(
                f"out holds {FILE_NAME} but not the {JOURNAL} that it came from ({folder}); choose another folder, "
                "or delete that file"
            )
        journal = Journal(path if rank == 0 else path.with_suffix(f".{rank}{path.suffix}"), header)
        if rank == 0:
            for left in sorted(folder.glob(f"{path.stem}.*{path.suffix}")):  # by ranks that were interrupted
                journal.absorb(left)
        return cls(folder, journal, header, ranks)

    def part(self, net: str, experiment: str) -> dict[str, Any]:
        """What is measured of one experiment on one net, as the document has it."""
        return self.document["nets"].get(net, {}).get(experiment, {})

    def holds(self, net: str, experiment: str, key: str) -> bool:
        """Whether the value for `key` is measured."""
        return key in self._done.get((net, experiment), {})

    def add(self, net: str, experiment: str, values: dict[str, Any], seconds: float) -> None:
        """Put the values that one part gave, by key, on disk."""
        self._put({"net": net, "experiment": experiment, "values": values, "seconds": round(seconds, 3)})

    def add_training(self, net: str, epochs: list[dict[str, Any]], seconds: float) -> None:
        """Put the epochs of a finished training on disk."""
        self._put({"net": net, "epochs": epochs, "seconds": round(seconds, 3)})

    def share(self) -> None:
        """Give every rank what all of them have; the journal of rank 0 then holds it too."""
        for records in self._ranks.gathered(self._journal.records):
            for record in [record for record in records if as_text(record) not in self._known]:
                if self._ranks.rank == 0:
                    self._journal.append(record)
                self._take_in([record])

    def arrange(self, places: Iterable[tuple[str, str]]) -> None:
        """Let these nets and experiments stand first in the document, in this order, whoever was done first."""
        found, trained = self.document["nets"], self.document["training"]
        nets: dict[str, dict[str, Any]] = {}
        for net, experiment in [*places, *((net, name) for net, names in found.items() for name in names)]:
            nets.setdefault(net, {})[experiment] = found[net][experiment]
        self.document["nets"] = nets
        self.document["training"] = {net: trained[net] for net in nets if net in trained}

    def save(self) -> None:
        """Write the document, and its tables as CSV, from rank 0; each file is renewed whole."""
        if self._ranks.rank == 0:
            text = json.dumps(self.document, indent=1, allow_nan=False)
            write_atomically(self.folder / FILE_NAME, lambda beside: beside.write_text(text, encoding="utf-8"))
            write_tables(self.document, self.folder)

    def close(self, finished: bool) -> None:
        """Let go of the journal; where the run is `finished`, rank 0 has all, and what others wrote is removed."""
        self._journal.close()
        if finished and self._ranks.rank > 0:
            self._journal.path.unlink()

    def _put(self, record: Record) -> None:
        self._journal.append(record)
        self._take_in([record])

    def _take_in(self, records: Iterable[Record]) -> None:
        """Into the document; of a part that was measured twice the first stands."""
        for record in records:
            self._known.add(as_text(record))
            net, seconds = record["net"], self.document["seconds"]
            if "epochs" in record:
                self.document["training"].setdefault(net, record["epochs"])
                label = f"train the {net} net"
            else:
                self._values(net, record["experiment"], record["values"])
                label = f"{record['experiment'].replace('_', ' ')}, {net} net"
            seconds[label] = round(seconds.get(label, 0.0) + record["seconds"], 3)

    def _values(self, net: str, experiment: str, values: dict[str, Any]) -> None:
        done = self._done.setdefault((net, experiment), {})
        done |= {key: value for key, value in values.items() if key not in done}
        self.document["nets"].setdefault(net, {})[experiment] = _nested(done)


def _nested(done: dict[str, Any]) -> dict[str, Any]:
    """Values by key, in the order of the keys; those of the trials COUNT/0, COUNT/1, ... as one list under COUNT."""
    nested: dict[str, Any] = {}
    for key in sorted(done, key=lambda key: [int(number) for number in key.replace(",", "/").split("/")]):
        count, trial, _ = key.partition("/")
        if trial:
            nested.setdefault(count, []).append(done[key])
        else:
            nested[key] = done[key]
    return nested


@contextmanager
def opened(folder: Path, header: Record, ranks: Ranks) -> Iterator[Results]:
    """The results in `folder`, shared by all ranks; written when the run ends, whole or interrupted."""
    results = ranks.in_turn(lambda: Results.open(writable_folder(folder, "out"), header, ranks))
    finished = False
    try:
        results.share()
        yield results
        results.document["complete"] = finished = True
    finally:
        results.save()
        if finished:
            ranks.gathered(None)  # rank 0 has written all: what the others wrote may go
        results.close(finished)


# ---- reading -------------------------------------------------------------------------------------------------------


def load_results(path: str | Path) -> dict[str, Any]:
    """Read and check `results.json`, or that of a folder; ValueError where it is unreadable or not of its schema."""
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"results file {path} cannot be read ({error}); delete it, and the command that wrote it writes it again"
        ) from error
    version = document.get("schema") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"results file {path} must be of schema {SCHEMA_VERSION}, not {version!r}; "
            "choose another folder, or use the version of pathnet that wrote it"
        )
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema()).iter_errors(document))
    if problem is not None:
        place = "/".join(map(str, problem.absolute_path)) or "the top"
        raise ValueError(
            f"results file {path} does not fit its schema at {place} ({problem.message[:200]}); "
            "delete it, and the command that wrote it writes it again"
        )
    return document


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `results.json`."""
    return json.loads(resources.files(__package__).joinpath("results.schema.json").read_text(encoding="utf-8"))
