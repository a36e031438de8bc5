"""The parts of a network against their definitions, worked out in NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_resnet import build
from keras_resnet.blocks import Parts, branch, he_normal_fan_out, max_pool, shortcut, subsample
from keras_resnet.specs import VARIANTS, Spec, cifar, spec_of
from tests.references import FAMILIES, fill, images

# float32 sums of up to a few hundred products of the size of 1.
ROUNDING = 1e-5

BASIC = FAMILIES["basic"]


def run(function, x: np.ndarray) -> np.ndarray:
    """What a function from tensor to tensor makes of an array."""
    given = keras.Input(x.shape[1:])
    return ops.convert_to_numpy(keras.Model(given, function(given))(x))


def outputs(model: keras.Model, x: np.ndarray, names: list[str], *, training: bool = False) -> list[np.ndarray]:
    """What the layers of those names give."""
    inside = keras.Model(model.input, [model.get_layer(name).output for name in names])
    return [ops.convert_to_numpy(value) for value in keras.tree.flatten(inside(x, training=training))]


def windows(x: np.ndarray, size: int, stride: int, before: int, after: int, fill_value: float) -> np.ndarray:
    """[batch, height, width, size, size, channels]: every window over a padded array."""
    padded = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), constant_values=fill_value)
    seen = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return np.moveaxis(seen[:, ::stride, ::stride], 3, -1)


# Pooling and subsampling


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(("padding", "value"), [("infinite", -np.inf), ("zero", 0.0)])
def test_the_pool_behind_the_stem_pads_one_pixel_on_each_side(side, padding, value):
    x = images(side, side + 3) - 2  # mostly negative: what the padding holds decides
    expected = windows(x, 3, 2, 1, 1, value).max(axis=(3, 4))
    found = run(lambda t: max_pool(spec_of("resnet18", pool_padding=padding), t), x)
    assert np.array_equal(found, expected)


def test_the_paddings_of_the_pool_differ_only_for_negative_values():
    x = images(8, 8) - 2
    zero, infinite = (
        [run(lambda t, p=p: max_pool(spec_of("resnet18", pool_padding=p), t), y) for y in (x, np.abs(x))]
        for p in ("zero", "infinite")
    )
    assert np.abs(zero[0] - infinite[0]).max() > 0.1
    assert np.array_equal(zero[1], infinite[1])


def test_the_pool_of_tensorflows_padding_starts_at_the_first_pixel_of_an_even_image():
    x = images(8, 8)
    expected = windows(x, 3, 2, 0, 1, -np.inf).max(axis=(3, 4))
    assert np.array_equal(run(lambda t: max_pool(spec_of("resnet18", padding="same"), t), x), expected)


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("shape", [(8, 8), (9, 7)])
def test_subsampling_takes_every_nth_pixel(shape, stride):
    x = images(*shape)
    assert np.array_equal(run(lambda t: subsample(t, stride, "name"), x), x[:, ::stride, ::stride])


# Convolutions


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (7, 2), (1, 2)])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_a_convolution_pads_as_its_spec_says(padding, kernel, stride, side):
    x = images(side, side)
    weights = np.random.default_rng(1).standard_normal((kernel, kernel, 3, 4)).astype(np.float32) / kernel
    given = keras.Input((side, side, 3))
    model = keras.Model(given, Parts(spec_of(BASIC, padding=padding)).conv(given, 4, kernel, "conv1", stride=stride))
    model.get_layer("conv1").set_weights([weights])
    if padding == "symmetric":
        before = after = kernel // 2
    else:  # TensorFlow: as little as is needed, the odd pixel at the right and at the bottom
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        before, after = total // 2, total - total // 2
    expected = np.einsum("bhwijc,ijco->bhwo", windows(x, kernel, stride, before, after, 0.0), weights)
    found = ops.convert_to_numpy(model(x))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (VARIANTS["resnet18"], [(64, 3, 2, 1), (64, 3, 1, 1)]),
        (VARIANTS["resnet50"], [(64, 1, 1, 1), (64, 3, 2, 1), (256, 1, 1, 1)]),
        (VARIANTS["resnet50_v1"], [(64, 1, 2, 1), (64, 3, 1, 1), (256, 1, 1, 1)]),
        (VARIANTS["resnext50_32x4d"], [(128, 1, 1, 1), (128, 3, 2, 32), (256, 1, 1, 1)]),
        (VARIANTS["resnext101_32x8d"], [(256, 1, 1, 1), (256, 3, 2, 32), (256, 1, 1, 1)]),
        (VARIANTS["wide_resnet50_2"], [(128, 1, 1, 1), (128, 3, 2, 1), (256, 1, 1, 1)]),
    ],
)
def test_the_branch_of_a_striding_block_is_that_of_the_paper(spec, expected):
    assert branch(spec, 64, 2) == expected


@pytest.mark.parametrize("side", [7, 32])
def test_the_small_stem_keeps_the_resolution_and_the_other_divides_it_by_four(side):
    small = build(BASIC, stem="small", input_shape=(None, None, 3), include_top=False)
    large = build(BASIC, input_shape=(None, None, 3), include_top=False)
    sizes = [model.get_layer("stage1_block1_out").output.shape for model in (small, large)]
    assert sizes == [(None, None, None, 8)] * 2
    seen = [outputs(model, images(side, side), ["stage1_block1_out"])[0].shape[1] for model in (small, large)]
    assert seen == [side, -(-side // 4)]


# Shortcuts


@pytest.mark.parametrize("shape", [(8, 8), (9, 7)])
@pytest.mark.parametrize(
    ("channels", "filters", "front", "behind"), [(4, 8, 2, 2), (4, 7, 1, 2), (4, 4, 0, 0), (3, 16, 6, 7)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_shortcut_a_subsamples_and_adds_channels_of_zeros_on_both_sides(
    shape, channels, filters, front, behind, stride
):
    x = images(*shape, channels=channels)
    expected = np.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (front, behind)))
    found = run(lambda t: shortcut(Parts(cifar(8)), t, t, filters, stride, "stage2_block1"), x)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("kind", "projected"),
    [
        ("A", []),
        ("B", ["stage2_block1"]),
        ("C", ["stage1_block1", "stage1_block2", "stage2_block1", "stage2_block2"]),
        ("highway", []),
        ("none", []),
    ],
)
def test_each_kind_of_shortcut_projects_where_its_definition_says(kind, projected):
    names = [layer.name for layer in build(BASIC, shortcut=kind).layers]
    for part in ("conv", "bn"):
        assert [name for name in names if name.endswith(f"shortcut_{part}")] == [
            f"{b}_shortcut_{part}" for b in projected
        ]


def test_a_plain_network_adds_nothing_and_pads_no_channels():
    model = build(BASIC, shortcut="none")
    assert not [layer for layer in model.layers if isinstance(layer, layers.Add) or "shortcut" in layer.name]
    residual = build(BASIC)
    assert sum(isinstance(layer, layers.Add) for layer in residual.layers) == sum(BASIC.depths)


def test_a_plain_preactivation_network_carries_nothing_either():
    model = build(FAMILIES["cifar v2"], shortcut="none")
    assert not [layer for layer in model.layers if isinstance(layer, layers.Add) or "shortcut" in layer.name]


@pytest.mark.parametrize("family", ["basic", "cifar"])
def test_a_highway_block_moves_from_its_input_to_its_branch_as_its_gate_opens(family):
    model = fill(build(FAMILIES[family], shortcut="highway", gate_bias=-1.0))
    size = FAMILIES[family].input_size
    for block, carrier in (("stage1_block1", None), ("stage2_block1", "stage2_block1_shortcut_pad")):
        before = "stem_pool" if family == "basic" else "stem_relu"
        names = [carrier or before, f"{block}_bn2", f"{block}_gate", f"{block}_add", f"{block}_out"]
        x, branch_out, gate, joined, out = outputs(model, images(size, size), names)
        kernel, bias = model.get_layer(f"{block}_gate").get_weights()
        assert np.abs(gate - 1 / (1 + np.exp(-(x @ kernel[0, 0] + bias)))).max() <= ROUNDING
        expected = gate * branch_out + (1 - gate) * x
        assert np.abs(joined - expected).max() <= ROUNDING * np.abs(expected).max()
        assert np.array_equal(out, np.maximum(joined, 0))
        assert 0.01 < gate.mean() < 0.99  # neither side alone would pass


def test_a_gate_starts_at_the_bias_of_its_spec():
    model = build(BASIC, shortcut="highway")
    _, bias = model.get_layer("stage1_block2_gate").get_weights()
    assert np.all(bias == -6)


@pytest.mark.parametrize("family", ["v2 of timm", "v2 of Keras"])
def test_a_preactivation_block_projects_the_activated_input_and_carries_the_raw_one(family):
    model = build(FAMILIES[family])
    first, last = model.get_layer("stage2_block1_shortcut_conv"), model.get_layer("stage2_block2_out")
    assert first.input is model.get_layer("stage2_block1_relu1").output
    assert last.input[0] is model.get_layer("stage2_block1_out").output
    names = {layer.name for layer in model.layers}
    assert not {"stem_bn", "stem_relu", "stage2_block1_shortcut_bn"} & names
    assert {"head_bn", "head_relu"} <= names


# BatchNormalization and what starts at zero


@pytest.mark.parametrize("family", FAMILIES)
def test_epsilon_and_momentum_reach_every_batch_normalization(family):
    model = build(FAMILIES[family], epsilon=0.002, momentum=0.75)
    found = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert {(layer.epsilon, layer.momentum) for layer in found} == {(0.002, 0.75)}


@pytest.mark.parametrize("family", ["basic", "bottleneck", "C"])
def test_zero_last_gamma_starts_a_block_as_its_shortcut(family):
    x = images(32, 32)
    for zero in (True, False):
        model = build(FAMILIES[family], zero_last_gamma=zero)
        before, out = outputs(model, x, ["stage2_block1_out", "stage2_block2_out"])
        if family == "C":
            (before,) = outputs(model, x, ["stage2_block2_shortcut_bn"])
        assert np.array_equal(out, np.maximum(before, 0)) == zero


@pytest.mark.parametrize("family", ["v2 of timm", "v2 of Keras", "cifar v2"])
def test_zero_last_gamma_starts_a_preactivation_block_as_its_shortcut(family):
    size = FAMILIES[family].input_size
    for zero in (True, False):
        model = build(FAMILIES[family], depths=(2,) * len(FAMILIES[family].depths), zero_last_gamma=zero)
        before, out = outputs(model, images(size, size), ["stage1_block1_out", "stage1_block2_out"])
        if FAMILIES[family].stride_block == "last":
            before = before[:, ::2, ::2]
        assert np.array_equal(out, before) == zero


def test_kernels_start_with_hes_variance_over_the_outputs():
    # arXiv:1502.01852, equation 14: standard deviation sqrt(2 / (kernel * kernel * outputs)), here for 3x3x128.
    values = ops.convert_to_numpy(he_normal_fan_out()((3, 3, 64, 128)))
    expected = np.sqrt(2 / (9 * 128))
    assert abs(values.std() / expected - 1) < 0.02  # 73,728 values: the standard error is 0.3 %
    assert np.abs(values).max() > 3 * expected  # not cut off at two standard deviations


# What is random in training


def test_stochastic_depth_drops_whole_samples_and_keeps_their_mean():
    rate, batch = 0.5, 64
    model = build(BASIC, stochastic_depth=rate)
    names = ["stage2_block2_bn2", "stage2_block2_stochastic_depth"]
    kept, dropped = outputs(model, images(32, 32, batch=batch), names, training=True)
    alive = np.abs(dropped).reshape(batch, -1).max(axis=1) > 0
    assert np.array_equal(dropped[~alive], np.zeros_like(dropped[~alive]))
    assert np.abs(dropped[alive] - kept[alive] / (1 - rate)).max() <= ROUNDING * np.abs(dropped).max()
    assert 10 < alive.sum() < 54  # 64 fair coins: outside of this once in 10^8


def test_stochastic_depth_and_dropout_do_nothing_at_inference():
    model, plain = fill(build(FAMILIES["drops"])), fill(build(FAMILIES["drops"], stochastic_depth=0.0, dropout=0.0))
    x = images(32, 32, batch=4)
    quiet, reference = (ops.convert_to_numpy(m(x, training=False)) for m in (model, plain))
    assert np.array_equal(quiet, reference)
    assert np.abs(ops.convert_to_numpy(model(x, training=True)) - quiet).max() > 0


def test_stochastic_depth_grows_linearly_to_the_last_block():
    # arXiv:1603.09382, equation 4, as rates of dropping: l / L * p.
    model = build(BASIC, stochastic_depth=0.4)
    rates = [layer.rate for layer in model.layers if layer.name.endswith("_stochastic_depth")]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_dropout_stands_in_front_of_the_classifier_only_where_it_is_asked_for():
    with_dropout, without = build(BASIC, dropout=0.25), build(BASIC)
    dropout = with_dropout.get_layer("head_dropout")
    assert dropout.rate == 0.25
    assert with_dropout.get_layer("head_dense").input is dropout.output
    assert not [layer for layer in without.layers if isinstance(layer, layers.Dropout)]


# Precision and layout


@pytest.fixture
def policy(request) -> Iterator[str]:
    """The global policy, for one test."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"], indirect=True)
