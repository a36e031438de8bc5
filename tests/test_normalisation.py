"""BatchNormalization in one kernel: Keras' numbers, Keras' files, and Keras' own code wherever the kernel stops."""

from __future__ import annotations

import copy
import json
import os
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
from keras import layers

from keras_resnet import build, cifar, freeze, load_model, specs
from keras_resnet.errors import UsageError
from keras_resnet.normalisation import fuse
from tests.conftest import SEED

SHAPE = (6, 5, 7, 3)
# Of a tensor's largest value, beside a float64 computation.
TOLERANCE = {"float32": 1e-5, "mixed_bfloat16": 2**-7, "mixed_float16": 2**-10}
KERNEL = "FusedBatchNormV3"


@pytest.fixture(autouse=True)
def float32_afterwards() -> Iterator[None]:
    yield
    keras.config.set_dtype_policy("float32")


def inputs(shape: tuple[int, ...] = SHAPE, dtype: str = "float32") -> tf.Tensor:
    """Channels of means and spreads far apart."""
    rng = np.random.default_rng(SEED)
    channels = np.arange(shape[-1]) + 1
    return tf.constant(rng.normal(10 * channels, channels, shape), dtype)


def norm(**options: Any) -> layers.BatchNormalization:
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, gamma_initializer="random_normal", **options)


def alike(shape: Any, *made: layers.BatchNormalization) -> tuple[layers.BatchNormalization, ...]:
    """The layers, built and with the weights of the first."""
    for layer in made:
        layer.build(tuple(shape))
        layer.set_weights(made[0].get_weights())
    return made


def step(layer: layers.Layer, x: tf.Tensor, **call: Any) -> dict[str, np.ndarray]:
    """What one training step of a layer gives: outputs, gradients, and the statistics it leaves."""
    sines = tf.sin(tf.range(tf.size(x), dtype=tf.float32))
    weight = tf.cast(tf.reshape(tf.round(8 * sines) / 8, x.shape), layer.compute_dtype)  # exact in every type
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, **call)
        loss = tf.reduce_sum(tf.cast(y * weight, tf.float64))
    gradients = tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])
    named = zip(["x", *(v.name for v in layer.trainable_variables)], gradients, strict=True)
    return {
        "outputs": np.asarray(tf.cast(y, tf.float64)),
        **{f"d{name}": np.asarray(tf.cast(g, tf.float64)) for name, g in named if g is not None},
        **{v.name: np.asarray(v.value, np.float64) for v in layer.non_trainable_variables},
    }


def assert_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= tolerance * max(1e-3, np.abs(value).max()), name


def kernels_in(layer: Callable[..., Any], x: tf.Tensor, **call: Any) -> int:
    graph = tf.function(lambda x: layer(x, training=True, **call)).get_concrete_function(x).graph
    return sum(operation.type == KERNEL for operation in graph.get_operations())


@pytest.mark.parametrize("policy", TOLERANCE)
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"axis": 3}], ids=str)
def test_a_step_gives_kerass_outputs_gradients_and_statistics(policy: str, options: dict[str, Any]) -> None:
    x = inputs(dtype=policy.removeprefix("mixed_"))
    stock, fused, exact = alike(
        x.shape, norm(dtype=policy, **options), fuse(norm(dtype=policy, **options)), norm(dtype="float64", **options)
    )
    assert kernels_in(fused, x) == 1
    found = step(fused, x)
    assert_near(found, step(exact, tf.cast(x, tf.float64)), TOLERANCE[policy])
    assert_near(found, step(stock, x), TOLERANCE[policy])


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 1, 1, 3), (6, 5, 7, 3)], ids=str)
def test_the_variance_kept_is_that_of_the_batch(shape: tuple[int, ...]) -> None:
    layer, x = fuse(norm()), inputs(shape)
    layer(x, training=True)
    expected = 0.9 + 0.1 * np.var(x, axis=(0, 1, 2))  # NumPy divides by n
    np.testing.assert_allclose(layer.moving_variance.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.1 * np.mean(x, axis=(0, 1, 2)), rtol=1e-5)


