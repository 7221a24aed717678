"""stage_eval on every backend: values against float64, layouts, gates, odd sizes, threads, empty batches."""

from __future__ import annotations

import pytest
import torch
from cases import FORMS, SHORTCUTS, Recorder, assert_errs_like_eager, double, make_stage, specs

from pathnet import Gate, extension, use_backend
from pathnet.ops import stage_eval
from pathnet.ops.stage_eval import LOSES, SUPPORTS
from pathnet.route import Route

OF_THEIR_OWN = {"triton"}  # in tests/test_stage_eval_triton.py: few and tiny cases, for its interpreter is slow
BACKENDS = [name for name in SUPPORTS if name not in OF_THEIR_OWN and (name != "cpu" or extension.available())]


def run(backend: str, x, stage, route=None):
    with torch.no_grad(), use_backend(backend):
        return stage_eval(x, specs(stage), route)


def check(backend: str, x, stage, route=None):
    y = run(backend, x, stage, route)
    assert_errs_like_eager(y, run("reference", x, stage, route), run("reference", x.double(), double(stage), route))
    return y


def route_of(gates, multiplier=None) -> Route:
    gates = torch.as_tensor(gates, dtype=torch.int8)
    ones = torch.ones(gates.shape[-1], dtype=torch.float64)
    return Route(gates, ones if multiplier is None else torch.as_tensor(multiplier, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("form", FORMS)
def test_values(backend, form, shortcut, poisoned):
    check(backend, torch.randn(3, 16, 9, 7), make_stage(form, shortcut, width=24))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels, width", [(3, 5), (16, 16), (20, 40), (64, 64), (1, 1)])
def test_any_channels(backend, channels, width, poisoned):
    check(backend, torch.randn(2, channels, 8, 8), make_stage("basic", "pad", channels, width))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 33), (2, 3), (17, 16), (32, 32)])
