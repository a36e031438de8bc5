"""The table of networks: its rows, what can be changed in one, and what is refused."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest

from keras_resnet.errors import UsageError
from keras_resnet.specs import CONVOLUTIONS, EXPANSION, VARIANTS, Spec, cifar, list_variants, spec_of

# The names that users of the reference implementations know, and those of arXiv:1512.03385 and 1603.05027.
PROMISED = """
    resnet18 resnet34 resnet50 resnet101 resnet152 resnet200 plain18 plain34
    resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2
    resnet50_v1 resnet101_v1 resnet152_v1 resnet50_v2 resnet101_v2 resnet152_v2
    resnetv2_18 resnetv2_34 resnetv2_50 resnetv2_101 resnetv2_152
    cifar_resnet8 cifar_resnet20 cifar_resnet32 cifar_resnet44 cifar_resnet56 cifar_resnet110 cifar_resnet1202
    cifar_plain20 cifar_plain32 cifar_plain44 cifar_plain56 cifar_plain110
    cifar_resnet110_v2 cifar_resnet164_v2 cifar_resnet1001_v2
""".split()


def test_every_promised_variant_is_in_the_table_and_no_other():
    assert sorted(VARIANTS) == sorted(PROMISED)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_in_a_name_is_the_count_of_layers_with_weights(variant):
    # The papers count the stem, the convolutions of the residual branches and the classifier.
    spec = VARIANTS[variant]
    branch = {"basic": 2, "bottleneck": 3}[spec.block]
    said = re.search(r"(?:net|next|plain|v2_)(\d+)", variant)
    assert int(said[1]) == 2 + branch * sum(spec.depths)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_has_the_stride_classes_and_size_of_its_data_set(variant):
    spec = VARIANTS[variant]
    expected = (4, 10, 32) if variant.startswith("cifar") else (32, 1000, 224)
    assert (spec.output_stride, spec.classes, spec.input_size) == expected


@pytest.mark.parametrize(("block", "expansion"), [("basic", 1), ("bottleneck", 4)])
def test_a_bottleneck_widens_four_times_and_a_basic_block_does_not(block, expansion):
    assert EXPANSION[block] == expansion


def test_variants_are_listed_in_the_order_of_the_table_and_by_any_part_of_the_name():
    assert list_variants() == list(VARIANTS)
    assert list_variants("resnext") == ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"]
    assert list_variants("vgg") == []


def test_a_spec_is_a_value():
    assert spec_of("resnet50") == spec_of("resnet50")
    assert len({spec_of("resnet50"), spec_of("resnet50"), spec_of("resnet50", classes=10)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec_of("resnet50").classes = 10


def test_changes_replace_fields_and_leave_the_table_alone():
    changed = spec_of("resnet50", shortcut="C", classes=10)
    assert (changed.shortcut, changed.classes, changed.depths) == ("C", 10, (3, 4, 6, 3))
    assert (VARIANTS["resnet50"].shortcut, VARIANTS["resnet50"].classes) == ("B", 1000)


def test_a_spec_can_be_given_in_place_of_a_name():
    row = Spec("basic", depths=(1, 1), widths=(8, 16))
    assert spec_of(row) == row
    assert spec_of(row, groups=1, classes=3).classes == 3


def test_lists_and_whole_numbers_of_numpy_are_taken_as_python_ones():
    spec = spec_of("resnet18", depths=[1, 1], widths=[8, 16], classes=np.int64(7), conv_bias=["conv1"])
    assert (spec.depths, spec.widths, spec.conv_bias) == ((1, 1), (8, 16), ("conv1",))
    assert type(spec.classes) is int
    assert hash(spec)


@pytest.mark.parametrize(
    ("variant", "offered"),
    [("resnet51", "resnet50"), ("resnext50", "resnext50_32x4d"), ("cifar_resnet_20", "cifar_resnet20"), (None, "")],
)
def test_an_unknown_variant_is_refused_and_the_nearest_are_offered(variant, offered):
    with pytest.raises(UsageError, match=r"^unknown variant .* \(variant=\): nearest are ") as refused:
        spec_of(variant)
    assert offered in str(refused.value)
    assert "`keras-resnet list variants` shows all" in str(refused.value)


@pytest.mark.parametrize("misspelt", [lambda: spec_of("resnet50", shortcutt="C"), lambda: cifar(20, shortcutt="C")])
def test_a_misspelt_option_is_refused_and_the_nearest_are_offered(misspelt):
    with pytest.raises(UsageError, match=r"unknown option 'shortcutt' \(shortcutt='C'\): nearest are shortcut,"):
        misspelt()


BAD_VALUES = [
    ({"block": "basik"}, "valid are basic, bottleneck"),
    ({"shortcut": "D"}, "A, B, C, highway, none"),
    ({"stem": "tiny"}, "valid are imagenet, small"),
    ({"pool_padding": "half"}, "valid are zero, infinite"),
    ({"padding": "valid"}, "valid are symmetric, same"),
    ({"stride_on": "2x2"}, "valid are 3x3, 1x1"),
    ({"stride_block": "middle"}, "valid are first, last"),
    ({"conv_bias": ("conv4",)}, "unknown convolution 'conv4'"),
    ({"conv_bias": "conv1"}, "must be a tuple of names"),
    ({"depths": 3}, "depths=3 must be a tuple"),
    ({"depths": (3, 0, 6, 3)}, "must be a tuple of whole numbers from 1 up"),
    ({"depths": ()}, "must be a tuple of whole numbers from 1 up"),
    ({"widths": (64, 128.0, 256, 512)}, "must be a tuple of whole numbers from 1 up"),
    ({"widths": (64, 128)}, "give one number a stage in both"),
    ({"groups": 0}, "groups=0 must be a whole number from 1 up"),
    ({"groups": True}, "groups=True must be a whole number from 1 up"),
    ({"classes": 0}, "classes=0 must be a whole number from 1 up"),
    ({"classes": 10.5}, "classes=10.5 must be a whole number from 1 up"),
    ({"input_size": -32}, "input_size=-32 must be a whole number from 1 up"),
    ({"block": "basic", "groups": 2}, "need block='bottleneck'"),
    ({"block": "basic", "width_per_group": 128}, "need block='bottleneck'"),
    ({"shortcut_bn": 1}, "shortcut_bn=1 must be True or False"),
    ({"preactivation": "no"}, "preactivation='no' must be True or False"),
    ({"zero_last_gamma": None}, "zero_last_gamma=None must be True or False"),
    ({"stochastic_depth": 1.0}, "stochastic_depth=1.0 must be a number of at least 0 and below 1"),
    ({"stochastic_depth": "0.1"}, "stochastic_depth='0.1' must be a number"),
    ({"dropout": -0.1}, "dropout=-0.1 must be a number of at least 0 and below 1"),
    ({"momentum": 1}, "momentum=1 must be a number of at least 0 and below 1"),
    ({"epsilon": 0.0}, "epsilon=0.0 must be a number above 0"),
    ({"epsilon": float("nan")}, "epsilon=nan must be a number above 0"),
    ({"gate_bias": "low"}, "gate_bias='low' must be a number"),
    ({"shortcut": "A", "widths": (64, 128, 64, 32)}, "cannot take any away"),
    ({"shortcut": "none", "stochastic_depth": 0.1}, "another shortcut"),
    ({"shortcut": "none", "zero_last_gamma": True}, "another shortcut"),
]


@pytest.mark.parametrize(("changes", "said"), BAD_VALUES, ids=[str(changes) for changes, _ in BAD_VALUES])
def test_values_that_make_no_network_are_refused(changes, said):
    with pytest.raises(UsageError) as refused:
        spec_of("resnet50", **changes)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("changes", [{"shortcut": "B", "widths": (64, 32)}, {"shortcut": "A", "widths": (32, 32)}])
def test_values_next_to_refused_ones_make_a_network(changes):
    assert spec_of("resnet18", depths=(1, 1), **changes)
    assert spec_of("resnet18", stochastic_depth=0, dropout=0.999, momentum=0, conv_bias=CONVOLUTIONS)


@pytest.mark.parametrize(
    ("depth", "block", "blocks"),
    [(8, "basic", 1), (20, "basic", 3), (1202, "basic", 200), (11, "bottleneck", 1), (1001, "bottleneck", 111)],
)
def test_a_cifar_network_spreads_its_depth_over_three_stages(depth, block, blocks):
    spec = cifar(depth, block)
    assert spec.depths == (blocks, blocks, blocks)
    assert (spec.widths, spec.stem, spec.shortcut) == ((16, 32, 64), "small", "A")


@pytest.mark.parametrize(
    ("depth", "block", "near"),
    [
        (21, "basic", "20 and 26"),
        (25, "basic", "20 and 26"),
        (7, "basic", "8 and 14"),
        (2, "basic", "8 and 14"),
        (1, "basic", "8 and 14"),
        (21, "bottleneck", "20 and 29"),
        (1202, "bottleneck", "1199 and 1208"),
    ],
)
def test_a_depth_that_does_not_fit_is_refused_and_its_neighbours_are_offered(depth, block, near):
    with pytest.raises(UsageError, match=rf"depth={depth} does not fit a {block} block.*nearest are {near}$"):
        cifar(depth, block)


@pytest.mark.parametrize("depth", ["20", 20.0, 0, -4, None])
def test_a_depth_that_is_no_whole_number_is_refused(depth):
    with pytest.raises(UsageError, match="must be a whole number from 1 up"):
        cifar(depth)


def test_an_unknown_block_of_a_cifar_network_is_refused():
    with pytest.raises(UsageError, match="unknown block 'wide'"):
        cifar(20, "wide")


def test_importing_the_package_and_reading_the_table_does_not_import_keras():
    touch = (
        "import sys, keras_resnet; keras_resnet.list_variants(); keras_resnet.VARIANTS; keras_resnet.cifar(20);"
        "print('keras' in sys.modules or 'tensorflow' in sys.modules)"
    )
    build = "import sys, keras_resnet; keras_resnet.ResNet50; print('keras' in sys.modules)"
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        for code in (touch, build)
    ]
    assert [result.stdout.strip() for result in said] == ["False", "True"], [result.stderr for result in said]
