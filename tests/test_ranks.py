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
ONE_RANK = str(Path(__file__).with_name("one_rank.py"))


@pytest.fixture(scope="module")
def command(tmp_path_factory, npz):  # noqa: F811
    weights = tmp_path_factory.mktemp("weights") / "w.pt"
    make_weights(weights)
    return ["lesion", "--weights", str(weights), "--data", str(npz), *LISTS]


@pytest.fixture(scope="module")
def expected(tmp_path_factory, command):
    """The folder of what one process measures."""
    out = tmp_path_factory.mktemp("alone")
    assert main([*command, "--out", str(out)]) == 0
    return out


def assert_equal_results(out, expected):
    """The same numbers to the bit, and tables equal byte for byte."""
    found, wanted = load_results(out), load_results(expected)
    assert all(found[name] == wanted[name] for name in ("complete", "nets", "settings", "identity", "data"))
    assert (out / "lesions.csv").read_bytes() == (expected / "lesions.csv").read_bytes()
    assert sorted(out.glob("journal*")) == [out / "journal.jsonl"]


def together(arguments, **environment) -> list[tuple[int, str]]:
    """Exit status and stderr of two ranks, as a batch system starts them, with nobody who watches them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = ENVIRONMENT | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | environment
    processes = [
        subprocess.Popen(
            [sys.executable, ONE_RANK, *arguments], env=shared | {"RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    errors = [process.communicate()[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def test_torchrun_gives_the_bits_of_one_process_even_where_it_starts_a_dead_rank_again(tmp_path, command, expected):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--max-restarts", "1", ONE_RANK, *command, "--out", str(tmp_path)]
    environment = ENVIRONMENT | {"KILLED_RANK": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "exitcode: -9" in result.stderr, result.stderr
    assert_equal_results(tmp_path, expected)
    assert result.stdout.count("Results: ") == 1  # one process speaks for both


def test_the_work_of_a_dead_worker_is_done_again(tmp_path, command, expected):
    killed = 0  # which has the first journal, and the store that all count in
    arguments = [*command, "--out", str(tmp_path)]
    ranks = together(arguments, KILLED_RANK=str(killed))
    (dead, _), (status, error) = ranks[killed], ranks[1 - killed]
    assert (dead, status) == (-9, 2)
    assert "another process of this run is gone" in error and "Traceback" not in error
    kept = b"".join((tmp_path / name).read_bytes() for name in ("journal.jsonl", "journal.1.jsonl"))
    records = [line for line in kept.splitlines() if b'"experiment"' in line]
    assert records  # of its first part at least; the other may have had no time yet
    assert main(arguments) == 0  # one process takes over what both have left
    assert_equal_results(tmp_path, expected)
    assert set(records) <= set((tmp_path / "journal.jsonl").read_bytes().splitlines())


def test_a_study_shares_trainings_and_parts(tmp_path, npz, monkeypatch):  # noqa: F811
    study = ["study", "--net", "preact14", "--epochs", "1", "--trials", "2", "--samples", "2", "--images", "8"]
    study += ["--data", str(npz)]
    assert [status for status, _ in together([*study, "--out", str(tmp_path / "shared")])] == [0, 0]
    monkeypatch.setattr("pathnet.study.run.draw_figures", lambda document, folder: None)
    monkeypatch.setattr("pathnet.study.run.write_report", lambda document, out: out)
    assert main([*study, "--out", str(tmp_path / "alone")]) == 0
    assert_equal_results(tmp_path / "shared", tmp_path / "alone")
    shared, alone = (load_results(tmp_path / name)["training"] for name in ("shared", "alone"))
    assert list(shared) == list(alone) == ["full", "depth", "effective", "vgg"]
    for title in alone:
        assert [epoch["loss"] for epoch in shared[title]] == [epoch["loss"] for epoch in alone[title]]


def test_what_the_first_rank_refuses_is_said_once(tmp_path, command):
    ranks = together([*command, "--random", "99", "--out", str(tmp_path)])
    assert [status for status, _ in ranks] == [2, 2] and not any(tmp_path.iterdir())
    assert "counts must lie in 0..6" in ranks[0][1] and "pathnet" not in ranks[1][1]


def test_alone_everything_is_a_plain_loop():
    ranks = Ranks()
    assert list(ranks.taken([1, 2, 3])) == [1, 2, 3] and ranks.gathered("mine") == ["mine"]
    assert [ranks.finished(2), ranks.finished(3)] == [2, 5] and ranks.in_turn(lambda: 7) == 7
    assert list(ranks.taken([])) == [] and ranks.finished(1) == 1
