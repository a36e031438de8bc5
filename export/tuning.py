"""Ranges of activations, moved until the network's answers change least.

A range of its own least error is not the best of the whole: what one layer loses, others carry on or throw away. Here
all ranges learn together, as the step sizes of arXiv:1902.08153 do, from the float network's answers and no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.depth import recursion_room
from keras_resnet.export.graph import rebuild, sources

LEVELS = 255
BATCH, GATHERED = 4, 2  # images at a time, for memory; batches a step, for each alone says little
RATE = 0.02  # Adam's: about what a range may change by in a step, as a share of it
JUDGED = 32  # images on which the new ranges must be better than the old ones


def tuned_ranges(
    graph: keras.Model,
    ranges: Mapping[str, tuple[float, float]],
    weights: Mapping[str, tuple[np.ndarray, np.ndarray]],
    inputs: np.ndarray,
    *,
    steps: int,
    fixed: tuple[float, float],
) -> dict[str, tuple[float, float]]:
    """The ranges of a simplified graph, each wider or narrower, that bring its answers nearest to those in float.

    ranges, weights: by layer, what `calibrate` measured; inputs: as the graph takes them, float32 [n, h, w, 3]; steps:
    of Adam; fixed: the range that a format prescribes and that stays. So does that of the answers. The
    share of a range below zero stays what it was. Where nothing is gained the ranges come back as they are.
    """
    if not steps:
        return dict(ranges)
    with recursion_room(2 * len(graph.layers)):
        trunk, distance = _scores_and_distance(graph)
    answer = trunk.output_names[0]
    inner = {layer.name for layer in trunk.layers} - {answer}
    names = [name for name, bounds in ranges.items() if name in inner and bounds != fixed]
    if not names:
        return dict(ranges)
    widths = np.asarray([ranges[name][1] - ranges[name][0] for name in names]) / LEVELS
    zeros = np.rint([-ranges[name][0] / width for name, width in zip(names, widths, strict=True)])
    place = {name: i for i, name in enumerate(names)}
    logs = tf.Variable(np.log(widths), dtype=tf.float32)
    held = {name: [tf.constant(w) for w in own] for name, own in weights.items()}  # once, not in each traced function

    def call(layer: keras.layers.Layer, x: Any) -> Any:
        own = held.get(layer.name)
        y = layer(x) if own is None else layer.stateless_call(own, [], x)[0]
        if layer.name not in place:
            return y
        i = place[layer.name]
        return _in_steps(y, tf.exp(logs[i]), tf.constant(zeros[i], tf.float32))

    @tf.function
    def loss(x: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        return distance(wanted, rebuild(trunk, x, call))

    @tf.function
    def gradient(x: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss(x, wanted)
        return tape.gradient(value, logs)

    batches = [inputs[start : start + BATCH] for start in range(0, len(inputs) - len(inputs) % BATCH or 1, BATCH)]
    exact = tf.function(trunk)
    answers = [exact(tf.constant(x)) for x in batches]
    judged = list(zip(batches, answers, strict=True))[: JUDGED // BATCH]

    def error() -> float:
        return float(np.mean([loss(tf.constant(x), wanted) for x, wanted in judged]))

    before = error()
    schedule = keras.optimizers.schedules.CosineDecay(RATE, steps)
    optimizer = keras.optimizers.Adam(schedule)
    for step in range(steps):
        places = [(GATHERED * step + i) % len(batches) for i in range(GATHERED)]
        slopes = [gradient(tf.constant(batches[place]), answers[place]) for place in places]
        optimizer.apply([tf.add_n(slopes) / GATHERED], [logs])
    if not error() < before:
        return dict(ranges)
    widths = np.exp(logs.numpy().astype(np.float64))
    moved = {name: (-zeros[i] * widths[i], (LEVELS - zeros[i]) * widths[i]) for name, i in place.items()}
    return {name: tuple(map(float, moved.get(name, bounds))) for name, bounds in ranges.items()}  # type: ignore[misc]


@tf.custom_gradient
def _in_steps(y: tf.Tensor, step: tf.Tensor, zero: tf.Tensor) -> Any:
    """Values rounded to whole steps, those outside the range to its ends.

    The slope of rounding is taken for 1 (arXiv:1308.3432). All that is kept for the way back is y: of what is computed
    on the way a deep network would not fit into memory.
    """

    def rounded() -> tuple[tf.Tensor, tf.Tensor]:
        place = y / step + zero
        return place, tf.round(tf.clip_by_value(place, 0.0, float(LEVELS))) - zero

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, None]:
        place, whole = rounded()
        inside = tf.cast((place >= 0) & (place <= LEVELS), y.dtype)
        return upstream * inside, tf.reduce_sum(upstream * (whole - inside * y / step)), None

    return rounded()[1] * step, gradient


def _scores_and_distance(graph: keras.Model) -> tuple[keras.Model, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]:
    """A graph up to its scores, and how far those of a batch are from the wanted ones.

    Where a softmax reads them: the divergence of the probabilities, for the low scores hardly matter then; else the
    share of the squares.
    """
    (name,) = graph.output_names
    last = graph.get_layer(name)
    if isinstance(last, keras.layers.Activation):
        (name,) = sources(last)
    trunk = keras.Model(graph.inputs, graph.get_layer(name).output)
    if getattr(last, "activation", None) is keras.activations.softmax:
        return trunk, _divergence
    return trunk, lambda wanted, given: tf.reduce_sum(tf.square(given - wanted)) / tf.reduce_sum(tf.square(wanted))


def _divergence(wanted: tf.Tensor, given: tf.Tensor) -> tf.Tensor:
    """Kullback and Leibler's of softmax(given) from softmax(wanted), in nats an image."""
    certain = tf.nn.log_softmax(wanted)
    return tf.reduce_mean(tf.reduce_sum(tf.exp(certain) * (certain - tf.nn.log_softmax(given)), axis=-1))
