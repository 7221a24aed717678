"""stage_train on the CPU kernels under autograd's rules: who gets a gradient, and when, and how often."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import Recorder, specs
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from training_cases import TRAINED_FORMS, N, route_of, stage_of, step, stream, train

from pathnet import PathResNet, extension, use_backend
from pathnet.ops.stage_train import stage_train
from pathnet.samplers import KeepExactly

pytestmark = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")


@pytest.fixture(autouse=True)
def on_the_kernels():
    with use_backend("cpu"):
        yield


def requires(stage, pattern: str) -> None:
    for name, p in stage.named_parameters():
        p.requires_grad_(pattern in name)


@pytest.mark.parametrize("pattern", ["conv", "bn", "bias", "conv2.weight", "1.", "2.bn1", "0.conv1", "nothing"])
@pytest.mark.parametrize("gates", [[1, 1, 1, 1], [2, 1, 3, 4]], ids=str)
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_only_what_is_asked_for_gets_a_gradient(form, gates, pattern):
    stage, x = stage_of(form), stream(requires_grad=False)
    whole = step("cpu", stage, x, route_of(gates))
    requires(stage, pattern)
    part = step("cpu", stage, x, route_of(gates))
    for name, p in stage.named_parameters():
        wanted = whole[name] if p.requires_grad else None
        assert (part[name] is None) == (wanted is None), name
        assert wanted is None or torch.equal(part[name], wanted), name
    assert torch.equal(part["x"], whole["x"]) and torch.equal(part["y"], whole["y"])


@pytest.mark.parametrize("pattern", ["conv", "2.bn1", "3."])
def test_no_gradient_of_x_is_computed_where_nobody_asks(pattern):
    stage = stage_of()
    whole = step("cpu", stage, x := stream(requires_grad=False))
    requires(stage, pattern)
    with Recorder() as recorder:
        train(stage, x).backward(torch.linspace(-1, 2, x.numel()).sin().view(x.shape))
    assert not any(args[-1][0] for func, args in recorder.calls if "bwd" in func.name())
    for name, p in stage.named_parameters():
        assert (p.grad is None) == (not p.requires_grad)
        assert p.grad is None or torch.equal(p.grad, whole[name]), name


def test_untouched_parameters_keep_none_or_get_zeros():
    stage = stage_of()
    train(stage, stream(), [0, 2, 3, 1]).sum().backward()
    assert all(p.grad is None for p in stage[:3].parameters())
    assert all(p.grad is not None for p in stage[3].parameters())
    stage = stage_of()
    stage_train(stream(), specs(stage), route_of([0, 2, 3, 1]), zero_unused=True).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in stage[:3].parameters())


def test_hooks_run_once_with_a_tensor():
    stage, seen = stage_of(), []
    for p in stage.parameters():
        p.register_hook(lambda grad: seen.append(grad.shape))
    train(stage, stream(), [1, 2, 0, 3]).sum().backward()
    assert len(seen) == len(list(stage[0].parameters()))


# ---- autograd's rules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gates", [[1, 1, 1, 1], [2, 1, 4, 3], [2, 2, 2, 2]], ids=str)
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_the_backward_can_run_again(form, gates):
    stage, x = stage_of(form), stream()
    y = train(stage, x, gates)
    grads = [torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)


def test_what_changes_between_forward_and_backward_is_kept_or_noticed():
    """The kernels keep a copy of the stream; weights that the backward reads must be as they were."""
    stage, x = stage_of(), stream()
    y = train(stage, x, [1, 2, 3, 4])
    expected = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0]
    with torch.no_grad():
        x.add_(1), y.detach().add_(1), stage[1].conv1.weight.add_(1)
    assert torch.equal(torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0], expected)
    with torch.no_grad():
        stage[0].conv1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_moving_statistics_and_other_forwards_do_not_disturb_a_backward():
    stage, x = stage_of(), stream()
    y = train(stage, x)
    first = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0]
    train(stage, x * 2)
    assert torch.equal(torch.autograd.grad(y, x, torch.ones_like(y))[0], first)


def test_outputs_and_gradients_are_memory_of_their_own():
    for form in TRAINED_FORMS:
        stage, x = stage_of(form), stream()
        y = train(stage, x, [2, 2, 2, 2])
        grad_y = torch.randn_like(y)
        kept = grad_y.clone()
        grad_x = torch.autograd.grad(y, x, grad_y)[0]
        assert len({t.untyped_storage().data_ptr() for t in (x, y, grad_x)}) == 3
        grad_x.zero_()
        assert form == "basic" or torch.equal(grad_y, kept)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_several_incoming_gradients_at_once(form, training):
    stage, x = stage_of(form).train(training).requires_grad_(False), stream()
    y = train(stage, x, [1, 2, 3, 4])
    incoming = torch.randn(3, *y.shape)
    one_by_one = torch.stack([torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in incoming])
    together = torch.autograd.grad(y, x, incoming, is_grads_batched=True, retain_graph=True)[0]
    mapped = torch.func.vmap(lambda g: torch.autograd.grad(y, x, g, retain_graph=True)[0])(incoming)
    assert torch.equal(together, one_by_one) and torch.equal(mapped, one_by_one)


def test_a_second_derivative_is_refused_in_a_sentence():
    stage, x = stage_of(), stream()
    first = torch.autograd.grad(train(stage, x).sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative; run the forward inside pathnet.use_backend"):
        first.square().sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("sampler", [None, KeepExactly(1)])
def test_checkpointing_changes_no_bit(sampler, reentrant):
    with use_backend("cpu"):
        net, x = PathResNet(8, width=8, paths=sampler).train(), torch.randn(4, 3, 8, 8)
        twin = copy.deepcopy(net)
        for model, run in ((net, lambda z: checkpoint(net, z, use_reentrant=reentrant)), (twin, twin)):
            run(x.clone().requires_grad_()).square().sum().backward()
            assert model.layer1[0].bn1.num_batches_tracked <= 1
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) and (p.grad is None or torch.equal(p.grad, q.grad))
    assert all(torch.equal(p, q) for p, q in zip(net.buffers(), twin.buffers(), strict=True))


def test_saved_tensors_can_be_moved_away():
    stage, x = stage_of(), stream(requires_grad=False)
    expected = step("cpu", stage, x, route_of([2, 1, 3, 2]))
    with save_on_cpu():
        got = step("cpu", stage, x, route_of([2, 1, 3, 2]))
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items() if tensor is not None)


@pytest.mark.parametrize("gates", [[1, 0, 2, 4], [2, 2, 3, 1]], ids=str)
def test_equal_rows_are_one_gate_for_the_batch(gates):
    stage, x = stage_of(), stream(requires_grad=False)
    whole = step("cpu", stage, x, route_of(gates, [1.0, 2.0, 0.5, -1.0]))
    rows = step("cpu", stage, x, route_of([gates] * N, [[1.0, 2.0, 0.5, -1.0]] * N))
    for name, tensor in whole.items():
        assert (rows[name] is None) == (tensor is None) and (tensor is None or torch.equal(rows[name], tensor)), name


def test_masked_rows_that_are_all_off_compute_times_zero():
    stage, x = stage_of(), stream(requires_grad=False)
    route = route_of([[1, 0, 1, 1]] * N)._replace(mask_rows=True)
    got, expected = step("cpu", stage, x, route), step("reference", stage, x, route)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-3, msg=name)
    assert got["1.bn1.num_batches_tracked"] == 1
