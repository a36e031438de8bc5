"""Where a file is noisy, which parts bear 8 bits worst, and which of them stay in floating point."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_resnet.errors import ExportError, UsageError
from keras_resnet.export import to_coreml, to_tflite, verify
from keras_resnet.export.calibration import calibrate
from keras_resnet.export.concrete import fold, integer_normalisation
from keras_resnet.export.graph import simplify
from keras_resnet.export.noise import decibels, layer_noise, relative, worst
from keras_resnet.export.report import noise_section
from keras_resnet.export.sensitivity import in_float, sensitivity, units
from keras_resnet.export.verification import TfliteFile
from keras_resnet.preprocessing import preprocessing_of
from keras_resnet.training import Images
from keras_resnet.training.evaluation import scores_of
from tests.test_export import converter_here, images_of, network, photographs  # noqa: F401

pytestmark = pytest.mark.usefixtures("converter_here")
LOOSE: dict[str, Any] = {"min_agreement": 0.0, "effort": "low"}  # random networks answer nearly alike on everything


def agreeing(model: keras.Model, pixels: np.ndarray) -> Images:
    """Images whose labels are what the network answers: what a file loses is then its disagreement."""
    images = images_of(pixels)
    return replace(images, labels=scores_of(model)(pixels).argmax(axis=-1))


def test_six_decibels_are_a_bit() -> None:
    rng = np.random.default_rng(0)
    signal = rng.uniform(-1, 1, 100_000)
    eight, nine = (relative(np.round(signal * 2**bits) / 2**bits, signal) for bits in (7, 8))
    assert decibels(nine) - decibels(eight) == pytest.approx(6.02, abs=0.1)
    assert decibels(eight) == pytest.approx(6.02 * 8, abs=0.2)  # the textbook's figure for uniform noise
    assert worst({"a": 0.1, "b": 0.3, "c": 0.2}, 2) == {"b": 0.3, "c": 0.2}


@pytest.mark.parametrize(("quantize", "least", "most"), [("float32", 100, 250), ("float16", 50, 80), ("int8", 20, 60)])
def test_each_form_is_as_noisy_as_its_bits(quantize: str, least: float, most: float, tmp_path: Path) -> None:
    model, pixels = network("basic"), photographs(8)
    artifact = to_tflite(model, tmp_path / "a.tflite", quantize=quantize, calibration=images_of(pixels), **LOOSE)
    found = artifact.read()["verification"]
    levels = found["layer_snr_db"]
    assert {"stem_relu", "stage1_block1_out", "stage2_block1_relu1", "head_pool", "head_dense"} <= set(levels)
    assert least <= min(levels.values()) <= most
    assert found["kernels"]["count"] == 4
    assert found["kernels"]["largest_difference"] <= 0.1
    assert all(f"<code>{name}</code>" in artifact.report.read_text() for name in levels)


def test_the_first_noisy_layer_is_the_one_that_is_wrong(tmp_path: Path) -> None:
    model, pixels = network("basic"), photographs(4)
    artifact = to_tflite(model, tmp_path / "a.tflite", quantize="float32")
    kernel, *rest = model.get_layer("stage2_block1_conv1").get_weights()
    model.get_layer("stage2_block1_conv1").set_weights([kernel[..., ::-1], *rest])  # filters in the wrong order
    noise = layer_noise(artifact.path.read_bytes(), model, pixels)
    assert next(name for name, ratio in noise.items() if ratio > 1e-3) == "stage2_block1_relu1"


def test_a_core_ml_package_says_how_noisy_its_layers_are(tmp_path: Path) -> None:
    model, pixels = network("basic"), photographs(8)
    found = to_coreml(model, tmp_path / "a.mlpackage", data=images_of(pixels), **LOOSE).read()["verification"]
    assert found["layer_snr_db"]["stage1_block1_out"] > 50
    assert found["layer_snr_db"]["scores"] > 50
    assert found["kernels"] is None


def test_layers_of_another_shape_are_not_compared(tmp_path: Path) -> None:
    content = to_tflite(network("basic"), tmp_path / "a.tflite", quantize="float32").path.read_bytes()
    noise = layer_noise(content, network("basic", classes=7), photographs(1))
    assert "head_pool" in noise
    assert "head_dense" not in noise
    assert noise_section(None) == noise_section({"layer_snr_db": None}) == []


@pytest.mark.parametrize("least", [-0.1, 1.5])
def test_a_least_agreement_that_is_no_fraction_is_refused(least: float, tmp_path: Path) -> None:
    for call in (to_tflite, to_coreml):
        suffix = ".tflite" if call is to_tflite else ".mlpackage"
        with pytest.raises(UsageError, match="must be a fraction from 0 to 1"):
            call(network("basic"), tmp_path / f"a{suffix}", quantize="float32", min_agreement=least)
    with pytest.raises(UsageError, match="must be a fraction from 0 to 1"):
        verify(tmp_path / "a.tflite", network("basic"), images_of(photographs(4)), min_agreement=least)


# Parts in floating point ---------------------------------------------------------------------------------------------


def measured(model: keras.Model, pixels: np.ndarray) -> tuple[keras.Model, Any, np.ndarray]:
    normalisation = integer_normalisation(preprocessing_of(model))
    graph, inputs = simplify(fold(model, normalisation)), pixels - np.float32(normalisation.shift[0])
    return graph, calibrate(graph, inputs, effort="low"), inputs


def test_the_parts_of_a_network_are_its_stem_blocks_and_head() -> None:
    graph = simplify(fold(model := network("basic"), integer_normalisation(preprocessing_of(model))))
    parts = units(graph)
    assert list(parts) == ["stem", "stage1_block1", "stage2_block1", "head"]
    assert sum(map(len, parts.values())) == len(graph.layers) - 1  # all but the image


def test_what_computes_a_value_in_float_has_its_own_weights() -> None:
    graph, found, _ = measured(network("basic"), photographs(8))
    left = in_float(graph, found, ["stage1_block1"])
    assert set(found.ranges) - set(left.ranges) == {"stage1_block1_relu1", "stage1_block1_conv2", "stage1_block1_out"}
    readers = {"stage2_block1_conv1", "stage2_block1_shortcut_conv"}  # of what is not rounded any more
    assert set(found.weights) - set(left.weights) == {"stage1_block1_conv1", "stage1_block1_conv2"} | readers
    assert in_float(graph, found, []) == found
    everything = in_float(graph, found, units(graph))
    assert not everything.ranges
    assert not everything.weights


def test_a_part_with_a_value_out_of_line_is_the_noisiest() -> None:
    model = network("basic")
    norm = model.get_layer("stage2_block1_bn1")
    gamma, *rest = norm.get_weights()
    gamma[0] *= 300  # one channel far above the others takes the range
    norm.set_weights([gamma, *rest])
    kernel = model.get_layer("stage2_block1_conv2").get_weights()[0]
    kernel[:, :, 0] /= 300
    model.get_layer("stage2_block1_conv2").set_weights([kernel])
    noise = sensitivity(*measured(model, photographs(8)))
    assert next(iter(noise)) == "stage2_block1"
    assert list(noise.values()) == sorted(noise.values(), reverse=True)


def test_a_part_that_is_kept_is_in_floating_point_and_the_rest_is_not(tmp_path: Path) -> None:
    model, pixels = network("basic"), photographs(8)
    artifact = to_tflite(
        model, tmp_path / "a.tflite", calibration=images_of(pixels), keep_float=["stage2_block1"], **LOOSE
    )
    file = TfliteFile(artifact.path, "a")
    assert file.input["dtype"] is np.uint8
    assert file.input["quantization"] == (1.0, 0)
    assert any("stage2_block1" in name for name in file.float_tensors)
    assert not [name for name in file.float_tensors if "stage1_block1_conv" in name or "stem_conv" in name]
    assert artifact.read()["in_float"] == {"parts": ["stage2_block1"]}


def test_as_few_parts_as_do_are_kept_for_a_drop(tmp_path: Path) -> None:
    model, pixels = network("basic"), photographs(24)
    judged = agreeing(model, pixels[8:])
    options: dict[str, Any] = {"calibration": images_of(pixels[:8]), "data": judged, **LOOSE}
    loose = to_tflite(model, tmp_path / "loose.tflite", max_drop=100, **options)
    assert loose.read()["in_float"]["parts"] == []
    assert TfliteFile(loose.path, "a").float_tensors == []
    strict = to_tflite(model, tmp_path / "strict.tflite", max_drop=0, **options)
    kept = strict.read()["in_float"]
    assert kept["parts"] == list(kept["noise"])[: len(kept["parts"])]
    assert TfliteFile(strict.path, "a").scores(pixels[8:]).argmax(-1).tolist() == judged.labels.tolist()
    tried = {int(count): one for count, one in kept["tried"].items()}
    assert all(one["drop"] > 0 for count, one in tried.items() if count < len(kept["parts"]))
    assert 0 in tried
    assert json.dumps(kept)
    assert "Kept in floating point" in strict.report.read_text()


def test_a_drop_that_nothing_meets_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = network("basic"), photographs(16)
    monkeypatch.setattr(TfliteFile, "scores", lambda self, images: np.eye(5)[np.zeros(len(images), int)])
    judged = replace(agreeing(model, pixels[8:]), labels=np.ones(8, int))
    monkeypatch.setattr("keras_resnet.export.tflite.scores_of", lambda _: lambda images: np.eye(5)[judged.labels])
    with pytest.raises(ExportError, match=r"still loses 100\.00 points"):
        to_tflite(model, tmp_path / "a.tflite", max_drop=1, calibration=images_of(pixels[:8]), data=judged, **LOOSE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"keep_float": ["stage9_block1"]},
            "unknown part of the network 'stage9_block1' .*: nearest are stage2_block1, stage1_block1",
        ),
        ({"keep_float": "stem"}, "must be a list of parts"),
        ({"max_drop": 0.1}, "measured on data="),
        ({"keep_float": "auto"}, "measured on data="),
        ({"keep_float": ["stem"], "quantize": "float16"}, "are for quantize='int8', not 'float16'"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_measured(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        to_tflite(network("basic"), tmp_path / "a.tflite", calibration=images_of(photographs(8)), **options)
    assert list(tmp_path.iterdir()) == []
