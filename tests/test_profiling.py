"""`profile` counts what the papers, torchvision, timm and Keras count, on any graph, and names what it cannot count."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import keras
import pytest
from keras import layers, ops

import keras_resnet
from keras_resnet.errors import UsageError
from keras_resnet.models import build, freeze
from keras_resnet.profiling import WIDTH, Profile, profile
from keras_resnet.specs import VARIANTS
from tests import reference
from tests.reference import APPLICATIONS, CLASSES, COMPARED, COUNTS, MACS_AT, OPTIONS, Counts

# Each takes 10 s to build, and is built once without this mark.
VERY_DEEP = {"cifar_resnet1202", "cifar_resnet1001_v2"}

_PROFILES: dict[tuple[Any, ...], Profile] = {}  # profiles and not models: the largest weighs half a gigabyte


def graph(name: str, **options: Any) -> keras.Model:
    """A variant of ours or a network of keras.applications, without values of its weights: that takes most time."""
    with keras.StatelessScope(initialize_variables=False):
        if name in VARIANTS:
            return build(name, **options)
        return getattr(keras.applications, name)(weights=None, **options)


def profiled(name: str, *, at: tuple[int, ...] | None = None, **options: Any) -> Profile:
    """The profile of such a network, at another size than its own where `at` says so."""
    key = (name, at, *options.items())
    if key not in _PROFILES:
        _PROFILES[key] = profile(graph(name, **options), input_shape=at)
    return _PROFILES[key]


def slow_if(condition: bool) -> Any:
    return pytest.mark.slow if condition else ()


def counts_of(total: Profile) -> Counts:
    kinds = [layer.type for layer in total.layers]
    return Counts(
        params=total.trainable_parameters,
        total=total.parameters,
        macs=total.macs,
        acts=total.activations,
        conv=kinds.count("Conv2D"),
        bn=kinds.count("BatchNormalization"),
    )


def model_of(*stack: layers.Layer, shape: tuple[int | None, ...]) -> keras.Model:
    x = inputs = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


def rows_of(total: Profile) -> dict[str, Any]:
    return {row.name: row for row in total.layers}


# Published counts -----------------------------------------------------------------------------------------------------


def test_every_variant_has_its_counts_written_down():
    assert COUNTS.keys() == VARIANTS.keys()


@pytest.mark.parametrize("variant", COUNTS)
def test_variant_has_the_counts_of_its_sources(variant):
    assert counts_of(profiled(variant)) == COUNTS[variant]


@pytest.mark.parametrize("variant", COUNTS)
def test_everything_in_our_networks_is_counted(variant):
    assert profiled(variant).uncounted == ()


@pytest.mark.parametrize("option", [pytest.param(o, id=str(o), marks=slow_if(o.variant in VERY_DEEP)) for o in OPTIONS])
def test_changed_variant_has_the_counts_of_its_sources(option):
    assert counts_of(profiled(option.variant, **option.changes)) == option.counts


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=slow_if(v in VERY_DEEP)) for v in reference.STRIDE_ON_3X3_MACS]
)
def test_stride_on_the_3x3_changes_macs_but_no_parameters(variant):
    total = profiled(variant, stride_on="3x3")
    assert total.macs == reference.STRIDE_ON_3X3_MACS[variant]
    assert (total.trainable_parameters, total.parameters) == COUNTS[variant][:2]


@pytest.mark.parametrize(
    ("variant", "classes"), [pytest.param(v, n, marks=slow_if(v in VERY_DEEP)) for v, n in CLASSES]
)
def test_other_numbers_of_classes_change_the_head_alone(variant, classes):
    total = profiled(variant, classes=classes)
    usual = VARIANTS[variant].classes
    inner = rows_of(total)["head_pool"].output_shape[0]
    assert total.trainable_parameters == CLASSES[variant, classes]
    assert total.macs == COUNTS[variant].macs + inner * (classes - usual)
    assert total.activations == COUNTS[variant].acts + classes - usual


@pytest.mark.parametrize("variant", reference.HEADLESS)
def test_network_without_top_has_the_parameters_and_macs_below_the_head(variant):
    total = profiled(variant, at=(224, 224), include_top=False)
    counts = COUNTS[variant]
    assert total.trainable_parameters == reference.HEADLESS[variant]
    assert total.macs == counts.macs - 1000 * total.layers[-1].output_shape[-1]
    assert total.activations == counts.acts - 1000


@pytest.mark.parametrize("variant", sorted({variant for macs in MACS_AT.values() for variant in macs}))
def test_macs_at_other_sizes_follow_from_input_shape(variant):
    model = graph(variant)
    wanted = {size: macs[variant] for size, macs in MACS_AT.items() if variant in macs}
    assert {size: profile(model, input_shape=(size, size)).macs for size in wanted} == wanted


@pytest.mark.parametrize("variant", ["resnet18", "resnet50_v2", "cifar_resnet8"])
def test_input_shape_gives_what_building_at_that_size_gives(variant):
    built = profiled(variant, input_shape=(61, 75, 3))
    computed = profiled(variant, at=(61, 75))
    assert computed.layers[2:] == built.layers[2:]  # behind the layer whose name says how to resize
    assert (computed.macs, computed.peak_activation_bytes) == (built.macs, built.peak_activation_bytes)


@pytest.mark.parametrize("name", APPLICATIONS)
def test_network_of_keras_applications_has_its_counts(name):
    assert counts_of(profiled(name)) == APPLICATIONS[name]


@pytest.mark.parametrize("name", reference.APPLICATIONS_HEADLESS_TOTAL)
def test_headless_network_of_keras_applications_needs_a_size_and_has_its_counts(name):
    total = profiled(name, at=(224, 224), include_top=False)
    assert total.parameters == reference.APPLICATIONS_HEADLESS_TOTAL[name]
    assert total.macs == APPLICATIONS[name].macs - 2048 * 1000


@pytest.mark.parametrize("name", COMPARED)
def test_compared_network_has_its_counts(name):
    total = profiled(name)
    assert (total.trainable_parameters, total.macs) == COMPARED[name]
    assert total.uncounted == ()


def test_resnet152_is_smaller_and_cheaper_than_vgg19():
    deep, vgg = profiled("resnet152"), profiled("VGG19")
    assert deep.trainable_parameters < vgg.trainable_parameters
    assert deep.macs < vgg.macs


def test_densenet121_keeps_its_statistics_out_of_the_trainable_parameters():
    assert profiled("DenseNet121").parameters == 8_062_504


# Maps and what they see ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", reference.RECEPTIVE_FIELDS)
def test_stages_see_the_receptive_fields_of_their_convolutions(variant):
    total = profiled(variant)
    rows = rows_of(total)
    last = [rows[f"stage{s}_block{depth}_out"] for s, depth in enumerate(VARIANTS[variant].depths, start=1)]
    assert tuple(row.receptive_field for row in last) == reference.RECEPTIVE_FIELDS[variant]
    assert [row.stride for row in last] == [4, 8, 16, 32]
    assert (total.receptive_field, total.stride) == (last[-1].receptive_field, 32)


@pytest.mark.parametrize("variant", reference.LAST_RECEPTIVE_FIELD)
def test_last_map_sees_its_receptive_field(variant):
    total = profiled(variant)
    assert total.receptive_field == reference.LAST_RECEPTIVE_FIELD[variant]
    assert total.stride == VARIANTS[variant].output_stride


@pytest.mark.parametrize("name", ["ResNet50V2", "ResNet101V2", "ResNet152V2"])
def test_keras_applications_see_what_our_form_of_them_sees(name):
    ours = name.replace("V2", "_v2").lower()
    assert profiled(name).receptive_field == reference.LAST_RECEPTIVE_FIELD[ours]


def test_behind_the_global_pooling_everything_is_seen():
    rows = rows_of(profiled("resnet18"))
    assert rows["head_pool"].receptive_field is None
    assert rows["head_dense"].receptive_field is None


@pytest.mark.parametrize("name", reference.DISTILL_RECEPTIVE_FIELD)
def test_other_networks_see_the_published_receptive_fields(name):
    total = profiled(name)
    assert (total.receptive_field, total.stride) == (reference.DISTILL_RECEPTIVE_FIELD[name], 32)


def test_vgg_sees_a_window_until_it_flattens():
    rows = rows_of(profiled("VGG16"))
    assert rows["block5_pool"].receptive_field == 212
    assert rows["flatten"].receptive_field is None


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50_v2", "ResNet50", "ResNet50V2"])
def test_odd_images_give_the_maps_of_torchvision_and_keras(name):
    rows = rows_of(profiled(name, at=reference.ODD_IMAGE))
    if name.startswith("ResNet"):
        v2 = ["conv2_block3_preact_relu", "conv3_block4_preact_relu", "conv4_block6_preact_relu", "post_relu"]
        v1 = ["conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"]
        taps = ["pool1_pool", *(v2 if name.endswith("V2") else v1)]
    elif name.endswith("v2"):
        taps = ["stem_pool", "stage1_block3_relu1", "stage2_block4_relu1", "stage3_block6_relu1", "head_relu"]
    else:
        taps = ["stem_pool", *(f"stage{s}_block{n}_out" for s, n in enumerate(VARIANTS[name].depths, start=1))]
    assert tuple(rows[tap].output_shape[:2] for tap in taps) == reference.ODD_IMAGE_MAPS


def test_squeeze_and_excitation_sees_the_whole_image():
    x = inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    x = layers.Multiply(name="excite")([x, layers.Dense(4)(gate)])
    total = profile(keras.Model(inputs, x))
    assert rows_of(total)["conv"].receptive_field == 3
    assert rows_of(total)["excite"].receptive_field is None
    assert total.receptive_field is None


def test_kept_dimensions_of_a_global_pooling_are_no_feature_map():
    total = profile(model_of(layers.Conv2D(4, 3), layers.GlobalMaxPooling2D(keepdims=True), shape=(8, 8, 3)))
    assert total.receptive_field == 3


# One layer a case, counted by hand ------------------------------------------------------------------------------------

IMAGE = (9, 9, 4)
SINGLE = {  # layer, input shape, MACs, weights with bias, receptive field, stride
    "convolution": (layers.Conv2D(6, 3), IMAGE, 7 * 7 * 6 * 4 * 9, 6 * 4 * 9 + 6, 3, 1),
    "strided": (layers.Conv2D(6, 3, strides=2, padding="same"), IMAGE, 5 * 5 * 6 * 4 * 9, 222, 3, 2),
    "grouped": (layers.Conv2D(6, 3, groups=2), IMAGE, 7 * 7 * 6 * 2 * 9, 6 * 2 * 9 + 6, 3, 1),
    "dilated": (layers.Conv2D(6, 3, dilation_rate=3), IMAGE, 3 * 3 * 6 * 4 * 9, 222, 7, 1),
    "not square": (layers.Conv2D(6, (1, 5), strides=(1, 2)), IMAGE, 9 * 3 * 6 * 4 * 5, 6 * 4 * 5 + 6, 5, 2),
    "depthwise": (
        layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2),
        IMAGE,
        4 * 4 * 8 * 9,
        8 * 9 + 8,
        3,
        2,
    ),
    "separable": (
        layers.SeparableConv2D(6, 3, depth_multiplier=2),
        IMAGE,
        7 * 7 * (8 * 9 + 8 * 6),
        8 * 9 + 8 * 6 + 6,
        3,
        1,
    ),
    # 3x3 at stride 2: an output position lies under one or two input positions along a side.
    "transposed": (layers.Conv2DTranspose(6, 3, strides=2), IMAGE, 9 * 9 * 6 * 4 * 9, 222, 2, 0.5),
    "1D": (layers.Conv1D(6, 3, padding="causal"), (9, 4), 9 * 6 * 4 * 3, 6 * 4 * 3 + 6, 3, 1),
    "1D depthwise": (layers.DepthwiseConv1D(3), (9, 4), 7 * 4 * 3, 4 * 3 + 4, 3, 1),
    "1D separable": (layers.SeparableConv1D(6, 3), (9, 4), 7 * (4 * 3 + 4 * 6), 4 * 3 + 4 * 6 + 6, 3, 1),
    "1D transposed": (layers.Conv1DTranspose(6, 2, strides=2), (9, 4), 9 * 6 * 4 * 2, 6 * 4 * 2 + 6, 1, 0.5),
    "3D": (layers.Conv3D(6, 3), (9, 9, 9, 4), 7**3 * 6 * 4 * 27, 6 * 4 * 27 + 6, 3, 1),
    "3D transposed": (layers.Conv3DTranspose(6, 2), (3, 3, 3, 4), 27 * 6 * 4 * 8, 6 * 4 * 8 + 6, 2, 1),
    "channels first": (
        layers.Conv2D(6, 3, data_format="channels_first"),
        (4, 9, 11),
        7 * 9 * 6 * 4 * 9,
        222,
        3,
        1,
    ),
    "dense": (layers.Dense(6), (4,), 24, 30, None, None),
    "dense on a map": (layers.Dense(6), IMAGE, 81 * 24, 30, 1, 1),
    "pooling": (layers.MaxPooling2D(3, strides=2), IMAGE, 0, 0, 3, 2),
    "1D pooling": (layers.AveragePooling1D(2), (9, 4), 0, 0, 2, 2),
    "global pooling": (layers.GlobalMaxPooling2D(), IMAGE, 0, 0, None, None),
    "padding": (layers.ZeroPadding2D(2), IMAGE, 0, 0, 1, 1),
    "1D padding": (layers.ZeroPadding1D((2, 0)), (9, 4), 0, 0, 1, 1),
    "cropping": (layers.Cropping2D(2), IMAGE, 0, 0, 1, 1),
    "upsampling": (layers.UpSampling1D(3), (9, 4), 0, 0, 1, 1 / 3),
    "bilinear upsampling": (layers.UpSampling2D(2, interpolation="bilinear"), IMAGE, 0, 0, 2, 0.5),
    "embedding": (layers.Embedding(10, 6), (9,), 0, 60, None, None),
    "normalisation": (layers.LayerNormalization(), IMAGE, 0, 8, 1, 1),
}


@pytest.mark.parametrize("case", SINGLE)
def test_layer_costs_and_sees_what_a_hand_counts(case):
    layer, shape, macs, weights, field, stride = SINGLE[case]
    total = profile(model_of(type(layer).from_config(layer.get_config()), shape=shape))
    row = total.layers[-1]
    assert (row.macs, row.parameters, row.receptive_field) == (macs, weights, field)
    assert row.stride == (None if stride is None else pytest.approx(stride))
    assert row.activations == (total.layers[-1].activation_bytes // 4 if macs else 0)
    assert row.counted


def test_bias_normalisation_and_activation_function_cost_no_macs():
    plain = profile(model_of(layers.Conv2D(4, 3, use_bias=False), shape=IMAGE))
    with_all = profile(model_of(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.PReLU(), shape=IMAGE))
    assert with_all.macs == plain.macs


def test_windows_multiply_through_the_strides_below():
    # 3x3 at stride 2, then 3x3 with holes of 2 (reach 4 steps of 2 pixels), then 2x2 pooling: 3 + 8 + 2.
    stack = (layers.Conv2D(2, 3, strides=2), layers.Conv2D(2, 3, dilation_rate=2), layers.MaxPooling2D(2))
    total = profile(model_of(*stack, shape=(64, 64, 3)))
    assert [row.receptive_field for row in total.layers] == [1, 3, 11, 13]
    assert [row.stride for row in total.layers] == [1, 2, 2, 4]


def test_convolution_on_an_upsampled_map_sees_the_pixels_below():
    total = profile(model_of(layers.UpSampling2D(2), layers.Conv2D(2, 3, padding="same"), shape=IMAGE))
    assert [row.receptive_field for row in total.layers] == [1, 1, 2]


def test_branches_that_are_shifted_against_each_other_see_their_hull():
    x = inputs = keras.Input((9, 9, 2))
    left = layers.Cropping2D(((0, 2), (0, 2)))(x)
    right = layers.Cropping2D(((2, 0), (2, 0)))(x)
    total = profile(keras.Model(inputs, layers.Add()([left, right])))
    assert [row.receptive_field for row in total.layers] == [1, 1, 1, 3]


def test_causal_convolution_sees_backwards_only():
    x = inputs = keras.Input((9, 2))
    padded = layers.Conv1D(2, 3)(layers.ZeroPadding1D((2, 0))(x))
    total = profile(keras.Model(inputs, layers.Add()([layers.Conv1D(2, 3, padding="causal")(x), padded])))
    assert total.receptive_field == 3


def test_slices_are_shifted_by_where_they_begin():
    inputs = keras.Input((9, 9, 2))
    total = profile(keras.Model(inputs, inputs[:, 2:] + inputs[:, :-2]))
    assert total.receptive_field == 3
    total = profile(keras.Model(inputs, inputs[..., 4:, :] * inputs[:, :, :-4]))
    assert total.receptive_field == 5


def test_channels_first_networks_cost_and_see_the_same():
    def network(data_format: str, shape: tuple[int, ...]) -> keras.Model:
        stack = (layers.ZeroPadding2D, layers.Conv2D, layers.MaxPooling2D, layers.Conv2D, layers.GlobalMaxPooling2D)
        arguments = ({}, {"filters": 4, "kernel_size": 3, "strides": 2}, {}, {"filters": 6, "kernel_size": 1}, {})
        parts = [kind(**given, data_format=data_format) for kind, given in zip(stack, arguments, strict=True)]
        return model_of(*parts, layers.Dense(5), shape=shape)

    last = profile(network("channels_last", (32, 40, 3)))
    first = profile(network("channels_first", (3, 32, 40)))
    assert first.macs == last.macs
    assert (first.receptive_field, first.stride) == (last.receptive_field, last.stride) == (5, 4)
    smaller = profile(network("channels_first", (3, 32, 40)), input_shape=(24, 28))
    assert smaller.input_shapes == ((3, 24, 28),)


# Graphs -----------------------------------------------------------------------------------------------------------


def test_shared_layer_has_its_parameters_once_and_multiplies_twice():
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    total = profile(model_of(shared, shared, shape=(5, 5, 4)))
    first, second = total.layers[1:]
    assert (first.name, second.name) == ("shared", "shared[2]")
    assert (first.parameters, second.parameters) == (148, 0)
    assert first.macs == second.macs == 25 * 4 * 4 * 9
    assert (first.receptive_field, second.receptive_field) == (3, 5)


def test_nested_models_are_taken_apart_under_joined_names():
    inner = model_of(layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm"), shape=(None, None, 3))
    inner.name = "inner"
    tower = keras.Sequential([keras.Input((9, 9, 3)), inner, layers.ReLU(name="relu")], name="tower")
    inputs = keras.Input((9, 9, 3), name="image")
    head = layers.Dense(2, name="head")(layers.Flatten(name="flat")(tower(inputs)))
    model = keras.Model(inputs, head)
    total = profile(model)
    names = ["image", "tower/inner/conv", "tower/inner/norm", "tower/relu", "flat", "head"]
    assert [row.name for row in total.layers] == names
    assert [row.output_shape for row in total.layers][1] == (7, 7, 4)
    assert total.parameters == model.count_params()
    assert total.receptive_field == 3


def test_application_inside_a_model_costs_what_it_costs_alone():
    with keras.StatelessScope(initialize_variables=False):
        base = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(96, 96, 3))
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(base(inputs))))
    alone, nested = profile(base), profile(model, input_shape=(96, 96))
    assert nested.macs == alone.macs + 2 * 1280
    assert nested.peak_activation_bytes == alone.peak_activation_bytes
    assert nested.receptive_field == alone.receptive_field


def test_nested_model_that_is_called_twice_multiplies_twice():
    tower = model_of(layers.Dense(3, name="dense"), shape=(4,))
    tower.name = "tower"
    left, right = keras.Input((4,)), keras.Input((4,))
    total = profile(keras.Model([left, right], layers.Concatenate()([tower(left), tower(right)])))
    assert (total.parameters, total.macs) == (15, 24)
    assert [row.name for row in total.layers if row.macs] == ["tower/dense", "tower/dense[2]"]
    assert total.input_shapes == ((4,), (4,))


def test_operations_that_are_no_layers_are_part_of_the_graph():
    x = inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(3, 3, strides=2, padding="same")(x)
    carried = ops.pad(x[:, ::2, ::2, :], ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = profile(keras.Model(inputs, ops.relu(carried + ops.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0))))))
    assert total.macs == 16 * 3 * 3 * 9
    assert total.uncounted == ()
    # The slice reads pixel 0 where the convolution, padded behind only, reads 0 to 2.
    assert (total.layers[-1].receptive_field, total.layers[-1].stride) == (3, 2)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.MultiHeadAttention(2, 4, name="odd"), (5, 8)),
        (layers.LSTM(4, name="odd"), (5, 8)),
        (layers.TimeDistributed(layers.Dense(3), name="odd"), (5, 8)),
        (layers.EinsumDense("abc,cd->abd", (None, 3), name="odd"), (5, 8)),
    ],
    ids=["attention", "recurrent", "wrapper", "einsum"],
)
def test_layers_with_weights_and_no_rule_are_named_and_marked(layer, shape):
    inputs = keras.Input(shape)
    y = layer(inputs, inputs) if isinstance(layer, layers.MultiHeadAttention) else layer(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="known")(y))
    total = profile(model)
    row = rows_of(total)["odd"]
    assert total.uncounted == ("odd",)
    assert (row.macs, row.counted, row.receptive_field) == (0, False, None)
    assert total.parameters == model.count_params()
    assert total.macs == rows_of(total)["known"].macs > 0
    assert any(line.startswith("odd ") and " ? " in line for line in total.table().splitlines())
    assert total.table(layers=False).splitlines()[-1].endswith("(marked ?): odd")


def test_bare_matrix_products_are_named_too():
    left, right = keras.Input((3, 4)), keras.Input((4, 5))
    product = ops.matmul(left, right)
    total = profile(keras.Model([left, right], product))
    assert len(total.uncounted) == 1
    assert total.uncounted[0].startswith("matmul")


def test_subclass_counts_as_its_base_only_while_it_keeps_its_call():
    class Renamed(layers.Conv2D):
        pass

    class Standardised(layers.Conv2D):
        def call(self, inputs):
            return super().call(inputs) * 2

    total = profile(model_of(Renamed(2, 3, name="same"), Standardised(2, 3, name="own"), shape=IMAGE))
    assert rows_of(total)["same"].macs == 49 * 2 * 4 * 9
    assert total.uncounted == ("own",)


def test_frozen_layers_keep_their_parameters_and_lose_the_trainable_ones():
    model = build("cifar_resnet8")
    before = profile(model)
    freeze(model, through="stage2")
    after = profile(model)
    assert after.parameters == before.parameters
    assert 0 < after.trainable_parameters < before.trainable_parameters
    assert rows_of(after)["stem_conv"].trainable_parameters == 0


def test_very_deep_networks_are_walked_without_recursion():
    model = graph("cifar_resnet110")
    limit = sys.getrecursionlimit()
    frames = len(_frames())
    sys.setrecursionlimit(frames + 120)  # a fraction of the 330 layers on its longest path
    try:
        total = profile(model)
        assert total.json()
        assert total.table()
    finally:
        sys.setrecursionlimit(limit)
    assert len(total.layers) > 300


def _frames() -> list[Any]:
    frames, frame = [], sys._getframe()
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def test_rematerialised_network_profiles_as_the_plain_one():
    model = build("cifar_resnet8")
    assert profile(keras_resnet.rematerialise(model)) == profile(model)


# Memory -----------------------------------------------------------------------------------------------------------


def test_peak_of_a_residual_graph_is_the_hand_counted_one():
    x = inputs = keras.Input((4, 4, 2))  # 32 scalars
    x = layers.Conv2D(8, 1, name="wide")(x)  # 128; alive: input 32 + 128
    y = layers.Conv2D(4, 1, name="narrow")(x)  # 64; 128 carried + 64
    y = layers.ReLU(name="relu")(y)  # 64; 128 + 64 + 64
    y = layers.Conv2D(8, 1, name="back")(y)  # 128; 128 + 64 + 128: the peak
    x = layers.Add(name="add")([x, y])  # 128; 128 + 128 + 128: a larger one
    x = layers.GlobalAveragePooling2D(name="pool")(x)  # 8; 128 + 8
    total = profile(keras.Model(inputs, x))
    assert total.peak_activation_bytes == 4 * (128 + 128 + 128)
    assert total.activation_bytes == 4 * (32 + 128 + 64 + 64 + 128 + 128 + 8)
    assert total.activations == 128 + 64 + 128


def test_carried_tensor_counts_while_the_branch_runs():
    def peak(residual: bool) -> int:
        x = inputs = keras.Input((4, 4, 2))
        y = layers.Conv2D(16, 1)(x)
        y = layers.Conv2D(16, 1)(y)
        y = layers.Conv2D(2, 1)(y)
        return profile(keras.Model(inputs, layers.Add()([x, y]) if residual else y)).peak_activation_bytes

    assert peak(residual=False) == 4 * (256 + 256)
    assert peak(residual=True) == 4 * (256 + 256 + 32)


def test_inputs_and_outputs_of_the_model_stay_alive():
    early, late = keras.Input((100,)), keras.Input((200,))
    first = layers.Dense(300)(early)
    x = layers.Dense(400)(layers.Dense(400)(first))  # here: 200 waiting, 300 kept as an output, 400 read, 400 made
    second = layers.Concatenate()([layers.Dense(10)(x), late])
    total = profile(keras.Model([early, late], [first, second]))
    assert total.peak_activation_bytes == 4 * (200 + 300 + 400 + 400)


def test_output_that_nothing_reads_is_free_at_once():
    inputs = keras.Input((8, 8, 4))  # 256
    half, _ = ops.split(inputs, 2, axis=-1)  # 128 each
    total = profile(keras.Model(inputs, layers.Dense(10)(half)))  # 640
    assert total.activation_bytes == 4 * (256 + 128 + 128 + 640)
    assert total.peak_activation_bytes == 4 * (128 + 640)


def test_half_precision_halves_the_activations_but_not_the_float32_head():
    single = profile(build("cifar_resnet8"))
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = profile(build("cifar_resnet8"))
    finally:
        keras.config.set_dtype_policy(policy)
    image, head = 32 * 32 * 3 * 4, 10 * 4
    assert 2 * (half.activation_bytes - image - head) == single.activation_bytes - image - head
    assert half.macs == single.macs


# What is printed and written ------------------------------------------------------------------------------------


def test_table_is_aligned_fits_the_width_and_ends_with_totals():
    total = profiled("resnet152")
    lines = total.table().splitlines()
    assert max(map(len, lines)) <= WIDTH == 100
    header = lines[0]
    macs_end = header.index("MACs") + 4
    rows = [line for line in lines if line.startswith("stage")]
    assert len(rows) > 500
    assert all(line[macs_end - 1].isdigit() and line[macs_end] == " " for line in rows)
    assert any("60,192,808 trainable" in line for line in lines[-7:])
    assert any("11,513,626,624  multiply-accumulates" in line for line in lines[-7:])
    assert lines[-1].startswith("receptive field")
    assert "1,451  pixels" in lines[-1]
    assert str(total) == total.table()


def test_table_without_layers_holds_the_totals_alone():
    total = profiled("resnet18")
    assert len(total.table(layers=False).splitlines()) == 7
    assert total.table().endswith(total.table(layers=False))
    assert total.table(layers=False).startswith("resnet18, input 224x224x3, batch 1\n")


def test_long_nested_names_lose_their_beginning_in_the_table_only():
    with keras.StatelessScope(initialize_variables=False):
        inner = build("cifar_resnet8", name="a_backbone_with_quite_a_long_name")
        inputs = keras.Input((32, 32, 3))
        total = profile(keras.Model(inputs, inner(inputs)))
    lines = total.table().splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("..") and "stage2_block1_shortcut_conv " in line for line in lines)
    assert "a_backbone_with_quite_a_long_name/stage2_block1_shortcut_conv" in total.csv()


def test_many_uncounted_layers_are_wrapped_and_cut():
    stack = [layers.LSTM(2, return_sequences=True, name=f"a_recurrent_layer_{i}") for i in range(12)]
    lines = profile(model_of(*stack, shape=(3, 2))).table(layers=False).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[-1].endswith("a_recurrent_layer_9 and 2 more")


def test_csv_reads_back_as_the_rows():
    total = profiled("cifar_resnet20")
    rows = list(csv.DictReader(io.StringIO(total.csv())))
    assert [row["name"] for row in rows] == [layer.name for layer in total.layers]
    assert sum(int(row["macs"]) for row in rows) == total.macs
    assert sum(int(row["activation_bytes"]) for row in rows) == total.activation_bytes
    conv = next(row for row in rows if row["name"] == "stage2_block1_conv1")
    assert (conv["type"], conv["output_shape"], conv["stride"]) == ("Conv2D", "16x16x32", "2")
    assert (rows[-1]["receptive_field"], rows[-1]["stride"]) == ("all", "")


def test_json_reads_back_with_totals_and_rows():
    total = profiled("cifar_resnet20")
    content = json.loads(total.json())
    assert content["name"] == "cifar_resnet20"
    assert content["input_shapes"] == [[32, 32, 3]]
    assert content["batch"] == 1
    assert content["totals"] == {
        "parameters": 271_098,
        "trainable_parameters": 269_722,
        "macs": 40_551_040,
        "activations": 188_426,
        "activation_bytes": total.activation_bytes,
        "peak_activation_bytes": total.peak_activation_bytes,
        "receptive_field": 81,
        "stride": 4,
    }
    assert content["uncounted"] == []
    assert [row["macs"] for row in content["layers"]] == [layer.macs for layer in total.layers]
    assert content["layers"][-1]["receptive_field"] is None


def test_profile_is_a_public_name():
    assert keras_resnet.profile is profile


# What is refused ------------------------------------------------------------------------------------------------


def test_open_sizes_are_refused_with_an_example():
    model = model_of(layers.Conv2D(2, 3), shape=(None, None, 3))
    with pytest.raises(UsageError, match=r"is NonexNonex3.* profile\(model, input_shape=\(224, 224\)\)"):
        profile(model)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((32,), r"input_shape=\(32,\) does not fit model .* 9x9x4: give 2 sizes, then no channels or 4"),
        ((32, 32, 3), "then no channels or 4"),
        ((32, 0), "must be whole numbers from 1 up"),
        ((32, None), "must be whole numbers from 1 up"),
        ((32, 32.0), "must be whole numbers from 1 up"),
        ((2, 2), "layer 'conv' does not take 2x2x4: choose another input_shape"),
    ],
)
def test_input_shapes_that_do_not_fit_are_refused(shape, message):
    model = model_of(layers.Conv2D(2, 3, name="conv"), shape=IMAGE)
    with pytest.raises(UsageError, match=message):
        profile(model, input_shape=shape)


def test_open_channels_must_be_given():
    model = model_of(layers.MaxPooling2D(2), shape=(None, None, None))
    with pytest.raises(UsageError, match="give 2 sizes, then the channels"):
        profile(model, input_shape=(8, 8))
    assert profile(model, input_shape=(8, 8, 5)).layers[-1].output_shape == (4, 4, 5)


def test_network_that_flattens_takes_no_other_size():
    model = model_of(layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3, name="fc"), shape=IMAGE)
    with pytest.raises(
        UsageError, match="layer 'fc' was built for 98 inputs and would get 162: this model is not fully"
    ):
        profile(model, input_shape=(11, 11))


def test_size_that_leaves_no_pixels_is_refused():
    x = inputs = keras.Input((9, 9, 4))
    model = keras.Model(inputs, ops.max(x[:, 6:], axis=-1))
    with pytest.raises(UsageError, match=r"layer 'get_item.*' gives 0x9x4: choose an input_shape that leaves pixels"):
        profile(model, input_shape=(6, 9))


def test_size_that_only_data_decides_is_refused():
    model = model_of(layers.Lambda(lambda x: ops.stack(ops.nonzero(x)), name="found"), shape=(4,))
    with pytest.raises(UsageError, match="layer 'found' gives None: a profile needs sizes known before data runs"):
        profile(model)


def test_input_shape_is_for_one_input():
    left, right = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([left, right], layers.Add()([left, right]))
    with pytest.raises(UsageError, match="with 2 inputs of model"):
        profile(model, input_shape=(4,))


def test_name_instead_of_a_model_is_refused_with_the_way_to_build_it():
    with pytest.raises(
        UsageError, match=r"'resnet50' of type str is not a Keras model: .* profile\(build\('resnet50'\)\)"
    ):
        profile("resnet50")


def test_subclassed_models_are_refused_with_a_way_to_a_graph():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3, name="dense")

        def call(self, x):
            return self.dense(x)

    model = Own()
    with pytest.raises(UsageError, match=r"profile keras.Model\(x, model.call\(x\)\)"):
        profile(model)
    x = keras.Input((4,))
    assert profile(keras.Model(x, model.call(x))).macs == 12


def test_sequential_without_input_is_refused():
    with pytest.raises(UsageError, match="is not built"):
        profile(keras.Sequential([layers.Dense(3)]))
