"""Every row of the table of networks becomes a file of each format, at its full depth; trained ones stay as good."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.depth import recursion_room
from keras_resnet.export import inspect, to_coreml, to_tflite
from keras_resnet.export.answers import answering
from keras_resnet.export.graph import sole_readers
from keras_resnet.export.mil import open_package
from keras_resnet.export.probe import probe
from keras_resnet.export.tflite_graph import read_graph
from keras_resnet.export.verification import TfliteFile
from keras_resnet.preprocessing import preprocess_input, preprocessing_of
from keras_resnet.specs import VARIANTS
from keras_resnet.training import open_images
from keras_resnet.training.evaluation import scores_of
from tests.test_export import converter_here, images_of, needless_pads, photographs  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("converter_here")]
# Noise over signal in the logits, to which each layer of a random network adds. Answers of another network have 1.4.
NOISE = {"float16": 0.02, "int8": 0.8, "coreml": 0.02}
HALF_MARGIN = 1.5  # over the noise of Keras' own float16, for depths where that alone has about as much


def whole(name: str) -> keras.Model:
    """A variant at its depth, but narrow, on small pictures, with random weights that leave most to the shortcuts.

    Where there are none, a convolution hands on what it reads; else a little noise would be all after thirty layers.
    BatchNormalization holds what its layers give, as behind training; without, a hundred layers overflow.
    """
    spec = VARIANTS[name]
    side = 64 if spec.stem == "imagenet" else 32
    narrow: dict[str, Any] = {"widths": (16, 32, 64, 128)} if spec.stem == "imagenet" else {}
    model = keras_resnet.build(name, classes=5, input_shape=(side, side, 3), momentum=0.0, **narrow)
    last: dict[str, dict[str, keras.layers.Layer]] = {}
    for layer in model.layers:
        if match := re.fullmatch(r"(stage\d+_block\d+)_(conv|bn)\d", layer.name):
            last.setdefault(match[1], {})[match[2]] = layer
    if spec.shortcut == "none":
        for layer in model.layers:
            if isinstance(layer, keras.layers.Conv2D) and layer.name != "stem_conv":
                kernel = layer.get_weights()[0] * 0.2
                kernel[1, 1, range(kernel.shape[2]), range(kernel.shape[2])] += 1
                layer.set_weights([kernel, *layer.get_weights()[1:]])
    else:
        for parts in last.values():
            weight = parts["conv"].kernel if spec.preactivation else parts["bn"].gamma
            weight.assign(weight * 0.2)
    model(preprocess_input(photographs(24, side), model), training=True)
    return model


KINDS = {
    *("mul", "add", "cast", "conv", "relu", "max_pool", "avg_pool", "batch_norm", "reduce_mean", "linear", "matmul"),
    *("pad", "concat"),  # channels of shortcut A, and pools of values below zero
}


def in_float16(model: keras.Model) -> keras.Model:
    """The same network, each layer of which computes in float16 and gives it."""

    def rounding(layer: keras.layers.Layer) -> keras.layers.Layer:
        return layer.__class__.from_config({**layer.get_config(), "dtype": "mixed_float16"})

    with recursion_room(len(model.layers)):
        copy = keras.models.clone_model(model, clone_function=rounding)
    copy.set_weights(model.get_weights())
    return copy


def blocks(name: str) -> int:
    return sum(VARIANTS[name].depths)


def noise(answers: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((answers - wanted) ** 2) / np.mean(wanted**2)))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_becomes_a_float16_and_an_int8_file(name: str, tmp_path: Path) -> None:
    model = whole(name)
    side = model.inputs[0].shape[1]
    calibration, pixels = images_of(photographs(24, side)), photographs(8, side, seed=5)
    wanted = scores_of(answering(model, "logits"))(pixels)
    common: dict[str, Any] = {"scores": "logits", "min_agreement": 0.0}
    found = {}
    for quantize in ("float16", "int8"):
        path = to_tflite(
            model, tmp_path / f"{quantize}.tflite", quantize=quantize, calibration=calibration, effort="low", **common
        ).path
        file = TfliteFile(path, quantize)
        found[quantize] = noise(file.scores(pixels), wanted)
        graph, coverage = read_graph(file.content, quantize), probe(file.content, quantize)
        assert coverage.partitions == 1
        outside = [graph.operations[place].kind for place in coverage.outside]
        assert outside == ([] if quantize == "float16" else ["QUANTIZE", "QUANTIZE"])  # the logits, without softmax
        assert (file.float_tensors == []) == (quantize == "int8")
        assert needless_pads(graph) == []
        assert inspect(path).targets[0].takes_whole == (quantize == "float16")
    assert all(found[form] <= NOISE[form] for form in found), found


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_becomes_a_package_that_answers_as_it_does(name: str, tmp_path: Path) -> None:
    model = whole(name)
    pixels = photographs(8, model.inputs[0].shape[1], seed=5)
    package = open_package(to_coreml(model, tmp_path / "a.mlpackage", scores="logits", min_agreement=0.0).path)
    network = answering(model, "logits")
    wanted = scores_of(network)(pixels)
    half = np.asarray(in_float16(network)(preprocess_input(pixels, model), training=False), np.float32)
    assert noise(package.answer(pixels), wanted) <= max(NOISE["coreml"], HALF_MARGIN * noise(half, wanted))
    kinds = Counter(step.kind for step in package.steps)
    assert kinds["transpose"] == 0
    assert set(kinds) <= KINDS, set(kinds) - KINDS
    readers = sole_readers(model)
    folded = {r.name for s, r in readers.items() if isinstance(model.get_layer(s), keras.layers.Conv2D)}
    norms = [layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert kinds["batch_norm"] == len([norm for norm in norms if norm not in folded])
    assert kinds["conv"] == len([layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)])
    assert kinds["linear"] + kinds["matmul"] == 1  # the latter where no bias is left
    assert kinds["add"] == 1 + (0 if VARIANTS[name].shortcut == "none" else blocks(name))  # one of the normalisation


# Random networks say little of those whose parts quantise unevenly: these are trained.
TRAINED: dict[str, dict[str, Any]] = {
    "highway": {"variant": "cifar_resnet20", "shortcut": "highway", "gate_bias": -2.0},
    "pre-activation, shortcut A": {"variant": "cifar_resnet110_v2"},
    "pre-activation, bottleneck": {"variant": "cifar_resnet164_v2"},
    "pre-activation, stride last": {"variant": "resnet50_v2", "stem": "small"},
}


@pytest.mark.parametrize("name", TRAINED)
def test_trained_networks_of_every_gate_and_order_lose_at_most_a_point_in_int8(name: str, tmp_path: Path) -> None:
    options = dict(TRAINED[name])
    shape = {"depths": (1, 1, 1), "widths": (8, 16, 32), "classes": 10, "input_shape": (32, 32, 3)}
    model = keras_resnet.build(options.pop("variant"), **shape, **options, momentum=0.9)
    _, test, training = open_images("digits").split(0.2, 0.2)
    x = preprocess_input(training.pixels(preprocessing_of(model)), model)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(x, training.labels, batch_size=32, epochs=6, verbose=0)
    model.compile(keras.optimizers.Adam(3e-4), "sparse_categorical_crossentropy")  # smooths what the first one left
    model.fit(x, training.labels, batch_size=32, epochs=2, verbose=0)
    found = to_tflite(model, tmp_path / "a.tflite", calibration=training, data=test).read()["verification"]
    assert found["model_top1"] > 0.9
    assert found["file_top1"] >= found["model_top1"] - 0.01
    assert found["agreement"] >= 0.98
