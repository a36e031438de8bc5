"""Does MediaPipe give the answers of TFLite's interpreter, and what does its own resizing of photographs cost?

    python -m benchmarks.mediapipe_answers FILE.tflite --data val1000.tar --photos photos100/

--data: an archive IIII/NAME.JPEG of small pictures, the first 200 of which are cut to the file's size, at (1, 1), and
handed to both; --photos: files CLASSINDEX_NAME.JPEG of any size, squashed by MediaPipe, and by us resized and cut as
the network was trained. Needs `pip install mediapipe`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.quantisation import read
from keras_resnet.export.verification import TfliteFile
from keras_resnet.preprocessing import Preprocessing, fit_image, open_image

COUNT = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    options = parser.parse_args()
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision

    classifier = vision.ImageClassifier.create_from_options(
        vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=str(options.file)), max_results=2)
    )

    def by_mediapipe(pixels: np.ndarray) -> tuple[int, float, bool]:
        """Class and score of one picture, and whether the second has the same score."""
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(pixels))
        best, second = classifier.classify(image).classifications[0].categories
        return best.index, best.score, best.score == second.score

    file = TfliteFile(options.file.read_bytes(), options.file.name, threads=2)
    side = file.size[0]
    pixels, labels = (part[:COUNT] for part in read(options.data, side))
    scores = file.scores(pixels)
    theirs = [by_mediapipe(image) for image in pixels]
    classes = np.array([index for index, _, _ in theirs])
    same = classes == scores.argmax(axis=1)
    tied = np.array([is_tied for _, _, is_tied in theirs])
    alike = np.abs(scores[np.arange(len(pixels)), classes] - [score for _, score, _ in theirs])
    print(
        f"{options.file.name}, {len(pixels)} pictures at {side}: same class {same.sum()} (of the others "
        f"{(~same & tied).sum()} are ties), largest difference of a score {alike.max():.4f}; right by MediaPipe "
        f"{(classes == labels).sum()}, by the interpreter {(scores.argmax(axis=1) == labels).sum()}"
    )

    photos = sorted(options.photos.glob("*.JPEG"))
    truth = np.array([int(photo.name.split("_")[0]) for photo in photos])
    whole = [np.asarray(Image.open(photo).convert("RGB")) for photo in photos]
    squashed = np.array([by_mediapipe(image)[0] for image in whole])
    preprocessing = Preprocessing(resize=round(side * 256 / 224), crop=side)
    cut = file.scores(np.stack([fit_image(open_image(photo), preprocessing) for photo in photos])).argmax(axis=1)
    print(
        f"{len(photos)} photographs: right by MediaPipe, which squashes them, {(squashed == truth).sum()}; resized and "
        f"cut as in training {(cut == truth).sum()}; same answer {(squashed == cut).sum()}"
    )
    classifier.close()  # at the interpreter's end it would be too late
    return 0


if __name__ == "__main__":
    sys.exit(main())
