"""What setup.py decides: the modes, the compiler, and which CUDA toolkit is used."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pathnet import toolkit

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def setup(monkeypatch):
    """setup.py as a module; it runs setup() only as a script."""
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("pathnet_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("CXX", sys.executable)  # any program that exists
    for name in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.setenv(name, "")
    return module


def make_toolkit(folder: Path, version: str) -> str:
    """A folder with all that is asked of a toolkit."""
    for name in ("include/cuda_runtime.h", "lib64/libcudart.so", "bin/nvcc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return make_nvcc(folder / "bin/nvcc", f"echo 'Cuda compilation tools, release {version}, V{version}.1'") and str(
        folder
    )


def make_nvcc(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_none_compiles_nothing(setup):
    names, left_out = setup.plan("none")
    assert names == [] and set(left_out) == {"_C", "_cuda"}
    assert "PATHNET_BUILD=none" in left_out["_C"]


def test_cpu_compiles_the_cpu_operators_alone(setup):
    names, left_out = setup.plan("cpu")
    assert names == ["_C"] and "PATHNET_BUILD=cpu" in left_out["_cuda"]


def test_without_a_compiler_nothing_is_compiled(setup, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler --flag")
    names, left_out = setup.plan("auto")
    assert names == [] and "no C++ compiler 'no-such-compiler' on the PATH" in left_out["_C"]


def test_a_cpu_build_of_torch_gives_the_cpu_operators(setup, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    names, left_out = setup.plan("auto")
    assert names == ["_C"] and "built without CUDA" in left_out["_cuda"]


def test_a_fitting_toolkit_gives_the_cuda_kernels_for_chips_that_nobody_asked(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setenv("CUDA_HOME", make_toolkit(tmp_path, "99.1"))
    assert setup.plan("auto") == (["_C", "_cuda"], {})
    assert os.environ["CUDA_HOME"] == str(tmp_path)
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == setup.ARCHITECTURES


def test_a_toolkit_of_another_major_version_is_named_in_the_reason(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    monkeypatch.setenv("CUDA_HOME", make_toolkit(tmp_path, "98.2"))
    names, left_out = setup.plan("auto")
    assert names == ["_C"]
    assert f"98.2 in {tmp_path}" in left_out["_cuda"] and "set CUDA_HOME" in left_out["_cuda"]


@pytest.mark.parametrize("mode", ["cpu", "cuda"])
def test_what_was_asked_for_by_name_stops_the_install(setup, monkeypatch, mode):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match=f"PATHNET_BUILD={mode} is impossible: there is no C"):
        setup.compilation(mode)


def test_reasons_are_kept_in_a_folder_that_does_not_exist_yet(setup, tmp_path):
    setup.keep_reasons(tmp_path / "build" / "pathnet", {"_C": "a reason"})
    assert json.loads((tmp_path / "build/pathnet/_left_out.json").read_text()) == {"_C": "a reason"}


def test_what_an_earlier_build_left_of_an_extension_goes(setup, tmp_path):
    for name in ("_C.abi3.so", "_cuda.abi3.so"):
        (tmp_path / name).touch()
    setup.keep_reasons(tmp_path, {"_C": "a reason"})
    assert {file.name for file in tmp_path.iterdir()} == {"_cuda.abi3.so", "_left_out.json"}


def test_an_unknown_mode_is_refused():
    command = [sys.executable, "setup.py", "--version"]
    environ = os.environ | {"PATHNET_BUILD": "gpu"}
    result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip() == "pathnet: PATHNET_BUILD must be auto, cpu, cuda or none, but it is 'gpu'."


@pytest.mark.parametrize("missing", ["include/cuda_runtime.h", "lib64/libcudart.so", "bin/nvcc"])
def test_an_incomplete_toolkit_is_none(tmp_path, missing):
    home = make_toolkit(tmp_path, "13.0")
    assert toolkit.version(home) == "13.0"
    (tmp_path / missing).unlink()
    assert toolkit.version(home) is None


def test_the_first_toolkit_of_the_right_major_version_is_taken(tmp_path):
    homes = [make_toolkit(tmp_path / name, name) for name in ("12.8", "13.1", "13.0")]
    assert toolkit.find("13.0", homes) == homes[1]
    assert toolkit.installed([*homes, *homes]) == {home: Path(home).name for home in homes}


def test_a_wrapper_on_the_path_leads_to_its_toolkit(monkeypatch, tmp_path):
    make_nvcc(tmp_path / "bin" / "nvcc", "echo '#$ TOP=/elsewhere/cuda' >&2")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert toolkit.candidates({})[0] == "/elsewhere/cuda"
    assert toolkit.candidates({"CUDA_HOME": "/mine"})[:2] == ["/mine", "/elsewhere/cuda"]


def test_without_nvcc_the_usual_places_are_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolkit.candidates({})[-1] == "/opt/cuda"
