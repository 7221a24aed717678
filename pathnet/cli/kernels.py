"""`pathnet kernels`: compile every GPU kernel for chips that need not be here, and count what came out."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

NAME = "kernels"
HELP = "compile every GPU kernel for the chips named, with no GPU needed, and count registers, spills and instructions"
COLUMNS = {
    "arch": "sm", "registers": "regs", "spill_bytes": "spill", "shared_bytes": "shared", "blocks_per_sm": "blocks",
    "tensor_core_instructions": "tensor", "async_copy_instructions": "async", "code_bytes": "code",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The chips, what to compile for them, and where to write it."""
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 86, 89, 90, 100], help="chips (80 86 89 90 100)")
    parser.add_argument("--channels", type=int, nargs="+", help="channels of the blocks (16 32 64 128)")
    parser.add_argument("--dtypes", nargs="+", help="of float16 bfloat16 tf32 ieee (all)")
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    parser.add_argument("--ptx", type=Path, help="folder for each kernel's PTX, with a JSON that says how to launch it")


def run(args: argparse.Namespace) -> int:
    """Compile and print; 1 if a kernel spills, or a product that should be on the tensor cores is not."""
    rows = compile_all(args.arch, args.channels, args.dtypes, args.ptx)
    print(json.dumps(rows, indent=1) if args.json else table(rows))
    return int(any(unfit(row) for row in rows))


def compile_all(
    archs: Sequence[int], channels: Sequence[int] | None, dtypes: Sequence[str] | None, ptx: Path | None
) -> list[dict[str, Any]]:
    """A row for each kernel, setting and chip, compiled by as many processes as there are processors."""
    if find_spec("triton") is None:
        raise RuntimeError("Triton, which compiles the kernels, is not installed; pip install triton")
    from pathnet.kernels.catalogue import CHANNELS, DTYPES
    from pathnet.kernels.launch import INTERPRETED

    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET=1 is set, and an interpreter compiles nothing; unset it")
    wanted = tuple(channels or CHANNELS), tuple(dtypes or DTYPES)
    if wrong := [name for name in wanted[1] if name not in DTYPES]:
        raise ValueError(f"--dtypes must be of {', '.join(DTYPES)}, got {', '.join(wrong)}")
    if ptx is not None:
        ptx.mkdir(parents=True, exist_ok=True)
    jobs = [(index, arch, *wanted, ptx) for arch in archs for index in range(len(_launches(*wanted)))]
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return list(pool.map(_compile, jobs))


@cache
def _launches(channels: tuple[int, ...], dtypes: tuple[str, ...]) -> list:
    from pathnet.kernels.catalogue import catalogue

    return catalogue(channels, dtypes)


def _compile(job: tuple[int, int, tuple[int, ...], tuple[str, ...], Path | None]) -> dict[str, Any]:
    """In a process of its own: compile one launch of the catalogue, and write its PTX if asked."""
    from pathnet.kernels.compile import compile_launch, launch_description

    index, arch, channels, dtypes, folder = job
    launch = _launches(channels, dtypes)[index]
    compiled, ptx = compile_launch(launch, arch)
    if folder is not None:
        file = folder / f"{compiled.name}-{index:03}-sm{arch}.ptx"
        file.write_text(ptx)
        file.with_suffix(".json").write_text(json.dumps(launch_description(launch, compiled, ptx), indent=1))
    return compiled._asdict()


def unfit(row: dict[str, Any]) -> str | None:
    """What is wrong with a compiled kernel, in a sentence."""
    if row["spill_bytes"]:
        return f"{row['spill_bytes']} bytes of registers spill into memory"
    if not row["tensor_core_exempt"] and not row["tensor_core_instructions"]:
        return "the product is not on the tensor cores"
    return None


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a kernel, and a sentence for each that is unfit."""
    lines = [f"{'kernel':<16} " + " ".join(f"{title:>7}" for title in COLUMNS.values()) + "  settings"]
    for row in rows:
        numbers = " ".join(f"{row[column]:>7}" for column in COLUMNS)
        settings = " ".join(f"{name}={value}" for name, value in row["settings"].items())
        lines.append(f"{row['name']:<16} {numbers}  {settings}")
        if reason := unfit(row):
            lines.append(f"  {reason}")
    wrong = sum(unfit(row) is not None for row in rows)
    return "\n".join([*lines, f"{len(rows)} kernels compiled, {wrong} unfit; counted, not timed"])
