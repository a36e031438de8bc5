"""Training for whole numbers, pruning and clustering: in Keras, and by TensorFlow's toolkit on a twin in tf_keras."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnet import cli
from keras_resnet.errors import InputError, MissingExtraError, UsageError
from keras_resnet.export import compress, compression, tfmot, to_coreml, to_tflite
from keras_resnet.export.calibration import PROBABILITIES, Calibration, calibrate
from keras_resnet.export.compression import material_of
from keras_resnet.export.concrete import fold, integer_normalisation
from keras_resnet.export.finetuning import Material, loss_for
from keras_resnet.export.graph import bounded_layers, learned_ranges, quantised, simplify
from keras_resnet.export.quantisation import LearnedBound, Rounded, learnable, learned
from keras_resnet.export.verification import TfliteFile
from keras_resnet.layers import Bound
from keras_resnet.preprocessing import preprocessing_of
from keras_resnet.training import Recipe, Run, open_images, train
from keras_resnet.training.evaluation import evaluate_model, scores_of
from keras_resnet.training.recipes import recipe_of
from keras_resnet.weights import load_model
from tests.pictures import COLOURS, colour_folder
from tests.test_export import (  # noqa: F401, for the fixture is used by its name
    FAMILY,
    converter_here,
    network,
    photographs,
)

pytestmark = pytest.mark.usefixtures("converter_here")
NETWORK = {"momentum": 0.5, "depths": (1, 1), "widths": (16, 32)}
RECIPE = Recipe("cifar_resnet8", network=NETWORK, image_size=16, epochs=3, batch_size=8, learning_rate=0.05)
CONVOLUTIONS = 6
STEP = 1 / 256  # of a score
REFUSED = {name: kind for kind in ("pre-activation", "highway") for name in FAMILY if name.startswith(kind)}
TAKEN = [name for name in FAMILY if name not in REFUSED]
QUICK = ("basic", "highway", "pre-activation")


def quickly(names: list[str]) -> list[Any]:
    """All of the family, the most of it among the slow tests."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_folder(tmp_path_factory.mktemp("data") / "colours", count=30)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that no network saw."""
    return colour_folder(tmp_path_factory.mktemp("data") / "fresh", count=30, seed=7)


