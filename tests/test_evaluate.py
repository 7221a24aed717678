"""The lesion engine: what lesions have in common runs once, and results are those of the plain loop."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from analysis_cases import SETTINGS, make_data, make_net

from pathnet import PathResNet, Paths, analysis, samplers, use_backend
from pathnet.analysis.prefixes import Operation, shared_runs, slots


def entries(net: PathResNet) -> list[Paths | None]:
    """Lesions, reorderings and multipliers of a net of nine blocks, some of them equal."""
    n = net.num_blocks
    whole = Paths.delete(n, [])
    deletions = [Paths.delete(n, pair) for pair in itertools.combinations(range(n), 2)]
    swapped = [whole.reordered([1, 0, 2, 3, 4, 5, 6, 7, 8]), whole.reordered([0, 1, 2, 3, 5, 4, 6, 8, 7])]
    scaled = [whole.scaled(0.5), Paths.delete(n, [2]).scaled([1.0] * 8 + [2.0])]
    return [None, *deletions, *swapped, *scaled, whole, deletions[0], None, Paths.keep(n, []), Paths.single(n, [1])]


def plain_loop(net, data, lesions, batch_size=500):
    """Logits of `net(x, paths=...)`, one lesion after the other."""
    x = data[0].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return [torch.cat([net(part, paths=lesion) for part in x.split(batch_size)]) for lesion in lesions]


def assert_equal_to_plain_loop(net, data, lesions, batch_size=500):
    results = analysis.evaluate(net, data, lesions, batch_size)
    assert len(results) == len(lesions)
    for result, logits in zip(results, plain_loop(net, data, lesions, batch_size), strict=True):
        assert torch.equal(result.predictions, logits.argmax(1))
        parts = zip(logits.double().split(batch_size), data[1].split(batch_size), strict=True)
        loss = sum(F.cross_entropy(*part, reduction="sum").item() for part in parts)
        assert result.loss == loss / len(data[1])  # to the bit
        assert result.error == (logits.argmax(1) != data[1]).double().mean().item()


@pytest.fixture
def counted(monkeypatch):
    """A list that gets the number of running blocks of every call of a part of a net."""
    counts, through = [], PathResNet.through

    def count(self, x, order, route=None):
        counts.append(sum(bool(route.gates[block]) for block in order))
        return through(self, x, order, route)

    monkeypatch.setattr(PathResNet, "through", count)
    return counts


# ---- equal to the plain loop -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "shortcut"), SETTINGS)
def test_results_are_those_of_the_plain_loop_to_the_bit(block, shortcut):
    net = make_net(block, shortcut, depth=20)
    assert_equal_to_plain_loop(net, make_data(7), entries(net))
    with use_backend("reference"):
        assert_equal_to_plain_loop(net.double(), make_data(7, torch.float64), entries(net), batch_size=3)


def test_rule_of_the_sampler_holds_for_every_entry_that_is_not_raw():
    net = make_net(depth=20, paths=samplers.KeepExactly(4))
    raw = Paths(torch.ones(9, dtype=torch.int8), raw=True)
    lesions = [None, Paths.delete(9, [3]), raw]
    assert_equal_to_plain_loop(net, make_data(), lesions)
    net.paths = Paths.delete(9, [1, 2])
    assert_equal_to_plain_loop(net, make_data(), [None, Paths.delete(9, [3])])


def test_batches_of_a_loader_are_one_set_of_images():
    net, (x, y) = make_net(), make_data(10)
    lesions = [None, Paths.delete(6, [1])]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    for loaded, joint in zip(
        analysis.evaluate(net, loader, lesions), analysis.evaluate(net, (x, y), lesions), strict=True
    ):
        assert torch.equal(loaded.predictions, joint.predictions) and loaded.error == joint.error
        assert loaded.loss == pytest.approx(joint.loss, rel=1e-12)


def test_errors_by_class_and_agreement():
    net, (x, y) = make_net(), make_data(9)
    y = y.clamp(max=2)  # the fourth class has no image
    whole, lesion = analysis.evaluate(net, (x, y), [None, Paths.delete(6, [0, 1, 3])])
    for label in range(3):
        assert whole.class_errors[label] == (whole.predictions[y == label] != label).double().mean()
    assert math.isnan(whole.class_errors[3])
    assert whole.agreement(whole) == 1
    assert whole.agreement(lesion) == (whole.predictions == lesion.predictions).double().mean()


# ---- what runs, and how often ----------------------------------------------------------------------------------


def deep_net() -> PathResNet:
    return PathResNet(110, 4, block="preact", in_channels=1, width=2).eval()


def test_54_deletions_and_the_whole_net_cost_1485_block_evaluations(counted):
    lesions = [None, *(Paths.delete(54, [block]) for block in range(54))]
    analysis.evaluate(deep_net(), (torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)), lesions)
    assert sum(counted) == 1485


def test_all_pairs_of_54_cost_26234_block_evaluations_at_most(counted):
    lesions = [Paths.delete(54, pair) for pair in itertools.combinations(range(54), 2)]
    analysis.evaluate(deep_net(), (torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)), lesions)
    assert sum(counted) <= 26_234


def test_equal_lesions_run_once(counted):
    net, data = make_net(), make_data()
    whole = Paths.delete(6, [])
    equal = [None, whole, Paths.single(6, [2]), Paths.frozen(6, [0]), whole.scaled(1.0), whole.reordered(range(6))]
    results = analysis.evaluate(net, data, equal)
    assert sum(counted) == 6
    assert all(torch.equal(result.predictions, results[0].predictions) for result in results)


def test_runs_cover_random_sequences_with_few_activations():
    draw = torch.Generator().manual_seed(0)
    for count in (1, 2, 10, 300):
        kept = torch.rand(count, 30, generator=draw) < 0.7
        sequences = [tuple(Operation(i, True, 1.0) for i in row.nonzero().flatten().tolist()) for row in kept]
        runs = shared_runs(sequences)
        held, seen = {0: ()}, {}
        for run in runs:
            held[run.target] = held[run.source] + run.operations
            seen |= dict.fromkeys(run.ending, held[run.target])
        assert [seen[i] for i in range(count)] == sequences
        prefixes = {sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)}
        assert sum(len(run.operations) for run in runs) == len(prefixes)
        assert slots(runs) <= math.log2(count) + 1
    assert shared_runs([]) == []


def test_little_memory_means_fewer_images_at_a_time():
    net, data = make_net(depth=20), make_data(9)
    lesions = entries(net)
    usual = analysis.evaluate(net, data, lesions)
    activation = 4 * 12 * 12 * 4
    for few, many in zip(analysis.evaluate(net, data, lesions, memory=16 * activation), usual, strict=True):
        assert torch.equal(few.predictions, many.predictions)
    with pytest.raises(ValueError, match=r"memory must hold \d+ activations of an image, \d+ bytes"):
        analysis.evaluate(net, data, lesions, memory=activation)


# ---- nets that users have changed ------------------------------------------------------------------------------


def test_hooks_of_the_net_see_a_forward_for_every_entry():
    net, data = make_net(depth=20), make_data()
    calls = []
    net.layer2.register_forward_hook(lambda module, inputs, output: calls.append(len(output)) or output * 1.5)
    assert_equal_to_plain_loop(net, data, entries(net))
    assert len(calls) == 2 * len(entries(net))


class Inplace(torch.nn.Module):
    """A child that changes its input."""

    def forward(self, x):
        return x.mul_(0.5)


@pytest.mark.parametrize("block", ["preact", "basic"])
def test_a_child_that_works_in_place_does_not_reach_other_entries(block):
    net = make_net(block, depth=20)
    for index in (1, 4):
        net.blocks[index].conv2 = torch.nn.Sequential(net.blocks[index].conv2, Inplace())
        net.blocks[index].register_forward_pre_hook(lambda module, inputs: (inputs[0].mul_(1.25),))
    assert_equal_to_plain_loop(net, make_data(), entries(net))


# ---- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lesion", "sentence"),
    [
        (Paths.delete(9, [1]), "one gate for each of the net's 6 blocks, got 9"),
        (Paths(torch.ones(6, 6, dtype=torch.int8)), "one gate and one multiplier for each block"),
        (Paths.delete(6, []).reordered([2, 1, 0, 3, 4, 5]), "order may only exchange blocks of equal shape"),
    ],
)
def test_paths_that_do_not_fit_are_refused_before_anything_runs(counted, lesion, sentence):
    with pytest.raises(ValueError, match=sentence):
        analysis.evaluate(make_net(), make_data(), [None, lesion])
    assert counted == []


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"x must have the shape \[N, 1, H, W\]"):
        analysis.evaluate(make_net(), (torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)), [None])
    with pytest.raises(ValueError, match="at least one image"):
        analysis.evaluate(make_net(), [], [None])


def test_no_paths_give_no_results():
    assert analysis.evaluate(make_net(), make_data(), []) == []
