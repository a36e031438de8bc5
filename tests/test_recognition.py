"""Tensors tell which network they are, or are refused with the reason."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from keras_resnet.errors import InputError
from keras_resnet.naming import differences, table
from keras_resnet.recognition import recognise, spec_from
from keras_resnet.schemes import SCHEMES
from keras_resnet.specs import VARIANTS, Spec, spec_of
from tests.references import SEED, import_torchvision

PAIRS = [(variant, scheme) for variant in VARIANTS for scheme in SCHEMES if not differences(VARIANTS[variant], scheme)]
Tensors = dict[str, np.ndarray]


def zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return np.broadcast_to(dtype(0), shape)  # takes no memory, whatever its shape


def tensors_of(spec: Spec, scheme: str, **options: Any) -> Tensors:
    return {entry.name: zeros(entry.shape) for entry in table(spec, scheme, **options) if entry.required}


@pytest.mark.parametrize(("variant", "scheme"), PAIRS)
def test_every_variant_is_found_in_every_naming_that_carries_it(variant, scheme):
    found = spec_from(tensors_of(VARIANTS[variant], scheme))
    assert (found.variant, found.scheme, found.spec) == (variant, scheme, VARIANTS[variant])
    assert (found.classes, found.channels) == (VARIANTS[variant].classes, 3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_classes_channels_and_a_missing_classifier_are_found(scheme):
    variant = next(variant for variant, fits in PAIRS if fits == scheme)
    found = spec_from(tensors_of(spec_of(variant, classes=7), scheme, channels=1))
    assert (found.variant, found.spec, found.classes, found.channels) == (variant, spec_of(variant, classes=7), 7, 1)
    headless = spec_from(tensors_of(VARIANTS[variant], scheme, channels=5, include_top=False))
    assert (headless.variant, headless.classes, headless.channels) == (variant, None, 5)


def test_a_replaced_stem_is_found():
    """As torchvision's networks are often changed for CIFAR: `conv1` is 3x3, the pool is gone."""
    found = spec_from(tensors_of(spec_of("resnet18", stem="small", classes=10), "torchvision"))
    assert found.variant == "resnet18"
    assert found.spec == spec_of("resnet18", stem="small", classes=10, input_size=32)
    assert "3x3 stem taken with stride 1 and no pool behind it" in found.notes


def test_projections_in_every_block_are_found():
    spec = spec_of("resnet18", shortcut="C")
    found = spec_from(tensors_of(spec, "torchvision"))
    assert (found.variant, found.spec.shortcut, found.spec.depths) == (None, "C", (2, 2, 2, 2))
    one_each = Spec("basic", depths=(1, 1), widths=(8, 16), shortcut="C")
    assert spec_from(tensors_of(one_each, "torchvision")).spec.shortcut == "C"


def test_projections_of_cifar_networks_are_found_in_their_naming():
    spec = spec_of("cifar_resnet20", shortcut="B")
    found = spec_from(tensors_of(spec, "akamaster"))
    assert (found.variant, found.scheme, found.spec.shortcut, found.spec.widths) == (
        None,
        "akamaster",
        "B",
        (16, 32, 64),
    )


@pytest.mark.parametrize(
    "spec",
    [
        Spec("basic", depths=(1, 2, 1), widths=(8, 24, 40), classes=3),
        Spec("bottleneck", depths=(2, 1), widths=(16, 32), groups=4, width_per_group=20, classes=3),
        Spec("bottleneck", depths=(1, 1, 1, 1, 1), widths=(8, 8, 16, 16, 24), width_per_group=96, classes=3),
    ],
)
def test_networks_of_no_row_are_found_too(spec):
    found = spec_from(tensors_of(spec, "torchvision"))
    assert found.variant is None
    assert (found.spec, found.classes) == (spec, 3)


