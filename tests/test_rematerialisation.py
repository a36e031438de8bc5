"""Recomputed activations: the same training to the last bit, the same files, less memory."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnet import build, cifar, features, freeze, load_model, rematerialise
from keras_resnet.errors import InputError, UsageError
from keras_resnet.specs import VARIANTS, Spec
from tests.layout import ROOT

STEPS, BATCH, SIDE = 3, 4, 16
RANDOM = {"stochastic_depth": 0.3, "dropout": 0.2}
PREACTIVATION = {"preactivation": True, "shortcut_bn": False}
XLA_TOLERANCE = 1e-5  # of a variable's largest value; 2e-6 was seen

Prepare = Callable[[keras.Model], None]


@pytest.fixture(autouse=True)
def float32_afterwards() -> Iterator[None]:
    yield
    keras.config.set_dtype_policy("float32")


def pixels(count: int = STEPS * BATCH, side: int = SIDE) -> tuple[Any, Any]:
    rng = np.random.default_rng(7)
    return rng.normal(size=(count, side, side, 3)).astype("float32"), rng.integers(0, 10, count)


def network(spec: Spec, *, recomputed: bool, side: int = SIDE) -> keras.Model:
    """Always the same weights and seed generators."""
    keras.utils.set_random_seed(1)
    return build(spec, input_shape=(side, side, 3), rematerialise=recomputed)


def train(model: keras.Model, *, steps: int = STEPS, side: int = SIDE, **options: Any) -> list[float]:
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", **options)
    images, labels = pixels(steps * BATCH, side)
    history = model.fit(images, labels, batch_size=BATCH, epochs=steps, steps_per_epoch=1, shuffle=False, verbose=0)
    return history.history["loss"]


def values(model: keras.Model) -> list[Any]:
    """Weights, moving statistics and the state of seed generators."""
    return [variable.numpy() for variable in model.variables]


def assert_identical(expected: list[Any], found: list[Any], model: keras.Model) -> None:
    wrong = [
        variable.path
        for variable, a, b in zip(model.variables, expected, found, strict=True)
        if a.tobytes() != b.tobytes()
    ]
    assert not wrong


def assert_training_identical(spec: Spec, *, side: int = SIDE, prepare: Prepare | None = None, **options: Any) -> None:
    plain, recomputed = (network(spec, recomputed=flag, side=side) for flag in (False, True))
    for model in (plain, recomputed):
        if prepare:
            prepare(model)
    before = values(plain)
    assert_identical(before, values(recomputed), plain)
    assert train(plain, side=side, **options) == train(recomputed, side=side, **options)
    assert_identical(values(plain), values(recomputed), plain)
    assert any(a.tobytes() != b.tobytes() for a, b in zip(before, values(plain), strict=True))
    images, _ = pixels(side=side)
    np.testing.assert_array_equal(plain.predict(images, verbose=0), recomputed.predict(images, verbose=0))


QUICK = {
    "dropout": ("float32", cifar(8, **RANDOM)),
    "pre-activation": ("float32", cifar(8, **PREACTIVATION)),
    "bottleneck": ("float32", cifar(11, "bottleneck", shortcut="B")),
    "float16": ("mixed_float16", cifar(8, **RANDOM)),
}
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
SPECS = {
    "depth 14": cifar(14),
    "depth 20": cifar(20),
    "depth 20, dropout": cifar(20, **RANDOM),
    "pre-activation, dropout": cifar(20, **PREACTIVATION, **RANDOM),
    "bottleneck": cifar(29, "bottleneck", shortcut="B"),
    "depth 56": cifar(56),
    "plain": cifar(20, shortcut="none"),
    "highway": cifar(20, shortcut="highway"),
}


@pytest.mark.parametrize("case", QUICK)
def test_training_is_bit_identical_to_the_plain_model(case: str) -> None:
    policy, spec = QUICK[case]
    keras.config.set_dtype_policy(policy)
    assert_training_identical(spec)


@pytest.mark.slow
@pytest.mark.parametrize("policy", PRECISIONS)
@pytest.mark.parametrize("case", SPECS)
def test_training_is_bit_identical_in_each_precision(case: str, policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    assert_training_identical(SPECS[case])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["resnet18", "resnet50", "resnet50_v2", "resnetv2_50", "resnext50_32x4d"])
def test_training_is_bit_identical_for_imagenet_forms(variant: str) -> None:
    assert_training_identical(replace(VARIANTS[variant], depths=(1, 2, 1, 1), classes=10), side=48)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"steps_per_execution": 3}],
    ids=str,
)
def test_training_is_bit_identical_however_keras_runs_the_step(options: dict[str, Any]) -> None:
    assert_training_identical(cifar(14, **RANDOM), **options)


@pytest.mark.slow
def test_xla_compiles_both_steps_to_the_same_within_rounding() -> None:
    # Two programs, each the same in every run, whose sums XLA fuses and orders as it sees fit.
    plain, recomputed = (network(cifar(14, **RANDOM), recomputed=flag) for flag in (False, True))
    losses = [train(model, steps=1, jit_compile=True) for model in (plain, recomputed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for variable, a, b in zip(plain.variables, values(plain), values(recomputed), strict=True):
        assert np.abs(a - b).max() <= XLA_TOLERANCE * max(1.0, np.abs(a).max()), variable.path


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [True, False])
def test_frozen_layers_stay_frozen(batch_norm: bool) -> None:
    assert_training_identical(
        cifar(14), prepare=lambda model: freeze(model, through="stage2_block1", batch_norm=batch_norm)
    )


@pytest.mark.parametrize("segments", [2, 3])
def test_statistics_and_seeds_move_once_a_step(segments: int) -> None:
    plain = network(cifar(8, **RANDOM), recomputed=False)
    start = values(plain)
    recomputed = rematerialise(plain, segments=segments)
    images, labels = pixels(BATCH)
    plain(images, training=True)
    once = values(plain)
    plain(images, training=True)
    twice = values(plain)
    for variable, value in zip(plain.variables, start, strict=True):
        variable.assign(value)
    recomputed.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    recomputed.train_on_batch(images, labels)
    moved = [i for i, (a, b) in enumerate(zip(start, once, strict=True)) if not np.array_equal(a, b)]
    names = [plain.variables[i].name for i in moved]
    assert {"moving_mean", "moving_variance", "seed_generator_state"} <= set(names)
    for i, name in zip(moved, names, strict=True):
        found = recomputed.variables[i].numpy()
        # The eager plain call is not graph-optimised, so its statistics may differ in the last bits.
        np.testing.assert_allclose(found, once[i], rtol=1e-5, atol=1e-7, err_msg=name)
        assert not np.allclose(found, twice[i], rtol=1e-2, atol=0), f"{name} would look the same if it moved twice"


def test_seed_generators_give_each_step_its_own_mask() -> None:
    model = network(cifar(8, **RANDOM), recomputed=True)
    train(model)
    counts = [int(v.numpy()[1]) for v in model.variables if v.name == "seed_generator_state"]
    assert counts == [STEPS] * 4  # three blocks and the head


def test_layers_weights_and_config_are_those_of_the_plain_model() -> None:
    plain = network(cifar(8), recomputed=False)
    recomputed = rematerialise(plain)
    assert type(recomputed) is type(plain)
    assert [id(layer) for layer in recomputed.layers] == [id(layer) for layer in plain.layers]
    assert [id(variable) for variable in recomputed.variables] == [id(variable) for variable in plain.variables]
    assert keras.saving.serialize_keras_object(recomputed) == keras.saving.serialize_keras_object(plain)
    assert recomputed.get_layer("stage2_block1_conv1") is plain.get_layer("stage2_block1_conv1")
    assert features(recomputed).output_shape == features(plain).output_shape


def test_it_works_inside_another_model() -> None:
    def nested(recomputed: bool) -> keras.Model:
        body = network(cifar(8), recomputed=recomputed)
        inputs = keras.Input((SIDE, SIDE, 3))
        return keras.Model(inputs, keras.layers.Dense(10, "softmax")(body(inputs)))

    plain, recomputed = nested(False), nested(True)
    assert train(plain) == train(recomputed)
    assert_identical(values(plain), values(recomputed), plain)


LOAD = """
import sys
import keras
import numpy as np
folder = sys.argv[1]
images = np.load(f"{folder}/images.npy")
for name in ("saved", "checkpoint", "function"):
    model = keras.saving.load_model(f"{folder}/{name}.keras")
    np.save(f"{folder}/{name}.npy", model.predict(images, verbose=0))