@pytest.mark.parametrize("form", FORMS)
def test_any_size(backend, form, size, poisoned):
    check(backend, torch.randn(2, 16, *size), make_stage(form, "conv"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_any_batch(backend, batch):
    stage = make_stage("preact")
    y = (
        run(backend, torch.randn(batch, 16, 8, 8), stage)
        if batch == 0
        else check(backend, torch.randn(batch, 16, 8, 8), stage)
    )
    assert y.shape == (batch, 16, 4, 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gates", [[0, 0, 0], [1, 0, 1], [0, 2, 3], [4, 1, 0]])
@pytest.mark.parametrize("form", FORMS)
def test_gates_and_multipliers(backend, form, gates, poisoned):
    x = torch.randn(2, 16, 8, 8)
    check(backend, x, make_stage(form, "conv"), route_of(gates))
    check(backend, x, make_stage(form, "pad"), route_of(gates, [0.5, -1.5, 0.0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_gates_per_sample(backend, form, poisoned):
    x, gates = torch.randn(4, 16, 8, 8), torch.tensor([[0, 0, 0], [1, 0, 1], [2, 3, 0], [0, 4, 1]])
    y = check(backend, x, make_stage(form, "conv"), route_of(gates, torch.rand(4, 3)))
    assert y.isfinite().all()
    one_by_one = [run(backend, x[i : i + 1], make_stage(form, "conv"), route_of(gates[i])) for i in range(4)]
    together = run(backend, x, make_stage(form, "conv"), route_of(gates))
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_formats_and_views(backend, poisoned):
    stage = make_stage("basic")
    big = torch.randn(3, 20, 12, 11)
    plain = big[1:, 2:18, 1:9, 2:10]  # offset, strided
    expected = run("reference", plain.contiguous(), stage)
    torch.testing.assert_close(run(backend, plain, stage), expected, rtol=1e-4, atol=1e-4)
    last = plain.contiguous(memory_format=torch.channels_last)
    y = run(backend, last, stage)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    stage.to(memory_format=torch.channels_last)
    torch.testing.assert_close(run(backend, last, stage), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_off_blocks_are_never_read(backend):
    stage = make_stage("basic", stride=1)
    for p in stage[1].parameters():
        p.data.fill_(float("nan"))
    assert run(backend, torch.randn(2, 16, 8, 8), stage, route_of([1, 0, 1])).isfinite().all()
    rows = route_of([[1, 0, 1], [1, 0, 0]])
    assert run(backend, torch.randn(2, 16, 8, 8), stage, rows).isfinite().all()


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not compiled")
def test_bits_do_not_depend_on_threads_or_batch():
    stage, x, threads = make_stage("basic"), torch.randn(7, 16, 12, 12), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run("cpu", x, stage))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert torch.equal(run("cpu", x[:3], stage), results[0][:3])


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not compiled")
@pytest.mark.parametrize("channels", [16, 20, 64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("form", ["basic", "preact"])
def test_few_tiles_give_the_bits_of_many(form, memory_format, channels, poisoned):
    """One image of up to four tiles runs on weights as they are, several images on packed ones."""
    stage = make_stage(form, channels=channels, width=channels, stride=1).to(memory_format=memory_format)
    for size in ((4, 4), (8, 8), (3, 7), (5, 12)):
        x = torch.randn(6, channels, *size)
        together = run("cpu", x, stage)
        assert torch.equal(torch.cat([run("cpu", image, stage) for image in x.split(1)]), together)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not compiled")
def test_the_registered_op_passes_opcheck():
    stage, x = make_stage("preact", "conv").requires_grad_(False), torch.randn(2, 16, 8, 8)
    with Recorder() as recorder:
        run("cpu", x, stage, route_of([1, 0, 1]))
        run("cpu", x.to(memory_format=torch.channels_last), stage, route_of([[1, 0, 1], [0, 1, 1]]))
    assert len(recorder.calls) == 2
    for op, args in recorder.calls:
        torch.library.opcheck(op, args)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not compiled")
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda stage: stage.double(), "float32"),
        (lambda stage: stage[1].train(), "batch statistics"),
        (lambda stage: setattr(stage[1], "conv1", torch.nn.Conv2d(16, 16, 3, padding=1)), "bias"),
        (lambda stage: setattr(stage[1], "conv1", torch.nn.Conv2d(16, 16, 5, padding=2, bias=False)), "5x5"),
        (lambda stage: setattr(stage[0], "conv1", torch.nn.Conv2d(16, 16, 3, 3, 1, bias=False)), "stride 3"),
        (lambda stage: setattr(stage[1], "relu", torch.nn.GELU()), "known forms"),
    ],
)
def test_a_forced_backend_says_why_it_cannot(change, words):
    stage = make_stage("basic")
    change(stage)
    with pytest.raises(RuntimeError, match=words):
        run("cpu", torch.randn(2, 16, 8, 8), stage)


@pytest.mark.parametrize(("channels", "images", "why"), [(144, 1, "2 tiles of 4x4"), (144, 2, None), (128, 1, None)])
def test_wide_convolutions_over_few_tiles_go_to_the_vendor_library(channels, images, why):
    stage = make_stage("basic", channels=channels, width=channels, stride=1).eval()
    reason = LOSES["cpu"](torch.randn(images, channels, 4, 8), specs(stage))
    assert reason is None if why is None else why in reason


def test_unused_gate_values_mean_on():
    stage, x = make_stage("basic"), torch.randn(2, 16, 8, 8)
    plain = run("reference", x, stage)
    for gate in (Gate.FORWARD, Gate.FROZEN, Gate.RESIDUAL):
        assert torch.equal(run("reference", x, stage, route_of([gate] * 3)), plain)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not compiled")
def test_an_output_beyond_memory_is_refused_in_a_sentence():
    x = torch.zeros(1, 16, 8, 8).expand(2**36, -1, -1, -1)  # 64 TiB behind the stride of 2
    with pytest.raises(RuntimeError, match="the output of shape .* does not fit into memory"):
        run("cpu", x, make_stage("basic"))


def test_poisoned_memory_would_show_an_output_that_nobody_wrote(poisoned):
    assert torch.empty(64).isnan().all()
    assert torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last).isnan().all()
