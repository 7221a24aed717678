"""`results.json`: every finished part of a study, on disk before the next part begins."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

from pathnet.files import write_atomically

SCHEMA_VERSION = 1
FILE_NAME = "results.json"
PLACES = (("settings", "root"), ("settings", "weights"))  # where files lie; their content is in `identity`


class Results:
    """The results of one study: a JSON document, checked when read and renewed whole when written."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self.path = path
        self.document = document

    @classmethod
    def open(cls, folder: Path, header: dict[str, Any]) -> Results:
        """Continue the results in `folder` if they belong to the study of `header`, or begin new ones.

        `header` holds `settings`, `identity`, `net` and `data`. ValueError where the file is unreadable
        or belongs to another study.
        """
        path = folder / FILE_NAME
        if path.exists():
            document = load_results(path)
            _check_same_study(path, document, json.loads(json.dumps(header)))
            return cls(path, document)
        return cls(path, {"schema": SCHEMA_VERSION, "complete": False, **header, "training": {}, "nets": {}})

    def part(self, net: str, experiment: str) -> dict[str, Any]:
        """Finished parts of one experiment on one net, by key; add to it and call :meth:`save`."""
        return self.document["nets"].setdefault(net, {}).setdefault(experiment, {})

    def save(self) -> None:
        """Put the whole document on disk, atomically."""
        text = json.dumps(self.document, indent=1, allow_nan=False)
        write_atomically(self.path, lambda beside: beside.write_text(text, encoding="utf-8"))


def load_results(path: str | Path) -> dict[str, Any]:
    """Read and check `results.json`; ValueError where it is unreadable, truncated or not of its schema."""
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"results file {path} cannot be read ({error}); choose another folder, or delete it to start anew"
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
            "choose another folder, or delete the file to start anew"
        )
    return document


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `results.json`."""
    return json.loads(resources.files(__package__).joinpath("results.schema.json").read_text(encoding="utf-8"))


def _check_same_study(path: Path, document: dict[str, Any], header: dict[str, Any]) -> None:
    differences = [
        f"{name} {document[section].get(name)} there, {value} here"
        for section in ("identity", "settings")
        for name, value in header[section].items()
        if document[section].get(name) != value and (section, name) not in PLACES
    ]
    if differences:
        raise ValueError(
            f"out holds the results of another study ({'; '.join(differences)} in {path}); "
            "choose another folder, or delete that one"
        )
