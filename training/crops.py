"""Where a picture of any size is cut in training: from its size and random numbers to a box, and on to pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

TRIES = 10
SHORT_SIDES = (256 / 224, 480 / 224)  # of the resized picture, to the side of the crop
ORIENTATION = 0x0112  # of EXIF

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the picture


@dataclass(frozen=True)
class Crop:
    """How a box is chosen: `box` takes (width, height) and `numbers` numbers in 0..1."""

    box: Callable[[int, int, Sequence[float]], Box]
    numbers: int


def inception_box(width: int, height: int, numbers: Sequence[float]) -> Box:
    """8 to 100 % of the picture's area, its sides as 3/4 to 4/3 (arXiv:1409.4842, section 6).

    As in torchvision's RandomResizedCrop: sides in whole pixels; where ten tries give none that fits, the largest box
    in the middle that keeps to the ratios.
    """
    low, high = 3 / 4, 4 / 3
    for place in range(TRIES):
        area = width * height * (0.08 + 0.92 * numbers[2 * place])
        ratio = math.exp(math.log(low) + math.log(high / low) * numbers[2 * place + 1])
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left = math.floor(numbers[-2] * (width - wide + 1))
            top = math.floor(numbers[-1] * (height - tall + 1))
            return left, top, left + wide, top + tall
    wide, tall = min(width, round(height * high)), min(height, round(width / low))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def scale_box(width: int, height: int, numbers: Sequence[float]) -> Box:
    """A square from anywhere in the picture, resized so that its short side is 256 to 480 for crops of 224.

    Source: arXiv:1512.03385, section 3.4.
    """
    low, high = SHORT_SIDES
    side = min(width, height) / (low + (high - low) * numbers[0])
    left, top = numbers[1] * (width - side), numbers[2] * (height - side)
    return left, top, left + side, top + side


inception = Crop(inception_box, 2 * TRIES + 2)
scale = Crop(scale_box, 3)


def cut(image: Image.Image, crop: Crop, numbers: Sequence[float], size: int) -> np.ndarray:
    """A box of an image that is not loaded yet, resized to uint8 [size, size, 3]; EXIF orientation is applied.

    A JPEG whose box has twice the pixels that are wanted, or more, is decoded at a half, a quarter or an eighth.
    Raises what Pillow raises for a damaged picture.
    """
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    width, height = image.size
    left, top, right, bottom = crop.box(width, height, numbers)
    reduction = min(right - left, bottom - top) / size
    if reduction >= 2:
        image.draft(None, (math.ceil(width / reduction), math.ceil(height / reduction)))
    across, down = image.size[0] / width, image.size[1] / height
    whole = image if image.mode == "RGB" else image.convert("RGB")
    box = (left * across, top * down, min(right * across, whole.width), min(bottom * down, whole.height))
    return np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box=box))