ELSEWHERE: dict[str, tuple[dict[str, Any], tf.Tensor, dict[str, Any]]] = {
    "float64": ({"dtype": "float64"}, inputs(dtype="float64"), {}),
    "another axis": ({"axis": 1}, inputs((6, 3, 5, 3)), {}),
    "vectors": ({}, inputs((6, 3)), {}),
    "volumes": ({}, inputs((2, 4, 3, 2, 3)), {}),
    "mask": ({}, inputs(), {"mask": tf.constant(np.arange(6 * 5 * 7).reshape(6, 5, 7) % 3 > 0)}),
    "renormalisation": ({"renorm": True}, inputs(), {}),
    "Keras' own synchronisation": ({"synchronized": True}, inputs(), {}),
    "frozen": ({"trainable": False}, inputs(), {}),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_where_the_kernel_stops_the_layer_is_kerass_own_to_the_last_bit(case: str) -> None:
    options, x, call = ELSEWHERE[case]
    stock, fused = alike(x.shape, norm(**options), fuse(norm(**options)))
    assert kernels_in(fused, x, **call) == 0
    assert_near(step(fused, x, **call), step(stock, x, **call), 0.0)


def test_inference_is_kerass_own_to_the_last_bit() -> None:
    x = inputs()
    stock, fused = alike(x.shape, norm(), fuse(norm()))
    for training in (False, None):
        np.testing.assert_array_equal(fused(x, training=training), stock(x, training=training))


def test_thawed_layers_train_again() -> None:
    layer, x = fuse(norm()), inputs()
    layer(x)
    layer.trainable = False
    assert kernels_in(layer, x) == 0
    layer.trainable = True
    assert kernels_in(layer, x) == 1


# Networks


SMALL = {
    "cifar": cifar(8),
    "pre-activation": cifar(8, preactivation=True, shortcut_bn=False),
    "imagenet": replace(specs.VARIANTS["resnet50_v1"], depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), classes=10),
    "resnext": replace(
        specs.VARIANTS["resnext50_32x4d"], depths=(1, 1, 1, 1), widths=(64, 64, 64, 64), groups=4, classes=10
    ),
}


def network(case: str = "cifar", side: int = 32, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(SEED)
    return build(SMALL[case], input_shape=(side, side, 3), **options)


def stock_copy(model: keras.Model) -> keras.Model:
    """The network with Keras' own layers throughout, and its weights."""
    copied = keras.models.clone_model(model)
    copied.set_weights(model.get_weights())
    return copied


def batch(count: int = 8, side: int = 32) -> tuple[Any, Any]:
    rng = np.random.default_rng(SEED)
    return rng.normal(size=(count, side, side, 3)).astype("float32"), rng.integers(0, 10, count)


def fit(model: keras.Model, steps: int = 1, **options: Any) -> float:
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", **options)
    images, labels = batch(side=model.input_shape[1])
    history = model.fit(images, labels, batch_size=8, epochs=steps, shuffle=False, verbose=0)
    return history.history["loss"][-1]


def smooth(model: keras.Model) -> keras.Model:
    """A stock copy without the jumps of ReLU's gradient, where one rounding would hide all others."""

    def clone(layer: layers.Layer) -> layers.Layer:
        change = {"activation": "softplus"} if isinstance(layer, layers.Activation) else {}
        return type(layer).from_config({**layer.get_config(), **change})

    copied = keras.models.clone_model(model, clone_function=clone)
    copied.set_weights(model.get_weights())
    return copied


def gradients(model: keras.Model, **options: Any) -> list[np.ndarray]:
    """Of one training step, which moves the statistics."""
    images, labels = batch()

    @tf.function(**options)
    def run() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            answers = model(images, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, answers))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    return [np.asarray(g) for g in run()]