assert "keras_resnet" not in sys.modules
"""


def test_files_load_in_plain_keras(tmp_path: Path) -> None:
    model = network(cifar(8), recomputed=True)
    images, labels = pixels(BATCH)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "checkpoint.keras")
    model.fit(images, labels, batch_size=BATCH, verbose=0, callbacks=[checkpoint])
    model.save(tmp_path / "saved.keras")
    keras.saving.save_model(model, tmp_path / "function.keras")
    np.save(tmp_path / "images.npy", images)
    run_script(LOAD, str(tmp_path), cwd=tmp_path)
    for name in ("saved", "checkpoint", "function"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), model.predict(images, verbose=0))


def test_a_loaded_file_can_be_rematerialised_again(tmp_path: Path) -> None:
    plain = network(cifar(8), recomputed=False)
    rematerialise(plain).save(tmp_path / "model.keras")
    recomputed = rematerialise(load_model(tmp_path / "model.keras"))
    assert train(plain) == train(recomputed)
    assert_identical(values(plain), values(recomputed), plain)


@pytest.mark.parametrize("first", [False, True], ids=["from plain", "from recomputed"])
def test_weight_files_fit_both_forms(first: bool, tmp_path: Path) -> None:
    source = network(cifar(8), recomputed=first)
    for variable in source.variables:
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    source.save_weights(tmp_path / "a.weights.h5")
    target = network(cifar(8), recomputed=not first)
    target.load_weights(tmp_path / "a.weights.h5")
    assert_identical(values(source), values(target), source)


def test_copies_are_plain_models_with_the_same_weights() -> None:
    model = network(cifar(8), recomputed=True)
    images, _ = pixels(BATCH)
    cloned = keras.models.clone_model(model)
    cloned.set_weights(model.get_weights())
    for copied in (cloned, copy.deepcopy(model)):
        np.testing.assert_array_equal(copied.predict(images, verbose=0), model.predict(images, verbose=0))


def test_xla_does_not_undo_the_recomputation() -> None:
    def convolutions(model: keras.Model) -> int:
        @tf.function(jit_compile=True)
        def gradients(images: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(images, training=True) ** 2)
            return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

        program = gradients.experimental_get_compiler_ir(pixels(BATCH)[0])(stage="optimized_hlo")
        return len(re.findall(r"\bconvolution\(", program))

    plain = network(cifar(8), recomputed=False)
    # The stem and two blocks of two convolutions are computed again; the last block is not.
    assert convolutions(rematerialise(plain)) == convolutions(plain) + 5


@pytest.mark.parametrize("segments", [0, 1, 4, -2, 2.0, True, "two"])
def test_a_number_of_segments_that_does_not_fit_is_refused(segments: Any) -> None:
    model = network(cifar(8), recomputed=False)
    with pytest.raises(UsageError, match=r"segments=.* has 3 blocks: give a whole number from 2 to 3"):
        rematerialise(model, segments=segments)


def test_models_that_cannot_be_cut_are_refused() -> None:
    inputs = keras.Input((8,), name="numbers")
    with pytest.raises(InputError, match="'strange' has no layers named stage1_block1_out"):
        rematerialise(keras.Model(inputs, keras.layers.Dense(2)(inputs), name="strange"))
    model = network(cifar(8), recomputed=False)
    with pytest.raises(UsageError, match="1 input.s. and 3 output"):
        rematerialise(features(model))
    model.get_layer("stage1_block1_relu1").activity_regularizer = keras.regularizers.L2(0.1)
    with pytest.raises(UsageError, match="'stage1_block1_relu1' has an activity_regularizer"):
        rematerialise(model)


def test_depth_beyond_the_recursion_limit_is_no_obstacle() -> None:
    limit = sys.getrecursionlimit()
    model = network(cifar(326, widths=(1, 1, 1)), recomputed=True, side=8)
    assert sys.getrecursionlimit() == limit
    assert len([layer for layer in model.layers if layer.name.endswith("_out")]) == 162


# Its argument is the type of numbers: in JAX's float32 one value of ReLU that falls on the other side of zero makes a
# hundredth, as does a weight's last bit.
BACKEND = """
import json
import sys
import keras
import numpy as np
from keras_resnet import build, cifar
keras.config.set_floatx(sys.argv[1])
differences = {}
cases = {
    "dropout": cifar(14, stochastic_depth=0.3, dropout=0.2),
    "preactivation": cifar(14, preactivation=True, shortcut_bn=False),
}
for name, spec in cases.items():
    found = []
    for recomputed in (False, True):
        keras.utils.set_random_seed(1)
        model = build(spec, input_shape=(16, 16, 3), rematerialise=recomputed)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy")
        rng = np.random.default_rng(7)
        images, labels = rng.normal(size=(12, 16, 16, 3)).astype(keras.config.floatx()), rng.integers(0, 10, 12)
        model.fit(images, labels, batch_size=4, shuffle=False, verbose=0)
        found.append([np.array(variable).astype("float64") for variable in model.variables])
    differences[name] = max(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6) for a, b in zip(*found))
