"""The replay of Core ML packages against TensorFlow: random programs, in which every operation that it knows occurs.

A move is an operation with settings drawn at random, in two languages: MIL, channels first, and TensorFlow, channels
last. A program is a chain of them. Where TensorFlow has no such setting, the reference is made of what it has.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.export.mil import open_package
from keras_resnet.export.mil_ops import OPERATIONS

ct = pytest.importorskip("coremltools")
mb = ct.converters.mil.Builder

Shape = tuple[int, ...]  # height, width, channels
Move = tuple[Callable[[Any], Any], Callable[[Any], Any]]
LENGTH = 5  # moves in a program
IMAGES = 3


def numbers(draw: np.random.Generator, *shape: int) -> np.ndarray:
    return draw.standard_normal(shape).astype(np.float32)


def chosen(draw: np.random.Generator, *options: Any) -> Any:
    return options[draw.integers(len(options))]


def first(x: Any) -> Any:
    return tf.transpose(x, [0, 3, 1, 2])


def last(x: Any) -> Any:
    return tf.transpose(x, [0, 2, 3, 1])


def simple(kind: str, reference: Callable[[Any], Any], **settings: Any) -> Callable[..., Move]:
    return lambda draw, shape: (lambda x: getattr(mb, kind)(x=x, **settings), reference)


def of_two(kind: str, reference: Callable[[Any, Any], Any]) -> Callable[..., Move]:
    """With one number a channel, before or behind it, or with another value of the program."""

    def move(draw: np.random.Generator, shape: Shape) -> Move:
        vector, way = numbers(draw, shape[2]), draw.integers(3)
        column = vector[:, None, None]
        if way == 0:
            return lambda x: getattr(mb, kind)(x=x, y=column), lambda x: reference(x, vector)
        if way == 1:
            return lambda x: getattr(mb, kind)(x=column, y=x), lambda x: reference(vector, x)
        return lambda x: getattr(mb, kind)(x=x, y=mb.relu6(x=x)), lambda x: reference(x, tf.nn.relu6(x))

    return move


def real_div(draw: np.random.Generator, shape: Shape) -> Move:
    vector = np.abs(numbers(draw, shape[2])) + 0.5
    if draw.integers(2):
        return lambda x: mb.real_div(x=x, y=vector[:, None, None]), lambda x: x / vector
    return lambda x: mb.real_div(x=vector[:, None, None], y=mb.sigmoid(x=x)), lambda x: vector / tf.sigmoid(x)


def sides_of(draw: np.random.Generator, kernel: tuple[int, int]) -> list[int]:
    """Rows and columns of padding, fewer than a kernel is long: top, bottom, left, right."""
    return [int(draw.integers(size)) for size in kernel for _ in range(2)]


def windows(draw: np.random.Generator, shape: Shape, *kinds: str) -> tuple[dict[str, Any], Any, Any, Any]:
    """Settings of a convolution or a pool; and, of those, strides, the padding in TensorFlow's words, its kind."""
    kernel = tuple(int(draw.integers(1, min(3, length) + 1)) for length in shape[:2])
    strides = [int(draw.integers(1, min(2, size) + 1)) for size in kernel]  # no image falls between two windows
    kind = chosen(draw, *kinds)
    settings: dict[str, Any] = {"pad_type": kind, "strides": strides}
    if kind == "custom":
        settings["pad"] = sides = sides_of(draw, kernel)
        return settings, kernel, [[0, 0], sides[:2], sides[2:], [0, 0]], kind
    return settings, kernel, "VALID" if kind == "valid" else "SAME", kind


def flipped(x: Any) -> Any:
    """Upside down and back to front: where more is padded below by the one rule, it is above by the other."""
    return tf.reverse(x, [1, 2])


