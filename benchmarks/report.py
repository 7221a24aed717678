"""Turns files of `pytest benchmarks/ --benchmark-json` into docs/benchmarks.md.

Files with the same number of threads and the same instruction set are one run: of rows that occur twice the later
file's stands, and of ceilings the highest. So the table can be measured row by row.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import counts
from benchmarks.bounds import Bound, Work
from benchmarks.cases import Case
from benchmarks.ceilings import Ceilings
from benchmarks.providers import ALL_BLOCKS, BFLOAT16, CHANNELS_LAST, COMPILED, NCHW, PATHNET
from benchmarks.ran import Ran
from benchmarks.texts import BLOCKS, CEILINGS, INTRODUCTION, MEASURE, MEMORY, PREDICTIONS, RATIOS, STUDIES


def table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table without the columns that are a dash in every row; the first columns are text."""
    rows = list(rows)
    shown = [i for i in range(len(header)) if i < text_columns or any(row[i] != "-" for row in rows)]
    rule = ["---" if column < text_columns else "---:" for column in range(len(header))]
    lines = [[line[i] for i in shown] for line in (header, rule, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def merge(runs: Sequence[dict]) -> list[dict]:
    """Return one run for each number of threads and instruction set, a later row in the place of an earlier one."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        groups.setdefault((run["pathnet"]["instructions"], run["pathnet"]["threads"]), []).append(run)
    return [_merged(group) for group in groups.values()]


def _merged(group: list[dict]) -> dict:
    merged = {**group[-1], "pathnet": dict(group[-1]["pathnet"])}
    merged["benchmarks"] = list({row["fullname"]: row for run in group for row in run["benchmarks"]}.values())
    machine = [found for run in group if isinstance(found := ceilings(run), Ceilings)]
    if machine:
        merged["pathnet"]["ceilings"] = asdict(functools.reduce(Ceilings.best_of, machine))
    measured = [f"{title(row)}: " for row in results(merged, "speed")]
    reasons = dict.fromkeys(reason for run in group for reason in run["pathnet"]["not_available"])
    merged["pathnet"]["not_available"] = [reason for reason in reasons if not reason.startswith(tuple(measured))]
    return merged


def ceilings(run: dict) -> Ceilings | str:
    """Return what the machine reached in a run, or why that is unknown."""
    found = run["pathnet"]["ceilings"]
    return found if isinstance(found, str) else Ceilings(**found)


def setting(run: dict) -> str:
    """Return thread count and instruction set of a run in words."""
    count = run["pathnet"]["threads"]
    return f"{count} thread{'s' if count > 1 else ''}, {run['pathnet']['instructions']}"


def environment(runs: list[dict], note: str) -> str:
    """Return machine and versions, and for each setting the commit and the scale."""
    machine, first = runs[0]["machine_info"], runs[0]["pathnet"]
    cpu = machine["cpu"]
    lines = [
        f"- {cpu['brand_raw']}, {cpu['count']} cores; PyTorch's own kernels use {first['cpu_capability']}; "
        "no GPU was measured",
        f"- Python {machine['python_version']}, PyTorch {first['torch']}, {machine['system']}",
    ]
    for run in runs:
        commit = run["commit_info"]
        dirty = " with uncommitted changes" if commit.get("dirty") else ""
        lines.append(
            f"- {setting(run)}: commit {str(commit['id'])[:12]}{dirty}, {run['datetime'][:10]}, "
            f"scale {run['pathnet']['scale']}"
        )
    return "\n".join(lines) + "\n\n" + f"{note} {RATIOS}".strip() + "\n"


def ceilings_table(runs: list[dict]) -> str:
    """Return what the machine reaches in each setting, or the sentence why that is unknown."""
    found = {setting(run): ceilings(run) for run in runs}
    unknown = [f"{where}: {machine}" for where, machine in found.items() if isinstance(machine, str)]
    known = {where: machine for where, machine in found.items() if isinstance(machine, Ceilings)}
    levels = dict.fromkeys(level for machine in known.values() for level in machine.bytes_per_second)
    rows = [
        [
            where,
            f"{machine.multiply_adds / 1e9:.0f}",
            *(f"{machine.bytes_per_second[level] / 1e9:.1f}" for level in levels),
        ]
        for where, machine in known.items()
    ]
    header = ["setting", "10^9 multiply-adds/s", *(f"{level}, GB/s" for level in levels)]
    return "\n".join([*([table(header, rows)] if rows else []), *unknown])


def results(run: dict, kind: str) -> list[dict]:
    """Return what the tests of one kind left, in the order in which they ran."""
    return [entry["extra_info"] for entry in run["benchmarks"] if entry["extra_info"].get("kind") == kind]


def title(result: dict) -> str:
    """Return the name of the case."""
    return str(Case(**result["case"]))


def ratio(result: dict, baseline: str) -> str:
    """Return "median [quartiles]" of pathnet against the baseline, a dash without one."""
    if baseline not in result["ratios"]:
        return "-"
    spread = result["ratios"][baseline][PATHNET]
    return f"{spread['median']:.2f}x [{spread['first_quartile']:.2f}, {spread['third_quartile']:.2f}]"


def speed_table(run: dict) -> str:
    """Return the times of every provider, pathnet's ratios, what ran and the bound."""
    columns = [NCHW, CHANNELS_LAST, BFLOAT16, COMPILED, PATHNET]
    against = {
        CHANNELS_LAST: "channels-last",
        NCHW: "NCHW",
        ALL_BLOCKS: "all blocks",
        BFLOAT16: "bf16",
        COMPILED: "compile",
    }
    machine, lines = ceilings(run), []
    for row in results(run, "speed"):
        seconds = row["seconds"]
        times = [f"{1e3 * seconds[name]['median']:.1f}" if name in seconds else "-" for name in columns]
        floors = ["-"] * 3
        if isinstance(machine, Ceilings):
            bound = Bound.of(Work(**row["work"]), machine)
            reached = max(bound.arithmetic, bound.memory) / seconds[PATHNET]["median"]
            floors = [f"{1e3 * bound.arithmetic:.1f}", f"{1e3 * bound.memory:.1f}", f"{100 * reached:.0f} %"]
        ratios = [ratio(row, baseline) for baseline in against]
        lines.append([title(row), str(Ran(**row["ran"])), *times, *ratios, *floors])
    floors = ["FMA floor", "byte floor", "reached"]
    header = ["case", "ran", *columns, *(f"against {short}" for short in against.values()), *floors]
    return table(header, lines, text_columns=2)


def memory_table(run: dict) -> str:
    """Return the bytes kept for the backward and at the peak, and their ratio to eager."""
    lines = []
    for row in results(run, "memory"):
        figures = row["bytes"]
        for name, own in figures.items():
            cells = [title(row), name]
            for quantity in ("saved", "peak"):
                cells.append(f"{own[quantity] / 2**20:.1f}")
                for base in (CHANNELS_LAST, ALL_BLOCKS):
                    cells.append(f"{own[quantity] / figures[base][quantity]:.2f}x" if base in figures else "-")
            lines.append(cells)
    quantity = ["of channels-last", "of all blocks"]
    return table(["step", "who", "kept, MiB", *quantity, "peak, MiB", *quantity], lines, text_columns=2)


def blocks_table(run: dict) -> str:
    """Return what three blocks under each gate keep."""
    rows = [(row["block"], who, kept) for row in results(run, "blocks") for who, kept in row["kept"].items()]
    gates = list(dict.fromkeys(gate for _, _, kept in rows for gate in kept))
    lines = [
        [block, who, *(f"{kept[gate]:.3f}" if gate in kept else "-" for gate in gates)] for block, who, kept in rows
    ]
    return table(["blocks", "who", *gates], lines, text_columns=2)


def studies_table(run: dict) -> str:
    """Return the seconds of whole experiments, and how they were come by."""
    rivals, lines = (NCHW, CHANNELS_LAST), []
    for row in results(run, "study"):
        seconds = row["seconds"]
        times = [f"{seconds[name]['median']:.1f}" if name in seconds else "-" for name in (*rivals, PATHNET)]
        lines.append([row["name"], row["note"], *times, *(ratio(row, rival) for rival in rivals)])
    header = [
        "experiment",
        "measured",
        *(f"{name}, s" for name in (*rivals, PATHNET)),
        "against NCHW",
        "against channels-last",
    ]
    return table(header, lines, text_columns=2)


def predictions_table(run: dict) -> str:
    """Return how many predictions of trained nets pathnet keeps."""
    lines = [
        [
            row["net"],
            row["precision"],
            f"{row['agreeing']} of {row['images']} ({100 * row['agreeing'] / row['images']:.2f} %)",
            *(f"{100 * row[who] / row['images']:.2f} %" for who in ("correct", "correct_eager")),
            *(f"{row[who]:.1e}" for who in ("error", "error_eager")),
        ]
        for row in results(run, "predictions")
    ]
    header = ["net", "products", "as eager float32", "correct", "eager correct", "error", "error of eager float32"]
    return table(header, lines, text_columns=2)


def shortfalls(run: dict) -> list[str]:
    """Return a sentence for each case in which a rival beats pathnet or the reference ran, and what is missing."""
    sentences: list[str] = []
    for row in results(run, "speed"):
        for rival in (CHANNELS_LAST, NCHW, COMPILED):
            if rival in row["ratios"] and row["ratios"][rival][PATHNET]["median"] < 1:
                times = 1 / row["ratios"][rival][PATHNET]["median"]
                sentences.append(f"{title(row)}: pathnet takes {times:.2f} times as long as {rival}.")
        fallen = row["ran"]["blocks"].get("reference", 0)
        if fallen:
            why = "; ".join(row["ran"]["refusals"])
            sentences.append(f"{title(row)}: {fallen} blocks ran in plain PyTorch, since {why}.")
    return sentences + [f"Not measured: {reason}" for reason in run["pathnet"]["not_available"]]


def markdown(runs: Sequence[dict], note: str = "") -> str:
    """Return the whole page for runs that differ in threads or instruction set; memory is that of the first."""
    runs = merge(runs)
    parts = [INTRODUCTION, environment(runs, note), "## Ceilings\n", CEILINGS, ceilings_table(runs)]
    for run in runs:
        if results(run, "speed"):
            parts += [f"## Time, {setting(run)}\n", speed_table(run)]
        if results(run, "study"):
            parts += [f"## Experiments, {setting(run)}\n", STUDIES, studies_table(run)]
    sections = {
        "memory": ("## Memory of a training step\n", MEMORY, memory_table),
        "blocks": ("## Memory of a block\n", BLOCKS, blocks_table),
        "predictions": ("## Predictions\n", PREDICTIONS, predictions_table),
    }
    for kind, (heading, text, make) in sections.items():
        having = [run for run in runs if results(run, kind)]
        if having:
            parts += [heading, text, make(having[0])]
    parts += [counts.section(), "## What is not fast yet\n"]
    for run in runs:
        slow = shortfalls(run) or ["Every case is faster than all that it was measured against."]
        parts += [f"With {setting(run)}:\n", "\n".join(f"- {sentence}" for sentence in slow) + "\n"]
    parts.append(MEASURE)
    return "\n".join(parts)


def main() -> None:
    """Print the page and, with `--out`, write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="files written by --benchmark-json, oldest first")
    parser.add_argument("--out", type=Path, help="file to write besides printing")
    parser.add_argument("--note", default="", help="a sentence about these runs, printed above the tables")
    arguments = parser.parse_args()
    page = markdown([json.loads(path.read_text()) for path in arguments.results], arguments.note)
    print(page)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page)


if __name__ == "__main__":
    main()