@pytest.fixture(scope="module")
def trained(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(RECIPE, colours, tmp_path_factory.mktemp("runs") / "a", progress=False)


@pytest.fixture(scope="module")
def for_integers(trained: Run, colours: Path) -> Run:
    return compress(trained.folder, colours, trained.folder.with_name("qat"), epochs=1, progress=False)


def kernels(run: Run) -> dict[str, np.ndarray]:
    return {layer.name: np.asarray(layer.kernel) for layer in load_model(run.model).layers if hasattr(layer, "kernel")}


def int8_kernels(file: TfliteFile) -> Iterator[np.ndarray]:
    """The convolutions' kernels in a file, int8 [filters, height, width, inputs]."""
    for tensor in file.interpreter.get_tensor_details():
        if tensor["dtype"] is np.int8 and len(tensor["shape"]) == 4 and tensor["shape"][0] > 1:
            yield file.interpreter.get_tensor(tensor["index"])


@pytest.mark.parametrize("name", quickly(list(FAMILY)))
def test_a_network_rebuilt_in_tf_keras_answers_as_it_did(name: str) -> None:
    tfmot.load("this test")
    model, pixels = network(name), photographs(4)
    tfmot.check_takes(model, "prune")
    x = preprocessing_of(model).normalise(pixels)
    wanted = model.predict_on_batch(x)
    assert np.abs(tfmot.twin_of(model, x).predict_on_batch(x) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_network_that_tf_keras_computes_otherwise_is_refused() -> None:
    model = network("basic")
    layer = model.get_layer("stage1_block1_conv1")
    plain = layer.convolution_op
    layer.convolution_op = lambda x, kernel: 1.001 * plain(x, kernel)
    with pytest.raises(InputError, match="answers otherwise"):
        tfmot.twin_of(model, preprocessing_of(model).normalise(photographs(2)))


@pytest.mark.parametrize("name", FAMILY)
def test_the_toolkit_is_asked_for_what_it_takes_and_the_rest_is_refused_with_the_reason(name: str) -> None:
    if name in TAKEN:
        tfmot.check_takes(network(name), "quantise")
        return
    reason = {"pre-activation": "BatchNormalization that does not follow", "highway": "a Subtract, which"}
    with pytest.raises(InputError, match=f"{reason[REFUSED[name]]}.* use method 'qat'"):
        tfmot.check_takes(network(name), "quantise")


def test_a_network_of_another_kind_of_layer_is_refused() -> None:
    image = keras.Input((8, 8, 3))
    with pytest.raises(InputError, match="is a GlobalMaxPooling2D, which cannot be rebuilt"):
        tfmot.check_takes(keras.Model(image, keras.layers.GlobalMaxPooling2D()(image)), "prune")


def measured(name: str) -> tuple[keras.Model, Calibration, np.ndarray]:
    """A simplified graph, its calibration, and images as it reads them."""
    model = network(name)
    normalisation = integer_normalisation(preprocessing_of(model))
    graph = simplify(fold(model, normalisation))
    x = photographs(8).astype(np.float32) - np.float32(normalisation.shift)
    return graph, calibrate(graph, x, effort="low"), x


@pytest.mark.parametrize("name", quickly(list(FAMILY)))
def test_what_is_trained_computes_as_the_file_will(name: str) -> None:
    graph, start, x = measured(name)
    network = learnable(graph, start)
    found = learned(network)
    assert set(found.ranges) == set(bounded_layers(graph))
    np.testing.assert_array_equal(network(x), quantised(graph, found.ranges, found.weights, "carrier")(x))
    for name, (kernel, _) in found.weights.items():
        if not isinstance(graph.get_layer(name), keras.layers.DepthwiseConv2D):
            steps = kernel / np.maximum(np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127, 1e-30)
            np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


def test_a_range_learns_from_what_it_cuts_off_and_from_the_size_of_its_steps() -> None:
    """The formula of LSQ, section 2.1: what is cut moves with the bound, the rest by its rounding error in steps."""
    bound = LearnedBound(-127.0, 128.0)  # whose step is 1
    x = tf.constant([-130.0, -126.7, 0.0, 3.3, 100.5, 131.0])
    bound(x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = bound(x)
        parts = [y[i] for i in range(len(x))]
    rounded = np.array([-127, -127, 0, 3, 101, 128.0])
    np.testing.assert_array_equal(np.abs(y - rounded) <= (np.arange(6) == 4), True)  # a half goes either way
    errors = (y.numpy() - x.numpy()) / 255
    for i, part in enumerate(parts):
        low_share, high_share = tape.gradient(part, bound.reach.value)
        wanted = (1, 0) if i == 0 else (0, 1) if i == 5 else (-errors[i], errors[i])
        np.testing.assert_allclose([low_share, high_share], np.multiply(wanted, (-127, 128)), atol=1e-3)
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("name", ["basic", "highway", "pre-activation"])
def test_gradients_reach_weights_and_ranges(name: str) -> None:
    graph, start, x = measured(name)
    network = learnable(graph, start)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.gather(network(x), 0, axis=1))
    found = zip(network.trainable_variables, tape.gradient(loss, network.trainable_variables), strict=True)
    reached = {variable.path for variable, gradient in found if np.abs(gradient).max() > 0}
    wanted = {f"{x.name}/{x.name}/kernel" for x in network.layers if isinstance(x, Rounded)}
    wanted |= {f"{x.name}/reach" for x in network.layers if isinstance(x, LearnedBound) and x.trainable}
    assert wanted <= reached
    free = [bounds for bounds in start.ranges.values() if bounds != PROBABILITIES]
    assert len(wanted) == len(free) + len(start.weights)


def test_a_range_that_learns_widens_where_cutting_does_harm() -> None:
    bound = LearnedBound(-1.0, 1.0)
    x = tf.constant(np.linspace(-3, 3, 100, dtype=np.float32))
    optimizer = keras.optimizers.Adam(0.05)
    bound(x)
    for _ in range(100):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(bound(x) - x))
        optimizer.apply_gradients([(tape.gradient(loss, bound.reach.value), bound.reach)])
    low, high = bound.bounds
    assert (float(low), float(high)) == (pytest.approx(-3, abs=0.2), pytest.approx(3, abs=0.2))


def test_pruned_weights_stay_zero_while_they_are_trained_for_integers() -> None:
    graph, start, x = measured("basic")
    layer = graph.get_layer("stage1_block1_conv1")
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel * (np.random.default_rng(0).random(kernel.shape) < 0.5), bias])
    narrow = {layer: (0.7 * low, 0.7 * high) for layer, (low, high) in start.ranges.items()}
    network = learnable(graph, dataclasses.replace(start, ranges=narrow))
    network.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy")
    network.fit(x, np.eye(5)[np.arange(8) % 5], batch_size=2, verbose=0)
    found = learned(network)
    assert not found.weights[layer.name][0][layer.get_weights()[0] == 0].any()
    for name, (before, _) in start.weights.items():
        assert (found.weights[name][0] != before).mean() > 0.2, name  # the others were trained
    assert sum(found.ranges[name] != narrow[name] for name in narrow) > len(narrow) // 2


