"""What each operation of an ML program computes, as NumPy functions: the arithmetic of Core ML's documentation.

Arrays are [batch, channels, height, width] where they are images; in memory channels come last, as TensorFlow, which
convolves and pools, wants it. Everything is computed in float32; whoever calls rounds the result to the type that the
program declares (`rounded`). Source: the operation pages of coremltools 9.0
(`coremltools.converters.mil.mil.ops.defs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Array = np.ndarray


def padding(x: Array, inputs: Mapping[str, Any], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and columns that a convolution or a pool adds at each side: [(top, bottom), (left, right)]."""
    kind, strides = inputs["pad_type"], inputs.get("strides", (1, 1))
    dilations = inputs.get("dilations", (1, 1))
    if kind == "valid":
        return [(0, 0), (0, 0)]
    if kind == "custom":
        top, bottom, left, right = (int(side) for side in inputs["pad"])
        return [(top, bottom), (left, right)]
    if kind not in ("same", "same_lower"):
        raise ValueError(f"pad_type {kind!r}")
    found = []
    for length, size, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        extent = (int(size) - 1) * int(dilation) + 1
        total = max((-(-length // int(stride)) - 1) * int(stride) + extent - length, 0)
        sides = (total // 2, total - total // 2)
        found.append(sides if kind == "same" else sides[::-1])
    return found


def rounded(x: Array, dtype: np.dtype) -> Array:
    """Values as a type holds them; of float16 still in float32, in which everything is computed."""
    if dtype != np.float16:
        return x if x.dtype == dtype else x.astype(dtype)
    axes = np.argsort([-stride for stride in x.strides], kind="stable")  # as they lie in memory: no copy is needed
    half = tf.cast(tf.cast(x.transpose(axes).astype(np.float32, copy=False), tf.float16), tf.float32)
    return np.asarray(half.numpy().transpose(np.argsort(axes)))


def conv(inputs: Mapping[str, Any]) -> Array:
    """x [n, c, h, w] with weight [filters, c / groups, kh, kw] and bias [filters]."""
    x, weight = inputs["x"], inputs["weight"]
    sides = [(0, 0), *padding(x, inputs, weight.shape[2:]), (0, 0)]
    strides, dilations = (tuple(map(int, inputs.get(name, (1, 1)))) for name in ("strides", "dilations"))
    kernel = weight.transpose(2, 3, 1, 0)
    y = tf.nn.conv2d(x.transpose(0, 2, 3, 1), kernel, strides, sides, dilations=dilations)
    y = y if inputs.get("bias") is None else tf.nn.bias_add(y, inputs["bias"])
    return np.asarray(y.numpy().transpose(0, 3, 1, 2))


def _pool(inputs: Mapping[str, Any], pool: Callable[..., Any], x: Array, fill: float) -> Array:
    """What TensorFlow's `pool` makes of each window of x, which is padded with `fill`."""
    if inputs.get("ceil_mode"):
        raise ValueError("ceil_mode")
    kernel, strides = tuple(map(int, inputs["kernel_sizes"])), tuple(map(int, inputs.get("strides", (1, 1))))
    sides = [(0, 0), *padding(x, inputs, kernel), (0, 0)]
    padded = np.pad(x.transpose(0, 2, 3, 1), sides, constant_values=fill)
    y = pool(padded, kernel, strides, "VALID")
    return np.asarray(y.numpy().transpose(0, 3, 1, 2))


def max_pool(inputs: Mapping[str, Any]) -> Array:
    return _pool(inputs, tf.nn.max_pool2d, inputs["x"], -np.inf)


def avg_pool(inputs: Mapping[str, Any]) -> Array:
    y = _pool(inputs, tf.nn.avg_pool2d, inputs["x"], 0.0)
    if inputs.get("exclude_padding_from_average"):
        return np.asarray(y / _pool(inputs, tf.nn.avg_pool2d, np.ones_like(inputs["x"][:1, :1]), 0.0))
    return y


def batch_norm(inputs: Mapping[str, Any]) -> Array:
    mean, variance, gamma, beta = (
        np.reshape(inputs.get(name, default), (1, -1, 1, 1))
        for name, default in (("mean", 0.0), ("variance", 1.0), ("gamma", 1.0), ("beta", 0.0))
    )
    return np.asarray((inputs["x"] - mean) / np.sqrt(variance + inputs["epsilon"]) * gamma + beta)


def pad(inputs: Mapping[str, Any]) -> Array:
    """`pad` names the last axes, two numbers each."""
    x, sides = inputs["x"], np.reshape(inputs["pad"], (-1, 2)).tolist()
    if inputs.get("mode", "constant") != "constant":
        raise ValueError(f"mode {inputs['mode']!r}")
    before = [(0, 0)] * (x.ndim - len(sides))
    return np.pad(x, [*before, *map(tuple, sides)], constant_values=float(inputs.get("constant_val", 0.0)))


def reshape(inputs: Mapping[str, Any]) -> Array:
    """A program is written for one image: the first length, 1 there, becomes the number of images."""
    x, shape = inputs["x"], [int(length) for length in inputs["shape"]]
    return x.reshape(len(x) if shape[0] == 1 else shape[0], *shape[1:])


def concat(inputs: Mapping[str, Any]) -> Array:
    if inputs.get("interleave"):
        raise ValueError("interleave")
    return np.concatenate(inputs["values"], axis=int(inputs["axis"]))


def slice_by_index(inputs: Mapping[str, Any]) -> Array:
    x = inputs["x"]
    masks = {name: np.resize(inputs.get(name, False), x.ndim) for name in ("begin_mask", "end_mask", "squeeze_mask")}
    steps = inputs["stride"] if inputs.get("stride") is not None else [1] * x.ndim
    parts: list[Any] = []
    for axis, (begin, end, step) in enumerate(zip(inputs["begin"], inputs["end"], steps, strict=True)):
        first = None if masks["begin_mask"][axis] else int(begin)
        last = None if masks["end_mask"][axis] else int(end)
        parts.append(int(begin) if masks["squeeze_mask"][axis] else slice(first, last, int(step)))
    return np.asarray(x[tuple(parts)])


def matmul(inputs: Mapping[str, Any]) -> Array:
    x, y = (
        np.swapaxes(inputs[name], -1, -2) if inputs.get(f"transpose_{name}") else inputs[name] for name in ("x", "y")
    )
    return np.asarray(x @ y)


def linear(inputs: Mapping[str, Any]) -> Array:
    bias = inputs.get("bias")
    return np.asarray(inputs["x"] @ inputs["weight"].T + (0 if bias is None else bias))


def softmax(inputs: Mapping[str, Any]) -> Array:
    axis = int(inputs.get("axis", -1))
    powers = np.exp(inputs["x"] - inputs["x"].max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def _along(values: Any, axis: Any, ndim: int) -> Array:
    """One number, or one a channel, in the shape that spreads it over an array."""
    flat = np.asarray(values)
    return (
        flat
        if flat.ndim == 0 or axis is None
        else flat.reshape([-1 if i == int(axis) % ndim else 1 for i in range(ndim)])
    )


def quantize(inputs: Mapping[str, Any]) -> Array:
    x = inputs["input"]
    scale = _along(inputs["scale"], inputs.get("axis"), x.ndim).astype(np.float32)
    offset = _along(inputs.get("zero_point", 0), inputs.get("axis"), x.ndim).astype(np.float32)
    low, high = {"int8": (-128, 127), "uint8": (0, 255)}[inputs["output_dtype"]]
    return np.asarray(np.clip(np.round(x / scale) + offset, low, high))


def dequantize(inputs: Mapping[str, Any]) -> Array:
    x = inputs["input"].astype(np.float32)
    scale = _along(inputs["scale"], inputs.get("axis"), x.ndim).astype(np.float32)
    return np.asarray((x - _along(inputs.get("zero_point", 0), inputs.get("axis"), x.ndim)) * scale)


# Compressed weights --------------------------------------------------------------------------------------------------


def unpacked(data: Array, bits: int, count: int) -> Array:
    """`count` numbers of `bits` bits each from bytes, the lowest bit first."""
    flags = np.unpackbits(np.asarray(data).view(np.uint8).ravel(), bitorder="little")[: count * bits].reshape(
        count, bits
    )
    return np.asarray(flags.astype(np.uint32) @ (1 << np.arange(bits, dtype=np.uint32)))


def affine_dequantize(inputs: Mapping[str, Any]) -> Array:
    data = inputs["quantized_data"]
    scale, offset = (_along(inputs[name], inputs["axis"], data.ndim) for name in ("scale", "zero_point"))
    return np.asarray((data.astype(np.float32) - offset.astype(np.float32)) * scale.astype(np.float32))


def blockwise_shift_scale(inputs: Mapping[str, Any]) -> Array:
    data = inputs["data"].astype(np.float32)
    scale = _spread(inputs["scale"].astype(np.float32), data.shape)
    offset = 0.0 if inputs.get("offset") is None else _spread(inputs["offset"].astype(np.float32), data.shape)
    return np.asarray((data - offset) * scale)


def _spread(values: Array, shape: tuple[int, ...]) -> Array:
    """One number a block, repeated over the block."""
    for axis, length in enumerate(shape):
        values = np.repeat(values, length // values.shape[axis], axis=axis)
    return values


def lut_to_dense(inputs: Mapping[str, Any]) -> Array:
    """Before iOS 18 packed bits, a flat table and `shape`; since then whole indices and a table a group."""
    indices, lut = inputs["indices"], inputs["lut"]
    if inputs.get("shape") is not None:
        shape = tuple(map(int, inputs["shape"]))
        return np.asarray(lut[unpacked(indices, int(np.log2(len(lut))), int(np.prod(shape)))].reshape(shape))
    if lut.shape[-1] != 1:
        raise ValueError("a palette of vectors")
    group = [
        _spread(
            np.arange(n).reshape([n if j == i else 1 for j in range(indices.ndim)]),
            tuple(length if j == i else 1 for j, length in enumerate(indices.shape)),
        )
        for i, n in enumerate(lut.shape[:-2])
    ]
    return np.asarray(lut[(*group, indices.astype(np.int64), 0)])


def sparse_to_dense(inputs: Mapping[str, Any]) -> Array:
    """Before iOS 18 a mask of packed bits and `shape`; since then a mask of that shape."""
    mask, values = inputs["mask"], inputs["nonzero_data"]
    if inputs.get("shape") is not None:
        shape = tuple(map(int, inputs["shape"]))
        mask = unpacked(mask, 1, int(np.prod(shape))).reshape(shape)
    dense = np.zeros(mask.shape, values.dtype)
    dense[mask.astype(bool)] = values
    return dense


OPERATIONS: Mapping[str, Callable[[Mapping[str, Any]], Array]] = {
    "add": lambda inputs: inputs["x"] + inputs["y"],
    "sub": lambda inputs: inputs["x"] - inputs["y"],
    "mul": lambda inputs: inputs["x"] * inputs["y"],
    "real_div": lambda inputs: inputs["x"] / inputs["y"],
    "maximum": lambda inputs: np.maximum(inputs["x"], inputs["y"]),
    "cast": lambda inputs: inputs["x"],
    "identity": lambda inputs: inputs["x"],
    "relu": lambda inputs: np.maximum(inputs["x"], 0),
    "relu6": lambda inputs: np.clip(inputs["x"], 0, 6),
    "sigmoid": lambda inputs: 1 / (1 + np.exp(-inputs["x"])),
    "silu": lambda inputs: inputs["x"] / (1 + np.exp(-inputs["x"])),
    "softmax": softmax,
    "conv": conv,
    "linear": linear,
    "matmul": matmul,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "reduce_mean": lambda inputs: inputs["x"].mean(
        axis=tuple(map(int, inputs["axes"])), keepdims=bool(inputs.get("keep_dims", False))
    ),
    "pad": pad,
    "transpose": lambda inputs: inputs["x"].transpose([int(axis) for axis in inputs["perm"]]),
    "reshape": reshape,
    "squeeze": lambda inputs: np.squeeze(inputs["x"], tuple(map(int, inputs["axes"]))),
    "expand_dims": lambda inputs: np.expand_dims(inputs["x"], tuple(map(int, inputs["axes"]))),
    "concat": concat,
    "slice_by_index": slice_by_index,
    "quantize": quantize,
    "dequantize": dequantize,
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_sparse_to_dense": sparse_to_dense,
}
