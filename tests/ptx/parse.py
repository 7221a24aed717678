"""PTX text as data: one entry, its parameters, its shared memory and its instructions."""

from __future__ import annotations

import re
from typing import NamedTuple

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}  # bytes by the digits of a type
COMMENTS = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)[^{]*\{(.*?)\n\}", re.DOTALL)
PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.\w(\d+)(?:\s+\.ptr\S*(?:\s+\.\w+(?:\s+\d+)?)*)?\s+(\w+)(?:\[(\d+)\])?"
)
SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]")
REGISTERS = re.compile(r"\.reg\s+\.(pred|\w(?:8|16|32|64))\s+(.*)")
LABEL = re.compile(r"\s*([\w$]+):")
GUARD = re.compile(r"@(!?)(%\w+)\s+")
PARAMETER_SPACE = 1 << 16  # bytes from one parameter's address to the next's
BODY_NOISE = (".loc", ".pragma", ".file")


class PtxError(Exception):
    """What is wrong with PTX, or with what it does, in a sentence."""


class Address(NamedTuple):
    """[base + offset]: of a register, or of a name."""

    base: str
    offset: int


Operand = str | Address | tuple[str, ...]


class Instruction(NamedTuple):
    line: int
    guard: str | None  # the predicate, and whether its opposite decides
    inverted: bool
    opcode: str
    operands: tuple[Operand, ...]


class Program(NamedTuple):
    """A kernel as its text says it."""

    name: str
    target: str
    parameters: dict[str, int]  # name -> bytes, in order
    shared: dict[str, int]  # name -> address; dynamic memory behind all else
    static_bytes: int
    widths: dict[str, int]  # the first letters of registers -> bytes, 0 for predicates
    instructions: list[Instruction]
    labels: dict[str, int]  # -> index of the instruction behind it


def parse(text: str, name: str | None = None) -> Program:
    """The entry of this name, or the only one.

    Raises PtxError where the text has none, or a directive that is not known.
    """
    text = COMMENTS.sub(lambda found: "\n" * found.group().count("\n"), text)
    entries = [found for found in ENTRY.finditer(text) if name in (None, found.group(1))]
    if len(entries) != 1:
        raise PtxError(f"the PTX must have one entry {name or ''}, and has {len(entries)}.")
    (entry,) = entries
    parameters = {name: SIZES[bits] * int(count or 1) for bits, name, count in PARAMETER.findall(entry.group(2))}
    shared, static = _shared(text)
    instructions, labels, widths = _body(entry.group(3), text.count("\n", 0, entry.start(3)) + 1)
    target = re.search(r"\.target\s+(\w+)", text)
    return Program(
        entry.group(1), target.group(1) if target else "", parameters, shared, static, widths, instructions, labels
    )


def _shared(text: str) -> tuple[dict[str, int], int]:
    places, end = {}, 0
    for align, name, size in SHARED.findall(text):
        end = -(-end // int(align)) * int(align)
        places[name] = end
        end += int(size or 0)
    return places, end


def _body(text: str, first: int) -> tuple[list[Instruction], dict[str, int], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    widths: dict[str, int] = {}
    for line, words in enumerate(text.split("\n"), first):
        while label := LABEL.match(words):
            labels[label.group(1)] = len(instructions)
            words = words[label.end() :]
        for statement in re.sub(r"^\s*[{}]|[}]\s*$", "", words).split(";"):
            statement = statement.strip()
            if declared := REGISTERS.match(statement):
                names = re.findall(r"(%?[A-Za-z_]+)", declared.group(2))
                kind = declared.group(1)
                widths |= {name: 0 if kind == "pred" else SIZES[kind[1:]] for name in names}
            elif statement and not statement.startswith(BODY_NOISE) and not SHARED.search(statement):
                instructions.append(_instruction(statement, line))
    return instructions, labels, widths


def _instruction(statement: str, line: int) -> Instruction:
    guard = GUARD.match(statement)
    rest = statement[guard.end() :] if guard else statement
    opcode, _, operands = rest.partition(" ") if " " in rest else rest.partition("\t")
    opcode = opcode.strip()
    if opcode.startswith("."):
        raise PtxError(f"line {line}: the directive {statement!r} is not known.")
    return Instruction(
        line, guard.group(2) if guard else None, bool(guard and guard.group(1)), opcode, _operands(operands)
    )


def _operands(text: str) -> tuple[Operand, ...]:
    """Split at commas that stand in no braces; %r1|%p1 are two."""
    parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,|\s]+", text)
    return tuple(_operand(part) for part in parts)


def _operand(part: str) -> Operand:
    if part.startswith("{"):
        return tuple(re.findall(r"[^\s,{}]+", part))
    if part.startswith("["):
        base, _, offset = part[1:-1].replace(" ", "").replace("\t", "").partition("+")
        return Address(base, int(offset or "0", 0))
    return part
