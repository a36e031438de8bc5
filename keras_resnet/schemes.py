"""What each library calls the layers of a residual network: a row a naming scheme, and names made from a row.

Data and pure functions on names. Which network they belong to is left to `naming`, from names to a scheme leads
`recognition`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from keras_resnet.errors import InputError, unknown

# Tensors that hold no weight: counters of BatchNormalization, of averaged models, of profilers.
IGNORED = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
# What wrappers put in front of every name: DataParallel, torch.compile, and a module that holds the network.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The names of one library; stages, blocks and convolutions count from 1 in the arguments."""

    stem_conv: str
    block: Callable[[int, int], str]
    conv: Callable[[int], str]
    bn: Callable[[int], str]
    shortcut_conv: str
    head: str
    stem_bn: str = ""  # "": has none
    shortcut_bn: str = ""
    head_bn: str = ""

    in_keras: bool = False  # variables and their axes are Keras', else PyTorch's
    conv_biases: bool = False  # every convolution has one, which folds into the BatchNormalization behind it
    head_is_conv: bool = False  # the classifier is a 1x1 convolution
    counts_batches: bool = False  # its files have num_batches_tracked
    prefix: str = ""  # in front of every name it writes

    computes: Mapping[str, tuple[Any, ...]]  # fields of Spec: the values that the library's code can compute with


# Where tensors do not tell, the first value is taken.
_POST: dict[str, tuple[Any, ...]] = {
    "preactivation": (False,),
    "shortcut": ("B",),
    "shortcut_bn": (True,),
    "stride_on": ("3x3",),
    "stride_block": ("first",),
    "padding": ("symmetric",),
    "epsilon": (1e-5,),
    "conv_bias": ((),),
}
_PRE: dict[str, tuple[Any, ...]] = {**_POST, "preactivation": (True,), "shortcut_bn": (False,)}
_PLAIN_WIDTH: dict[str, tuple[Any, ...]] = {"groups": (1,), "width_per_group": (64,)}
_IMAGENET: dict[str, tuple[Any, ...]] = {**_PLAIN_WIDTH, "stem": ("imagenet",)}
_IN_APPLICATIONS: dict[str, tuple[Any, ...]] = {**_IMAGENET, "block": ("bottleneck",), "epsilon": (1.001e-5,)}
_IN_KERAS: dict[str, Any] = {
    "stem_conv": "conv1_conv",
    "block": lambda s, b: f"conv{s + 1}_block{b}_",
    "conv": lambda j: f"{j}_conv",
    "shortcut_conv": "0_conv",
    "head": "predictions",
    "in_keras": True,
}
_TORCHVISION = Scheme(
    stem_conv="conv1",
    stem_bn="bn1",
    block=lambda s, b: f"layer{s}.{b - 1}.",
    conv=lambda j: f"conv{j}",
    bn=lambda j: f"bn{j}",
    shortcut_conv="downsample.0",
    shortcut_bn="downsample.1",
    head="fc",
    counts_batches=True,
    computes={**_POST, "stem": ("imagenet", "small")},  # "small": conv1 and maxpool replaced, as is often done
)

