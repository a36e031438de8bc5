"""Tensors of another library put into one of our models: recognised, fitted to its classes and channels, whole or not.

Takes what `readers` gives; changes the model, and returns in words what the user may want to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.introspection import spec_of_model
from keras_resnet.naming import Weights, differences, to_ours
from keras_resnet.recognition import Found, spec_from

HEAD = "head_dense"


def fit_tensors(model: keras.Model, tensors: Mapping[str, np.ndarray], *, where: str) -> list[str]:
    """Fill a model from tensors named as in any scheme of `naming`; where: what they came from, for messages.

    Another number of classes: the backbone is filled and the head stays as it is. Another number of input channels
    than three in the file: the stem is adapted (`adapt_channels`). Float16 becomes the model's type.
    Returns a line for each thing that was not simply copied. Raises InputError where the tensors are of another
    network; the model is then as it was.
    """
    spec, channels = spec_of_model(model), model.inputs[0].shape[-1]
    found = spec_from(tensors, where=where)
    if others := differences(spec, found.scheme):
        raise InputError(
            f"{where} was made for a network that computes otherwise than {model.name!r}: {'; '.join(others)}"
        )
    values = to_ours(
        tensors,
        replace(spec, classes=found.classes or spec.classes),
        found.scheme,
        channels=found.channels,
        include_top=found.classes is not None,
        where=where,
    )
    notes = _fit_head(values, found, spec.classes if HEAD in {layer.name for layer in model.layers} else None)
    if found.channels != channels:
        stem = values["stem_conv"]
        stem["kernel"] = adapt_channels(stem["kernel"], channels, where=where)
        notes.append(f"stem adapted from {found.channels} to {channels} input channels")
    for layer in model.layers:
        for variable in layer.weights if layer.name in values else ():
            variable.assign(values[layer.name][variable.name])
    return notes


def _fit_head(values: Weights, found: Found, classes: int | None) -> list[str]:
    """Take the head out where it does not fit; classes: of the model, None without a head."""
    if classes is None or found.classes == classes:
        if classes is None:
            values.pop(HEAD, None)
        return []
    values.pop(HEAD, None)
    has = "no classifier" if found.classes is None else f"{found.classes} classes"
    return [f"the file has {has}, the network {classes} classes: the backbone was loaded, the head was not"]


def adapt_channels(kernel: np.ndarray, channels: int, *, where: str) -> np.ndarray:
    """The kernel of a stem, [height, width, 3, filters], for another number of input channels.

    One: the sum over the three. N: the three repeated, cut to N and scaled by 3 / N, so that the response to a grey
    image stays (timm, `adapt_input_conv`). Raises InputError for a kernel that does not read three channels.
    """
    if kernel.shape[2] != 3:
        raise InputError(f"{where} reads {kernel.shape[2]} channels: only a stem of 3 can be adapted, to {channels}")
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, -(-channels // 3), 1))[:, :, :channels]
    return repeated * np.float32(3 / channels)