@pytest.mark.parametrize(
    ("variant", "scheme", "note"),
    [
        ("resnet50", "torchvision", "stride taken on the 3x3 convolutions; resnet50_v1 has the same tensors"),
        (
            "resnet50",
            "transformers",
            "resnet50_v1 has the same tensors (where its config says downsample_in_bottleneck)",
        ),
        ("cifar_resnet20", "akamaster", "taken as A (channels of zeros); a plain network has the same tensors"),
    ],
)
def test_what_tensors_cannot_tell_is_said(variant, scheme, note):
    assert any(note in said for said in spec_from(tensors_of(VARIANTS[variant], scheme)).notes)


@pytest.mark.parametrize(("variant", "scheme"), [("resnet18", "torchvision"), ("resnet50_v1", "keras_v1")])
def test_nothing_is_noted_where_nothing_is_open(variant, scheme):
    assert spec_from(tensors_of(VARIANTS[variant], scheme)).notes == ()


def test_what_was_found_is_one_line():
    line = str(spec_from(tensors_of(spec_of("resnet50", classes=5), "torchvision")))
    assert line == "resnet50, 5 classes, 3 channels, stem 'imagenet', torchvision names"
    assert "no classifier" in str(spec_from(tensors_of(VARIANTS["resnet50"], "torchvision", include_top=False)))
    assert "depths (1,)" in str(spec_from(tensors_of(Spec("basic", depths=(1,), widths=(8,)), "torchvision")))


def test_wrapped_counted_and_headless_names_are_recognised():
    names = tensors_of(VARIANTS["resnet18"], "torchvision", include_top=False)
    assert recognise(names) == "torchvision"
    assert recognise([*(f"module.{name}" for name in names), "n_averaged"]) == "torchvision"
    backbone = tensors_of(VARIANTS["resnet18"], "transformers", include_top=False)
    assert recognise(name.removeprefix("resnet.") for name in backbone) == "transformers"  # ResNetModel
    assert recognise(tensors_of(VARIANTS["cifar_resnet20"], "akamaster")) == "akamaster"


# Refusals ------------------------------------------------------------------------------------------------------------


def test_names_of_two_schemes_are_ambiguous():
    names = tensors_of(VARIANTS["cifar_resnet20"], "akamaster") | {"fc.weight": zeros((10, 64))}
    with pytest.raises(InputError, match="ambiguous, they are named as in torchvision and in akamaster"):
        recognise(names)


@pytest.mark.parametrize("names", [[], ["features.0.weight", "classifier.weight"], ["stem_conv/kernel"]])
def test_names_of_no_scheme_are_refused_with_what_was_seen(names):
    with pytest.raises(InputError, match=f"a.pth has {len(names)} tensors") as error:
        recognise(names, where="a.pth")
    assert "known are torchvision (layer1.0.conv1.weight)" in str(error.value)
    assert all(name in str(error.value) for name in names)


def changed(**changes: tuple[int, ...] | None) -> Tensors:
    """ResNet-50's tensors with some added, reshaped, or (None) taken away; "__" stands for a dot."""
    tensors = tensors_of(VARIANTS["resnet50"], "torchvision")
    for key, shape in changes.items():
        name = key.replace("__", ".")
        tensors = {other: array for other, array in tensors.items() if other != name}
        if shape is not None:
            tensors[name] = zeros(shape)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (changed(layer1__0__se__fc1__weight=(8, 256, 1, 1)), "squeeze-and-excitation"),
        (changed(conv1__weight=None, conv1__0__weight=(32, 3, 3, 3)), "a stem of several convolutions"),
        (changed(layer2__0__downsample__2__weight=(512,)), "ResNet-D"),
        (changed(layer2__0__downsample__0__weight=None), "1 missing (layer2.0.downsample.0.weight)"),
        (changed(conv1__weight=(64, 3, 5, 5)), "a stem of 5x5"),
        (changed(conv1__weight=(64, 3, 7)), "shape"),
        (changed(layer3__2__conv2__weight=(256, 128, 3, 3)), "(256, 128, 3, 3) instead of (256, 256, 3, 3)"),
        (changed(fc__weight=None, fc__1__weight=(5, 2048)), "2 unexpected (fc.bias, fc.1.weight)"),
        (changed(fc__weight=(5,)), "fc.weight (5,) instead of (5, 2048)"),
        (changed(fc__weight=(0, 2048)), "classes=0"),
        (changed(layer1__0__conv3__weight=(0, 64, 1, 1)), "shape"),
        (changed(layer5__0__conv1__weight=(8, 2048, 1, 1)), "layer5"),
        ({k: v for k, v in changed().items() if "running" not in k}, "no statistics of BatchNormalization"),
    ],
)
def test_foreign_networks_are_refused_with_the_reason(tensors: Tensors, said):
    with pytest.raises(InputError) as error:
        spec_from(tensors, where="a.pth")
    assert said in str(error.value)
    assert "a.pth" in str(error.value)


