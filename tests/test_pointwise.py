"""1x1 convolutions with a stride: Keras' numbers, Keras' files, and a gradient that leaves other memory alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_resnet import build, load_model
from keras_resnet.pointwise import SAFE_CHANNELS, guard
from tests.conftest import SEED

# Of one block a stage, with a 1x1 shortcut at stride 2 from fewer channels than the kernel writes.
NARROW: dict[str, Any] = {"depths": (1, 1), "widths": (8, 16), "classes": 3, "input_shape": (16, 16, 3)}


def conv(channels: int = 8, size: int = 1, **options: Any) -> layers.Conv2D:
    options = {"strides": 2, "padding": "same", "bias_initializer": "random_normal", **options}
    layer = layers.Conv2D(16, size, **options)
    layer.build((None, None, None, channels))
    return layer


def alike(channels: int = 8, **options: Any) -> tuple[layers.Conv2D, layers.Conv2D]:
    """Keras' own, and one that is guarded, of equal weights."""
    stock, guarded = conv(channels, **options), guard(conv(channels, **options))
    guarded.set_weights(stock.get_weights())
    return stock, guarded


def pixels(*shape: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(SEED).normal(size=shape), tf.float32)


def strides_in(function: Callable[..., Any], *arguments: Any) -> dict[str, list[list[int]]]:
    """The strides of the convolutions, and of the gradients of their kernels, in the graph of a function."""
    operations = tf.function(function).get_concrete_function(*arguments).graph.get_operations()
    kinds = ("Conv2D", "Conv2DBackpropFilter")
    return {kind: [list(o.get_attr("strides"))[1:3] for o in operations if o.type == kind] for kind in kinds}


def gradient(layer: Callable[..., Any], x: tf.Tensor) -> Callable[[tf.Tensor], Any]:
    def gradient_of(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(y * tf.sin(tf.reshape(tf.range(tf.size(y), dtype=tf.float32), tf.shape(y))))
        return y, tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])

    return gradient_of


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (7, 5), (1, 4)])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [2, 3])
def test_outputs_and_gradients_are_those_of_the_formula(rows: int, columns: int, padding: str, stride: int) -> None:
    layer, x = guard(conv(strides=stride, padding=padding)), pixels(3, rows, columns, 8)
    y, (dx, dkernel, dbias) = gradient(layer, x)(x)
    kernel, bias = (np.float64(value) for value in layer.get_weights())
    taken = np.float64(x)[:, ::stride, ::stride]
    np.testing.assert_allclose(y, taken @ kernel[0, 0] + bias, atol=1e-5)
    dy = np.sin(np.arange(y.shape.num_elements())).reshape(y.shape)
    expected = np.zeros(x.shape)
    expected[:, ::stride, ::stride] = dy @ kernel[0, 0].T
    np.testing.assert_allclose(dx, expected, atol=1e-5)
    np.testing.assert_allclose(dkernel[0, 0], np.einsum("nhwi,nhwo->io", taken, dy), atol=1e-4)
    np.testing.assert_allclose(dbias, dy.sum((0, 1, 2)), atol=1e-4)


def test_the_gradient_of_a_narrow_kernel_has_no_stride() -> None:
    stock, guarded = alike()
    x = pixels(2, 8, 8, 8)
    assert strides_in(gradient(stock, x), x)["Conv2DBackpropFilter"] == [[2, 2]]
    assert strides_in(gradient(guarded, x), x)["Conv2DBackpropFilter"] == [[1, 1]]


@pytest.mark.parametrize(
    ("channels", "options"),
    [(SAFE_CHANNELS, {}), (8, {"size": 3}), (8, {"strides": 1}), (8, {"activation": "relu", "size": 2})],
    ids=str,
)
def test_other_convolutions_are_kerass_own(channels: int, options: dict[str, Any]) -> None:
    stock, other = alike(channels, **options)
    x = pixels(2, 8, 8, channels)
    assert strides_in(gradient(other, x), x) == strides_in(gradient(stock, x), x)
    assert np.array_equal(stock(x, training=True), other(x, training=True))


@pytest.mark.parametrize("training", [False, None])
def test_inference_is_kerass_own_to_the_last_bit(training: bool | None) -> None:
    stock, guarded = alike(activation="relu")
    x = pixels(2, 7, 8, 8)
    assert strides_in(lambda x: guarded(x, training=training), x)["Conv2D"] == [[2, 2]]
    assert np.array_equal(stock(x, training=training), guarded(x, training=training))


@pytest.mark.parametrize("variant", ["cifar_resnet8", "cifar_resnet110_v2", "resnet18"])
def test_a_narrow_network_trains_without_the_fault_whoever_made_it(variant: str, tmp_path: Path) -> None:
    model = build(variant, **{**NARROW, "input_shape": (32, 32, 3), "shortcut": "B"})
    model.save(tmp_path / "a.keras")
    x = pixels(2, 32, 32, 3)
    for one in (model, load_model(tmp_path / "a.keras")):
        narrow = [v for v in one.trainable_variables if v.path.endswith("shortcut_conv/kernel")]
        assert [tuple(v.shape) for v in narrow] == [(1, 1, 8, 16)]
        found = strides_in(gradient(one, x), x)["Conv2DBackpropFilter"]
        kernels = [v for v in one.trainable_variables if len(v.shape) == 4]
        assert len(found) == len(kernels)
        wide = [
            c for c in one.layers if isinstance(c, layers.Conv2D) and max(c.strides) > 1 and c.kernel_size != (1, 1)
        ]
        assert found.count([2, 2]) == len(wide)


def test_a_saved_network_holds_kerass_own_layer(tmp_path: Path) -> None:
    model = build("cifar_resnet8", **NARROW)
    model.save(tmp_path / "a.keras")
    plain = keras.models.load_model(tmp_path / "a.keras")
    x = pixels(2, 16, 16, 3)
    assert np.array_equal(plain(x), model(x))
    assert {layer["module"] for layer in model.get_config()["layers"]} == {"keras.layers"}
    assert not any("convolution_op" in vars(layer) for layer in plain.layers)


def test_a_narrow_network_trains_to_the_end_and_leaves_the_process_alive() -> None:
    """On processors with AVX-512 the unguarded network ends it, most often within ten steps."""
    program = (
        "import numpy as np, keras_resnet\n"
        f"model = keras_resnet.build('cifar_resnet8', **{NARROW!r})\n"
        "model.compile('sgd', 'sparse_categorical_crossentropy', jit_compile=False)\n"
        "x = np.random.default_rng(0).normal(size=(33, 16, 16, 3)).astype('float32')\n"
        "for size in [33, 32, 17] * 10:\n"
        "    model.train_on_batch(x[:size], np.arange(size) % 3)\n"
        "print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]
