"""PATHNET_CPU_ISA: each instruction set forced, and what a wrong value does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pathnet import extension

CPU = Path(__file__).resolve().parents[1] / "csrc" / "cpu"
ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")  # in the order of Isa

compiled = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")

COMPARE = """
import torch, pathnet
torch.manual_seed(0)
nets = pathnet.PathResNet(depth=8), pathnet.PathResNet(depth=18, stem="imagenet", width=24, num_classes=5)
with torch.no_grad():
    for net in nets:
        x = torch.randn(3, 3, 33, 47)
        with pathnet.use_backend("reference"):
            expected = net.eval()(x)
        with pathnet.use_backend("cpu"):
            torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
"""

REPORT = (
    "import pathnet; r = pathnet.doctor(); print(r.extensions['cpu'], *(c for c in r.checks if c.backend == 'cpu'))"
)

ASK = """
#include <iostream>
#include "isa.h"
int main(int, char** arguments) {
  using namespace pathnet;
  const Isa best = static_cast<Isa>(arguments[2][0] - '0');
  try {
    std::cout << to_string(pick_isa(arguments[1], best));
  } catch (const std::exception& error) {
    std::cout << error.what();
  }
}
"""


def python(code: str, isa: str | None, warnings: str = "error") -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != extension.CPU_ISA}
    environ |= {} if isa is None else {extension.CPU_ISA: isa}
    command = [sys.executable, "-W", f"{warnings}:pathnet runs on plain PyTorch", "-c", code]
    return subprocess.run(command, env=environ, capture_output=True, text=True)


@compiled
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_references_output(isa):
    result = python(COMPARE + REPORT, isa)
    if "must name instructions that this processor has" in result.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert result.returncode == 0, result.stderr
    assert f"instructions {isa}, chosen as asked for by PATHNET_CPU_ISA" in result.stdout


@compiled
@pytest.mark.parametrize("isa", [None, ""])
def test_without_the_variable_it_is_the_best(isa):
    result = python(REPORT, isa)
    assert "chosen as this processor's best" in result.stdout and "reason=None" in result.stdout, result.stderr


@compiled
@pytest.mark.parametrize("isa", ["sse9", "AVX2 "])
def test_an_unknown_value_leaves_the_reference_and_says_so(isa):
    result = python(REPORT, isa, warnings="always")
    sentence = (
        "pathnet._C is not loaded: PATHNET_CPU_ISA must be portable, avx2, avx512, avx512_bf16 or amx, but it is "
        f"'{isa}'. Set it to "
    )
    assert result.returncode == 0, result.stderr
    assert f"pathnet runs on plain PyTorch: {sentence}" in result.stderr
    assert result.stdout.count(sentence) == 2  # the build, and the backend


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """The answer to a value of the variable on a processor whose best set is number `best`."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("isa")
    (folder / "ask.cpp").write_text(ASK)
    sources = [folder / "ask.cpp", CPU / "isa.cpp"]
    subprocess.run([compiler, "-std=c++17", f"-I{CPU}", *sources, "-o", folder / "ask"], check=True)
    return lambda value, best: subprocess.check_output([folder / "ask", value, str(best)], text=True)


def test_a_processor_is_asked_for_what_it_has(ask):
    for best, best_isa in enumerate(ISAS):
        assert ask("", best) == best_isa
        for asked, isa in enumerate(ISAS):
            assert ask(isa, best) == isa if asked <= best else ask(isa, best).startswith("PATHNET_CPU_ISA must")


def test_a_processor_that_lacks_it_says_what_it_has(ask):
    assert ask("avx512", 1) == (
        "PATHNET_CPU_ISA must name instructions that this processor has (portable or avx2), but it is 'avx512'. "
        "Set it to one of these, or unset it."
    )
    assert "has (portable), but it is 'avx2'" in ask("avx2", 0)
