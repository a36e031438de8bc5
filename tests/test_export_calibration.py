"""From a network to whole numbers: the simplified graph, ranges, rounding, and the process that converts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_resnet.errors import ExportError, InputError, UsageError
from keras_resnet.export import converter, to_tflite
from keras_resnet.export.calibration import calibrate, calibration_pixels
from keras_resnet.export.concrete import fold, integer_normalisation
from keras_resnet.export.graph import bounded_layers, quantised, simplify
from keras_resnet.export.rounding import Nearest, clipped_range, half, palette, round_weights, steps
from keras_resnet.export.verification import TfliteFile
from keras_resnet.preprocessing import IMAGENET, Preprocessing, preprocessing_of
from tests.test_export import (  # noqa: F401, for the fixture is used by its name
    FAMILY,
    IN_A_PROCESS_OF_ITS_OWN,
    SIDE,
    converter_here,
    images_of,
    network,
    photographs,
    rms,
)

pytestmark = pytest.mark.usefixtures("converter_here")
SHIFT = np.float32(114)  # of torchvision's normalisation: 255 times the mean of .485 .456 .406


def graph_of(name: str, **changes: Any) -> keras.Model:
    model = network(name, **changes)
    return simplify(fold(model, integer_normalisation(preprocessing_of(model))))


@pytest.mark.parametrize("name", FAMILY)
def test_a_simplified_graph_answers_as_the_folded_network_does(name: str) -> None:
    folded = fold(network(name), integer_normalisation(IMAGENET))
    graph = simplify(folded)
    kinds = {type(layer).__name__ for layer in graph.layers}
    assert not kinds & {"BatchNormalization", "AveragePooling2D", "Identity", "Dropout"}
    for image in photographs(2).astype(np.float32) - SHIFT:
        np.testing.assert_allclose(graph(image[None]), folded(image[None]), atol=2e-6)


@pytest.mark.parametrize("levels", [15, 255])
@pytest.mark.parametrize("signed", [False, True])
def test_a_clipped_range_rounds_better_than_the_whole_one(levels: int, signed: bool) -> None:
    values = np.random.default_rng(0).laplace(size=100_000)  # long tails, as activations have
    values = values if signed else np.maximum(values, 0)

    def error(low: float, high: float) -> float:
        step = (high - low) / levels
        return rms(np.clip(np.rint(values / step) * step, low, high) - values)

    low, high = clipped_range(values, levels)
    assert values.min() <= low <= 0 < high <= values.max()
    assert error(low, high) < error(values.min(), values.max())


@pytest.mark.parametrize(("values", "expected"), [([], (0, 1)), ([0, 0], (0, 1)), ([2.0, 2.0], (0, 2))])
def test_a_range_of_nothing_or_of_one_value_is_still_a_range(
    values: list[float], expected: tuple[float, float]
) -> None:
    assert clipped_range(np.asarray(values)) == expected


def test_rounded_weights_answer_nearer_than_the_nearest_ones_and_keep_their_scale() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 40)) @ rng.normal(size=(40, 200))  # correlated, as the inputs of a layer are
    weights = rng.normal(size=(200, 30)).astype(np.float32)
    weights[:, 3] = 0
    scale = np.abs(weights).max(axis=0) / 127
    rounded = round_weights(weights, (x.T @ x / len(x)).astype(np.float32), steps(weights))
    places = rounded / np.where(scale == 0, 1, scale)
    np.testing.assert_allclose(places, np.rint(places), atol=1e-3)
    np.testing.assert_allclose(np.abs(rounded).max(axis=0), np.abs(weights).max(axis=0))
    nearest = np.rint(weights / np.where(scale == 0, 1, scale)) * scale
    assert rms(x @ rounded - x @ weights) < 0.5 * rms(x @ nearest - x @ weights)


NEAREST: dict[str, Callable[[np.ndarray, np.ndarray], Nearest]] = {
    "4 bits in blocks": lambda weights, _: steps(weights, 7, np.arange(len(weights)) // 32),
    "a palette": lambda weights, importance: palette(weights, importance, 16),
    "a palette for each 8": lambda weights, importance: palette(weights, importance, 16, 8),
    "half": half,
}


@pytest.mark.parametrize("kind", NEAREST)
def test_weights_of_every_kind_of_value_answer_nearer_than_the_nearest_ones(kind: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 40)) @ rng.normal(size=(40, 192))
    weights = rng.normal(size=(192, 32)).astype(np.float32)
    moments = (x.T @ x / len(x)).astype(np.float32)
    alike, found = np.ones_like(weights), {}
    found["nearest"] = np.stack(
        [NEAREST[kind](weights, alike)(row, slice(None), values) for row, values in enumerate(weights)]
    )
    importance = np.repeat(np.diag(moments)[:, None], weights.shape[1], axis=1)
    found["rounded"] = round_weights(weights, moments, NEAREST[kind](weights, importance))
    errors = {name: rms(x @ given - x @ weights) for name, given in found.items()}
    assert (
        errors["rounded"] < (0.9 if kind == "half" else 0.5) * errors["nearest"]
    )  # what is left must make up for half
    for given in found.values():
        match kind:
            case "4 bits in blocks":
                scale = np.abs(weights.reshape(6, 32, 32)).max(axis=1, keepdims=True) / 7
                places = given.reshape(6, 32, 32) / scale
                np.testing.assert_allclose(places, np.rint(places), atol=1e-4)
                np.testing.assert_allclose(np.abs(places).max(axis=1), 7, rtol=1e-5)
            case "a palette":
                assert len(np.unique(given)) == 16
            case "a palette for each 8":
                assert [len(np.unique(given[:, i : i + 8])) for i in range(0, 32, 8)] == [16] * 4
            case "half":
                assert np.mean(given == 0) == 0.5


def test_a_palette_leaves_no_more_error_than_equal_steps() -> None:
    weights = np.random.default_rng(0).laplace(size=(400, 8)).astype(np.float32)
    nearest = palette(weights, np.ones_like(weights), 64)
    given = np.stack([nearest(row, slice(None), values) for row, values in enumerate(weights)])
    low, step = weights.min(), np.ptp(weights) / 63
    assert rms(given - weights) < 0.8 * rms(np.rint((weights - low) / step) * step + low - weights)


def test_zeros_of_a_pruned_kernel_stay_zeros() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 10)) @ rng.normal(size=(10, 64))
    weights = rng.normal(size=(64, 8)).astype(np.float32) * (rng.random((64, 8)) < 0.5)
    rounded = round_weights(weights, (x.T @ x / len(x)).astype(np.float32), steps(weights))
    assert not rounded[weights == 0].any()
    scale = np.abs(weights).max(axis=0) / 127
    nearest = np.rint(weights / scale) * scale
    assert rms(x @ rounded - x @ weights) < rms(x @ nearest - x @ weights)


def test_a_clustered_kernel_has_no_more_values_when_it_is_rounded() -> None:
    graph = graph_of("basic")
    layer = graph.get_layer("stage1_block1_conv1")
    kernel, bias = layer.get_weights()
    values = np.linspace(-0.31, 0.29, 16, dtype=np.float32)
    layer.set_weights([values[np.random.default_rng(0).integers(16, size=kernel.shape)], bias])
    found = calibrate(graph, photographs(4).astype(np.float32) - SHIFT)
    counts = [len(np.unique(found.weights[layer.name][0][..., i])) for i in range(kernel.shape[-1])]
    assert max(counts) <= 16
    other = found.weights["stage1_block1_conv2"][0][..., 0]
    assert len(np.unique(other)) > 16


@pytest.mark.parametrize("effort", ["low", "normal"])
def test_a_bias_makes_up_for_the_mean_error_of_its_layer(effort: str) -> None:
    graph = graph_of("basic", classifier_activation=None)
    inputs = photographs(8).astype(np.float32) - SHIFT
    found = calibrate(graph, inputs, effort=effort)
    rounded = quantised(graph, found.ranges, found.weights)
    part = [keras.Model(g.inputs, g.get_layer("stage1_block1_conv1").output) for g in (graph, rounded)]
    exact, ours = (np.stack([m(x[None])[0] for x in inputs]).mean(axis=(0, 1, 2)) for m in part)
    np.testing.assert_allclose(ours, exact, atol=2e-3 * np.abs(exact).max())


def test_what_ranges_cut_off_moves_no_bias() -> None:
    graph = graph_of("basic")
    for layer in graph.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = layer.get_weights()
            layer.set_weights([np.sign(kernel).astype(np.float32) * 0.125, bias])  # which rounds to itself
    found = calibrate(graph, photographs(4).astype(np.float32) - SHIFT)
    for name, (kernel, bias) in found.weights.items():
        if name != "head_dense":
            np.testing.assert_array_equal(kernel, graph.get_layer(name).get_weights()[0])
            np.testing.assert_allclose(bias, graph.get_layer(name).get_weights()[1], atol=1e-6)


def test_every_number_that_a_file_keeps_has_a_range_but_those_that_are_moved_or_fused() -> None:
    graph = graph_of("basic")
    found = calibrate(graph, photographs(4).astype(np.float32) - SHIFT)
    assert list(found.ranges) == bounded_layers(graph)
    assert "stem_conv" not in found.ranges  # computed together with its ReLU
    assert "stem_pool" not in found.ranges
    assert all(low <= 0 < high for low, high in found.ranges.values())


def test_a_network_that_gives_no_finite_numbers_is_refused_before_the_converter(tmp_path: Path) -> None:
    model = network("basic")
    for name in ("stage2_block1_conv1", "stage2_block1_conv2"):
        layer = model.get_layer(name)
        layer.set_weights([np.full(layer.kernel.shape, 1e30, np.float32)])  # numbers, as their products are not
    with pytest.raises(InputError, match="'stage2_block1_conv2' gives numbers that are not finite"):
        to_tflite(model, tmp_path / "a.tflite", quantize="int8", calibration=images_of(photographs()))
    assert list(tmp_path.iterdir()) == []


FITTING = Preprocessing(resize=0, crop=SIDE)
NOISE = np.random.default_rng(0).integers(0, 256, (10, SIDE, SIDE, 3))


@pytest.mark.parametrize(
    ("pixels", "side", "said"),
    [
        (np.full((10, SIDE, SIDE, 3), 128), SIDE, "all of one colour"),
        (np.arange(10)[:, None, None, None].repeat(SIDE, 1).repeat(SIDE, 2).repeat(3, 3) * 20, SIDE, "one colour"),
        (NOISE // 16, SIDE, "nearly black"),
        (NOISE[:0], SIDE, "there are none"),
        (NOISE, SIDE // 2, "the network takes"),
    ],
    ids=["one colour", "one colour each", "dark", "none", "another size"],
)
def test_images_that_cannot_calibrate_are_refused(pixels: np.ndarray, side: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        calibration_pixels(images_of(pixels.astype(np.uint8)), FITTING, (side, side))


def test_images_that_a_file_is_calibrated_on_do_not_judge_it(tmp_path: Path) -> None:
    seen, unseen = photographs(8), photographs(8, seed=2)
    mixed = np.concatenate([unseen[:5], seen[2:4]])
    with pytest.raises(InputError, match=r"2 images of 'noise' \(the first is number 5\) are also calibration images"):
        to_tflite(network("basic"), tmp_path / "a.tflite", calibration=images_of(seen), data=images_of(mixed))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_effort_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown effort 'huge' .*low, normal, high"):
        to_tflite(network("basic"), tmp_path / "a.tflite", calibration="digits", effort="huge")


def test_files_of_16_bit_activations_answer_nearer_than_those_of_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keras_resnet.export.verification.MIN_AGREEMENT", 0.0)
    model, pixels = network("bottleneck", classifier_activation=None, preprocessing=FITTING), photographs(16)
    wanted = model.predict(preprocessing_of(model).normalise(pixels), verbose=0)
    errors = {}
    for form in ("int8", "int16x8"):
        path = tmp_path / f"{form}.tflite"
        to_tflite(model, path, quantize=form, calibration=images_of(pixels), scores="logits")
        file = TfliteFile(path, form)
        errors[form] = rms(file.scores(pixels) - wanted) / rms(wanted)
    assert errors["int16x8"] < min(errors["int8"], 0.02)


@pytest.mark.parametrize(
    ("child", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by signal 11: it said nothing"),
        ("raise SystemExit('scale out of range')", "failed with code 1: scale out of range"),
        ("pass", "failed with code 0"),
    ],
)
def test_a_converter_that_dies_is_an_error_with_its_last_words(
    child: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "child.py"
    script.write_text(child)
    monkeypatch.setattr(converter, "__file__", str(script))
    monkeypatch.setattr(converter, "run", IN_A_PROCESS_OF_ITS_OWN)
    with pytest.raises(ExportError, match=said):
        to_tflite(network("basic"), tmp_path / "out" / "a.tflite", quantize="float32")
    assert not (tmp_path / "out").exists()


def test_the_converter_runs_in_a_process_of_its_own_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "run", IN_A_PROCESS_OF_ITS_OWN)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    model, pixels = network("basic"), photographs(8)
    artifact = to_tflite(model, tmp_path / "a.tflite", quantize="float32", data=images_of(pixels))
    assert os.listdir(tmp_path / "scratch") == []
    assert artifact.read()["verification"]["agreement"] == 1.0


def test_what_a_relu_behind_a_sum_makes_nothing_of_takes_no_place_in_a_range() -> None:
    model, pixels = network("basic"), photographs(8)
    norm = model.get_layer("stage1_block1_bn2")
    gamma, beta, *rest = norm.get_weights()
    beta[0] = -500  # one channel far below anything that the shortcut adds
    norm.set_weights([gamma, beta, *rest])
    normalisation = integer_normalisation(preprocessing_of(model))
    graph = simplify(fold(model, normalisation))
    inputs = pixels - np.float32(normalisation.shift[0])
    values = keras.Model(graph.inputs, graph.get_layer("stage1_block1_conv2").output)(inputs[:1])
    assert np.min(values) < -400
    ranges = calibrate(graph, inputs, effort="low").ranges
    assert ranges["stage1_block1_conv2"][0] > -100
    assert all(name in ranges for name in ("stage2_block1_conv2", "stage2_block1_shortcut_conv"))
