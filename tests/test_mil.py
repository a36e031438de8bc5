"""The replay of Core ML packages: its operations against TensorFlow, its decompression against coremltools'."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.export import to_coreml
from keras_resnet.export.mil import Package, layer_noise, open_package
from keras_resnet.export.mil_ops import OPERATIONS, rounded
from keras_resnet.training.evaluation import scores_of
from tests.test_export import network, photographs

ct = pytest.importorskip("coremltools")
mb = ct.converters.mil.Builder

SHAPE = (1, 8, 9, 4)  # of an array that a package reads: images, height, width, channels
rng = np.random.default_rng(0)
KERNEL, DEPTHWISE = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 4, 3, 3), (8, 1, 3, 2)))
MATRIX, VECTOR = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 4), (4,)))
STEPS = {"scale": np.float32(0.05), "zero_point": np.int8(3)}
POSITIVE = np.abs(VECTOR) + 0.1


def first(x: Any) -> Any:
    """Channels first."""
    return mb.transpose(x=x, perm=[0, 3, 1, 2])


def last(x: Any) -> Any:
    return mb.transpose(x=x, perm=[0, 2, 3, 1])


def convolution(**settings: Any) -> Callable[[Any], Any]:
    return lambda x: last(mb.conv(x=first(x), weight=KERNEL, bias=np.arange(6, dtype=np.float32), **settings))


def tf_convolution(strides: int, padding: Any, dilations: int = 1) -> Callable[[Any], Any]:
    kernel = KERNEL.transpose(2, 3, 1, 0)
    return lambda x: tf.nn.conv2d(x, kernel, strides, padding, dilations=dilations) + np.arange(6, dtype=np.float32)


def pools(kind: str, **settings: Any) -> Callable[[Any], Any]:
    return lambda x: last(getattr(mb, kind)(x=first(x), kernel_sizes=[3, 2], **settings))


# operation, its settings: (the program, the same in TensorFlow)
CASES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "add": (lambda x: mb.add(x=x, y=VECTOR), lambda x: x + VECTOR),
    "sub": (lambda x: mb.sub(x=np.float32(1), y=x), lambda x: 1 - x),
    "mul": (lambda x: mb.mul(x=x, y=VECTOR), lambda x: x * VECTOR),
    "real_div": (lambda x: mb.real_div(x=x, y=mb.sigmoid(x=x)), lambda x: x / tf.sigmoid(x)),
    "maximum": (lambda x: mb.maximum(x=x, y=VECTOR), lambda x: tf.maximum(x, VECTOR)),
    "cast": (
        lambda x: mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32"),
        lambda x: tf.cast(tf.cast(x, tf.float16), tf.float32),
    ),
    "identity": (lambda x: mb.identity(x=mb.relu(x=x)), tf.nn.relu),
    "relu": (lambda x: mb.relu(x=x), tf.nn.relu),
    "relu6": (lambda x: mb.relu6(x=x), tf.nn.relu6),
    "sigmoid": (lambda x: mb.sigmoid(x=x), tf.sigmoid),
    "silu": (lambda x: mb.silu(x=x), tf.nn.silu),
    "softmax": (lambda x: mb.softmax(x=x, axis=-1), tf.nn.softmax),
    "softmax, channels": (lambda x: mb.softmax(x=x, axis=1), lambda x: tf.nn.softmax(x, axis=1)),
    "conv, valid": (convolution(pad_type="valid"), tf_convolution(1, "VALID")),
    "conv, same": (convolution(pad_type="same", strides=[2, 2]), tf_convolution(2, "SAME")),
    "conv, custom": (
        convolution(pad_type="custom", pad=[1, 0, 2, 3], strides=[2, 2]),
        tf_convolution(2, [[0, 0], [1, 0], [2, 3], [0, 0]]),
    ),
    "conv, dilated": (convolution(pad_type="valid", dilations=[2, 2]), tf_convolution(1, "VALID", 2)),
    "conv, depthwise": (
        lambda x: last(mb.conv(x=first(x), weight=DEPTHWISE, groups=4, pad_type="valid")),
        lambda x: tf.nn.depthwise_conv2d(x, DEPTHWISE.reshape(4, 2, 3, 2).transpose(2, 3, 0, 1), [1] * 4, "VALID"),
    ),
    "linear": (
        lambda x: mb.linear(x=mb.reduce_mean(x=x, axes=[1, 2]), weight=MATRIX, bias=np.arange(5, dtype=np.float32)),
        lambda x: tf.reduce_mean(x, [1, 2]) @ MATRIX.T + np.arange(5, dtype=np.float32),
    ),
    "matmul": (
        lambda x: mb.matmul(x=mb.reduce_mean(x=x, axes=[1, 2]), y=MATRIX, transpose_y=True),
        lambda x: tf.reduce_mean(x, [1, 2]) @ MATRIX.T,
    ),
    "max_pool, valid": (
        pools("max_pool", strides=[2, 1], pad_type="valid"),
        lambda x: tf.nn.max_pool2d(x, (3, 2), (2, 1), "VALID"),
    ),
    "max_pool, same": (
        pools("max_pool", strides=[2, 2], pad_type="same"),
        lambda x: tf.nn.max_pool2d(x, (3, 2), 2, "SAME"),
    ),
    "avg_pool, same": (
        pools("avg_pool", strides=[2, 2], pad_type="same", exclude_padding_from_average=True),
        lambda x: tf.nn.avg_pool2d(x, (3, 2), 2, "SAME"),
    ),
    "avg_pool, with padding": (
        pools("avg_pool", strides=[1, 1], pad_type="custom", pad=[1, 1, 0, 0], exclude_padding_from_average=False),
        lambda x: tf.nn.avg_pool2d(tf.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]]), (3, 2), 1, "VALID"),
    ),
    "avg_pool, sparse": (
        lambda x: last(mb.avg_pool(x=first(x), kernel_sizes=[1, 1], strides=[2, 2], pad_type="valid")),
        lambda x: x[:, ::2, ::2],
    ),
    "batch_norm": (
        lambda x: last(
            mb.batch_norm(
                x=first(x), mean=VECTOR, variance=POSITIVE, gamma=VECTOR, beta=VECTOR, epsilon=np.float32(1e-3)
            )
        ),
        lambda x: tf.nn.batch_normalization(x, VECTOR, POSITIVE, VECTOR, VECTOR, 1e-3),
    ),
    "reduce_mean": (
        lambda x: mb.reduce_mean(x=x, axes=[1, 2], keep_dims=True),
        lambda x: tf.reduce_mean(x, [1, 2], keepdims=True),
    ),
    "pad": (
        lambda x: mb.pad(x=x, pad=[0, 0, 1, 0, 2, 1, 0, 3], mode="constant", constant_val=np.float32(-1)),
        lambda x: tf.pad(x, [[0, 0], [1, 0], [2, 1], [0, 3]], constant_values=-1),
    ),
    "transpose": (lambda x: mb.transpose(x=x, perm=[0, 2, 3, 1]), lambda x: tf.transpose(x, [0, 2, 3, 1])),
    "reshape": (lambda x: mb.reshape(x=x, shape=[1, 72, 4]), lambda x: tf.reshape(x, [-1, 72, 4])),
    "squeeze": (
        lambda x: mb.squeeze(x=mb.reduce_mean(x=x, axes=[1], keep_dims=True), axes=[1]),
        lambda x: tf.reduce_mean(x, 1),
    ),
    "expand_dims": (
        lambda x: mb.expand_dims(x=mb.reduce_mean(x=x, axes=[1]), axes=[2]),
        lambda x: tf.reduce_mean(x, 1)[:, :, None],
    ),
    "concat": (lambda x: mb.concat(values=(x, mb.relu(x=x)), axis=3), lambda x: tf.concat([x, tf.nn.relu(x)], 3)),
    "slice_by_index": (
        lambda x: mb.slice_by_index(
            x=x,
            begin=[0, 1, 0, 1],
            end=[0, 7, 9, 4],
            stride=[1, 2, 2, 1],
            begin_mask=[True, False, False, False],
            end_mask=[True, False, False, False],
        ),
        lambda x: x[:, 1:7:2, ::2, 1:],
    ),
    "quantize, dequantize": (
        lambda x: mb.dequantize(input=mb.quantize(input=x, output_dtype="int8", **STEPS), **STEPS),
        lambda x: tf.quantization.fake_quant_with_min_max_args(x, -131 * 0.05, 124 * 0.05),
    ),
}
COMPRESSED = {name for name in OPERATIONS if name.startswith("constexpr_")}


def test_every_operation_that_the_replay_knows_has_a_case() -> None:
    assert {part for name in CASES for part in name.split(", ")} >= OPERATIONS.keys() - COMPRESSED


def package_of(body: Callable[[Any], Any], path: Path, **options: Any) -> Package:
    """A package of one array in, as the body computes it, in float32."""

    program = mb.program(input_specs=[mb.TensorSpec(shape=SHAPE)], opset_version=ct.target.iOS17)(lambda x: body(x))
    settings = {"compute_precision": ct.precision.FLOAT32, "minimum_deployment_target": ct.target.iOS17, **options}
    model = ct.convert(program, convert_to="mlprogram", skip_model_load=True, **settings)
    model.save(str(path))
    return open_package(path)


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_what_tensorflow_gives(name: str, tmp_path: Path) -> None:
    body, reference = CASES[name]
    package = package_of(body, tmp_path / "a.mlpackage")
    pixels = np.random.default_rng(1).standard_normal((5, *SHAPE[1:])).astype(np.float32)
    kinds = {step.kind for step in package.steps}
    assert kinds & set(name.split(", ")), kinds
    found = package.answer(pixels)
    expected = np.asarray(reference(tf.constant(pixels)))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def weights_of(path: Path) -> dict[str, np.ndarray]:
    """What coremltools itself makes of a package's compressed weights."""
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    operations = program.functions["main"].operations
    return {
        op.outputs[0].name: op.materialized_val_inference() for op in operations if op.op_type.startswith("constexpr_")
    }


