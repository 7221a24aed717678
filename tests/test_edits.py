"""What a user changes between two evaluations is seen by the second, however it was changed."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import make_stage
from torch import nn
from torch.nn.utils import parametrizations, prune, stateless

from pathnet.blocks.snapshot import Snapshot


def optimizer_step(stage):
    for p in stage.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(stage.parameters(), 0.01).step()


def data_copy(stage):
    stage[1].conv2.weight.data.copy_(torch.randn(16, 16, 3, 3))


def data_swap(stage):
    stage[1].conv2.weight.data = torch.randn(16, 16, 3, 3)


def storage_swap(stage):
    stage[1].bn2.bias.set_(torch.randn(16))


def one_channel(stage):
    stage[2].conv2.weight.data[3, :, 1, 1] += 1


def scaled(stage):
    stage[0].bn1.weight.mul_(1.5)


def statistics(stage):
    stage[1].bn1.running_var.mul_(4)


def numpy_view(stage):
    stage[0].conv1.weight.detach().numpy()[0] = 0.5


def loaded(stage):
    stage.load_state_dict({key: value + 1 for key, value in stage.state_dict().items()})


def loaded_by_assignment(stage):
    stage.load_state_dict({key: value + 1 for key, value in stage.state_dict().items()}, assign=True)


def new_parameter(stage):
    stage[1].conv1.weight = nn.Parameter(torch.randn(16, 16, 3, 3))


def new_buffer(stage):
    stage[1].bn1.running_mean = torch.randn(16)


def new_child(stage):
    stage[1].conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)


def new_child_in_a_sequence(stage):
    stage[0].downsample[0] = nn.Conv2d(16, 16, 1, 2, bias=False)


def new_block(stage):
    stage[1] = make_stage("basic", stride=1)[1]


def exchanged_children(stage):
    stage[1].conv1, stage[1].conv2 = stage[1].conv2, stage[1].conv1


def exchanged_blocks(stage):
    stage[1], stage[2] = stage[2], stage[1]


def one_block_fewer(stage):
    del stage[2]


def other_eps(stage):
    stage[1].bn2.eps = 0.5


def other_padding(stage):
    stage[1].conv1.padding, stage[1].conv1.dilation = (2, 2), (2, 2)


def hook(stage):
    stage[1].conv1.register_forward_hook(lambda module, args, out: 2 * out)


def hook_on_a_block(stage):
    stage[1].register_forward_hook(lambda module, args, out: 2 * out)


def hook_before(stage):
    stage[0].downsample.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def other_forward(stage):
    stage[1].bn1.forward = lambda x: x + 1


def other_forward_of_a_block(stage):
    stage[1].forward = lambda x, route=None: x + 1


def pruned(stage):
    prune.l1_unstructured(stage[1].conv2, "weight", amount=0.5)


def parametrized(stage):
    parametrizations.weight_norm(stage[0].conv1)
    stage[0].conv1.parametrizations.weight.original0.data.mul_(2)


def back_to_batch_statistics(stage):
    stage[1].bn1.train()


def activation(stage):
    stage[1].relu = nn.LeakyReLU(0.5)


EDITS = (
    optimizer_step, data_copy, data_swap, storage_swap, one_channel, scaled, statistics, numpy_view, loaded,
    loaded_by_assignment, new_parameter, new_buffer, new_child, new_child_in_a_sequence, new_block,
    exchanged_children, exchanged_blocks, one_block_fewer, other_eps, other_padding, hook, hook_on_a_block,
    hook_before, other_forward, other_forward_of_a_block, pruned, parametrized, back_to_batch_statistics, activation,
)  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
@torch.no_grad()
def test_an_edit_is_seen(edit):
    stage, x = make_stage("basic", "conv"), torch.randn(2, 16, 8, 8)
    before = stage(x)
    assert torch.equal(stage(x), before)
    torch.manual_seed(1)
    edit(stage)
    fresh = copy.deepcopy(stage)  # which nobody has described yet
    after = stage(x)
    assert torch.equal(after, fresh(x))
    assert not torch.equal(after, before)
    assert torch.equal(stage(x), after) or edit is back_to_batch_statistics


@torch.no_grad()
def test_a_hook_that_is_removed_is_seen():
    stage, x = make_stage("basic", "conv"), torch.randn(2, 16, 8, 8)
    plain = stage(x)
    handle = stage[1].conv1.register_forward_hook(lambda module, args, out: 2 * out)
    everywhere = nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    assert not torch.equal(stage(x), plain)
    handle.remove()
    everywhere.remove()
    assert torch.equal(stage(x), plain)


@torch.no_grad()
def test_parameters_lent_for_one_call_are_seen():
    stage, x = make_stage("basic", "conv"), torch.randn(2, 16, 8, 8)
    plain = stage(x)
    lent = {name: p + 0.1 for name, p in stage.named_parameters()}
    assert not torch.equal(stateless._functional_call(stage, lent, (x,)), plain)
    assert torch.equal(stage(x), plain)


@torch.no_grad()
def test_edits_while_other_threads_evaluate():
    """Every result is that of some state of the net: before the swap or behind it."""
    stage, x = make_stage("basic", "conv"), torch.randn(2, 16, 8, 8)
    other = make_stage("basic", "conv")
    other[1].conv1.weight.data.neg_()
    convs = stage[1].conv1, other[1].conv1
    expected = []
    for conv in convs:
        stage[1].conv1 = conv
        expected.append(stage(x))

    def evaluate(_):
        with torch.no_grad():
            return stage(x)

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(evaluate, range(200))
        for i in range(200):
            stage[1].conv1 = convs[i % 2]
        for got in results:
            assert any(torch.equal(got, want) for want in expected)


def test_a_snapshot_holds_until_something_changes():
    stage = make_stage("basic", "conv")
    snapshot = Snapshot(stage)
    assert snapshot.holds()
    with torch.no_grad():
        stage[0].conv1.weight.add_(1)
    assert snapshot.holds(), "a tensor that changes in place is read anew in every call"
    del stage[0].conv1.stride
    assert not snapshot.holds()
