"""Runs shared by processes: the bits of one process, whoever did what, and whoever died."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command_cases import make_weights, npz  # noqa: F401  # a fixture

from pathnet.cli.main import main
from pathnet.study.ranks import Ranks
from pathnet.study.results import load_results

LISTS = ["--each", "--pairs", "--random", "2", "3", "--swaps", "2", "--trials", "9"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
KILLED = str(Path(__file__).with_name("killed_rank.py"))


@pytest.fixture(scope="module")
def command(tmp_path_factory, npz):  # noqa: F811
    weights = tmp_path_factory.mktemp("weights") / "w.pt"
    make_weights(weights)
    return ["lesion", "--weights", str(weights), "--data", str(npz), *LISTS]


@pytest.fixture(scope="module")
def expected(tmp_path_factory, command):
    """What one process measures."""
    out = tmp_path_factory.mktemp("alone")
    assert main([*command, "--out", str(out)]) == 0
    return measured(out)


def measured(out) -> dict:
    document = load_results(out)
    return {name: document[name] for name in ("complete", "nets", "settings", "identity", "data")}


def torchrun(arguments, ranks=2):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={ranks}",
        "--standalone",
        *arguments,
    ]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_torchrun_gives_the_bits_of_one_process(tmp_path, command, expected):
    result = torchrun(["-m", "pathnet", *command, "--out", str(tmp_path)])
    assert result.returncode == 0, result.stderr
    assert measured(tmp_path) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", "lesions.csv", "results.json"]
    assert result.stdout.count("Results: ") == 1  # one process speaks for both


def test_a_study_shares_trainings_and_parts(tmp_path, npz, monkeypatch):  # noqa: F811
    study = ["study", "--net", "preact14", "--epochs", "1", "--trials", "2", "--samples", "2", "--images", "8"]
    study += ["--data", str(npz)]
    result = torchrun(["-m", "pathnet", *study, "--out", str(tmp_path / "shared")])
    assert result.returncode == 0, result.stderr
    monkeypatch.setattr("pathnet.study.run.draw_figures", lambda document, folder: None)
    monkeypatch.setattr("pathnet.study.run.write_report", lambda document, out: out)
    assert main([*study, "--out", str(tmp_path / "alone")]) == 0
    shared, alone = (load_results(tmp_path / name) for name in ("shared", "alone"))
    assert shared["nets"] == alone["nets"] and list(shared["nets"]) == ["full", "depth", "effective", "vgg"]
    assert [epoch["loss"] for epochs in shared["training"].values() for epoch in epochs] == [
        epoch["loss"] for epochs in alone["training"].values() for epoch in epochs
    ]
    assert (tmp_path / "shared" / "report.html").exists()


def start(rank, port, killed, arguments):
    """One of two processes, as a batch system starts them, with nobody who watches them."""
    ranks = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = ENVIRONMENT | ranks | {"KILLED_RANK": str(killed)}
    return subprocess.Popen([sys.executable, KILLED, *arguments], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("killed", [0, 1])
def test_the_work_of_a_dead_worker_is_done_again(tmp_path, command, expected, killed):
    arguments = [*command, "--out", str(tmp_path)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [start(rank, port, killed, arguments) for rank in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert processes[killed].returncode == -9
    assert processes[1 - killed].returncode == 2
    assert "another process of this run is gone" in errors[1 - killed] and "Traceback" not in errors[1 - killed]
    kept = b"".join((tmp_path / name).read_bytes() for name in ("journal.jsonl", "journal.1.jsonl"))
    assert kept.count(b'"experiment"') >= 2
    assert main(arguments) == 0  # one process takes over what both have left
    assert measured(tmp_path) == expected and not (tmp_path / "journal.1.jsonl").exists()
    records = [line for line in kept.splitlines() if b'"experiment"' in line]
    assert set(records) <= set((tmp_path / "journal.jsonl").read_bytes().splitlines())


def test_what_the_first_rank_refuses_is_said_once(tmp_path, command):
    result = torchrun(["-m", "pathnet", *command, "--random", "99", "--out", str(tmp_path)])
    assert result.returncode != 0
    assert result.stderr.count("counts must lie in 0..6") == 1
    assert not any(tmp_path.iterdir())


def test_alone_everything_is_a_plain_loop():
    ranks = Ranks()
    assert list(ranks.taken([1, 2, 3])) == [1, 2, 3] and ranks.gathered("mine") == ["mine"]
    assert [ranks.finished(2), ranks.finished(3)] == [2, 5] and ranks.in_turn(lambda: 7) == 7
    assert list(ranks.taken([])) == [] and ranks.finished(1) == 1