@pytest.mark.parametrize("family", ["basic", "v2 of timm", "highway"])
def test_under_mixed_precision_the_head_and_all_weights_stay_float32(family, policy):
    model = build(FAMILIES[family])
    assert model.output.dtype == "float32"
    assert {weight.dtype for weight in model.weights} == {"float32"}
    computing = {layer.compute_dtype for layer in model.layers if layer.name != "head_dense"}
    assert computing == {policy.removeprefix("mixed_")}
    scores = ops.convert_to_numpy(model(images(32, 32, batch=2)))
    assert scores.dtype == np.float32
    assert np.abs(scores.sum(axis=1) - 1).max() <= ROUNDING  # a float16 softmax misses by 1e-3


@pytest.mark.parametrize("policy", ["float32", "float64"], indirect=True)
def test_without_mixed_precision_the_head_follows_the_policy(policy):
    assert build(BASIC).output.dtype == policy


@pytest.mark.parametrize("family", ["basic", "v2 of timm", "cifar"])
def test_networks_are_channels_last_whatever_the_global_setting(family):
    size = FAMILIES[family].input_size
    x = images(size, size)
    expected = ops.convert_to_numpy(fill(build(FAMILIES[family]))(x))
    keras.config.set_image_data_format("channels_first")
    try:
        found = ops.convert_to_numpy(fill(build(FAMILIES[family]))(x))
    finally:
        keras.config.set_image_data_format("channels_last")
    assert np.array_equal(found, expected)


def test_a_spec_of_one_block_and_one_stage_makes_a_network():
    model = build(Spec("basic", depths=(1,), widths=(4,), stem="small", input_size=8, classes=2))
    assert model.output_shape == (None, 2)
