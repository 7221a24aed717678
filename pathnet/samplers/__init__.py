"""Samplers: random paths for training, each with its own rule for evaluation."""

from pathnet.samplers.backward import BackwardOnly, SinglePath
from pathnet.samplers.base import Sampler
from pathnet.samplers.forward import DropPath, KeepExactly, ResidualDropPath, StochasticDepth

__all__ = [
    "BackwardOnly", "DropPath", "KeepExactly", "ResidualDropPath", "Sampler", "SinglePath", "StochasticDepth",
]  # fmt: skip
