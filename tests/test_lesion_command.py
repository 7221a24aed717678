"""`pathnet lesion`: results of the engine, kept, resumed, and a sentence for everything that it refuses."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_cases import make_weights, npz, refused  # noqa: F401  # a fixture

from pathnet import Paths, analysis, data, samplers
from pathnet.cli.main import main
from pathnet.study import lesions
from pathnet.study.journal import Journal
from pathnet.study.results import load_results
from pathnet.study.tables import table

ORDER = [1, 0, 2, 3, 4, 5]
LIST = [{"delete": [3, 1]}, {"order": ORDER}, {"delete": [1], "multiplier": 0.5}, {"multiplier": [1, 1, 2, 1, 1, 1]}]
LISTS = ["--each", "--pairs", "--starts", "--random", "1", "3", "--swaps", "2", "--trials", "12"]
HELD = """
import sys, time
from itertools import count
from pathnet.cli.main import main
from pathnet.study import lesions

evaluate, calls = lesions.evaluate, count()
lesions.evaluate = lambda *args, **options: time.sleep(600 if next(calls) == 3 else 0) or evaluate(*args, **options)
sys.exit(main(sys.argv[1:]))
"""  # its fourth part never begins


@pytest.fixture(scope="module")
def files(tmp_path_factory, npz):  # noqa: F811
    folder = tmp_path_factory.mktemp("weights")
    make_weights(folder / "w.pt")
    (folder / "list.json").write_text(json.dumps(LIST))
    return folder


@pytest.fixture(scope="module")
def command(files, npz):  # noqa: F811
    return ["lesion", "--weights", str(files / "w.pt"), "--data", str(npz), "--part", "all", "--predictions"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, command, files):
    """The folder of all lists."""
    out = tmp_path_factory.mktemp("lesions")
    assert main([*command, *LISTS, "--list", str(files / "list.json"), "--out", str(out)]) == 0
    return out


def every_lesion(net):
    for name, values in net.items():
        for value in values.values():
            yield from ((name, lesion) for lesion in (value if isinstance(value, list) else [value]))


# ---- what it leaves ----------------------------------------------------------------------------------------------


def test_results_are_those_of_the_engine(finished, tmp_path, npz):  # noqa: F811
    measured = list(every_lesion(load_results(finished)["nets"]["trained"]))
    assert len(measured) == 1 + 6 + 15 + 3 + 24 + 12 + 4
    net = make_weights(tmp_path / "same.pt")
    whole = Paths.delete(6, [])
    paths = [
        Paths.delete(6, lesion.get("deleted", []))
        .scaled(lesion.get("multiplier", 1.0))
        .reordered(lesion.get("order", range(6)))
        for _, lesion in measured
    ]
    loaded = data.load(str(npz))
    images = tuple(torch.cat(parts) for parts in zip(loaded.train, loaded.test, strict=True))
    reference, *results = analysis.evaluate(net, images, [whole, *paths])
    for (name, lesion), result in zip(measured, results, strict=True):
        assert lesion["predictions"] == result.predictions.tolist(), name
        assert (lesion["error"], lesion["loss"]) == (result.error, result.loss)  # to the bit
        assert lesion["agreement"] == result.agreement(reference)
        assert lesion["class_errors"][:2] == result.class_errors[:2].tolist()
        assert lesion["class_errors"][2:] == [None] * 8  # classes without images


def test_draws_are_those_of_the_analysis(finished, tmp_path, npz):  # noqa: F811
    document = load_results(finished)["nets"]["trained"]
    net, images = make_weights(tmp_path / "same.pt"), data.load(str(npz)).test
    drawn = analysis.delete_random(net, images, [3], trials=12)
    assert [lesion["deleted"] for lesion in document["delete_random"]["3"]] == [list(one.deleted) for one in drawn]
    orders = analysis.reorder(net, images, [2], trials=12)
    assert [(one["order"], one["tau"]) for one in document["reorder"]["2"]] == [(list(o.order), o.tau) for o in orders]
    assert list(document["delete_stage_starts"]) == ["2", "2,4", "4"]


def test_table_has_one_row_a_lesion_and_plain_values_alone(finished):
    document = load_results(finished)
    rows = table(document, "lesions")
    assert len(rows) == len(list(every_lesion(document["nets"]["trained"])))
    assert all(value is None or isinstance(value, (str, int, float)) for row in rows for value in row.values())
    pair = next(row for row in rows if row["experiment"] == "delete_pairs" and row["key"] == "1,3")
    assert pair["deleted"] == "1 3" and pair["error"] == document["nets"]["trained"]["delete_pairs"]["1,3"]["error"]
    with (finished / "lesions.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in written] == [row["loss"] for row in rows]
    assert not (finished / "gradients.csv").exists()
    with pytest.raises(ValueError, match="name must be one of lesions, gradients, spectrum, training, not 'errors'"):
        table(document, "errors")


def test_each_block_is_what_is_measured_where_nothing_is_asked(tmp_path, command, capsys):
    assert main([*command, "--images", "10", "--out", str(tmp_path)]) == 0
    document = load_results(tmp_path)
    assert set(document["nets"]["trained"]) == {"whole", "delete_each"} and document["net"]["name"] == "basic14"
    assert document["data"]["evaluated"] == 10 and document["complete"]
    assert "basic14 on 10 images: error" in capsys.readouterr().out


def test_blocks_to_drop_are_those_of_the_analysis(tmp_path, capsys, command, npz):  # noqa: F811
    assert main([*command, "--drop", "3", "--part", "test", "--out", str(tmp_path)]) == 0
    net = load_results(tmp_path)["nets"]["trained"]
    assert set(net) == {"whole", "drop_greedily"} and len(net["drop_greedily"]) == 6 + 5 + 4
    dropped = analysis.drop_greedily(make_weights(tmp_path / "same.pt"), data.load(str(npz)).test, 3)
    assert [lesions.best_to_drop(net["drop_greedily"], count) for count in (1, 2, 3)] == [
        one.deleted for one in dropped
    ]
    assert f"3 found greedily: {', '.join(map(str, dropped[2].deleted))}, error" in capsys.readouterr().out


def test_the_rule_of_the_sampler_that_weights_were_trained_under_holds(tmp_path, capsys, command, npz):  # noqa: F811
    net = make_weights(tmp_path / "plain.pt")
    net.paths = samplers.KeepExactly(2)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    weights = ["--weights", str(tmp_path / "w.pt"), "--part", "test"]
    assert main([*command, *weights, "--out", str(tmp_path / "out")]) == 0
    assert "trained under KeepExactly(m=2" in capsys.readouterr().out
    whole = load_results(tmp_path / "out")["nets"]["trained"]["whole"]["0"]
    images = data.load(str(npz)).test
    assert whole["loss"] == analysis.evaluate(net, images, [None])[0].loss
    net.paths = None
    assert whole["loss"] != analysis.evaluate(net, images, [None])[0].loss
    torch.save(
        {**net.state_dict(), "_extra_state": {"sampler": "Mine(m=2)", "step": torch.zeros(())}}, tmp_path / "w.pt"
    )
    assert "a sampler that is not known here" in refused([*command, *weights, "--out", str(tmp_path / "new")], capsys)


# ---- resuming ----------------------------------------------------------------------------------------------------


def test_interrupted_run_measures_nothing_twice(tmp_path, monkeypatch, capsys, command, finished):
    calls = []

    def counted(net, images, paths, **options):
        calls.append(len(paths))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return analysis.evaluate(net, images, paths, **options)

    monkeypatch.setattr(lesions, "evaluate", counted)
    assert main([*command, *LISTS, "--out", str(tmp_path)]) == 130
    assert f"what is finished stands in {tmp_path}, the same command resumes" in capsys.readouterr().err
    partial = load_results(tmp_path)
    assert not partial["complete"] and len(partial["nets"]["trained"]["delete_pairs"]) == 7
    assert main([*command, *LISTS, "--out", str(tmp_path)]) == 0
    assert sum(calls[4:]) == 60 - 6 - 7 + 1  # what was not finished, and the whole net, with which all is compared
    expected = load_results(finished)["nets"]["trained"]
    del expected["listed"]
    assert load_results(tmp_path)["nets"]["trained"] == expected


def test_ctrl_c_in_the_middle_loses_no_finished_part(tmp_path, command, finished):
    arguments = [*command, *LISTS, "--out", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", HELD, *arguments], stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1]
    assert process.returncode == 130 and "the same command resumes" in error and "Traceback" not in error
    before = journal.read_bytes()
    assert not load_results(tmp_path)["complete"]
    assert main(arguments) == 0 and journal.read_bytes().startswith(before)
    expected = load_results(finished)["nets"]["trained"]
    del expected["listed"]
    assert load_results(tmp_path)["nets"]["trained"] == expected


def test_a_run_can_be_extended(tmp_path, monkeypatch, command, finished):
    measured = []

    def counted(net, images, paths, **options):
        measured.append(len(paths))
        return analysis.evaluate(net, images, paths, **options)

    monkeypatch.setattr(lesions, "evaluate", counted)
    wanted = load_results(finished)["nets"]["trained"]
    for more, count in (
        (["--each"], 7),
        (["--random", "3", "--trials", "9"], 10),
        (["--random", "3", "--trials", "18"], 10),
    ):
        measured.clear()
        assert main([*command, *more, "--out", str(tmp_path)]) == 0
        assert sum(measured) == count  # what is new, and the whole net, with which all is compared
    net = load_results(tmp_path)["nets"]["trained"]
    assert (
        net["delete_each"] == wanted["delete_each"] and net["delete_random"]["3"][:12] == wanted["delete_random"]["3"]
    )
    assert len(net["delete_random"]["3"]) == 18


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--random", "2", "7"], "counts must lie in 0..6, the blocks of the net, but one is 7"),
        (["--swaps", "-1"], "swaps must be at least 0, but one is -1"),
        (["--drop", "7"], "drop must lie in 0..6"),
        (["--trials", "0"], "trials must be at least 1, not 0"),
        (["--images", "0"], "images must be at least 1, not 0"),
        (["--seed", "-1"], "seed must be at least 0, not -1"),
        (["--weights", "absent.pt"], "there is none at absent.pt"),
        (["--data", "absent.npz"], "readable .npz"),
        (["--data", "digits"], "images of 3 channels, which the net of these weights takes"),
        (["--list", "absent.json"], "list must be a readable JSON file"),
        (["--shortcut", "none"], "shortcut must be one of"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(tmp_path, capsys, command, changes, sentence):
    assert sentence in refused([*command, "--out", str(tmp_path), *changes], capsys)


def test_memory_that_some_lesions_exceed_is_refused_before_anything_runs(tmp_path, capsys, monkeypatch, npz, files):  # noqa: F811
    monkeypatch.setattr("pathnet.cli.lesion.MEBIBYTE", 9216 * 4)  # four activations of an image; pairs need more
    command = ["lesion", "--weights", str(files / "w.pt"), "--data", str(npz), "--out", str(tmp_path / "out")]
    sentence = refused([*command, "--memory", "1", "--each", "--pairs"], capsys)
    assert "memory must hold 5 activations of an image" in sentence and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([{}, {"order": [0, 1, 4, 3, 2, 5]}], "number 1 (from 0): order may only exchange blocks of equal shape"),
        ([{"order": [*range(9)]}], "order must name each of the blocks 0..5 exactly once"),  # a net of other depth
        ([{"multiplier": [1.0] * 9}], "must be a number or have the shape [6]"),
        ([{"delete": [6]}], "block indices in 0..5"),
        ([{"delete": [1, 1]}], "at most once"),
        ([{"delete": 3}], "not iterable"),
        ([{"deleted": [3]}], "no other keys than delete, order, multiplier"),
        ({"delete": [3]}, "must hold objects"),
    ],
)
def test_entries_that_do_not_fit_are_refused_before_anything_runs(tmp_path, capsys, command, entries, sentence):
    (tmp_path / "list.json").write_text(json.dumps(entries))
    out = tmp_path / "out"
    assert sentence in refused([*command, "--list", str(tmp_path / "list.json"), "--out", str(out)], capsys)
    assert not out.exists()


def test_empty_data_is_refused(tmp_path, capsys, command):
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 12, 12, 3), np.uint8), y=np.zeros(0, int))
    assert "N > 0" in refused([*command, "--data", str(tmp_path / "empty.npz"), "--out", str(tmp_path)], capsys)


def test_weights_that_give_no_number_are_refused(tmp_path, capsys, command):
    net = make_weights(tmp_path / "nan.pt")
    net.fc.weight.data[0, 0] = torch.nan
    torch.save(net.state_dict(), tmp_path / "nan.pt")
    sentence = refused([*command, "--weights", str(tmp_path / "nan.pt"), "--out", str(tmp_path / "out")], capsys)
    assert "loss that is a number, but on these images it is nan" in sentence


def test_lesions_beyond_all_numbers_are_counted_and_stop_nothing(tmp_path, monkeypatch, capsys, command):
    def beyond(net, images, paths, **options):
        results = analysis.evaluate(net, images, paths, **options)
        return results if paths == [None] else [replace(result, loss=float("nan")) for result in results]

    monkeypatch.setattr(lesions, "evaluate", beyond)
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert "6 of the lesions drive the loss beyond all numbers" in capsys.readouterr().out
    assert load_results(tmp_path)["nets"]["trained"]["delete_each"]["0"]["loss"] is None


def test_the_folder_of_other_weights_is_refused_and_kept(tmp_path, capsys, command, finished):
    make_weights(tmp_path / "other.pt", seed=4)
    before = (finished / "journal.jsonl").read_bytes()
    assert "another run (seed 0 there, 1 here" in refused([*command, "--seed", "1", "--out", str(finished)], capsys)
    other = [*command, *LISTS, "--weights", str(tmp_path / "other.pt"), "--out", str(finished)]
    assert "weights " in refused(other, capsys)
    assert (finished / "journal.jsonl").read_bytes() == before


def test_a_folder_in_use_is_refused(tmp_path, capsys, command):
    assert main([*command, "--images", "4", "--out", str(tmp_path)]) == 0
    document = load_results(tmp_path)
    header = {name: document[name] for name in ("command", "settings", "identity", "net", "data")}
    other = Journal(tmp_path / "journal.jsonl", header)
    sentence = refused([*command, "--images", "4", "--out", str(tmp_path)], capsys)
    other.close()
    assert "is being written by another process" in sentence