print(json.dumps(differences))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "numbers", "tolerance"),
    [("torch", "float32", 0.0), ("torch", "float64", 0.0), ("jax", "float64", XLA_TOLERANCE)],
)
def test_other_backends_train_the_same(backend: str, numbers: str, tolerance: float) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs {backend}, which is not installed")
    found = run_script(BACKEND, numbers, KERAS_BACKEND=backend, JAX_ENABLE_X64="1")
    differences = json.loads(found.splitlines()[-1])
    assert set(differences) == {"dropout", "preactivation"}
    assert max(differences.values()) <= tolerance


MIRRORED = """
import keras
import numpy as np
import tensorflow as tf
from keras_resnet import build, cifar, freeze
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
devices = ["CPU:0", "CPU:1"]
strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())
for frozen in (False, True):
    found = []
    for recomputed in (False, True):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            spec = cifar(14, stochastic_depth=0.3, dropout=0.2)
            model = build(spec, input_shape=(16, 16, 3), rematerialise=recomputed)
            if frozen:
                freeze(model, through="stage2_block1")
            model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy")
        rng = np.random.default_rng(7)
        images, labels = rng.normal(size=(19, 16, 16, 3)).astype("float32"), rng.integers(0, 10, 19)
        model.fit(images, labels, batch_size=8, shuffle=False, verbose=0)
        found.append([variable.numpy() for variable in model.variables])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*found))
print("equal")
"""


@pytest.mark.slow
def test_training_on_two_replicas_is_bit_identical() -> None:
    assert run_script(MIRRORED).split() == ["equal"]


@pytest.mark.slow
def test_the_peak_of_memory_grows_less_with_the_batch() -> None:
    def peak_mb(form: str, batch: int) -> int:
        command = [sys.executable, "-m", "benchmarks.rematerialisation", "--child", form, "2"]
        command += ["--depths", "56", "--batches", str(batch)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])["peak_mb"]

    growth = {form: peak_mb(form, 128) - peak_mb(form, 16) for form in ("without", "with")}
    assert growth["with"] < 0.5 * growth["without"]  # 0.25 was seen


def run_script(source: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