def test_a_network_trained_for_integers_becomes_a_file_without_calibration(
    for_integers: Run, fresh: Path, tmp_path: Path
) -> None:
    artifact = to_tflite(for_integers.folder, tmp_path / "a.tflite", data=fresh)
    file = TfliteFile(artifact.path, "a")
    assert (file.input["dtype"], file.input["quantization"]) == (np.uint8, (1.0, 0))
    assert file.float_tensors == []
    found = artifact.read()["verification"]
    assert found["largest_score_difference"] <= 2 * STEP
    assert artifact.read()["labels"] == sorted(COLOURS)
    assert artifact.read()["calibration"] is None
    assert found["file_top1"] >= 0.98


def test_training_for_integers_changes_weights_and_ranges_and_says_what_it_did(
    for_integers: Run, trained: Run, colours: Path
) -> None:
    said = for_integers.read()["compression"]
    assert (said["method"], said["epochs"], said["augmentation"]) == ("qat", 1, RECIPE.augmentation)
    assert [row["epoch"] for row in said["history"]] == [0, 1]
    evaluation = for_integers.read_evaluation()
    held_out = open_images(colours).split(0.1, seed=0)[0]
    assert evaluation["top1"] == evaluate_model(load_model(for_integers.model), held_out).top1 >= said["before"] - 0.02
    model = load_model(for_integers.model)
    bounds = [layer for layer in model.layers if isinstance(layer, Bound)]
    assert len(bounds) == len(learned_ranges(model)) > 8
    assert for_integers.recipe == trained.recipe
    with pytest.raises(UsageError, match="trained for whole numbers already"):
        compress(for_integers.folder, colours, trained.folder.with_name("again"), progress=False)


def test_a_saved_network_for_integers_gives_the_same_file(for_integers: Run, tmp_path: Path) -> None:
    model = load_model(for_integers.model)
    model.save(tmp_path / "again.keras")
    contents = [
        to_tflite(source, tmp_path / f"{i}.tflite", labels=sorted(COLOURS)).path.read_bytes()
        for i, source in enumerate((for_integers.folder, model, tmp_path / "again.keras"))
    ]
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.slow
def test_a_network_for_integers_goes_to_core_ml_and_to_float_files(
    for_integers: Run, fresh: Path, tmp_path: Path
) -> None:
    for artifact in (
        to_coreml(for_integers.folder, tmp_path / "a.mlpackage", quantize="int8", data=fresh),
        to_tflite(for_integers.folder, tmp_path / "b.tflite", quantize="float32", data=fresh),
    ):
        assert artifact.read()["verification"]["agreement"] == 1.0


