"""From a spec to a Keras network: `build`, five constructors of keras.applications' signature, `features`, `freeze`.

Takes a row of `specs.VARIANTS` (or any Spec), gives a Functional model of stock Keras layers. Weights come from
`weights.py`; what the image needs travels inside the model (`preprocessing.py`).
"""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_resnet import blocks
from keras_resnet.depth import recursion_room
from keras_resnet.errors import InputError, UsageError, unknown
from keras_resnet.preprocessing import IMAGENET, Preprocessing
from keras_resnet.rematerialisation import rematerialise as recompute
from keras_resnet.specs import Spec, spec_of
from keras_resnet.weights import load_weights, locate

POOLING = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}


def build(
    variant: str | Spec,
    *,
    weights: str | os.PathLike[str] | None = None,
    include_top: bool = True,
    input_tensor: Any = None,
    input_shape: Sequence[int | None] | None = None,
    pooling: str | None = None,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    name: str | None = None,
    preprocessing: Preprocessing | None = None,
    rematerialise: bool = False,
    **changes: Any,
) -> keras.Model:
    """A residual network as a Functional Keras model.

    variant: a name of `list_variants()`, or a Spec; **changes replace fields of it: `classes=10`, `shortcut="C"`,
        `stem="small"`, `zero_last_gamma=True`, `stochastic_depth=0.1`, `dropout=0.2`, `padding="same"`.
    weights: None for random ones; "imagenet" or a tag of `list_weights()`; `hf://owner/name[@revision][/file]`, whose
        config says how many classes where `classes` does not; the path of a `.safetensors`, `.pth`, `.weights.h5` or
        `.keras` file (see `load_weights`).
    include_top: with the pooled classifier (`classes`, `classifier_activation`), else the last feature map, or its
        `pooling`: None, "avg" or "max".
    input_tensor: a Keras tensor to read from; input_shape: (height, width, channels), the first two may be None.
        Default: the variant's size with three channels; without top any size.
    preprocessing: what the images need, carried by the model; default that of the weights, else torchvision's, at the
        size of the input, or the variant's where that is not one fixed square.
    rematerialise: train with less memory: activations inside a segment of blocks are computed again in the
        backward pass (see `rematerialisation`).

    The model takes float [batch, height, width, channels], normalised (`preprocess_input`), and gives
    [batch, classes] in float32. Raises UsageError for values that make no network, InputError for a bad file.

    >>> build("cifar_resnet20", shortcut="C").count_params()
    286010
    """
    spec = spec_of(variant, **changes)
    if pooling not in (None, *POOLING):
        raise unknown("pooling", pooling, (None, *POOLING), where="pooling=")
    _check_activation(classifier_activation)
    x = _input(spec, input_tensor, input_shape, include_top)
    sources = keras.utils.get_source_inputs(x)
    tag = variant if isinstance(variant, str) else None
    located = None if weights is None else locate(weights, tag, include_top=include_top)
    if located is not None and located.classes and "classes" not in changes:
        spec = replace(spec, classes=located.classes)
    published = None if located is None or x.shape[-1] != 3 else located.preprocessing_at(_side(spec, x.shape))
    carried = preprocessing or published or _default_preprocessing(spec, x.shape)
    if not isinstance(carried, Preprocessing) or len(carried.mean) != x.shape[-1]:
        raise UsageError(
            f"preprocessing={preprocessing!r} is no Preprocessing of {x.shape[-1]} channels, as the input has"
        )
    # Initialisers take most of the time of building: skip them where weights follow.
    zeros = keras.initializers.Zeros()
    parts = blocks.Parts(spec) if located is None else blocks.Parts(spec, lambda: zeros)
    x = connect(parts, x, carried, include_top, pooling, classifier_activation)
    inputs = sources if len(sources) > 1 else sources[0]  # as a list of one it would warn at every call
    with recursion_room(_depth(spec)):
        model = keras.Model(inputs, x, name=name or (variant if isinstance(variant, str) else "resnet"))
    if located is not None:
        for layer in model.layers:  # the config says what a fresh network would have started from
            if getattr(layer, "kernel_initializer", None) is zeros:
                layer.kernel_initializer = blocks.he_normal_fan_out()
        load_weights(model, located)
    return recompute(model) if rematerialise else model


def connect(
    parts: blocks.Parts,
    x: Any,
    preprocessing: Preprocessing,
    include_top: bool = True,
    pooling: str | None = None,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
) -> Any:
    """The network as a function from the tensor of normalised images to its output; `build` says what the rest is."""
    x = layers.Identity(name=preprocessing.layer_name)(x)
    x = blocks.stages(parts, blocks.stem(parts, x))
    if include_top:
        return blocks.head(parts.spec, x, classifier_activation)
    return x if pooling is None else POOLING[pooling](data_format=blocks.CHANNELS_LAST, name="head_pool")(x)


def _depth(spec: Spec) -> int:
    """An upper bound of the layers on the longest path: four a convolution (pad, itself, BN, ReLU) and ten a block."""
    return 20 + sum(spec.depths) * 22


def _side(spec: Spec, shape: tuple[Any, ...]) -> int:
    """Of the images that a network reads: the input's where that is one fixed square, else the variant's."""
    _, height, width, _ = shape
    return int(height) if height is not None and height == width else spec.input_size


def _default_preprocessing(spec: Spec, shape: tuple[Any, ...]) -> Preprocessing:
    """torchvision's at the network's size, where the short side is 256 for a crop of 224; CIFAR's are not resized."""
    side, channels = _side(spec, shape), shape[-1]
    resize = round(side * 256 / 224) if spec.stem == "imagenet" else 0
    if channels == 3:
        return replace(IMAGENET, resize=resize, crop=side)
    return Preprocessing(resize=resize, crop=side, mean=(0.5,) * channels, std=(0.5,) * channels)


