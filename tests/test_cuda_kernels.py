"""The CUDA kernels as nvcc compiles them: each header alone, no spills, tensor cores used."""

from __future__ import annotations

import subprocess

import pytest

from pathnet.ops import cuda_kernels
from pathnet.ops.cuda_kernels import KERNELS, SOURCES, rows, write_ptx

pytestmark = pytest.mark.cuda_host


def tools() -> str | None:
    """What is missing on this machine."""
    try:
        cuda_kernels._nvcc(), cuda_kernels._disassembler()
    except LookupError as reason:
        return str(reason)
    return None


needs_nvcc = pytest.mark.skipif(tools() is not None, reason=str(tools()))


@needs_nvcc
@pytest.mark.parametrize("header", sorted(file.name for file in SOURCES.glob("*.cuh")))
def test_every_header_compiles_alone(header, tmp_path):
    (tmp_path / "alone.cu").write_text(f'#include "{header}"\n')
    command = [cuda_kernels._nvcc(), "-arch=sm_80", "-std=c++17", f"-I{SOURCES}", "-c", tmp_path / "alone.cu"]
    subprocess.run([*command, "-o", tmp_path / "alone.o"], check=True)


@needs_nvcc
def test_a_kernel_has_no_spills_and_uses_tensor_cores():
    basic = [kernel for kernel in KERNELS if kernel.settings == {"operand": "bf16", "preact": False}]
    (row,) = rows([80], basic)
    assert row.spill_bytes == 0 and row.registers <= 128 and row.blocks_per_sm >= 1
    assert row.tensor_core_instructions > 100 and row.async_copy_instructions > 0
    assert row.shared_bytes == (24 << 10) + 34 * 34 * 32


@needs_nvcc
def test_every_kernel_of_a_run_compiles():
    for row in rows([80], [kernel for kernel in KERNELS if kernel.header == "forward_run.cuh"]):
        assert row.spill_bytes == 0 and row.blocks_per_sm * 256 >= 8 * 32
        assert row.tensor_core_instructions == 0 and row.tensor_core_exempt is not None


@needs_nvcc
def test_the_ptx_is_what_the_wrappers_say(tmp_path):
    (file,) = write_ptx(tmp_path, [80], KERNELS[:1])
    text = file.read_text()
    for instruction in (
        "mma.sync.aligned.m16n8k16",
        "ldmatrix.sync",
        "cp.async.cg.shared.global",
        "cp.async.wait_group",
    ):
        assert instruction in text


@needs_nvcc
def test_broken_code_is_reported_with_the_words_of_nvcc():
    broken = KERNELS[0]._replace(arguments="pathnet::NoOperand, false")
    with pytest.raises(RuntimeError, match="NoOperand"):
        next(rows([80], [broken]))


def test_missing_sources_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_kernels, "SOURCES", tmp_path / "nowhere")
    with pytest.raises(LookupError, match="checkout of pathnet"):
        next(rows([80]))
