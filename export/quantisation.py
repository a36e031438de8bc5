"""Training for whole numbers in Keras itself: the simplified graph computes as its int8 file will, and learns so.

Kernels are rounded a filter at a time, every output that a file keeps is rounded in a range that is learned with the
weights, and gradients pass as if nothing were rounded. Any graph that `simplify` gives can be trained: pre-activation
and highway networks too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.depth import recursion_room
from keras_resnet.export.calibration import PROBABILITIES, Calibration
from keras_resnet.export.graph import WEIGHTED, rebuild
from keras_resnet.pointwise import guard

LEAST_REACH = 0.05  # of the range that was measured: a learned one shrinks no further
STEPS = 255  # of a range
PRUNED = 0.25  # a kernel with so many zeros was pruned, and its zeros stay


class Rounded(keras.layers.Wrapper):
    """A convolution or dense layer that computes with its kernel rounded to 8 bits, a scale a filter.

    kept: 1 where a weight may differ from 0, of the kernel's shape; None: everywhere.
    """

    def __init__(self, layer: keras.layers.Layer, kept: np.ndarray | None = None, **keywords: Any) -> None:
        super().__init__(layer, name=layer.name, dtype="float32", **keywords)
        self.kept = kept

    @property
    def rounded_kernel(self) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.layer.weights[0])
        kernel = kernel if self.kept is None else kernel * self.kept
        if isinstance(self.layer, keras.layers.DepthwiseConv2D):
            return kernel  # one weight a filter: it is its own largest, and stays
        # The scale of the converter: the largest weight divided by 127.
        largest = tf.stop_gradient(tf.reduce_max(tf.abs(kernel), axis=list(range(kernel.shape.rank - 1))))
        largest = tf.maximum(largest, np.finfo(np.float32).tiny ** 0.5)
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(kernel, -largest, largest, narrow_range=True)

    def call(self, x: Any) -> Any:
        return self.layer.stateless_call([self.rounded_kernel, self.layer.weights[1]], [], x)[0]


class LearnedBound(keras.layers.Layer):
    """Rounds to 255 steps of a range that gradients widen and narrow, as shares of the one that it starts with.

    They see what is cut off, and that a narrower range has finer steps (LSQ, arXiv:1902.08153, section 2.1).
    """

    def __init__(self, low: float, high: float, **keywords: Any) -> None:
        super().__init__(dtype="float32", **keywords)
        self.low, self.high = low, high

    def build(self, shape: Any) -> None:
        self.reach = self.add_weight(shape=(2,), initializer="ones", name="reach")

    @property
    def bounds(self) -> tuple[tf.Tensor, tf.Tensor]:
        reach = tf.maximum(tf.convert_to_tensor(self.reach), LEAST_REACH)
        return self.low * reach[0], self.high * reach[1]

    def call(self, x: Any) -> Any:
        low, high = self.bounds
        fixed = tf.stop_gradient(low), tf.stop_gradient(high)
        rounded = tf.stop_gradient(tf.quantization.fake_quant_with_min_max_vars(x, *fixed))
        cut, step = tf.minimum(tf.maximum(x, low), high), (high - low) / STEPS
        tracked = cut + step * tf.stop_gradient((rounded - cut) / step)
        return rounded + (tracked - tf.stop_gradient(tracked))  # the value of the first, to the bit; its gradient


def learnable(graph: keras.Model, start: Calibration) -> keras.Model:
    """A network of any batch size that computes as the int8 file of a simplified graph would, and can be trained.

    start: the ranges and weights that it begins with, those of calibration; a pruned kernel begins as it is.
    """

    def call(layer: keras.layers.Layer, x: Any) -> Any:
        copy = guard(layer.__class__.from_config(layer.get_config()))
        if isinstance(layer, WEIGHTED):
            kernel, (rounded, bias) = layer.get_weights()[0], start.weights[layer.name]
            kept = (kernel != 0).astype(np.float32)
            is_pruned = kept.mean() < 1 - PRUNED
            copy = Rounded(copy, kept if is_pruned else None)
            y = copy(x)
            copy.set_weights([kernel if is_pruned else rounded, bias])
        else:
            y = copy(x)
        if layer.name not in start.ranges:
            return y
        bound = LearnedBound(*start.ranges[layer.name], name=f"{layer.name}_bound")
        bound.trainable = start.ranges[layer.name] != PROBABILITIES  # which the format prescribes
        return bound(y)

    image = keras.Input(graph.inputs[0].shape[1:], name="image")
    with recursion_room(2 * len(graph.layers)):
        return keras.Model(image, rebuild(graph, image, call), name=graph.name)


def learned(model: keras.Model) -> Calibration:
    """What a trained `learnable` network has come to: its ranges, its rounded kernels and its biases."""
    layers: Mapping[str, Any] = {layer.name: layer for layer in model.layers}
    ranges = {
        name.removesuffix("_bound"): (float(layer.bounds[0]), float(layer.bounds[1]))
        for name, layer in layers.items()
        if isinstance(layer, LearnedBound)
    }
    weights = {
        name: (np.asarray(layer.rounded_kernel), np.asarray(layer.layer.weights[1]))
        for name, layer in layers.items()
        if isinstance(layer, Rounded)
    }
    return Calibration(ranges, weights)
