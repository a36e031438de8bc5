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
from keras_resnet.naming import differences, values_of_ours
from keras_resnet.recognition import spec_from

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
    layers = {layer.name: {variable.name: variable for variable in layer.weights} for layer in model.layers}
    fits = HEAD in layers and found.classes == spec.classes
    for layer, variable, values in values_of_ours(
        tensors,
        replace(spec, classes=found.classes or spec.classes),
        found.scheme,
        channels=found.channels,
        include_top=found.classes is not None,
        where=where,
    ):
        if layer == "stem_conv" and variable == "kernel" and found.channels != channels:
            values = adapt_channels(values, channels, where=where)  # may refuse, and comes first
        if layer != HEAD or fits:
            layers[layer][variable].assign(values)
    notes = []
    if HEAD in layers and not fits:
        has = "no classifier" if found.classes is None else f"{found.classes} classes"
        notes.append(
            f"the file has {has}, the network {spec.classes} classes: the backbone was loaded, the head was not"
        )
    if found.channels != channels:
        notes.append(f"stem adapted from {found.channels} to {channels} input channels")
    return notes


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
