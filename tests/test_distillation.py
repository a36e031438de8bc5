"""A teacher's softened scores in the loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnet
from keras_resnet.errors import InputError, UsageError
from keras_resnet.preprocessing import preprocess_input, preprocessing_of
from keras_resnet.training import open_images, train
from keras_resnet.training.distillation import Teacher, open_teacher, shortfall
from keras_resnet.training.recipes import Recipe
from tests.pictures import colour_folder

RECIPE = Recipe("cifar_resnet8", image_size=16, teacher="teacher.keras", teacher_weight=0.7, temperature=3.0)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_the_shortfall_is_the_papers_from_logits(temperature: float) -> None:
    rng = np.random.default_rng(0)
    taught, learned = rng.normal(0, 2, (2, 6, 5))
    p, q = softmax(taught / temperature), softmax(learned / temperature)
    expected = temperature**2 * np.sum(p * (np.log(p) - np.log(q)), axis=-1)
    found = shortfall(tf.constant(softmax(taught)), tf.constant(softmax(learned)), temperature).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_its_gradient_at_a_high_temperature_is_that_of_matching_logits() -> None:
    """Section 2.1: with logits of mean 0, the gradient tends to (z - v) / N."""
    rng = np.random.default_rng(1)
    taught, learned = (z - z.mean(axis=-1, keepdims=True) for z in rng.normal(0, 1, (2, 4, 5)))
    z = tf.Variable(learned)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(shortfall(tf.constant(softmax(taught)), tf.nn.softmax(z), 1000.0))
    np.testing.assert_allclose(tape.gradient(loss, z), (learned - taught) / 5, rtol=2e-2, atol=2e-3)


def test_a_pupil_that_answers_as_its_teacher_falls_short_of_nothing_and_learns_from_its_targets_alone() -> None:
    network = keras_resnet.build("cifar_resnet8", classes=3, input_shape=(16, 16, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    answers = network(preprocess_input(pixels, network))
    found = Teacher(network, 0.7, 4.0).blend(tf.ones([5]), tf.constant(pixels), answers)
    np.testing.assert_allclose(found, 0.3 * np.ones(5), atol=1e-5)


def test_a_teacher_does_not_learn() -> None:
    network = keras_resnet.build("cifar_resnet8", classes=3, input_shape=(16, 16, 3))
    before = [w.numpy() for w in network.weights]
    scores = tf.Variable(tf.fill([5, 3], 1 / 3))
    pixels = tf.constant(np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(Teacher(network, 0.5, 2.0).blend(tf.zeros([5]), pixels, scores))
    assert all(g is None for g in tape.gradient(loss, network.trainable_weights))
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, network.weights, strict=True))


def saved(path: Path, classes: int = 3, side: int = 16, activation: str = "softmax") -> str:
    network = keras_resnet.build(
        "cifar_resnet8", classes=classes, input_shape=(side, side, 3), classifier_activation=activation
    )
    network.save(path)
    return str(path)


def test_a_teacher_opens_from_a_file_and_is_none_where_none_is_named(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, teacher=saved(tmp_path / "teacher.keras"))
    teacher = open_teacher(recipe, ("a", "b", "c"))
    assert (teacher.weight, teacher.temperature) == (0.7, 3.0)
    assert isinstance(teacher.network, keras.Model)
    assert open_teacher(dataclasses.replace(RECIPE, teacher=""), ("a", "b", "c")) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": 4}, "answers 4 classes, the data has 3"),
        ({"side": 24}, "reads 24x24 pixels, the recipe trains on image_size=16"),
        ({"activation": "sigmoid"}, "ends in 'sigmoid'"),
    ],
)
def test_a_teacher_of_something_else_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    recipe = dataclasses.replace(RECIPE, teacher=saved(tmp_path / "teacher.keras", **change))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=said):
        open_teacher(recipe, ("a", "b", "c"))


def test_a_pupil_that_hears_its_teacher_alone_learns_what_the_teacher_answers(tmp_path: Path) -> None:
    folder = colour_folder(tmp_path / "colours")
    teacher = keras_resnet.build("cifar_resnet8", classes=3, input_shape=(16, 16, 3))
    images = open_images(folder)
    # A teacher that calls green what is blue, and the other way round: its pupil must do so too, whatever the labels.
    x = preprocess_input(images.pixels(preprocessing_of(teacher)), teacher)
    teacher.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    wrong = np.array([1, 0, 2])[images.labels]
    teacher.fit(x, wrong, epochs=12, batch_size=12, verbose=0)
    for layer in teacher.layers:
        if hasattr(layer, "moving_mean"):  # so few steps do not move them there
            layer.momentum = 0.0
    teacher(x, training=True)
    assert (teacher.predict(x, verbose=0).argmax(axis=1) == wrong).mean() > 0.9
    teacher.save(tmp_path / "teacher.keras")
    recipe = Recipe(
        "cifar_resnet8",
        network={"momentum": 0.5},
        image_size=16,
        epochs=8,
        batch_size=8,
        learning_rate=0.05,
        teacher=str(tmp_path / "teacher.keras"),
        teacher_weight=1.0,
        temperature=2.0,
    )
    run = train(recipe, folder, tmp_path / "run", progress=False)
    last = run.read_history()[-1]
    assert max(last["val_accuracy"], last["accuracy"]) < 0.5  # one class of three is called by its name


@pytest.mark.parametrize("teacher", ["absent", "absent.keras", "resnet18:absent-tag", "nonet:imagenet"])
def test_a_teacher_that_is_not_there_is_named(teacher: str) -> None:
    with pytest.raises(InputError, match=f"teacher '{teacher}' (is not there|cannot be opened): give a run folder"):
        open_teacher(dataclasses.replace(RECIPE, teacher=teacher), ("a", "b", "c"))
