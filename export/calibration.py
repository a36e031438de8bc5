"""Which images measure a network for integers, and what they say: a range an activation, and weights that are rounded
so that the network's answers change least.

Computed once on the simplified graph, whatever the format: layer by layer, the float network and the one that is
quantised so far run side by side over the same images, so that each layer is rounded for what it will really read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.export.graph import (
    WEIGHTED,
    bounded_layers,
    consumers,
    is_relu,
    rectified_sum,
    sole_readers,
    sources,
)
from keras_resnet.export.kernels import rounded_weights, with_weights
from keras_resnet.export.rounding import clipped_range
from keras_resnet.export.tuning import tuned_ranges
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.data import Data, Images, open_images

COUNT = 100  # from some ten images up the count is noise
SAMPLE = 400_000  # values of an activation that its range is chosen on
BATCH = 16
MARGIN = 1.1  # of the classifier's answers, beyond those on the calibration images
DARK = 32  # of 255: below it nearly everything is black
PROBABILITIES = (0.0, 255 / 256)  # what the formats prescribe behind a softmax or sigmoid


@dataclass(frozen=True)
class Effort:
    """How long weights are rounded and ranges moved.

    patches: a convolution, that its inputs are measured on; 0 rounds to the nearest. steps: of moving the ranges.
    """

    patches: int
    steps: int


EFFORTS: Mapping[str, Effort] = {"low": Effort(0, 0), "normal": Effort(8192, 0), "high": Effort(32768, 24)}


@dataclass(frozen=True)
class Calibration:
    """What integers need, by layer of the simplified graph: (low, high) of its output; its rounded kernel and bias."""

    ranges: Mapping[str, tuple[float, float]]
    weights: Mapping[str, tuple[np.ndarray, np.ndarray]]


def calibration_pixels(source: Data, preprocessing: Preprocessing, size: tuple[int, int]) -> tuple[Images, np.ndarray]:
    """A class-balanced, seeded sample of at most 100 images, and its pixels, uint8 [n, height, width, 3].

    Raises InputError where there are none, where they are not of `size` (height, width) after preprocessing, all of one
    colour, or nearly black.
    """
    images = open_images(source)
    if not len(images):
        raise InputError(f"calibration images of {images.name!r}: there are none; give images like those the app sees")
    sample = images.balanced_sample(COUNT)
    pixels = sample.pixels(preprocessing)
    if pixels.shape[1:3] != size:
        raise InputError(
            f"calibration images of {images.name!r} are {pixels.shape[1:3]} pixels, the network takes {size}"
        )
    if (pixels == pixels[:, :1, :1]).all():
        raise InputError(
            f"calibration images of {images.name!r} are all of one colour: ranges cannot be measured on them"
        )
    if np.percentile(pixels, 99) < DARK:
        raise InputError(
            f"calibration images of {images.name!r} are nearly black (99 of 100 values are below {DARK} of 255): "
            "ranges cannot be measured on them; give images like those the app sees"
        )
    return sample, pixels


def check_apart(calibration: np.ndarray, judged: np.ndarray, name: str) -> None:
    """Raise InputError where a file would be judged on images that it was calibrated on; both uint8 [n, h, w, 3]."""
    known = {hashlib.sha256(image.tobytes()).digest() for image in calibration}
    shared = [i for i, image in enumerate(judged) if hashlib.sha256(image.tobytes()).digest() in known]
    if shared:
        raise InputError(
            f"{len(shared)} images of {name!r} (the first is number {shared[0]}) are also calibration images: what a "
            "file is judged on must be new to it; give other images"
        )


def calibrate(
    graph: keras.Model, inputs: np.ndarray, *, bits: int = 8, effort: str = "normal", grid: str = "steps"
) -> Calibration:
    """Ranges and rounded weights of a simplified graph, measured on inputs as it takes them, float32 [n, h, w, 3].

    bits: of activations; with more than 8 they are taken as exact. effort: a name of `EFFORTS`. The ranges leave the
    least squared error (`clipped_range`); weights are rounded by `round_weights` on what the quantised layers in front
    give, and every bias corrected by the mean error that this leaves; with effort "high" all ranges then move together
    (`tuned_ranges`). grid: the values that weights may have, a name of `GRIDS`. Leaves the graph as it is.
    Raises InputError where an activation is not finite.
    """
    rng = np.random.default_rng(0)
    ranged = set(bounded_layers(graph))
    unread = consumers(graph)
    readers = sole_readers(graph)
    ranges: dict[str, tuple[float, float]] = {}
    weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    exact: dict[str, np.ndarray] = {}
    rounded: dict[str, np.ndarray] = {}
    for layer in graph.layers:
        name, read = layer.name, sources(layer)
        if isinstance(layer, keras.layers.InputLayer):
            exact[name] = rounded[name] = _stored(inputs)
            continue
        y = _map(layer, [exact[source] for source in read])
        if not np.isfinite(y).all():
            raise InputError(
                f"layer {name!r} gives numbers that are not finite on the calibration images: the network's weights "
                "are damaged, or its training diverged"
            )
        answer: Callable[..., Any] = layer
        if isinstance(layer, WEIGHTED):
            weights[name] = rounded_weights(layer, rounded[read[0]], grid, EFFORTS[effort].patches, rng)
            answer = with_weights(layer, *weights[name])
        if name in ranged and bits == 8:
            ranges[name] = _range(graph, layer, y, readers, exact)
            answer = _rounding(answer, *ranges[name])
        unread.subtract(read)
        spent = [source for source in set(read) if not unread[source]]
        for source in spent:  # before there are more: the first block's sums decide how much memory it takes
            del exact[source]
        z = _map(answer, [rounded[source] for source in read])
        for source in spent:
            del rounded[source]
        exact[name], rounded[name] = y, z
    steps = EFFORTS[effort].steps if ranges else 0
    ranges = tuned_ranges(graph, ranges, weights, inputs, steps=steps, fixed=PROBABILITIES)
    return Calibration(ranges, weights)


def _map(function: Callable[..., Any], inputs: list[np.ndarray]) -> np.ndarray:
    """A layer's output, batch by batch, so that only what is kept takes memory."""
    whole = None
    for start in range(0, len(inputs[0]), BATCH):
        arguments = [tf.constant(x[start : start + BATCH], tf.float32) for x in inputs]
        part = _stored(np.asarray(function(arguments[0] if len(arguments) == 1 else arguments)))
        if whole is None:
            whole = np.empty((len(inputs[0]), *part.shape[1:]), part.dtype)
        whole = whole.astype(np.result_type(whole, part), copy=False)
        whole[start : start + BATCH] = part
    assert whole is not None
    return whole


