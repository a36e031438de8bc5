"""Which targets take the whole of a file: what is measured, and the documented rules on planted faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet import cli
from keras_resnet.errors import InputError
from keras_resnet.export import inspect, neural_engine, npu, to_coreml, verify
from keras_resnet.export.mil import open_package
from keras_resnet.export.npu import Finding
from keras_resnet.export.probe import probe
from keras_resnet.export.tflite_graph import read_graph
from tests.fuzzing import fuzz_file
from tests.test_export import images_of, network, photographs
from tests.test_mil import ct, first, last, mb
from tests.test_tflite_graph import edited, operation, path, schema, tensor  # noqa: F401

DOCUMENTED = list(npu.TARGETS)
HAS_VELA = shutil.which("vela") is not None


def finding(found: Any, target: str) -> Finding:
    return next(one for one in found.targets if one.target.startswith(target))


def converted(function: Callable[[Any], Any], shape: tuple[int | None, ...] = (1, 8, 8, 4)) -> bytes:
    """A file that computes a function of one float32 array."""
    traced = tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32, "x")])
    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()]).convert())


def rules(content: bytes) -> dict[str, Finding]:
    return {one.target: one for one in npu.by_rules(read_graph(content, "a"))}


# Measured -------------------------------------------------------------------------------------------------------------


def test_xnnpack_is_measured_and_what_it_leaves_is_named(path: Path) -> None:  # noqa: F811
    found = finding(inspect(path), "XNNPACK")
    whole = "float" in path.parent.name
    assert (found.basis, found.takes_whole, found.figures["partitions"]) == ("measured here", whole, 1)
    assert [one.text.split()[0] for one in found.reasons] == ([] if whole else ["QUANTIZE", "SOFTMAX", "QUANTIZE"])


def test_xnnpack_is_cut_by_a_slice_and_the_slice_is_named() -> None:
    content = converted(lambda x: tf.nn.relu(tf.nn.relu(x)[:, ::2, ::2] * 2.0))
    found = npu.by_xnnpack(read_graph(content, "a"), probe(content, "a"))
    assert found.figures["partitions"] == 2
    assert ["STRIDED_SLICE" in one.text for one in found.reasons] == [True]


def test_without_arms_compiler_its_finding_says_how_to_get_it(
    path: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    content = path.read_bytes()
    found = npu.by_vela(content, read_graph(content, "a"), "a")
    assert [(one.takes_whole, one.basis) for one in found] == [(None, "not run here")] * 2
    assert "keras-resnet-edge[npu]" in found[0].remarks[0].text


@pytest.mark.skipif(not HAS_VELA, reason="Arm's compiler is an extra of its own: pip install ethos-u-vela")
def test_arms_compiler_takes_int8_whole_and_float_not_at_all(path: Path) -> None:  # noqa: F811
    content = path.read_bytes()
    for found in npu.by_vela(content, read_graph(content, "a"), "a"):
        assert found.basis == "compiled here, estimates of vela"
        if "float" in path.parent.name:
            assert (found.takes_whole, found.figures) == (False, {})
            assert len(found.reasons) == len(read_graph(content, "a").operations)
        else:
            assert (found.takes_whole, found.reasons) == (True, ())
            assert found.figures["cycles"] > 1000
            assert found.figures["sram_kib"] > 3  # the picture alone: 32 x 32 x 3 bytes


@pytest.mark.skipif(not HAS_VELA, reason="Arm's compiler is an extra of its own: pip install ethos-u-vela")
def test_a_file_that_arms_compiler_refuses_is_not_known(path: Path) -> None:  # noqa: F811
    [found, _] = npu.by_vela(b"no file", read_graph(path.read_bytes(), "a"), "a")
    assert found.takes_whole is None
    assert found.remarks[0].text.startswith("vela failed with code")


# Documented -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", DOCUMENTED)
def test_every_target_has_a_source_and_says_that_nothing_was_run(target: str, path: Path) -> None:  # noqa: F811
    found = rules(path.read_bytes())[target]
    assert found.basis == "documented, not run"
    assert found.sources
    assert all(source.startswith("https://") for source in found.sources)


# The length of each list, counted in its source; of Google Tensor what is left when the refused ones are taken away.
COUNTS = {"GPU": 80, "Qualcomm": 75, "MediaTek": 45, "Google Tensor": None, "Edge TPU": 40}


@pytest.mark.parametrize("target", DOCUMENTED)
def test_every_name_in_a_list_is_that_of_an_operation(target: str, path: Path) -> None:  # noqa: F811
    """A misspelt name would refuse what it should let through, and no file of ours might show it."""
    kinds = [kind for kind in vars(schema.BuiltinOperator) if not kind.startswith("_")]
    graph = read_graph(path.read_bytes(), "a")
    values = {field.name: getattr(graph.operations[0], field.name) for field in fields(graph.operations[0])}
    taken = 0
    for kind in kinds:
        one = type(graph.operations[0])(**{**values, "kind": kind})
        lone = type(graph)(graph.inputs, graph.outputs, (one,), (), {}, {})
        taken += not list(npu.TARGETS[target][0].broken_by(lone))
    expected = next(count for name, count in COUNTS.items() if target.startswith(name))
    assert taken == (len(kinds) - 41 if expected is None else expected)


def test_a_strided_slice_is_refused_where_its_steps_are_not_one() -> None:
    found = rules(converted(lambda x: x[:, ::2, ::2]))["Edge TPU (Coral)"]
    assert any("STRIDED_SLICE" in one.text and "steps over values" in one.text for one in found.reasons)
    found = rules(converted(lambda x: x[:, 1:5, 1:5]))["Edge TPU (Coral)"]
    assert not any("steps over values" in one.text for one in found.reasons)


def test_a_float_tensor_in_a_file_of_bytes_is_refused_by_the_edge_tpu(path: Path) -> None:  # noqa: F811
    if "float" in path.parent.name:
        pytest.skip("for the file of bytes")

    def float_sum(model: Any) -> None:
        tensor(model, "ADD", 0).type = schema.TensorType.FLOAT32

    assert rules(path.read_bytes())["Edge TPU (Coral)"].takes_whole
    found = rules(edited(path.read_bytes(), float_sum))["Edge TPU (Coral)"]
    assert any(one.text.startswith("ADD") and one.text.endswith("works on float32") for one in found.reasons)


def test_a_dynamic_shape_is_refused_where_that_is_documented_and_unverified_elsewhere(tmp_path: Path) -> None:
    content = converted(tf.nn.relu, (None, 8, 8, 4))
    found = rules(content)
    assert any("dynamic shape" in one.text for one in found["Edge TPU (Coral)"].reasons)
    other = found["GPU (LiteRT delegate)"]
    assert other.takes_whole
    assert any("dynamic shape" in one.text and "no first-hand source" in one.text for one in other.remarks)
    (tmp_path / "a.tflite").write_bytes(content)
    assert inspect(tmp_path / "a.tflite").inputs == {"x": "float32 [1, 8, 8, 4] (dynamic)"}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: tf.pad(x, [[0, 1], [0, 0], [0, 0], [0, 0]]), "pads the batch"),
        (lambda x: tf.reduce_mean(x, 0), "is over the batch"),
        (lambda x: tf.nn.softmax(x), "one axis of 16,000 at most"),
        (lambda x: tf.nn.relu(tf.nn.max_pool2d(x, 2, 2, "VALID")), "has a fused activation"),
        (lambda x: tf.stack([x, x]), "outside the three inner axes"),
        (tf.math.sin, "SIN 'Identity' is not in its list"),
    ],
)
def test_what_breaks_a_rule_of_the_edge_tpu_is_named(function: Callable[[Any], Any], said: str) -> None:
    found = rules(converted(function))["Edge TPU (Coral)"]
    assert any(said in one.text for one in found.reasons), found.reasons


def test_what_keeps_the_rules_of_the_edge_tpu_is_not_named() -> None:
    def function(x: Any) -> Any:
        x = tf.pad(tf.nn.max_pool2d(x, 2, 2, "VALID"), [[0, 0], [1, 1], [1, 1], [0, 0]])
        return tf.nn.softmax(tf.reduce_mean(x, [1, 2]))

    found = rules(converted(function))["Edge TPU (Coral)"]
    assert all(one.text.endswith("works on float32") for one in found.reasons), found.reasons


def test_convolutions_in_groups_are_unverified_where_no_source_names_them() -> None:
    kernel = np.ones((3, 3, 2, 4), np.float32)
    found = rules(converted(lambda x: tf.nn.conv2d(x, kernel, 1, "SAME")))
    assert any("is in groups" in one.text for one in found["Edge TPU (Coral)"].remarks)
    assert not any("is in groups" in one.text for one in found["GPU (LiteRT delegate)"].remarks)


@pytest.mark.parametrize("kind", ["CONV_2D", "PAD", "MEAN", "SOFTMAX"])
def test_a_shape_that_is_left_open_breaks_no_rule_and_no_reader(kind: str, path: Path) -> None:  # noqa: F811
    def shapeless(model: Any) -> None:
        tensor(model, kind, 0).shape = None

    assert rules(edited(path.read_bytes(), shapeless))["GPU (LiteRT delegate)"].takes_whole


def test_custom_operations_are_taken_by_no_target(path: Path, tmp_path: Path) -> None:  # noqa: F811
    def custom(model: Any) -> None:
        code = model.operatorCodes[operation(model, "SOFTMAX").opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = "FlexErf"

    (tmp_path / "a.tflite").write_bytes(edited(path.read_bytes(), custom))
    found = inspect(tmp_path / "a.tflite")
    assert found.operations["FlexErf"] == 1
    for one in found.targets:
        assert one.takes_whole is not True
        assert one.takes_whole is None or any("FlexErf" in reason.text for reason in one.reasons)


# What a file is -------------------------------------------------------------------------------------------------------


def test_an_exported_file_says_what_it_is_and_what_it_wants(path: Path) -> None:  # noqa: F811
    found = inspect(path)
    whole = "float" in path.parent.name
    assert list(found.inputs) == ["image"]
    assert found.inputs["image"].startswith("float32 [1, 32, 32, 3]" if whole else "uint8 [1, 32, 32, 3], scale 1")
    assert found.pixels.startswith("raw, 0 to 255")
    assert found.numbers.startswith("weights float32; values float32" if whole else "weights int8, a scale a channel")
    assert (found.labels, found.has_metadata, found.size_bytes) == (5, True, path.stat().st_size)
    assert found.manifest is not None
    assert found.manifest["model"]["name"] == "resnet18"


def test_a_foreign_file_does_not_say_what_it_wants(path: Path, tmp_path: Path) -> None:  # noqa: F811
    def bare(model: Any) -> None:
        model.metadata = []

    file = tmp_path / "a.tflite"
    file.write_bytes(edited(path.read_bytes(), bare))
    found = inspect(file)
    assert (found.manifest, found.labels, found.has_metadata) == (None, 0, False)
    assert found.pixels.startswith("not said in the file" if "float" in path.parent.name else "raw, 0 to 255, as bytes")
    content = path.read_bytes()
    file.write_bytes(content[: content.index(b"PK\x03\x04")])  # the metadata stays, the files behind it go
    assert inspect(file).pixels == "raw, 0 to 255: it normalises by itself, its metadata says"


def test_the_command_prints_what_the_function_returns(path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{inspect(path)}\n"
    assert shown.err == ""
    assert all(word in shown.out for word in ("documented, not run", "measured here", "https://coral.ai/"))
    assert ("not run here" in shown.out) is not HAS_VELA
    assert max(map(len, shown.out.splitlines())) < 400
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(inspect(path).as_json()))


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["nowhere.tflite"], "'nowhere.tflite' is no .tflite file and no .mlpackage", 1),
        (["nowhere.mlpackage"], "'nowhere.mlpackage' is no .mlpackage folder", 1),
        (["BAD.tflite"], "bad.tflite' is no whole .tflite file: it does not begin as one", 1),
        (["nowhere.tflite", "--layers"], "--layers is for a network", 2),
        (["nowhere.tflite", "--calibration", "x"], "--calibration is for a .mlpackage", 2),
        (["resnet18", "--calibration", "x"], "--calibration is for a .mlpackage", 2),
    ],
)
def test_a_wrong_file_or_option_is_one_line(
    arguments: list[str], said: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.tflite").write_bytes(b"no file")
    given = [argument.replace("BAD", str(tmp_path / "bad")) for argument in arguments]
    assert cli.main(["inspect", *given]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


# The Neural Engine ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("package") / "a.mlpackage"
    return to_coreml(network("basic"), target, quantize="float16", labels=list("vwxyz")).path


def test_a_package_says_what_it_is(package: Path) -> None:
    found = inspect(package, calibration=images_of(photographs(8)))
    assert found.inputs == {"image": "image, RGB 32 x 32"}
    assert set(found.outputs) == {"classLabel", "classLabel_probs"}
    assert found.pixels.startswith("raw, 0 to 255")
    assert (found.labels, found.operations["conv"], found.operations["classify"]) == (5, 6, 1)
    [engine] = found.targets
    assert (engine.takes_whole, engine.basis) == (True, "documented, not run")
    assert all(one.source.startswith("https://apple.github.io/") for one in engine.remarks if one.source)
    assert any("iOS 16" in one.text for one in engine.remarks)
    assert any("no first-hand source" in one.text for one in engine.remarks)
    assert "unverified: " in str(found)


def engine(body: Callable[[Any], Any], path: Path, **options: Any) -> Finding:  # noqa: F811
    """What is said of a package of one image in, as the body computes it, in float16."""
    program = mb.program(input_specs=[mb.TensorSpec(shape=(1, 8, 8, 3))], opset_version=ct.target.iOS17)(body)
    settings = {"minimum_deployment_target": ct.target.iOS17, **options}
    ct.convert(program, convert_to="mlprogram", skip_model_load=True, **settings).save(str(path))
    return inspect(path).targets[0]


KERNEL = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)


def convolution(scale: float = 1, **settings: Any) -> Callable[[Any], Any]:
    return lambda x: last(mb.conv(x=first(x), weight=KERNEL * scale, **settings))


def test_what_the_engine_cannot_hold_or_compute_is_named(tmp_path: Path) -> None:
    assert engine(convolution(), tmp_path / "a.mlpackage").takes_whole
    wide = engine(convolution(), tmp_path / "b.mlpackage", compute_precision=ct.precision.FLOAT32)
    assert not wide.takes_whole
    assert "1 layers compute in float32" in wide.reasons[0].text
    large = engine(convolution(1e6), tmp_path / "c.mlpackage")
    assert not large.takes_whole
    assert any("weight of conv" in one.text and "float16 ends at 65504" in one.text for one in large.reasons)
    dilated = engine(convolution(dilations=[2, 2]), tmp_path / "d.mlpackage")
    assert dilated.takes_whole
    assert any("dilated" in one.text and not one.source for one in dilated.remarks)


def test_operations_that_the_replay_lacks_are_shown_all_the_same(tmp_path: Path) -> None:
    engine(lambda x: mb.erf(x=x), tmp_path / "a.mlpackage")
    found = inspect(tmp_path / "a.mlpackage")
    assert found.operations["erf"] == 1
    [whole] = found.targets
    assert whole.takes_whole is None  # nothing is known of it
    assert any("whether it takes the operation 'erf' is not known" in one.text for one in whole.remarks)
    with pytest.raises(InputError, match="holds the operation 'erf'"):
        inspect(tmp_path / "a.mlpackage", calibration=images_of(photographs(2, 8)))


def test_values_that_overflow_on_images_are_named(tmp_path: Path) -> None:
    engine(convolution(1000), tmp_path / "a.mlpackage")
    found = open_package(tmp_path / "a.mlpackage")
    pixels = photographs(2, 8)
    largest = neural_engine.peaks_of(found, pixels)
    assert np.isinf(max(largest.values()))  # 255 x 1000 is beyond float16
    reasons = neural_engine.by_neural_engine(found, 1, largest).reasons
    assert any("reaches inf, float16 ends at 65504" in one.text for one in reasons)
    assert neural_engine.by_neural_engine(found, 2_000_000_000, {}).reasons[0].text.startswith("larger than 1 GB")


def test_eight_bit_activations_pay_from_newer_phones_on(tmp_path: Path) -> None:
    steps = {"scale": np.float32(1), "zero_point": np.int8(0)}
    found = engine(
        lambda x: mb.dequantize(input=mb.quantize(input=x, output_dtype="int8", **steps), **steps),
        tmp_path / "a.mlpackage",
    )
    assert any("A17 Pro and M4" in one.text for one in found.remarks)
    assert inspect(tmp_path / "a.mlpackage").numbers.endswith("values int8 between layers")


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_packages_are_refused_or_answer_in_every_verb(count: int, package: Path, tmp_path: Path) -> None:
    from keras_resnet.export import predict

    model, images = network("basic"), images_of(photographs(2))
    tf.keras.utils.save_img(tmp_path / "a.png", photographs(1)[0])
    verbs = {
        "inspect": inspect,
        "verify": lambda file: verify(file, model, images),
        "predict": lambda file: predict(file, [tmp_path / "a.png"]),
    }
    refused = fuzz_file(package, range(count), verbs, tmp_path)
    assert all(times > count / 3 for times in refused.values()), refused