# Where tensors fit two, the first is taken.
SCHEMES: Mapping[str, Scheme] = {
    "torchvision": _TORCHVISION,  # and timm's resnet*
    "timm_v2": Scheme(
        stem_conv="stem.conv",
        block=lambda s, b: f"stages.{s - 1}.blocks.{b - 1}.",
        conv=lambda j: f"conv{j}",
        bn=lambda j: f"norm{j}",
        shortcut_conv="downsample.conv",
        head_bn="norm",
        head="head.fc",
        head_is_conv=True,
        counts_batches=True,
        computes={**_PRE, **_IMAGENET, "pool_padding": ("infinite",)},
    ),
    "transformers": Scheme(
        stem_conv="resnet.embedder.embedder.convolution",
        stem_bn="resnet.embedder.embedder.normalization",
        block=lambda s, b: f"resnet.encoder.stages.{s - 1}.layers.{b - 1}.",
        conv=lambda j: f"layer.{j - 1}.convolution",
        bn=lambda j: f"layer.{j - 1}.normalization",
        shortcut_conv="shortcut.convolution",
        shortcut_bn="shortcut.normalization",
        head="classifier.1",
        counts_batches=True,
        computes={**_POST, **_IMAGENET, "stride_on": ("3x3", "1x1")},  # its config's downsample_in_bottleneck
    ),
    "keras_v1": Scheme(
        **_IN_KERAS,
        stem_bn="conv1_bn",
        bn=lambda j: f"{j}_bn",
        shortcut_bn="0_bn",
        conv_biases=True,
        computes={**_POST, **_IN_APPLICATIONS, "stride_on": ("1x1",)},
    ),
    "keras_v2": Scheme(
        **_IN_KERAS,
        bn=lambda j: "preact_bn" if j == 1 else f"{j - 1}_bn",
        head_bn="post_bn",
        computes={
            **_PRE,
            **_IN_APPLICATIONS,
            "pool_padding": ("zero",),
            "stride_block": ("last",),
            "conv_bias": (("stem_conv", "shortcut_conv", "conv3"),),
        },
    ),
    # akamaster/pytorch_resnet_cifar10, and kuangliu/pytorch-cifar, whose projections have the same names.
    "akamaster": replace(
        _TORCHVISION,
        shortcut_conv="shortcut.0",
        shortcut_bn="shortcut.1",
        head="linear",
        counts_batches=False,
        prefix="module.",
        computes={**_POST, **_PLAIN_WIDTH, "stem": ("small",), "shortcut": ("A", "B")},
    ),
}

_IN_TORCH = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def scheme_of(name: str) -> Scheme:
    """The scheme of a name. Raises UsageError for an unknown one."""
    if name not in SCHEMES:
        raise unknown("naming", name, SCHEMES, where="naming=")
    return SCHEMES[name]


_PLACE = re.compile(
    r"stage(?P<s>\d+)_block(?P<b>\d+)_(?:(?P<kind>conv|bn)(?P<j>\d)|(?P<shortcut>shortcut_(?:conv|bn)))"
)


def name_of(scheme: Scheme, layer: str, variable: str) -> str:
    """The scheme's name of one of our weights; "" where it has none."""
    if place := _PLACE.fullmatch(layer):
        part = getattr(scheme, place["shortcut"] or place["kind"])
        part = part if place["shortcut"] else part(int(place["j"]))
        path = scheme.block(int(place["s"]), int(place["b"])) + part if part else ""
    else:
        path = getattr(scheme, "head" if layer == "head_dense" else layer, "")
    return path and (f"{path}/{variable}" if scheme.in_keras else f"{path}.{_IN_TORCH[variable]}")


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Names as the schemes have them, each with the name it had: wrappers' prefixes and what holds no weight left out.

    Raises InputError where two names come out the same.
    """
    found = {name: name for name in names if not name.endswith(IGNORED)}
    while prefix := next((p for p in PREFIXES if found and all(name.startswith(p) for name in found)), ""):
        found = {name.removeprefix(prefix): old for name, old in found.items()}
    plain: dict[str, str] = {}
    for name, old in found.items():
        name = re.sub(r"^([^/]+)/\1/", r"\1/", name.removesuffix(":0"))  # as HDF5 files of Keras 2 have them
        name = re.sub(r"^probs/", "predictions/", name)  # keras-applications 1.0.8, which wrote the files
        name = re.sub(r"^(embedder|encoder)\.", r"resnet.\1.", name)  # transformers' ResNetModel
        if name in plain:
            raise InputError(f"tensors {plain[name]!r} and {old!r} are both {name!r}: give the tensors of one network")
        plain[name] = old
    return plain
