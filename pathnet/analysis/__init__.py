"""What paths do in a trained net: lesions, reorderings, path lengths, gradients by path length.

Source: Veit, Wilber, Belongie, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks",
NIPS 2016.
"""

from pathnet.analysis.contribution import Contribution, Window, contribution, effective_window
from pathnet.analysis.evaluate import Evaluation, evaluate
from pathnet.analysis.gradients import GradientByLength, PathGradients, gradient_by_length
from pathnet.analysis.lengths import path_length_distribution
from pathnet.analysis.lesions import Lesion, delete_each, delete_random
from pathnet.analysis.reorder import Reordering, kendall_tau, reorder, swapped_order

__all__ = [
    "Contribution",
    "Evaluation",
    "GradientByLength",
    "Lesion",
    "PathGradients",
    "Reordering",
    "Window",
    "contribution",
    "delete_each",
    "delete_random",
    "effective_window",
    "evaluate",
    "gradient_by_length",
    "kendall_tau",
    "path_length_distribution",
    "reorder",
    "swapped_order",
]
