"""What one layer costs and sees: multiply-accumulates and the window it reads, one small pure function a kind of layer.

Takes a layer and shapes without the batch axis, gives numbers. Which layers there are, and how their numbers add up,
is the business of `profiling.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from keras import layers

Shape = tuple[int, ...]  # without the batch axis
Number = int | Fraction  # a map that was upsampled has steps of less than a pixel


def spatial_axes(layer: Any, rank: int) -> range:
    """The axes of an input of so many axes that a convolution, pool or padding moves over."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return range(1, rank) if first else range(rank - 1)


def _positions(layer: Any, shape: Shape) -> int:
    return math.prod(shape[axis] for axis in spatial_axes(layer, len(shape)))


def _channels(layer: Any, shape: Shape) -> int:
    return shape[0 if layer.data_format == "channels_first" else -1]


# Multiply-accumulates at batch 1. Padded positions count as any other; bias, activation function, normalisation,
# pooling and addition do not: the rule of the papers, torchvision (`_ops`), timm and fvcore.


def conv_macs(layer: Any, x: Shape, y: Shape) -> int:
    return _positions(layer, y) * layer.filters * (_channels(layer, x) // layer.groups) * math.prod(layer.kernel_size)


def transposed_macs(layer: Any, x: Shape, y: Shape) -> int:
    """Every input position is multiplied with the whole kernel, also where "same" crops the result."""
    return _positions(layer, x) * layer.filters * _channels(layer, x) * math.prod(layer.kernel_size)


def depthwise_macs(layer: Any, x: Shape, y: Shape) -> int:
    return _positions(layer, y) * _channels(layer, x) * layer.depth_multiplier * math.prod(layer.kernel_size)


def separable_macs(layer: Any, x: Shape, y: Shape) -> int:
    """A depthwise convolution, then a 1x1 one over its channels."""
    pointwise = _positions(layer, y) * _channels(layer, x) * layer.depth_multiplier * layer.filters
    return depthwise_macs(layer, x, y) + pointwise


def dense_macs(layer: Any, x: Shape, y: Shape) -> int:
    return x[-1] * math.prod(y)


def no_macs(layer: Any, x: Shape, y: Shape) -> int:
    return 0


MACS: Mapping[type, Callable[[Any, Shape, Shape], int]] = {
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), conv_macs),
    **dict.fromkeys((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), transposed_macs),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), depthwise_macs),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), separable_macs),
    layers.Dense: dense_macs,
    # These have weights and still multiply no more than once a scalar; an embedding is looked up.
    **dict.fromkeys((layers.BatchNormalization, layers.LayerNormalization, layers.GroupNormalization), no_macs),
    **dict.fromkeys((layers.RMSNormalization, layers.Normalization, layers.PReLU, layers.Embedding), no_macs),
}

# Layers and `keras.ops` that multiply although they own no weights, by the name of their class.
MULTIPLYING = frozenset(
    "Attention AdditiveAttention DotProductAttention Dot Matmul Einsum Tensordot Inner Outer Vdot Correlate "
    "Conv DepthwiseConv SeparableConv ConvTranspose".split()
)


def count_macs(operation: Any, x: Shape, y: Shape) -> int | None:
    """Multiply-accumulates of one call of a layer or operation; None where they are not known.

    Not known are layers with weights that no table here has (attention, recurrent and custom ones) and bare products.
    """
    rule = _rule(MACS, operation)
    if rule is not None:
        return rule(operation, x, y)
    return None if getattr(operation, "weights", ()) or type(operation).__name__ in MULTIPLYING else 0


def _rule(table: Mapping[type, Any], operation: Any) -> Any:
    """The rule of its class, or of the nearest base whose `call` it keeps: with its own it may do anything."""
    for base in type(operation).__mro__:
        if base in table:
            return table[base] if type(operation).call is base.call else None  # type: ignore[attr-defined]
    return None


class Window(NamedTuple):
    """What output position 0 reads along one axis: input positions first to last; its neighbour is a stride further."""

    first: Number
    last: Number
    stride: Number


class Span(NamedTuple):
    """The pixels that position 0 of a map sees along one axis, padding included, and the step to its neighbour."""

    low: Number
    high: Number
    jump: Number

    def through(self, window: Window) -> Span:
        low, high, jump = self
        return Span(low + window.first * jump, high + window.last * jump, jump * window.stride)


Field = tuple[Span, ...] | None  # a span an axis, the channels' without meaning; None: the whole image, or not known


