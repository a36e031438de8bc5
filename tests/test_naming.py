"""Weights that cross to another library and back: the same function there, the same numbers here, or a refusal."""

from __future__ import annotations

import doctest
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from keras_resnet import naming
from keras_resnet.errors import InputError, UsageError
from keras_resnet.models import build
from keras_resnet.naming import differences, from_ours, layout, table, to_ours
from keras_resnet.registry import WEIGHTS
from keras_resnet.schemes import IGNORED, SCHEMES, plain_names
from keras_resnet.specs import VARIANTS, Spec, spec_of
from tests.reference import COUNTS
from tests.references import FAMILIES, LOGITS_TOLERANCE, drain, draw, fill, images, pour, relative_difference

PAIRS = [(variant, scheme) for variant in VARIANTS for scheme in SCHEMES if not differences(VARIANTS[variant], scheme)]
CLASSES = 11


def small(variant: str) -> Spec:
    """The variant with an eighth of the width and few classes: all its layers, a hundredth of its weights."""
    row = VARIANTS[variant]
    changes = {"width_per_group": 8 * row.width_per_group} if row.groups > 1 else {}
    return spec_of(variant, classes=CLASSES, widths=tuple(max(width // 8, 4) for width in row.widths), **changes)


def some_weights(spec: Spec, **options: Any) -> dict[str, dict[str, np.ndarray]]:
    weights: dict[str, dict[str, np.ndarray]] = {}
    for layer, variable, shape in layout(spec, **options):
        weights.setdefault(layer, {})[variable] = draw(layer, variable, shape)
    return weights


def assert_equal(ours: Mapping[str, Mapping[str, np.ndarray]], others: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    assert ours.keys() == others.keys()
    for layer, variables in ours.items():
        assert variables.keys() == others[layer].keys()
        for variable, values in variables.items():
            np.testing.assert_array_equal(values, others[layer][variable], f"{layer}/{variable}")


# The network's own weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_layout_has_the_published_number_of_weights(variant):
    weights = list(layout(VARIANTS[variant]))
    size = {(layer, variable): int(np.prod(shape)) for layer, variable, shape in weights}
    assert len(size) == len(weights)
    counts = COUNTS[variant]
    assert sum(size.values()) == counts.total
    assert sum(n for (_, variable), n in size.items() if not variable.startswith("moving")) == counts.params
    assert sum(variable == "gamma" for _, variable in size) == counts.bn
    assert sum(variable == "kernel" for _, variable in size) == counts.conv + 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("include_top", "channels"), [(True, 3), (False, 4)])
def test_the_layout_is_that_of_the_network_that_is_built(family, include_top, channels):
    spec = FAMILIES[family]
    model = build(spec, include_top=include_top, input_shape=(32, 32, channels))
    built = {(layer.name, w.name): tuple(w.shape) for layer in model.layers for w in layer.weights}
    seeds = {key for key in built if key[1] == "seed_generator_state"}  # of Dropout
    expected = {(layer, v): shape for layer, v, shape in layout(spec, channels=channels, include_top=include_top)}
    assert {key: shape for key, shape in built.items() if key not in seeds} == expected


# There and back ------------------------------------------------------------------------------------------------------


def test_every_published_form_has_a_naming():
    assert {scheme for _, scheme in PAIRS} == SCHEMES.keys()
    assert {row.variant for row in WEIGHTS.values()} <= {variant for variant, _ in PAIRS}


@pytest.mark.parametrize(("variant", "scheme"), PAIRS)
def test_weights_come_back_as_they_went(variant, scheme):
    spec = small(variant)
    weights = some_weights(spec)
    tensors = from_ours(weights, spec, scheme)
    assert all(array.flags.c_contiguous for array in tensors.values())
    assert_equal(to_ours(tensors, spec, scheme), weights)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("include_top", "channels"), [(False, 3), (True, 1), (False, 5)])
def test_a_network_without_classifier_or_with_other_channels_comes_back(scheme, include_top, channels):
    spec = small(next(variant for variant, fits in PAIRS if fits == scheme))
    options = {"include_top": include_top, "channels": channels}
    weights = some_weights(spec, **options)
    assert_equal(to_ours(from_ours(weights, spec, scheme), spec, scheme, **options), weights)


@pytest.mark.parametrize(
    ("scheme", "names"),
    [
        ("torchvision", "conv1.weight bn1.running_mean layer2.0.downsample.1.bias layer4.2.conv3.weight fc.bias"),
        (
            "timm_v2",
            "stem.conv.weight stages.1.blocks.0.downsample.conv.weight stages.3.blocks.2.norm3.bias norm.weight",
        ),
        (
            "transformers",
            "resnet.embedder.embedder.convolution.weight resnet.encoder.stages.1.layers.0.shortcut.normalization.bias",
        ),
        ("keras_v1", "conv1_conv/bias conv3_block1_0_bn/gamma conv5_block3_3_conv/bias predictions/kernel"),
        ("keras_v2", "conv1_conv/bias conv2_block3_preact_bn/beta conv3_block2_1_bn/gamma post_bn/moving_variance"),
    ],
)
def test_names_are_those_that_the_library_prints(scheme, names):
    variant = {"timm_v2": "resnetv2_50", "keras_v1": "resnet50_v1", "keras_v2": "resnet50_v2"}.get(scheme, "resnet50")
    assert set(names.split()) <= {entry.name for entry in table(VARIANTS[variant], scheme)}


# timm, torchvision and keras.applications, built and counted: variables of a network with classifier.
@pytest.mark.parametrize(
    ("variant", "scheme", "tensors"),
    [
        ("resnet18", "torchvision", 122),
        ("resnet34", "torchvision", 218),
        ("resnet50", "transformers", 320),
        ("resnet101", "torchvision", 626),
        ("resnet152", "torchvision", 932),
        ("resnetv2_50", "timm_v2", 300),
        ("resnet50_v1", "keras_v1", 320),
        ("resnet50_v2", "keras_v2", 272),
        ("cifar_resnet20", "akamaster", 97),
        ("cifar_resnet56", "akamaster", 277),
    ],
)
def test_as_many_tensors_are_written_as_the_library_has(variant, scheme, tensors):
    spec = small(variant)
    assert len(from_ours(some_weights(spec), spec, scheme)) == tensors


def test_counters_are_written_where_torch_expects_them_and_not_read():
    spec = small("resnet18")
    tensors = from_ours(some_weights(spec), spec, "torchvision")
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert len(counters) == COUNTS["resnet18"].bn
    assert {(tensors[name].dtype, tensors[name].shape) for name in counters} == {(np.dtype(np.int64), ())}
    without = {name: array for name, array in tensors.items() if name not in counters}
    assert_equal(to_ours(without, spec, "torchvision"), to_ours(tensors, spec, "torchvision"))


# What files have besides ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_tensors_of_another_precision_become_float32(dtype):
    spec = small("resnet18")
    tensors = from_ours(some_weights(spec), spec, "torchvision")
    weights = to_ours({name: array.astype(dtype) for name, array in tensors.items()}, spec, "torchvision")
    expected = tensors["fc.weight"].astype(dtype).astype(np.float32).T
    assert {array.dtype for variables in weights.values() for array in variables.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(weights["head_dense"]["kernel"], expected)


def test_a_quantised_tensor_is_refused_by_name():
    spec = small("resnet18")
    tensors = from_ours(some_weights(spec), spec, "torchvision")
    tensors["layer1.0.conv1.weight"] = tensors["layer1.0.conv1.weight"].astype(np.int8)
    with pytest.raises(InputError, match="'layer1.0.conv1.weight' of w.pth is of int8: floating point"):
        to_ours(tensors, spec, "torchvision", where="w.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "net."])
def test_prefixes_of_wrappers_are_taken_off(prefix):
    spec = small("resnet18")
    tensors = from_ours(some_weights(spec), spec, "torchvision")
    wrapped = {prefix + name: array for name, array in tensors.items()} | {"n_averaged": np.zeros((), np.int64)}
    assert_equal(to_ours(wrapped, spec, "torchvision"), to_ours(tensors, spec, "torchvision"))


def test_names_of_keras_files_are_read_in_every_form():
    """HDF5 files of Keras 2 repeat the layer and number the variable; those of keras-applications say `probs`."""
    spec = small("resnet50_v2")
    tensors = from_ours(some_weights(spec), spec, "keras_v2")
    old = {name.replace("predictions", "probs") + ":0": array for name, array in tensors.items()}
    repeated = {f"{name.split('/')[0]}/{name}": array for name, array in tensors.items()}
    assert_equal(to_ours(old, spec, "keras_v2"), to_ours(tensors, spec, "keras_v2"))
    assert_equal(to_ours(repeated, spec, "keras_v2"), to_ours(tensors, spec, "keras_v2"))


def test_two_tensors_that_come_out_under_one_name_are_refused():
    with pytest.raises(InputError, match="'conv1_conv/kernel' and 'conv1_conv/kernel:0' are both 'conv1_conv/kernel'"):
        plain_names(["conv1_conv/kernel", "conv1_conv/kernel:0"])


def test_what_is_ignored_is_left_out():
    assert plain_names([f"bn1.{name}" for name in IGNORED]) == {}


# Biases --------------------------------------------------------------------------------------------------------------


def test_a_bias_before_a_normalisation_is_taken_off_its_mean():
    """Caffe's ResNet-50 has one behind its first convolution; keras.applications' first form has them everywhere."""
    spec = small("resnet18")
    tensors = from_ours(some_weights(spec), spec, "torchvision")
    bias = draw("conv1", "bias", tensors["bn1.running_mean"].shape)
    mean = to_ours({**tensors, "conv1.bias": bias}, spec, "torchvision")["stem_bn"]["moving_mean"]
    np.testing.assert_array_equal(mean, tensors["bn1.running_mean"] - bias)


def test_a_bias_that_nothing_takes_up_is_refused():
    spec = small("resnetv2_18")
    tensors = from_ours(some_weights(spec), spec, "timm_v2")
    tensors["stem.conv.bias"] = np.zeros(spec.widths[0], np.float32)  # a max-pool padded with zeros stands behind it
    with pytest.raises(InputError, match=r"1 unexpected \(stem.conv.bias\)"):
        to_ours(tensors, spec, "timm_v2")


def test_biases_of_keras_that_ours_has_not_are_written_as_zeros():
    spec = small("resnet50_v1")
    tensors = from_ours(some_weights(spec), spec, "keras_v1")
    biases = {name: array for name, array in tensors.items() if name.endswith("_conv/bias")}
    assert len(biases) == COUNTS["resnet50_v1"].conv
    assert not any(array.any() for array in biases.values())


# Refusals ------------------------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_tensors_are_listed_with_both_shapes():
    spec = small("resnet18")
    tensors = from_ours(some_weights(spec), spec, "torchvision")
    del tensors["layer1.0.conv1.weight"]
    tensors["layer1.0.se.fc1.weight"] = np.zeros((1, 1), np.float32)
    tensors["fc.weight"] = np.zeros((7, 64), np.float32)
    with pytest.raises(InputError) as error:
        to_ours(tensors, spec, "torchvision", where="weights file 'a.pth'")
    assert str(error.value) == (
        "weights file 'a.pth' does not fit the network: 1 missing (layer1.0.conv1.weight); "
        "1 unexpected (layer1.0.se.fc1.weight); 1 of another shape (fc.weight (7, 64) instead of (11, 64))"
    )


def test_only_the_first_few_are_listed():
    spec = small("resnet18")
    with pytest.raises(InputError, match=r"102 missing \(conv1.weight, bn1.weight, bn1.bias, ...\)$"):
        to_ours({}, spec, "torchvision")


def test_weights_that_do_not_fit_the_spec_are_not_written():
    spec = small("resnet18")
    weights = some_weights(spec)
    del weights["stem_bn"]
    weights["stage1_block1_conv1"] = {"kernel": np.zeros((1, 1, 8, 8), np.float32)}
    with pytest.raises(InputError, match=r"4 missing \(stem_bn/gamma, .*\(1, 1, 8, 8\) instead of \(3, 3, 8, 8\)"):
        from_ours(weights, spec, "torchvision")
    with pytest.raises(InputError, match="stem_conv/kernel"):
        from_ours({}, spec, "torchvision")


@pytest.mark.parametrize(
    ("variant", "scheme", "why"),
    [
        ("resnet50_v1", "torchvision", "stride_on='1x1' where torchvision has '3x3'"),
        ("resnet50", "keras_v1", "stride_on='3x3' where keras_v1 has '1x1'"),
        ("resnet50_v2", "timm_v2", "stride_block='last' where timm_v2 has 'first'"),
        ("resnetv2_50", "keras_v2", "stride_block='first' where keras_v2 has 'last'"),
        ("resnet50", "timm_v2", "preactivation=False where timm_v2 has True"),
        ("plain18", "torchvision", "shortcut='none' where torchvision has 'B'"),
        ("cifar_plain20", "akamaster", "shortcut='none' where akamaster has 'A' or 'B'"),
        ("resnext50_32x4d", "transformers", "groups=32 where transformers has 1"),
        ("resnet18", "keras_v1", "block='basic' where keras_v1 has 'bottleneck'"),
    ],
)
def test_a_network_that_the_library_would_compute_otherwise_is_not_written(variant, scheme, why):
    spec = small(variant)
    with pytest.raises(UsageError) as error:
        from_ours(some_weights(spec), spec, scheme)
    assert why in str(error.value)


def test_a_layer_that_a_naming_cannot_name_is_said():
    spec = spec_of("cifar_resnet20", shortcut="highway")
    with pytest.raises(UsageError, match="naming 'akamaster' has no name for layer 'stage1_block1_gate'"):
        table(spec, "akamaster")
    with pytest.raises(UsageError, match="unknown naming 'torchvison' .*: nearest are torchvision"):
        table(spec, "torchvison")


def test_examples_in_docstrings_hold():
    found = doctest.testmod(naming, extraglobs={"spec_of": spec_of})
    assert found.attempted > 0
    assert found.failed == 0


# Logits of keras.applications ----------------------------------------------------------------------------------------


def logits(model: Any, batch: np.ndarray) -> np.ndarray:
    return np.asarray(model.predict(batch, verbose=0))


@pytest.mark.parametrize(
    ("name", "variant", "scheme"),
    [
        ("ResNet50", "resnet50_v1", "keras_v1"),
        pytest.param("ResNet50V2", "resnet50_v2", "keras_v2", marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_keras_applications_there_and_back(name, variant, scheme):
    import keras

    arguments = {"weights": None, "input_shape": (65, 97, 3), "classes": CLASSES, "classifier_activation": None}
    theirs = getattr(keras.applications, name)(**arguments)
    ours = build(variant, **arguments)
    batch = images(65, 97, batch=2)
    fill(theirs, seed=1)  # biases, means and variances too
    expected = logits(theirs, batch)
    tensors = {f"{layer}/{v}": array for layer, variables in drain(theirs).items() for v, array in variables.items()}
    pour(ours, to_ours(tensors, spec_of(variant, classes=CLASSES), scheme))
    assert relative_difference(logits(ours, batch), expected) < LOGITS_TOLERANCE

    fill(ours, seed=2)
    written = from_ours(drain(ours), spec_of(variant, classes=CLASSES), scheme)
    assert written.keys() == tensors.keys()
    back: dict[str, dict[str, np.ndarray]] = {}
    for key, array in written.items():
        layer, variable = key.split("/")
        back.setdefault(layer, {})[variable] = array
    assert relative_difference(logits(pour(theirs, back), batch), logits(ours, batch)) < LOGITS_TOLERANCE


# Logits of PyTorch's files -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_logits_of_akamasters_files_are_those_of_akamasters_code(depth, shared_data):
    torch = pytest.importorskip("torch", reason="needs torch: requirements-reference.txt")
    row = WEIGHTS[f"akamaster/cifar_resnet{depth}"]
    file = torch.load(shared_data / "weights" / row.source.file.name, map_location="cpu", weights_only=True)
    tensors = {name: tensor.numpy() for name, tensor in file["state_dict"].items()}
    reference = np.load(shared_data / "reference_logits.npz")
    model = build(row.variant, classifier_activation=None)
    pour(model, to_ours(tensors, VARIANTS[row.variant], row.naming))
    x = row.preprocessing.normalise(reference["cifar_pixels"])
    worst = relative_difference(logits(model, x), reference[f"cifar_logits_resnet{depth}"])
    assert worst < LOGITS_TOLERANCE
    back = from_ours(drain(model), VARIANTS[row.variant], row.naming)
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array, name)
