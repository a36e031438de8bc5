"""The training step against Keras' own and against formulas, in every precision. Many devices: test_workers.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.errors import UsageError
from keras_resnet.training import Images, Recipe, open_images
from keras_resnet.training.recipes import recipe_of
from keras_resnet.training.session import Session, open_session, part_of
from keras_resnet.training.step import StepModel, Wishes, reduced
from keras_resnet.training.strategy import Place, deterministic, open_place

RECIPE = Recipe("cifar_resnet8", network={"momentum": 0.5}, image_size=16, batch_size=32, learning_rate=0.05, epochs=9)
BATCH = 12
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(30, 8, 8, 3)).astype("float32"), np.eye(4, dtype="float32")[rng.integers(0, 4, 30)]


def small_network() -> keras.Model:
    """With all that has a state, and nothing that costs time."""
    layers = keras.layers
    x = inputs = keras.Input((8, 8, 3))
    for filters in (4, 8):
        x = layers.Conv2D(filters, 3, use_bias=False, kernel_initializer=keras.initializers.GlorotUniform(1))(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.5)(x))
    x = layers.Dense(4, activation="softmax", kernel_initializer=keras.initializers.GlorotUniform(2))(
        layers.GlobalAveragePooling2D()(x)
    )
    return keras.Model(inputs, x)


def optimizer(kind: type[keras.optimizers.Optimizer] = keras.optimizers.SGD, **settings: Any) -> Any:
    rest = {"momentum": 0.9, "nesterov": True} if issubclass(kind, keras.optimizers.SGD) else {}
    return kind(0.05, weight_decay=0.01, global_clipnorm=0.3, **rest, **settings)


def trained(batches: tf.data.Dataset, **settings: Any) -> tuple[StepModel, keras.callbacks.History]:
    model = small_network()
    step = StepModel(model.inputs, model.outputs)
    step.prepare(
        keras.losses.categorical_crossentropy,
        optimizer(reduced(keras.optimizers.SGD)),
        batch_size=BATCH,
        **settings,
    )
    return step, step.fit(batches, epochs=3, shuffle=False, verbose=0, validation_data=batches)


@pytest.fixture(scope="module")
def batches() -> tf.data.Dataset:
    """Two of 12 images and one of 6."""
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)


def test_on_one_device_it_is_keras_own_step(batches: tf.data.Dataset) -> None:
    """Weights, statistics, losses and accuracies of training and evaluation, with clipping, decay and momentum."""
    theirs = small_network()
    theirs.compile(optimizer(), "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    expected = theirs.fit(batches, epochs=3, shuffle=False, verbose=0, validation_data=batches).history
    ours, history = trained(batches)
    assert set(history.history) == set(expected)
    for name, values in expected.items():
        assert history.history[name] == pytest.approx(values, rel=1e-5), name
    for one, two in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_parts_of_a_batch_give_its_mean_gradient(batches: tf.data.Dataset) -> None:
    """Without normalisation, whose statistics are those of a part."""
    found = []
    for accumulate in (1, 4):
        inputs = keras.Input((8, 8, 3))
        dense = keras.layers.Dense(4, activation="softmax", kernel_initializer=keras.initializers.GlorotUniform(2))
        step = StepModel(inputs, dense(keras.layers.Flatten()(inputs)))
        rate = reduced(keras.optimizers.SGD)(0.1, global_clipnorm=0.3)
        step.prepare(keras.losses.categorical_crossentropy, rate, batch_size=BATCH, accumulate=accumulate)
        step.fit(batches, epochs=2, shuffle=False, verbose=0)
        found.append(step.get_weights())
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_the_moving_average_is_that_of_the_formula(batches: tf.data.Dataset) -> None:
    """average += (1 - decay) (weight - average), decay = min(0.9, (1 + n) / (10 + n)) behind update n."""
    model = small_network()
    step = StepModel(model.inputs, model.outputs)
    rate = reduced(keras.optimizers.SGD)(0.1)
    step.prepare(keras.losses.categorical_crossentropy, rate, batch_size=BATCH, average=0.9)
    expected = [v.numpy().astype(float) for v in step.weights]
    seen: list[list[np.ndarray]] = []

    class See(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            seen.append([v.numpy().astype(float) for v in step.weights])

    step.fit(batches, epochs=9, shuffle=False, verbose=0, callbacks=[See()])
    for n, weights in enumerate(seen, start=1):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = [a + (1 - decay) * (w - a) for a, w in zip(expected, weights, strict=True)]
    assert len(seen) == 27
    for average, value in zip(step.state.averages, expected, strict=True):
        np.testing.assert_allclose(average.numpy(), value, rtol=1e-5, atol=1e-6)


def test_images_of_weight_0_do_not_count(batches: tf.data.Dataset) -> None:
    step, _ = trained(batches)
    weights = np.r_[np.ones(20), np.zeros(10)].astype("float32")
    padded = step.evaluate(X, Y, sample_weight=weights, batch_size=BATCH, verbose=0, return_dict=True)
    plain = step.evaluate(X[:20], Y[:20], batch_size=BATCH, verbose=0, return_dict=True)
    assert padded == pytest.approx(plain)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_of_batches_are_every_image_once_and_never_none(count: int) -> None:
    data = tf.data.Dataset.from_tensor_slices((np.arange(10), np.eye(10))).batch(4)
    seen = []
    for index in range(count):
        for x, y, weight in part_of(data, index, count):
            assert len(x) == len(y) == len(weight) > 0
            seen += [int(i) for i, w in zip(x, weight, strict=True) if w]
    assert sorted(seen) == list(range(10))


def test_what_is_saved_is_a_network_of_plain_keras(batches: tf.data.Dataset, tmp_path: Path) -> None:
    model = small_network()
    step = StepModel(model.inputs, model.outputs)
    step.prepare(keras.losses.categorical_crossentropy, reduced(keras.optimizers.SGD)(0.1), batch_size=BATCH)
    step.fit(batches, verbose=0, shuffle=False)
    model.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), step.predict(X, verbose=0))


def test_wishes_are_known_behind_the_next_step(batches: tf.data.Dataset) -> None:
    model = small_network()
    wishes = Wishes(workers=3, worker=1)
    step = StepModel(model.inputs, model.outputs)
    rate = reduced(keras.optimizers.SGD)(0.1)
    step.prepare(keras.losses.categorical_crossentropy, rate, batch_size=BATCH, wishes=wishes)
    step.fit(batches, verbose=0, shuffle=False)
    assert wishes.asked_by() == []
    wishes.ask()
    assert wishes.asked_by() == []
    step.fit(batches, verbose=0, shuffle=False)
    assert wishes.asked_by() == [1]


@pytest.fixture(scope="module")
def digits() -> list[Images]:
    return open_images("digits").balanced_sample(400).split(0.2)


def session(digits: list[Images], **changes: Any) -> Session:
    held_out, training = digits
    return open_session(Recipe(**{**vars(RECIPE), **changes}), training, held_out, Place())


@pytest.mark.parametrize("precision", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_a_mixed_precision_learns_as_float32_does_and_gives_a_float32_network(
    digits: list[Images], precision: str
) -> None:
    found = {}
    for one in ("float32", precision):
        run = session(digits, precision=one)
        batches = run.batches(0)
        for step in range(4 * run.steps):
            run.step(step, batches)
        found[one] = run.figures() | run.validate()
        assert {layer.dtype_policy.name for layer in run.plain.layers} == {"float32"}
        assert all(v.dtype == "float32" for v in run.model.trainable_variables)
    assert {layer.compute_dtype for layer in run.model.layers} >= {precision.removeprefix("mixed_")}
    assert keras.config.dtype_policy().name == "float32"
    assert found[precision]["loss"] == pytest.approx(found["float32"]["loss"], rel=0.2)
    assert found["float32"]["loss"] < 1.5  # log(10) = 2.3


@pytest.mark.slow
def test_float16_is_as_good_on_digits_as_float32_with_overflows_on_the_way() -> None:
    held_out, training = open_images("digits").split(0.4)  # one digit is 0.14 points
    accuracy: dict[str, list[float]] = {"float32": [], "mixed_float16": []}
    for precision, found in accuracy.items():
        for seed in (0, 1):
            recipe = recipe_of("digits", precision=precision, image_size=16, batch_size=64, epochs=12, seed=seed)
            run = open_session(recipe, training, held_out, Place())
            scaling = run.model.optimizer
            if precision == "mixed_float16":
                scaling.dynamic_growth_steps = 20  # and not 2000, so that the scale soon is what float16 cannot hold
            batches = run.batches(0)
            for step in range(run.total):
                run.step(step, batches)
            overflows = run.total - int(scaling.iterations.numpy())
            assert (1 < overflows < run.total / 10) == (precision == "mixed_float16")
            found.append(run.validate()["val_accuracy"])
    assert np.mean(accuracy["float32"]) > 0.98
    assert np.mean(accuracy["mixed_float16"]) > np.mean(accuracy["float32"]) - 0.005


def test_an_overflow_in_float16_changes_nothing_but_the_scale_of_the_loss(digits: list[Images]) -> None:
    run = session(digits, precision="mixed_float16", weight_decay=0.1, warmup_epochs=0.0)
    scaling = run.model.optimizer
    assert isinstance(scaling, keras.optimizers.LossScaleOptimizer)
    scaling.dynamic_scale.assign(2.0**40)  # every gradient becomes infinite
    before = [v.numpy() for v in run.model.trainable_variables]
    batches = run.batches(0)
    losses = [run.step(0, batches)]
    assert scaling.dynamic_scale.numpy() == 2.0**39
    assert scaling.iterations.numpy() == 0
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, run.model.trainable_variables, strict=True))
    scaling.dynamic_scale.assign(2.0**10)
    losses.append(run.step(1, batches))
    assert scaling.iterations.numpy() == 1
    assert not all(np.array_equal(a, v.numpy()) for a, v in zip(before, run.model.trainable_variables, strict=True))
    assert np.isfinite(losses).all()
    assert any(v is scaling.dynamic_scale for v in run.groups["optimizer"])  # so a checkpoint has it


def test_what_is_judged_is_the_moving_average_where_there_is_one(digits: list[Images]) -> None:
    run = session(digits, ema=0.99)
    batches = run.batches(0)
    for step in range(3):
        run.step(step, batches)
    run.validate()
    for ours, average, raw in zip(run.plain.weights, run.model.state.averages, run.model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), average.numpy())
        assert ours.path.split("/")[-1] == raw.path.split("/")[-1]
    assert not np.array_equal(run.plain.weights[0].numpy(), run.model.weights[0].numpy())


@pytest.mark.parametrize(("change", "allowed"), [({"accumulate": 32}, True), ({"accumulate": 33}, False)])
def test_a_last_batch_that_cannot_be_parted_is_refused(
    digits: list[Images], change: dict[str, int], allowed: bool
) -> None:
    assert len(digits[1]) % 32 == 0
    if allowed:
        assert session(digits, **change).total == 90
        return
    with pytest.raises(UsageError, match="leaves 32 of 320 images for the last batch"):
        session(digits, **change)


def test_determinism_is_on_inside_alone() -> None:
    from tensorflow.python.framework.config import is_op_determinism_enabled

    assert not is_op_determinism_enabled()
    with deterministic():
        assert is_op_determinism_enabled() == (not tf.config.list_physical_devices("GPU"))
    assert not is_op_determinism_enabled()


def test_an_unknown_strategy_is_offered_the_nearest_and_workers_need_a_launcher() -> None:
    with pytest.raises(UsageError, match="unknown strategy 'mirored'.*nearest are mirrored"):
        open_place("mirored")
    with pytest.raises(UsageError, match="finds no second worker"):
        open_place("workers")
