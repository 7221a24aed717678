"""Launch PTX on NumPy arrays: a grid of blocks one after the other, as a launch description says."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from ptx.machine import Block, Kernel
from ptx.memory import GlobalMemory
from ptx.parse import PARAMETER_SPACE, PtxError, parse

NUMBER = re.compile(r"0[fF][0-9a-fA-F]{8}|-?(?:0x[0-9a-fA-F]+|\d+)U?")
SCALARS = {"i32": "<i", "i64": "<q", "fp32": "<f", "bool": "<?"}
ALIGNED = 16  # bytes, of every pointer
Three = tuple[int, int, int]


def execute(
    kernel: Kernel, grid: Three, block: Three, shared_bytes: int, parameters: Iterable[bytes], memory: GlobalMemory,
    backwards: bool = False,
) -> None:  # fmt: skip
    """Run all blocks, the first or the last of them first.

    Raises PtxError with the block and the line of what went wrong.
    """
    program = kernel.program
    held = dict(zip(program.parameters, (np.frombuffer(value, np.uint8) for value in parameters), strict=True))
    for name, value in held.items():
        if len(value) != program.parameters[name]:
            raise PtxError(f"{name} has {program.parameters[name]} bytes, and gets {len(value)}.")
    registers = _registers(kernel, grid, block)
    places = [index[::-1] for index in itertools.product(*map(range, grid[::-1]))]
    releases: dict = {}
    with np.errstate(all="ignore"):
        for index in reversed(places) if backwards else places:
            own = registers | {
                f"%ctaid.{axis}": np.full(len(registers["%tid.x"]), index[i], np.uint32) for i, axis in enumerate("xyz")
            }
            number = index[0] + grid[0] * (index[1] + grid[1] * index[2])
            try:
                Block(kernel, number, own, held, program.static_bytes + shared_bytes, memory, releases).run()
            except PtxError as error:
                raise PtxError(f"block {index} of {program.name}: {error}") from None


def _registers(kernel: Kernel, grid: Three, block: Three) -> dict[str, np.ndarray]:
    """What stands in registers before the first instruction: places, and every number that the program names."""
    threads = block[0] * block[1] * block[2]
    lanes = np.arange(threads, dtype=np.uint32)
    places = lanes % block[0], lanes // block[0] % block[1], lanes // (block[0] * block[1])
    registers = {f"%tid.{axis}": places[i] for i, axis in enumerate("xyz")}
    for i, axis in enumerate("xyz"):
        registers[f"%ntid.{axis}"] = np.full(threads, block[i], np.uint32)
        registers[f"%nctaid.{axis}"] = np.full(threads, grid[i], np.uint32)
    registers |= {name: np.full(threads, at, np.uint64) for name, at in kernel.program.shared.items()}
    for number, name in enumerate(kernel.program.parameters):
        registers[name] = np.full(threads, number * PARAMETER_SPACE, np.uint64)
    operands = itertools.chain.from_iterable(what.operands for what in kernel.program.instructions)
    for word in {part for operand in operands for part in (operand if isinstance(operand, tuple) else (operand,))}:
        if isinstance(word, str) and NUMBER.fullmatch(word):
            registers[word] = np.full(threads, *_number(word))
    return registers


def _number(word: str) -> tuple[int, type]:
    return (
        (int(word[2:], 16), np.uint32)
        if word[:2] in ("0f", "0F")
        else (int(word.rstrip("U"), 0) & 2**64 - 1, np.uint64)
    )


def launch(
    ptx: str | Kernel, description: Mapping[str, Any], arguments: Mapping[str, torch.Tensor], backwards: bool = False
) -> None:
    """Execute a kernel on tensors by the description that `pathnet kernels --ptx` writes beside its PTX.

    Nothing but the description decides what is passed; `arguments` gives the memory of its pointers by their names.
    """
    kernel = ptx if isinstance(ptx, Kernel) else Kernel(parse(ptx))
    memory = GlobalMemory()
    parameters = [_parameter(entry, arguments, memory) for entry in description["parameters"]]
    for entry in description.get("reached", ()):
        _parameter(entry, arguments, memory)
    execute(
        kernel, tuple(description["grid"]), tuple(description["block"]), description["shared_bytes"], parameters,
        memory, backwards,
    )  # fmt: skip


def _parameter(entry: Mapping[str, Any], arguments: Mapping[str, torch.Tensor], memory: GlobalMemory) -> bytes:
    """The bytes that are passed; a pointer's memory joins `memory`."""
    if entry["kind"] == "null":
        return bytes(8)
    if entry["kind"] == "scalar":
        return struct.pack(SCALARS[entry["dtype"]], entry["value"])
    if entry["kind"] == "struct":
        held = bytearray(entry["bytes"])
        for field in entry["fields"]:
            value = _parameter(field, arguments, memory)
            held[field["offset"] : field["offset"] + len(value)] = value
        return bytes(held)
    tensor = arguments[entry["name"]]
    if list(tensor.shape) != entry["shape"] or list(tensor.stride()) != entry["strides"]:
        raise PtxError(f"{entry['name']} has another shape or other strides than its launch description says.")
    if tensor.data_ptr() % ALIGNED:
        raise PtxError(f"{entry['name']} does not start at a multiple of {ALIGNED} bytes.")
    if entry["contents"] == "zeros" and tensor.any():
        raise PtxError(f"{entry['name']} does not hold the zeros that its launch description asks for.")
    known = entry["contents"] != "undefined"
    memory.add(tensor.data_ptr(), entry["name"], _bytes_of(tensor), known, entry["written"])
    return struct.pack("<Q", tensor.data_ptr())


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor, from its first to its last element."""
    size = tensor.element_size()
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first, count = tensor.storage_offset() * size, (last + 1) * size if tensor.numel() else 0
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
    return storage[first : first + count]
