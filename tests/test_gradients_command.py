"""`pathnet gradients` and `pathnet report`: the analysis kept and resumed, and one page of several runs."""

from __future__ import annotations

import json
import math

import pytest
import torch
from command_cases import make_weights, npz, refused  # noqa: F401  # a fixture

from pathnet import analysis, data
from pathnet.cli.main import main
from pathnet.study import gradients
from pathnet.study.results import load_results
from pathnet.study.tables import table


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    make_weights(path, block="preact")
    return str(path)


@pytest.fixture(scope="module")
def subject(weights, npz):  # noqa: F811
    return ["--weights", weights, "--data", str(npz)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, subject):
    """The folder of finished gradients."""
    out = tmp_path_factory.mktemp("gradients")
    assert main(["gradients", *subject, "--images", "8", "--samples", "3", "--at", "stem", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def lesions(tmp_path_factory, subject):
    """The folder of finished lesions."""
    out = tmp_path_factory.mktemp("lesions")
    lists = ["--each", "--starts", "--random", "1", "2", "--swaps", "1", "2", "--trials", "3"]
    assert main(["lesion", *subject, *lists, "--out", str(out)]) == 0
    return out


# ---- gradients ---------------------------------------------------------------------------------------------------


def test_results_are_those_of_the_analysis(finished, tmp_path, npz):  # noqa: F811
    net, (x, y) = make_weights(tmp_path / "same.pt", block="preact"), data.load(str(npz)).train
    chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:8].sort().values
    batch = x[chosen], y[chosen]
    document = load_results(finished)["nets"]["trained"]
    expected = analysis.gradient_by_length(net, batch, samples=3, at="stem")
    assert document["gradients"] == {str(entry.length): list(entry.log10_norms) for entry in expected}
    spectrum = analysis.gradient_spectrum(net, batch, at="stem")
    assert document["spectrum"]["0"]["shares"] == spectrum.shares.tolist()
    assert document["contribution"]["shares"] == list(analysis.contribution(expected).shares)


def test_tables_have_a_row_a_path_and_a_row_a_length(finished):
    document = load_results(finished)
    rows = table(document, "gradients")
    assert len(rows) == 7 * 3 and rows[4]["length"] == 1 and rows[4]["sample"] == 1
    assert rows[4]["log10_norm"] == document["nets"]["trained"]["gradients"]["1"][1]
    assert sum(row["share"] for row in table(document, "spectrum")) == pytest.approx(1, abs=1e-3)
    assert (finished / "gradients.csv").read_text().count("\n") == 1 + 21
    assert table(document, "lesions") == []


def test_interrupted_gradients_resume_to_equal_results(tmp_path, monkeypatch, capsys, subject, finished):
    monkeypatch.setattr(gradients, "PATHS", 3)  # so that each length is a part
    of_lengths, calls = analysis.PathGradients.of_lengths, []

    def interrupted(self, lengths, samples, seed):
        calls.append(list(lengths))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return of_lengths(self, lengths, samples, seed)

    monkeypatch.setattr(analysis.PathGradients, "of_lengths", interrupted)
    command = ["gradients", *subject, "--images", "8", "--samples", "3", "--at", "stem", "--out", str(tmp_path)]
    assert main(command) == 130 and "the same command resumes" in capsys.readouterr().err
    assert main(command) == 0
    assert calls == [[0], [1], [2], [2], [3], [4], [5], [6]]
    assert load_results(tmp_path)["nets"] == load_results(finished)["nets"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--samples", "1001"], "samples must lie in 1..1000"),
        (["--samples", "0"], "samples must lie in 1..1000"),
        (["--at", "middle"], "at must be one of"),
        (["--bn", "none"], "bn one of"),
        (["--images", "0"], "images must be at least 1"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(tmp_path, capsys, subject, changes, sentence):
    assert sentence in refused(["gradients", *subject, "--out", str(tmp_path), *changes], capsys)


def test_a_gradient_that_is_no_number_is_refused_and_no_zero(tmp_path, capsys, subject, monkeypatch):
    net = make_weights(tmp_path / "nan.pt", block="preact")
    net.fc.weight.data[0, 0] = math.nan
    torch.save(net.state_dict(), tmp_path / "nan.pt")
    command = ["gradients", *subject, "--weights", str(tmp_path / "nan.pt"), "--out", str(tmp_path / "out")]
    assert "data must give a gradient, but its norm is nan" in refused(command, capsys)
    monkeypatch.setattr(gradients.Gradients, "spectrum", lambda self: [])
    assert "the gradient must be a number" in refused(command, capsys)


# ---- the report --------------------------------------------------------------------------------------------------


def test_lesions_and_gradients_make_one_report(tmp_path, capsys, finished, lesions):
    assert main(["report", str(lesions), str(finished), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for name in ("delete_each", "delete_random", "reorder", "lengths", "gradients", "contribution", "spectrum"):
        assert f'id="figure-{name}"' in text and (tmp_path / "plots" / f"{name}.svg").exists()
    assert "The paths of a pre‑activation ResNet‑14" in text and 'id="training"' not in text
    assert "one forward of 8\ntraining images" in text and "blocks deleted that start a stage: error" in text


def test_each_run_has_a_report_of_its_own(tmp_path, finished, lesions, monkeypatch):
    monkeypatch.setattr("pathnet.study.merge.draw_figures", lambda document, folder: None)
    monkeypatch.setattr("pathnet.study.report._inline", lambda plot: "")
    for folder, figures in ((finished, 4), (lesions, 4)):
        assert main(["report", str(folder), "--out", str(tmp_path / folder.name)]) == 0
        text = (tmp_path / folder.name / "report.html").read_text(encoding="utf-8")
        assert text.count("<figure id=") == figures
        linked = {link.split('"')[0] for link in text.split('href="#')[1:]}
        assert all(f'id="{name}"' in text for name in linked)


def test_runs_that_do_not_fit_together_are_refused(tmp_path, capsys, subject, finished, lesions):
    make_weights(tmp_path / "other.pt", block="preact", seed=4)
    other = ["lesion", *subject, "--weights", str(tmp_path / "other.pt"), "--out", str(tmp_path / "other")]
    assert main(other) == 0
    report = ["report", "--out", str(tmp_path / "report")]
    assert "runs on the same weights" in refused([*report, str(finished), str(tmp_path / "other")], capsys)
    assert "delete_each" in refused([*report, str(lesions), str(lesions)], capsys)
    assert "cannot be read" in refused([*report, str(tmp_path)], capsys)
    document = load_results(lesions)
    for change, sentence in (({"complete": False}, "not finished"), ({"command": "study"}, "one study, or lesions")):
        (tmp_path / "results.json").write_text(json.dumps(document | change))
        assert sentence in refused([*report, str(tmp_path), str(finished)], capsys)
