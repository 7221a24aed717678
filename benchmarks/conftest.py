"""`pytest benchmarks/` measures the whole table in about half an hour, `--quick` a minute or two at tiny sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from benchmarks.cases import ROUNDS, SCALES, names, select
from benchmarks.ceilings import instructions, measure
from benchmarks.predictions import Trained, load_images
from benchmarks.studies import studies

CHOSEN = pytest.StashKey[set[str]]()  # names of what is measured
TRAINED = pytest.StashKey[list[Trained]]()
REASONS = pytest.StashKey[list[str]]()  # why rows could not be measured


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pathnet benchmarks")
    scales = {"quick": "tiny sizes, to see that all works", "full": "the stages one by one too, and more rounds"}
    for scale, text in scales.items():
        group.addoption(f"--{scale}", dest="scale", action="store_const", const=scale, default="default", help=text)
    group.addoption("--threads", type=int, help="threads of PyTorch and pathnet (default: PyTorch's)")
    group.addoption("--only", help="names of rows with commas between them, such as eval,train or 'preact-*'")
    group.addoption("--rounds", type=int, help="how often each call of a row is timed")
    group.addoption("--no-compile", action="store_true", help="leave torch.compile out, which compiles for minutes")
    group.addoption("--weights", action="append", default=[], help="DEPTH=FILE: trained weights of a CIFAR net")
    group.addoption("--images", type=Path, help="CIFAR-10, a folder or an .npz file: compare predictions on it")


def pytest_configure(config: pytest.Config) -> None:
    cases, weights = SCALES[config.getoption("scale")], config.getoption("--weights")
    known, only = [*names(cases), *studies(config.getoption("scale"))], config.getoption("--only")
    try:
        chosen = set(known) if only is None else select(known, only.split(","))
        config.stash[TRAINED] = [Trained.parse(text) for text in weights]
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    if weights and config.getoption("--images") is None:
        raise pytest.UsageError("--weights needs --images, a CIFAR-10 folder or an .npz file to predict on")
    config.stash[CHOSEN] = chosen
    config.stash[REASONS] = []
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases, chosen = SCALES[metafunc.config.getoption("scale")], metafunc.config.stash[CHOSEN]
    if "case" in metafunc.fixturenames:
        wanted = [case for case in cases if case.name in chosen]
        metafunc.parametrize("case", wanted, ids=lambda case: case.name)
    if "whole_net_step" in metafunc.fixturenames:
        steps = [case for case in cases if f"memory-{case.name}" in chosen]
        metafunc.parametrize("whole_net_step", steps, ids=lambda case: f"memory-{case.name}")
    if "kind_of_block" in metafunc.fixturenames:
        metafunc.parametrize("kind_of_block", ["basic", "preact"] if "memory-blocks" in chosen else [])
    if "study" in metafunc.fixturenames:
        rows = {name: make for name, make in studies(metafunc.config.getoption("scale")).items() if name in chosen}
        metafunc.parametrize("study", rows.items(), ids=list(rows))
    if "trained" in metafunc.fixturenames:
        trained = metafunc.config.stash[TRAINED] if "predictions" in chosen else []
        metafunc.parametrize("trained", trained, ids=str)
        metafunc.parametrize("precision", [None, "bf16"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what nobody asked for: predictions without weights, steps where no row is one."""
    empty = [item for item in items if any(mark.name == "skip" for mark in item.iter_markers())]
    config.hook.pytest_deselected(items=empty)
    items[:] = [item for item in items if item not in empty]


@pytest.fixture(scope="session")
def images(pytestconfig: pytest.Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Real images and their classes."""
    return load_images(pytestconfig.getoption("--images"))


@pytest.fixture
def rounds(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("--rounds") or ROUNDS[pytestconfig.getoption("scale")]


@pytest.fixture
def compiled(pytestconfig: pytest.Config) -> bool:
    return not pytestconfig.getoption("--no-compile")


@pytest.fixture
def not_available(pytestconfig: pytest.Config) -> Callable[[str], NoReturn]:
    """End the test with a sentence that the report repeats."""

    def end(reason: str) -> NoReturn:
        pytestconfig.stash[REASONS].append(reason)
        pytest.skip(reason)

    return end


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    """Add what a reader needs to judge the figures."""
    ceilings = measure()
    output_json["pathnet"] = {
        "scale": config.getoption("scale"),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "instructions": instructions(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "ceilings": ceilings if isinstance(ceilings, str) else asdict(ceilings),
        "not_available": config.stash[REASONS],
    }
