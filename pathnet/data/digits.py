"""scikit-learn's handwritten digits: real data that need no download."""

from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn import datasets

from pathnet.data.images import ImageData, build, split

SIDE = 16
TEST_IMAGES = 360


def load_digits() -> ImageData:
    """The 1,797 grey digits (Alpaydin and Kaynak, UCI 1998), resized to 16x16: 1,437 to train, 360 to test."""
    digits = datasets.load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    resized = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in grey]
    parts = split(np.stack(resized)[..., None], digits.target, TEST_IMAGES)
    description = "scikit-learn's handwritten digits, 8 × 8 pixels resized to 16 × 16"
    return build("digits", description, parts, classes=10, augment=False)
