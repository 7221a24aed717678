"""Bugs planted into what rebuilds the output of conv3, or makes it anew: each must show."""

from __future__ import annotations

import importlib

import pytest
from cases import make_stage
from training_cases import check, images, route_of
from triton_cases import interpreted

BUGS = {
    "rows past the end": ("anew", "recompute.py", "pixels < count, OUT)", "pixels < count - 1, OUT)"),
    "channels that nobody makes": ("anew", "recompute.py", "grid = (tiles, columns)", "grid = (tiles, 1)"),
    "what the convolution before gave": ("anew", "stage_train_bwd.py", "Source(u=norm.u, state=norm.state), place in",
                                         "Source(u=norm.u, state=norm.state.roll(1, 1)), place in"),
    "all but the last channel": ("rebuilt", "rebuilt.py", "inside, INNER)", "inside, INNER - 1)"),
    "weights of other outputs": ("rebuilt", "rebuilt.py", "outputs[None, :], inputs", "outputs[None, :] ^ 1, inputs"),
    "statistics without a pixel": ("rebuilt", "rebuilt_forward.py", "inside, IN, STORED",
                                   "pixels < count - 1, IN, STORED"),
    "a value without the skip": ("rebuilt", "rebuilt_forward.py", " + tl.load(x + at, within, 0.0).to(tl.float32)", ""),
    "a mask of other channels": ("rebuilt", "rebuilt_forward.py", "pixels, first, inside, CHANNELS",
                                 "pixels, 0, inside, CHANNELS"),
    "a gradient that takes no norm back": ("rebuilt", "rebuilt_gradient.py", "0.0), u, state", "0.0), u * 0, state"),
    "a slot without its last pixel": ("rebuilt", "rebuilt_gradient.py", "pixels_of_slot, count)",
                                      "pixels_of_slot, count - 1)"),
    "weights that nobody sums up": ("rebuilt", "rebuilt_passes.py", "grid = (slots, blocks)", "grid = (slots, 1)"),
    "sums of the gradient alone": ("rebuilt", "rebuilt_gradient.py", "(tl.float32), u, inputs",
                                   "(tl.float32), u * 0, inputs"),
    "the state of other channels": ("rebuilt", "stage_train_bwd.py", "Expansion(source.state,",
                                    "Expansion(source.state.roll(1, 1),"),
}  # fmt: skip


@interpreted
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(monkeypatch, plant, bug, poisoned):
    form, *words = BUGS[bug]
    stage, route = make_stage("bottleneck", "conv", 16, 20, 1, 2).train(), route_of([1, 3], [0.5, 1.0])
    for block in stage:
        block.recompute = True
    x = images(stage, (1, 16, 3, 4), route)
    plant(*words)
    planted = importlib.import_module("pathnet.kernels.block_run")
    monkeypatch.setattr(planted, "rebuilds", lambda *call: form == "rebuilt")
    with pytest.raises(AssertionError):
        check("triton", stage, x, route, 2.0)
