"""Which images measure a network for integers, and what they say: a range an activation, and weights that are rounded
so that the network's answers change least.

Computed once on the simplified graph, whatever the format: layer by layer, the float network and the one that is
quantised so far run side by side over the same images, so that each layer makes up for what those before it did.
"""

from __future__ import annotations

import hashlib
import os
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
from keras_resnet.export.rounding import clipped_range, round_weights
from keras_resnet.export.tuning import tuned_ranges
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.data import Images, open_images

COUNT = 100  # from some ten images up the count is noise
SAMPLE = 400_000  # values of an activation that its range is chosen on
BATCH = 16
MARGIN = 1.1  # of the classifier's answers, beyond those on the calibration images
CLUSTERS = 16  # values that a filter of a clustered network has
DARK = 32  # of 255: below it nearly everything is black
PROBABILITIES = (0.0, 255 / 256)  # what the formats prescribe behind a softmax or sigmoid


@dataclass(frozen=True)
class Effort:
    """How long weights are rounded and ranges moved.

    patches: a convolution, that its inputs are measured on; 0 rounds to the nearest. steps: of moving the ranges.
    """

    patches: int
    steps: int


EFFORTS: Mapping[str, Effort] = {"low": Effort(0, 0), "normal": Effort(4096, 0), "high": Effort(32768, 24)}


@dataclass(frozen=True)
class Calibration:
    """What integers need, by layer of the simplified graph: (low, high) of its output; its rounded kernel and bias."""

    ranges: Mapping[str, tuple[float, float]]
    weights: Mapping[str, tuple[np.ndarray, np.ndarray]]


def calibration_pixels(
    source: str | os.PathLike[str] | Images, preprocessing: Preprocessing, size: tuple[int, int]
) -> tuple[Images, np.ndarray]:
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


def calibrate(graph: keras.Model, inputs: np.ndarray, *, bits: int = 8, effort: str = "normal") -> Calibration:
    """Ranges and rounded weights of a simplified graph, measured on inputs as it takes them, float32 [n, h, w, 3].

    bits: of activations; with more than 8 they are taken as exact. effort: a name of `EFFORTS`. The ranges leave the
    least squared error (`clipped_range`); weights are rounded by `round_weights` on what the quantised layers in front
    give, and every bias corrected by the mean error that this leaves; with effort "high" all ranges then move together
    (`tuned_ranges`).
    Leaves the graph as it is.
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
        was, now = [exact[s] for s in read], [rounded[s] for s in read]
        y = _map(layer, was)
        if not np.isfinite(y).all():
            raise InputError(
                f"layer {name!r} gives numbers that are not finite on the calibration images: the network's weights "
                "are damaged, or its training diverged"
            )
        answer: Callable[..., Any] = layer
        if isinstance(layer, WEIGHTED):
            weights[name] = _rounded_weights(layer, now[0], EFFORTS[effort].patches, rng)
            answer = _with_weights(layer, *weights[name])
        if name in ranged and bits == 8:
            ranges[name] = _range(layer, _that_counts(graph, layer, y, readers, exact), readers.get(name))
            answer = _rounding(answer, *ranges[name])
        z = _map(answer, now)
        exact[name], rounded[name] = y, z
        for source in read:
            unread[source] -= 1
            if not unread[source]:
                del exact[source], rounded[source]
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


def _with_weights(layer: keras.layers.Layer, kernel: np.ndarray, bias: np.ndarray) -> Callable[..., Any]:
    """A layer with other weights, which leaves the layer as it is."""
    return lambda x: layer.stateless_call([kernel, bias], [], x)[0]


def _rounding(function: Callable[..., Any], low: float, high: float) -> Callable[..., Any]:
    return lambda x: tf.quantization.fake_quant_with_min_max_args(function(x), low, high)


def _that_counts(
    graph: keras.Model,
    layer: keras.layers.Layer,
    y: np.ndarray,
    readers: Mapping[str, keras.layers.Layer],
    known: Mapping[str, np.ndarray],
) -> np.ndarray:
    """What a layer gives, cut off where a ReLU behind its sum with another value makes 0 of it whatever it is.

    Such values need no place in the range: the steps of the others become finer.
    """
    total = rectified_sum(layer.name, readers)
    if total is None:
        return y
    others = [graph.get_layer(name) for name in sources(total) if name != layer.name]
    if len(others) != 1:
        return y
    other = known.get(others[0].name)
    if other is None:  # the shortcut's convolution, which reads what is there already
        read = sources(others[0])
        if any(name not in known for name in read):
            return y
        other = _map(others[0], [known[name] for name in read])
    return np.maximum(y, -other)


def _range(layer: keras.layers.Layer, y: np.ndarray, reader: keras.layers.Layer | None) -> tuple[float, float]:
    """The range of what a layer gives; reader: a layer that reads it, None for the answer."""
    if isinstance(layer, keras.layers.Activation) and not is_relu(layer) and y.min() >= 0 and y.max() <= 1:
        return PROBABILITIES
    if isinstance(layer, keras.layers.Dense):
        return _range_of_scores(y.astype(np.float32), None if reader is None else reader.activation)
    values = y.reshape(-1)
    step = max(1, len(values) // SAMPLE) | 1  # odd, so that no channel is left out
    return clipped_range(values[::step].astype(np.float32))


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


def _rounded_weights(
    layer: keras.layers.Layer, x: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a layer that reads x: the kernel rounded, the bias corrected by the mean error of that.

    Not by what ranges cut off before: that is much in few images, and most images would get what they do not lack.
    """
    kernel, bias = layer.get_weights()
    rounded = _rounded_kernel(layer, kernel, x, count, rng)
    mean = tf.constant(x.mean(axis=0, keepdims=True, dtype=np.float32))  # convolutions are linear: one image will do
    error = np.asarray(_with_weights(layer, kernel - rounded, np.zeros_like(bias))(mean))
    return rounded, bias + error.mean(axis=tuple(range(error.ndim - 1)))


