"""Networks against the implementations that published them, and everything that can be said to the builder."""

from __future__ import annotations

import inspect
import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_resnet
from keras_resnet import VARIANTS, ResNet18, ResNet50, blocks, build, cifar, features, freeze
from keras_resnet.depth import recursion_room
from keras_resnet.errors import InputError, UsageError
from keras_resnet.models import connect
from keras_resnet.preprocessing import IMAGENET
from tests.references import (
    CLASSES,
    FAMILIES,
    FIXTURE,
    FIXTURE_SEED,
    LOGITS_TOLERANCE,
    NETWORKS,
    SIZES,
    fill,
    fill_both,
    images,
    relative_difference,
)

SMALL = FAMILIES["basic"]
CONSTRUCTORS = {n: getattr(keras_resnet, f"ResNet{n}") for n in (18, 34, 50, 101, 152)}


def logits(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return ops.convert_to_numpy(model(x, training=False))


# torchvision


def ours(name: str, seed: int) -> keras.Model:
    return fill(build(name, classes=CLASSES, input_shape=(None, None, 3), classifier_activation=None), seed)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_that_torchvision_gave(name):
    model = ours(name, FIXTURE_SEED)
    with np.load(FIXTURE) as recorded:
        for height, width in SIZES:
            expected = recorded[f"{name}_{height}x{width}"]
            found = logits(model, images(height, width, seed=FIXTURE_SEED))
            assert relative_difference(found, expected) <= LOGITS_TOLERANCE, (height, width)


@pytest.mark.parametrize(
    "changes",
    [{"epsilon": 1e-4}, {"stride_on": "1x1"}, {"padding": "same"}],
    ids=lambda changes: "-".join(changes),
)
def test_a_network_with_one_field_changed_does_not_pass_for_torchvisions(changes):
    model = fill(build("resnet50", classes=CLASSES, classifier_activation=None, **changes), FIXTURE_SEED)
    with np.load(FIXTURE) as recorded:
        found = logits(model, images(224, 224, seed=FIXTURE_SEED))
        assert relative_difference(found, recorded["resnet50_224x224"]) > 3 * LOGITS_TOLERANCE


# keras.applications

KERAS_FORMS = {
    "v1": ("resnet50_v1", keras.applications.ResNet50),
    "v2": ("resnet50_v2", keras.applications.ResNet50V2),
}
# Their last maps at strides 4, 8, 16 and 32: those that detectors on these networks take.
KERAS_TAPS = {
    "v1": ["conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"],
    "v2": ["conv2_block3_preact_relu", "conv3_block4_preact_relu", "conv4_block6_preact_relu", "post_relu"],
}


@pytest.fixture(scope="module", params=KERAS_FORMS)
def pair(request) -> tuple[str, keras.Model, dict[tuple[int, int], keras.Model]]:
    """The form, our network of any size, and theirs for each size, all with the same weights and random biases."""
    variant, constructor = KERAS_FORMS[request.param]
    options = {"classes": CLASSES, "classifier_activation": None}
    mine = build(variant, input_shape=(None, None, 3), **options)
    theirs = {size: constructor(weights=None, input_shape=(*size, 3), **options) for size in SIZES}
    first, second = theirs.values()
    fill_both(mine, first, v2=request.param == "v2")
    second.set_weights(first.get_weights())
    return request.param, mine, theirs


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_are_those_of_keras_applications(pair, size):
    _, mine, theirs = pair
    x = images(*size)
    assert relative_difference(logits(mine, x), logits(theirs[size], x)) <= LOGITS_TOLERANCE


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_features_are_the_maps_of_keras_applications_in_front_of_each_stride(pair, size):
    form, mine, theirs = pair
    taps = keras.Model(theirs[size].input, [theirs[size].get_layer(name).output for name in KERAS_TAPS[form]])
    x = images(*size)
    for found, expected in zip(features(mine)(x), taps(x), strict=True):
        assert relative_difference(*map(ops.convert_to_numpy, (found, expected))) <= LOGITS_TOLERANCE


@pytest.mark.parametrize("depth", CONSTRUCTORS)
def test_constructors_have_the_signature_of_keras_applications(depth):
    # Their annotations are none; a name of the same kind is all that differs in the defaults.
    theirs = inspect.signature(keras.applications.ResNet50).parameters
    mine = inspect.signature(CONSTRUCTORS[depth]).parameters
    assert list(mine) == list(theirs)
    assert {p.kind for p in mine.values()} == {p.kind for p in theirs.values()}
    defaults = {name: parameter.default for name, parameter in theirs.items()} | {"name": f"resnet{depth}"}
    assert {name: parameter.default for name, parameter in mine.items()} == defaults


@pytest.mark.parametrize("depth", CONSTRUCTORS)
def test_a_constructor_builds_the_variant_of_its_name(depth):
    constructor = CONSTRUCTORS[depth]
    assert (constructor.__name__, constructor.__doc__[: len(f"resnet{depth},")]) == (
        f"ResNet{depth}",
        f"resnet{depth},",
    )
    model = constructor(weights=None, include_top=False)
    assert model.name == f"resnet{depth}"
    blocks_found = [layer for layer in model.layers if re.fullmatch(r"stage\d_block\d+_out", layer.name)]
    assert len(blocks_found) == {18: 8, 34: 16, 50: 16, 101: 33, 152: 50}[depth]


@pytest.mark.parametrize(
    ("pooling", "input_shape"),
    [(None, None), ("avg", (64, 96, 3)), ("max", (None, 64, 1))],
    ids=str,
)
def test_without_top_shapes_are_those_of_keras_applications(pooling, input_shape):
    options = {"include_top": False, "weights": None, "pooling": pooling, "input_shape": input_shape}
    mine, theirs = ResNet50(**options), keras.applications.ResNet50(**options)
    assert (mine.input_shape, mine.output_shape) == (theirs.input_shape, theirs.output_shape)


def test_pooling_pools_the_last_map():
    x = images(64, 64)
    last, mean, largest = (
        logits(fill(build(SMALL, include_top=False, pooling=pooling)), x) for pooling in (None, "avg", "max")
    )
    assert np.abs(mean - last.mean(axis=(1, 2))).max() <= LOGITS_TOLERANCE * np.abs(last).max()
    assert np.array_equal(largest, last.max(axis=(1, 2)))


# What can be said to the builder


@pytest.mark.parametrize("shape", [(None, None, 3), (None, 48, 3), (40, 32, 1), (32, 33, 5)], ids=str)
def test_a_network_takes_any_size_and_number_of_channels(shape):
    model = build(SMALL, input_shape=shape)
    assert model.input_shape == (None, *shape)
    assert model.get_layer("stem_conv").kernel.shape[2] == shape[2]
    sides = [side or 50 for side in shape[:2]]
    assert logits(model, images(*sides, channels=shape[2], batch=2)).shape == (2, 10)


def test_one_network_answers_images_of_several_sizes():
    model = build(SMALL, input_shape=(None, None, 3), include_top=False)
    assert [logits(model, images(side, side + 9)).shape[1:3] for side in (32, 47)] == [(4, 6), (6, 7)]


def test_the_classifier_has_the_classes_and_the_activation_asked_for():
    x = images(32, 32, batch=3)
    activations = (None, "softmax", "sigmoid", ops.tanh)
    raw, softmax, sigmoid, own = (
        logits(fill(build(SMALL, classes=7, classifier_activation=activation)), x) for activation in activations
    )
    assert raw.shape == (3, 7)
    exponents = np.exp(raw - raw.max(axis=1, keepdims=True))
    assert softmax == pytest.approx(exponents / exponents.sum(axis=1, keepdims=True), abs=1e-6)
    assert sigmoid == pytest.approx(1 / (1 + np.exp(-raw)), abs=1e-6)
    assert own == pytest.approx(np.tanh(raw), abs=1e-6)


def test_a_network_reads_from_a_keras_tensor():
    given = keras.Input((32, 32, 3), name="camera")
    model = build(SMALL, input_tensor=given)
    assert model.input is given
    assert np.array_equal(logits(fill(model), images(32, 32)), logits(fill(build(SMALL)), images(32, 32)))


def test_a_network_behind_other_layers_starts_at_their_inputs():
    pixels = keras.Input((32, 32, 3), name="pixels")
    model = fill(build(SMALL, input_tensor=layers.Rescaling(2.0)(pixels)))
    assert [tensor is pixels for tensor in model.inputs] == [True]
    x = images(32, 32)
    assert np.array_equal(logits(model, x), logits(fill(build(SMALL)), 2 * x))


def test_a_network_behind_two_inputs_has_both():
    left, right = keras.Input((32, 32, 2)), keras.Input((32, 32, 1))
    model = fill(build(SMALL, input_tensor=layers.Concatenate()([left, right])))
    assert [tensor is given for tensor, given in zip(model.inputs, (left, right), strict=True)] == [True, True]
    x = images(32, 32)
    assert np.array_equal(logits(model, [x[..., :2], x[..., 2:]]), logits(fill(build(SMALL)), x))


@pytest.mark.parametrize("made", ["built", "behind a tensor", "features"])
def test_calling_a_network_on_an_array_does_not_warn(made):
    model = build(SMALL, input_tensor=keras.Input((32, 32, 3)) if made == "behind a tensor" else None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        (features(model) if made == "features" else model)(images(32, 32))
    assert [str(warning.message) for warning in said] == []


BAD_OPTIONS = [
    ({"variant": "resnet51"}, "nearest are resnet50"),
    ({"shortcutt": "C"}, "nearest are shortcut"),
    ({"classes": 0}, "classes=0 must be a whole number from 1 up"),
    ({"classes": "ten"}, "classes='ten' must be a whole number"),
    ({"pooling": "mean"}, "unknown pooling 'mean' (pooling=): valid are None, avg, max"),
    ({"classifier_activation": "sofmax"}, "unknown activation 'sofmax' (classifier_activation=): nearest are softmax"),
    ({"classifier_activation": 3}, "unknown activation 3"),
    ({"input_tensor": np.zeros((1, 32, 32, 3))}, "input_tensor of type ndarray is not a Keras tensor"),
    ({"input_tensor": keras.Input((32, 3))}, "must be (height, width, channels)"),
    ({"input_shape": (7, 32, 3)}, "height and width must be at least 8, or None; stem='small' takes smaller images"),
    ({"input_shape": (32, 0, 3)}, "at least 8"),
    ({"input_shape": (32.0, 32, 3)}, "at least 8"),
    ({"input_shape": (32, 32)}, "must be (height, width, channels)"),
    ({"input_shape": (32, 32, None)}, "must be (height, width, channels), with 1 channel or more"),
    ({"input_shape": (32, 32, 0)}, "with 1 channel or more"),
    ({"input_shape": 32}, "must be (height, width, channels)"),
    ({"weights": 5}, "weights=5 must be a tag, an hf:// address, the path of a file"),
]


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS, ids=[", ".join(options) for options, _ in BAD_OPTIONS])
def test_what_makes_no_network_is_refused_in_one_line(options, said):
    with pytest.raises(UsageError) as refused:
        build(**{"variant": SMALL, **options})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_images_as_small_as_the_stride_are_taken():
    assert build(SMALL, input_shape=(8, 8, 3)).output_shape == (None, 10)
    assert build(SMALL, stem="small", input_shape=(2, 2, 3)).output_shape == (None, 10)
    with pytest.raises(UsageError, match="at least 2, or None$"):
        build(SMALL, stem="small", input_shape=(1, 2, 3))


def test_published_weights_of_another_variant_are_refused_before_they_are_fetched():
    with pytest.raises(UsageError, match=r"resnet50\.IMAGENET1K_V2.*resnet18"):
        ResNet18(weights="torchvision/resnet50.IMAGENET1K_V2")


# Names

STEM = r"stem_(conv_pad|conv|bn|relu|pool_pad|pool|pool_subsample)"
BRANCH = r"(conv[123]_pad|conv[123]|bn[123]|relu[123])"
SHORTCUT = r"(shortcut_(conv|bn|pool|pad)|gate|gate_difference|gate_product)"
BLOCK = rf"stage\d_block\d+_({BRANCH}|{SHORTCUT}|stochastic_depth|add|out)"
HEAD = r"head_(bn|relu|pool|dropout|dense)"
SCHEME = re.compile(rf"image|preprocessing1\..+|{STEM}|{BLOCK}|{HEAD}")


def layer_names(spec: keras_resnet.Spec) -> set[str]:
    """The names in a network, built without random weights, which take most of the time."""
    x = keras.Input((64, 64, 3), name="image")
    y = connect(blocks.Parts(spec, keras.initializers.Zeros), x, IMAGENET)
    with recursion_room(22 * sum(spec.depths)):
        return {layer.name for layer in keras.Model(x, y).layers}


def misnamed(spec: keras_resnet.Spec) -> set[str]:
    """Layers that should be there and are not, and those that the scheme has no name for."""
    names = layer_names(spec)
    convolutions = {"basic": 2, "bottleneck": 3}[spec.block]
    expected = {
        f"stage{s}_block{b}_conv{j}"
        for s, depth in enumerate(spec.depths, start=1)
        for b in range(1, depth + 1)
        for j in range(1, convolutions + 1)
    }
    missing = (expected | {"stem_conv", "head_pool", "head_dense", "stage1_block1_out"}) - names
    return missing | {name for name in names if not SCHEME.fullmatch(name)}


MANY_BLOCKS = 30  # above it a network takes seconds to connect


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=[pytest.mark.slow] * (sum(s.depths) > MANY_BLOCKS)) for name, s in VARIANTS.items()],
)
def test_layers_of_every_variant_are_named_by_one_scheme(variant):
    assert misnamed(VARIANTS[variant]) == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_every_family_are_named_by_the_same_scheme(family):
    assert misnamed(FAMILIES[family]) == set()


