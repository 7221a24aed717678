"""The gradient of the input alone, in evaluation: against float64, and what it keeps, counts on and refuses."""

from __future__ import annotations

import pytest
import torch
from cases import Recorder, make_stage, specs
from torch import nn
from training_cases import C, check, images, route_of, stage_of, stream, train

from pathnet import Gate, PathResNet, extension
from pathnet.ops.eval_blocks import arguments, facts_of

pytestmark = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")

FORMS = ("basic", "preact")
SHAPES = [(2, 16, 16, 16), (3, 32, 9, 7), (5, 64, 8, 8), (11, 16, 13, 5), (1, 24, 21, 10)]


def frozen_stage(form: str, channels: int = C, blocks: int = 3):
    """Blocks in evaluation whose batch norms have lived, and whose parameters ask for nothing."""
    stage = stage_of(form, blocks, channels).eval().requires_grad_(False)
    for module in stage.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.3, 0.3)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return stage


def calls_of(stage, x, gates=None, **kwargs) -> list[str]:
    with Recorder() as recorder:
        y = train(stage, x, gates, **kwargs)
        y.sum().backward()
    return [op.name().removeprefix("pathnet::") for op, _ in recorder.calls]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_values(form, shape, layout, poisoned):
    stage = frozen_stage(form, shape[1])
    check("cpu", stage, images(stage, shape).contiguous(memory_format=layout))


@pytest.mark.parametrize("form", FORMS)
def test_multipliers_and_frozen_blocks(form, poisoned):
    stage, route = frozen_stage(form), route_of([1, 3, 1], [0.5, 1.0, -1.5])
    check("cpu", stage, images(stage, (3, C, 12, 9), route), route)


@pytest.mark.parametrize("shortcut", ["pad", "pad_end", "conv"])
@pytest.mark.parametrize("form", FORMS)
def test_behind_a_strided_block(form, shortcut, poisoned):
    stage = make_stage(form, shortcut, 16, 32, 2, 3).eval().requires_grad_(False)
    x = images(stage, (4, 16, 16, 16)).requires_grad_()
    assert calls_of(stage, x) == ["stage_train_fwd", "input_grad_fwd", "input_grad_bwd", "stage_train_bwd"]
    check("cpu", stage, x)


@pytest.mark.parametrize("form", FORMS)
def test_several_incoming_gradients_at_once(form):
    stage, x = frozen_stage(form), stream()
    y = train(stage, x)
    incoming = torch.randn(3, *y.shape)
    one_by_one = torch.stack([torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in incoming])
    together = torch.autograd.grad(y, x, incoming, is_grads_batched=True, retain_graph=True)[0]
    mapped = torch.func.vmap(lambda g: torch.autograd.grad(y, x, g, retain_graph=True)[0])(incoming)
    assert torch.equal(together, one_by_one) and torch.equal(mapped, one_by_one)


@pytest.mark.parametrize("form", FORMS)
def test_bits_do_not_depend_on_threads_or_on_the_batch(form, threads):
    stage, x = frozen_stage(form, 32), torch.randn(11, 32, 17, 10)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        for batch in (x, *x.split(1)):
            batch = batch.clone().requires_grad_()
            y = train(stage, batch)
            results.append(torch.cat([y.detach(), torch.autograd.grad(y.sum(), batch)[0]], 1))
    whole = results[0]
    for at in range(0, len(results), 1 + len(x)):
        assert torch.equal(results[at], whole) and torch.equal(torch.cat(results[at + 1 : at + 1 + len(x)]), whole)


@pytest.mark.parametrize("form", FORMS)
def test_a_bit_a_value_is_kept(form):
    stage, x = frozen_stage(form), stream()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        train(stage, x)
    own = {t.untyped_storage().data_ptr() for t in (*stage.parameters(), *stage.buffers())}
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    blocks = len(specs(stage))
    assert sum(size for place, size in found.items() if place not in own) == blocks * x.numel() * 2 // 8 + 4 * blocks


