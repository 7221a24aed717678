"""The paper's experiments in one run: train, measure, plot, report."""

from pathnet.study.run import run_study
from pathnet.study.settings import Settings, settings_from

__all__ = ["Settings", "run_study", "settings_from"]
