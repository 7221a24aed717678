"""The doctor: what it finds, what it says, and its command."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

from pathnet import extension, toolkit
from pathnet.backend import BACKENDS
from pathnet.cli.main import main

doctor = importlib.import_module("pathnet.doctor")  # pathnet.doctor itself is the function


@pytest.fixture
def report():
    return doctor.doctor()


def check(report, backend: str):
    (found,) = [each for each in report.checks if (each.backend, each.device) in ((backend, "cpu"), (backend, "cuda"))]
    return found


def test_every_backend_has_a_verdict(report):
    assert {each.backend for each in report.checks} == set(BACKENDS)
    assert all(each.works or each.reason.endswith(".") for each in report.checks)


def test_the_reference_works_and_the_cpu_backend_as_far_as_it_is_built(report):
    assert check(report, "reference").works
    assert check(report, "cpu").works is extension.available("cpu")


def test_a_missing_extension_is_the_reason_of_its_backend(monkeypatch):
    monkeypatch.setattr(extension, "_modules", {})
    monkeypatch.setattr(extension, "_reasons", {"cpu": "There is no compiler. Install one."})
    report = doctor.doctor()
    assert check(report, "cpu").reason == report.extensions["cpu"] == "There is no compiler. Install one."


def test_wrong_numbers_are_found(monkeypatch):
    forward, calls = doctor.PathResNet.forward, []

    def wrong_the_second_time(self, *args, **kwargs):
        calls.append(self)
        return forward(self, *args, **kwargs) + len(calls) - 1

    monkeypatch.setattr(doctor.PathResNet, "forward", wrong_the_second_time)
    assert "Tensor-likes are not close" in doctor._try("reference", "cpu")


def test_without_a_gpu_the_remedy_depends_on_torch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "install a CUDA build of torch" in doctor._no_gpu()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "nvidia-smi" in doctor._no_gpu()


def test_the_page_shows_everything_within_its_width(report):
    page = str(report)
    words = " ".join(page.split())
    for section in ("Versions", "Compiled extensions", "CUDA toolkits", "Devices", "Backends"):
        assert section in page.splitlines()
    for text in (torch.__version__, *report.extensions.values(), *(each.reason or "works" for each in report.checks)):
        assert " ".join(text.split()) in words
    assert max(map(len, page.splitlines())) <= doctor.WIDTH


def test_toolkits_are_listed(monkeypatch):
    monkeypatch.setattr(toolkit, "installed", lambda: {"/opt/a": "12.8", "/opt/b": "12.8"})
    page = str(doctor.doctor())
    assert "/opt/a  12.8" in page and "/opt/b  12.8" in page


def test_the_command_prints_the_page_and_succeeds(capsys):
    assert main(["doctor"]) == 0
    assert "reference on cpu" in capsys.readouterr().out


def test_the_package_runs_as_the_command():
    result = subprocess.run([sys.executable, "-m", "pathnet", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "doctor" in result.stdout


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["doktor"])
    assert stopped.value.code == 2 and "doktor" in capsys.readouterr().err


@pytest.mark.gpu
def test_the_probe_kernel_answers_on_every_gpu():
    for index in range(torch.cuda.device_count()):
        answer = torch.ops.pathnet.probe(torch.zeros(3, 5, device=f"cuda:{index}"))
        assert answer.shape == (3, 5) and answer.dtype == torch.int32
        major, _ = torch.cuda.get_device_capability(index)
        assert (answer // 100 <= major).all() and (answer >= 700).all()