def test_one_step_of_pruning_sets_half_of_the_weights_to_zero_and_brings_them_back(trained: Run) -> None:
    tf_keras, toolkit = tfmot.load("this test")
    model = load_model(trained.model)
    x = preprocessing_of(model).normalise(photographs(8, 16))
    wrapped = tfmot.wrapped(toolkit, tfmot.twin_of(model, x), "prune", {})
    wrapped.compile(tf_keras.optimizers.SGD(0.0), "categorical_crossentropy")
    wrapped.fit(x, np.eye(3)[np.arange(8) % 3], verbose=0, callbacks=tfmot.STEPS["prune"].callbacks(toolkit))
    back = tfmot.brought_back(model, toolkit, wrapped, "prune")
    for layer in back.layers:
        if hasattr(layer, "kernel"):
            before, after = np.asarray(model.get_layer(layer.name).kernel), np.asarray(layer.kernel)
            assert (after == 0).mean() == pytest.approx(0.5, abs=0.01)
            assert np.abs(before[after == 0]).max() <= np.abs(before[after != 0]).min()  # the smallest went
            np.testing.assert_array_equal(after[after != 0], before[after != 0])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prune", "prune-2:4"])
def test_half_of_a_pruned_networks_weights_are_zero_in_the_network_and_in_its_file(
    method: str, trained: Run, colours: Path, fresh: Path, tmp_path: Path
) -> None:
    run = compress(trained.folder, colours, tmp_path / "p", method=method, epochs=1, progress=False)
    assert {type(x).__module__.split(".")[0] for x in load_model(run.model).layers} == {"keras"}
    for name, kernel in kernels(run).items():
        assert (kernel == 0).mean() == pytest.approx(0.5, abs=0.01) or (method, name) == ("prune-2:4", "stem_conv")
    artifact = to_tflite(run.folder, tmp_path / "a.tflite", calibration=colours, data=fresh)
    assert artifact.read()["verification"]["file_top1"] >= 0.98
    stored = list(int8_kernels(TfliteFile(artifact.path, "a")))
    assert len(stored) == CONVOLUTIONS
    for kernel in stored:
        if kernel.shape[-1] % 4 == 0:
            assert (kernel == 0).mean() >= 0.495
            if method == "prune-2:4":
                assert (kernel.reshape(-1, 4) != 0).sum(axis=1).max() <= 2


@pytest.mark.slow
def test_a_clustered_network_has_16_values_a_kernel_and_its_file_16_a_filter(
    trained: Run, colours: Path, fresh: Path, tmp_path: Path
) -> None:
    run = compress(trained.folder, colours, tmp_path / "c", method="cluster", epochs=1, progress=False)
    assert all(len(np.unique(kernel)) <= 16 for kernel in kernels(run).values())
    artifact = to_tflite(run.folder, tmp_path / "a.tflite", calibration=colours, data=fresh)
    for kernel in int8_kernels(TfliteFile(artifact.path, "a")):
        assert all(len(np.unique(weights)) <= 16 for weights in kernel)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qat-tfmot", "pqat", "pqat-tfmot", "cqat", "pcqat"])
def test_what_is_kept_is_still_there_in_the_int8_file(
    method: str, trained: Run, colours: Path, fresh: Path, tmp_path: Path
) -> None:
    run = compress(trained.folder, colours, tmp_path / "q", method=method, epochs=2, progress=False)
    artifact = to_tflite(run.folder, tmp_path / "a.tflite", data=fresh)
    assert artifact.read()["verification"]["file_top1"] >= 0.98
    assert artifact.read()["verification"]["largest_score_difference"] <= 2 * STEP
    for kernel in int8_kernels(TfliteFile(artifact.path, "a")):
        if method.startswith("p"):
            assert (kernel == 0).mean() >= 0.495
        if "cqat" in method:
            assert all(len(np.unique(weights)) <= 16 for weights in kernel)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"shortcut": "highway", "gate_bias": 0.0}, {"preactivation": True}], ids=["highway", "pre-activation"]
)
def test_highway_and_pre_activation_nets_keep_their_accuracy_in_int8(changes: dict[str, Any], tmp_path: Path) -> None:
    validation, test, training = open_images("digits").split(0.2, 0.2)
    recipe = recipe_of("digits", epochs=12, learning_rate=0.05, network={"momentum": 0.9, **changes})
    run = train(recipe, training, tmp_path / "a", validation=validation, test=test, progress=False)
    small = compress(run.folder, training, tmp_path / "b", validation=validation, epochs=2, progress=False)
    found = to_tflite(small.folder, tmp_path / "a.tflite", data=test).read()["verification"]
    assert found["file_top1"] >= run.read_evaluation()["top1"] - 0.01 > 0.9


