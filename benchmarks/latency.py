"""How fast resnet50_v1's files answer beside keras.applications.ResNet50 converted as TensorFlow's guide has it.

    python -m benchmarks.latency --runs 200

The same architecture, random weights; our files as `export` writes them but for their metadata, theirs from
`TFLiteConverter.from_keras_model`, int8 with bytes at both ends. The two answer in turn: the ratio is ours over theirs,
run by run, with the 95 % interval of its median. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_resnet
from keras_resnet.export import benchmark
from keras_resnet.export.tflite import FORMS, build, prepare
from keras_resnet.preprocessing import preprocessing_of

IMAGES = 4  # that set ranges: how many changes no operation


def ours(form: str, pixels: np.ndarray) -> bytes:
    model = keras_resnet.build("resnet50_v1")
    return build(prepare(model, preprocessing_of(model), FORMS[form], pixels, effort="low"), FORMS[form])


def theirs(form: str, pixels: np.ndarray) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.applications.ResNet50(weights=None))
    if form == "int8":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in pixels)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    with contextlib.redirect_stdout(io.StringIO()):  # Keras lists every variable
        return bytes(converter.convert())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", nargs="*", default=["int8", "float32"], choices=["int8", "float32"])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--runs", type=int, default=100)
    options = parser.parse_args()
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 224, 224, 3), dtype=np.uint8)
    pixels[:, 0, 0], pixels[:, -1, -1] = 0, 255
    print("| form | threads | ours, ms | keras.applications, ms | ratio (95 %) | ours opens, ms | theirs |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for form in options.forms:
            paths = []
            for make in (ours, theirs):
                path = Path(folder) / f"{make.__name__}-{form}.tflite"
                path.write_bytes(make(form, pixels))
                paths.append(path)
            for threads in options.threads:
                found = benchmark(*paths, threads=threads, runs=options.runs)
                (low, high), (a, b) = found.ratio_interval, found.files
                print(
                    f"| {form} | {threads} | {a.latency.median_ms:.2f} | {b.latency.median_ms:.2f} | "
                    f"{found.ratio:.3f} ({low:.3f} to {high:.3f}) | {a.open_ms:.0f} | {b.open_ms:.0f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
