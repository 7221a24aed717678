"""pathnet: run, train and study residual networks path by path."""

from pathnet import samplers
from pathnet.backend import use_backend
from pathnet.gates import Gate, Paths
from pathnet.models import PathResNet

__version__ = "0.1.0"
__all__ = ["Gate", "PathResNet", "Paths", "samplers", "use_backend"]