def test_only_where_nothing_else_is_asked_for():
    """Anything more goes the way of training."""
    used = ["input_grad_fwd", "input_grad_bwd"]
    stage = frozen_stage("basic")
    assert calls_of(stage, stream()) == used and calls_of(stage, stream(), [1, 0, 3]) == used
    for gate in (Gate.FORWARD, Gate.RESIDUAL):
        assert "input_grad_fwd" not in calls_of(stage, stream(), [1, int(gate), 1])
    mixed = calls_of(stage, stream(), [[1, 0, 1], [1, 1, 1]])  # the middle block, alone
    assert mixed[:3] == ["input_grad_fwd", "stage_train_fwd", "input_grad_fwd"]
    next(stage.parameters()).requires_grad_()
    assert "input_grad_fwd" not in calls_of(stage, stream())
    stage = frozen_stage("basic").train()
    assert "input_grad_fwd" not in calls_of(stage, stream())
    assert "input_grad_fwd" not in calls_of(frozen_stage("bottleneck"), stream())


@pytest.mark.parametrize("form", FORMS)
def test_a_block_that_is_wider_inside_trains_as_ever(form):
    stage = frozen_stage(form)
    norm = "bn2" if form == "preact" else "bn1"
    for block in stage:
        block.conv1, block.conv2 = (
            nn.Conv2d(C, 48, 3, padding=1, bias=False),
            nn.Conv2d(48, C, 3, padding=1, bias=False),
        )
        setattr(block, norm, nn.BatchNorm2d(48))
    stage.eval().requires_grad_(False)
    assert "input_grad_fwd" not in calls_of(stage, stream())
    call = arguments(facts_of(specs(stage)))
    with pytest.raises(ValueError, match="from and to the channels of x"):
        torch.ops.pathnet.input_grad_fwd(torch.randn(2, C, 9, 8), torch.ones(3), *call)
    with pytest.raises(ValueError, match="from and to the channels of x"):
        masks = torch.zeros(6, 2, 1, 9, 8, dtype=torch.int16)
        torch.ops.pathnet.input_grad_bwd(torch.randn(2, C, 9, 8), masks, torch.ones(3), *call)


def test_a_whole_net_and_a_second_derivative():
    net = PathResNet(14, in_channels=1).eval().requires_grad_(False)
    x = torch.randn(4, 1, 32, 32, requires_grad=True)
    with Recorder() as recorder:
        (grad,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    names = [op.name().removeprefix("pathnet::") for op, _ in recorder.calls]
    assert names.count("input_grad_fwd") == names.count("input_grad_bwd") == 3  # all but the two strided blocks
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()


def test_weights_changed_before_the_backward_are_noticed():
    stage, x = frozen_stage("preact"), stream()
    y = train(stage, x)
    next(stage.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def make_call(form: str = "basic", shape=(2, 16, 9, 8)):
    tensors, numbers, eps = arguments(facts_of(specs(frozen_stage(form, shape[1]))))
    return torch.randn(shape), torch.tensor([1.0, 0.5, 2.0]), tensors, numbers, eps


@pytest.mark.parametrize("form", FORMS)
def test_schemas_and_fakes(form):
    x, scales, *blocks = make_call(form, (3, 24, 9, 8))
    torch.library.opcheck(torch.ops.pathnet.input_grad_fwd.default, (x, scales, *blocks))
    y, masks = torch.ops.pathnet.input_grad_fwd(x, scales, *blocks)
    gradients = torch.randn(6, *y.shape[1:])
    torch.library.opcheck(torch.ops.pathnet.input_grad_bwd.default, (gradients, masks, scales, *blocks))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g, m, *rest: (g[:1], m, *rest), "has 1 and they have 2"),
        (lambda g, m, *rest: (g, m[1:], *rest), r"masks must have shape \[6, 2, 1, 9, 8\]"),
        (lambda g, m, *rest: (g, m.int(), *rest), "masks must have dtype Short"),
        (lambda g, m, *rest: (g, m.transpose(3, 4).contiguous().transpose(3, 4), *rest), "masks must be contiguous"),
        (lambda g, m, s, *rest: (g, m, s[:2], *rest), r"scales must have shape \[3\]"),
        (lambda g, m, s, t, b, e: (g, m, s, [], [], []), "must hold at least one block"),
        (lambda g, m, s, t, b, e: (g, m, s, t, [1 - b[0], *b[1:]], e), "input_grad_bwd|stage_eval"),
    ],
)
def test_wrong_arguments_are_sentences(change, words):
    x, *blocks = make_call()
    y, masks = torch.ops.pathnet.input_grad_fwd(x, *blocks)
    with pytest.raises(ValueError, match=words):
        torch.ops.pathnet.input_grad_bwd(*change(y, masks, *blocks))
