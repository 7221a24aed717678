"""`pathnet kernels`: what is compiled, how it is counted, and that the PTX can be launched as its JSON says."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import subprocess
import sys

import pytest

from pathnet.cli import kernels
from pathnet.kernels.catalogue import DTYPES, catalogue
from pathnet.kernels.grids import GRIDS
from pathnet.machine_code import unfit

COMPILE_TWO = """
import json, sys
from pathnet.kernels.catalogue import catalogue
from pathnet.kernels.compile import compile_launch, ptx_of
wanted = next(l for l in catalogue([16], ["float16"]) if l.constants.get("BITS") == "join")
ptx, description = ptx_of(wanted, int(sys.argv[1]))
compiled = compile_launch(wanted, int(sys.argv[1]))
continued = [ptx_of(wanted, arch)[0] for arch in (86, 90)]
alone = [ptx_of(wanted._replace(), arch)[0] for arch in (86, 90)]
crowded = compile_launch(wanted._replace(warps=1, constants=wanted.constants | {"BLOCK_M": 256}), int(sys.argv[1]))
print(json.dumps([compiled._asdict(), description, ptx, crowded._asdict(), continued, alone]))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The longest forward kernel for sm_80, by a Python that does not interpret; and once more for a single warp."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))  # others name files of other checkouts
    done = subprocess.run(
        [sys.executable, "-c", COMPILE_TWO, "80"], capture_output=True, text=True, env=environment, check=True
    )
    return json.loads(done.stdout)


def test_a_kernel_is_counted(compiled):
    row, _, ptx, *_ = compiled
    assert row["name"] == "conv_forward" and row["language"] == "triton" and row["arch"] == 80
    assert unfit(row) is None and row["spill_bytes"] == 0 and 0 < row["registers"] <= 255
    assert row["tensor_core_instructions"] == len(re.findall(r"\bmma\.sync", ptx)) > 0
    assert 0 < row["scalar_share"] < 0.1, "the prologue multiplies and adds a little"
    assert row["async_copy_instructions"] > 0 and row["code_bytes"] > 1000 and row["shared_bytes"] > 0
    assert row["blocks_per_sm"] * row["settings"]["num_warps"] == row["warps_per_sm"] >= 8


def test_a_kernel_that_asks_for_too_many_registers_is_unfit(compiled):
    crowded = compiled[3]
    assert crowded["spill_bytes"] > 0 and "spill" in unfit(crowded)


def test_a_chip_that_continues_the_work_of_another_gets_the_code_of_its_own(compiled):
    *_, continued, alone = compiled
    assert continued == alone and ".target sm_86" in alone[0] and ".target sm_90" in alone[1]


def unfenced(ptx: str) -> bool:
    """Whether a store may pass the counter: no barrier stands between it and the atomic, or no acquire-release."""
    before, _, _ = ptx.partition("atom.global.gpu.acq_rel")
    return before == ptx or before.rfind("st.global") > before.rfind("bar.sync")


def test_the_last_program_sees_what_the_others_stored(compiled):
    """An interpreter runs programs one by one, and cannot show it."""
    ptx = compiled[2]
    assert not unfenced(ptx)
    assert unfenced(ptx.replace("acq_rel", "relaxed")) and unfenced(ptx.replace("bar.sync", "// bar"))
    after = ptx.partition("atom.global.gpu.acq_rel")[2]
    assert re.search(r"ld\.global\.cg", after), "slots of other programs are read past the first cache"


def test_the_launch_description_fits_the_ptx(compiled):
    row, description, ptx, *_ = compiled
    entry = re.search(r"\.entry (\w+)\((.*?)\)", ptx, re.DOTALL)
    declared = re.findall(r"\.param \.(u64 \.ptr|\w+)", entry.group(2))
    assert description["entry"] == entry.group(1) and description["shared_bytes"] == row["shared_bytes"]
    assert len(declared) == len(description["parameters"])
    words = {"i32": "u32", "i64": "u64", "fp32": "f32"}
    for kind, parameter in zip(declared, description["parameters"], strict=True):
        pointer = parameter["kind"] != "scalar"
        assert kind.startswith("u64") if pointer else kind == words[parameter["dtype"]], parameter["name"]
    assert description["block"] == [256, 1, 1] and description["grid"] == [1024, 1, 1]


@pytest.mark.parametrize("channels", [16, 72])
def test_the_grid_follows_from_its_rule(channels):
    for launch in catalogue([channels], ["bfloat16", "ieee"]):
        names = launch.arguments | launch.constants | {"ceil": math.ceil}
        rule = GRIDS[launch.kernel.fn.__name__]
        assert tuple(eval(each, {}, names) for each in rule) == launch.grid, launch.kernel.fn.__name__