def _rounded_kernel(
    layer: keras.layers.Layer, kernel: np.ndarray, x: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """The kernel of a layer that reads x, each filter on its grid of 255 steps."""
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return kernel  # one weight a filter: it is its own largest, and stays
    if not count or _is_clustered(kernel):
        scale = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127
        scale[scale == 0] = 1
        return (np.rint(kernel / scale) * scale).astype(np.float32)
    if isinstance(layer, keras.layers.Dense):
        seen, groups = x.astype(np.float32), 1
    else:
        seen, groups = _patches(layer, x, max(count, int(np.prod(kernel.shape[:3]))), rng), layer.groups
    result = np.empty_like(kernel)
    inputs, outputs = kernel.shape[-2], kernel.shape[-1] // groups
    for group in range(groups):
        own = slice(group * outputs, (group + 1) * outputs)
        columns = seen[..., group * inputs : (group + 1) * inputs].reshape(len(seen), -1)
        columns = columns - columns.mean(axis=0)  # the mean is the bias's to correct
        moments = columns.T @ columns / len(columns)
        flat = kernel[..., own].reshape(-1, outputs)
        result[..., own] = round_weights(flat, moments).reshape(*kernel.shape[:-1], outputs)
    return result


def _is_clustered(kernel: np.ndarray) -> bool:
    """Whether each filter has a few values only, which rounding for the answers' sake would make many."""
    filters = kernel.reshape(-1, kernel.shape[-1]).T
    return filters.shape[1] > CLUSTERS and all(len(np.unique(weights)) <= CLUSTERS for weights in filters)


def _patches(layer: keras.layers.Conv2D, x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """What a convolution reads at `count` random places of x: float32 [count, kernel height, width, channels]."""
    (height, width), (kh, kw), (sh, sw) = x.shape[1:3], layer.kernel_size, layer.strides
    if layer.padding == "same":  # TensorFlow's: what is odd goes behind
        rows, columns = -(-height // sh), -(-width // sw)
        top, left = max((rows - 1) * sh + kh - height, 0) // 2, max((columns - 1) * sw + kw - width, 0) // 2
    else:
        rows, columns, top, left = (height - kh) // sh + 1, (width - kw) // sw + 1, 0, 0
    total = len(x) * rows * columns
    picked = np.sort(rng.choice(total, min(count, total), replace=False))
    image, row, column = np.unravel_index(picked, (len(x), rows, columns))
    patches = np.zeros((len(picked), kh, kw, x.shape[-1]), np.float32)
    for i in range(kh):
        for j in range(kw):
            r, c = row * sh + i - top, column * sw + j - left
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            patches[inside, i, j] = x[image[inside], r[inside], c[inside]]
    return patches
