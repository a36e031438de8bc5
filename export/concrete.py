"""From anything that holds a network to one float32 inference graph that takes pixels.

Every exporter starts here: the model is rebuilt in float32 with a static shape, and its normalisation is folded into
the first convolution, so that an app does no arithmetic on pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import models
from keras_resnet.conversion import TENSOR_SUFFIXES, from_torch
from keras_resnet.depth import recursion_room
from keras_resnet.errors import InputError, UsageError
from keras_resnet.layers import Bound
from keras_resnet.preprocessing import Preprocessing, preprocessing_of
from keras_resnet.training.runs import Run
from keras_resnet.weights import load_model

STEM, HEAD = "stem_conv", "head_dense"
EMBEDDING = "embedding"


def open_model(source: keras.Model | str | os.PathLike[str]) -> keras.Model:
    """A model from itself, a run folder, a `.keras` file, a PyTorch or safetensors file, or "VARIANT:WEIGHTS".

    WEIGHTS is whatever `build` takes: "imagenet", a tag, hf://..., a path. Raises UsageError or InputError where the
    source is none of these.
    """
    if isinstance(source, keras.Model):
        return source
    path = Path(source)
    if path.is_dir():
        run = Run(path)
        run.read()
        if not run.model.is_file():
            raise InputError(f"run {str(path)!r} has no model.keras yet: finish its training first")
        return load_model(run.model)
    if path.suffix == ".keras":
        return load_model(path)
    if path.suffix in TENSOR_SUFFIXES and ":" not in str(source):
        return from_torch(path)
    variant, colon, weights = str(source).partition(":")
    if colon:
        return models.build(variant, weights=weights)
    raise UsageError(f"model {str(source)!r} is no run folder, .keras, .safetensors or .pth file, or VARIANT:WEIGHTS")


def labels_of(source: keras.Model | str | os.PathLike[str]) -> tuple[str, ...] | None:
    """The class names that a source itself knows: those of a run folder; None for the others."""
    if isinstance(source, keras.Model) or not Path(source).is_dir():
        return None
    return tuple(Run(Path(source)).read()["data"]["classes"])


@dataclass(frozen=True)
class Normalisation:
    """How pixels p become what the folded stem reads: (p - shift) * scale, one number a channel each."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]


def exact_normalisation(preprocessing: Preprocessing) -> Normalisation:
    """The network's own normalisation, whole, in RGB order: what a float file computes, exact at the border too."""
    step = -1 if preprocessing.order == "bgr" else 1
    mean, std = (np.asarray(values, np.float64)[::step] for values in (preprocessing.mean, preprocessing.std))
    shift, scale = mean * preprocessing.scale, 1 / (std * preprocessing.scale)
    return Normalisation(tuple(shift.tolist()), tuple(scale.tolist()))


def integer_normalisation(preprocessing: Preprocessing) -> Normalisation:
    """One whole number near the mean is subtracted and the rest folds: in int8 that moves the zero point alone.

    Zero padding then pads with nearly the mean colour, as the network was trained; folding all of it would pad black.
    """
    shift = float(np.round(np.mean(exact_normalisation(preprocessing).shift)))
    channels = len(preprocessing.mean)
    return Normalisation((shift,) * channels, (1.0,) * channels)


def check_exportable(model: keras.Model) -> Preprocessing:
    """What the images of a model need, after checking that a phone file can be made of it.

    Raises InputError for a model without our stem or preprocessing, or with weights that are no numbers; UsageError for
    one without a static size, with other than three channels, or that gives anything but one vector an image.
    """
    preprocessing = preprocessing_of(model)
    if STEM not in {layer.name for layer in model.layers}:
        raise InputError(f"model {model.name!r} has no layer {STEM!r}: it was not built by keras_resnet")
    shape = model.inputs[0].shape[1:]
    if len(model.inputs) != 1 or None in shape:
        raise UsageError(
            f"model {model.name!r} takes images of shape {shape}: a phone file needs one static size; build it with "
            "input_shape=(height, width, channels)"
        )
    if shape[-1] != 3 or len(preprocessing.mean) != 3:
        raise UsageError(f"model {model.name!r} takes {shape[-1]} channels: phone files take RGB images, of three")
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        raise UsageError(
            f"model {model.name!r} has no classifier and gives no embedding: build it with include_top=True, or with "
            "pooling='avg'"
        )
    for layer in model.layers:
        if not all(np.isfinite(weight).all() for weight in layer.get_weights()):
            raise InputError(
                f"model {model.name!r}: weights of layer {layer.name!r} are no numbers: they are damaged, or training "
                "diverged"
            )
    answers_with(model)
    return preprocessing


