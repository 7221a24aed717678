"""Samplers: what they draw, how often, and what they do at test time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from pathnet import Gate, PathResNet, Paths
from pathnet.samplers import (
    BackwardOnly,
    DropPath,
    KeepExactly,
    ResidualDropPath,
    Sampler,
    SinglePath,
    StochasticDepth,
)
from pathnet.samplers.base import parse, uniforms

ALL = [
    KeepExactly(2),
    StochasticDepth(),
    StochasticDepth(rule="inverted", decay="uniform"),
    DropPath(0.4),
    BackwardOnly(2),
    SinglePath(2),
    ResidualDropPath(0.4),
]


def draws(sampler: Sampler, count: int, blocks: int) -> np.ndarray:
    return np.stack([sampler.draw(step, 1, blocks).gates.numpy().reshape(-1) for step in range(count)])


@pytest.mark.parametrize("sampler", ALL, ids=repr)
def test_draws_depend_on_seed_step_block_and_sample_alone(sampler):
    again = parse(repr(sampler))
    assert again == sampler
    first = sampler.draw(7, 5, 9)
    torch.manual_seed(123)
    assert again.draw(7, 5, 9) == first
    assert any(sampler.draw(step, 5, 9) != first for step in range(20))
    if sampler.per_sample:  # a row is the same whatever the batch
        assert torch.equal(sampler.draw(7, 3, 9).gates, first.gates[:3])


def test_exactly_m_of_n():
    """Property 9: every mask sums to m, blocks and pairs are kept as often as they should be."""
    n, m, count = 9, 4, 4000
    kept = draws(KeepExactly(m), count, n) == Gate.FULL
    assert (kept.sum(1) == m).all()
    p_pair = m * (m - 1) / (n * (n - 1))
    pairs = (kept[:, 0] & kept[:, 5]).mean()
    assert abs(kept.mean(0) - m / n).max() < 5 * np.sqrt(m / n / count)
    assert abs(pairs - p_pair) < 5 * np.sqrt(p_pair / count)
    assert KeepExactly(23).test_multiplier(54) == [23 / 54] * 54
    assert KeepExactly(23).m / 2 == 11.5  # the mean path length of 23 of 54


def test_subsets_are_equally_likely():
    masks = draws(KeepExactly(2), 6000, 4) == Gate.FULL
    counts = np.unique(masks @ (1 << np.arange(4)), return_counts=True)[1]
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > 1e-3


def test_stochastic_depth_survival():
    """Property 10: the sum of p_l is (3L-1)/4, p falls, p_1 = 1 - (1 - p_L)/L."""
    survival = StochasticDepth(0.5).survival(54)
    assert survival.sum() == pytest.approx((3 * 54 - 1) / 4)
    assert (np.diff(survival) < 0).all() and survival[0] == pytest.approx(1 - 0.5 / 54) and survival[-1] == 0.5
    kept = (draws(StochasticDepth(0.5), 3000, 54) == Gate.FULL).mean(0)
    assert abs(kept - survival).max() < 5 * np.sqrt(0.25 / 3000)
    assert StochasticDepth().test_multiplier(54) == survival.tolist()
    inverted = StochasticDepth(rule="inverted")
    assert inverted.test_multiplier(54) is None
    np.testing.assert_allclose(inverted.draw(0, 1, 54).multiplier.numpy(), 1 / survival)
    assert (StochasticDepth(0.3, decay="uniform").survival(5) == 0.3).all()


def test_the_mean_over_masks_is_the_test_rule_before_act():
    """Properties 10 and 11, one block without act: E[b f + x] = p f + x, and with 1/keep in training the plain sum."""
    torch.manual_seed(0)
    net = PathResNet(8, block="preact", width=4).double().eval()
    block, x = net.layer1[0], torch.randn(2, 4, 6, 6, dtype=torch.float64)
    f, p = block.residual(x), 0.7
    mean = p * (x + f) + (1 - p) * x
    torch.testing.assert_close(mean, x + p * f)
    torch.testing.assert_close(p * (x + f / p) + (1 - p) * x, x + f)


def test_a_linear_net_has_the_test_rule_as_its_mean_and_a_real_one_has_not():
    """Property 10 for a chain: enumerate every mask of two blocks."""
    torch.manual_seed(0)
    x, p = torch.randn(3, dtype=torch.float64), 0.6
    maps = [torch.randn(3, 3, dtype=torch.float64) for _ in range(2)]
    for act, equal in ((lambda z: z, True), (torch.relu, False)):

        def run(gates, act=act):
            y = x
            for b, weight in zip(gates, maps, strict=True):
                y = act(b * (weight @ y) + y)
            return y

        weight_of = {1: p, 0: 1 - p}
        mean = sum(weight_of[a] * weight_of[b] * run((a, b)) for a in (0, 1) for b in (0, 1))
        assert torch.allclose(mean, run((p, p)), rtol=1e-12, atol=1e-12) is equal


def test_drop_path_draws_a_row_each_and_divides_by_the_keep_rate():
    paths = DropPath(0.25).draw(0, 2000, 3)
    kept = (paths.gates == Gate.FULL).float().mean(0)
    assert paths.gates.shape == (2000, 3) and (kept - 0.75).abs().max() < 0.05
    torch.testing.assert_close(paths.multiplier, torch.full((3,), 1 / 0.75, dtype=torch.float64))
    assert DropPath(0.0).draw(0, 4, 3) == Paths(torch.ones(4, 3, dtype=torch.int8)).scaled(1.0)
    assert (DropPath(1.0).draw(0, 4, 3).gates == Gate.OFF).all() and DropPath(0.5).test_multiplier(3) is None


def test_residual_drop_path_goes_in_pairs_on_one_draw():
    sampler = ResidualDropPath(0.5)
    for t in range(10):
        first, second = sampler.draw(2 * t, 1, 8), sampler.draw(2 * t + 1, 1, 8)
        dropped = first.gates == Gate.OFF
        assert torch.equal(second.gates == Gate.FULL, dropped)
        assert torch.equal(second.gates == Gate.FROZEN, ~dropped) and torch.equal(first.gates == Gate.FULL, ~dropped)
        assert (first.multiplier == 2).all() and (second.multiplier == 1).all()


def test_backward_samplers_keep_the_forward_whole():
    assert ((draws(BackwardOnly(3), 50, 9) == Gate.FULL).sum(1) == 3).all()
    assert set(np.unique(draws(BackwardOnly(3), 50, 9))) == {Gate.FULL, Gate.FORWARD}
    assert set(np.unique(draws(SinglePath(3), 50, 9))) == {Gate.RESIDUAL, Gate.FORWARD}


def test_rows_are_independent_and_uniform():
    numbers = uniforms(3, 5, 200, 50)
    assert np.array_equal(uniforms(3, 5, 10, 50), numbers[:10])
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(uniforms(3, 6, 200, 50).ravel(), numbers.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: KeepExactly(-1), "m must be a number of blocks"),
        (lambda: PathResNet(8, paths=KeepExactly(4)), "m must be at most the net's 3 blocks, got 4"),
        (lambda: PathResNet(8, paths=BackwardOnly(4)), "k must be at most"),
        (lambda: PathResNet(8, paths=SinglePath(4)), "k must be at most"),
        (lambda: DropPath(1.5), r"rate must be a probability in \[0, 1\], got 1.5"),
        (lambda: DropPath(float("nan")), "rate"),
        (lambda: ResidualDropPath(-0.1), "rate"),
        (lambda: StochasticDepth(2.0), "final_survival"),
        (lambda: StochasticDepth(decay="cubic"), "decay"),
        (lambda: StochasticDepth(rule="none"), "rule"),
    ],
)
def test_wrong_arguments_get_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
