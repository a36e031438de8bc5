"""The spec of a network, read back from its layers: the way from `models.build` in reverse.

Takes any of our models, however it was made: built, loaded from a `.keras` file by plain Keras, or cloned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import keras

from keras_resnet.errors import InputError
from keras_resnet.specs import CONVOLUTIONS, EXPANSION, Spec

_FIRST = re.compile(r"stage(\d+)_block(\d+)_conv1")


def spec_of_model(model: keras.Model) -> Spec:
    """The Spec that `build` would make this network of; what leaves no trace in it stands at its default.

    `gate_bias` and, without a classifier, `classes` leave none. Raises InputError for a model that is not ours.
    """
    layers: dict[str, Any] = {layer.name: layer for layer in model.layers}
    found = [tuple(map(int, match.groups())) for name in layers if (match := _FIRST.fullmatch(name))]
    if not found or "stem_conv" not in layers:
        raise InputError(
            f"model {model.name!r} has no layers named stem_conv, stage1_block1_conv1, ...: not one of ours"
        )
    stages = range(1, max(stage for stage, _ in found) + 1)
    depths = tuple(max(block for stage, block in found if stage == s) for s in stages)
    block, last = ("bottleneck", 3) if "stage1_block1_conv3" in layers else ("basic", 2)
    widths = tuple(layers[f"stage{s}_block1_conv{last}"].filters // EXPANSION[block] for s in stages)
    blocks = [f"stage{s}_block{b}" for s, b in sorted(found)]
    convs = [layers[f"{name}_conv{j}"] for name in blocks for j in range(1, last + 1)]
    middle = layers["stage1_block1_conv2"]
    groups = middle.groups
    norm = layers.get("stem_bn") or layers["stage1_block1_bn1"]
    strided = [conv for conv in (layers["stem_conv"], *convs) if conv.strides != (1, 1) and conv.kernel_size != (1, 1)]
    preactivation = "head_bn" in layers
    height = model.inputs[0].shape[1]
    is_imagenet = layers["stem_conv"].kernel_size == (7, 7)
    return Spec(
        block,
        depths=depths,
        widths=widths,
        groups=groups,
        width_per_group=-(-middle.filters // groups * 64 // widths[0]) if block == "bottleneck" else 64,
        stem="imagenet" if is_imagenet else "small",
        pool_padding="infinite" if "stem_pool_subsample" in layers else "zero",
        padding="same" if any(f"{conv.name}_pad" not in layers for conv in strided) else "symmetric",
        stride_on="1x1" if any(c.kernel_size == (1, 1) and c.strides != (1, 1) for c in convs) else "3x3",
        stride_block="last" if any(c.strides != (1, 1) and c.name.startswith("stage1_") for c in convs) else "first",
        shortcut=_shortcut(layers, blocks),
        shortcut_bn=any(name.endswith("_shortcut_bn") for name in layers) or not (preactivation or _projects(layers)),
        preactivation=preactivation,
        conv_bias=tuple(role for role in CONVOLUTIONS if any(n.endswith(role) and layers[n].use_bias for n in layers)),
        epsilon=norm.epsilon,
        momentum=norm.momentum,
        zero_last_gamma=_starts_at_zero(layers, last, preactivation),
        stochastic_depth=_rate(layers, f"{blocks[-1]}_stochastic_depth"),
        dropout=_rate(layers, "head_dropout"),
        input_size=height or (224 if is_imagenet else 32),
        classes=layers["head_dense"].units if "head_dense" in layers else 1000,
    )


def _projects(layers: Mapping[str, Any]) -> bool:
    return any(name.endswith("_shortcut_conv") for name in layers)


def _shortcut(layers: Mapping[str, Any], blocks: list[str]) -> str:
    if "stage1_block1_gate" in layers:
        return "highway"
    if not any(isinstance(layers.get(f"stage1_block1_{end}"), keras.layers.Add) for end in ("add", "out")):
        return "none"
    projections = sum(f"{name}_shortcut_conv" in layers for name in blocks)
    # The first block of a stage alone projects in form B, and not even each of those.
    if projections == len(blocks) and f"{blocks[0]}_shortcut_conv" in layers and len(blocks) > 1:
        return "C" if any(name.endswith("block2") for name in blocks) else "B"
    if projections:
        return "B"
    return "A" if any(name.endswith("_shortcut_pad") for name in layers) else "B"


def _starts_at_zero(layers: Mapping[str, Any], last: int, preactivation: bool) -> bool:
    if preactivation:
        initializer = layers[f"stage1_block1_conv{last}"].kernel_initializer
    else:
        initializer = layers[f"stage1_block1_bn{last}"].gamma_initializer
    return isinstance(initializer, keras.initializers.Zeros)


def _rate(layers: Mapping[str, Any], name: str) -> float:
    return float(layers[name].rate) if name in layers else 0.0