def _padded(padding: str, n: int, kernel: int, stride: int, dilation: int = 1) -> Window:
    size = (kernel - 1) * dilation + 1
    before = size - 1 if padding == "causal" else 0
    if padding == "same":  # the odd pixel goes behind, as in TensorFlow
        before = max((-(-n // stride) - 1) * stride + size - n, 0) // 2
    return Window(-before, size - 1 - before, stride)


def _upsampled(kernel: int, stride: int, before: int) -> Window:
    """Output position p reads the inputs i for which p + before - i * stride lies in the kernel."""
    return Window(Fraction(before - kernel + 1, stride), Fraction(before, stride), Fraction(1, stride))


def _conv_windows(layer: Any, x: Shape) -> list[Window]:
    sizes = [x[axis] for axis in spatial_axes(layer, len(x))]
    per_axis = zip(sizes, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
    return [_padded(layer.padding, *numbers) for numbers in per_axis]


def _pool_windows(layer: Any, x: Shape) -> list[Window]:
    sizes = [x[axis] for axis in spatial_axes(layer, len(x))]
    pool, strides = (_each(value, sizes) for value in (layer.pool_size, layer.strides))
    return [_padded(layer.padding, *numbers) for numbers in zip(sizes, pool, strides, strict=True)]


def _transposed_windows(layer: Any, x: Shape) -> list[Window]:
    windows = []
    for kernel, stride, dilation in zip(layer.kernel_size, layer.strides, layer.dilation_rate, strict=True):
        size = (kernel - 1) * dilation + 1
        windows.append(_upsampled(size, stride, max(size - stride, 0) // 2 if layer.padding == "same" else 0))
    return windows


TAPS = {"nearest": 1, "bilinear": 2, "bicubic": 4, "lanczos3": 6, "lanczos5": 10}  # inputs that one output reads


def _upsampling_windows(layer: Any, x: Shape) -> list[Window]:
    taps = TAPS[getattr(layer, "interpolation", "nearest")]
    sizes = _each(layer.size, spatial_axes(layer, len(x)))
    return [_upsampled(taps * size, size, (taps - 1) * size // 2) for size in sizes]


def _padding_windows(layer: Any, x: Shape) -> list[Window]:
    return [Window(-front, -front, 1) for front in _fronts(layer.padding)]


def _cropping_windows(layer: Any, x: Shape) -> list[Window]:
    return [Window(front, front, 1) for front in _fronts(layer.cropping)]


def _fronts(pairs: Any) -> list[int]:
    """The front of ((top, bottom), (left, right)), or of the one pair that layers over one axis hold."""
    return [pairs[0]] if isinstance(pairs[0], int) else [front for front, _ in pairs]


def _each(value: Any, axes: Sequence[Any]) -> Sequence[int]:
    return (value,) * len(axes) if isinstance(value, int) else value


WINDOWS: Mapping[type, Callable[[Any, Shape], list[Window]]] = {
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), _conv_windows),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _conv_windows),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), _conv_windows),
    **dict.fromkeys((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), _transposed_windows),
    **dict.fromkeys((layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D), _pool_windows),
    **dict.fromkeys((layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D), _pool_windows),
    **dict.fromkeys((layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D), _upsampling_windows),
    **dict.fromkeys((layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D), _padding_windows),
    **dict.fromkeys((layers.Cropping1D, layers.Cropping2D, layers.Cropping3D), _cropping_windows),
}


def _op_windows(operation: Any, x: Shape, arguments: Sequence[Any]) -> list[Window] | None:
    """The windows of `keras.ops.pad` and of slices such as `x[:, ::2, ::2]`, over all axes but the batch's."""
    name = type(operation).__name__
    if name == "Pad":
        pairs = operation.pad_width if len(operation.pad_width) > 1 else operation.pad_width * (len(x) + 1)
        return [Window(-front, -front, 1) for front, _ in pairs[1:]]
    if name != "GetItem" or not isinstance(arguments[1], tuple):
        return None
    key = arguments[1]
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key = (*key[:at], *[slice(None)] * (len(x) + 2 - len(key)), *key[at + 1 :])
    key = (*key, *[slice(None)] * (len(x) + 1 - len(key)))
    if not all(isinstance(part, slice) for part in key):
        return None
    ranges = [range(*part.indices(n)) for part, n in zip(key[1:], x, strict=True)]
    return [Window(r.start, r.start, r.step) for r in ranges] if all(r.step > 0 for r in ranges) else None


def see(
    operation: Any, fields: Sequence[Field], inputs: Sequence[Shape], output: Shape, *, channels: int, arguments: Any
) -> Field:
    """The field of what an operation gives, from the fields of what it takes.

    channels: the axis that holds them, 0 or -1; arguments: the positional ones of the call. Widest branch where
    several meet. An operation without a window that keeps height and width works point by point; one that changes
    them (pooling over all, flatten, reshape) sees everything. Normalisation over the image counts as point by point.
    """
    known = [field for field in fields if field is not None]
    if not known or len(known) < len(fields):
        return None
    rule = _rule(WINDOWS, operation)
    if rule is not None:
        moved = list(known[0])
        for axis, window in zip(spatial_axes(operation, len(moved)), rule(operation, inputs[0]), strict=True):
            moved[axis] = moved[axis].through(window)
        return tuple(moved)
    windows = _op_windows(operation, inputs[0], arguments)
    if windows is not None:
        return tuple(span.through(window) for span, window in zip(known[0], windows, strict=True))
    if any(map_size(shape, channels) != map_size(output, channels) for shape in inputs):
        return None
    return tuple(
        Span(min(s.low for s in spans), max(s.high for s in spans), max(s.jump for s in spans))
        for spans in zip(*known, strict=True)
    )


def map_size(shape: Shape, channels: int) -> Shape:
    return shape[1:] if channels == 0 else shape[:-1]


def extent(field: Field, channels: int) -> tuple[int | None, float | None]:
    """(pixels, stride) of a field: the larger of its axes; (None, None) for the whole image."""
    if field is None:
        return None, None
    spans = field[1:] if channels == 0 else field[:-1]
    stride = max(span.jump for span in spans)
    return max(math.floor(s.high - s.low) + 1 for s in spans), int(stride) if stride == int(stride) else float(stride)
