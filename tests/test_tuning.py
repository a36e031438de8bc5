"""Ranges that move together: what they gain on images that they have not seen, and what they leave alone."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_resnet.export.calibration import PROBABILITIES, Calibration, calibrate
from keras_resnet.export.concrete import fold, integer_normalisation
from keras_resnet.export.graph import quantised, simplify
from keras_resnet.export.tuning import tuned_ranges
from keras_resnet.preprocessing import preprocessing_of
from tests.test_export import network, photographs

SHIFT = np.float32(114)


def measured(name: str = "basic", **changes: Any) -> tuple[keras.Model, Calibration, np.ndarray]:
    model = network(name, **changes)
    graph = simplify(fold(model, integer_normalisation(preprocessing_of(model))))
    inputs = photographs(8).astype(np.float32) - SHIFT
    return graph, calibrate(graph, inputs, effort="low"), inputs


def widened(ranges: dict[str, tuple[float, float]], factor: float) -> dict[str, tuple[float, float]]:
    return {k: v if k.startswith("head_dense") else (v[0] * factor, v[1] * factor) for k, v in ranges.items()}


def error(graph: keras.Model, ranges: Any, weights: Any, inputs: np.ndarray) -> float:
    """Mean squared difference of the answers, image by image, from those in float."""
    rounded = quantised(graph, ranges, weights)
    return float(np.mean([np.square(np.asarray(rounded(x[None]) - graph(x[None]))) for x in inputs]))


@pytest.mark.parametrize("activation", ["softmax", None])
def test_ranges_that_are_too_narrow_become_better_ones_on_images_not_seen(activation: str | None) -> None:
    graph, found, _ = measured(classifier_activation=activation)
    inputs, new = (photographs(n, seed=n).astype(np.float32) - SHIFT for n in (24, 6))
    wrong = widened(dict(found.ranges), 0.5)
    better = tuned_ranges(graph, wrong, found.weights, inputs, steps=40, fixed=PROBABILITIES)
    assert error(graph, better, found.weights, new) < 0.7 * error(graph, wrong, found.weights, new)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_range_that_is_too_wide_becomes_narrower(seed: int) -> None:
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Activation("relu", name="kept")(image))
    graph = keras.Model(image, keras.layers.Dense(10, name="head_dense")(x))
    inputs = np.random.default_rng(seed).laplace(size=(64, 8, 8, 3)).astype(np.float32)  # none is above 12
    wrong = {"kept": (0.0, 60.0)}
    better = tuned_ranges(graph, wrong, {}, inputs, steps=160, fixed=PROBABILITIES)
    new = np.random.default_rng(seed + 2).laplace(size=(32, 8, 8, 3)).astype(np.float32)
    assert better["kept"][1] < 30
    assert error(graph, better, {}, new) < 0.3 * error(graph, wrong, {}, new)


def test_what_a_format_prescribes_the_answers_and_the_share_below_zero_stay() -> None:
    graph, found, inputs = measured()
    wrong = widened(dict(found.ranges), 4.0)
    moved = tuned_ranges(graph, wrong, found.weights, inputs, steps=16, fixed=PROBABILITIES)
    assert list(moved) == list(wrong)
    assert moved["head_dense"] == wrong["head_dense"]
    assert moved["head_dense_activation"] == PROBABILITIES
    assert moved["stem_relu"] != wrong["stem_relu"]
    for name, (low, high) in moved.items():
        assert low <= 0 < high
        share = -wrong[name][0] / (wrong[name][1] - wrong[name][0])
        assert -low / (high - low) == pytest.approx(share, abs=0.5 / 255)


def test_ranges_come_back_as_they_are_where_nothing_is_gained() -> None:
    graph, found, inputs = measured()
    assert tuned_ranges(graph, found.ranges, found.weights, inputs, steps=0, fixed=PROBABILITIES) == found.ranges
    exact = {name: (-1e-6 if low else 0.0, 1e9) for name, (low, _) in found.ranges.items()}  # rounds all to nothing
    assert tuned_ranges(graph, exact, found.weights, inputs, steps=2, fixed=PROBABILITIES) == exact
