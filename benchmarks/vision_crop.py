"""What each of Vision's ways to cut or stretch a photograph costs a network that was trained on the middle of it.

    python -m benchmarks.vision_crop resnet18:FILE.safetensors --photographs photos/

photos/: pictures whose names begin with the number of their class, 0000_name.jpg. The ways are computed with Pillow:
Vision runs on Apple's systems alone. How it resamples is not documented: this shows what a network loses by what it
sees, not to the last image. "region of interest" is the Swift on the page of a package (`export/usage.py`).
Source of the ways: Apple's documentation of VNImageCropAndScaleOption.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image, ImageOps

import keras_resnet
from benchmarks.quantisation import paired_interval
from keras_resnet.export.usage import seen_share
from keras_resnet.preprocessing import fit_image, preprocessing_of
from keras_resnet.training.evaluation import scores_of

BILINEAR = Image.Resampling.BILINEAR


def region_of_interest(picture: Image.Image, side: int, share: float) -> Image.Image:
    """The centred square of a share of the short side."""
    length = share * min(picture.size)
    left, top = ((whole - length) / 2 for whole in picture.size)
    return picture.resize((side, side), BILINEAR, box=(left, top, left + length, top + length))


def centre_crop(picture: Image.Image, side: int, _: float) -> Image.Image:
    """The centred square of the whole short side."""
    return region_of_interest(picture, side, 1.0)


def scale_fit(picture: Image.Image, side: int, _: float) -> Image.Image:
    """All of the picture, with empty bars."""
    return ImageOps.pad(picture, (side, side), BILINEAR)


def scale_fill(picture: Image.Image, side: int, _: float) -> Image.Image:
    """All of the picture, stretched."""
    return picture.resize((side, side), BILINEAR)


WAYS: Mapping[str, Callable[[Image.Image, int, float], Image.Image]] = {
    "region of interest, .scaleFill": region_of_interest,
    ".centerCrop": centre_crop,
    ".scaleFill": scale_fill,
    ".scaleFit": scale_fit,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="VARIANT:WEIGHTS")
    parser.add_argument("--photographs", type=Path, required=True)
    options = parser.parse_args()
    variant, _, weights = options.model.partition(":")
    model = keras_resnet.build(variant, weights=weights)
    preprocessing, scores = preprocessing_of(model), scores_of(model)
    share = seen_share(asdict(preprocessing))
    if share is None:
        parser.error(f"{variant} takes pictures as they are: nothing is cut")
    files = sorted(path for path in options.photographs.iterdir() if path.name[:4].isdecimal())
    pictures = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in files]
    labels = np.asarray([int(path.name[:4]) for path in files])
    trained = scores(np.stack([fit_image(picture, preprocessing) for picture in pictures])).argmax(axis=-1)
    right = trained == labels
    print(f"{options.model}: {100 * right.mean():.1f} % of {len(files)} as it was trained, share {share:.4g}\n")
    print("| what the network sees | agreement, % | top-1, % | lost, points (paired 95 %) |")
    print("|---|---:|---:|---:|")
    for name, way in WAYS.items():
        seen = np.stack([np.asarray(way(picture, preprocessing.crop, share)) for picture in pictures])
        given = scores(seen).argmax(axis=-1)
        found = given == labels
        low, high = paired_interval(right, found)
        print(
            f"| {name} | {100 * (given == trained).mean():.1f} | {100 * found.mean():.1f} | "
            f"{100 * (right.mean() - found.mean()):.1f} ({low:.1f} to {high:.1f}) |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
