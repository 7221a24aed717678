"""stage_train on every backend: values, every gradient and running statistics against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import SHORTCUTS, make_stage
from training_cases import TRAINED_FORMS, check, images, route_of, step

from pathnet import extension
from pathnet.blocks import BLOCKS
from pathnet.ops.stage_train import SUPPORTS

OF_THEIR_OWN = {"triton", "cuda"}  # in tests/test_stage_train_{triton,cuda}.py: few and tiny cases, for both are slow
BACKENDS = [name for name in SUPPORTS if name not in OF_THEIR_OWN and (name != "cpu" or extension.available())]
MIXTURES = [[0, 0, 0], [1, 2, 0], [2, 2, 2], [3, 1, 4], [4, 2, 1], [0, 3, 2], [4, 4, 4], [3, 3, 3], [2, 4, 2]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_values_and_gradients(backend, form, shortcut, training, poisoned):
    stage = make_stage(form, shortcut, width=24).train(training)
    check(backend, stage, images(stage, (3, 16, 9, 7) if form == "basic" else (3, 16, 10, 6)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gates", MIXTURES, ids=str)
@pytest.mark.parametrize("shortcut", ["conv", "pad"])
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_gates(backend, form, shortcut, gates, training, poisoned):
    stage, route = make_stage(form, shortcut).train(training), route_of(gates)
    check(backend, stage, images(stage, (2, 16, 8, 8), route), route)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gates", [[1] * 6, [1, 2, 2, 1, 0, 3], [2, 4, 1, 0, 2, 2], [3, 2, 2, 4, 4, 2]], ids=str)
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_a_run_of_identity_shortcuts(backend, form, gates, poisoned):
    stage, route = make_stage(form, stride=1, blocks=6).train(), route_of(gates)
    check(backend, stage, images(stage, (2, 16, 8, 8), route), route)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gates", [[1, 1, 1], [2, 2, 3], [4, 3, 2]], ids=str)
@pytest.mark.parametrize("multiplier", [[0.5, -1.5, 0.0], [0.0, 2.0, -0.25]], ids=str)
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_multipliers(backend, form, multiplier, gates, poisoned):
    stage, route = make_stage(form).train(), route_of(gates, multiplier)
    check(backend, stage, images(stage, (2, 16, 8, 8), route), route)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels, width", [(8, 8), (8, 24), (24, 24), (16, 48), (64, 64), (80, 80)])
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_channels(backend, form, channels, width, poisoned):
    stage = make_stage(form, "pad", channels, width, blocks=2).train()
    check(backend, stage, images(stage, (2, channels, 6, 6)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels, width", [(8, 24), (256, 64), (80, 136)])
@pytest.mark.parametrize("form", ["bottleneck", "preact_bottleneck"])
def test_channels_of_bottlenecks(backend, form, channels, width, poisoned):
    """More input channels than one slab of products takes, and panels of a few pixels of several images."""
    stage = make_stage(form, "conv", channels, width, stride=1, blocks=2).train()
    check(backend, stage, images(stage, (4, channels, 3, 3)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(1, 3), (1, 33), (2, 3), (5, 4), (9, 8)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_sizes(backend, form, stride, size, training, poisoned):
    """Strided basic blocks train on any sides; others on even ones."""
    stage = make_stage(form, "conv", channels=8, stride=stride, blocks=2).train(training)
    h, w = size if form == "basic" else (stride * side for side in size)
    check(backend, stage, images(stage, (8 if h * w <= 30 else 2, 8, h, w)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [1, 5, 11])
def test_batches(backend, batch, training, poisoned):
    stage, route = make_stage("basic", "conv").train(training), route_of([1, 2, 3])
    check(backend, stage, images(stage, (batch, 16, 8, 8), route), route)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("names", [["1.bn1"], ["0.bn2", "2.bn1"], ["2.bn1", "2.bn2"]], ids=str)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_statistics_are_chosen_batch_norm_by_batch_norm(backend, form, training, names, poisoned):
    stage = make_stage(form, "conv").train(training)
    for name in names:
        stage.get_submodule(name).train(not training)
    check(backend, stage, images(stage, (2, 16, 8, 8)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_a_recomputation_moves_nothing(backend, form):
    stage, route = make_stage(form).train(), route_of([1, 2, 4], update=False)
    got = check(backend, stage, images(stage, (2, 16, 8, 8), route), route)
    assert all(torch.equal(got[name], buffer) for name, buffer in stage.named_buffers())


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_survive_a_mean_far_from_zero(backend, poisoned):
    """The naive formula, mean of squares less square of the mean, would lose every digit here."""
    stage = make_stage("preact", stride=1, blocks=1).train()
    check(backend, stage, images(stage, (4, 16, 8, 8), mean=300.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_memory_formats_and_views(backend, form, poisoned):
    stage, route = make_stage(form, width=16 // BLOCKS[form].expansion).train(), route_of([1, 2, 1])
    plain = images(stage, (2, 16, 8, 10), route)
    expected = step("reference", stage, plain, route)
    view = torch.empty(4, 20, 12, 14)[1:3, 2:18, 1:9, 2:12].copy_(plain)
    last = plain.contiguous(memory_format=torch.channels_last)
    for x, weights in ((plain, last), (view, plain), (last, plain), (last, last)):
        same = copy.deepcopy(stage)
        same.to(memory_format=torch.channels_last if weights is last else torch.contiguous_format)
        got = step(backend, same, x, route)
        for name, tensor in expected.items():
            if tensor is not None:
                torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
        if backend == "cpu":  # PyTorch's convolutions follow the weights too
            assert got["y"].is_contiguous(memory_format=torch.channels_last) == (x is last)
            assert x is view or got["x"].stride() == x.stride()


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not compiled")
@pytest.mark.parametrize("form", TRAINED_FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_bits_do_not_depend_on_threads(form, training):
    stage, route, threads = make_stage(form).train(training), route_of([1, 2, 3]), torch.get_num_threads()
    x, results = torch.randn(7, 16, 12, 12), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(step("cpu", stage, x, route))
    finally:
        torch.set_num_threads(threads)
    for name, first in results[0].items():
        assert all(first is None or torch.equal(other[name], first) for other in results[1:]), name
