"""The table of weight sets is true: every row fits its network, and every figure is the one that was published."""

from __future__ import annotations

import doctest
import hashlib
import re
from typing import Any

import pytest

from keras_resnet import registry
from keras_resnet.errors import UsageError
from keras_resnet.naming import differences, table
from keras_resnet.registry import IMAGENET_DEFAULTS, SOURCES, WEIGHTS, list_weights, resolve
from keras_resnet.schemes import SCHEMES
from keras_resnet.specs import VARIANTS
from tests.reference import COUNTS
from tests.references import import_torchvision

LICENCES = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT"}  # SPDX
SUFFIX = {"torchvision": ".pth", "timm": ".safetensors", "keras": ".h5", "akamaster": ".th"}
BYTES = {"float32": 4, "float16": 2}

# torchvision 0.29.2, models/resnet.py: variant, set, start of the file's SHA-256, resize, top-1, top-5; crop 224.
TORCHVISION = """
resnet18 V1 f37072fd 256 69.758 89.078
resnet34 V1 b627a593 256 73.314 91.420
resnet50 V1 0676ba61 256 76.130 92.862
resnet50 V2 11ad3fa6 232 80.858 95.434
resnet101 V1 63fe2227 256 77.374 93.546
resnet101 V2 cd907fc2 232 81.886 95.780
resnet152 V1 394f9c45 256 78.312 94.046
resnet152 V2 f82ba261 232 82.284 96.002
resnext50_32x4d V1 7cdf4587 256 77.618 93.698
resnext50_32x4d V2 1a0047aa 232 81.198 95.340
resnext101_32x8d V1 8ba56ff5 256 79.312 94.526
resnext101_32x8d V2 110c445d 232 82.834 96.228
resnext101_64x4d V1 173b62eb 232 83.246 96.454
wide_resnet50_2 V1 95faca4d 256 78.468 94.086
wide_resnet50_2 V2 9ba9bcbe 232 81.602 95.758
wide_resnet101_2 V1 32ee1156 256 78.848 94.284
wide_resnet101_2 V2 d733dc28 232 82.510 96.020
"""

# timm, results/results-imagenet.csv at aa4b585: set, then size@crop fraction, top-1, top-5, twice.
TIMM = """
resnet18.a1_in1k 224@0.95 71.504 90.086 288@1.0 73.164 91.054
resnet18.a2_in1k 224@0.95 70.634 89.486 288@1.0 72.364 90.620
resnet18.a3_in1k 224@0.95 68.250 88.172 160@0.95 65.670 86.268
resnet34.a1_in1k 224@0.95 76.420 92.896 288@1.0 77.930 93.758
resnet34.a2_in1k 224@0.95 75.520 92.454 288@1.0 77.150 93.288
resnet34.a3_in1k 224@0.95 72.996 91.116 160@0.95 70.580 89.540
resnet50.a1_in1k 224@0.95 80.382 94.598 288@1.0 81.240 95.112
resnet50.a1h_in1k 224@1.0 80.654 95.312 176@0.9 79.264 94.498
resnet50.a2_in1k 224@0.95 79.828 94.560 288@1.0 80.774 94.978
resnet50.a3_in1k 224@0.95 78.052 93.780 160@0.95 75.994 92.494
resnet101.a1_in1k 224@0.95 81.494 95.164 288@1.0 82.326 95.630
resnet101.a1h_in1k 224@0.95 81.950 95.760 288@1.0 82.796 96.324
resnet101.a2_in1k 224@0.95 81.344 95.198 288@1.0 82.218 95.740
resnet101.a3_in1k 224@0.95 79.836 94.608 160@0.95 77.928 93.686
resnet152.a1_in1k 224@0.95 81.998 95.294 288@1.0 82.742 95.734
resnet152.a1h_in1k 224@0.95 82.818 96.124 288@1.0 83.494 96.522
resnet152.a2_in1k 224@0.95 81.764 95.270 288@1.0 82.614 95.748
resnet152.a3_in1k 224@0.95 80.548 95.004 160@0.95 78.896 94.140
resnext50_32x4d.a1_in1k 224@0.95 80.526 94.458 288@1.0 81.480 95.152
resnext50_32x4d.a1h_in1k 224@0.95 81.140 95.320 288@1.0 82.016 95.934
resnetv2_18.ra4_e3600_r224_in1k 224@0.9 73.572 91.356 288@1.0 75.364 92.692
resnetv2_34.ra4_e3600_r224_in1k 224@0.9 77.626 93.518 288@1.0 79.070 94.560
resnetv2_50.a1h_in1k 224@0.95 80.410 95.082 288@1.0 81.406 95.712
resnetv2_101.a1h_in1k 224@0.95 82.042 95.866 288@1.0 83.002 96.444
resnet18.tv_in1k 224@0.875 69.752 -
resnet34.tv_in1k 224@0.875 73.298 -
resnet50.tv_in1k 224@0.875 76.156 -
resnet50.tv2_in1k 224@0.965 80.846 -
resnet101.tv_in1k 224@0.875 77.404 -
resnet101.tv2_in1k 224@0.965 81.906 -
resnet152.tv_in1k 224@0.875 78.330 -
resnet152.tv2_in1k 224@0.965 82.294 -
"""