def mutated(tensors: Mapping[str, np.ndarray], chance: random.Random) -> Tensors:
    """Some tensors dropped, renamed, reshaped or swapped, as a damaged or hostile file may have them."""
    result = dict(tensors)
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(list(result))
        array = result.pop(name)
        kind = chance.randrange(5)
        if kind == 0:
            result[name.replace("1", chance.choice(["0", "2", "99999999999", "-1", ""]))] = array
        elif kind == 1:
            result[name] = zeros(tuple(chance.choice([0, 1, 3, 64, 2**12]) for _ in range(chance.randint(0, 5))))
        elif kind == 2:
            result[name] = zeros(array.shape[::-1])
        elif kind == 3:
            other = chance.choice(list(result))
            result[name], result[other] = result[other], array
    return result


@pytest.mark.parametrize(("variant", "scheme"), [("resnet18", "torchvision"), ("resnetv2_50", "timm_v2")])
def test_mutated_tensors_are_refused_or_read_and_nothing_else(variant, scheme):
    chance = random.Random(SEED)
    tensors = tensors_of(VARIANTS[variant], scheme)
    refused = 0
    for _ in range(400):
        try:
            spec_from(mutated(tensors, chance))
        except InputError:
            refused += 1
    assert 300 < refused <= 400


# Real networks of other libraries ------------------------------------------------------------------------------------


def state(network: Any) -> Tensors:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def timm_or_skip() -> Any:
    try:
        import_torchvision()  # which timm imports
        import timm
    except ImportError as error:
        pytest.skip(f"needs {error.name}: requirements-reference.txt")
    return timm


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("resnet34", "resnet34"),
        ("resnet101", "resnet101"),
        ("resnext50_32x4d", "resnext50_32x4d"),
        ("wide_resnet50_2", "wide_resnet50_2"),
        ("resnetv2_34", "resnetv2_34"),
        ("resnetv2_50", "resnetv2_50"),
    ],
)
def test_networks_of_timm_are_found(name, variant):
    found = spec_from(state(timm_or_skip().create_model(name, num_classes=5, in_chans=1)))
    assert (found.variant, found.classes, found.channels) == (variant, 5, 1)
    headless = spec_from(state(timm_or_skip().create_model(name, num_classes=0)))
    assert (headless.variant, headless.classes, headless.channels) == (variant, None, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet50d", "a stem of several convolutions"),
        ("seresnet50", "squeeze-and-excitation"),
        ("ecaresnet50d", "squeeze-and-excitation"),
        ("resnetv2_50d", "a stem of several convolutions"),
        ("resnetv2_50x1_bit", "no statistics of BatchNormalization"),
        ("resnet50_gn", "no statistics of BatchNormalization"),
        ("res2net50_26w_4s", "no layer1.0.conv2.weight"),
        ("skresnet18", "names of no network"),
        ("densenet121", "another family"),
        ("regnetx_002", "names of no network"),
        ("mobilenetv2_100", "names of no network"),
    ],
)
def test_other_networks_of_timm_are_refused(name, said):
    with pytest.raises(InputError) as error:
        spec_from(state(timm_or_skip().create_model(name)))
    assert said in str(error.value)
