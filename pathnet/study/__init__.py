"""The paper's experiments: train, measure, keep, plot, report."""

from pathnet.study.gradient_run import GradientSettings, run_gradients
from pathnet.study.lesion_run import LesionSettings, run_lesions
from pathnet.study.run import run_study
from pathnet.study.settings import Settings, settings_from

__all__ = [
    "GradientSettings",
    "LesionSettings",
    "Settings",
    "run_gradients",
    "run_lesions",
    "run_study",
    "settings_from",
]
