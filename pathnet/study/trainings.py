"""The nets that a study trains: plainly, with stochastic depth, on effective paths alone, and one without shortcuts."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pathnet.data import ImageData
from pathnet.models import PathNet, PathVGG
from pathnet.samplers import KeepExactly, StochasticDepth
from pathnet.study.nets import CONTROL, DEPTH, EFFECTIVE, FULL
from pathnet.study.settings import Settings, blocks_to_keep, make_net

CONTROL_WIDTH = 64  # channels: enough for what the control shows, and a quarter of the time of 128


class Training(NamedTuple):
    """A net before its training, and for how many epochs it is trained."""

    net: PathNet
    epochs: int


def trainings(settings: Settings, data: ImageData) -> dict[str, Training]:
    """What a study trains, by title; the residual nets start from the same weights and run equally many blocks.

    A net under a sampler gets more epochs, as each of its steps runs fewer blocks: of n blocks, m by `KeepExactly`, and
    the sum of all survival probabilities by `StochasticDepth`. The control gets half of the epochs.
    """
    plain = make_net(settings.net, settings.shortcut, data, settings.seed)
    blocks = plain.num_blocks
    samplers = {
        FULL: None,
        DEPTH: StochasticDepth(settings.survival, seed=settings.seed),
        EFFECTIVE: KeepExactly(blocks_to_keep(settings, blocks), seed=settings.seed),
    }
    wanted: dict[str, Training] = {}
    for title, sampler in samplers.items():
        net = make_net(settings.net, settings.shortcut, data, settings.seed)
        net.paths = sampler
        running = sum((sampler.test_multiplier(blocks) if sampler else None) or [1.0] * blocks)
        wanted[title] = Training(net, round(settings.epochs * blocks / running))
    wanted[CONTROL] = Training(_control(data, settings.seed), max(1, settings.epochs // 2))
    return wanted


def _control(data: ImageData, seed: int) -> PathVGG:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PathVGG(data.classes, width=CONTROL_WIDTH, in_channels=data.channels)
