"""What each number format costs: size, accuracy, agreement and time, on labelled images that it was not calibrated on.

    python -m benchmarks.quantisation resnet18:FILE.safetensors --calibration calib200.tar --data val1000.tar

Images are read by their class folders' numbers and cropped at (1, 1), not resized. "plain recipe" is TensorFlow's own:
the Keras model, its normalisation folded with black borders, minimum and maximum of the same images.
"int8:stem,head" keeps these parts in floating point; seconds are then those behind the first int8 row.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import keras_resnet
from keras_resnet.export.concrete import Normalisation, concrete_function, fold
from keras_resnet.export.tflite import FORMS, Prepared, build, prepare
from keras_resnet.export.verification import TfliteFile
from keras_resnet.preprocessing import Preprocessing, preprocessing_of
from keras_resnet.training.evaluation import scores_of

PLAIN = "plain recipe"


def read(path: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 [n, side, side, 3], and labels, int [n], of an archive IIII/NAME.JPEG."""
    pixels, labels = [], []
    with tarfile.open(path) as archive:
        for member in archive:
            if file := archive.extractfile(member) if member.isfile() else None:
                whole = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
                pixels.append(whole[1 : side + 1, 1 : side + 1])
                labels.append(int(member.name.split("/")[-2]))
    return np.stack(pixels), np.asarray(labels)


def uncropped(source: str) -> tuple[keras.Model, int]:
    """The network of VARIANT:WEIGHTS for pictures that are cropped already, and the side of its input."""
    variant, _, weights = source.partition(":")
    side = keras_resnet.VARIANTS[variant].input_size
    return keras_resnet.build(variant, weights=weights, preprocessing=Preprocessing(resize=0, crop=side)), side


def kept_in(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """{"about", "rows"} with the rows that a .json holds already; ends where they are of something else."""
    if not path.is_file():
        return {"about": dict(about), "rows": {}}
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if kept.get("about") != about:
        raise SystemExit(f"{path} holds rows of something else: {kept.get('about')}")
    return kept


def plain(model: keras.Model, pixels: np.ndarray) -> bytes:
    """int8 as TensorFlow's guide has it."""
    black = Normalisation((0.0,) * 3, (1.0,) * 3)
    folded = fold(model, black)
    holder = tf.Module()
    holder.variables_ = [variable.value for variable in folded.variables]
    holder.function = concrete_function(folded, None)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([holder.function], holder)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ({"image": image[None].astype(np.float32)} for image in pixels)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    return bytes(converter.convert())


def paired_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same images, bool [n] each; in points."""
    difference = 100 * (a.astype(float) - b)
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    return difference.mean() - half, difference.mean() + half


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="VARIANT:WEIGHTS")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--forms", nargs="*", default=["float16", "dynamic", "int8", PLAIN])
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--every", type=int, default=1, help="judge on every n-th image alone")
    options = parser.parse_args()
    model, side = uncropped(options.model)
    preprocessing = preprocessing_of(model)
    calibration = read(options.calibration, side)[0][::2]
    pixels, labels = (part[:: options.every] for part in read(options.data, side))
    exact = scores_of(model)(pixels)
    right = exact.argmax(1) == labels
    print(f"{options.model}: {right.mean():.1%} of {len(labels)} in Keras; {len(calibration)} calibration images\n")
    print("| form | MB | top-1, % | loss, points (paired 95 %) | agreement, % | halves | seconds | peak, GB |")
    print("|---|---|---|---|---|---|---|---|")
    prepared: dict[str, Prepared] = {}
    for form in options.forms:
        start = time.perf_counter()
        name, _, kept = form.partition(":")
        if form != PLAIN and name not in prepared:
            prepared[name] = prepare(model, preprocessing, FORMS[name], calibration, options.effort)
        content = (
            plain(model, calibration)
            if form == PLAIN
            else build(prepared[name], FORMS[name], kept.split(",") if kept else ())
        )
        size, answer = len(content), TfliteFile(content, form, threads=os.cpu_count() or 1).scores
        taken = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        answers = answer(pixels).argmax(1)
        same, ours = answers == exact.argmax(1), answers == labels
        low, high = paired_interval(right, ours)
        halves = ", ".join(f"{100 * same[i::2].mean():.1f}" for i in range(2))
        print(
            f"| {form} | {size / 1e6:.2f} | {100 * ours.mean():.1f} | {100 * (right.mean() - ours.mean()):.1f} "
            f"({low:.1f} to {high:.1f}) | {100 * same.mean():.1f} | {halves} | {taken:.0f} | {peak:.1f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
