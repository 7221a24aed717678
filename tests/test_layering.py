"""The arrows of the house: a part of pathnet may import the parts in rows below its own, and nothing else of it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = (  # from the top down
    ("cli",),
    ("study",),
    ("training",),
    ("analysis", "data"),
    ("doctor", "explain", "profile"),
    ("models",),
    ("blocks",),
    ("ops",),
    ("extension", "kernels", "reference"),
    ("samplers",),
    ("machine_code", "route"),
    ("backend", "files", "gates", "toolkit"),
)
ROW_OF = {part: row for row, parts in enumerate(ROWS) for part in parts}
TOP = ("__init__", "__main__")  # what a user types; they may import anything
SOURCES = {"pathnet/" + str(file.relative_to(ROOT / "pathnet")): file for file in (ROOT / "pathnet").rglob("*.py")}
SOURCES |= {"pathnet/" + str(file.relative_to(ROOT)): file for file in (ROOT / "kernels").rglob("*.py")}


def imports(source: str) -> Iterator[str]:
    """Dotted names of all that is imported, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def wrong_arrows(name: str, source: str) -> list[str]:
    """Sentences about the imports of `pathnet/<part>...` that point up, sideways, or out of the library."""
    part = name.removesuffix(".py").split("/")[1]
    if part in TOP:
        return []
    wrong = []
    for target in imports(source):
        root, _, rest = target.partition(".")
        below = rest.split(".")[0]
        if root in ("", "benchmarks", "tests") or (
            root == "pathnet" and below != part and ROW_OF.get(below, -1) <= ROW_OF[part]
        ):
            wrong.append(f"{name} must not import {target}")
    return wrong


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_arrows_point_down(name):
    assert wrong_arrows(name, SOURCES[name].read_text()) == []


def test_every_part_has_a_row():
    parts = {name.removesuffix(".py").split("/")[1] for name in SOURCES} - {*TOP}
    assert parts == {*ROW_OF}


@pytest.mark.parametrize(
    "name, line",
    [
        ("pathnet/ops/stage.py", "from pathnet.blocks import Stage"),  # up
        ("pathnet/reference/stage.py", "import pathnet.extension"),  # sideways
        ("pathnet/gates.py", "def f():\n    from pathnet.route import Route"),  # up, inside a function
        ("pathnet/models/sizes.py", "from pathnet import PathResNet"),  # through the top
        ("pathnet/models/sizes.py", "from . import resolve"),  # without its full name
        ("pathnet/explain.py", "import benchmarks.cases"),  # out of the library
    ],
)
def test_the_guard_finds_a_wrong_arrow(name, line):
    assert len(wrong_arrows(name, line)) == 1


def test_the_guard_lets_right_arrows_pass():
    good = "import torch\nfrom pathnet import data as images, samplers\nfrom pathnet.study.run import run_study"
    assert wrong_arrows("pathnet/study/settings.py", good) == []


def test_the_toolkit_finder_needs_the_standard_library_alone():
    """setup.py runs it before anything is installed."""
    roots = {target.split(".")[0] for target in imports(SOURCES["pathnet/toolkit.py"].read_text())}
    assert roots <= sys.stdlib_module_names
