"""`pathnet kernels`: compile every GPU kernel for chips that need not be here, and count what came out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pathnet.cli.kernel_compilers import COMPILERS, Choice
from pathnet.machine_code import ARCHS, unfit

NAME = "kernels"
HELP = "compile every GPU kernel for the chips named, with no GPU needed, and count registers, spills and instructions"
DTYPES = ("float16", "bfloat16", "tf32", "ieee")
LANGUAGES = {"Triton": "triton", "CUDA C++": "cuda"}  # a compiler's name, and what it is called here
COLUMNS = {
    "arch": "sm", "registers": "regs", "spill_bytes": "spill", "local_bytes": "local",
    "shared_bytes": "shared", "blocks_per_sm": "blocks",
    "warps_per_sm": "warps", "tensor_core_instructions": "tensor", "scalar_share": "scalar",
    "async_copy_instructions": "async", "code_bytes": "code",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The chips, what to compile for them, and where to write it."""
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHS), help="chips (80 86 89 90 100)")
    parser.add_argument("--language", choices=LANGUAGES.values(), help="of the kernels (both)")
    parser.add_argument("--channels", type=int, nargs="+", help="channels of the blocks (16 32 64 128)")
    parser.add_argument("--dtypes", nargs="+", help=f"of {' '.join(DTYPES)} (all)")
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    parser.add_argument("--ptx", type=Path, help="folder for each kernel's PTX, with a JSON that says how to launch it")


def run(args: argparse.Namespace) -> int:
    """Compile and print; 1 if a kernel is unfit: it spills, too few are resident, or its product is scalar."""
    if wrong := [name for name in args.dtypes or () if name not in DTYPES]:
        raise ValueError(f"--dtypes must be of {', '.join(DTYPES)}, got {', '.join(wrong)}")
    choice = Choice(*(None if values is None else tuple(values) for values in (args.channels, args.dtypes)))
    rows = compile_all(args.arch, choice, args.ptx, args.language)
    print(json.dumps(rows, indent=1) if args.json else table(rows))
    return int(any(unfit(row) for row in rows))


def compile_all(
    archs: Sequence[int], choice: Choice, ptx: Path | None, language: str | None = None
) -> list[dict[str, Any]]:
    """A row for each kernel, setting and chip, compiled by as many processes as there are processors.

    A language that cannot be compiled here is left out with a sentence; RuntimeError if no language can.
    """
    compilers = {name: COMPILERS[name] for name in COMPILERS if language in (None, LANGUAGES[name])}
    missing = {name: reason for name, compiler in compilers.items() if (reason := compiler.why_not())}
    sentences = [f"The {name} kernels are left out: {reason}" for name, reason in missing.items()]
    if len(missing) == len(compilers):
        raise RuntimeError(" ".join(sentences))
    print(*sentences, sep="\n", end="\n" * bool(sentences), file=sys.stderr)
    if ptx is not None:
        ptx.mkdir(parents=True, exist_ok=True)
    jobs = [
        (name, index, arch, choice, ptx)
        for name, compiler in compilers.items()
        if name not in missing
        for arch in archs
        for index in range(len(compiler.kernels(choice, arch)))
    ]
    jobs.sort(key=lambda job: job[:2])  # the chips of a kernel side by side, since they share a part of the work
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        rows = list(pool.map(_compile, jobs, chunksize=len(archs)))
    return sorted(rows, key=lambda row: archs.index(row["arch"]))


def _compile(job: tuple[str, int, int, Choice, Path | None]) -> dict[str, Any]:
    """In a process of its own: compile one kernel, and write its PTX if asked."""
    language, index, arch, choice, folder = job
    compiler = COMPILERS[language]
    kernel = compiler.kernels(choice, arch)[index]
    row = compiler.compile(kernel, arch)
    if folder is not None:
        file = folder / f"{row.name}-{index:03}-sm{arch}.ptx"
        ptx, description = compiler.ptx(kernel, arch)
        file.write_text(ptx)
        file.with_suffix(".json").write_text(json.dumps(description, indent=1))
    return row._asdict()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a kernel, and a sentence for each that is unfit."""
    lines = [f"{'kernel':<30} " + " ".join(f"{title:>7}" for title in COLUMNS.values()) + "  settings"]
    for row in rows:
        numbers = " ".join(f"{row[column]:>7}" for column in COLUMNS)
        settings = " ".join(f"{name}={value}" for name, value in row["settings"].items())
        lines.append(f"{row['name']:<30} {numbers}  {settings}")
        if reason := unfit(row):
            lines.append(f"  {reason}")
    wrong = sum(unfit(row) is not None for row in rows)
    return "\n".join([*lines, f"{len(rows)} kernels compiled, {wrong} unfit; counted, not timed"])
