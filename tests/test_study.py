"""The study: from a tiny net to the report, interrupted and resumed, and a sentence for everything it refuses."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from pathnet import PathResNet
from pathnet.analysis import evaluate, reestimate_batch_norm
from pathnet.cli.main import main
from pathnet.data import load_digits
from pathnet.samplers import KeepExactly
from pathnet.study import experiments, findings, gradients, lesions, run
from pathnet.study.parts import Part
from pathnet.study.results import load_results
from pathnet.study.rules import Rules
from pathnet.study.settings import Settings, make_net
from pathnet.study.trainings import trainings

TINY = ["study", "--net", "preact14", "--epochs", "1", "--trials", "2", "--samples", "2", "--images", "20"]
SECTIONS = [
    "summary",
    "done",
    "one",
    "several",
    "order",
    "lengths",
    "gradient",
    "effective",
    "training",
    "rules",
    "run",
]
FIGURES = [
    "delete_each", "delete_random", "reorder", "lengths", "gradients", "contribution", "spectrum", "training", "rules",
]  # fmt: skip


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Forty small colour images of two classes."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    y = np.arange(40) % 2
    noise = np.random.default_rng(0).integers(0, 60, (40, 12, 12, 3))
    np.savez(path, x=(noise + 150 * y[:, None, None, None]).astype(np.uint8), y=y)
    return path


@pytest.fixture(scope="module")
def command(npz):
    return [*TINY, "--data", "cifar10", "--root", str(npz)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, command):
    """The folder of a finished tiny study."""
    out = tmp_path_factory.mktemp("study")
    assert main([*command, "--out", str(out)]) == 0
    return out


def without_times(document):
    """What must be equal between two runs of one study."""
    trainings = {title: [{**epoch, "seconds": 0} for epoch in epochs] for title, epochs in document["training"].items()}
    return {name: document[name] for name in ("nets", "settings", "identity", "complete")} | {"training": trainings}


class Outline(HTMLParser):
    """Ids, images and links of a page."""

    def __init__(self):
        super().__init__()
        self.ids, self.images, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.images += [attrs] if tag == "img" else []
        self.links += [attrs["href"]] if tag == "a" else []


def outline(folder) -> Outline:
    page = Outline()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    return page


# ---- what a study leaves ---------------------------------------------------------------------------------------


def test_report_has_every_section_and_figure_and_needs_no_other_file(finished):
    page, text = outline(finished), (finished / "report.html").read_text(encoding="utf-8")
    assert [i for i in page.ids if not i.startswith("figure-")] == SECTIONS
    assert [i.removeprefix("figure-") for i in page.ids if i.startswith("figure-")] == FIGURES
    assert all(image["src"].startswith("data:image/svg+xml;base64,") and image["alt"] for image in page.images)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links if "arxiv.org" not in link)
    assert not re.search(r"<script|<link|@import|url\(", text)
    assert torch.__version__ in text and "digits" not in text


def test_every_figure_has_two_sentences_on_how_to_read_it(finished):
    text = (finished / "report.html").read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>\s*<b>.*?</b>(.*?)</figcaption>", text, re.DOTALL)
    assert len(captions) == len(FIGURES)
    assert all(len(re.findall(r"\.(?:\s|$)", caption.strip())) == 2 for caption in captions)


def test_plots_stand_as_png_and_svg(finished):
    names = sorted(path.name for path in (finished / "plots").iterdir())
    assert names == sorted(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg"))


def test_results_hold_every_experiment_on_all_nets(finished):
    document = load_results(finished / "results.json")
    assert document["complete"] and document["schema"] == 1
    assert document["net"]["blocks"] == 6 and document["net"]["stage_starts"] == [2, 4]
    lesions = {"whole", "delete_each", "delete_random", "reorder"}
    assert set(document["nets"]["full"]) == lesions | {"gradients", "spectrum", "contribution"}
    assert set(document["nets"]["effective"]) == set(document["nets"]["depth"]) == lesions | {"rules"}
    assert list(document["nets"]) == ["full", "depth", "effective", "vgg"]
    control = document["nets"].pop("vgg")
    assert set(control) == {"whole", "delete_each"} and len(control["delete_each"]) == 13
    for net in document["nets"].values():
        assert set(net["delete_each"]) == set("012345")
        assert {key: len(trials) for key, trials in net["delete_random"].items()} == dict.fromkeys("12346", 2)
    assert [len(norms) for norms in document["nets"]["full"]["gradients"].values()] == [2] * 7
    assert sum(document["nets"]["full"]["contribution"]["shares"]) == pytest.approx(1)
    spectrum = document["nets"]["full"]["spectrum"]["0"]
    assert sum(spectrum["shares"]) == pytest.approx(1, abs=1e-3) and spectrum["mismatch"] < 1e-3


def test_summary_quotes_the_results(finished):
    document = load_results(finished / "results.json")
    rows = {row.question: row.here for row in findings.findings(document)}
    assert rows["Test error, trained on all blocks"] == findings.percent(
        document["nets"]["full"]["whole"]["0"]["error"]
    )
    window = document["nets"]["full"]["contribution"]["window"]
    assert any(here.startswith(f"{window['first']} to {window['last']} blocks") for here in rows.values())


def test_trainings_of_the_residual_nets_run_equally_many_blocks(finished):
    document = load_results(finished / "results.json")
    assert document["net"]["keep"] == 3
    epochs = {title: len(epochs) for title, epochs in document["training"].items()}
    assert epochs == {"full": 1, "depth": 1, "effective": 2, "vgg": 1}
    text = re.sub(r"\s+", " ", (finished / "report.html").read_text(encoding="utf-8"))
    assert "for 1 epoch on all blocks; for 1 epoch with stochastic depth" in text
    assert "for 2 epochs on exactly 3 of its 6 blocks" in text
    wanted = trainings(Settings(epochs=8), load_digits())
    assert {title: training.epochs for title, training in wanted.items()} == {
        "full": 8, "depth": 11, "effective": 19, "vgg": 4,
    }  # fmt: skip


def test_trainings_start_from_the_same_weights():
    full, depth, effective, _ = (
        training.net for training in trainings(Settings(net="preact14"), load_digits()).values()
    )
    for net in (depth, effective):
        assert all(torch.equal(weight, net.get_parameter(name)) for name, weight in full.named_parameters())


def test_rules_of_testing(finished):
    """Each on a copy: the net that is measured otherwise stays as it was trained."""
    data, net = load_digits(), make_net("preact14", "pad", load_digits(), 0)
    net.paths = KeepExactly(3)
    images = data.test[0][:40], data.test[1][:40]
    before = {name: value.clone() for name, value in net.state_dict().items() if name != "_extra_state"}
    (part,) = Rules(net, images, images).rules()
    (errors,) = part.measure()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    (multiplied,) = evaluate(net, images, [None])
    reestimate_batch_norm(net, images)
    (both,) = evaluate(net, images, [None])
    assert (errors["multiplier"], errors["both"]) == (multiplied.error, both.error)
    net.paths = None
    reestimate_batch_norm(net, images)
    (statistics,) = evaluate(net, images, [None])
    assert errors["statistics"] == statistics.error and list(Rules(net, images, images).rules()) == []


def test_draws_that_hit_the_costliest_blocks_are_told_apart(finished):
    document = load_results(finished / "results.json")
    net = document["nets"]["full"]

    def lesion(deleted, error):
        return {"deleted": deleted, "error": error, "loss": 1.0}

    net["delete_each"] = {str(i): lesion([i], 0.5 if i < 3 else 0.1) for i in range(6)}
    net["delete_random"] = {"2": [lesion([0, 4], 0.8), lesion([1, 2], 0.6), lesion([3, 4], 0.2), lesion([3, 5], 0.1)]}
    hits = "draws of 2 blocks, those that hit one of them have a median error of 70.0 %, the others 15.0 %."
    assert findings.observations(document)["delete_random"].replace("\u202f", " ").endswith(f"0, 1, 2: of the {hits}")

    net["delete_random"]["2"][2:] = [lesion([3, 4], 0.9), lesion([3, 5], 0.9)]
    assert "those that hit" not in findings.observations(document)["delete_random"]


# ---- resuming --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_report(monkeypatch):
    """Leave out plots and report, which other tests look at."""
    monkeypatch.setattr(run, "draw_figures", lambda document, folder: None)
    monkeypatch.setattr(run, "write_report", lambda document, out: out)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("experiment", ["delete_random", "gradients"])
def test_interrupted_study_resumes_to_equal_results(tmp_path, monkeypatch, capsys, command, finished, experiment):
    monkeypatch.setattr(gradients, "PATHS", 1)  # so that each length is a part
    parts = getattr(experiments.Experiments, experiment)

    def interrupted(self):
        def interrupt():
            raise KeyboardInterrupt

        first, second, *_ = parts(self)
        yield first
        yield Part(second.keys, second.cost, interrupt)

    with monkeypatch.context() as patch:
        patch.setattr(experiments.Experiments, experiment, interrupted)
        assert main([*command, "--out", str(tmp_path)]) == 130
    assert "the same command resumes" in capsys.readouterr().err
    partial = load_results(tmp_path / "results.json")
    assert not partial["complete"] and len(partial["nets"]["full"][experiment]) == 1

    assert main([*command, "--out", str(tmp_path)]) == 0
    expected = load_results(finished / "results.json")
    assert without_times(load_results(tmp_path / "results.json")) == without_times(expected)


@pytest.mark.usefixtures("no_report")
def test_finished_study_is_not_measured_again(finished, monkeypatch, command):
    def refuse(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(lesions, "evaluate", refuse)
    monkeypatch.setattr(gradients, "PathGradients", refuse)
    monkeypatch.setattr(gradients, "gradient_spectrum", refuse)
    before = load_results(finished / "results.json")
    assert main([*command, "--out", str(finished)]) == 0
    assert without_times(load_results(finished / "results.json")) == without_times(before)


@pytest.mark.usefixtures("no_report")
def test_loss_beyond_all_numbers_is_null_and_stops_nothing(tmp_path, monkeypatch, command):
    def beyond(net, data, paths, **options):
        results = evaluate(net, data, paths, **options)
        return results if paths == [None] else [replace(result, loss=math.inf) for result in results]

    monkeypatch.setattr(lesions, "evaluate", beyond)
    assert main([*command, "--out", str(tmp_path)]) == 0
    net = load_results(tmp_path)["nets"]["full"]
    assert net["delete_each"]["3"]["deleted"] == [3] and net["delete_each"]["3"]["loss"] is None
    assert net["whole"]["0"]["loss"] > 0


# ---- trained weights -------------------------------------------------------------------------------------------


def test_weights_are_studied_without_training(tmp_path, command):
    torch.manual_seed(3)
    torch.save(PathResNet(14, 10, block="basic").state_dict(), tmp_path / "weights.pt")
    out = tmp_path / "out"
    arguments = [*command, "--net", "basic14", "--weights", str(tmp_path / "weights.pt"), "--out", str(out)]
    assert main(arguments) == 0
    document = load_results(out / "results.json")
    assert set(document["nets"]) == {"trained"} and not document["training"]
    page = outline(out)
    assert "training" not in page.ids and not (out / "checkpoints").exists()


# ---- bad input -------------------------------------------------------------------------------------------------


def refused(arguments, capsys) -> str:
    """The one sentence on stderr with which the command refuses these arguments."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    *bars, sentence = error.strip().splitlines()
    assert sentence.startswith("pathnet study: ") and "Traceback" not in error
    return sentence


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--net", "preact10"], "10"),
        (["--net", "vgg15"], "preact or basic"),
        (["--net", "preact8"], "equal shape to swap"),
        (["--samples", "1001"], "1..1000"),
        (["--seed", "-1"], "seed must be at least 0, not -1"),
        (["--trials", "0"], "trials must be at least 1, not 0"),
        (["--keep", "7"], "keep must lie in 1..6"),
        (["--survival", "0"], "survival must be a probability above 0, not 0.0"),
        (["--shortcut", "none"], "shortcut"),
        (["--data", "folder:absent"], "needs a folder"),
        (["--root", "absent.npz"], "readable .npz"),
        (["--weights", "absent.pt"], "absent.pt"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(tmp_path, capsys, command, changes, sentence):
    assert sentence in refused([*command, "--out", str(tmp_path), *changes], capsys)


def test_corrupt_weights_are_refused(tmp_path, capsys, command):
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04 half a file")
    assert "weights.pt" in refused(
        [*command, "--weights", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "out")], capsys
    )


