"""The images that set activation ranges: which ones, and whether they can."""

from __future__ import annotations

import os

import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.data import Images, open_images

COUNT = 100  # from some ten images up the count is noise


def calibration_pixels(
    source: str | os.PathLike[str] | Images, preprocessing: Preprocessing, size: tuple[int, int]
) -> tuple[Images, np.ndarray]:
    """A class-balanced, seeded sample of at most 100 images, and its pixels, uint8 [n, height, width, 3].

    Raises InputError where the images are not of `size` (height, width) after preprocessing, or all of one colour.
    """
    images = open_images(source)
    sample = images.balanced_sample(COUNT)
    pixels = sample.pixels(preprocessing)
    if pixels.shape[1:3] != size:
        raise InputError(
            f"calibration images of {images.name!r} are {pixels.shape[1:3]} pixels, the network takes {size}"
        )
    if pixels.min() == pixels.max():
        raise InputError(
            f"calibration images of {images.name!r} are all of one colour: ranges cannot be measured on them"
        )
    # The input's range must be 0..255 exactly, so that its scale becomes 1 and an app can hand over raw bytes.
    pixels[0, 0, 0], pixels[0, -1, -1] = 0, 255
    return sample, pixels
