"""How well a classifier answers: pure functions of arrays, and one that runs a model over images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from tqdm import tqdm

from keras_resnet.depth import recursion_room
from keras_resnet.errors import InputError, UsageError
from keras_resnet.labels import positions
from keras_resnet.preprocessing import Preprocessing, preprocess_input, preprocessing_of
from keras_resnet.training.batches import batches_of
from keras_resnet.training.images import DECODERS, Images
from keras_resnet.training.views import Views, views_of

BATCH_SIZE = 64
BATCH_PIXELS = BATCH_SIZE * 256 * 256  # most in one batch: large pictures come in smaller ones
BINS = 15  # of confidence, as in arXiv:1706.04599, section 5
Z95 = 1.959964  # the normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on labelled images; fractions are 0..1, intervals 95 %, confusion[true, predicted] counts.

    calibration_error: how far confidence, the best score, is from accuracy, in the mean over `BINS` bins of equal width
    (expected calibration error, arXiv:1706.04599, equation 3); reliability: of each bin that holds images, their count,
    mean confidence and accuracy.
    """

    data: str
    count: int
    correct: int
    top1: float
    interval: tuple[float, float]
    top5: float | None  # None: not more than five classes, or answers without scores
    classes: tuple[str, ...]
    confusion: list[list[int]]
    predictions: list[int]
    top5_interval: tuple[float, float] | None = None
    calibration_error: float | None = None  # None: answers without scores
    reliability: tuple[tuple[int, float, float], ...] = ()

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


class Tally(NamedTuple):
    """What was counted over images of a data set of n; those of disjoint parts add up, field by field.

    So each worker tallies its `share`, and the sum over the workers of each field is the tally of the whole.
    """

    confusion: np.ndarray  # int64 [classes, classes], true by predicted
    among_best: np.ndarray  # int64 [], labels among the five best scores
    bins: np.ndarray  # float64 [BINS, 3]: count, sum of confidence, correct; zeros for answers without scores
    predictions: np.ndarray  # int64 [n], zeros where another part counts


def share(count: int, worker: int, workers: int) -> np.ndarray:
    """Which of `count` images worker 0..workers-1 evaluates: consecutive, each image once, parts of one size or next.

    >>> [len(share(8, worker, 3)) for worker in range(3)]
    [3, 3, 2]
    """
    return np.array_split(np.arange(count), workers)[worker]


def tally(scores: np.ndarray, labels: np.ndarray, indices: np.ndarray | None = None, count: int | None = None) -> Tally:
    """Count scores, probabilities [m, classes], against labels, int [m].

    indices: which images of a data set of `count` these are; default all of them, in order.
    """
    places = np.arange(len(labels)) if indices is None else indices
    found = scores.argmax(axis=-1)
    predictions = np.zeros(len(labels) if count is None else count, np.int64)
    predictions[places] = found
    confidence = np.nan_to_num(scores.max(axis=-1).astype(np.float64))  # a network that diverged is sure of nothing
    bins = np.zeros((BINS, 3))
    rows = np.stack([np.ones(len(labels)), confidence, found == labels], axis=-1)
    np.add.at(bins, np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1), rows)
    hits = np.asarray(_among_best(scores, labels, 5).sum())
    return Tally(confusion_matrix(labels, found, scores.shape[-1]), hits, bins, predictions)


def conclude(counts: Tally, classes: Sequence[str], data: str) -> Evaluation:
    """The evaluation that a tally of a whole data set comes to."""
    count, correct, hits = int(counts.confusion.sum()), int(np.trace(counts.confusion)), int(counts.among_best)
    filled = counts.bins[counts.bins[:, 0] > 0]
    ranked = len(classes) > 5 and len(filled) > 0
    reliability = tuple((int(n), float(sure / n), float(right / n)) for n, sure, right in filled)
    return Evaluation(
        data=data,
        count=count,
        correct=correct,
        top1=correct / count,
        interval=wilson_interval(correct, count),
        top5=hits / count if ranked else None,
        classes=tuple(classes),
        confusion=counts.confusion.tolist(),
        predictions=counts.predictions.tolist(),
        top5_interval=wilson_interval(hits, count) if ranked else None,
        calibration_error=sum(n * abs(sure - right) for n, sure, right in reliability) / count if reliability else None,
        reliability=reliability,
    )


def summarise(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str], data: str) -> Evaluation:
    """The evaluation of given answers: labels and predictions are int [n]."""
    confusion = confusion_matrix(labels, predictions, len(classes))
    return conclude(Tally(confusion, np.zeros((), np.int64), np.zeros((BINS, 3)), predictions), classes, data)


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 5) -> float | None:
    """The fraction whose label is among the k best scores, of equal ones the first; None for no more than k classes."""
    return None if scores.shape[-1] <= k else float(np.mean(_among_best(scores, labels, k)))