cto = ct.optimize.coreml


def compressing(function: Any, config: Any, **settings: Any) -> Callable[[Any], Any]:
    chosen = cto.OptimizationConfig(global_config=config(weight_threshold=0, **settings))
    return lambda model: function(model, chosen)


def linear(**settings: Any) -> Callable[[Any], Any]:
    return compressing(cto.linear_quantize_weights, cto.OpLinearQuantizerConfig, **settings)


def palette(**settings: Any) -> Callable[[Any], Any]:
    return compressing(cto.palettize_weights, cto.OpPalettizerConfig, mode="kmeans", **settings)


PRUNE = compressing(cto.prune_weights, cto.OpMagnitudePrunerConfig, target_sparsity=0.5)
BLOCKS = {"granularity": "per_block", "block_size": 4}
GROUPS = {"granularity": "per_grouped_channel", "group_size": 4}
FORMS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "int8": (ct.target.iOS16, linear(mode="linear_symmetric")),
    "int8, not symmetric": (ct.target.iOS16, linear(mode="linear")),
    "int8, iOS 18": (ct.target.iOS18, linear(mode="linear")),
    "int4, blocks": (ct.target.iOS18, linear(mode="linear_symmetric", dtype="int4", **BLOCKS)),
    **{f"palette{bits}": (ct.target.iOS16, palette(nbits=bits)) for bits in (1, 2, 4, 6, 8)},
    "palette4, groups": (ct.target.iOS18, palette(nbits=4, **GROUPS)),
    "prune": (ct.target.iOS16, PRUNE),
    "prune, iOS 18": (ct.target.iOS18, PRUNE),
}