def test_the_command_line_knows_every_method() -> None:
    assert set(cli.METHODS) == set(compression.METHODS)


@pytest.mark.parametrize(
    "change", [{"method": "quat"}, {"epochs": 0}, {"learning_rate": -1.0}, {"augmentation": "flips"}]
)
def test_wrong_options_are_refused_before_anything_is_read(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(change.values()))}"):
        compress("nowhere.keras", "nowhere", tmp_path / "a", **change)


def test_without_the_toolkit_its_methods_are_refused_and_images_of_other_classes_are(
    trained: Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(MissingExtraError, match=r"method 'prune' needs .*keras-resnet-edge\[compress\]"):
        compress(trained.folder, colours, tmp_path / "a", method="prune")
    with pytest.raises(UsageError, match="trained on"):  # what is looked at next
        compress(trained.folder, "digits", tmp_path / "a")


def test_a_folder_that_holds_a_run_or_the_source_is_left_alone(trained: Run, for_integers: Run, colours: Path) -> None:
    with pytest.raises(InputError, match="is a run that was trained"):
        compress(trained.folder, colours, trained.folder)
    with pytest.raises(InputError, match="is the network that is to be compressed"):
        compress(for_integers.folder, colours, for_integers.folder)
    with pytest.raises(InputError, match="holds a network that was compressed"):
        train(RECIPE, colours, for_integers.folder, progress=False)


def test_an_interrupted_compression_leaves_nothing(
    trained: Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compression, "fine_tune", lambda *_, **__: [])  # which writes nothing
    monkeypatch.setattr(keras.Model, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compress(trained.folder, colours, tmp_path / "a", epochs=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_without_a_known_loss_is_refused() -> None:
    assert loss_for("linear")[1] == {"from_logits": True}
    with pytest.raises(InputError, match="ends in 'tanh': it can be fine-tuned where that is softmax, sigmoid, linear"):
        loss_for("tanh")


@pytest.mark.parametrize(
    ("has_recipe", "asked", "found"),
    [(True, None, RECIPE.augmentation), (True, "affine", "affine"), (False, None, "none"), (False, "affine", "affine")],
)
def test_images_are_varied_as_is_asked_or_as_the_recipe_has_it(
    has_recipe: bool, asked: str | None, found: str, trained: Run, colours: Path
) -> None:
    model, images = load_model(trained.model), open_images(colours)
    source = trained.folder if has_recipe else model
    material = material_of(source, preprocessing_of(model), images, images, asked)
    assert (material.augmentation, material.batch_size) == (found, RECIPE.batch_size if has_recipe else 64)


def test_an_epoch_has_every_image_once() -> None:
    pixels, labels = photographs(10), np.arange(10)
    material = Material(pixels, labels, pixels, labels, classes=10, batch_size=4)
    preprocessing = preprocessing_of(network("basic"))
    seen = [np.argmax(y, axis=1) for _, y in material.epoch(3, preprocessing)]
    assert [len(part) for part in seen] == [4, 4, 2]
    assert material.steps == 3
    assert sorted(np.concatenate(seen)) == list(range(10))


def test_scores_of_a_network_for_integers_are_whole_steps(for_integers: Run, fresh: Path) -> None:
    model = load_model(for_integers.model)
    pixels = open_images(fresh).pixels(preprocessing_of(model))
    steps = scores_of(model)(pixels) / STEP
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