def _check_activation(activation: Any) -> None:
    try:
        keras.activations.get(activation)
    except ValueError:
        valid = ("softmax", "sigmoid", "linear", None)
        raise unknown("activation", activation, valid, where="classifier_activation=") from None


def _input(spec: Spec, tensor: Any, shape: Sequence[int | None] | None, include_top: bool) -> Any:
    """The Keras tensor that the network reads, its shape checked."""
    if tensor is not None:
        if not keras.utils.is_keras_tensor(tensor):
            raise UsageError(
                f"input_tensor of type {type(tensor).__name__} is not a Keras tensor: use keras.Input(...)"
            )
        shape = tensor.shape[1:]
    elif shape is None:
        side = spec.input_size if include_top else None
        shape = (side, side, 3)
    shape = tuple(shape) if isinstance(shape, (Sequence, np.ndarray)) else (shape,)
    shape = tuple(int(side) if isinstance(side, numbers.Integral) else side for side in shape)  # NumPy's too
    if len(shape) != 3 or not isinstance(shape[2], int) or shape[2] < 1:
        raise UsageError(f"input_shape={shape} must be (height, width, channels), with 1 channel or more")
    for side in shape[:2]:
        if side is not None and (not isinstance(side, int) or side < spec.output_stride):
            raise UsageError(
                f"input_shape={shape} is smaller than the network's stride: height and width must be at least "
                f"{spec.output_stride}, or None"
                + ("; stem='small' takes smaller images" if spec.stem != "small" else "")
            )
    return keras.Input(shape, name="image") if tensor is None else tensor


def _constructor(variant: str) -> Callable[..., keras.Model]:
    def construct(
        include_top: bool = True,
        weights: str | os.PathLike[str] | None = "imagenet",
        input_tensor: Any = None,
        input_shape: Sequence[int | None] | None = None,
        pooling: str | None = None,
        classes: int = 1000,
        classifier_activation: str | Callable[..., Any] | None = "softmax",
        name: str = variant,
    ) -> keras.Model:
        given: dict[str, Any] = {} if classes == spec_of(variant).classes else {"classes": classes}
        return build(
            variant,
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classifier_activation=classifier_activation,
            name=name,
            **given,
        )

    construct.__name__ = construct.__qualname__ = variant.replace("resnet", "ResNet")
    construct.__doc__ = f"""{variant}, with the signature of keras.applications; every other option: `build`.

    weights: "imagenet" (torchvision's V2 for 50, 101 and 152, V1 for 18 and 34), None (random), or anything that
        `build` takes; the rest as there. classes: 1,000, the default, gives way to what an hf:// config says.
    Source: arXiv:1512.03385, Table 1; stride on the 3x3 convolutions, as in torchvision.
    """
    return construct


ResNet18 = _constructor("resnet18")
ResNet34 = _constructor("resnet34")
ResNet50 = _constructor("resnet50")
ResNet101 = _constructor("resnet101")
ResNet152 = _constructor("resnet152")

_BLOCK = re.compile(r"stage(\d+)_block(\d+)_out")


def features(model: keras.Model) -> keras.Model:
    """The pyramid C2, C3, ...: a model from the same input to the last feature map of each stage.

    Where a stage strides in its last block (keras.applications' V2), the map is the one in front of that stride, of
    a pre-activation network the activated one, as detectors take it. Shares layers and weights with `model`, which
    must be one of ours. Raises InputError for other models.
    """
    last: dict[int, int] = {}
    named = {layer.name: layer for layer in model.layers}
    for name in named:
        if match := _BLOCK.fullmatch(name):
            stage, block = map(int, match.groups())
            last[stage] = max(block, last.get(stage, 0))
    if not last:
        raise InputError(f"model {model.name!r} has no layers named stage1_block1_out, ...: build it with keras_resnet")
    outputs = [named[f"stage{s}_block{b}_out"].output for s, b in sorted(last.items())]
    if any(named[f"stage1_block{last[1]}_conv{j}"].strides != (1, 1) for j in (1, 2)):
        convolutions = [f"stage{s}_block{b}_conv1" for s, b in sorted(last.items())][:-1]
        outputs[:-1] = [named.get(f"{name}_pad", named[name]).input for name in convolutions]
        outputs[-1] = named["head_relu"].output if "head_relu" in named else outputs[-1]
    with recursion_room(len(model.layers)):
        return keras.Model(model.input, outputs, name=f"{model.name}_features")


def freeze(model: keras.Model, *, through: str | None = "stem", batch_norm: bool = True) -> None:
    """Train only the layers behind a part: "stem", "stage1", ..., or the name of a layer; None: train all.

    Every layer is set, so that a later call takes an earlier one back; `model.trainable = True` does not (Keras 3.15.1
    leaves the layers alone where the model has that value already). Where `batch_norm`, frozen BatchNormalization runs
    on its stored statistics (what Keras does by itself); without, those layers keep training. Compile the model
    afterwards. Raises UsageError for an unknown part.
    """
    order = [layer.name for layer in model.layers]
    until = max((i for i, name in enumerate(order) if name == through or name.startswith(f"{through}_")), default=-1)
    if until < 0 and through is not None:
        raise unknown("part", through, dict.fromkeys(name.split("_")[0] for name in order), where="through=")
    for i, layer in enumerate(model.layers):
        layer.trainable = i > until or (not batch_norm and isinstance(layer, layers.BatchNormalization))
