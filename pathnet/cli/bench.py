"""`pathnet bench`: pathnet against plain PyTorch on this machine, as a table and as docs/benchmarks.md."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

NAME = "bench"
HELP = "time pathnet against plain PyTorch and write docs/benchmarks.md (in a checkout)"

CHECKOUT = Path(__file__).resolve().parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_true", help="tiny sizes, to see that all works")
    scale.add_argument("--full", action="store_true", help="the stages one by one too, and more rounds")
    parser.add_argument("--threads", type=_positive, nargs="+", default=[1, 2], help="thread counts (1 2)")
    parser.add_argument("--only", help="names with commas between them, such as eval,train or 'preact-*,memory-*'")
    parser.add_argument("--rounds", type=_positive, help="how often each call of a row is timed")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which compiles for minutes")
    parser.add_argument("--weights", action="append", default=[], help="DEPTH=FILE: trained weights of a CIFAR net")
    parser.add_argument("--images", type=Path, help="CIFAR-10, a folder or an .npz file: compare predictions on it")
    parser.add_argument("--results", type=Path, help="folder to keep the figures in, for python -m benchmarks.report")
    parser.add_argument("--out", type=Path, help="page to write (docs/benchmarks.md of the checkout; none with --only)")
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
    with tempfile.TemporaryDirectory() if args.results is None else nullcontext(args.results) as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        started = time.strftime("%Y%m%d-%H%M%S")
        results = [Path(folder).resolve() / f"{started}-threads-{count}.json" for count in args.threads]
        codes = [_measure(count, result, args) for count, result in zip(args.threads, results, strict=True)]
        written = [str(result) for result in results if result.is_file() and result.stat().st_size]
        if written:
            codes.append(_report(written, args))
    return max(codes)


def _measure(threads: int, result: Path, args: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "pytest", "benchmarks", "-v", "-rs", f"--threads={threads}"]
    command += [f"--{name}" for name in ("quick", "full") if getattr(args, name)]
    command += ["--no-compile"] if args.no_compile else []
    command += [f"--{name}={value}" for name in ("only", "rounds") if (value := getattr(args, name)) is not None]
    command += [f"--weights={_absolute(text)}" for text in args.weights]
    command += [f"--images={args.images.resolve()}"] if args.images else []
    return subprocess.run([*command, f"--benchmark-json={result}"], cwd=CHECKOUT, check=False).returncode


def _report(results: list[str], args: argparse.Namespace) -> int:
    """A selection is no page: it is printed, and written only where `--out` says so."""
    out = args.out or (None if args.only else CHECKOUT / "docs" / "benchmarks.md")
    command = [sys.executable, "-m", "benchmarks.report", *results, f"--note={args.note}"]
    command += [f"--out={out.resolve()}"] if out else []
    return subprocess.run(command, cwd=CHECKOUT, check=False).returncode


def _absolute(weights: str) -> str:
    """DEPTH=FILE with the file seen from where the user stands."""
    depth, equals, file = weights.partition("=")
    return f"{depth}={Path(file).resolve()}" if equals else weights


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)
