"""Kernels of convolutions and dense layers, rounded to the values that a number format has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.export.rounding import Nearest, half, palette, round_weights, steps

CLUSTERS = 16  # values that a filter of a clustered network has
UNPACKED = 2048  # weights of a tensor that coremltools leaves alone, up to
LEAST = 1e-6  # of the mean importance, that a weight has which no calibration image reaches
AT_ONCE = 2048  # places of an activation
PER_BLOCK, PER_TABLE = 32, 16  # inputs that share a scale of 4 bits, filters that share a palette of 16


@dataclass(frozen=True)
class Grid:
    """The values that weights may have: of a kernel, flat [inputs, outputs], its channels and the importance of each.

    takes: which kernels, [..., channels, outputs], a format packs in this way.
    """

    values: Callable[[np.ndarray, int, np.ndarray], Nearest]
    takes: Callable[[np.ndarray], bool] = lambda kernel: kernel.size > UNPACKED


def _of_a_palette(bits: int, group: int = 0) -> Callable[[np.ndarray, int, np.ndarray], Nearest]:
    return lambda flat, _, importance: palette(flat, importance, 1 << bits, group)


GRIDS: Mapping[str, Grid] = {
    "steps": Grid(lambda flat, *_: steps(flat), lambda _: True),  # of 8 bits, a scale a filter
    "blocks": Grid(  # of 4 bits, a scale for so many channels of a filter
        lambda flat, channels, _: steps(flat, 7, np.arange(len(flat)) % channels // PER_BLOCK),
        lambda kernel: kernel.size > UNPACKED and kernel.shape[-2] % PER_BLOCK == 0,
    ),
    **{f"palette{bits}": Grid(_of_a_palette(bits)) for bits in (8, 6, 4)},
    **{  # a palette for so many filters
        f"palettes{bits}": Grid(
            _of_a_palette(bits, PER_TABLE), lambda kernel: kernel.size > UNPACKED and kernel.shape[-1] % PER_TABLE == 0
        )
        for bits in (8, 6, 4)
    },
    "half": Grid(lambda flat, _, importance: half(flat, importance)),
}


def rounded_weights(
    layer: keras.layers.Layer, x: np.ndarray, grid: str, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a layer that reads x: the kernel rounded, the bias corrected by the mean error of that.

    grid: a name of `GRIDS`; count: of places in x that the kernel is rounded by, 0 to round to the nearest.
    Not by what ranges cut off before: that is much in few images, and most images would get what they do not lack.
    """
    kernel, bias = layer.get_weights()
    rounded = _rounded_kernel(layer, kernel, x, grid, count, rng)
    mean = tf.constant(x.mean(axis=0, keepdims=True, dtype=np.float32))  # convolutions are linear: one image will do
    error = np.asarray(with_weights(layer, kernel - rounded, np.zeros_like(bias))(mean))
    return rounded, bias + error.mean(axis=tuple(range(error.ndim - 1)))


def _rounded_kernel(
    layer: keras.layers.Layer, kernel: np.ndarray, x: np.ndarray, grid: str, count: int, rng: np.random.Generator
) -> np.ndarray:
    """The kernel of a layer that reads x, each weight one of the values that a grid has."""
    if isinstance(layer, keras.layers.DepthwiseConv2D) or not GRIDS[grid].takes(kernel):
        return kernel  # depthwise: one weight a filter, which is its own largest
    channels, flat = kernel.shape[-2], kernel.reshape(-1, kernel.shape[-1])
    result = np.empty_like(flat)
    if not count or (grid == "steps" and _is_clustered(kernel)):
        nearest = GRIDS[grid].values(flat, channels, np.ones_like(flat))
        for row, values in enumerate(flat):
            result[row] = nearest(row, slice(None), values)
        return result.reshape(kernel.shape)
    moments = _moments(layer, x, max(count, len(flat)), rng)
    outputs = kernel.shape[-1] // len(moments)
    importance = np.repeat(np.stack([np.diag(m) for m in moments], axis=1), outputs, axis=1)
    importance = np.maximum(importance, LEAST * importance.mean() or 1.0)
    nearest = GRIDS[grid].values(flat, channels, importance)
    for group, moment in enumerate(moments):
        own = slice(group * outputs, (group + 1) * outputs)
        result[:, own] = round_weights(flat[:, own], moment, nearest, own)
    return result.reshape(kernel.shape)


def with_weights(layer: keras.layers.Layer, kernel: np.ndarray, bias: np.ndarray) -> Callable[..., Any]:
    """A layer with other weights, which leaves the layer as it is."""
    return lambda x: layer.stateless_call([kernel, bias], [], x)[0]


def _is_clustered(kernel: np.ndarray) -> bool:
    """Whether each filter has a few values only, which rounding for the answers' sake would make many."""
    filters = kernel.reshape(-1, kernel.shape[-1]).T
    return filters.shape[1] > CLUSTERS and all(len(np.unique(weights)) <= CLUSTERS for weights in filters)


def _moments(layer: keras.layers.Layer, x: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The covariance of what a kernel reads at `count` random places of x, [inputs, inputs], for each of its groups.

    The mean is no part of it, for that is the bias's to correct.
    """
    if isinstance(layer, keras.layers.Dense):
        parts, groups = iter([x.astype(np.float32)[:, None, None]]), 1
    else:
        parts, groups = _patches(layer, x, count, rng), layer.groups
    sums, squares, total, origin = [], [], 0, None
    for part in parts:  # one behind the other: all of them would be most of the memory that an export takes
        split = [own.reshape(len(part), -1) for own in np.split(part, groups, axis=-1)]
        if origin is None:  # near the mean, so that little is lost where that is taken off the squares
            origin = [columns.mean(axis=0) for columns in split]
            sums = [np.zeros(len(one), np.float64) for one in origin]
            squares = [np.zeros((len(one), len(one)), np.float32) for one in origin]
        total += len(part)
        for group, columns in enumerate(split):
            columns = columns - origin[group]
            sums[group] += columns.sum(axis=0, dtype=np.float64)
            squares[group] += columns.T @ columns
    means = [(one / total).astype(np.float32) for one in sums]
    return [square / np.float32(total) - np.outer(mean, mean) for square, mean in zip(squares, means, strict=True)]


def _patches(layer: keras.layers.Conv2D, x: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """What a convolution reads at `count` random places of x: parts of float32 [n, kernel height, width, channels]."""
    (height, width), (kh, kw), (sh, sw) = x.shape[1:3], layer.kernel_size, layer.strides
    if layer.padding == "same":  # TensorFlow's: what is odd goes behind
        rows, columns = -(-height // sh), -(-width // sw)
        top, left = max((rows - 1) * sh + kh - height, 0) // 2, max((columns - 1) * sw + kw - width, 0) // 2
    else:
        rows, columns, top, left = (height - kh) // sh + 1, (width - kw) // sw + 1, 0, 0
    total = len(x) * rows * columns
    picked = np.sort(rng.choice(total, min(count, total), replace=False))
    for start in range(0, len(picked), AT_ONCE):
        image, row, column = np.unravel_index(picked[start : start + AT_ONCE], (len(x), rows, columns))
        patches = np.zeros((len(image), kh, kw, x.shape[-1]), np.float32)
        for i in range(kh):
            for j in range(kw):
                r, c = row * sh + i - top, column * sw + j - left
                inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
                patches[inside, i, j] = x[image[inside], r[inside], c[inside]]
        yield patches