def test_two_networks_nest_in_one_model_that_trains_saves_and_loads(tmp_path):
    x = keras.Input((32, 32, 3))
    left, right = build(cifar(8), name="left"), build(cifar(8, preactivation=True, shortcut_bn=False), name="right")
    both = keras.Model(x, layers.Average()([left(x), right(x)]))
    both.compile("sgd", "sparse_categorical_crossentropy")
    before = left.get_layer("stem_conv").get_weights()[0], right.get_layer("stem_conv").get_weights()[0]
    both.train_on_batch(images(32, 32, batch=4), np.arange(4))
    after = left.get_layer("stem_conv").get_weights()[0], right.get_layer("stem_conv").get_weights()[0]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))
    both.save(tmp_path / "both.keras")
    again = keras.models.load_model(tmp_path / "both.keras")
    assert np.array_equal(logits(again, images(32, 32)), logits(both, images(32, 32)))


# The pyramid


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_last_maps_of_the_stages_at_growing_strides(family, tmp_path):
    spec = FAMILIES[family]
    model = fill(build(spec, input_shape=(None, None, 3)))
    pyramid = features(model)
    first = 4 if spec.stem == "imagenet" else 1
    side = 4 * spec.output_stride
    x = images(side, side)
    maps = pyramid(x)
    assert pyramid.name == f"{model.name}_features"
    assert [value.shape[1] for value in maps] == [side // (first * 2**s) for s in range(len(spec.depths))]
    pyramid.save(tmp_path / "pyramid.keras")
    again = keras.models.load_model(tmp_path / "pyramid.keras")(x)
    for a, b in zip(maps, again, strict=True):
        assert np.array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))


