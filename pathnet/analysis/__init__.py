"""What paths do in a trained net: lesions, reorderings, path lengths, gradients by path length.

Source: Veit, Wilber, Belongie, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks",
NIPS 2016.
"""

from pathnet.analysis.batch_norm import reestimate_batch_norm
from pathnet.analysis.contribution import Contribution, Window, contribution, effective_window
from pathnet.analysis.drop import drop_exhaustively, drop_greedily
from pathnet.analysis.evaluate import Evaluation, evaluate
from pathnet.analysis.gradients import GradientByLength, PathGradients, gradient_by_length
from pathnet.analysis.intervals import mean_interval
from pathnet.analysis.lengths import path_length_distribution, surviving_paths, weighted_length_distribution
from pathnet.analysis.lesions import Lesion, delete_all, delete_each, delete_pairs, delete_random, delete_stage_starts
from pathnet.analysis.reorder import Reordering, kendall_tau, reorder, swapped_order
from pathnet.analysis.spectrum import Spectrum, gradient_spectrum

__all__ = [
    "Contribution",
    "Evaluation",
    "GradientByLength",
    "Lesion",
    "PathGradients",
    "Reordering",
    "Spectrum",
    "Window",
    "contribution",
    "delete_all",
    "delete_each",
    "delete_pairs",
    "delete_random",
    "delete_stage_starts",
    "drop_exhaustively",
    "drop_greedily",
    "effective_window",
    "evaluate",
    "gradient_by_length",
    "gradient_spectrum",
    "kendall_tau",
    "mean_interval",
    "path_length_distribution",
    "reestimate_batch_norm",
    "reorder",
    "surviving_paths",
    "swapped_order",
    "weighted_length_distribution",
]
