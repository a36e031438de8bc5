"""1x1 convolutions with a stride, trained around a fault of oneDNN that ends the process.

The gradient of such a convolution's kernel is computed over a copy of every nth pixel, and below 16 input channels
oneDNN 3.7, that of TensorFlow 2.21, writes past the end of that copy: SIGABRT, SIGSEGV, a hang or wrong numbers, as it
happens (https://github.com/uxlfoundation/oneDNN/issues/6035, open). A convolution at stride 1 needs no copy.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import layers, ops

Tensor = Any
SAFE_CHANNELS = 16  # a block of oneDNN's for AVX-512; for older processors it is 8


def guard(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Let a convolution, or every one inside a model, train without the fault; returns the layer that came in.

    Where it may strike, every nth pixel is taken first and convolved at stride 1: the same sums. Inference, and with it
    whatever is exported, stays Keras' own, as do all other convolutions, backends and what is saved.
    """
    if keras.backend.backend() == "tensorflow":
        for conv in _pointwise(layer):  # on the instance, not in a subclass: a saved file names Keras' class
            conv.convolution_op = functools.partial(_convolve, conv)
    return layer


def _pointwise(layer: keras.layers.Layer) -> list[layers.Conv2D]:
    """The 1x1 convolutions with a stride, of exactly that class."""
    if type(layer) is layers.Conv2D:
        fits = set(layer.kernel_size) == {1} and max(layer.strides) > 1 and layer.data_format == "channels_last"
        return [layer] if fits else []
    return [conv for part in getattr(layer, "layers", ()) for conv in _pointwise(part)]


def _convolve(layer: layers.Conv2D, inputs: Tensor, kernel: Tensor) -> Tensor:
    """What stands for `Conv2D.convolution_op`."""
    if kernel.shape[-2] >= SAFE_CHANNELS or not _trains():
        return layers.Conv2D.convolution_op(layer, inputs, kernel)
    rows, columns = layer.strides
    return ops.conv(inputs[:, ::rows, ::columns], kernel, padding="valid", data_format="channels_last")


def _trains() -> bool:
    """Whether the layer call that goes on is one of training: Keras tells only layers whose `call` has the argument."""
    from keras.src.backend.common.global_state import get_global_attribute  # no public name

    context = get_global_attribute("current_call_ctx")
    return context is not None and bool(context.training)
