"""Networks built of gated residual blocks, and weights for them."""

from pathnet.models.path_resnet import PathResNet
from pathnet.models.weights import load_weights

__all__ = ["PathResNet", "load_weights"]
