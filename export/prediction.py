"""What a network, or a file that was made of one, sees in images: the same call for either."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_resnet.errors import InputError, UsageError
from keras_resnet.export.artifact import Artifact, manifest_within
from keras_resnet.export.concrete import EMBEDDING, HEAD, answers_with, labels_of, open_model
from keras_resnet.export.mil import open_package
from keras_resnet.export.tflite_metadata import LABELS, associated_files
from keras_resnet.export.verification import MANIFEST, TfliteFile
from keras_resnet.labels import Answer, decode_predictions, published
from keras_resnet.preprocessing import Preprocessing, fit_image, open_image, preprocessing_of
from keras_resnet.registry import WEIGHTS
from keras_resnet.training.evaluation import scores_of

BATCH_SIZE = 32


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, best first."""

    image: str
    answers: tuple[Answer, ...]


class Answerer(NamedTuple):
    """Something that answers: pixels, uint8 [n, height, width, channels], to scores, float32 [n, classes], 0..1."""

    scores: Callable[[np.ndarray], np.ndarray]
    preprocessing: Preprocessing  # how a picture becomes such pixels
    labels: tuple[str, ...] | None
    model: keras.Model | None  # None: a file


def predict(
    source: keras.Model | str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    top: int = 5,
    labels: Sequence[str] | None = None,
) -> list[Prediction]:
    """The `top` best classes of each image file.

    source: a model, run folder, `.keras`, PyTorch, `.tflite` or `.mlpackage` file, or "VARIANT:WEIGHTS"; labels: a
    name a class, default what the source knows; 1,000 classes of which nothing is known are taken for ImageNet-1k's.
    Raises UsageError, InputError for what cannot be read, and for what gives an embedding; no image is answered then.
    """
    if not images:
        raise UsageError("no image given: name one or more picture files")
    opened = [open_image(image) for image in images]
    answerer = open_answerer(source)
    pixels = [fit_image(picture, answerer.preprocessing) for picture in opened]
    names = answerer.labels if labels is None else labels
    found: list[list[Answer]] = []
    for start in range(0, len(pixels), BATCH_SIZE):
        group = pixels[start : start + BATCH_SIZE]
        alike = len({picture.shape for picture in group}) == 1
        parts = [np.stack(group)] if alike else [picture[None] for picture in group]
        for part in parts:
            found += decode_predictions(answerer.scores(part), top, model=answerer.model, labels=names)
    return [Prediction(str(image), tuple(answers)) for image, answers in zip(images, found, strict=True)]


def open_answerer(source: keras.Model | str | os.PathLike[str]) -> Answerer:
    """A model or an exported file, ready to answer. Raises UsageError, InputError where it is neither."""
    path = None if isinstance(source, keras.Model) else Path(source)
    if path is not None and path.suffix == ".tflite" and ":" not in str(source):
        return _open_tflite(path)
    if path is not None and path.suffix == ".mlpackage":
        package = open_package(path)
        labels = package.labels or _labels_beside(path)
        preprocessing = _preprocessing(path, package.size, package.manifest)
        return Answerer(_scores(package.answer, package.answers, path), preprocessing, labels, None)
    model = open_model(source)
    if HEAD not in {layer.name for layer in model.layers} and answers_with(model) == EMBEDDING:
        raise _no_classes(model.name)
    return Answerer(scores_of(model), preprocessing_of(model), names_of(source, model.outputs[0].shape[-1]), model)


def names_of(source: keras.Model | str | os.PathLike[str], outputs: int) -> tuple[str, ...] | None:
    """The names of a network's classes: a run's own, a published weight set's, ImageNet-1k's for 1,000; else None."""
    known = labels_of(source)
    if known is not None:
        return known
    weights = "" if isinstance(source, keras.Model) else str(source).partition(":")[2]
    return published(outputs) if outputs == 1000 or weights in WEIGHTS else None


def _open_tflite(path: Path) -> Answerer:
    if not path.is_file():
        raise InputError(f"file {str(path)!r} does not exist: check the path")
    file = TfliteFile(path, str(path))
    outputs, inside = int(file.output["shape"][-1]), associated_files(file.content, str(path))
    labels = _labels_beside(path) or _labels_in(inside) or (published(outputs) if outputs == 1000 else None)
    preprocessing = _preprocessing(path, file.size, manifest_within(inside.get(MANIFEST), str(path)))
    return Answerer(_scores(file.scores, file.answers, path), preprocessing, labels, None)


def _labels_beside(path: Path) -> tuple[str, ...] | None:
    labels = Artifact(path).labels
    return tuple(labels.read_text(encoding="utf-8").splitlines()) if labels.is_file() else None


def _labels_in(files: Mapping[str, bytes]) -> tuple[str, ...] | None:
    text = files.get(LABELS, b"").decode("utf-8", errors="replace")
    return tuple(text.splitlines()) or None


def _scores(answer: Callable[[np.ndarray], np.ndarray], answers: str, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Answers as probabilities. Raises UsageError for embeddings."""
    if answers == EMBEDDING:
        raise _no_classes(path.name)
    if answers != "logits":
        return answer

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        logits = answer(pixels)
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))

    return probabilities


def _no_classes(name: str) -> UsageError:
    return UsageError(f"{name!r} gives an embedding, not classes: `verify` compares it with its network")


def _preprocessing(path: Path, size: tuple[int, int], inside: Mapping[str, Any] | None) -> Preprocessing:
    """What the manifest beside a file, or else inside it, says of resizing.

    Without one, torchvision's in proportion to its size.
    """
    artifact, side = Artifact(path), min(size)
    manifest = artifact.read() if artifact.manifest.is_file() else inside
    if manifest is None:
        return replace(Preprocessing(), resize=round(side * 256 / 224), crop=side)
    try:
        stored: dict[str, Any] = manifest["preprocessing_inside"]
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return Preprocessing(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the manifest of {str(path)!r} is damaged: export anew") from error
