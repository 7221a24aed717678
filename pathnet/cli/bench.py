"""`pathnet bench`: pathnet against plain PyTorch on this machine, as a table and as docs/benchmarks.md."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

NAME = "bench"
HELP = "time pathnet against plain PyTorch and write docs/benchmarks.md (in a checkout)"

CHECKOUT = Path(__file__).resolve().parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_true", help="tiny batches, a minute for each number of threads")
    scale.add_argument("--full", action="store_true", help="batch 128 and ImageNet nets, an hour or more")
    parser.add_argument("--threads", type=_thread_count, nargs="+", default=[1, 2], help="thread counts (1 2)")
    parser.add_argument("--out", type=Path, help="page to write (docs/benchmarks.md of the checkout)")
    parser.add_argument("--note", default="", help="a sentence about the run, printed above the tables")


def run(args: argparse.Namespace) -> int:
    """Run the benchmarks for each number of threads, print and write the page; 0 if all was green."""
    if not (CHECKOUT / "benchmarks" / "conftest.py").is_file():
        print(
            f"pathnet bench needs a checkout of the project, but {CHECKOUT} has no benchmarks folder: "
            "clone the repository, install it with pip install -e '.[test]' and run the command there.",
            file=sys.stderr,
        )
        return 2
    out = (args.out or CHECKOUT / "docs" / "benchmarks.md").resolve()
    scale = [f"--{name}" for name in ("quick", "full") if getattr(args, name)]
    with tempfile.TemporaryDirectory() as folder:
        results = [Path(folder) / f"threads-{count}.json" for count in args.threads]
        codes = [_measure(count, result, scale) for count, result in zip(args.threads, results, strict=True)]
        written = [str(result) for result in results if result.is_file() and result.stat().st_size]
        if written:
            report = [
                sys.executable,
                "-m",
                "benchmarks.report",
                *written,
                "--out",
                str(out),
                "--note",
                args.note,
            ]
            codes.append(subprocess.run(report, cwd=CHECKOUT, check=False).returncode)
    return max(codes)


def _measure(threads: int, result: Path, scale: list[str]) -> int:
    command = [sys.executable, "-m", "pytest", "benchmarks", "-v", *scale, f"--threads={threads}"]
    return subprocess.run([*command, f"--benchmark-json={result}"], cwd=CHECKOUT, check=False).returncode


def _thread_count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of threads from 1 up, got {text!r}")
    return int(text)
