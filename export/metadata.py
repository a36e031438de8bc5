"""What travels beside a file: its labels and its manifest, as plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from keras_resnet.errors import UsageError
from keras_resnet.export.concrete import answers_with, name_of_answer
from keras_resnet.export.verification import Similarity, Verification
from keras_resnet.preprocessing import preprocessing_of
from keras_resnet.training.data import Images
from keras_resnet.training.runs import versions


def check_labels(labels: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """One distinct label a class; numbers where none are given. Raises UsageError for another count or duplicates."""
    if labels is None:
        return tuple(str(i) for i in range(classes))
    strange = [
        label for label in labels if not isinstance(label, str) or not label.strip() or len(label.splitlines()) > 1
    ]
    if strange:
        raise UsageError(f"labels: {strange[0]!r} is no text on one line: a label file has a label a line")
    if len(labels) != classes:
        raise UsageError(f"labels: {len(labels)} given for a network of {classes} classes: give one a class")
    seen: set[str] = set()
    for label in labels:
        if label in seen:
            raise UsageError(f"labels: {label!r} stands twice; an app could not tell the two classes apart")
        seen.add(label)
    return tuple(labels)


def hash_of(model: keras.Model) -> str:
    """SHA-256 over names, shapes and bytes of a model's weights: equal for equal weights, however they were saved."""
    digest = hashlib.sha256()
    for layer in model.layers:
        for variable in layer.weights:
            value = np.asarray(variable.value)
            digest.update(f"{layer.name}/{variable.name} {value.dtype} {value.shape}\n".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def describe(
    written: dict[str, Any],
    *,
    format: str,
    model: keras.Model,
    input_type: str,
    labels: Sequence[str],
    calibration: Images | None,
    verification: Verification | Similarity | None,
    accuracy_verified: bool,
    targets: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The manifest of a file: contract, source, calibration, what was measured, versions.

    model: as it answers; targets: which chips take it, as `targets` says.
    """
    answers = f"[1, {model.outputs[0].shape[-1]}]"
    return {
        **written,
        "format": format,
        "contract": {"input": {"image": input_type}, "output": {name_of_answer(model): answers}},
        "answers": answers_with(model),
        "model": {"name": model.name, "parameters": model.count_params(), "weights_sha256": hash_of(model)},
        "preprocessing_inside": asdict(preprocessing_of(model)),
        "labels": list(labels),
        "calibration": None
        if calibration is None
        else {"data": calibration.name, "count": len(calibration), "hash": calibration.hash},
        "accuracy_verified": accuracy_verified,
        "verification": None if verification is None else verification.as_json(),
        "targets": list(targets),
        "versions": versions(),
    }


def inside(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest as a file carries it: without latency, which is of the moment, so that equal exports are equal."""
    found = manifest["verification"]
    return manifest if found is None else {**manifest, "verification": {**found, "latency": None}}
