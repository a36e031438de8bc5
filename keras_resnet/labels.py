"""What the outputs of a network mean: the names of published classes, and which output a folder's name stands for."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_resnet.errors import InputError, UsageError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Answer(NamedTuple):
    """One class that a network sees in an image: an ImageNet id or the class's number, its name, its score."""

    id: str
    name: str
    score: float


@functools.cache
def imagenet() -> Mapping[str, str]:
    """The 1,000 classes of ImageNet-1k in the order of the outputs: WordNet id to a name; no name stands twice."""
    text = importlib.resources.files("keras_resnet").joinpath("assets/imagenet_classes.tsv").read_text("utf-8")
    return dict(line.split("\t") for line in text.splitlines())


def published(outputs: int) -> tuple[str, ...] | None:
    """The names of the classes that published networks of so many outputs tell apart; None where nobody knows them.

    1,000 are ImageNet-1k's and 10 CIFAR-10's for every row of `registry.WEIGHTS`; a user's own may be others.
    """
    return {1000: tuple(imagenet().values()), 10: CIFAR10}.get(outputs)


def decode_predictions(
    predictions: Any, top: int = 5, *, model: Any = None, labels: Sequence[str] | None = None
) -> list[list[Answer]]:
    """The best classes of each image, best first: tuples (id, name, score), as keras.applications gives them.

    predictions: scores [n, classes], what `model.predict` returns; top: how many classes; model: where given, its
    logits become probabilities, and its number of classes is checked; labels: a name a class. Without labels 1,000
    classes are taken for ImageNet-1k's, any others are called by their numbers.
    Raises InputError for another shape or values that are no numbers, UsageError for another count of labels.
    """
    scores = np.asarray(predictions, np.float32)
    if scores.ndim != 2 or not scores.shape[-1]:
        raise InputError(
            f"predictions of shape {scores.shape} are not [images, classes]: give what model.predict returns"
        )
    outputs = scores.shape[-1]
    if model is not None and model.outputs[0].shape[-1] != outputs:
        raise InputError(
            f"predictions of {outputs} classes are not those of model {model.name!r}, "
            f"which tells {model.outputs[0].shape[-1]} apart"
        )
    if labels is not None and len(labels) != outputs:
        raise UsageError(f"labels: {len(labels)} given for predictions of {outputs} classes: give one a class")
    if not np.isfinite(scores).all():
        raise InputError(f"predictions of image {int(np.argmin(np.isfinite(scores).all(-1)))} are not all numbers")
    if top < 1:
        raise UsageError(f"top={top} must be 1 or more")
    if model is not None and gives_logits(model):
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
    numbers = [str(i) for i in range(outputs)]
    is_imagenet = _is_imagenet(outputs, labels)
    ids = list(imagenet()) if is_imagenet else numbers
    names = list(imagenet().values()) if is_imagenet else numbers if labels is None else list(labels)
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :top]
    return [[Answer(ids[i], names[i], float(row[i])) for i in chosen] for row, chosen in zip(scores, best, strict=True)]


def _is_imagenet(outputs: int, labels: Sequence[str] | None) -> bool:
    return outputs == len(imagenet()) and (labels is None or tuple(labels) == tuple(imagenet().values()))


def gives_logits(model: Any) -> bool:
    """Whether a model's head ends without an activation."""
    return getattr(getattr(model.layers[-1], "activation", None), "__name__", "") == "linear"


def positions(names: Sequence[str], outputs: int, labels: Sequence[str] | None) -> list[int]:
    """Which output each class of a data set is: by label, by ImageNet's id, by number, or in order.

    names: the classes, in the data's order; outputs: how many classes the network tells apart; labels: their names,
    None where nobody knows them. A data set may have some of the classes only. Raises UsageError where the names do
    not say which outputs they are.
    """
    is_imagenet = _is_imagenet(outputs, labels)
    tables: list[Mapping[str, int]] = [] if labels is None else [{label: i for i, label in enumerate(labels)}]
    if is_imagenet:
        tables += [{name: i for i, name in enumerate(known)} for known in (imagenet(), imagenet().values())]
    for table in tables:
        if all(name in table for name in names):
            return [table[name] for name in names]
    numbers = [int(name) for name in names] if all(name.isdecimal() for name in names) else []
    are_numbers = bool(numbers) and max(numbers) < outputs and len(set(numbers)) == len(numbers)
    in_order = list(range(outputs)) if len(names) == outputs else None
    if are_numbers and (is_imagenet or (labels is None and in_order in (None, numbers))):
        return numbers
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    if labels is not None:
        known = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
        raise UsageError(
            f"classes {shown} are not those that the network was trained on ({known}): "
            "every class needs its folder, under the same name"
        )
    if in_order is None:
        raise UsageError(f"{len(names)} classes ({shown}), but the network tells {outputs} apart: name its classes")
    if are_numbers:
        raise UsageError(
            f"classes {shown} are numbers, but not in the order of the numbers: write them with as many digits each "
            "(00, 01, ...), or name the network's classes"
        )
    return in_order
