"""The CUDA kernels as nvcc compiles them: each header alone, no spills, tensor cores used, PTX that can be launched."""

from __future__ import annotations

import re
import subprocess

import pytest

from pathnet.cli.kernel_compilers import COMPILERS, Choice
from pathnet.machine_code import unfit
from pathnet.machine_code.parameters import struct
from pathnet.ops import cuda_compile
from pathnet.ops.cuda_compile import SOURCES, compile_kernel, launch_description, ptx_of, why_not
from pathnet.ops.cuda_kernels import KERNELS, Kernel, selected
from pathnet.ops.stage_train_cuda_limits import CHANNELS

pytestmark = pytest.mark.cuda_host
DESCRIBED = list({kernel.name: kernel for kernel in KERNELS}.values())  # one of each
needs_nvcc = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def named(function: str) -> Kernel:
    (kernel,) = (kernel for kernel in KERNELS if kernel.function == function)
    return kernel


@needs_nvcc
@pytest.mark.parametrize("header", sorted(file.name for file in SOURCES.glob("*.cuh")))
def test_every_header_compiles_alone(header, tmp_path):
    (tmp_path / "alone.cu").write_text(f'#include "{header}"\n')
    command = [cuda_compile.nvcc(), "-arch=sm_80", "-std=c++17", f"-I{SOURCES}", "-c", tmp_path / "alone.cu"]
    subprocess.run([*command, "-o", tmp_path / "alone.o"], check=True)


@needs_nvcc
def test_a_kernel_has_no_spills_and_uses_tensor_cores():
    row = compile_kernel(named("pathnet::net_eval_kernel<pathnet::Bf16, false, 16, 4>"), 80)
    assert unfit(row._asdict()) is None and row.registers <= 128 and row.blocks_per_sm >= 1
    assert row.tensor_core_instructions > 100 and row.async_copy_instructions > 0
    assert row.shared_bytes == (24 << 10) + 34 * 34 * 32


def test_no_kernel_is_left_out():
    """Each `__global__` of csrc/cuda, and each form that a launch can take."""
    written = {
        name
        for file in (*SOURCES.glob("*.cuh"), *SOURCES.glob("*.cu"))
        for name in re.findall(r"__global__ void(?: __launch_bounds__\((?:[^()]|\(\))*\))?\s+(\w+)\(", file.read_text())
    }
    defined = sum(len(re.findall(r"^\s*__global__", file.read_text(), re.M)) for file in SOURCES.glob("*.cu*"))
    assert written == {kernel.name for kernel in KERNELS} and len(written) == defined
    of_channels = {(kernel.name, *map(kernel.settings.get, ("dtype", "channels"))) for kernel in KERNELS}
    for name in ("forward", "backward", "arrive", "first_norm"):
        for dtype in ("bfloat16", "float16", "tf32"):
            assert {(f"stage_train_{name}_kernel", dtype, channels) for channels in CHANNELS} <= of_channels


@needs_nvcc
@pytest.mark.parametrize("arguments, follows", [("Tf32, 16", 0), ("Bf16, 32", 0), ("Tf32, 64", 1)])
def test_a_merged_backward_spills_nothing_where_registers_are_shortest(arguments, follows):
    arguments = f"pathnet::{arguments}, (pathnet::train::Follows){follows}"
    row = compile_kernel(named(f"pathnet::train::stage_train_backward_kernel<{arguments}>"), 100)
    assert unfit(row._asdict()) is None and row.spill_bytes == row.local_bytes == 0


@needs_nvcc
@pytest.mark.parametrize("arguments, arch", [("false, 16, 4", 100), ("false, 32, 8", 90)])
def test_net_eval_spills_nothing_where_registers_are_shortest(arguments, arch):
    """With twice the channels its stream stands in local memory, on purpose."""
    row = compile_kernel(named(f"pathnet::net_eval_kernel<pathnet::Bf16, {arguments}>"), arch)
    assert unfit(row._asdict()) is None and row.spill_bytes == 0
    assert (row.local_bytes > 0) == (row.settings["channels"] == 32)


@needs_nvcc
@pytest.mark.parametrize("name", ["stage_train_merge_kernel", "stage_train_sum_kernel", "probe_kernel"])
def test_a_kernel_without_products_compiles(name):
    row = compile_kernel(next(kernel for kernel in KERNELS if kernel.name == name), 80)
    assert unfit(row._asdict()) is None and row.tensor_core_instructions == 0


@needs_nvcc
def test_the_ptx_is_what_the_wrappers_say():
    text = ptx_of(KERNELS[0], 80)
    for instruction in (
        "mma.sync.aligned.m16n8k16",
        "ldmatrix.sync",
        "cp.async.cg.shared.global",
        "cp.async.wait_group",
    ):
        assert instruction in text


@needs_nvcc
@pytest.mark.parametrize("kernel", DESCRIBED, ids=lambda kernel: kernel.name)
def test_the_launch_description_fits_the_ptx(kernel):
    ptx = ptx_of(kernel, 80)
    description = launch_description(kernel, 80, ptx)
    declared = re.search(rf"\.entry {description['entry']}\((.*?)\)", ptx, re.DOTALL)[1]
    words = {"pointer": "u64", "i32": "u32", "i64": "u64"}
    expected = []
    for parameter in description["parameters"]:
        if parameter["kind"] == "struct":
            expected.append(f".b8 {description['entry']}_param_{len(expected)}[{parameter['bytes']}]")
        else:
            word = words["pointer" if parameter["kind"] == "pointer" else parameter["dtype"]]
            expected.append(f".{word} ")
    found = re.findall(r"\.param (?:\.align \d+ )?(\.b8 \w+\[\d+\]|\.\w+ )", declared)
    assert found == expected and description["block"] == [kernel.threads, 1, 1]


@needs_nvcc
def test_a_struct_that_is_described_wrongly_does_not_compile():
    """Two fields have changed places."""
    merge = named("pathnet::train::stage_train_merge_kernel<pathnet::Bf16>")
    (plan,) = merge.example()
    x, u, *rest = plan["fields"]
    wrong = merge._replace(example=lambda: [struct("plan", "MergePlan", [u, x, *rest])])
    with pytest.raises(RuntimeError, match="the offset of u"):
        ptx_of(wrong, 80)


@needs_nvcc
def test_broken_code_is_reported_with_the_words_of_nvcc():
    with pytest.raises(RuntimeError, match="NoOperand"):
        compile_kernel(KERNELS[0]._replace(arguments="pathnet::NoOperand, false"), 80)


def test_missing_sources_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_compile, "SOURCES", tmp_path / "nowhere")
    with pytest.raises(LookupError, match="checkout of pathnet"):
        compile_kernel(KERNELS[0], 80)


def test_kernels_are_selected_by_channels_and_dtype():
    chosen = selected((16,), ("bfloat16",))
    assert {kernel.settings.get("dtype", "bfloat16") for kernel in chosen} == {"bfloat16"}
    assert any(kernel.name == "probe_kernel" for kernel in chosen) and selected(None, None) == list(KERNELS)


def test_a_chip_gets_the_kernels_whose_shared_memory_it_has():
    choice = Choice((32, 64), ("tf32",))
    of_chips = [COMPILERS["CUDA C++"].kernels(choice, arch) for arch in (86, 80, 90)]
    wide = {kernel.function for kernel in of_chips[2]} - {kernel.function for kernel in of_chips[1]}
    assert len(of_chips[0]) < len(of_chips[1]) and of_chips[2] == selected(*choice)
    assert "pathnet::train::stage_train_backward_kernel<pathnet::Tf32, 64, (pathnet::train::Follows)0>" in wide
