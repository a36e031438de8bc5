"""Residual blocks, shortcuts, stem and head as functions from tensor to tensor.

`Parts` binds what is the same everywhere in one network (padding, epsilon, initialiser); the functions below say only
what is special in each place. Every layer has a name that weights and tools can rely on: `stage3_block2_conv1`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from keras_resnet.normalisation import fuse
from keras_resnet.pointwise import guard
from keras_resnet.specs import EXPANSION, Spec

Tensor = Any
CHANNELS_LAST = "channels_last"  # said to every layer: the phone formats know no other, whatever Keras' global says


def he_normal_fan_out() -> keras.initializers.Initializer:
    """The initialiser of arXiv:1502.01852 over the outputs, untruncated, as torchvision's ResNet has it."""
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")


@dataclass(frozen=True)
class Parts:
    """The elementary layers of one network."""

    spec: Spec
    initializer: Callable[[], Any] = he_normal_fan_out

    def conv(
        self,
        x: Tensor,
        filters: int,
        kernel: int,
        name: str,
        *,
        stride: int = 1,
        groups: int = 1,
        zeros: bool = False,
    ) -> Tensor:
        """A kernel x kernel convolution; `zeros` starts it at zero."""
        padding = "same"  # at stride 1, and for odd kernels, the same as kernel // 2 on every side
        if stride > 1 and kernel > 1 and self.spec.padding == "symmetric":
            padding = "valid"
            x = layers.ZeroPadding2D(kernel // 2, data_format=CHANNELS_LAST, name=f"{name}_pad")(x)
        conv = layers.Conv2D(
            filters,
            kernel,
            strides=stride,
            padding=padding,
            groups=groups,
            use_bias=name.endswith(self.spec.conv_bias),
            data_format=CHANNELS_LAST,
            kernel_initializer="zeros" if zeros else self.initializer(),
            name=name,
        )
        return guard(conv)(x)

    def norm(self, x: Tensor, name: str, *, zero_gamma: bool = False) -> Tensor:
        norm = layers.BatchNormalization(
            axis=-1,
            momentum=self.spec.momentum,
            epsilon=self.spec.epsilon,
            gamma_initializer="zeros" if zero_gamma else "ones",
            name=name,
        )
        return fuse(norm)(x)

    def norm_relu(self, x: Tensor, block: str, j: int) -> Tensor:
        return relu(self.norm(x, f"{block}_bn{j}"), f"{block}_relu{j}")


def relu(x: Tensor, name: str) -> Tensor:
    return layers.Activation("relu", name=name)(x)


def stem(parts: Parts, x: Tensor) -> Tensor:
    """From the normalised image to the first stage: "imagenet" at stride 4, "small" at stride 1."""
    spec = parts.spec
    imagenet = spec.stem == "imagenet"
    x = parts.conv(x, spec.widths[0], 7 if imagenet else 3, "stem_conv", stride=2 if imagenet else 1)
    if not spec.preactivation:
        x = relu(parts.norm(x, "stem_bn"), "stem_relu")
    return max_pool(spec, x) if imagenet else x


def max_pool(spec: Spec, x: Tensor) -> Tensor:
    """The 3x3 stride 2 max-pool behind the stem, one pixel of padding on each side."""
    if spec.padding == "same":
        return layers.MaxPooling2D(3, strides=2, padding="same", data_format=CHANNELS_LAST, name="stem_pool")(x)
    if spec.pool_padding == "zero":
        x = layers.ZeroPadding2D(1, data_format=CHANNELS_LAST, name="stem_pool_pad")(x)
        return layers.MaxPooling2D(3, strides=2, data_format=CHANNELS_LAST, name="stem_pool")(x)
    # No stock layer pads with minus infinity at stride 2; at stride 1 "same" does so on every side alike.
    x = layers.MaxPooling2D(3, strides=1, padding="same", data_format=CHANNELS_LAST, name="stem_pool")(x)
    return subsample(x, 2, "stem_pool_subsample")


def subsample(x: Tensor, stride: int, name: str) -> Tensor:
    """Every `stride`-th position: exact, and a layer that all backends and exporters know."""
    return layers.AveragePooling2D(1, strides=stride, data_format=CHANNELS_LAST, name=name)(x)


def branch(spec: Spec, width: int, stride: int) -> list[tuple[int, int, int, int]]:
    """(filters, kernel, stride, groups) of each convolution of a block's residual branch."""
    if spec.block == "basic":
        return [(width, 3, stride, 1), (width, 3, 1, 1)]
    inner = int(width * spec.width_per_group / 64) * spec.groups
    first, second = (stride, 1) if spec.stride_on == "1x1" else (1, stride)
    return [(inner, 1, first, 1), (inner, 3, second, spec.groups), (width * EXPANSION["bottleneck"], 1, 1, 1)]


def block(parts: Parts, x: Tensor, *, width: int, stride: int, drop_rate: float, name: str) -> Tensor:
    """One residual block (arXiv:1512.03385 Figure 5; pre-activation: arXiv:1603.05027 Figure 4e)."""
    spec = parts.spec
    convolutions = branch(spec, width, stride)
    y = parts.norm_relu(x, name, 1) if spec.preactivation else x
    carried = shortcut(parts, x, y, width * EXPANSION[spec.block], stride, name)
    for j, (filters, kernel, step, groups) in enumerate(convolutions, start=1):
        is_last = j == len(convolutions)
        zero_last = is_last and spec.zero_last_gamma
        if spec.preactivation:
            y = parts.norm_relu(y, name, j) if j > 1 else y
            # No gamma stands behind the last convolution here, so its kernel starts at zero (as in timm).
            y = parts.conv(y, filters, kernel, f"{name}_conv{j}", stride=step, groups=groups, zeros=zero_last)
            continue
        y = parts.conv(y, filters, kernel, f"{name}_conv{j}", stride=step, groups=groups)
        y = parts.norm(y, f"{name}_bn{j}", zero_gamma=zero_last)
        y = y if is_last else relu(y, f"{name}_relu{j}")
    if drop_rate:
        # The noise shape drops whole samples; those kept are scaled by 1 / (1 - rate).
        y = layers.Dropout(drop_rate, noise_shape=(None, 1, 1, 1), name=f"{name}_stochastic_depth")(y)
    if spec.preactivation:
        return merge(spec, carried, y, f"{name}_out", name)
    y = y if carried is None else merge(spec, carried, y, f"{name}_add", name)
    return relu(y, f"{name}_out")


def shortcut(parts: Parts, x: Tensor, activated: Tensor, filters: int, stride: int, name: str) -> Tensor | None:
    """What a block carries past its residual branch; None for a plain network.

    x: the block's input; activated: the same behind the first normalisation of a pre-activation block, which a
    projection reads (arXiv:1603.05027, section 4.1), while identities carry x itself.
    """
    kind = parts.spec.shortcut
    if kind == "none":
        return None
    widens = x.shape[-1] != filters
    if kind == "C" or (kind == "B" and widens):
        y = parts.conv(activated, filters, 1, f"{name}_shortcut_conv", stride=stride)
        return parts.norm(y, f"{name}_shortcut_bn") if parts.spec.shortcut_bn else y
    y = subsample(x, stride, f"{name}_shortcut_pool") if stride > 1 else x
    if widens:
        front = (filters - x.shape[-1]) // 2
        behind = filters - x.shape[-1] - front
        # Read as channels first, the last axis of this tensor is the width, which the layer pads.
        pad = ((0, 0), (front, behind))
        y = layers.ZeroPadding2D(pad, data_format="channels_first", name=f"{name}_shortcut_pad")(y)
    return y


def merge(spec: Spec, carried: Tensor | None, y: Tensor, name: str, block_name: str) -> Tensor:
    """Join the branch with its shortcut: a sum, a gated sum, or the branch alone."""
    if carried is None:
        return layers.Identity(name=name)(y)
    if spec.shortcut != "highway":
        return layers.Add(name=name)([carried, y])
    gate = layers.Conv2D(
        carried.shape[-1],
        1,
        activation="sigmoid",
        data_format=CHANNELS_LAST,
        bias_initializer=keras.initializers.Constant(spec.gate_bias),
        name=f"{block_name}_gate",
    )(carried)
    # gate * y + (1 - gate) * carried, in one multiplication (arXiv:1505.00387).
    moved = layers.Subtract(name=f"{block_name}_gate_difference")([y, carried])
    moved = layers.Multiply(name=f"{block_name}_gate_product")([gate, moved])
    return layers.Add(name=name)([carried, moved])


def stages(parts: Parts, x: Tensor) -> Tensor:
    """All blocks; stochastic depth grows linearly up to the last one (arXiv:1603.09382, equation 4)."""
    spec = parts.spec
    total, index = sum(spec.depths), 0
    for s, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True), start=1):
        strides = s > 1 if spec.stride_block == "first" else s < len(spec.depths)
        striding_block = 1 if spec.stride_block == "first" else depth
        for b in range(1, depth + 1):
            index += 1
            x = block(
                parts,
                x,
                width=width,
                stride=2 if strides and b == striding_block else 1,
                drop_rate=spec.stochastic_depth * index / total,
                name=f"stage{s}_block{b}",
            )
    if spec.preactivation:
        x = relu(parts.norm(x, "head_bn"), "head_relu")
    return x


def head(spec: Spec, x: Tensor, classifier_activation: Any) -> Tensor:
    """Average pool, dropout, and the classifier, which computes in float32 under mixed precision."""
    x = layers.GlobalAveragePooling2D(data_format=CHANNELS_LAST, name="head_pool")(x)
    if spec.dropout:
        x = layers.Dropout(spec.dropout, name="head_dropout")(x)
    low_precision = keras.config.dtype_policy().compute_dtype in ("float16", "bfloat16")
    dtype = "float32" if low_precision else None
    return layers.Dense(spec.classes, activation=classifier_activation, dtype=dtype, name="head_dense")(x)