def _stored(x: np.ndarray) -> np.ndarray:
    """Half the memory where its range allows: eleven bits are plenty to measure eight."""
    return x.astype(np.float16) if np.abs(x).max() < 60_000 else x


def _rounding(function: Callable[..., Any], low: float, high: float) -> Callable[..., Any]:
    return lambda x: tf.quantization.fake_quant_with_min_max_args(function(x), low, high)


def _range(
    graph: keras.Model,
    layer: keras.layers.Layer,
    y: np.ndarray,
    readers: Mapping[str, keras.layers.Layer],
    known: Mapping[str, np.ndarray],
) -> tuple[float, float]:
    """The range of what a layer gives; readers: the layer that reads it, none for the answer."""
    if isinstance(layer, keras.layers.Activation) and not is_relu(layer) and y.min() >= 0 and y.max() <= 1:
        return PROBABILITIES
    if isinstance(layer, keras.layers.Dense):
        reader = readers.get(layer.name)
        return _range_of_scores(y.astype(np.float32), None if reader is None else reader.activation)
    values, other = _few(y), _added(graph, layer, readers, known)
    return clipped_range(values if other is None else np.maximum(values, -_few(other)))


def _few(y: np.ndarray) -> np.ndarray:
    """Some values of an activation, float32, always from the same places."""
    values = y.reshape(-1)
    step = max(1, len(values) // SAMPLE) | 1  # odd, so that no channel is left out
    return values[::step].astype(np.float32)


def _added(
    graph: keras.Model,
    layer: keras.layers.Layer,
    readers: Mapping[str, keras.layers.Layer],
    known: Mapping[str, np.ndarray],
) -> np.ndarray | None:
    """What is added to a layer's output before a ReLU, if that is known: below its negative, the ReLU makes 0 of all.

    Such values need no place in the range: the steps of the others become finer.
    """
    total = rectified_sum(layer.name, readers)
    if total is None:
        return None
    others = [graph.get_layer(name) for name in sources(total) if name != layer.name]
    if len(others) != 1:
        return None
    other = known.get(others[0].name)
    if other is None:  # the shortcut's convolution, which reads what is there already
        read = sources(others[0])
        if all(name in known for name in read):
            return _map(others[0], [known[name] for name in read])
    return other


def _range_of_scores(y: np.ndarray, activation: Callable[..., Any] | None) -> tuple[float, float]:
    """The range of the classifier's answers, [n, classes], that leaves the least squared error of their probabilities.

    Behind a softmax the low ones are all nothing, and finer steps tell the best ones apart. Without one, all of it. The
    high ones are cut little: images that are new may have higher ones, and what is cut alike is told apart no more.
    """
    low, high = min(float(y.min()), 0.0) * MARGIN, max(float(y.max()), 1e-6) * MARGIN
    if activation is None:
        return low, high
    wanted = activation(tf.constant(y))
    candidates = [(low * a, high * b) for a in np.linspace(1, 0.1, 10) for b in np.linspace(1, 0.8, 3)]

    def error(bounds: tuple[float, float]) -> float:
        rounded = tf.quantization.fake_quant_with_min_max_args(tf.constant(y), *bounds)
        return float(tf.reduce_mean(tf.square(activation(rounded) - wanted)))

    return min(candidates, key=error)
