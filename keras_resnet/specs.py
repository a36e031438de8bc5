"""The table of networks: a row a variant, a field for each thing in which two published networks differ.

Pure data. `models.build` turns a `Spec` into a network; nothing here knows Keras.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from keras_resnet.errors import UsageError, unknown

BLOCKS = ("basic", "bottleneck")
SHORTCUTS = ("A", "B", "C", "highway", "none")
STEMS = ("imagenet", "small")
CONVOLUTIONS = ("stem_conv", "conv1", "conv2", "conv3", "shortcut_conv")
EXPANSION = {"basic": 1, "bottleneck": 4}  # channels behind a block, over the stage's width


@dataclass(frozen=True)
class Spec:
    """What a residual network is, as numbers and words.

    Sources: arXiv:1512.03385 (blocks, shortcuts A, B, C), arXiv:1603.05027 (pre-activation, gates),
    arXiv:1611.05431 (groups), arXiv:1605.07146 (width), arXiv:1603.09382 (stochastic depth).
    Raises UsageError where the values do not make a network.
    """

    block: str  # "basic": 3x3, 3x3; "bottleneck": 1x1, 3x3, 1x1 with four times the width behind it
    depths: tuple[int, ...]  # blocks in each stage
    widths: tuple[int, ...] = (64, 128, 256, 512)  # base width of each stage; the first is the stem's too
    groups: int = 1  # groups of the bottleneck's 3x3
    width_per_group: int = 64  # inner width of a bottleneck = int(width * width_per_group / 64) * groups

    stem: str = "imagenet"  # "imagenet": 7x7 stride 2, max-pool 3x3 stride 2; "small": 3x3 stride 1, no pool
    pool_padding: str = "zero"  # "zero" or "infinite" (minus infinity): they differ where no ReLU stands before
    padding: str = "symmetric"  # "symmetric": k // 2 on every side, as PyTorch and Caffe; "same": TensorFlow's
    stride_on: str = "3x3"  # which convolution of a bottleneck strides: "3x3" or "1x1"
    stride_block: str = "first"  # which block of a stage strides: "first" (stages 2 up) or "last" (all but the last)

    shortcut: str = "B"  # where the shape changes: "A" zero channels, "B" projection; "C": projections everywhere
    shortcut_bn: bool = True  # BatchNormalization behind a projection
    gate_bias: float = -6.0  # where a highway gate starts: the best of arXiv:1603.05027, Table 1
    preactivation: bool = False  # BatchNormalization and ReLU in front of each convolution
    conv_bias: tuple[str, ...] = ()  # the convolutions that have a bias, out of CONVOLUTIONS

    epsilon: float = 1e-5
    momentum: float = 0.9  # Keras' meaning: PyTorch's 0.1
    zero_last_gamma: bool = False  # each block starts as its shortcut (arXiv:1706.02677, section 5.1)
    stochastic_depth: float = 0.0  # rate at which the last block is dropped; earlier ones linearly less
    dropout: float = 0.0  # rate in front of the head

    input_size: int = 224  # pixels: the default height and width
    classes: int = 1000

    def __post_init__(self) -> None:
        _check(self)

    @property
    def output_stride(self) -> int:
        """Input pixels to one position of the last feature map, along each side."""
        return (4 if self.stem == "imagenet" else 1) * 2 ** (len(self.depths) - 1)


def _check(spec: Spec) -> None:
    choices = {
        "block": BLOCKS,
        "stem": STEMS,
        "pool_padding": ("zero", "infinite"),
        "padding": ("symmetric", "same"),
        "stride_on": ("3x3", "1x1"),
        "stride_block": ("first", "last"),
        "shortcut": SHORTCUTS,
    }
    for name, valid in choices.items():
        if getattr(spec, name) not in valid:
            raise unknown(name, getattr(spec, name), valid, where=f"{name}=")
    if not isinstance(spec.conv_bias, tuple):
        raise UsageError(f"conv_bias={spec.conv_bias!r} must be a tuple of names out of {', '.join(CONVOLUTIONS)}")
    for name in spec.conv_bias:
        if name not in CONVOLUTIONS:
            raise unknown("convolution", name, CONVOLUTIONS, where="conv_bias=")
    for name in ("depths", "widths"):
        values = getattr(spec, name)
        if not isinstance(values, tuple) or not values or not all(is_positive(value) for value in values):
            raise UsageError(f"{name}={values!r} must be a tuple of whole numbers from 1 up, one a stage")
    if len(spec.depths) != len(spec.widths):
        raise UsageError(
            f"depths={spec.depths} has {len(spec.depths)} stages but widths={spec.widths} has {len(spec.widths)}: "
            "give one number a stage in both"
        )
    for name in ("groups", "width_per_group", "input_size", "classes"):
        if not is_positive(getattr(spec, name)):
            raise UsageError(f"{name}={getattr(spec, name)!r} must be a whole number from 1 up")
    if int(min(spec.widths) * spec.width_per_group / 64) < 1:
        raise UsageError(
            f"width_per_group={spec.width_per_group} leaves no channel of widths={spec.widths}: the inner width is "
            "int(width * width_per_group / 64) * groups; let it be 1 or more"
        )
    if spec.block == "basic" and (spec.groups, spec.width_per_group) != (1, 64):
        raise UsageError(
            f"groups={spec.groups}, width_per_group={spec.width_per_group} need block='bottleneck': "
            "a basic block has groups=1, width_per_group=64"
        )
    for name in ("shortcut_bn", "preactivation", "zero_last_gamma"):
        if not isinstance(getattr(spec, name), bool):
            raise UsageError(f"{name}={getattr(spec, name)!r} must be True or False")
    for name in ("stochastic_depth", "dropout", "momentum"):
        if not (is_number(getattr(spec, name)) and 0 <= getattr(spec, name) < 1):
            raise UsageError(f"{name}={getattr(spec, name)!r} must be a number of at least 0 and below 1")
    if not (is_number(spec.epsilon) and spec.epsilon > 0):
        raise UsageError(f"epsilon={spec.epsilon!r} must be a number above 0")
    if not is_number(spec.gate_bias):
        raise UsageError(f"gate_bias={spec.gate_bias!r} must be a number")
    _check_shortcut(spec)


def _check_shortcut(spec: Spec) -> None:
    narrows = any(behind < before for before, behind in zip(spec.widths, spec.widths[1:], strict=False))
    if spec.shortcut in ("A", "highway") and narrows:
        raise UsageError(
            f"widths={spec.widths} with shortcut={spec.shortcut!r}: these shortcuts add channels of zeros and cannot "
            "take any away; let widths grow, or use shortcut='B'"
        )
    if spec.shortcut == "none" and (spec.stochastic_depth or spec.zero_last_gamma):
        raise UsageError(
            f"stochastic_depth={spec.stochastic_depth}, zero_last_gamma={spec.zero_last_gamma} with shortcut='none': "
            "without a shortcut nothing is left of a dropped or zeroed block; use 0 and False, or another shortcut"
        )


def is_positive(value: object) -> bool:
    """A whole number from 1 up, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """A finite number, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _changed(spec: Spec, changes: Mapping[str, Any]) -> Spec:
    names = [field.name for field in dataclasses.fields(Spec)]
    for name, value in changes.items():
        if name not in names:
            raise unknown("option", name, names, where=f"{name}={value!r}")
    return replace(spec, **{name: _plain(value) for name, value in changes.items()})


def _plain(value: Any) -> Any:
    """Lists as tuples, NumPy's whole numbers as Python's."""
    if isinstance(value, list):
        return tuple(value)
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


def cifar(depth: int, block: str = "basic", **changes: Any) -> Spec:
    """The CIFAR form of a given depth (arXiv:1512.03385, section 4.2): three stages of equal length, shortcut A.

    depth: 6n + 2 for "basic" blocks, 9n + 2 for "bottleneck" ones; **changes replace fields of the spec.
    Raises UsageError for any other depth, block or field.
    """
    if block not in BLOCKS:
        raise unknown("block", block, BLOCKS, where="block=")
    if not is_positive(depth):
        raise UsageError(f"depth={depth!r} must be a whole number from 1 up")
    layers = {"basic": 6, "bottleneck": 9}[block]
    blocks, rest = divmod(depth - 2, layers)
    if rest or blocks < 1:
        below = layers * max(blocks, 1) + 2
        raise UsageError(
            f"depth={depth} does not fit a {block} block, whose depths are {layers}n + 2: "
            f"nearest are {below} and {below + layers}"
        )
    row = Spec(
        block,
        depths=(blocks,) * 3,
        widths=(16, 32, 64),
        stem="small",
        shortcut="A",
        input_size=32,
        classes=10,
    )
    return _changed(row, changes)


# Stride on the 3x3, no bias: torchvision, timm, fb.resnet.torch ("v1.5").
_IMAGENET: dict[str, Spec] = {
    "resnet18": Spec("basic", depths=(2, 2, 2, 2)),
    "resnet34": Spec("basic", depths=(3, 4, 6, 3)),
    "resnet50": Spec("bottleneck", depths=(3, 4, 6, 3)),
    "resnet101": Spec("bottleneck", depths=(3, 4, 23, 3)),
    "resnet152": Spec("bottleneck", depths=(3, 8, 36, 3)),
    "resnet200": Spec("bottleneck", depths=(3, 24, 36, 3)),
    "resnext50_32x4d": Spec("bottleneck", depths=(3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Spec("bottleneck", depths=(3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": Spec("bottleneck", depths=(3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": Spec("bottleneck", depths=(3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Spec("bottleneck", depths=(3, 4, 23, 3), width_per_group=128),
    "plain18": Spec("basic", depths=(2, 2, 2, 2), shortcut="none"),
    "plain34": Spec("basic", depths=(3, 4, 6, 3), shortcut="none"),
}

_KERAS: dict[str, Any] = {"epsilon": 1.001e-5, "momentum": 0.99}  # keras.applications, whose weights these forms load

# Stride on the first 1x1: the paper's form, Caffe's and keras.applications' (whose biases fold away).
_V1 = {f"resnet{n}_v1": replace(_IMAGENET[f"resnet{n}"], stride_on="1x1", **_KERAS) for n in (50, 101, 152)}

# Pre-activation as timm has it: stride and projection in a stage's first block.
_PREACTIVATION: dict[str, Any] = {"preactivation": True, "shortcut_bn": False}
_TIMM_V2 = {
    f"resnetv2_{n}": replace(_IMAGENET[f"resnet{n}"], pool_padding="infinite", **_PREACTIVATION)
    for n in (18, 34, 50, 101, 152)
}

# Pre-activation as keras.applications has it: stride in a stage's last block, biases that stay.
_KERAS_V2 = {
    f"resnet{n}_v2": replace(
        _IMAGENET[f"resnet{n}"],
        stride_block="last",
        conv_bias=("stem_conv", "conv3", "shortcut_conv"),
        **_PREACTIVATION,
        **_KERAS,
    )
    for n in (50, 101, 152)
}

_CIFAR: dict[str, Spec] = {
    # MLPerf Tiny's image classification network (mlcommons/tiny, benchmark/training/image_classification).
    "cifar_resnet8": cifar(
        8,
        shortcut="B",
        shortcut_bn=False,
        conv_bias=CONVOLUTIONS,
        padding="same",
        epsilon=1e-3,
        momentum=0.99,
    ),
    **{f"cifar_resnet{n}": cifar(n) for n in (20, 32, 44, 56, 110, 1202)},
    **{f"cifar_plain{n}": cifar(n, shortcut="none") for n in (20, 32, 44, 56, 110)},
    # KaimingHe/resnet-1k-layers, resnet-pre-act.lua.
    "cifar_resnet110_v2": cifar(110, **_PREACTIVATION),
    **{
        f"cifar_resnet{n}_v2": cifar(n, "bottleneck", shortcut="B", stride_on="1x1", **_PREACTIVATION)
        for n in (164, 1001)
    },
}

VARIANTS: Mapping[str, Spec] = {**_IMAGENET, **_V1, **_TIMM_V2, **_KERAS_V2, **_CIFAR}


def list_variants(pattern: str = "") -> list[str]:
    """The names of all variants that contain `pattern`, in the table's order."""
    return [name for name in VARIANTS if pattern in name]


def spec_of(variant: str | Spec, **changes: Any) -> Spec:
    """The spec of a variant, or a spec itself, with some fields replaced.

    Raises UsageError for an unknown variant or field (the nearest names are offered), and for values that make no
    network.
    """
    if isinstance(variant, Spec):
        spec = variant
    elif isinstance(variant, str) and variant in VARIANTS:
        spec = VARIANTS[variant]
    else:
        raise unknown("variant", variant, VARIANTS, where="variant=", show_all="`keras-resnet list variants`")
    return _changed(spec, changes)
