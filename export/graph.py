"""The folded network as a phone computes it: convolutions with a bias, activations, sums, and nothing else.

Every number format is made from this graph, so that its layers are one to one the operations of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_resnet.depth import recursion_room
from keras_resnet.layers import Bound

WEIGHTED = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
# These hand their input on: the format's range is that of what they read.
MOVING = (keras.layers.ZeroPadding2D, keras.layers.MaxPooling2D, keras.layers.InputLayer)
_GONE = (keras.layers.Identity, keras.layers.Dropout, Bound)


def sources(layer: keras.layers.Layer) -> list[str]:
    """Names of the layers that a layer of a Functional model reads."""
    return [tensor._keras_history.operation.name for tensor in layer._inbound_nodes[0].input_tensors]


def consumers(model: keras.Model) -> Counter[str]:
    """How often each layer is read by another."""
    return Counter(name for layer in model.layers for name in sources(layer))


def sole_readers(graph: keras.Model) -> dict[str, keras.layers.Layer]:
    """By the name of each layer that one other layer alone reads: that layer."""
    count = consumers(graph)
    return {source: layer for layer in graph.layers for source in sources(layer) if count[source] == 1}


def rectified_sum(name: str, readers: Mapping[str, keras.layers.Layer]) -> keras.layers.Layer | None:
    """The sum that alone reads a layer, where a ReLU alone reads the sum: part of what goes in comes to nothing.

    readers: what `sole_readers` gives.
    """
    reader = readers.get(name)
    return reader if isinstance(reader, keras.layers.Add) and is_relu(readers.get(reader.name)) else None


def bounded_layers(graph: keras.Model) -> list[str]:
    """Layers of a simplified graph whose output needs a range of its own, in the order of computing.

    Not those that move numbers about, nor those whose only reader is a ReLU, which the file computes together.
    """
    read_by: dict[str, list[keras.layers.Layer]] = {}
    for layer in graph.layers:
        for name in sources(layer):
            read_by.setdefault(name, []).append(layer)

    def is_fused(layer: keras.layers.Layer) -> bool:
        readers = read_by.get(layer.name, [])
        return len(readers) == 1 and is_relu(readers[0]) and isinstance(layer, (*WEIGHTED, keras.layers.Add))

    return [layer.name for layer in graph.layers if not isinstance(layer, MOVING) and not is_fused(layer)]


def is_relu(layer: keras.layers.Layer | None) -> bool:
    return isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.relu


def rebuild(model: Any, image: Any, call: Callable[[Any, Any], Any]) -> Any:
    """What a Functional model answers to `image` where each layer is applied by call(layer, what it reads)."""
    tensors: dict[str, Any] = {}
    for layer in model.layers:
        read = [tensors[name] for name in sources(layer)]
        first = isinstance(layer, keras.layers.InputLayer)
        tensors[layer.name] = image if first else call(layer, read[0] if len(read) == 1 else read)
    return tensors[model.outputs[0]._keras_history.operation.name]


def learned_ranges(model: keras.Model) -> dict[str, tuple[float, float]]:
    """The ranges that a network holds since it was trained for whole numbers, by layer; empty for any other."""
    return {sources(layer)[0]: (layer.low, layer.high) for layer in model.layers if isinstance(layer, Bound)}


def quantised(
    graph: keras.Model,
    ranges: Mapping[str, tuple[float, float]],
    weights: Mapping[str, tuple[np.ndarray, np.ndarray]],
    carrier: str | None = None,
) -> keras.Model:
    """A copy of a simplified graph that rounds the output of each named layer to its (low, high).

    weights: by layer, kernel and bias that take the place of its own. carrier: the name of the layer that says what its
    images need; with it the copy is a network that stands by itself, of any batch size.
    """
    shape = graph.inputs[0].shape
    image = keras.Input(batch_shape=shape if carrier is None else (None, *shape[1:]), dtype="float32", name="image")

    def call(layer: keras.layers.Layer, x: Any) -> Any:
        copy = layer.__class__.from_config(layer.get_config())
        y = copy(x)
        copy.set_weights(weights.get(layer.name) or layer.get_weights())
        return Bound(*ranges[layer.name], name=f"{layer.name}_bound", dtype="float32")(y) if layer.name in ranges else y

    with recursion_room(2 * len(graph.layers)):
        x = image if carrier is None else keras.layers.Identity(name=carrier, dtype="float32")(image)
        return keras.Model(image, rebuild(graph, x, call), name=graph.name)


def simplify(model: keras.Model) -> keras.Model:
    """A copy of an inference graph in which each layer is one operation of a phone.

    BatchNormalization goes into the convolution in front of it; where there is none it becomes a 1x1 depthwise
    convolution, as does taking every second position, for which no accelerated operation exists. Activations stand
    apart from what they follow; learned ranges are dropped. Answers as the network does, up to float32's rounding.
    """
    read = consumers(model)
    layers = {layer.name: layer for layer in model.layers}
    merged: dict[str, keras.layers.Layer] = {}  # convolution -> the normalisation that goes into it
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            (source,) = sources(layer)
            if isinstance(layers[source], WEIGHTED) and read[source] == 1:
                merged[source] = layer
    gone = {layer.name for layer in merged.values()}
    gone |= {layer.name for layer in model.layers if isinstance(layer, _GONE)}

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name in gone:
            return keras.layers.Identity(name=layer.name)
        subsamples = isinstance(layer, keras.layers.AveragePooling2D) and layer.pool_size == (1, 1)
        if subsamples or isinstance(layer, keras.layers.BatchNormalization):
            strides = layer.strides if subsamples else (1, 1)
            return keras.layers.DepthwiseConv2D(1, strides=strides, data_format="channels_last", name=layer.name)
        config = layer.get_config()
        if isinstance(layer, WEIGHTED):
            config |= {"use_bias": True, "activation": "linear"}
        return layer.__class__.from_config(config)

    def call(layer: keras.layers.Layer, x: Any, **_: Any) -> Any:
        if layer.name in gone:
            return x
        y = layer(x)
        activation = getattr(layers[layer.name], "activation", keras.activations.linear)
        if not isinstance(layer, WEIGHTED):
            return y
        if activation is keras.activations.linear:
            return y
        return keras.layers.Activation(activation, name=f"{layer.name}_activation")(y)

    with recursion_room(len(model.layers)):
        copy = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in copy.layers:
        if isinstance(layer, WEIGHTED):
            layer.set_weights(_weights(layers[layer.name], merged.get(layer.name), layer))
    return copy


def _weights(
    layer: keras.layers.Layer, norm: keras.layers.Layer | None, target: keras.layers.Layer
) -> list[np.ndarray]:
    """Kernel and bias of a layer, with those of the normalisation that follows it."""
    if isinstance(layer, keras.layers.AveragePooling2D):
        shape = target.kernel.shape
        return [np.ones(shape, np.float32), np.zeros(shape[2], np.float32)]
    if isinstance(layer, keras.layers.BatchNormalization):
        gain, offset = affine(layer)
        return [gain.reshape(1, 1, -1, 1).astype(np.float32), offset.astype(np.float32)]
    kernel = layer.get_weights()[0]
    bias = layer.get_weights()[1] if layer.use_bias else np.zeros(kernel.shape[-1], np.float32)
    if norm is None:
        return [kernel, bias]
    gain, offset = affine(norm)
    return [(kernel * gain).astype(np.float32), (bias * gain + offset).astype(np.float32)]


def affine(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """What a BatchNormalization does at inference, channel by channel: x * gain + offset; float64."""
    values = {variable.name: np.asarray(variable.value, np.float64) for variable in norm.weights}
    gain = values.get("gamma", 1.0) / np.sqrt(values["moving_variance"] + norm.epsilon)
    return gain, values.get("beta", 0.0) - values["moving_mean"] * gain