def test_out_that_is_a_file_is_refused(tmp_path, capsys, command):
    (tmp_path / "file").touch()
    assert "out must be a folder" in refused([*command, "--out", str(tmp_path / "file")], capsys)


def test_folder_of_another_study_is_refused(finished, capsys, command):
    before = [(finished / name).read_bytes() for name in ("journal.jsonl", "results.json")]
    error = refused([*command, "--samples", "3", "--out", str(finished)], capsys)
    assert "another run (samples 2 there, 3 here" in error
    assert [(finished / name).read_bytes() for name in ("journal.jsonl", "results.json")] == before


def test_results_without_their_journal_are_left_alone(finished, tmp_path, capsys, command):
    (tmp_path / "results.json").write_bytes((finished / "results.json").read_bytes())
    assert "but not the journal.jsonl" in refused([*command, "--out", str(tmp_path)], capsys)
    assert (tmp_path / "results.json").read_bytes() == (finished / "results.json").read_bytes()


@pytest.mark.usefixtures("no_report")
def test_same_images_elsewhere_are_the_same_study(finished, tmp_path, npz, command):
    (tmp_path / "moved.npz").write_bytes(npz.read_bytes())
    assert main([*command, "--root", str(tmp_path / "moved.npz"), "--out", str(finished)]) == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda text: "[]", "must be of schema 1, not None"),
        (lambda text: text.replace('"schema": 1', '"schema": 99'), "must be of schema 1, not 99"),
        (lambda text: re.sub(r'"error": [0-9.]+', '"error": 3', text, count=1), "nets/full"),
        (lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "nets"}), "'nets' is a required"),
    ],
)
def test_corrupt_results_are_not_read(tmp_path, finished, change, sentence):
    text = change((finished / "results.json").read_text(encoding="utf-8"))
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        load_results(tmp_path / "results.json")


def test_diverged_training_stops_with_a_sentence(tmp_path, monkeypatch, capsys, command):
    cross_entropy = torch.nn.functional.cross_entropy
    monkeypatch.setattr("pathnet.training.F.cross_entropy", lambda x, y: cross_entropy(x, y) * float("nan"))
    assert "loss became nan" in refused([*command, "--out", str(tmp_path)], capsys)