def conv(draw: np.random.Generator, shape: Shape) -> Move:
    settings, kernel, padding, kind = windows(draw, shape, "valid", "same", "same_lower", "custom")
    groups = chosen(draw, *(n for n in (1, 2, 4) if shape[2] % n == 0))
    filters = groups * int(draw.integers(1, 4))
    weight, bias = numbers(draw, filters, shape[2] // groups, *kernel), numbers(draw, filters)
    parts = np.split(weight.transpose(2, 3, 1, 0), groups, axis=3)
    options: dict[str, Any] = {"bias": bias} if draw.integers(2) else {}
    if settings["strides"] == [1, 1] and kind == "valid" and min(shape[:2]) >= 5:
        options["dilations"] = [2, 2]

    def reference(x: Any) -> Any:
        x = flipped(x) if kind == "same_lower" else x
        found = []
        for part, kernels in zip(tf.split(x, groups, axis=3), parts, strict=True):
            turned = kernels[::-1, ::-1] if kind == "same_lower" else kernels
            dilations = options.get("dilations", 1)
            found.append(tf.nn.conv2d(part, turned, settings["strides"], padding, dilations=dilations))
        y = tf.concat(found, axis=3)
        return (flipped(y) if kind == "same_lower" else y) + options.get("bias", 0)

    return lambda x: mb.conv(x=x, weight=weight, groups=groups, **settings, **options), reference


def max_pool(draw: np.random.Generator, shape: Shape) -> Move:
    settings, kernel, padding, kind = windows(draw, shape, "valid", "same", "same_lower", "custom")

    def reference(x: Any) -> Any:
        if kind == "same_lower":
            return flipped(tf.nn.max_pool2d(flipped(x), kernel, settings["strides"], padding))
        return tf.nn.max_pool2d(x, kernel, settings["strides"], padding)

    return lambda x: mb.max_pool(x=x, kernel_sizes=kernel, **settings), reference


def avg_pool(draw: np.random.Generator, shape: Shape) -> Move:
    settings, kernel, padding, kind = windows(draw, shape, "valid", "same", "same_lower", "custom")
    without = bool(draw.integers(2)) if kind in ("valid", "custom") else True
    if kind == "custom" and without:  # each window must hold a pixel
        settings["pad"] = [min(side, 1) for side in settings["pad"]]
    sides = settings.get("pad", [0] * 4)

    def reference(x: Any) -> Any:
        if kind == "same_lower":
            return flipped(tf.nn.avg_pool2d(flipped(x), kernel, settings["strides"], padding))
        if kind != "custom":
            return tf.nn.avg_pool2d(x, kernel, settings["strides"], padding)
        padded = [[0, 0], sides[:2], sides[2:], [0, 0]]
        ones = tf.ones_like(x) if without else tf.ones_like(tf.pad(x, padded))
        count = tf.pad(ones, padded) if without else ones
        sums = [tf.nn.avg_pool2d(y, kernel, settings["strides"], "VALID") for y in (tf.pad(x, padded), count)]
        return sums[0] / sums[1]

    return (
        lambda x: mb.avg_pool(x=x, kernel_sizes=kernel, exclude_padding_from_average=without, **settings),
        reference,
    )


def batch_norm(draw: np.random.Generator, shape: Shape) -> Move:
    mean, gamma, beta = (numbers(draw, shape[2]) for _ in range(3))
    variance, epsilon = np.abs(numbers(draw, shape[2])) + 0.1, np.float32(10.0 ** -draw.integers(1, 6))
    options = chosen(draw, {}, {"gamma": gamma, "beta": beta})
    return (
        lambda x: mb.batch_norm(x=x, mean=mean, variance=variance, epsilon=epsilon, **options),
        lambda x: tf.nn.batch_normalization(x, mean, variance, options.get("beta"), options.get("gamma"), epsilon),
    )


def pad(draw: np.random.Generator, shape: Shape) -> Move:
    sides, value = [int(n) for n in draw.integers(0, 3, 6)], np.float32(draw.standard_normal())
    channels, rows, columns = (sides[i : i + 2] for i in (0, 2, 4))
    return (
        lambda x: mb.pad(x=x, pad=[0, 0, *sides], mode="constant", constant_val=value),
        lambda x: tf.pad(x, [[0, 0], rows, columns, channels], constant_values=value),
    )


def reshape(draw: np.random.Generator, shape: Shape) -> Move:
    height, width, channels = shape
    new = chosen(draw, (channels, height * width, 1), (channels * height, 1, width), (1, channels, height * width))
    return lambda x: mb.reshape(x=x, shape=[1, *new]), lambda x: last(tf.reshape(first(x), [-1, *new]))


def transpose(draw: np.random.Generator, shape: Shape) -> Move:
    order = [0, *(1 + draw.permutation(3))]
    return lambda x: mb.transpose(x=x, perm=order), lambda x: last(tf.transpose(first(x), order))


def reduce_mean(draw: np.random.Generator, shape: Shape) -> Move:
    axes = sorted(int(axis) for axis in 1 + draw.choice(3, draw.integers(1, 3), replace=False))
    return (
        lambda x: mb.reduce_mean(x=x, axes=axes, keep_dims=True),
        lambda x: last(tf.reduce_mean(first(x), axes, keepdims=True)),
    )


def squeeze(draw: np.random.Generator, shape: Shape) -> Move:
    """What has gone is put back, by `expand_dims`, at another place."""
    axis, place = (int(n) for n in draw.integers(1, 4, 2))
    return (
        lambda x: mb.expand_dims(
            x=mb.squeeze(x=mb.reduce_mean(x=x, axes=[axis], keep_dims=True), axes=[axis]), axes=[place]
        ),
        lambda x: last(tf.expand_dims(tf.reduce_mean(first(x), axis), place)),
    )


def expand_dims(draw: np.random.Generator, shape: Shape) -> Move:
    """Of what lost two axes."""
    axes = chosen(draw, [1, 2], [2, 3], [1, 3])
    return (
        lambda x: mb.expand_dims(x=mb.reduce_mean(x=x, axes=axes, keep_dims=False), axes=axes),
        lambda x: last(tf.reduce_mean(first(x), axes, keepdims=True)),
    )


def concat(draw: np.random.Generator, shape: Shape) -> Move:
    axis = int(draw.integers(1, 4))
    return (
        lambda x: mb.concat(values=(x, mb.relu(x=x)), axis=axis),
        lambda x: last(tf.concat([first(x), first(tf.nn.relu(x))], axis)),
    )


def slice_by_index(draw: np.random.Generator, shape: Shape) -> Move:
    """Also by negative places, with ends left open, and with an axis taken out, which is put back."""
    lengths = [1, shape[2], *shape[:2]]
    begin = [int(draw.integers(length)) for length in lengths]
    end = [int(draw.integers(start + 1, length + 1)) for start, length in zip(begin, lengths, strict=True)]
    stride = [1, *(int(n) for n in draw.integers(1, 3, 3))]
    opened = [True, *(bool(n) for n in draw.integers(0, 2, 3))]
    closed = [True, *(bool(n) for n in draw.integers(0, 2, 3))]
    cut = tuple(
        slice(None if o else b, None if c else e, s)
        for b, e, s, o, c in zip(begin, end, stride, opened, closed, strict=True)
    )
    if draw.integers(2):
        begin = [b - length if b else b for b, length in zip(begin, lengths, strict=True)]
    settings: dict[str, Any] = {"stride": stride, "begin_mask": opened, "end_mask": closed}
    axis = int(draw.integers(1, 4))
    if not draw.integers(2):
        return (
            lambda x: mb.slice_by_index(x=x, begin=begin, end=end, **settings),
            lambda x: last(first(x)[cut]),
        )
    settings.update(squeeze_mask=[i == axis for i in range(4)], stride=None)
    settings["begin_mask"] = settings["end_mask"] = [True, *(i != axis for i in range(1, 4))]
    place = begin[axis] % lengths[axis]
    return (
        lambda x: mb.expand_dims(
            x=mb.slice_by_index(x=x, begin=begin, end=end, **{k: v for k, v in settings.items() if v is not None}),
            axes=[axis],
        ),
        lambda x: last(tf.expand_dims(tf.gather(first(x), place, axis=axis), axis)),
    )


def linear(draw: np.random.Generator, shape: Shape) -> Move:
    features = int(draw.integers(1, 7))
    weight, bias = numbers(draw, features, shape[2]), numbers(draw, features)
    options = chosen(draw, {}, {"bias": bias})
    return (
        lambda x: mb.expand_dims(
            x=mb.linear(x=mb.reduce_mean(x=x, axes=[2, 3], keep_dims=False), weight=weight, **options), axes=[2, 3]
        ),
        lambda x: (tf.linalg.matvec(weight, tf.reduce_mean(x, [1, 2])) + options.get("bias", 0))[:, None, None],
    )


def matmul(draw: np.random.Generator, shape: Shape) -> Move:
    turned = {name: bool(draw.integers(2)) for name in ("transpose_x", "transpose_y")}
    inner, outer = shape[0 if turned["transpose_x"] else 1], int(draw.integers(1, 5))
    matrix = numbers(draw, inner, outer)
    y = matrix.T.copy() if turned["transpose_y"] else matrix
    rule = "nhwc,hk->nwkc" if turned["transpose_x"] else "nhwc,wk->nhkc"
    return lambda x: mb.matmul(x=x, y=y, **turned), lambda x: tf.einsum(rule, x, matrix)


def quantize(draw: np.random.Generator, shape: Shape) -> Move:
    """To bytes of either kind and back, for the whole or by channel, with a place for zero or without."""
    by_channel, dtype = bool(draw.integers(2)), chosen(draw, "int8", "uint8")
    size = shape[2] if by_channel else 1
    scale = draw.uniform(0.01, 0.1, size).astype(np.float32)
    zero = draw.integers(-20, 20, size).astype(np.int8) if dtype == "int8" else draw.integers(100, 150, size)
    zero = zero.astype(dtype)
    place = {"axis": 1} if by_channel else {}
    steps: dict[str, Any] = {"scale": scale if by_channel else scale[0], **place}
    if draw.integers(2):
        steps["zero_point"] = zero if by_channel else zero[0]
    offset = zero.astype(np.float32) if "zero_point" in steps else np.float32(0)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return (
        lambda x: mb.dequantize(input=mb.quantize(input=x, output_dtype=dtype, **steps), **steps),
        lambda x: (tf.clip_by_value(tf.round(x / scale) + offset, low, high) - offset) * scale,
    )


def cast(draw: np.random.Generator, shape: Shape) -> Move:
    return (
        lambda x: mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32"),
        lambda x: tf.cast(tf.cast(x, tf.float16), tf.float32),
    )


def softmax(draw: np.random.Generator, shape: Shape) -> Move:
    axis = chosen(draw, 1, 2, 3, -1)
    return lambda x: mb.softmax(x=x, axis=axis), lambda x: last(tf.nn.softmax(first(x), axis))


MOVES: dict[str, Callable[[np.random.Generator, Shape], Move]] = {
    "add": of_two("add", tf.add),
    "sub": of_two("sub", tf.subtract),
    "mul": of_two("mul", tf.multiply),
    "maximum": of_two("maximum", tf.maximum),
    "real_div": real_div,
    "relu": simple("relu", tf.nn.relu),
    "relu6": simple("relu6", tf.nn.relu6),
    "sigmoid": simple("sigmoid", tf.sigmoid),
    "silu": simple("silu", tf.nn.silu),
    "identity": simple("identity", tf.identity),
    "softmax": softmax,
    "conv": conv,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "reduce_mean": reduce_mean,
    "pad": pad,
    "transpose": transpose,
    "reshape": reshape,
    "squeeze": squeeze,
    "expand_dims": expand_dims,
    "concat": concat,
    "slice_by_index": slice_by_index,
    "linear": linear,
    "matmul": matmul,
    "cast": cast,
    "quantize": quantize,
}
# A last bit of difference in what they read may become a whole step: they come first, where both read the same.
ROUNDING = ("cast", "quantize")
SEED = 0


def test_every_operation_is_a_move() -> None:
    known = {name for name in OPERATIONS if not name.startswith("constexpr_")}
    assert known == {*MOVES, "dequantize"}


def program(kind: str, seed: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any], Shape]:
    """A random program in which there is one operation of this kind: in MIL, in TensorFlow, and what it reads."""
    draw = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    others = [name for name in MOVES if name not in ROUNDING]
    kinds = [chosen(draw, *others) for _ in range(LENGTH)]
    kinds[0 if kind in ROUNDING else draw.integers(LENGTH)] = kind
    shape: Shape = (*(int(n) for n in draw.integers(5, 10, 2)), 4)
    moves: list[Move] = []
    x = tf.zeros((1, *shape))
    for name in kinds:
        moves.append(MOVES[name](draw, tuple(x.shape[1:])))
        x = moves[-1][1](x)

    def in_mil(x: Any) -> Any:
        x = mb.transpose(x=x, perm=[0, 3, 1, 2])
        for build, _ in moves:
            x = build(x)
        return mb.transpose(x=x, perm=[0, 2, 3, 1])

    def in_tensorflow(x: Any) -> Any:
        for _, compute in moves:
            x = compute(x)
        return x

    return in_mil, in_tensorflow, shape


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
@pytest.mark.parametrize("kind", MOVES)
def test_a_random_program_gives_what_tensorflow_gives(kind: str, seed: int, tmp_path: Path) -> None:
    in_mil, in_tensorflow, shape = program(kind, seed)
    specs = [mb.TensorSpec(shape=(1, *shape))]
    written = mb.program(input_specs=specs, opset_version=ct.target.iOS17)(lambda x: in_mil(x))
    model = ct.convert(
        written,
        convert_to="mlprogram",
        skip_model_load=True,
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS17,
        pass_pipeline=ct.PassPipeline.EMPTY,  # as it was written
    )
    model.save(str(tmp_path / "a.mlpackage"))
    package = open_package(tmp_path / "a.mlpackage")
    assert kind in {step.kind for step in package.steps}
    pixels = numbers(np.random.default_rng(seed), IMAGES, *shape)
    found, expected = package.answer(pixels), in_tensorflow(tf.constant(pixels)).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
