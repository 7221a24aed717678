"""Fewer images than threads: threads share the convolutions of an image, and its bits stay what one thread gives."""

from __future__ import annotations

import pytest
import torch
from cases import FORMS, assert_errs_like_eager, double, make_stage, specs

from pathnet import PathResNet, extension
from pathnet.ops.stage_eval import stage_eval
from pathnet.reference import Step
from pathnet.reference import stage as reference_stage
from pathnet.route import Route

pytestmark = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")

STAGES = {
    "rows of tiles": ({"stride": 1}, (16, 35, 39)),
    "blocks of channels": ({"channels": 40, "width": 40, "stride": 1}, (40, 17, 22)),
    "phases": ({"width": 64}, (16, 33, 38)),
    "a few tiles": ({"channels": 128, "width": 128, "stride": 1}, (128, 8, 7)),
}


def on_threads(threads, run) -> torch.Tensor:
    """What one thread gives, after as many as there are more give the same, time and again."""
    threads(1)
    expected = run()
    for count in (2, 3):
        threads(count)
        for _ in range(2):
            assert torch.equal(run(), expected), f"{count} threads"
    return expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", STAGES)
@torch.no_grad()
def test_threads_share_an_image(case, form, threads):
    options, shape = STAGES[case]
    stage, x = make_stage(form, "conv", **options), torch.randn(1, *shape)
    got = on_threads(threads, lambda: stage(x))
    steps = [Step()] * len(stage)
    truth = reference_stage(x.double(), specs(double(stage)), steps)
    assert_errs_like_eager(got, reference_stage(x, specs(stage), steps), truth, factor=4.0)


@torch.no_grad()
def test_threads_share_the_images_that_run_a_block(threads):
    stage, x = make_stage("basic", width=32), torch.randn(2, 16, 33, 38)
    gates = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.int8)
    route = Route(gates, torch.tensor([[0.5, 1.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64))
    together = on_threads(threads, lambda: stage_eval(x, specs(stage), route))
    alone = [stage_eval(x[i : i + 1], specs(stage), Route(gates[i], route.multiplier[i])) for i in range(2)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("images", [1, 3])
@torch.no_grad()
def test_threads_share_a_net(images, threads):
    net = PathResNet(20).eval()
    on_threads(threads, lambda: net(torch.linspace(-1, 1, images * 3 * 32 * 30).view(images, 3, 32, 30)))
