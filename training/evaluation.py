"""How well a classifier answers: pure functions of arrays, and one that runs a model over images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from keras_resnet.errors import UsageError
from keras_resnet.labels import positions
from keras_resnet.preprocessing import Preprocessing, preprocess_input, preprocessing_of
from keras_resnet.training.batches import batches_of
from keras_resnet.training.images import Images

BATCH_SIZE = 64
Z95 = 1.959964  # the normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on labelled images. top1 and its interval are fractions 0..1; confusion[true, predicted] counts."""

    data: str
    count: int
    correct: int
    top1: float
    interval: tuple[float, float]
    top5: float | None  # None: not more than five classes, or answers without scores
    classes: tuple[str, ...]
    confusion: list[list[int]]
    predictions: list[int]

    def per_class(self) -> list[dict[str, Any]]:
        """A row for each class that has images: how many, how many right, with interval, and what it is taken for."""
        rows = []
        for index, (name, answers) in enumerate(zip(self.classes, self.confusion, strict=True)):
            count, wrong = sum(answers), [0 if i == index else n for i, n in enumerate(answers)]
            if count:
                low, high = wilson_interval(answers[index], count)
                mistaken = self.classes[int(np.argmax(wrong))] if any(wrong) else ""
                rows.append(
                    {
                        "class": name,
                        "count": count,
                        "correct": answers[index],
                        "top1": answers[index] / count,
                        "low": low,
                        "high": high,
                        "mostly_mistaken_for": mistaken,
                    }
                )
        return rows


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


def summarise(
    labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str], data: str, top5: float | None = None
) -> Evaluation:
    """The evaluation of given answers: labels and predictions are int [n]."""
    correct = int(np.sum(labels == predictions))
    return Evaluation(
        data=data,
        count=len(labels),
        correct=correct,
        top1=correct / len(labels),
        interval=wilson_interval(correct, len(labels)),
        top5=top5,
        classes=tuple(classes),
        confusion=confusion_matrix(labels, predictions, len(classes)).tolist(),
        predictions=[int(p) for p in predictions],
    )


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 5) -> float | None:
    """The fraction whose label is among the k best scores, of equal ones the first; None for no more than k classes."""
    if scores.shape[-1] <= k:
        return None
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
    return float(np.mean((best == labels[:, None]).any(axis=-1)))


def scores_of(model: keras.Model, batch_size: int = BATCH_SIZE) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pixels, uint8 [n, height, width, channels], to a model's scores, float32 [n, classes]."""

    def scores(pixels: np.ndarray) -> np.ndarray:
        parts = [
            np.asarray(model.predict_on_batch(preprocess_input(batch, model)))
            for batch in batches_of(pixels, batch_size)
        ]
        return np.concatenate(parts)

    return scores


def for_network(images: Images, outputs: int, known: Sequence[str] | None) -> Images:
    """The images under the classes that a network answers; a data set may have some of them only.

    outputs: how many classes the network tells apart; known: their names, None where nobody knows them.
    Raises UsageError where the images' classes are not the network's.
    """
    try:
        found = positions(images.classes, outputs, known)
    except UsageError as error:
        raise UsageError(f"data {images.name!r} has {error}") from error
    names = list(known or map(str, range(outputs)))
    for position, name in zip(found, images.classes, strict=True):
        if known is None:
            names[position] = name
    return images.relabelled(found, names)


def evaluate_model(
    model: keras.Model,
    images: Images,
    known: Sequence[str] | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    progress: bool = False,
) -> Evaluation:
    """Top-1 and top-5 of a model on labelled images, preprocessed as the model says, or as `preprocessing` does.

    known: the names of its classes; progress: a bar with the time left on stderr. Raises UsageError where the images'
    classes are not the model's, InputError where an image cannot be read or comes at another size.
    """
    meant = for_network(images, model.outputs[0].shape[-1], known)
    chosen = preprocessing or preprocessing_of(model)
    scores = []
    with tqdm(total=len(meant), desc="evaluating", unit="image", disable=not progress) as bar:
        for pixels in meant.batches(chosen, BATCH_SIZE):
            _check_size(model, pixels)
            scores.append(np.asarray(model.predict_on_batch(chosen.normalise(pixels))))
            bar.update(len(pixels))
    found = np.concatenate(scores)
    top5 = top_k_accuracy(found, meant.labels)
    return summarise(meant.labels, found.argmax(axis=-1), meant.classes, meant.name, top5)


def _check_size(model: keras.Model, pixels: np.ndarray) -> None:
    wanted = model.inputs[0].shape[1:3]
    if any(want not in (None, have) for want, have in zip(wanted, pixels.shape[1:3], strict=True)):
        raise UsageError(
            f"images come at {pixels.shape[2]}x{pixels.shape[1]} pixels, model {model.name!r} reads "
            f"{wanted[1]}x{wanted[0]}: set the crop to that"
        )
