"""Paths: what the constructors mean, immutability, and a sentence for every wrong argument."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from pathnet import Gate, Paths


def test_constructors_set_the_gates_that_their_names_say():
    chosen = [1, 3]
    for make, inside, outside in (
        (Paths.keep, Gate.FULL, Gate.OFF),
        (Paths.delete, Gate.OFF, Gate.FULL),
        (Paths.backward, Gate.FULL, Gate.FORWARD),
        (Paths.single, Gate.RESIDUAL, Gate.FORWARD),
        (Paths.frozen, Gate.FROZEN, Gate.FULL),
    ):
        assert make(4, chosen).gates.tolist() == [outside, inside, outside, inside]
        assert make(4, []).gates.tolist() == [outside] * 4
    assert Paths(torch.tensor([True, False])).gates.tolist() == [Gate.FULL, Gate.OFF]
    assert Paths([[0, 1], [2, 3]]).per_sample and not Paths([4, 1]).per_sample


def test_paths_are_immutable_values():
    gates = torch.tensor([1, 0, 1])
    paths = Paths(gates)
    gates[0] = 0
    assert paths.gates.tolist() == [1, 0, 1]
    with pytest.raises(AttributeError, match="immutable"):
        paths.raw = True
    scaled = paths.scaled(0.5).reordered([2, 1, 0])
    assert paths.multiplier is None and paths.order is None
    assert copy.deepcopy(scaled) == scaled == pickle.loads(pickle.dumps(scaled)) != paths
    assert hash(Paths([1, 0, 1])) == hash(paths) and Paths([1, 0, 1]) == paths
    assert repr(scaled) == "Paths(3: 1 OFF, 2 FULL; multiplier [3]; reordered)"


def test_multipliers_multiply_and_orders_compose():
    paths = Paths.keep(3, [0]).scaled(0.5).scaled([1.0, 2.0, 4.0])
    assert paths.multiplier.tolist() == [0.5, 1.0, 2.0]
    rows = paths.scaled(torch.ones(2, 3))
    assert rows.multiplier.shape == (2, 3) and rows.per_sample
    swap = [2, 1, 0]
    assert paths.reordered(swap).reordered(swap).order == (0, 1, 2)  # property 13: a swap undoes itself
    assert Paths.keep(4, []).reordered([1, 2, 3, 0]).reordered([1, 0, 2, 3]).order == (2, 1, 3, 0)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: Paths([0.5, 1.0]), TypeError, "integers"),
        (lambda: Paths([0, 5]), ValueError, "got 5"),
        (lambda: Paths([0, -1]), ValueError, "got -1"),
        (lambda: Paths(torch.zeros(1, 2, 3, dtype=torch.int8)), ValueError, "shape"),
        (lambda: Paths.delete(4, [4]), IndexError, r"deleted .* 0..3 .* got 4"),
        (lambda: Paths.keep(4, [-1]), IndexError, "kept"),
        (lambda: Paths.single(4, [1, 1]), ValueError, "chosen .* got 1 more than once"),
        (lambda: Paths.keep(3, []).scaled(float("nan")), ValueError, "multiplier must be finite"),
        (lambda: Paths.keep(3, []).scaled([1.0, 2.0]), ValueError, r"multiplier .* \[3\] .* got \[2\]"),
        (lambda: Paths.keep(3, []).reordered([0, 0, 1]), ValueError, "order .* exactly once"),
    ],
)
def test_wrong_arguments_get_a_sentence(call, error, words):
    with pytest.raises(error, match=words):
        call()
