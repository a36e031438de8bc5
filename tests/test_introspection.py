"""A network tells what it is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import pytest

import keras_resnet
from keras_resnet.errors import InputError
from keras_resnet.introspection import spec_of_model
from keras_resnet.specs import VARIANTS, Spec, spec_of

GIANTS = ("cifar_resnet1202", "cifar_resnet1001_v2")
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("cifar_resnet20", {"shortcut": "C"}),
    ("cifar_resnet20", {"shortcut": "highway"}),
    ("cifar_resnet20", {"stochastic_depth": 0.2, "dropout": 0.3, "zero_last_gamma": True, "classes": 7}),
    ("cifar_resnet110_v2", {"zero_last_gamma": True, "depths": (1, 2, 1)}),
    ("resnet18", {"stem": "small", "padding": "same"}),
    ("resnet50", {"groups": 4, "width_per_group": 24, "epsilon": 1e-4, "momentum": 0.7}),
]


def small(spec: Spec) -> Spec:
    """The same forms with at most two blocks a stage and narrow stages."""
    return replace(spec, depths=tuple(min(d, 2) for d in spec.depths), widths=tuple(w // 4 for w in spec.widths))


def traces(spec: Spec) -> Spec:
    """Without what a network of the spec cannot show: a bias of the third convolution where there is none."""
    if spec.block == "bottleneck":
        return spec
    return replace(spec, conv_bias=tuple(role for role in spec.conv_bias if role != "conv3"))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in GIANTS])
def test_every_variant_is_read_back(variant: str) -> None:
    spec = small(VARIANTS[variant])
    assert spec_of_model(keras_resnet.build(spec)) == traces(spec)


@pytest.mark.parametrize(("variant", "changes"), CHANGES)
def test_every_option_is_read_back_also_by_way_of_plain_keras(variant: str, changes: dict[str, Any]) -> None:
    spec = spec_of(variant, **changes)
    model = keras_resnet.build(spec)
    assert spec_of_model(keras.Model.from_config(model.get_config())) == traces(spec)


def test_a_foreign_model_is_refused() -> None:
    with pytest.raises(InputError, match="not one of ours"):
        spec_of_model(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)]))