@pytest.mark.parametrize("precision", [ct.precision.FLOAT16, ct.precision.FLOAT32])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_decompressed_to_the_bits_that_coremltools_gives(form: str, precision: Any, tmp_path: Path) -> None:
    target, compress = FORMS[form]
    kernel = np.random.default_rng(2).standard_normal((16, 4, 3, 3)).astype(np.float32)

    specs = [mb.TensorSpec(shape=SHAPE)]
    program = mb.program(input_specs=specs, opset_version=target)(lambda x: mb.conv(x=first(x), weight=kernel))
    settings = {"compute_precision": precision, "minimum_deployment_target": target}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = compress(ct.convert(program, convert_to="mlprogram", skip_model_load=True, **settings))
    model.save(str(tmp_path / "a.mlpackage"))
    package = open_package(tmp_path / "a.mlpackage")
    pixels = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    ours = {step.name: value for step, value in package.replay(pixels) if step.kind.startswith("constexpr_")}
    declared = {step.name: step.dtype for step in package.steps}
    theirs = weights_of(tmp_path / "a.mlpackage")
    assert ours.keys() == theirs.keys()
    assert len(ours) == 1
    for name, value in theirs.items():
        assert declared[name] == value.dtype
        assert np.array_equal(ours[name], value)


def test_every_compressed_form_has_a_case() -> None:
    assert {
        "constexpr_affine_dequantize",
        "constexpr_blockwise_shift_scale",
        "constexpr_lut_to_dense",
        "constexpr_sparse_to_dense",
    } == COMPRESSED


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = network("basic")
    path = tmp_path_factory.mktemp("exported") / "a.mlpackage"
    to_coreml(model, path, quantize="float32", labels=list("vwxyz"))
    return model, path


