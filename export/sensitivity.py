"""Which parts of a network bear 8 bits worst: the stem, each residual block and the head, by the noise of each."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import keras
import numpy as np

from keras_resnet.errors import unknown
from keras_resnet.export.calibration import Calibration
from keras_resnet.export.graph import MOVING, WEIGHTED, quantised, sources
from keras_resnet.export.noise import relative

UNIT = re.compile(r"stem|stage\d+_block\d+|head")
IMAGES = 16  # noise is a mean over all answers of each


def units(graph: keras.Model) -> dict[str, list[str]]:
    """Layers of a simplified graph by the part that they belong to, in the order of computing."""
    found: dict[str, list[str]] = {}
    for layer in graph.layers:
        if match := UNIT.match(layer.name):
            found.setdefault(match[0], []).append(layer.name)
    return found


def check_parts(model: keras.Model, kept: Collection[str]) -> None:
    """Raise UsageError where a name is no part of a network."""
    parts = units(model)
    for name in kept:
        if name not in parts:
            raise unknown("part of the network", name, parts, where="keep_float=")


def in_float(graph: keras.Model, measured: Calibration, kept: Collection[str]) -> Calibration:
    """What is left to quantise where some parts stay in floating point: neither their values nor what computes them.

    kept: names that `units` gives.
    """
    parts = units(graph)
    values = {layer for name in kept for layer in parts[name]}
    ranges = {name: bounds for name, bounds in measured.ranges.items() if name not in values}
    return Calibration(ranges, {k: v for k, v in measured.weights.items() if _is_in_bytes(graph, k, measured, ranges)})


def _is_in_bytes(graph: keras.Model, name: str, measured: Calibration, ranges: Mapping[str, object]) -> bool:
    """Whether a weighted layer reads and gives values that have a range: only then is it computed in whole numbers."""
    readers = [layer for layer in graph.layers if name in _sources(layer)]
    given = name if name in measured.ranges or not readers else readers[0].name  # a ReLU that is fused into it
    (read,) = _sources(graph.get_layer(name))
    while isinstance(layer := graph.get_layer(read), MOVING) and not isinstance(layer, keras.layers.InputLayer):
        (read,) = _sources(layer)
    whole = isinstance(layer, keras.layers.InputLayer) or read in ranges
    return whole and (given in ranges or given not in measured.ranges)


def _sources(layer: keras.layers.Layer) -> list[str]:
    return [] if isinstance(layer, keras.layers.InputLayer) else sources(layer)


def sensitivity(graph: keras.Model, measured: Calibration, inputs: np.ndarray) -> dict[str, float]:
    """The noise that each part alone brings into the classifier's answers, noise over signal, most first.

    inputs: as the graph takes them, float32 [n, height, width, channels]. Answers that the range of the scores leaves
    out on purpose, for nothing comes of them behind a softmax, count as its ends.
    """
    logits = next(layer.name for layer in reversed(graph.layers) if isinstance(layer, WEIGHTED))
    ends = measured.ranges.get(logits, (-np.inf, np.inf))
    expected = np.clip(_answers(graph, logits, inputs), *ends)
    parts = units(graph)
    noise = {}
    for name in parts:
        one = in_float(graph, measured, [other for other in parts if other != name])
        copy = quantised(graph, one.ranges, one.weights)
        bound = f"{logits}_bound"
        last = bound if bound in {layer.name for layer in copy.layers} else logits
        noise[name] = relative(np.clip(_answers(copy, last, inputs), *ends), expected)
        del copy
    return dict(sorted(noise.items(), key=lambda item: -item[1]))


def _answers(graph: keras.Model, layer: str, inputs: np.ndarray) -> np.ndarray:
    network = keras.Model(graph.inputs, graph.get_layer(layer).output)
    return np.concatenate([np.asarray(network(image[None], training=False)) for image in inputs[:IMAGES]])
