"""pathnet: run, train and study residual networks path by path."""

from pathnet import samplers
from pathnet.backend import use_backend
from pathnet.doctor import doctor
from pathnet.explain import explain
from pathnet.gates import Gate, Paths
from pathnet.models import PathResNet, load_weights
from pathnet.profile import profile

__version__ = "0.1.0"
__all__ = [
    "Gate", "PathResNet", "Paths", "doctor", "explain", "load_weights", "profile", "samplers", "use_backend",
]  # fmt: skip
