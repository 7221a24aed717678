"""Small images and weights in files, as the commands take them, and what a command refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathnet import PathResNet
from pathnet.cli.main import main


@pytest.fixture(scope="session")
def npz(tmp_path_factory):
    """Forty small colour images of two classes."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    y = np.arange(40) % 2
    noise = np.random.default_rng(0).integers(0, 60, (40, 12, 12, 3))
    np.savez(path, x=(noise + 150 * y[:, None, None, None]).astype(np.uint8), y=y)
    return path


def make_weights(path, block="basic", seed=3):
    """The weights of a net of six blocks in a file; the net."""
    torch.manual_seed(seed)
    net = PathResNet(14, 10, block=block)
    torch.save(net.state_dict(), path)
    return net.eval()


def refused(arguments, capsys) -> str:
    """The one sentence on stderr with which the command refuses these arguments."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    *bars, sentence = error.strip().splitlines()
    assert sentence.startswith(f"pathnet {arguments[0]}: ") and "Traceback" not in error
    return sentence