@pytest.mark.parametrize("preactivation", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_features_of_a_network_that_strides_last_lie_in_front_of_each_stride(preactivation, depth):
    model = build(SMALL, depths=(depth,) * 3, widths=(4, 8, 16), stride_block="last", preactivation=preactivation)
    assert [tensor.shape[1] for tensor in features(model).outputs] == [8, 4, 2]


def test_features_share_their_weights_with_the_network():
    model = build(SMALL)
    pyramid = features(model)
    fill(model)
    assert pyramid.get_layer("stem_conv") is model.get_layer("stem_conv")


def test_features_of_a_saved_network_are_those_of_the_network(tmp_path):
    model = fill(build(FAMILIES["v2 of Keras"]))
    model.save(tmp_path / "model.keras")
    x = images(32, 32)
    again = features(keras.models.load_model(tmp_path / "model.keras"))(x)
    for a, b in zip(features(model)(x), again, strict=True):
        assert np.array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))


def test_features_of_a_foreign_model_are_refused():
    foreign = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)], name="foreign")
    with pytest.raises(InputError, match="model 'foreign' has no layers named stage1_block1_out"):
        features(foreign)


# Freezing


PARTS = ("stem", "stage1", "stage2", "head")


def trainable_parts(model: keras.Model) -> dict[bool, set[str]]:
    parts: dict[bool, set[str]] = {False: set(), True: set()}
    for layer in model.layers:
        if layer.weights and not isinstance(layer, layers.Dropout):
            parts[layer.trainable].add(layer.name.split("_")[0])
    return parts