def answers_with(model: keras.Model) -> str:
    """What a network's vector is: a class's "softmax", "sigmoid" or "logits", or an "embedding".

    An embedding is what neither has our head nor ends in one of the two. Raises UsageError for another activation.
    """
    last = model.outputs[0]._keras_history.operation
    while isinstance(last, Bound):
        last = last.input._keras_history.operation
    activation = "softmax" if isinstance(last, keras.layers.Softmax) else _activation(last)
    if activation in ("softmax", "sigmoid"):
        return activation
    if HEAD not in {layer.name for layer in model.layers}:
        return EMBEDDING
    if activation != "linear":
        raise UsageError(f"model {model.name!r} ends in {activation!r}: softmax, sigmoid and none can be exported")
    return "logits"


def _activation(layer: keras.layers.Layer) -> str:
    function = getattr(layer, "activation", None)
    return getattr(function, "__name__", str(function)) if function is not None else "linear"


def name_of_answer(model: keras.Model) -> str:
    """What a file calls its output."""
    return EMBEDDING if answers_with(model) == EMBEDDING else "scores"


def fold(model: keras.Model, normalisation: Normalisation) -> keras.Model:
    """A float32 copy of a model, batch 1, whose first convolution does what `normalisation` leaves of its own.

    The copy takes (pixels - shift) * scale in RGB order, static [1, height, width, channels], and answers as the model
    does on preprocessed images; exact but where the stem's zero padding is seen, and there too for
    `exact_normalisation`. Of a model that `check_exportable` lets pass, or one without its classifier.
    """
    preprocessing = preprocessing_of(model)

    def in_float32(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = {**layer.get_config(), "dtype": "float32", "trainable": True}  # as if never frozen
        if layer.name == STEM:
            config["use_bias"] = True
        return layer.__class__.from_config(config)

    image = keras.Input(batch_shape=(1, *model.inputs[0].shape[1:]), name="image")
    with recursion_room(len(model.layers)):
        copy = keras.models.clone_model(model, input_tensors=image, clone_function=in_float32)
    for layer in model.layers:
        if layer.weights and layer.name != STEM:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    stem = model.get_layer(STEM)
    weights = stem.get_weights()
    bias = weights[1] if stem.use_bias else np.zeros(weights[0].shape[-1], np.float32)
    copy.get_layer(STEM).set_weights(_fold_into(weights[0], bias, preprocessing, normalisation))
    return copy


def _fold_into(
    kernel: np.ndarray, bias: np.ndarray, preprocessing: Preprocessing, done: Normalisation
) -> list[np.ndarray]:
    """The kernel [kh, kw, channels, filters] and bias that read (p - shift) * scale in RGB order."""
    kernel = kernel.astype(np.float64)
    if preprocessing.order == "bgr":
        kernel = kernel[:, :, ::-1]
    wanted = exact_normalisation(preprocessing)
    # wanted: (p - w) * s; done: y = (p - d) * t; so (p - w) * s = y * (s / t) + (d - w) * s.
    scale = np.asarray(wanted.scale, np.float64)
    factor = scale / np.asarray(done.scale, np.float64)
    constant = (np.asarray(done.shift, np.float64) - np.asarray(wanted.shift, np.float64)) * scale
    bias = bias + np.einsum("hwcf,c->f", kernel, constant)
    return [(kernel * factor[:, None]).astype(np.float32), bias.astype(np.float32)]


def concrete_function(
    copy: keras.Model, normalisation: Normalisation | None, *, whole_numbers: bool = False
) -> Callable[..., Any]:
    """The TensorFlow function image -> scores, or embedding, of a folded copy, float32, static shape.

    With `normalisation` it takes pixels 0..255; without, what `fold` describes (the format does the rest).
    whole_numbers: the graph says that pixels, and pixels less a whole number, are bytes of scale 1.
    """

    def bytes_from(low: float, x: tf.Tensor) -> tf.Tensor:
        return tf.quantization.fake_quant_with_min_max_args(x, low, low + 255) if whole_numbers else x

    def answer(image: tf.Tensor) -> dict[str, tf.Tensor]:
        if normalisation is not None:
            image = bytes_from(0.0, image)
            shift, scale = np.asarray(normalisation.shift, np.float32), np.asarray(normalisation.scale, np.float32)
            image = image - (shift[0] if (shift == shift[0]).all() else shift)
            image = image if (scale == 1).all() else image * scale
            image = bytes_from(-float(shift[0]), image)
        return {name: copy(image, training=False)}

    name = name_of_answer(copy)
    signature = tf.TensorSpec(copy.inputs[0].shape, tf.float32, name="image")
    return tf.function(answer, input_signature=[signature]).get_concrete_function()
