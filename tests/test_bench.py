"""The page of `pathnet bench` and the command itself."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.bounds import Work
from benchmarks.cases import EVALUATION, TRAINING, Case
from benchmarks.ceilings import Ceilings
from benchmarks.harness import Spread
from benchmarks.predictions import Predictions
from benchmarks.providers import CHANNELS_LAST, PATHNET
from benchmarks.ran import Ran
from pathnet.cli import bench


def _run(ratio: float, **settings) -> dict:
    """What pytest-benchmark leaves of a case in which pathnet has this ratio to eager channels-last."""
    speed = {
        "kind": "speed",
        "case": asdict(Case(20, "basic", EVALUATION, 8)),
        "ran": asdict(Ran({"cpu": 8, "reference": 1}, {"stage_eval": 3}, 4, ["a convolution has groups"])),
        "work": asdict(Work(1e10, 4e9, 1e9)),
        "seconds": {CHANNELS_LAST: asdict(Spread.of([ratio])), PATHNET: asdict(Spread.of([1.0]))},
        "ratios": {CHANNELS_LAST: {PATHNET: asdict(Spread.of([ratio]))}},
    }
    kept = {CHANNELS_LAST: {"saved": 4 << 20, "peak": 8 << 20}}
    kept[PATHNET] = {"saved": 3 << 20, "peak": 8 << 20}
    space = {"kind": "memory", "case": asdict(Case(20, "basic", TRAINING, 8)), "bytes": kept}
    blocks = {"kind": "blocks", "block": "basic", "kept": {PATHNET: {"OFF": 0.0, "FULL": 9.0}}}
    facts = {
        "scale": "quick",
        "threads": 1,
        "torch": "2.13",
        "instructions": "avx2",
        "cpu_capability": "AVX512",
        "ceilings": asdict(Ceilings(8e10, {"DRAM read": 2e10, "DRAM write": 2e10, "DRAM stream": 1e10})),
        "not_available": [],
    }
    return {
        "machine_info": {
            "cpu": {"brand_raw": "A CPU", "count": 2},
            "python_version": "3.11",
            "system": "Linux",
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-02T03:04:05",
        "pathnet": facts | settings,
        "benchmarks": [{"fullname": info["kind"], "extra_info": info} for info in (speed, space, blocks)],
    }


def test_report_says_in_words_what_is_slower_and_what_fell_back():
    page = report.markdown([_run(0.5)])
    assert "pathnet takes 2.00 times as long as eager channels-last" in page
    assert "1 blocks ran in plain PyTorch, since a convolution has groups." in page
    assert "cpu 8, reference 1 (3 x stage_eval, 4 x convolution of PyTorch)" in page
    assert "0.50x [0.50, 0.50]" in page and "0.75x" in page and "| 125.0 | 250.0 | 25 % |" in page
    assert "0123456789ab with uncommitted changes" in page and "against NCHW" not in page
    assert "| 1 thread, avx2 | 80 | 20.0 | 20.0 | 10.0 |" in page and "| basic | pathnet | 0.000 | 9.000 |" in page
    assert "times as long" not in report.markdown([_run(1.5)])


def test_report_joins_runs_of_one_setting():
    missing = f"{Case(20, 'basic', EVALUATION, 8)}, bf16 products: precision must be one of None."
    measured = f"{Case(20, 'basic', EVALUATION, 8)}: not yet."
    slow = asdict(Ceilings(4e10, {"DRAM read": 4e10, "DRAM write": 1e10, "DRAM stream": 1e10}))
    first, later = _run(0.5, not_available=[missing, measured]), _run(2.0, ceilings=slow)
    page = report.markdown([first, later, _run(3.0, threads=2, ceilings="No compiler.")])
    assert page.count("## Time, ") == 2 and "0.50x" not in page and "2.00x" in page and "3.00x" in page
    assert "| 1 thread, avx2 | 80 | 40.0 | 20.0 | 10.0 |" in page
    assert f"Not measured: {missing}" in page and measured not in page and "2 threads, avx2: No compiler." in page


def test_report_of_predictions():
    figures = Predictions("ResNet-20, a.th", "bf16", 2000, 1995, 1990, 1997, 1e-2, 1e-6)
    run = _run(2.0) | {"benchmarks": [{"fullname": "p", "extra_info": {"kind": "predictions", **asdict(figures)}}]}
    page = report.markdown([run])
    assert "| 1995 of 2000 (99.75 %) | 99.50 % | 99.85 % | 1.0e-02 | 1.0e-06 |" in page and "## Time" not in page


def test_bench_outside_a_checkout_is_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    assert bench.run(_arguments([])) == 2
    error = capsys.readouterr().err
    assert error.startswith("pathnet bench needs a checkout") and error.count("\n") == 1


def test_bench_measures_each_thread_count_and_keeps_the_page_of_a_selection_unwritten(monkeypatch, tmp_path):
    commands = []

    def fake(command, **settings):
        commands.append(command)
        results = [word.partition("=")[2] for word in command if word.startswith("--benchmark-json=")]
        for result in results:
            Path(result).write_text("{}")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench.subprocess, "run", fake)
    words = ["--only", "eval", "--weights", "20=w.th", "--results", str(tmp_path), "--no-compile", "--rounds", "3"]
    assert bench.run(_arguments(words)) == 0
    one, two, page = commands
    assert {"--threads=1", "--only=eval", "--no-compile", "--rounds=3", f"--weights=20={Path('w.th').resolve()}"} <= {
        *one
    }
    assert "--threads=2" in two and len(list(tmp_path.glob("*.json"))) == 2
    assert not any(word.startswith("--out") for word in page)
    bench.run(_arguments(["--threads", "1"]))
    assert f"--out={bench.CHECKOUT / 'docs' / 'benchmarks.md'}" in commands[-1]


def test_a_row_that_does_not_exist_ends_in_one_sentence():
    command = [sys.executable, "-m", "pytest", "benchmarks", "--quick", "--only=evil", "-p", "no:cacheprovider"]
    ended = subprocess.run(command, cwd=bench.CHECKOUT, capture_output=True, text=True, check=False)
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --only must hold names of this scale, got evil; there are eval, train" in ended.stderr


@pytest.mark.slow
def test_bench_measures_a_row_from_end_to_end(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # a worker, which its child would be too, times nothing
    words = ["--quick", "--only", "resnet8-eval,memory-blocks", "--no-compile", "--rounds", "1", "--threads", "1"]
    assert bench.run(_arguments([*words, "--out", str(tmp_path / "page.md")])) == 0
    page = (tmp_path / "page.md").read_text()
    assert "ResNet-8 basic, 32x32, batch 16: evaluation" in page and "| preact | pathnet |" in page
    assert page in capfd.readouterr().out


@pytest.mark.parametrize("wrong", ["0", "-1", "two"])
def test_bench_refuses_thread_counts(wrong, capsys):
    with pytest.raises(SystemExit):
        _arguments(["--threads", wrong])
    assert "must be a whole number from 1 up" in capsys.readouterr().err


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)