# README of keras-applications; its size, top-1, top-5.
KERAS = """
resnet50 224 74.928 92.060
resnet101 224 76.420 92.786
resnet152 224 76.604 93.118
resnet50v2 299 75.960 93.034
resnet101v2 299 77.234 93.816
resnet152v2 299 78.032 94.162
"""

# README of akamaster/pytorch_resnet_cifar10: depth, error in percent.
AKAMASTER = """
20 8.27
32 7.37
44 6.90
56 6.61
110 6.32
1202 6.18
"""


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


def number(text: str) -> float | None:
    return None if text == "-" else float(text)


def published() -> dict[str, set[tuple[int, float, float | None]]]:
    """By tag, what the tables above say: (crop, top-1, top-5)."""
    figures = {
        f"torchvision/{variant}.IMAGENET1K_{which}": {(224, float(top1), float(top5))}
        for variant, which, _, _, top1, top5 in rows(TORCHVISION)
    }
    for name, *cells in rows(TIMM):
        measured = [cells[i : i + 3] for i in range(0, len(cells), 3)]
        figures[f"timm/{name}"] = {(int(at.split("@")[0]), float(top1), number(top5)) for at, top1, top5 in measured}
    for name, size, top1, top5 in rows(KERAS):
        figures[f"keras/{name}"] = {(int(size), float(top1), float(top5))}
    for depth, error in rows(AKAMASTER):
        figures[f"akamaster/cifar_resnet{depth}"] = {(32, round(100 - float(error), 2), None)}
    return figures


def torchvision_or_skip() -> Any:
    try:
        return import_torchvision()
    except ImportError as error:
        pytest.skip(f"needs {error.name}: requirements-reference.txt")


def test_the_table_has_every_published_set_and_no_other():
    assert WEIGHTS.keys() == published().keys()


@pytest.mark.parametrize("tag", WEIGHTS)
def test_accuracy_is_what_was_published_at_that_crop(tag):
    row = WEIGHTS[tag]
    assert {(measured.crop, measured.top1, measured.top5) for measured in row.accuracy} == published()[tag]
    for measured in row.accuracy:
        assert 50 < measured.top1 < 100
        assert measured.top5 is None or measured.top1 < measured.top5 < 100


@pytest.mark.parametrize("tag", WEIGHTS)
def test_a_row_fits_its_network(tag):
    row = WEIGHTS[tag]
    spec = VARIANTS[row.variant]
    assert row.tag == tag
    assert row.classes == spec.classes
    assert row.naming in SCHEMES
    assert differences(spec, row.naming) == []
    assert len({entry.name for entry in table(spec, row.naming)}) == len(table(spec, row.naming))
    assert len(row.preprocessing.mean) == 3


