"""What training for int8, pruning and clustering bring a network: accuracy and gzipped size, on untouched test images.

    python -m benchmarks.compression cifar_resnet20:FILE.safetensors --training train.tar.gz --data test.tar.gz \\
        --out resnet20.json

The network is VARIANT:WEIGHTS or a run folder. Every row but the first is fine-tuned on the same part of --training,
for as many epochs over all its steps, each method from its own learning rate. More training, or training on other
pixels than before, helps by itself: so "fine-tuned" is the network after as many epochs in which nothing is made
smaller, at the learning rate of training for int8, and at that of pruning, which is larger. Of --training 1,000 images
choose the epoch and 200 set ranges; --data is looked at by finished files alone. Every finished row goes into --out,
with its answers: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from tqdm import tqdm

from benchmarks.quantisation import kept_in, paired_interval
from keras_resnet.export import compress, tfmot, to_tflite
from keras_resnet.export.compression import LEARNING_RATE, METHODS, material_of
from keras_resnet.export.concrete import open_model
from keras_resnet.export.finetuning import fine_tune
from keras_resnet.export.graph import learned_ranges
from keras_resnet.export.metadata import hash_of
from keras_resnet.export.verification import TfliteFile
from keras_resnet.files import write_json
from keras_resnet.preprocessing import preprocessing_of
from keras_resnet.training import Images, open_images
from keras_resnet.training.runs import versions

GIVEN, TUNED, FASTER = "as given", "fine-tuned", "fine-tuned faster"
RATES = {TUNED: LEARNING_RATE, FASTER: tfmot.STEPS["prune"].learning_rate}
ROWS = (GIVEN, TUNED, FASTER, "qat", "qat-tfmot", "prune", "cluster", "pqat")
VALIDATION, CALIBRATION = 1000, 200  # images


def tuned(name: str, training: Images, validation: Images, options: argparse.Namespace) -> keras.Model:
    """The network after a fine-tuning in which nothing is made smaller."""
    model = open_model(options.model)
    preprocessing = preprocessing_of(model)
    material = material_of(options.model, preprocessing, training, validation, options.augmentation)
    with tqdm(total=options.epochs * material.steps, desc=name, unit="step") as bar:
        fine_tune(
            keras,
            model,
            material,
            preprocessing,
            activation=model.get_layer("head_dense").activation.__name__,
            epochs=options.epochs,
            learning_rate=RATES[name],
            bar=bar,
        )
    return model


def network_of(
    name: str, training: Images, validation: Images, options: argparse.Namespace, folder: Path
) -> keras.Model:
    """The network of a row."""
    if name == GIVEN:
        return open_model(options.model)
    if name in RATES:
        return tuned(name, training, validation, options)
    run = compress(
        options.model,
        training,
        folder / "run",
        method=name,
        validation=validation,
        epochs=max(1, options.epochs // len(METHODS[name])),
        augmentation=options.augmentation,
    )
    return open_model(run.folder)


def measured(model: keras.Model, form: str, calibration: Images, pixels: np.ndarray, folder: Path) -> dict[str, Any]:
    """The answers and the gzipped size of a file, as `to_tflite` leaves it."""
    given = None if form == "float32" or learned_ranges(model) else calibration
    artifact = to_tflite(
        model,
        folder / f"{form}.tflite",
        quantize=form,
        calibration=given,
        labels=calibration.classes,
        min_agreement=0.0,  # it is judged here
    )
    content = artifact.path.read_bytes()
    answers = TfliteFile(content, form, threads=os.cpu_count() or 1).scores(pixels).argmax(axis=-1)
    return {"answers": answers.tolist(), "gzipped_bytes": len(gzip.compress(content, mtime=0))}


def line(name: str, rows: Mapping[str, Any], labels: np.ndarray) -> str:
    """A row of the table."""
    row = rows[name]
    floating, integers = (np.asarray(row[form]["answers"]) == labels for form in ("float32", "int8"))
    lost = []
    for reference in (GIVEN, TUNED):
        if reference not in rows or (reference, name) == (TUNED, GIVEN):
            lost.append("")
            continue
        right = np.asarray(rows[reference]["float32"]["answers"]) == labels
        low, high = paired_interval(right, integers)
        lost.append(f"{100 * (right.mean() - integers.mean()):.2f} ({low:.2f} to {high:.2f})")
    sizes = (row[form]["gzipped_bytes"] / 1000 for form in ("float32", "int8"))
    return (
        f"| {name} | {100 * floating.mean():.2f} | {100 * integers.mean():.2f} | {' | '.join(lost)} | "
        f"{' | '.join(f'{size:.1f}' for size in sizes)} | {row['seconds']:.0f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="VARIANT:WEIGHTS, or a run folder")
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="test images")
    parser.add_argument("--out", type=Path, required=True, help="a .json, where finished rows are kept")
    parser.add_argument("--images", type=int, default=15_000, help="of --training, to fine-tune on")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--augmentation", default="shift_flip")
    parser.add_argument("--rows", nargs="*", default=ROWS, choices=(GIVEN, *RATES, *METHODS), metavar="NAME")
    parser.add_argument("--every", type=int, default=1, help="judge on every n-th test image alone")
    options = parser.parse_args()
    images, test = open_images(options.training), open_images(options.data)
    wanted = options.images + VALIDATION + CALIBRATION
    validation, calibration, training = images.balanced_sample(wanted).split(VALIDATION / wanted, CALIBRATION / wanted)
    model = open_model(options.model)
    pixels, labels = test.pixels(preprocessing_of(model))[:: options.every], test.labels[:: options.every]
    settings = ("images", "epochs", "augmentation", "every")
    about = {
        "weights": hash_of(model),
        "training": options.training.name,
        "data": options.data.name,
        **{name: getattr(options, name) for name in settings},
        "versions": versions(),
    }
    kept = kept_in(options.out, about)
    rows = kept["rows"]
    print(f"{options.model}, {options.epochs} epochs of {len(training):,} images, {len(labels):,} test images\n")
    print(
        "| network | top-1, % | of its int8 file, % | points that loses against the network as given (paired 95 %) | "
        "against it fine-tuned | float32 gzipped, kB | int8 gzipped, kB | seconds |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in options.rows:
        if name not in rows:
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                network = network_of(name, training, validation, options, Path(folder))
                seconds = time.perf_counter() - start
                files = {
                    form: measured(network, form, calibration, pixels, Path(folder)) for form in ("float32", "int8")
                }
            rows[name] = {**files, "seconds": seconds}
            write_json(options.out, kept)
        print(line(name, rows, labels), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
