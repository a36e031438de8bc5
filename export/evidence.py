"""The images of an export: those that it measures, those that it is judged on, and the names of the classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from keras_resnet.errors import UsageError
from keras_resnet.export.calibration import calibration_pixels, check_apart
from keras_resnet.export.concrete import EMBEDDING, answers_with, labels_of
from keras_resnet.export.metadata import check_labels
from keras_resnet.labels import imagenet
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.data import Data, Images, open_images
from keras_resnet.training.evaluation import for_network


@dataclass(frozen=True)
class Evidence:
    """Images, and their pixels as the network's preprocessing leaves them, uint8 [n, height, width, 3]."""

    sample: Images | None  # calibration images
    pixels: np.ndarray | None  # theirs
    judged: Images | None  # what the file is judged on: `data`, or where there is none the sample
    shown: np.ndarray | None  # theirs
    is_labelled: bool  # whether they came as `data` and have the network's classes: there is no accuracy otherwise
    names: tuple[str, ...]  # a class; none of an embedding


def gather(
    source: keras.Model | str | os.PathLike[str],
    model: keras.Model,
    preprocessing: Preprocessing,
    calibration: Data | None,
    data: Data | None,
    labels: Sequence[str] | None,
) -> Evidence:
    """Open what an exporter is given, for a model that `open_model` made of a source.

    An embedding's images are of any classes. Raises UsageError, InputError where images do not fit the network, cannot
    calibrate it, or serve for both.
    """
    is_embedding = answers_with(model) == EMBEDDING
    if is_embedding and labels is not None:
        raise UsageError(f"labels: {len(labels)} given, but model {model.name!r} gives an embedding: it has no classes")
    classes, known = model.outputs[0].shape[-1], labels_of(source)
    sample = pixels = None
    if calibration is not None:
        sample, pixels = calibration_pixels(calibration, preprocessing, model.inputs[0].shape[1:3])
    given = None if data is None else open_images(data)
    judged, shown = (sample, pixels) if given is None else (given, given.pixels(preprocessing))
    if given is not None and pixels is not None and shown is not None:
        check_apart(pixels, shown, given.name)
    if is_embedding:
        return Evidence(sample, pixels, judged, shown, False, ())
    if judged is not None:
        judged = for_network(judged, classes, known)
    folders = judged.classes if judged else ()
    # Numbers are places of outputs; a thousand of them are ImageNet's. Ten may be CIFAR-10's or ten digits.
    if classes == len(imagenet()) and all(name.isdecimal() for name in folders):
        folders = tuple(imagenet().values())
    named = known or folders or None
    names = check_labels(named if labels is None else labels, classes)
    return Evidence(sample, pixels, judged, shown, given is not None, names)
