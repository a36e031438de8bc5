"""MLPerf Tiny's ResNet-8 in int8: its own file, and ours of the same float weights; accuracy and size.

    python -m benchmarks.mlperf_tiny --peers peers/ --training train.tar.gz --data test.tar.gz

--peers: a folder with mlperf_tiny_pretrainedResnet.h5, .tflite and _quant.tflite, from mlcommons/tiny,
benchmark/training/image_classification/trained_models. --training: 200 of these images set our ranges; MLPerf's own
were set on test images. Ends with an error where our float network and MLPerf's float file answer any image otherwise.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_resnet
from benchmarks.quantisation import paired_interval
from keras_resnet.export import to_tflite
from keras_resnet.export.tflite_metadata import associated_files
from keras_resnet.export.verification import TfliteFile
from keras_resnet.preprocessing import Preprocessing, preprocessing_of
from keras_resnet.training import open_images
from keras_resnet.training.evaluation import scores_of

NAME = "mlperf_tiny_pretrainedResnet"
CALIBRATION = 200  # images
RAW = Preprocessing(resize=0, crop=32, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)  # it reads pixels as they are


def network(path: Path) -> keras.Model:
    """Our network with MLPerf's weights: the layers that have any come in the same order."""
    theirs, ours = keras.models.load_model(path, compile=False), keras_resnet.build("cifar_resnet8", preprocessing=RAW)
    ours.set_weights(theirs.get_weights())
    return ours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="judge on every n-th image alone")
    options = parser.parse_args()
    model, test = network(options.peers / f"{NAME}.h5"), open_images(options.data)
    pixels = test.pixels(preprocessing_of(model))[:: options.every]
    labels = test.labels[:: options.every]
    with tempfile.TemporaryDirectory() as folder:
        ours = to_tflite(
            model,
            Path(folder) / "ours.tflite",
            calibration=open_images(options.training).balanced_sample(CALIBRATION),
            min_agreement=0.0,  # it is judged here
        ).path.read_bytes()
    files = {
        "MLPerf's float32 file": (options.peers / f"{NAME}.tflite").read_bytes(),
        "MLPerf's int8 file": (options.peers / f"{NAME}_quant.tflite").read_bytes(),
        "our int8 file": ours,
    }
    scores = {name: TfliteFile(content, name).scores(pixels) for name, content in files.items()}
    exact = scores["MLPerf's float32 file"]
    in_keras = scores_of(model)(pixels)
    others = int(np.sum(in_keras.argmax(1) != exact.argmax(1)))
    print(f"our network in Keras: {others} of {len(labels)} answered otherwise than by MLPerf's float32 file, ", end="")
    print(f"scores differ by {np.abs(in_keras - exact).max():.1e} at most\n")
    print("| file | right | points lost (paired 95 %) | agreement, % | bytes | of them files inside | gzipped |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    right = {name: found.argmax(1) == labels for name, found in scores.items()}
    for name, content in files.items():
        low, high = paired_interval(next(iter(right.values())), right[name])
        inside = sum(map(len, associated_files(content, name).values()))  # labels, manifest, self-test
        print(
            f"| {name} | {right[name].sum():,} of {len(labels):,} | {(low + high) / 2:.2f} ({low:.2f} to {high:.2f}) | "
            f"{100 * np.mean(scores[name].argmax(1) == exact.argmax(1)):.2f} | {len(content):,} | "
            f"{inside:,} | {len(gzip.compress(content, mtime=0)):,} |"
        )
    low, high = paired_interval(right["our int8 file"], right["MLPerf's int8 file"])
    print(f"\nour int8 file answers {(low + high) / 2:.2f} ({low:.2f} to {high:.2f}) points better than MLPerf's")
    return int(others > 0)


if __name__ == "__main__":
    sys.exit(main())