def _among_best(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(axis=-1)


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
    model: keras.Model | Sequence[keras.Model],
    images: Images,
    known: Sequence[str] | None = None,
    *,
    preprocessing: Preprocessing | Sequence[Preprocessing] | None = None,
    crops: int = 1,
    scales: Sequence[int] = (),
    progress: bool = False,
) -> Evaluation:
    """Top-1, top-5 and calibration of a model, or of an ensemble, on labelled images, each image once.

    model: one, or several whose probabilities are averaged; known: the names of their classes; preprocessing: what the
    images need, one for each model, default what the model says; crops, scales: as in `views.views_of`, averaged too;
    progress: a bar with the time left on stderr.
    Raises UsageError where the images' classes are not the model's, where models differ in theirs, and for views that
    cannot be; InputError where an image cannot be read or comes at another size.
    """
    models = [model] if isinstance(model, keras.Model) else list(model)
    if len({one.outputs[0].shape[-1] for one in models}) != 1:
        answers = " and ".join(str(one.outputs[0].shape[-1]) for one in models)
        raise UsageError(f"an ensemble needs models of the same number of classes, these have {answers or 'none'}")
    meant = for_network(images, models[0].outputs[0].shape[-1], known)
    needs = [preprocessing] if isinstance(preprocessing, Preprocessing) else preprocessing
    needs = needs or [preprocessing_of(one) for one in models]
    scores = scores_on(models, meant, needs, crops=crops, scales=scales, progress=progress)
    return conclude(tally(scores, meant.labels), meant.classes, meant.name)


def scores_on(
    models: Sequence[keras.Model],
    images: Images,
    preprocessing: Sequence[Preprocessing],
    *,
    crops: int = 1,
    scales: Sequence[int] = (),
    progress: bool = False,
) -> np.ndarray:
    """Probabilities, float64 [images, classes]: the mean over the models and over the views of each picture.

    preprocessing: one for each model; the rest, and what is raised, as in `evaluate_model`.
    """
    if len(preprocessing) != len(models):
        raise UsageError(f"{len(models)} models and {len(preprocessing)} preprocessings: give one for each model")
    views = [views_of(needs, crops, scales) for needs in preprocessing]
    networks = [at_any_size(model) if scales else model for model in models]
    total = np.zeros((len(images), models[0].outputs[0].shape[-1]))
    with tqdm(total=len(images) * len(models), desc="evaluating", unit="image", disable=not progress) as bar:
        for network, needs, shown in zip(networks, preprocessing, views, strict=True):
            start = 0
            for part in _seen(images, shown, max(1, BATCH_SIZE // (crops * max(1, len(scales))))):
                total[start : start + len(part)] += _mean_scores(network, needs, part)
                start += len(part)
                bar.update(len(part))
    return total / len(models)


def at_any_size(model: keras.Model) -> keras.Model:
    """The model for pictures of any height and width: its head reads the mean over all positions.

    A network of one static size is copied. As the head is linear, its score on the mean is the mean of its scores over
    the positions: the fully convolutional form. Raises UsageError for a network that stands or falls with its size.
    """
    _, height, width, channels = model.inputs[0].shape
    if height is None and width is None:
        return model
    image = keras.Input((None, None, channels), name="image", dtype=model.inputs[0].dtype)
    try:
        with recursion_room(len(model.layers)):
            copy = keras.models.clone_model(model, input_tensors=image)
        copy.set_weights(model.get_weights())
    except ValueError as error:
        raise UsageError(f"model {model.name!r} reads {width}x{height} pixels and nothing else: {error}") from error
    return copy


def _seen(images: Images, views: Views, size: int) -> Iterator[list[list[np.ndarray]]]:
    """The views of each picture, in the pictures' order, of at most `size` pictures at a time, decoded ahead."""

    def see(index: int) -> list[np.ndarray]:
        picture = images.picture(index)
        try:
            return views(picture)
        except InputError as error:
            raise InputError(f"{images.name_of(index)}: {error}") from error

    with ThreadPoolExecutor(DECODERS) as pool:
        ahead = pool.map(see, range(min(size, len(images))))
        for start in range(size, len(images) + size, size):
            seen, ahead = list(ahead), pool.map(see, range(start, min(start + size, len(images))))
            yield seen


def _mean_scores(model: keras.Model, preprocessing: Preprocessing, seen: list[list[np.ndarray]]) -> np.ndarray:
    """A model's probabilities, [pictures, classes], the mean over each picture's views; one size goes together."""
    total = np.zeros((len(seen), model.outputs[0].shape[-1]))
    sizes: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for index, views in enumerate(seen):
        for view in views:
            sizes.setdefault(view.shape, []).append((index, view))
    for (height, width, _), group in sizes.items():
        most = max(1, min(BATCH_SIZE, BATCH_PIXELS // (height * width)))
        for start in range(0, len(group), most):
            indices, pixels = zip(*group[start : start + most], strict=True)
            batch = np.stack(pixels)
            _check_size(model, batch)
            scores = np.asarray(model.predict_on_batch(preprocessing.normalise(batch)))
            np.add.at(total, list(indices), _probabilities(model, scores))
    return total / np.array([[len(views)] for views in seen])


def _probabilities(model: keras.Model, scores: np.ndarray) -> np.ndarray:
    """float64; of a model that ends in logits their softmax."""
    last = model.outputs[0]._keras_history.operation
    scores = scores.astype(np.float64)
    if getattr(last, "activation", None) is not keras.activations.linear:
        return scores
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _check_size(model: keras.Model, pixels: np.ndarray) -> None:
    wanted = model.inputs[0].shape[1:3]
    if any(want not in (None, have) for want, have in zip(wanted, pixels.shape[1:3], strict=True)):
        raise UsageError(
            f"images come at {pixels.shape[2]}x{pixels.shape[1]} pixels, model {model.name!r} reads "
            f"{wanted[1]}x{wanted[0]}: set the crop to that"
        )