@pytest.mark.parametrize("tag", WEIGHTS)
def test_a_row_says_where_its_set_lives_and_how_to_check_it(tag):
    row = WEIGHTS[tag]
    family, name = tag.split("/")
    source = row.source
    assert source.kind in SOURCES
    assert source.file.name.endswith(SUFFIX[family])
    assert source.file.dtype in BYTES
    if source.kind == "hub":
        assert source.address == f"timm/{name}"
    else:
        assert re.fullmatch(r"https://\S+/", source.address)
    for file in filter(None, (source.file, source.file_without_top)):
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", file.sha256)
        assert file.md5 is None or re.fullmatch(r"[0-9a-f]{32}", file.md5)
        assert (file.md5 is not None) == (source.kind == "keras")
        assert (file.sha256 is not None) == (source.kind == "url")
        assert file.sha256 is None or file.sha256[:8] in file.name
    assert (source.file_without_top is not None) == (source.kind == "keras")
    assert source.revision is None or re.fullmatch(r"[0-9a-f]{40}", source.revision)
    assert source.mirror is None or re.fullmatch(r"timm/\w+\.tv2?_in1k", source.mirror)


@pytest.mark.parametrize("tag", WEIGHTS)
def test_a_row_says_what_images_need_and_what_may_be_done_with_it(tag):
    row = WEIGHTS[tag]
    need, test = row.preprocessing, row.accuracy[0]
    assert need.crop == test.crop
    assert (test.resize is None) == ("resize" in row.assumed)
    assert test.resize is None or need.resize == test.resize
    assert row.assumed == (("resize", "interpolation") if tag.startswith("keras/") else ())
    assert (row.train_size is None) == tag.startswith("keras/")
    for measured in row.accuracy:
        assert (
            measured.resize is None or measured.resize == 0 or measured.crop <= measured.resize <= 1.15 * measured.crop
        )
        assert row.preprocessing_at(measured.crop).crop == measured.crop
        assert measured.resize is None or row.preprocessing_at(measured.crop).resize == measured.resize
    assert row.licence in LICENCES
    assert ("non-commercial" in row.terms) == (row.classes == 1000)
    assert re.fullmatch(r"https://\S+", row.recipe)


def test_resizes_are_those_of_the_tables():
    for variant, which, digits, resize, _, _ in rows(TORCHVISION):
        row = WEIGHTS[f"torchvision/{variant}.IMAGENET1K_{which}"]
        assert row.accuracy[0].resize == int(resize)
        assert row.source.file.name == f"{variant}-{digits}.pth"
        assert row.source.file.sha256 == digits
        assert row.preprocessing.interpolation == "bilinear"
        assert row.train_size == {"256": 224, "232": 176}[resize]
    for name, *cells in rows(TIMM):
        row = WEIGHTS[f"timm/{name}"]
        assert row.preprocessing.interpolation == ("bilinear" if ".tv" in name else "bicubic")
        for at in cells[::3]:
            size, fraction = at.split("@")  # timm: the short side becomes size / fraction, cut off
            assert row.preprocessing_at(int(size)).resize == int(int(size) / float(fraction))


def test_pixels_are_scaled_as_each_source_does():
    assert WEIGHTS["torchvision/resnet50.IMAGENET1K_V1"].preprocessing.mean == (0.485, 0.456, 0.406)
    assert WEIGHTS["timm/resnet50.a1_in1k"].preprocessing.std == (0.229, 0.224, 0.225)
    assert WEIGHTS["timm/resnetv2_50.a1h_in1k"].preprocessing.mean == (0.5, 0.5, 0.5)
    caffe = WEIGHTS["keras/resnet50"].preprocessing
    assert (caffe.order, caffe.scale, caffe.mean) == ("bgr", 1.0, (103.939, 116.779, 123.68))
    symmetric = WEIGHTS["keras/resnet50v2"].preprocessing
    assert (symmetric.order, symmetric.scale, symmetric.mean, symmetric.std) == ("rgb", 127.5, (1.0,) * 3, (1.0,) * 3)
    assert WEIGHTS["akamaster/cifar_resnet20"].preprocessing.resize == 0


