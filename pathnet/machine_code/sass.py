"""Machine code as NVIDIA's disassemblers print it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from pathnet import toolkit

LINE = re.compile(r"^(\.L\w+):|/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+)?\s*([A-Z][\w.]*)\s*([^;]*);", re.MULTILINE)
TENSOR_CORES = re.compile(r"(HMMA|HGMMA|UTCHMMA|QGMMA|UTCQMMA|DMMA)\b")
ASYNC_COPIES = re.compile(r"(LDGSTS|UBLKCP|UTMALDG)\b")
INSTRUCTION_BYTES = 16


class Instruction(NamedTuple):
    name: str  # with its modifiers, as HMMA.16816.F32
    operands: str
    predicate: str = ""


class Code(NamedTuple):
    """A kernel as it will run."""

    registers: int
    local_bytes: int  # of a thread's own memory, where its spills go, and arrays that registers do not hold
    instructions: list[Instruction]
    labels: dict[str, int]  # the instruction that each stands before

    def count(self, kind: re.Pattern[str]) -> int:
        return sum(kind.match(instruction.name) is not None for instruction in self.instructions)


def read(cubin: Path, kernel: str) -> Code:
    """The code of the function whose name, mangled or not, holds `kernel`; LookupError if a tool is missing."""
    usage = _run("cuobjdump", "-res-usage", cubin)
    found = re.search(rf"Function \w*{kernel}\w*:\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    text = re.search(rf"^\.text\.\w*{kernel}\w*:$(.*?)(?=^\.text\.|\Z)", _run("nvdisasm", "-c", cubin), re.M | re.S)
    assert found is not None and text is not None, f"{kernel} is not in {cubin}"
    registers, stack, local = map(int, found.groups())
    return Code(registers, stack + local, *parsed(text[1]))


def parsed(text: str) -> tuple[list[Instruction], dict[str, int]]:
    instructions, labels = list[Instruction](), {}
    for label, predicate, name, operands in LINE.findall(text):
        if label:
            labels[label] = len(instructions)
        else:
            instructions.append(Instruction(name, operands, predicate))
    return instructions, labels


def _run(name: str, *arguments: str | Path) -> str:
    return subprocess.run([tool(name), *arguments], capture_output=True, text=True, check=True).stdout


@cache
def tool(name: str) -> Path:
    """A program of the CUDA toolkit, or the one that Triton brings along."""
    found = [place / name for place in _places() if (place / name).is_file()]
    if not found:
        raise LookupError(f"there is no {name} in a CUDA toolkit; install that part of it, or the package triton.")
    return found[0]


def _places() -> Sequence[Path]:
    triton = find_spec("triton")
    beside = [] if triton is None or triton.origin is None else [Path(triton.origin).parent / "backends/nvidia/bin"]
    return [*(Path(home) / "bin" for home in toolkit.installed()), *beside]
