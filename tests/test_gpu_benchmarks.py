"""The benchmarks for a GPU, as far as a machine without one can run them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import EVALUATION, TRAINING, Case
from benchmarks.gpu import contestants, disagreement
from benchmarks.harness import Race


@pytest.mark.parametrize("work, dtype", [(EVALUATION, torch.float32), (TRAINING, torch.bfloat16)])
def test_all_contestants_run_and_those_that_cannot_say_why(work, dtype):
    case = Case(8, "basic", work, 2)
    calls, refusals = contestants(case, dtype, "cpu", ["reference", "cuda"], compiled=False)
    assert list(calls) == ["eager NCHW", "eager channels-last", "pathnet reference"]
    assert list(refusals) == ["cuda"] and "cuda" in refusals["cuda"].lower()
    race = Race(calls)
    race.run_rivals()
    race.run_subject()
    assert all(len(seconds) == 1 for seconds in race.seconds.values())


def test_disagreement_is_measured_against_float64():
    ours, eager = disagreement(Case(8, "basic", EVALUATION, 2), torch.float32, "cpu", "reference")
    assert 0 < ours < 1e-5 and 0 < eager < 1e-5