def test_the_catalogue_has_every_block_size_of_the_table():
    launches = catalogue([16, 64], ["float16", "ieee"])
    assert {launch.kernel.fn.__name__ for launch in launches} >= {
        "conv_eval", "conv_forward", "merge", "arrive", "inner_gradient", "outer_gradient", "weight_gradient",
        "sum_slots", "first_norm", "conv_residual", "residual_gradient", "depart", "conv_again",
        "conv_statistics", "conv_of_rebuilt", "merge_rebuilt", "inner_of_rebuilt", "weight_gradient_of_rebuilt",
        "outer_to_rebuilt", "arrive_at_rebuilt",
    }  # fmt: skip
    convs = [launch.constants for launch in launches if launch.multiplies]
    assert {constants["STRIDE"] for constants in convs if "STRIDE" in constants} == {1, 2}
    assert {launch.constants.get("MASK") for launch in launches} >= {"none", "values", "bits"}
    assert {constants["SIDE"] for constants in convs if "SIDE" in constants} == {1, 3}
    assert {launch.constants.get("BITS") for launch in launches} >= {"none", "new", "join"}
    assert set(DTYPES) == {"float16", "bfloat16", "tf32", "ieee"}


ROW = {
    "name": "k", "language": "triton", "arch": 80, "settings": {"num_warps": 4}, "registers": 64, "spill_bytes": 0,
    "local_bytes": 0, "shared_bytes": 0, "blocks_per_sm": 8, "tensor_core_instructions": 0,
    "async_copy_instructions": 0, "code_bytes": 1, "tensor_core_exempt": "no product", "warps_per_sm": 32,
    "scalar_share": 0.0,
}  # fmt: skip


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    kernels.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("change", "status"),
    [({}, 0), ({"spill_bytes": 8}, 1), ({"tensor_core_exempt": None}, 1), ({"warps_per_sm": 4}, 1),
     ({"tensor_core_exempt": None, "tensor_core_instructions": 4}, 0),
     ({"tensor_core_exempt": None, "tensor_core_instructions": 4, "scalar_share": 0.3}, 1)],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [True, False])
def test_the_exit_status_tells_what_is_unfit(change, status, as_json, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "compile_all", lambda *args: [ROW | change])
    assert kernels.run(arguments(*(["--json"] if as_json else []))) == status
    printed = capsys.readouterr().out
    assert json.loads(printed) == [ROW | change] if as_json else f"{status} unfit" in printed


def test_wrong_words_are_refused():
    with pytest.raises(ValueError, match="--dtypes must be of"):
        kernels.run(arguments("--dtypes", "float64"))


def missing_here(monkeypatch, **reasons):
    """The compilers, each of which lacks what `reasons` says, and which compile nothing."""
    nothing = {
        name: compiler._replace(why_not=lambda name=name: reasons.get(name.split()[0]), kernels=lambda choice, arch: [])
        for name, compiler in kernels.COMPILERS.items()
    }
    monkeypatch.setattr(kernels, "COMPILERS", nothing)


@pytest.mark.parametrize("language", ["Triton", "CUDA"])
def test_a_language_that_cannot_be_compiled_is_left_out_with_a_sentence(language, monkeypatch, capsys):
    missing_here(monkeypatch, **{language: "no compiler."})
    assert kernels.run(arguments("--json")) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == [] and printed.err.startswith(f"The {language}") and "left out" in printed.err


@pytest.mark.parametrize("words, language", [((), None), (("--language", "cuda"), "cuda")])
def test_one_language_may_be_chosen(words, language, monkeypatch, capsys):
    missing_here(monkeypatch, Triton="no compiler.")
    assert kernels.run(arguments("--json", *words)) == 0
    assert ("left out" in capsys.readouterr().err) == (language is None)


def test_without_any_compiler_the_command_fails(monkeypatch):
    missing_here(monkeypatch, Triton="no compiler.", CUDA="no nvcc.")
    with pytest.raises(RuntimeError, match="no compiler.*no nvcc"):
        kernels.run(arguments())


def test_an_interpreter_compiles_nothing(monkeypatch):
    launch = importlib.import_module("pathnet.kernels.launch")  # as the command finds it
    monkeypatch.setattr(launch, "INTERPRETED", True)
    assert "unset it" in kernels.COMPILERS["Triton"].why_not()
    monkeypatch.setattr(launch, "INTERPRETED", False)
    assert kernels.COMPILERS["Triton"].why_not() is None
