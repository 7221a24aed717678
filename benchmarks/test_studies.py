"""Seconds of whole experiments: lists of lesions, drawn paths, the exact spectrum."""

from __future__ import annotations

from benchmarks.harness import Race


def test_study(benchmark, study, rounds):
    """Time one experiment; where pathnet disagrees with the plain net this fails and there is no number."""
    name, make = study
    measured = make()
    measured.check()
    race = Race(measured.calls)
    race.warm_up(1)
    benchmark.pedantic(race.run_subject, setup=race.run_rivals, rounds=rounds)
    benchmark.extra_info.update(kind="study", name=name, note=measured.note, **measured.summary(race))
