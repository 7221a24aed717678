"""`pytest benchmarks/` takes about ten minutes on two cores, `--quick` about one, `--full` an hour or more."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from benchmarks.bounds import Ceilings, measure_ceilings
from benchmarks.cases import ROUNDS, SCALES


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pathnet benchmarks")
    scales = {"quick": "tiny batches, about a minute", "full": "batch 128 and ImageNet nets, an hour or more"}
    for scale, text in scales.items():
        group.addoption(f"--{scale}", dest="scale", action="store_const", const=scale, default="default", help=text)
    group.addoption("--threads", type=int, help="threads of PyTorch and pathnet (default: PyTorch's)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = SCALES[metafunc.config.getoption("scale")]
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases, ids=str)
    if "whole_net_step" in metafunc.fixturenames:
        steps = [case for case in cases if case.trains and case.stage is None]
        metafunc.parametrize("whole_net_step", steps, ids=str)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, torch.cuda.is_available() is False"))


@pytest.fixture(scope="session")
def ceilings() -> Ceilings:
    """The arithmetic and memory ceilings of this machine, measured once per run."""
    return measure_ceilings()


@pytest.fixture
def rounds(pytestconfig: pytest.Config) -> int:
    return ROUNDS[pytestconfig.getoption("scale")]


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    """Add what a reader needs to judge the figures."""
    output_json["pathnet"] = {
        "scale": config.getoption("scale"),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "ceilings": asdict(measure_ceilings()),
    }
