"""How well a classifier answers: pure functions of arrays, and one that runs a model over images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from keras_resnet.errors import UsageError
from keras_resnet.preprocessing import preprocess_input, preprocessing_of
from keras_resnet.training.data import Images, batches_of

Z95 = 1.959964  # the normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on labelled images. top1 and its interval are fractions 0..1; confusion[true, predicted] counts."""

    data: str
    count: int
    correct: int
    top1: float
    interval: tuple[float, float]
    classes: tuple[str, ...]
    confusion: list[list[int]]
    predictions: list[int]


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a fraction (Wilson 1927): it stays within 0..1, also for few images and none wrong."""
    p, z2 = correct / count, Z95**2
    centre, spread = p + z2 / (2 * count), Z95 * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    return max(0.0, (centre - spread) / (1 + z2 / count)), min(1.0, (centre + spread) / (1 + z2 / count))


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: how many of each true class (row) were called each class (column)."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def summarise(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str], data: str) -> Evaluation:
    """The evaluation of given answers: labels and predictions are int [n]."""
    correct = int(np.sum(labels == predictions))
    return Evaluation(
        data=data,
        count=len(labels),
        correct=correct,
        top1=correct / len(labels),
        interval=wilson_interval(correct, len(labels)),
        classes=tuple(classes),
        confusion=confusion_matrix(labels, predictions, len(classes)).tolist(),
        predictions=[int(p) for p in predictions],
    )


def scores_of(model: keras.Model, batch_size: int = 64) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pixels, uint8 [n, height, width, channels], to a model's scores, float32 [n, classes]."""

    def scores(pixels: np.ndarray) -> np.ndarray:
        parts = [
            np.asarray(model.predict_on_batch(preprocess_input(batch, model)))
            for batch in batches_of(pixels, batch_size)
        ]
        return np.concatenate(parts)

    return scores


def check_classes(images: Images, outputs: int, known: tuple[str, ...] | None) -> None:
    """Raise UsageError where labels of images do not mean what a network answers.

    outputs: how many classes the network tells apart; known: their names, None where nobody knows them.
    """
    if known is not None and images.classes != known:
        raise UsageError(
            f"data {images.name!r} has classes {', '.join(images.classes[:5])}, ..., but the network was trained on "
            f"{', '.join(known[:5])}, ...: every class needs its folder, under the same name"
        )
    if len(images.classes) != outputs:
        raise UsageError(
            f"data {images.name!r} has {len(images.classes)} classes, but the network tells {outputs} apart"
        )


def evaluate_model(model: keras.Model, images: Images, known: tuple[str, ...] | None = None) -> Evaluation:
    """Top-1 of a model on labelled images, preprocessed as the model says; known: the names of its classes.

    Raises UsageError where the images' classes are not the model's.
    """
    check_classes(images, model.outputs[0].shape[-1], known)
    scores = scores_of(model)(images.pixels(preprocessing_of(model)))
    return summarise(images.labels, scores.argmax(axis=-1), images.classes, images.name)
