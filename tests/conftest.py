"""Fixtures of all tests: a seed, and memory that shows what nobody wrote."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, which happens later

KERNELS = Path(__file__).resolve().parents[1] / "kernels"

torch.set_num_threads(1)  # the nets are tiny: more threads only wait for one another, and long on a busy machine


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Sets the number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poisoned():
    """Fresh memory holds NaN, so that an output which is not fully written shows it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def plant(monkeypatch, tmp_path):
    """Replace words in a copy of the Triton kernels, which then stands for them."""

    def plant(file: str, words: str, wrong: str) -> None:
        copied = shutil.copytree(KERNELS, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
        source = (copied / file).read_text()
        assert source.count(words) == 1
        (copied / file).write_text(source.replace(words, wrong))
        for name in [name for name in sys.modules if name.startswith("pathnet.kernels.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(importlib.import_module("pathnet.kernels"), "__path__", [str(copied)])

    yield plant
    copied = [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]
    for name in copied:
        del sys.modules[name]  # monkeypatch then puts back what stood there


@pytest.fixture
def ieee_products():
    """float32 convolutions of a GPU in full precision: in TF32 a small case errs by which of the two cuDNN takes."""
    yield from _float32_products("ieee")


@pytest.fixture
def tf32_products():
    """float32 convolutions of a GPU in TF32."""
    yield from _float32_products("tf32")


def _float32_products(precision: str):
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = precision
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture
def cuda_anywhere(monkeypatch, tf32_products):
    """The CUDA kernels of training take CPU tensors (`cuda_host.ops.on_host`), and products in TF32 are allowed."""
    stage_train = importlib.import_module("pathnet.ops.stage_train")  # the module, and not its function
    unfit = importlib.import_module("pathnet.ops.stage_train_cuda").unfit
    monkeypatch.setitem(stage_train.SUPPORTS, "cuda", unfit)
