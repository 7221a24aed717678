"""Networks built of gated residual blocks, and weights for them."""

from pathnet.models.path_resnet import PathResNet
from pathnet.models.path_vgg import PathVGG
from pathnet.models.weights import load_weights

PathNet = PathResNet | PathVGG  # what gates switch and lesions take apart

__all__ = ["PathNet", "PathResNet", "PathVGG", "load_weights"]
