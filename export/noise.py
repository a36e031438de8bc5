"""Where a file departs from its network: noise over signal, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_resnet.export.concrete import exact_normalisation, fold
from keras_resnet.export.graph import MOVING, rectified_sum, simplify, sole_readers
from keras_resnet.preprocessing import preprocessing_of

IMAGES = 8  # enough: the noise of a layer is a mean over all its positions


def relative(value: np.ndarray, expected: np.ndarray) -> float:
    """Noise over signal, root mean square."""
    difference = value.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / max(float(np.mean(np.square(expected, dtype=np.float64))), 1e-30)))


def decibels(ratio: float) -> float:
    """Signal over noise in decibels, from noise over signal."""
    return float(-20 * np.log10(max(ratio, 1e-9)))


def worst(noise: dict[str, float], count: int = 3) -> dict[str, float]:
    """The layers that are farthest from the network's, worst first."""
    return dict(sorted(noise.items(), key=lambda item: -item[1])[:count])


def layer_noise(content: bytes, model: keras.Model, pixels: np.ndarray) -> dict[str, float]:
    """How far each layer's values in a .tflite file are from the network's, in the order of the file.

    content: of a file that was exported from the model; pixels: uint8 [n, height, width, 3]. Noise over signal, rms, by
    the name of the layer; in the first one is what the normalisation inside leaves at the border. Layers that move
    numbers alone are not there, nor those that go into a sum behind which a ReLU makes nothing of a part of them: what
    counts is what comes out.
    """
    from ai_edge_litert.interpreter import Interpreter

    normalisation = exact_normalisation(preprocessing_of(model))
    graph = simplify(fold(model, normalisation))
    interpreter = Interpreter(model_content=content, experimental_preserve_all_tensors=True, num_threads=1)
    interpreter.allocate_tensors()
    moving = {layer.name for layer in graph.layers if isinstance(layer, MOVING)}
    readers = sole_readers(graph)
    known = [x.name for x in graph.layers if x.name not in moving and rectified_sum(x.name, readers) is None]
    tensors = {
        name: tensor
        for name, tensor in _tensors_by_layer(interpreter, known).items()
        if tuple(tensor["shape"]) == graph.get_layer(name).output.shape
    }
    if not tensors:  # a file of other layers, or of another size
        return {}
    network = keras.Model(graph.inputs[0], [graph.get_layer(name).output for name in tensors])
    (entry,) = interpreter.get_input_details()
    squares = np.zeros((2, len(tensors)))
    shift, scale = (np.asarray(v, np.float32) for v in (normalisation.shift, normalisation.scale))
    for image in pixels:
        interpreter.set_tensor(entry["index"], as_input(image, entry)[None])
        interpreter.invoke()
        expected = keras.tree.flatten(network((image[None] - shift) * scale, training=False))
        for i, (tensor, wanted) in enumerate(zip(tensors.values(), expected, strict=True)):
            value = _real(interpreter.get_tensor(tensor["index"]), tensor["quantization"])
            wanted = np.asarray(wanted)
            squares[:, i] += np.sum((value - wanted) ** 2, dtype=np.float64), np.sum(wanted**2, dtype=np.float64)
    ratios = np.sqrt(squares[0] / np.maximum(squares[1], 1e-30))
    return dict(zip(tensors, ratios.tolist(), strict=True))


def _tensors_by_layer(interpreter: Any, layers: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The tensor that holds each layer's output: its name begins with that of the last layer fused into it."""
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    pattern = re.compile(rf"(?:^|/)({'|'.join(sorted(map(re.escape, layers), key=len, reverse=True))})(?:_\d+)?/")
    found: dict[str, dict[str, Any]] = {}
    for operation in interpreter._get_ops_details():
        if operation["op_name"] not in ("DELEGATE", "DEQUANTIZE"):
            for index in operation["outputs"]:
                if match := pattern.search(details[index]["name"].split(";")[0]):
                    found[match[1]] = details[index]
    return found


def as_input(pixels: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    """Pixels, uint8, as an input of a .tflite file takes them: those in int8 by its scale, others as they are."""
    if given["dtype"] is not np.int8:
        return pixels.astype(given["dtype"])
    scale, zero_point = given["quantization"]
    return np.clip(np.rint(pixels / (scale or 1.0)) + zero_point, -128, 127).astype(np.int8)


def _real(value: np.ndarray, quantization: tuple[float, int]) -> np.ndarray:
    scale, zero_point = quantization
    return (value.astype(np.float32) - zero_point) * scale if scale else value.astype(np.float32)