def test_a_set_that_was_measured_at_two_sizes_gives_each_its_own_resize():
    row = WEIGHTS["timm/resnet50.a1_in1k"]
    assert (row.preprocessing.resize, row.preprocessing.crop) == (288, 288)
    assert [row.preprocessing_at(size).resize for size in (288, 224, 256)] == [288, 235, 256]
    assert WEIGHTS["keras/resnet50v2"].preprocessing_at(224).resize == 256


def test_size_and_hash_of_a_file_are_those_of_the_file(shared_data):
    checked = 0
    for row in WEIGHTS.values():
        path = shared_data / "weights" / row.source.file.name
        if path.is_file():
            content = path.read_bytes()
            assert len(content) == row.source.file.size_bytes
            assert hashlib.sha256(content).hexdigest() == row.source.file.sha256
            checked += 1
    assert checked == 4


@pytest.mark.parametrize("tag", [tag for tag, row in WEIGHTS.items() if row.source.file.size_bytes])
def test_a_file_is_as_large_as_its_network(tag):
    row = WEIGHTS[tag]
    values = 4 * COUNTS[row.variant].total
    assert values < row.source.file.size_bytes < 1.1 * values  # names and the pickle's frame


@pytest.mark.parametrize(
    ("variant", "tag"),
    [
        ("resnet18", "torchvision/resnet18.IMAGENET1K_V1"),
        ("resnet34", "torchvision/resnet34.IMAGENET1K_V1"),
        ("resnet50", "torchvision/resnet50.IMAGENET1K_V2"),
        ("resnet101", "torchvision/resnet101.IMAGENET1K_V2"),
        ("resnet152", "torchvision/resnet152.IMAGENET1K_V2"),
        ("resnet50_v1", "keras/resnet50"),
        ("resnet101_v2", "keras/resnet101v2"),
        ("resnetv2_50", "timm/resnetv2_50.a1h_in1k"),
    ],
)
def test_imagenet_means_one_set_a_variant(variant, tag):
    assert resolve("imagenet", variant).tag == tag


def test_imagenet_is_a_set_of_the_variant_that_asks_and_every_such_variant_has_one():
    for variant, tag in IMAGENET_DEFAULTS.items():
        assert WEIGHTS[tag].variant == variant
        assert WEIGHTS[tag].classes == 1000
    assert IMAGENET_DEFAULTS.keys() == {row.variant for row in WEIGHTS.values() if row.classes == 1000}


@pytest.mark.parametrize("tag", WEIGHTS)
def test_a_name_gives_its_row_with_and_without_a_variant(tag):
    assert resolve(tag) is resolve(tag, WEIGHTS[tag].variant) is WEIGHTS[tag]


@pytest.mark.parametrize(
    ("tag", "variant", "said"),
    [
        ("timm/resnet50.a1_in1", "resnet50", "nearest are timm/resnet50.a1_in1k,"),
        ("timm/resnet50.a9_in1k", None, "timm/resnet50.a1_in1k"),
        ("a1_in1k", "resnet50", "timm/resnet50.a1_in1k"),
        ("imagenet1k", "resnet18", "imagenet"),
        ("torchvision/resnet18.V1", "resnet18", "torchvision/resnet18.IMAGENET1K_V1"),
    ],
)
def test_an_unknown_name_offers_the_nearest(tag, variant, said):
    with pytest.raises(UsageError, match=re.escape(f"unknown weight set {tag!r} (weights=)")) as error:
        resolve(tag, variant)
    assert said in str(error.value)


def test_names_of_other_variants_are_not_offered():
    with pytest.raises(UsageError) as error:
        resolve("timm/resnet51.a1_in1k", "resnet18")
    assert "resnet50" not in str(error.value)
    assert "timm/resnet18.a1_in1k" in str(error.value)


