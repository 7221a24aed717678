"""Turns the files of `pytest benchmarks/ --benchmark-json`, one per thread count, into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.providers import ALL_BLOCKS, CHANNELS_LAST, COMPILED, NCHW

INTRODUCTION = """# Benchmarks

Written by `pathnet bench`; do not edit by hand.

Every row is one run in which all columns take turns on the same weights and images, in float32,
after a warm-up. Times are medians in milliseconds. A ratio is the time of the other over the time
of pathnet's fastest backend, taken round by round and given as median [first quartile, third
quartile]: above 1 pathnet is faster, below 1 slower. The eager columns are the plain `nn.Module`
nets of `benchmarks/eager.py`. In a path-restricted step (23 of 54 blocks FULL, 31 FORWARD) eager
computes the 31 residual branches under `no_grad`; in an effective-path step (23 FULL, 31 OFF) it
skips them in Python; "all blocks" is eager channels-last training every block. A training step is
zero_grad, forward, loss, backward and SGD with momentum. "-" means: not run in this case. A row
stands here only if pathnet's outputs and gradients agreed with the plain net in float64 just
before.

The bound is the larger of FLOPs / peak and unavoidable bytes / bandwidth, for *direct* convolution,
where peak and bandwidth are what a 2048 x 2048 matrix product and a copy of 256 MiB reached here.
"Reached" is the bound over the time of pathnet's fastest backend; an algorithm with fewer
multiplications may pass 100 %.
"""
RATIOS = "Compare ratios, not milliseconds: other work on the machine leaves them nearly intact."
MEMORY_NOTE = """Kept: the distinct storages that autograd saves for the backward, without parameters.
Peak: the largest running sum of PyTorch's allocations in one step, above what stood before it;
scratch of libraries is not seen. Below 1 pathnet needs less.
"""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table; the first columns are text, the others are aligned right."""
    rule = ["---" if column < text_columns else "---:" for column in range(len(header))]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def threads(run: dict) -> str:
    """Return the thread count of a run in words."""
    count = run["pathnet"]["threads"]
    return f"{count} thread" + ("s" if count > 1 else "")


def environment(runs: list[dict], note: str) -> str:
    """Return machine and versions, and for each number of threads commit, scale and ceilings."""
    machine, first = runs[0]["machine_info"], runs[0]["pathnet"]
    cpu = machine["cpu"]
    lines = [
        f"- {cpu['brand_raw']}, {cpu['count']} cores, {first['cpu_capability']}; no GPU was measured",
        f"- Python {machine['python_version']}, PyTorch {first['torch']}, {machine['system']}",
    ]
    for run in runs:
        commit, ceilings = run["commit_info"], run["pathnet"]["ceilings"]
        dirty = " with uncommitted changes" if commit.get("dirty") else ""
        lines.append(
            f"- {threads(run)}: commit {str(commit['id'])[:12]}{dirty}, {run['datetime'][:10]}, "
            f"scale {run['pathnet']['scale']}; ceilings {ceilings['flops_per_second'] / 1e9:.0f} GFLOP/s and "
            f"{ceilings['bytes_per_second'] / 1e9:.1f} GB/s (read + write)"
        )
    return "\n".join(lines) + "\n\n" + f"{note} {RATIOS}".strip() + "\n"


def results(run: dict, kind: str) -> list[dict]:
    """Return what the tests of one kind ("speed" or "memory") left, in the order in which they ran."""
    return [entry["extra_info"] for entry in run["benchmarks"] if entry["extra_info"].get("kind") == kind]


def title(result: dict) -> str:
    """Return the name of the case."""
    return str(Case(**result["case"]))


def ratio(result: dict, baseline: str) -> str:
    """Return "median [quartiles]" of pathnet's fastest backend against the baseline, a dash without one."""
    if baseline not in result["ratios"]:
        return "-"
    spread = result["ratios"][baseline][result["subject"]]
    return f"{spread['median']:.2f}x [{spread['first_quartile']:.2f}, {spread['third_quartile']:.2f}]"


def speed_table(run: dict) -> str:
    """Return the times of every provider and the ratios of pathnet's fastest backend."""
    rows = results(run, "speed")
    ours = dict.fromkeys(name for row in rows for name in row["seconds"] if name.startswith("pathnet"))
    columns = [NCHW, CHANNELS_LAST, COMPILED, *ours]
    against = (CHANNELS_LAST, NCHW, ALL_BLOCKS, COMPILED)
    lines = []
    for row in rows:
        seconds, bound = row["seconds"], row["bound"]
        times = [f"{1e3 * seconds[name]['median']:.1f}" if name in seconds else "-" for name in columns]
        reached = bound["seconds"] / seconds[row["subject"]]["median"]
        limit = f"{1e3 * bound['seconds']:.1f} ({bound['limited_by']})"
        ratios = [ratio(row, baseline) for baseline in against]
        lines.append([title(row), *times, *ratios, limit, f"{100 * reached:.0f} %"])
    short = {CHANNELS_LAST: "channels-last", NCHW: "NCHW", ALL_BLOCKS: "all blocks", COMPILED: "compile"}
    return table(["case", *columns, *(f"against {short[name]}" for name in against), "bound", "reached"], lines)


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


def shortfalls(run: dict) -> list[str]:
    """Return a sentence for each case in which a rival beats pathnet, and for each refusal of a backend."""
    sentences: list[str] = []
    refusals: dict[str, int] = {}
    for row in results(run, "speed"):
        for rival in (CHANNELS_LAST, NCHW, COMPILED):
            if rival in row["ratios"] and row["ratios"][rival][row["subject"]]["median"] < 1:
                times = 1 / row["ratios"][rival][row["subject"]]["median"]
                sentences.append(f"{title(row)}: {row['subject']} takes {times:.2f} times as long as {rival}.")
        for sentence in row["refused"].values():
            reason = sentence.partition(": ")[2]
            refusals[reason] = refusals.get(reason, 0) + 1
    return sentences + [f"Not run in {count} cases: {reason.rstrip('.')}." for reason, count in refusals.items()]


def markdown(runs: list[dict], note: str = "") -> str:
    """Return the whole page for runs that differ in their number of threads; memory does not depend on it."""
    parts = [INTRODUCTION, environment(runs, note)]
    for run in runs:
        parts += [f"## Time, {threads(run)}\n", speed_table(run)]
    parts += [
        "## Memory of a training step\n",
        MEMORY_NOTE,
        memory_table(runs[0]),
        "## What is not fast yet\n",
    ]
    for run in runs:
        slow = shortfalls(run) or ["Every case is faster than eager PyTorch and torch.compile."]
        parts += [f"With {threads(run)}:\n", "\n".join(f"- {sentence}" for sentence in slow) + "\n"]
    return "\n".join(parts)


def main() -> None:
    """Print the page and, with `--out`, write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="files written by --benchmark-json")
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