def assert_equal_step(fused: keras.Model, stock: keras.Model, **options: Any) -> None:
    for variable, a, b in zip(fused.trainable_variables, gradients(fused, **options), gradients(stock), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * max(1.0, np.abs(b).max()), variable.path
    for a, b in zip(fused.non_trainable_variables, stock.non_trainable_variables, strict=True):
        assert np.abs(a.numpy() - b.numpy()).max() <= 1e-5 * max(1.0, np.abs(b.numpy()).max()), a.path


def kernels_of(model: keras.Model) -> int:
    return kernels_in(model, tf.zeros((2, *model.input_shape[1:])))


def normalisations(model: keras.Model) -> list[layers.BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]


@pytest.mark.parametrize("case", SMALL)
def test_every_normalisation_of_a_network_trains_in_one_kernel(case: str) -> None:
    model = network(case)
    assert kernels_of(model) == len(normalisations(model)) > 0


@pytest.mark.parametrize("case", ["cifar", "pre-activation", "imagenet"])
def test_one_step_from_equal_weights_gives_kerass_gradients_and_statistics(case: str) -> None:
    model = network(case)
    assert_equal_step(fuse(smooth(model)), smooth(model))


@pytest.mark.slow
def test_xla_compiles_the_step_to_the_same() -> None:
    model = network()
    assert_equal_step(fuse(smooth(model)), smooth(model), jit_compile=True)


def test_fit_goes_down_kerass_way() -> None:
    fused = network()
    assert fit(fused, 3) == pytest.approx(fit(stock_copy(network()), 3), rel=1e-3)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_mixed_precision_trains_to_kerass_losses(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    fused = network(side=8)  # float16 is slow on a processor
    stock = stock_copy(fused)
    assert kernels_of(fused) == len(normalisations(fused))
    # A rounding of the type in each of some 20 layers.
    assert fit(fused, 2) == pytest.approx(fit(stock, 2), rel=0.02)


def test_two_deterministic_runs_are_the_same_to_the_last_bit() -> None:
    runs = []
    for _ in range(2):
        model = network()
        fit(model, 3)
        runs.append(b"".join(value.tobytes() for value in model.get_weights()))
    assert runs[0] == runs[1]


def test_frozen_parts_keep_their_statistics() -> None:
    model = network()
    freeze(model, through="stage1")
    before = {v.path: v.numpy() for v in model.non_trainable_variables}
    fit(model)
    moved = {v.path.split("/")[-2] for v in model.non_trainable_variables if not np.array_equal(before[v.path], v)}
    expected = {layer.name for layer in normalisations(model) if not layer.name.startswith(("stem", "stage1"))}
    assert moved == expected


COPIES: dict[str, Callable[[keras.Model], keras.Model]] = {
    "clone_model": keras.models.clone_model,
    "from_config": lambda model: keras.Model.from_config(model.get_config()),
    "deepcopy": copy.deepcopy,
    "from_json": lambda model: keras.models.model_from_json(model.to_json()),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_compute_the_same_and_fuse_makes_them_fast(way: str) -> None:
    model = network()
    copied = COPIES[way](model)
    copied.set_weights(model.get_weights())
    images, _ = batch()
    np.testing.assert_array_equal(copied(images, training=False), model(images, training=False))
    assert fuse(copied) is copied
    assert kernels_of(copied) == len(normalisations(model))


def test_models_within_models_are_fused_too() -> None:
    image = keras.Input((32, 32, 3))
    inner = stock_copy(network())
    outer = keras.Model(image, layers.Dense(2)(inner(image)))
    assert kernels_of(outer) == 0
    assert kernels_of(fuse(outer)) == len(normalisations(inner))


LOAD_PLAIN = """
import json, sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1])
from_json = keras.models.model_from_json(open(sys.argv[2]).read())
x = np.load(sys.argv[3])
np.save(sys.argv[4], model.predict_on_batch(x))
np.save(sys.argv[5], model(x, training=True))
norms = [type(l) for l in (*model.layers, *from_json.layers) if type(l).__name__ == "BatchNormalization"]
print(json.dumps({
    "stock": len(norms) > 0 and all(kind is keras.layers.BatchNormalization for kind in norms),
    "package": any(name.startswith("keras_resnet") for name in sys.modules),
}))
"""


def test_a_saved_network_is_a_plain_file_that_loads_without_this_package(tmp_path: Path) -> None:
    model = network()
    fit(model)
    model.save(tmp_path / "model.keras")
    (tmp_path / "model.json").write_text(model.to_json())
    images, _ = batch()
    np.save(tmp_path / "x.npy", images)
    files = [str(tmp_path / name) for name in ("model.keras", "model.json", "x.npy", "y.npy", "trained.npy")]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_PLAIN, *files], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"stock": True, "package": False}
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model.predict_on_batch(images))
    np.testing.assert_allclose(np.load(tmp_path / "trained.npy"), model(images, training=True), atol=1e-5)


def test_the_configuration_is_that_of_keras() -> None:
    model = network()
    assert model.to_json() == keras.models.clone_model(model).to_json()


def test_our_loader_gives_a_network_that_trains_fast(tmp_path: Path) -> None:
    model = network()
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert kernels_of(loaded) == len(normalisations(model))


# Synchronised over replicas


TWO_REPLICAS = """
import json, keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from keras import layers
from keras_resnet.normalisation import fuse
rng = np.random.default_rng(SEED)
images, labels = rng.normal(1, 2, (24, 8, 8, 3)), rng.integers(0, 4, 24)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def train(replicas):
    keras.utils.set_random_seed(SEED)
    with strategy.scope() if replicas == 2 else tf.init_scope():
        model = keras.Sequential([
            keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(name="a"), layers.ReLU(),
            layers.Conv2D(4, 3), layers.BatchNormalization(name="b", scale=False), layers.GlobalAveragePooling2D(),
            layers.BatchNormalization(name="c", center=False), layers.Dense(4, "softmax"),
        ])
        fuse(model, synchronised=True)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    losses = model.fit(images, labels, batch_size=8, epochs=5, shuffle=False, verbose=0).history["loss"]
    return losses, model.get_weights(), model.to_json()

for policy in ("float32", "float64"):
    keras.config.set_floatx(policy)
    keras.config.set_dtype_policy(policy)
    (one, weights, _), (two, others, written) = train(1), train(2)
    print(json.dumps([
        max(abs(a / b - 1) for a, b in zip(two, one)),
        float(max(np.abs(a - b).max() for a, b in zip(weights, others))),
        written.count('"synchronized": true')]))
"""


def test_replicas_with_shared_statistics_train_as_one_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS.replace("SEED", str(SEED))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for line, tolerance in zip(done.stdout.splitlines()[-2:], (1e-5, 1e-12), strict=True):
        losses, weights, written = json.loads(line)
        assert losses <= tolerance, line
        assert weights <= tolerance, line
        assert written == 0


def test_what_cannot_be_synchronised_is_refused() -> None:
    with pytest.raises(UsageError, match="renorm=True"):
        fuse(norm(renorm=True, name="bn"), synchronised=True)
