"""Analysis: path lengths, Kendall's tau, lesions, reorderings and the gradient along single paths."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis_cases import make_data, make_net

from pathnet import Paths, analysis, samplers

# ---- path lengths and windows ------------------------------------------------------------------------------


def test_path_lengths_are_binomial():
    shares = analysis.path_length_distribution(54)
    lengths = np.arange(55)
    assert shares.sum() == pytest.approx(1) and (shares * lengths).sum() == pytest.approx(27)
    assert (shares * (lengths - 27) ** 2).sum() == pytest.approx(54 / 4)
    assert shares[5:18].sum() == pytest.approx(0.0045367, abs=1e-7)
    assert shares[19:36].sum() == pytest.approx(0.98017, abs=1e-5)


def test_deletions_take_long_paths_first():
    left = analysis.surviving_paths(54, 10)
    assert left[[5, 11, 17, 27]] == pytest.approx([0.34, 0.080, 0.015, 0.00035], rel=0.04)
    assert analysis.surviving_paths(54, 20)[[5, 11]] == pytest.approx([0.088, 0.0030], rel=0.01)
    paths = [set(path) for k in range(7) for path in itertools.combinations(range(6), k)]
    alive = [[len(path) for path in paths if path.isdisjoint({1, 4})].count(k) for k in range(7)]
    counts = [math.comb(6, k) for k in range(7)]
    assert np.allclose(analysis.surviving_paths(6, 2), np.array(alive) / counts)
    with pytest.raises(ValueError, match=r"0\.\.6.*7"):
        analysis.surviving_paths(6, 7)


def test_weighted_paths_are_those_of_a_residual_net_of_stochastic_depth_and_of_gates():
    assert np.allclose(analysis.weighted_length_distribution([0.5] * 54), analysis.path_length_distribution(54))
    survival = samplers.StochasticDepth(0.5).survival(54)
    lengths = analysis.weighted_length_distribution(survival / 2)
    assert (lengths * np.arange(55)).sum() == pytest.approx(20.1, abs=0.05)
    assert lengths[5:18].sum() == pytest.approx(0.229, abs=0.0005)
    gates = [0.1, 0.9, 0.3]
    paths = list(itertools.product([False, True], repeat=3))
    weight = [math.prod(t if through else 1 - t for t, through in zip(gates, path, strict=True)) for path in paths]
    expected = [sum(w for w, path in zip(weight, paths, strict=True) if sum(path) == k) for k in range(4)]
    assert analysis.weighted_length_distribution(gates) == pytest.approx(expected)
    for wrong in ([], [0.5, 1.5], [math.nan], 0.5):
        with pytest.raises(ValueError, match=r"a number in 0\.\.1 for each block"):
            analysis.weighted_length_distribution(wrong)


def test_paths_of_effective_training_are_centred_at_half_the_kept_blocks():
    lengths = analysis.path_length_distribution(23)
    assert (lengths * np.arange(24)).sum() == pytest.approx(11.5) and lengths[5:18].sum() == pytest.approx(
        0.993, abs=5e-4
    )


def test_path_lengths_of_no_blocks():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        analysis.path_length_distribution(0)


def test_tightest_window_of_54_blocks():
    window = analysis.effective_window(analysis.path_length_distribution(54))
    assert (window.first, window.last) == (20, 34)
    assert window.contribution == pytest.approx(0.9598, abs=1e-4) == window.paths


def test_window_is_the_smallest_and_the_first_of_equals():
    window = analysis.effective_window([0.5, 0.0, 0.5, 0.0], mass=0.5)
    assert (window.first, window.last, window.contribution) == (0, 0, 0.5)
    assert analysis.effective_window([0.1, 0.2, 0.3, 0.4], mass=1.0).last == 3
    with pytest.raises(ValueError, match="mass must lie in"):
        analysis.effective_window([1.0, 0.0], mass=1.5)


def test_contribution_of_an_exponential_decay_is_a_binomial():
    ratio, blocks = 0.256, 54
    gradients = [analysis.GradientByLength(k, (k * math.log10(ratio),) * 3) for k in range(blocks + 1)]
    result = analysis.contribution(gradients)
    p = ratio / (1 + ratio)
    expected = [math.comb(blocks, k) * p**k * (1 - p) ** (blocks - k) for k in range(blocks + 1)]
    assert np.allclose(result.shares, expected, rtol=1e-9)
    assert result.decades_per_block == pytest.approx(math.log10(ratio))
    assert result.slope_interval == pytest.approx((math.log10(ratio),) * 2, abs=1e-6)
    assert abs(result.window.first - 5) <= 1 and abs(result.window.last - 17) <= 1


def test_interval_of_the_slope_holds_the_true_one_as_often_as_it_says():
    draw, held = np.random.default_rng(0), 0
    for _ in range(300):
        gradients = [analysis.GradientByLength(k, tuple(draw.normal(-0.5 * k, 1, 4))) for k in range(10)]
        low, high = analysis.contribution(gradients).slope_interval
        held += low <= -0.5 <= high
    assert 270 <= held <= 297


def test_contribution_bears_norms_of_zero_and_underflow():
    gradients = [analysis.GradientByLength(k, (-400.0 * k, -math.inf)) for k in range(4)]
    result = analysis.contribution(gradients)
    assert result.shares[0] == pytest.approx(1) and result.log10_mean_norms[3] == pytest.approx(-1200 - math.log10(2))
    with pytest.raises(ValueError, match="carries none"):
        analysis.contribution([analysis.GradientByLength(k, (-math.inf,)) for k in range(3)])
    with pytest.raises(ValueError, match="every length"):
        analysis.contribution(gradients[1:])


def test_mean_and_quantiles_of_norms():
    entry = analysis.GradientByLength(3, (-400.0, -math.inf, -402.0, -401.0), images=32, at="stem", bn="batch")
    assert entry.log10_mean == pytest.approx(-400 + math.log10(1.11 / 4))
    assert entry.log10_quantiles() == (-math.inf, -402.0, -400.0)
    assert analysis.GradientByLength(0, (-math.inf,)).log10_mean == -math.inf


# ---- intervals ---------------------------------------------------------------------------------------------


def test_interval_of_a_mean_holds_the_true_one_as_often_as_it_says():
    draw, held = np.random.default_rng(0), 0
    for _ in range(400):
        mean, low, high = analysis.mean_interval(draw.normal(2, 3, 5).tolist())
        held += low <= 2 <= high
        assert low < mean < high
    assert 368 <= held <= 392
    mean, low, high = analysis.mean_interval([0.5])
    assert mean == 0.5 and math.isnan(low) and math.isnan(high)
    with pytest.raises(ValueError, match="at least one draw"):
        analysis.mean_interval([])


def test_interval_of_an_error_stays_inside_0_and_1():
    net, data = make_net(), make_data(40)
    (result,) = analysis.evaluate(net, data, [None])
    low, high = result.error_interval()
    assert 0 < low < result.error < high < 1
    right = replace(result, error=0.0)
    assert right.error_interval() == pytest.approx((0, 0.0876), abs=1e-3)  # 3.84 / (40 + 3.84)
    assert result.error_interval(0.5)[0] > low


# ---- lesions and reorderings -------------------------------------------------------------------------------


def error_of(net, data, paths) -> float:
    with torch.no_grad():
        return (net(data[0], paths=paths).argmax(1) != data[1]).double().mean().item()


def test_delete_each_is_one_lesion_a_block():
    net, data = make_net(), make_data(40)
    lesions = analysis.delete_each(net, data)
    assert [lesion.deleted for lesion in lesions] == [(i,) for i in range(6)]
    assert [lesion.error for lesion in lesions] == [error_of(net, data, Paths.delete(6, [i])) for i in range(6)]
    assert analysis.delete_each(net, data, [4]) == [lesions[4]]


def test_delete_pairs_is_every_pair_once():
    net, data = make_net(), make_data(20)
    pairs = analysis.delete_pairs(net, data)
    assert [lesion.deleted for lesion in pairs] == list(itertools.combinations(range(6), 2))
    assert [pair.error for pair in pairs] == [error_of(net, data, Paths.delete(6, pair.deleted)) for pair in pairs]


def test_delete_stage_starts_is_one_by_one_and_all_together():
    net, data = make_net(), make_data(20)
    lesions = analysis.delete_stage_starts(net, data)
    assert [lesion.deleted for lesion in lesions] == [(2,), (4,), (2, 4)]
    assert lesions[2].error == error_of(net, data, Paths.delete(6, [2, 4]))


def test_drops_are_the_least_of_their_candidates():
    net, data = make_net(), make_data(40)
    first, second = analysis.drop_greedily(net, data, 2)
    assert first == min(analysis.delete_each(net, data), key=lambda lesion: (lesion.error, lesion.loss))
    others = [block for block in range(6) if block not in first.deleted]
    errors = [error_of(net, data, Paths.delete(6, [*first.deleted, block])) for block in others]
    assert second.deleted[0] == first.deleted[0] and second.error == min(errors)
    best = analysis.drop_exhaustively(net, data, 2)
    assert best == min(analysis.delete_pairs(net, data), key=lambda lesion: (lesion.error, lesion.loss))
    assert best.error <= second.error
    assert analysis.drop_exhaustively(net, data, 6).deleted == (0, 1, 2, 3, 4, 5)
    for drop in (analysis.drop_greedily, analysis.drop_exhaustively):
        with pytest.raises(ValueError, match=r"count must lie in 1\.\.6.*7"):
            drop(net, data, 7)


def test_random_lesions_depend_on_seed_and_count_alone():
    net, data = make_net(), make_data()
    both = analysis.delete_random(net, data, [1, 3], trials=4, seed=7)
    assert [len(lesion.deleted) for lesion in both] == [1] * 4 + [3] * 4
    assert analysis.delete_random(net, data, [3], trials=2, seed=7) == both[4:6]
    assert analysis.delete_random(net, data, [3], trials=4, seed=8) != both[4:]
    assert len({lesion.deleted for lesion in analysis.delete_random(net, data, [2], trials=30)}) > 8


def test_random_lesions_of_too_many_blocks():
    with pytest.raises(ValueError, match=r"0\.\.6.*7"):
        analysis.delete_random(make_net(), make_data(), [7], trials=1)


def test_evaluation_leaves_the_training_mode_and_averages_over_batches():
    net, data = make_net(), make_data(10)
    net.train()
    net.layer2.eval()
    modes = [module.training for module in net.modules()]
    (whole,) = analysis.evaluate(net, data, [None])
    (parts,) = analysis.evaluate(net, data, [None], batch_size=3)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(whole.predictions, parts.predictions) and whole.loss == pytest.approx(parts.loss, rel=1e-5)
    assert whole.error == pytest.approx(error_of(net.eval(), data, None))


def test_evaluation_of_no_images():
    with pytest.raises(ValueError, match="at least one image"):
        analysis.evaluate(make_net(), make_data(0), [None])
    with pytest.raises(ValueError, match="at least one image"):
        analysis.gradient_by_length(make_net(), make_data(0))


def test_kendall_tau():
    assert analysis.kendall_tau(range(10)) == pytest.approx(1)
    assert analysis.kendall_tau(range(9, -1, -1)) == pytest.approx(-1)
    order = [2, 0, 1, 5, 3, 4]
    inversions = sum(a > b for a, b in itertools.combinations(order, 2))
    assert analysis.kendall_tau(order) == pytest.approx(1 - 4 * inversions / 30)


def test_swaps_stay_in_their_group_and_weigh_groups_by_pairs():
    groups, draw = [[0, 1, 2, 3], [4], [5, 6]], np.random.default_rng(0)
    orders = [analysis.swapped_order(7, groups, 1, draw) for _ in range(1300)]
    for order in orders:
        assert sorted(order) == list(range(7)) and order[4] == 4
        assert sum(place != block for place, block in enumerate(order)) == 2
    in_last = sum(order[5] == 6 for order in orders) / len(orders)
    assert in_last == pytest.approx(1 / 7, abs=0.03)
    with pytest.raises(ValueError, match="equal shape"):
        analysis.swapped_order(2, [[0], [1]], 1, draw)


def test_reorder_measures_the_net_it_describes():
    net, data = make_net(depth=20), make_data(40)
    results = analysis.reorder(net, data, [0, 2], trials=4, seed=3)
    assert results[0].tau == pytest.approx(1) and results[0].error == error_of(net, data, None)
    for result in results[4:]:
        whole = Paths.keep(9, range(9)).reordered(result.order)
        assert result.tau == pytest.approx(analysis.kendall_tau(result.order))
        assert result.error == error_of(net, data, whole)
    assert any(result.order != tuple(range(9)) for result in results[4:])
    assert analysis.reorder(net, data, [2], trials=4, seed=3) == results[4:]
