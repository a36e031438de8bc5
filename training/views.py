"""What a network is shown of a picture in evaluation: its centre, ten crops of it, or all of it at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from keras_resnet.errors import UsageError
from keras_resnet.preprocessing import Preprocessing, fit_image
from keras_resnet.specs import is_positive

Views = Callable[[Image.Image], list[np.ndarray]]  # a picture to uint8 [height, width, channels], one or more

PAPER_SCALES = (224, 256, 384, 480, 640)  # arXiv:1512.03385, section 3.4
MOST_PIXELS = 10_000  # a side


def views_of(preprocessing: Preprocessing, crops: int = 1, scales: Sequence[int] = ()) -> Views:
    """How a picture is shown to a network whose images need `preprocessing`; the scores of all views are averaged.

    crops: 1, the centre; 10, the four corners, the centre, and these mirrored (AlexNet's; arXiv:1512.03385, 3.4).
    scales: the whole picture with its shorter side at each of these numbers of pixels, as the paper's best figures
        have it (`PAPER_SCALES`); the network must take any size (`evaluation.at_any_size`).
    Raises UsageError for other numbers, for both at once, and for ten crops of a network that crops nothing.
    """
    if crops not in (1, 10) or isinstance(crops, bool):
        raise UsageError(f"crops={crops!r} must be 1 (the centre) or 10 (corners and centre, mirrored too)")
    wrong = [side for side in scales if not is_positive(side) or side > MOST_PIXELS]
    if wrong or len(set(scales)) < len(scales):
        raise UsageError(
            f"scales={tuple(scales)} must be different whole numbers of pixels from 1 to {MOST_PIXELS:,}, "
            f"as {','.join(map(str, PAPER_SCALES))}"
        )
    if scales and crops != 1:
        raise UsageError(f"crops={crops} and scales={tuple(scales)}: at a scale the whole picture is seen; give one")
    if scales:
        whole = [replace(preprocessing, resize=side, crop=0) for side in scales]
        return lambda picture: [fit_image(picture, one) for one in whole]
    if crops == 1:
        return lambda picture: [fit_image(picture, preprocessing)]
    if not preprocessing.crop:
        raise UsageError(f"crops={crops} of a network whose preprocessing crops nothing: set a crop")
    return lambda picture: _ten_crops(picture, preprocessing)


def _ten_crops(picture: Image.Image, preprocessing: Preprocessing) -> list[np.ndarray]:
    crop = preprocessing.crop
    centre = fit_image(picture, preprocessing)  # refuses a picture that is smaller
    pixels = fit_image(picture, replace(preprocessing, crop=0))
    down, right = pixels.shape[0] - crop, pixels.shape[1] - crop
    corners = [pixels[top : top + crop, left : left + crop] for top in (0, down) for left in (0, right)]
    return [view[:, ::side] for side in (1, -1) for view in (*corners, centre)]