@pytest.mark.parametrize("part", PARTS[:-1])
@pytest.mark.parametrize("family", FAMILIES)
def test_freezing_stops_the_training_of_everything_up_to_a_part_and_of_nothing_else(family, part):
    model = build(FAMILIES[family])
    freeze(model, through=part)
    until = PARTS.index(part) + 1
    found = trainable_parts(model)
    assert found[False] == {*PARTS[:until]} & (found[False] | found[True])
    assert found[True] == {"stem", "stage1", "stage2", "stage3", "head"} & (found[False] | found[True]) - found[False]
    assert "head" in found[True]


def test_freezing_again_takes_the_earlier_freezing_back():
    model = build(SMALL)
    freeze(model, through="stage2")
    assert trainable_parts(model) == {False: {"stem", "stage1", "stage2"}, True: {"head"}}
    freeze(model, through="stem")
    assert trainable_parts(model) == {False: {"stem"}, True: {"stage1", "stage2", "head"}}
    freeze(model, through=None)
    assert trainable_parts(model) == {False: set(), True: {"stem", "stage1", "stage2", "head"}}


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("family", ["basic", "v2 of timm", "v2 of Keras"])
def test_training_moves_what_is_not_frozen_and_no_statistics_of_what_is(family, batch_norm):
    model = fill(build(FAMILIES[family]))
    freeze(model, through="stage1", batch_norm=batch_norm)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    frozen = {layer.name: not layer.trainable for layer in model.layers}
    before = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    model.fit(images(32, 32, batch=8), np.arange(8), batch_size=4, epochs=1, verbose=0)
    for name, weights in before.items():
        moved = [not np.array_equal(a, b) for a, b in zip(weights, model.get_layer(name).get_weights(), strict=True)]
        assert not any(moved) if frozen[name] else all(moved), name
    normalisations = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert batch_norm == any(frozen[layer.name] for layer in normalisations)


def test_a_frozen_normalisation_answers_in_training_as_it_does_in_use():
    model = fill(build(SMALL))
    freeze(model, through="stage2")
    x = images(32, 32, batch=4)
    backbone = keras.Model(model.input, model.get_layer("head_dense").input)
    in_training, in_use = (ops.convert_to_numpy(backbone(x, training=training)) for training in (True, False))
    assert np.array_equal(in_training, in_use)


def test_only_what_is_not_frozen_gets_gradients():
    import tensorflow as tf

    model = build(SMALL)
    freeze(model, through="stage1")
    with tf.GradientTape() as tape:
        loss = ops.sum(model(images(32, 32), training=True)[:, 0])
    wanted = {v.path for v in model.trainable_variables}
    assert {path.split("/")[0].split("_")[0] for path in wanted} == {"stage2", "head"}
    assert all(g is not None for g in tape.gradient(loss, [v.value for v in model.trainable_variables]))


def test_freezing_an_unknown_part_is_refused():
    with pytest.raises(UsageError, match=r"unknown part 'stage9' \(through=\): nearest are stage"):
        freeze(build(SMALL), through="stage9")
