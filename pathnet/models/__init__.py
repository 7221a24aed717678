"""Networks built of gated residual blocks."""

from pathnet.models.path_resnet import PathResNet

__all__ = ["PathResNet"]