def test_a_replayed_network_answers_as_the_model_does_layer_by_layer(exported: tuple[Any, Path]) -> None:
    model, path = exported
    package, pixels = open_package(path), photographs(20)
    assert (package.size, package.order, package.labels) == ((32, 32), "rgb", tuple("vwxyz"))
    assert np.abs(package.answer(pixels) - scores_of(model)(pixels)).max() <= 1e-6
    noise = layer_noise(package, model, pixels)
    assert {"stem_relu", "stage1_block1_out", "stage2_block1_bn2", "scores"} <= noise.keys()
    assert max(noise.values()) <= 1e-5


def _bias(package: Package) -> None:
    _constant(package, "stage1_block1_bn1", "bias")[0] += 0.5


def _transposed(package: Package) -> None:
    weight = _constant(package, "stage1_block1_bn2", "weight")
    weight[:] = weight.transpose(0, 1, 3, 2)


def _scale(package: Package) -> None:
    _constant(package, "stage2_block1_bn1", "weight")[:] *= 1.1


def _pad(package: Package) -> None:
    for step in package.steps:
        if "stage2_block1_bn1" in step.name:
            step.inputs.update(pad=np.array([0, 2, 0, 2]))


def _swapped(package: Package) -> None:
    object.__setattr__(package, "order", "bgr")


def _constant(package: Package, layer: str, name: str) -> np.ndarray:
    [step] = [step for step in package.steps if f"_{layer}_" in step.name and step.kind == "conv"]
    step.inputs[name] = step.inputs[name].copy()
    return step.inputs[name]


@pytest.mark.parametrize(
    ("plant", "layer"),
    [
        (_swapped, "stem_bn"),
        (_bias, "stage1_block1_bn1"),
        (_transposed, "stage1_block1_bn2"),
        (_scale, "stage2_block1_bn1"),
        (_pad, "stage2_block1_bn1"),
    ],
)
def test_a_planted_fault_shows_first_at_its_layer(plant: Callable[[Package], None], layer: str, exported: Any) -> None:
    model, path = exported
    package = open_package(path)
    plant(package)
    noise = layer_noise(package, model, photographs(8))
    assert next(name for name, value in noise.items() if value > 1e-4) == layer


def _palette(package: Package) -> None:
    lut = _packed(package, "stage2_block1_bn1", "lut")
    lut[:] = lut[::-1].copy()  # each weight looks up another


def _steps_of_weights(package: Package) -> None:
    scale = _packed(package, "stage2_block1_bn1", "scale")
    scale[0] *= 2


def _packed(package: Package, layer: str, name: str) -> np.ndarray:
    [step] = [step for step in package.steps if f"_{layer}_" in step.name and step.kind == "conv"]
    [source] = [other for other in package.steps if other.name == step.inputs["weight"].name]
    source.inputs[name] = source.inputs[name].copy()
    return source.inputs[name]


@pytest.mark.parametrize(("form", "plant"), [("palette6", _palette), ("int8", _steps_of_weights)])
def test_a_fault_in_packed_weights_shows_first_at_its_layer(
    form: str, plant: Callable[[Package], None], tmp_path: Path
) -> None:
    model, pixels = network("basic", widths=(32, 64)), photographs(8)
    path = to_coreml(model, tmp_path / "a.mlpackage", quantize=form).path
    plain, harmed = open_package(path), open_package(path)
    plant(harmed)
    usual, noise = layer_noise(plain, model, pixels), layer_noise(harmed, model, pixels)
    # Packed weights are never those of the network: what is more than usual is the fault.
    assert next(name for name in noise if noise[name] > 2 * usual[name]) == "stage2_block1_bn1"


def test_rounding_is_numpys() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = bits[np.isfinite(bits)]
    between = np.random.default_rng(0).uniform(0.999, 1.001, (7, len(finite))).astype(np.float32) * finite
    for x in (bits, between, between.T, between[:, ::3], np.float32(70_000), np.float32(1e-7)):
        with np.errstate(over="ignore", invalid="ignore"):
            expected = np.asarray(x).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(rounded(np.asarray(x), np.dtype(np.float16)), expected)


def test_an_operation_that_is_not_known_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds the operation 'erf'"):
        package_of(lambda x: mb.erf(x=x), tmp_path / "a.mlpackage")


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mlpackage").mkdir()
    (tmp_path / "file.mlpackage").write_text("x")
    for name in ("absent.mlpackage", "empty.mlpackage", "file.mlpackage"):
        with pytest.raises(InputError, match=name):
            open_package(tmp_path / name)