@pytest.mark.parametrize(
    ("tag", "variant", "said"),
    [
        ("timm/resnet50.a1_in1k", "resnet18", "is for variant 'resnet50', not for 'resnet18'"),
        ("keras/resnet50", "resnet50", "is for variant 'resnet50_v1', not for 'resnet50'"),
        ("timm/resnet50.a1_in1k", "plain18", "none is published for 'plain18': use None"),
        ("imagenet", "resnet200", "none is published for 'resnet200': use None"),
        ("imagenet", "cifar_resnet20", "published for 'cifar_resnet20': akamaster/cifar_resnet20"),
        ("best", "plain34", "none is published for 'plain34': use None"),
        ("imagenet", None, "name the variant"),
    ],
)
def test_a_set_that_is_not_the_variants_is_refused_with_what_there_is(tag, variant, said):
    with pytest.raises(UsageError) as error:
        resolve(tag, variant)
    assert said in str(error.value)


def test_the_list_is_filtered_in_either_case_and_keeps_the_order_of_the_table():
    assert list_weights() == list(WEIGHTS)
    assert list_weights("wide_resnet50") == [
        "torchvision/wide_resnet50_2.IMAGENET1K_V1",
        "torchvision/wide_resnet50_2.IMAGENET1K_V2",
    ]
    assert list_weights("imagenet1k_v2") == list_weights("IMAGENET1K_V2") != []
    assert list_weights("vgg") == []


def test_examples_in_docstrings_hold():
    found = doctest.testmod(registry)
    assert found.attempted > 0
    assert found.failed == 0


def test_addresses_and_hashes_are_those_of_keras():
    from keras.src.applications import resnet  # the only place where they stand

    for tag in list_weights("keras/"):
        source = WEIGHTS[tag].source
        assert source.address == resnet.BASE_WEIGHTS_PATH
        assert (source.file.md5, source.file_without_top.md5) == resnet.WEIGHTS_HASHES[tag.removeprefix("keras/")]


@pytest.mark.slow
def test_addresses_figures_and_sizes_are_those_of_torchvision():
    torchvision = torchvision_or_skip()
    compared = set()
    for name in torchvision.models.list_models(module=torchvision.models):
        if name not in VARIANTS:
            continue
        for weights in torchvision.models.get_model_weights(name):
            row = WEIGHTS[f"torchvision/{name}.{weights.name}"]
            compared.add(row.tag)
            transforms = weights.transforms()
            assert row.source.address + row.source.file.name == weights.url
            assert [row.preprocessing.resize] == transforms.resize_size
            assert [row.preprocessing.crop] == transforms.crop_size
            assert list(row.preprocessing.mean) == transforms.mean
            assert list(row.preprocessing.std) == transforms.std
            assert row.preprocessing.interpolation == transforms.interpolation.value
            assert row.recipe == weights.meta["recipe"]
            assert len(weights.meta["categories"]) == row.classes
            assert COUNTS[name].params == weights.meta["num_params"]
            figures = weights.meta["_metrics"]["ImageNet-1K"]
            assert (row.accuracy[0].top1, row.accuracy[0].top5) == (figures["acc@1"], figures["acc@5"])
            values = COUNTS[name].total * BYTES[row.source.file.dtype]
            assert weights.meta["_file_size"] * 2**20 == pytest.approx(values, rel=0.005)
    assert compared == set(list_weights("torchvision/"))


@pytest.mark.slow
def test_what_images_need_is_what_timm_says():
    torchvision_or_skip()  # which timm imports
    pytest.importorskip("timm", reason="needs timm: requirements-reference.txt")
    from timm.models import get_pretrained_cfg

    for tag in list_weights("timm/"):
        row, theirs = WEIGHTS[tag], get_pretrained_cfg(tag.removeprefix("timm/"))
        size = (theirs.test_input_size or theirs.input_size)[-1]
        assert row.source.address == theirs.hf_hub_id
        assert (row.preprocessing.crop, row.train_size) == (size, theirs.input_size[-1])
        assert row.preprocessing.resize == int(size / (theirs.test_crop_pct or theirs.crop_pct))
        assert row.preprocessing.interpolation == theirs.interpolation
        assert (row.preprocessing.mean, row.preprocessing.std) == (theirs.mean, theirs.std)
        assert row.licence.lower() == theirs.license
        assert row.classes == theirs.num_classes
    for tag in list_weights("torchvision/"):
        source = WEIGHTS[tag].source
        assert get_pretrained_cfg(source.mirror.removeprefix("timm/")).url == source.address + source.file.name
