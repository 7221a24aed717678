"""The compiled extensions: loading, and what is said where one is missing."""

from __future__ import annotations

import importlib
import json
import os
import types
import warnings

import pytest
import torch

import pathnet
from pathnet import extension
from pathnet.ops.schemas import SCHEMA_VERSION


@pytest.fixture
def unloaded(monkeypatch):
    """The state before the first import."""
    monkeypatch.setattr(extension, "_modules", {})
    monkeypatch.setattr(extension, "_reasons", {})


def import_raises(monkeypatch, error: Exception) -> None:
    found = importlib.import_module

    def raises(name: str, package: str | None = None):
        if name.startswith("pathnet._"):
            raise error
        return found(name, package)

    monkeypatch.setattr(importlib, "import_module", raises)


@pytest.mark.parametrize("device", extension.EXTENSIONS)
def test_each_extension_is_there_or_has_a_reason(device):
    assert extension.available(device) is (extension.why_not(device) is None)
    assert extension.available(device) is (device in extension.build_info())


def test_build_info_gives_the_facts_of_the_build():
    for facts in extension.build_info().values():
        assert facts["schema_version"] == SCHEMA_VERSION
        assert str(facts["torch"]).startswith("2.") and facts["compiler"]
        assert str(facts["file"]).endswith(".so")


@pytest.mark.skipif(os.environ.get("PATHNET_SANITIZE") != "1", reason="a run under sanitizers")
def test_a_run_under_sanitizers_runs_what_they_watch():
    assert str(extension.build_info()["cpu"]["compiler"]).endswith("with sanitizers")


def test_loading_again_does_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extension.load(SCHEMA_VERSION + 1)


def test_another_schema_version_is_not_used(monkeypatch, unloaded):
    compiled = types.SimpleNamespace(schema_version=SCHEMA_VERSION)
    monkeypatch.setattr(importlib, "import_module", lambda name: compiled)
    with pytest.warns(UserWarning, match="compiled for version .* of the operators.*Install pathnet again") as caught:
        extension.load(SCHEMA_VERSION + 1)
    assert len(caught) == 1
    assert not extension.available()
    assert extension.build_info() == {}


def test_what_was_left_out_of_the_build_is_said_with_its_reason(monkeypatch, unloaded, tmp_path):
    (tmp_path / "left_out.json").write_text(json.dumps({"_C": "there is no C++ compiler."}))
    monkeypatch.setattr(extension, "LEFT_OUT", tmp_path / "left_out.json")
    import_raises(monkeypatch, ModuleNotFoundError("No module named 'pathnet._C'"))
    with pytest.warns(UserWarning, match="plain PyTorch: pathnet._C is not compiled: there is no C"):
        extension.load(SCHEMA_VERSION)


@pytest.mark.parametrize("content", [None, "", "{}", "[1"])
def test_a_missing_or_damaged_record_still_gives_the_remedy(monkeypatch, unloaded, tmp_path, content):
    monkeypatch.setattr(extension, "LEFT_OUT", tmp_path / "left_out.json")
    if content is not None:
        (tmp_path / "left_out.json").write_text(content)
    import_raises(monkeypatch, ModuleNotFoundError("No module named 'pathnet._C'"))
    with pytest.warns(UserWarning, match="is not compiled. Run `pip install -e .`"):
        extension.load(SCHEMA_VERSION)


def test_a_library_that_does_not_load_is_named_with_the_linkers_words(monkeypatch, unloaded):
    import_raises(monkeypatch, ImportError("undefined symbol: torch_parallel_for"))
    with pytest.warns(UserWarning, match="does not load into torch .*undefined symbol: torch_parallel_for"):
        extension.load(SCHEMA_VERSION)


def test_a_wrong_choice_of_instructions_is_said_as_it_is(monkeypatch, unloaded):
    import_raises(monkeypatch, ImportError("PATHNET_CPU_ISA must be avx2, but it is 'mmx'. Unset it."))
    with pytest.warns(UserWarning, match="pathnet._C is not loaded: PATHNET_CPU_ISA .* 'mmx'. Unset it.$"):
        extension.load(SCHEMA_VERSION)
    assert not extension.available()


def test_cuda_missing_on_a_machine_without_a_gpu_is_no_warning(monkeypatch, unloaded):
    compiled = types.SimpleNamespace(schema_version=SCHEMA_VERSION)
    monkeypatch.setattr(importlib, "import_module", lambda name: compiled)
    monkeypatch.setattr(torch.version, "cuda", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extension.load(SCHEMA_VERSION)
    assert extension.available("cpu") and not extension.available("cuda")
    assert "built without CUDA" in extension.why_not("cuda")


def test_cuda_missing_beside_a_gpu_is_a_warning(monkeypatch, unloaded):
    def only_cpu(name: str):
        if name == "pathnet._C":
            return types.SimpleNamespace(schema_version=SCHEMA_VERSION)
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", only_cpu)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="no compiled CUDA kernels here: pathnet._cuda is not compiled"):
        extension.load(SCHEMA_VERSION)
    assert extension.available("cpu")


def test_without_the_extension_a_net_runs_and_the_forced_backend_says_why(monkeypatch, unloaded):
    net, x = pathnet.PathResNet(depth=8).eval(), torch.randn(2, 3, 16, 16)
    import_raises(monkeypatch, ModuleNotFoundError("No module named 'pathnet._C'"))
    with pytest.warns(UserWarning):
        extension.load(SCHEMA_VERSION)
    with torch.no_grad():
        y = net(x)
        with pathnet.use_backend("reference"):
            assert torch.equal(y, net(x))
        with pathnet.use_backend("cpu"), pytest.raises(RuntimeError, match="pathnet._C is not compiled"):
            net(x)
