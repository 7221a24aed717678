"""The results as tables of plain values, one row a measurement: for pandas, spreadsheets and CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pathnet.files import write_atomically

Document = dict[str, Any]
Row = dict[str, Any]


def table(document: Document, name: str) -> list[Row]:
    """The rows of the table `name` of a results document: "lesions", "gradients", "spectrum" or "training".

    `pandas.DataFrame(table(load_results(folder), "lesions"))` is a data frame. Lists of blocks are text, with spaces
    between the numbers; what was no finite number is None. Raises ValueError for another name.
    """
    if name not in TABLES:
        raise ValueError(f"name must be one of {', '.join(TABLES)}, not {name!r}")
    return list(TABLES[name](document))


def write_tables(document: Document, folder: Path) -> None:
    """Write each table that has rows as CSV into `folder`."""
    for name in TABLES:
        rows = table(document, name)
        if rows:
            write_atomically(folder / f"{name}.csv", partial(_write, rows))


def _write(rows: list[Row], path: Path) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _lesions(document: Document) -> Iterator[Row]:
    for title, net in document["nets"].items():
        for name, values in net.items():
            if name in NO_LESIONS:
                continue
            for key, value in values.items():
                trials = value if isinstance(value, list) else [value]
                for trial, lesion in enumerate(trials):
                    yield {"net": title, "experiment": name, "key": key, "trial": trial, **_plain(lesion)}


def _plain(lesion: dict[str, Any]) -> Row:
    """One lesion without lists; every row has the columns that only some experiments fill."""
    classes = lesion.get("class_errors", [])
    said = {name: lesion.get(name) for name in ("deleted", "order", "multiplier", "swaps", "tau")}
    texts = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in said.items()}
    scores = {name: lesion.get(name) for name in ("error", "loss", "agreement")}
    return texts | scores | {f"class_error_{label}": error for label, error in enumerate(classes)}


def _gradients(document: Document) -> Iterator[Row]:
    for title, net in document["nets"].items():
        for length, norms in net.get("gradients", {}).items():
            for sample, norm in enumerate(norms):
                yield {"net": title, "length": int(length), "sample": sample, "log10_norm": norm}


def _spectrum(document: Document) -> Iterator[Row]:
    for title, net in document["nets"].items():
        for spectrum in net.get("spectrum", {}).values():
            for length, (norm, share) in enumerate(zip(spectrum["log10_norms"], spectrum["shares"], strict=True)):
                yield {"net": title, "length": length, "log10_norm": norm, "share": share}


def _training(document: Document) -> Iterator[Row]:
    for title, epochs in document["training"].items():
        for number, epoch in enumerate(epochs, 1):
            yield {"net": title, "epoch": number, **epoch}


NO_LESIONS = ("gradients", "spectrum", "contribution", "rules")
TABLES: dict[str, Callable[[Document], Iterator[Row]]] = {
    "lesions": _lesions,
    "gradients": _gradients,
    "spectrum": _spectrum,
    "training": _training,
}
