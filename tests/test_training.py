"""Training: it learns, resumes to the bit, and stops with a sentence."""

from __future__ import annotations

import json

import pytest
import torch

from pathnet import PathResNet, samplers, training
from pathnet.cli import train
from pathnet.cli.main import main
from pathnet.data.images import ImageData
from pathnet.training import Diverged, Recipe, accuracy, fit


def stripes(images=48, augment=False) -> ImageData:
    """Two classes that a small net tells apart at once: horizontal and vertical stripes, with noise."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(images) % 2
    across = (torch.arange(16) % 4 < 2).float()
    x = torch.where(y[:, None, None] == 0, across[None, :, None], across[None, None, :]).expand(images, 16, 16)
    x = (x[:, None] - 0.5) * 2 + 0.1 * torch.randn(images, 1, 16, 16, generator=generator)
    return ImageData("stripes", "stripes", (x, y), (x[:16], y[:16]), 2, augment)


def small_net(paths=None) -> PathResNet:
    torch.manual_seed(0)
    return PathResNet(8, 2, block="preact", in_channels=1, width=4, paths=paths)


def parameters(net) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in (*net.parameters(), *net.buffers())])


def interrupt_after(monkeypatch, steps: int) -> None:
    """Raise KeyboardInterrupt in the training step after `steps` steps."""
    left, step = iter(range(steps)), training._Run._step

    def interrupted(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(training._Run, "_step", interrupted)


def test_training_learns():
    net = small_net()
    history = fit(net, stripes(), Recipe(epochs=4, batch_size=16))
    assert len(history) == 4
    assert history[-1].test_accuracy == 1.0 and history[-1].loss < history[0].loss
    assert accuracy(net, *stripes().test, batch_size=5) == 1.0


@pytest.mark.parametrize("paths", [None, samplers.KeepExactly(2, seed=3)])
def test_interrupted_training_resumes_to_the_same_bits(tmp_path, monkeypatch, paths):
    data, recipe = stripes(augment=True), Recipe(epochs=3, batch_size=16)
    straight, broken, resumed = small_net(paths), small_net(paths), small_net(paths)
    expected = fit(straight, data, recipe, checkpoint=tmp_path / "straight.pt")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, steps=4)  # in the second epoch of three steps each
        fit(broken, data, recipe, checkpoint=tmp_path / "broken.pt")
    assert len(torch.load(tmp_path / "broken.pt", weights_only=True)["history"]) == 1

    history = fit(resumed, data, recipe, checkpoint=tmp_path / "broken.pt")
    assert [epoch.loss for epoch in history] == [epoch.loss for epoch in expected]
    assert torch.equal(parameters(resumed), parameters(straight))


def test_finished_training_is_only_loaded(tmp_path):
    recipe = Recipe(epochs=1, batch_size=16)
    trained, again = small_net(), small_net()
    history = fit(trained, stripes(), recipe, checkpoint=tmp_path / "net.pt")
    assert fit(again, stripes(), recipe, checkpoint=tmp_path / "net.pt") == history
    assert torch.equal(parameters(trained), parameters(again))


def test_checkpoint_of_another_training_is_refused(tmp_path):
    fit(small_net(), stripes(), Recipe(epochs=1, batch_size=16), checkpoint=tmp_path / "net.pt")
    with pytest.raises(ValueError, match="other batch_size, seed"):
        fit(small_net(), stripes(), Recipe(epochs=1, batch_size=8, seed=1), checkpoint=tmp_path / "net.pt")


def test_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "net.pt"
    fit(small_net(), stripes(), Recipe(epochs=1, batch_size=16), checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read.*delete it"):
        fit(small_net(), stripes(), Recipe(epochs=1, batch_size=16), checkpoint=path)


def test_nan_stops_with_a_sentence_and_keeps_the_checkpoint(tmp_path):
    path, recipe = tmp_path / "net.pt", Recipe(epochs=2, batch_size=16)
    data = stripes()
    net = small_net()
    fit(net, data, Recipe(epochs=1, batch_size=16), checkpoint=path)
    before = path.read_bytes()
    data.train[0][5] = float("nan")
    with pytest.raises(Diverged, match="loss became nan in epoch 1 of 2"):
        fit(net, data, recipe, checkpoint=tmp_path / "other.pt")
    assert path.read_bytes() == before and not (tmp_path / "other.pt").exists()


def test_last_batch_of_one_image_is_left_out():
    history = fit(small_net(), stripes(images=17), Recipe(epochs=1, batch_size=16))
    assert len(history) == 1


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"epochs": 1, "batch_size": 1}])
def test_recipe_says_what_is_wrong(wrong):
    with pytest.raises(ValueError, match="must be at least"):
        Recipe(**wrong)


def test_train_command_saves_weights_that_load(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pathnet.data.load", lambda *_: stripes())
    arguments = ["train", "--net", "preact8", "--epochs", "2", "--batch-size", "16", "--paths", "keep:2"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert "Test accuracy after 2 epochs" in capsys.readouterr().out
    net = PathResNet(8, 2, block="preact", in_channels=1, paths=samplers.KeepExactly(2))
    net.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert len(json.loads((tmp_path / "history.json").read_text())) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--paths", "keep:many"], "paths must be one of keep:NUMBER"),
        (["--paths", "keep:99"], "99"),
        (["--net", "resnet8"], "preact or basic"),
        (["--net", "preact9"], "9"),
        (["--epochs", "0"], "epochs must be at least 1, not 0"),
        (["--seed", "-1"], "seed must be at least 0, not -1"),
        (["--peak-lr", "nan"], "peak_lr must be above 0, not nan"),
    ],
)
def test_train_command_answers_bad_input_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.setattr("pathnet.data.load", lambda *_: stripes())
    assert main(["train", "--net", "preact8", "--out", str(tmp_path), *arguments]) == 2
    output = capsys.readouterr().err
    assert sentence in output and "Traceback" not in output


def test_every_sampler_of_the_command_exists():
    kinds = {name: train.sampler_from(f"{name}:{value}", seed=1) for name, value in
             (("keep", 2), ("depth", 0.5), ("droppath", 0.1), ("backward", 2))}  # fmt: skip
    assert kinds["keep"] == samplers.KeepExactly(2, seed=1)
    assert kinds["depth"] == samplers.StochasticDepth(0.5, seed=1)
    assert kinds["droppath"] == samplers.DropPath(0.1, seed=1)
    assert kinds["backward"] == samplers.BackwardOnly(2, seed=1)
