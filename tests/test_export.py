"""From a network to a file: folding, TFLite, Core ML, calibration, artifacts, verification, the report page."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet import freeze
from keras_resnet.errors import ExportError, InputError, MissingExtraError, UsageError
from keras_resnet.export import Artifact, converter, report, to_coreml, to_tflite, verify
from keras_resnet.export.artifact import sha256_of, size_of
from keras_resnet.export.calibration import calibration_pixels
from keras_resnet.export.concrete import (
    Normalisation,
    concrete_function,
    exact_normalisation,
    fold,
    integer_normalisation,
    open_model,
)
from keras_resnet.export.coreml import convert as convert_to_coreml
from keras_resnet.export.latency import Latency
from keras_resnet.export.metadata import check_labels
from keras_resnet.export.noise import as_input, layer_noise
from keras_resnet.export.npu import by_rules
from keras_resnet.export.probe import probe
from keras_resnet.export.tflite import FORMS, build, prepare
from keras_resnet.export.tflite_graph import Graph, Operation, read_graph
from keras_resnet.export.verification import TfliteFile, compare
from keras_resnet.preprocessing import CAFFE, IMAGENET, SYMMETRIC, Preprocessing, preprocess_input, preprocessing_of
from keras_resnet.specs import VARIANTS, spec_of
from keras_resnet.training import Images, open_images
from keras_resnet.training.evaluation import scores_of
from tests.pictures import colour_folder

pytestmark = pytest.mark.usefixtures("converter_here")
SIDE = 32
SMALL = {"depths": (1, 1), "widths": (8, 16), "classes": 5, "input_shape": (SIDE, SIDE, 3)}
FAMILY: dict[str, dict[str, Any]] = {
    "basic": {"variant": "resnet18", **SMALL},
    "bottleneck": {"variant": "resnet50", **SMALL},
    "grouped": {"variant": "resnet50", **SMALL, "groups": 4, "width_per_group": 32},
    "wide": {"variant": "wide_resnet50_2", **SMALL},
    "stride on 1x1": {"variant": "resnet50_v1", **SMALL},
    "pre-activation": {"variant": "resnetv2_50", **SMALL},
    "pre-activation, stride last": {"variant": "resnet50_v2", **SMALL, "depths": (2, 2)},
    "shortcut A": {"variant": "cifar_resnet20", **SMALL},
    "shortcut C": {"variant": "cifar_resnet20", **SMALL, "shortcut": "C"},
    "highway": {"variant": "cifar_resnet20", **SMALL, "shortcut": "highway"},
    "plain": {"variant": "cifar_plain20", **SMALL},
    "same padding": {"variant": "cifar_resnet8", "classes": 5, "input_shape": (SIDE, SIDE, 3)},
}
FLOAT_NOISE = 2e-5  # of probabilities: float32 sums in another order


IN_A_PROCESS_OF_ITS_OWN = converter.run


def convert_here(folder: Path) -> tuple[int, str]:
    converter.convert_folder(folder)
    return 0, ""


@pytest.fixture
def converter_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter runs in the test's own process: starting TensorFlow takes longer than most conversions."""
    monkeypatch.setattr(converter, "run", convert_here)


def network(member: str, **changes: Any) -> keras.Model:
    """A small member of the family with random weights and random BatchNormalization statistics."""
    options = {**FAMILY[member], **changes}
    model = keras_resnet.build(options.pop("variant"), **options)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(
                [rng.uniform(low, high, w.shape) for w, (low, high) in zip(layer.weights, BATCH_NORM, strict=True)]
            )
    return model


BATCH_NORM = ((0.5, 1.5), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5))  # gamma, beta, moving mean, moving variance


def photographs(count: int = 8, side: int = SIDE, seed: int = 1) -> np.ndarray:
    """Noise with large and small structure, uint8 [count, side, side, 3], that spans 0..255."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).repeat(side // 4, 1).repeat(side // 4, 2)
    pixels = np.clip(coarse + rng.normal(0, 20, (count, side, side, 3)), 0, 255).astype(np.uint8)
    pixels[:, 0, 0], pixels[:, -1, -1] = 0, 255
    return pixels


def images_of(pixels: np.ndarray, classes: int = 5) -> Images:
    from PIL import Image

    labels = np.arange(len(pixels)) % classes
    return Images("noise", tuple(f"c{i}" for i in range(classes)), labels, list(pixels), Image.fromarray)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize("preprocessing", [IMAGENET, CAFFE, SYMMETRIC], ids=["torchvision", "caffe", "tf"])
@pytest.mark.parametrize("name", ["basic", "pre-activation", "same padding"])
def test_the_folded_network_answers_as_the_network_does_on_pixels(name: str, preprocessing: Preprocessing) -> None:
    fitting = dataclasses.replace(preprocessing, resize=0, crop=SIDE)
    model = network(name, preprocessing=fitting)
    pixels = photographs(3)
    normalisation = exact_normalisation(fitting)
    function = concrete_function(fold(model, normalisation), normalisation)
    ours = [function(image[None].astype(np.float32))["scores"][0] for image in pixels]
    np.testing.assert_allclose(ours, model.predict(preprocess_input(pixels, model), verbose=0), atol=FLOAT_NOISE)


def test_an_integer_shift_is_exact_where_no_padding_is_seen_and_much_nearer_than_black_where_it_is() -> None:
    model = keras_resnet.build("resnet18", include_top=False, input_shape=(64, 64, 3), depths=(1,), widths=(8,))
    pixels = photographs(1, 64)
    stem = keras.Model(model.inputs[0], model.get_layer("stem_conv").output)
    wanted = stem.predict(preprocess_input(pixels, model), verbose=0)[0]
    errors = {}
    black = Normalisation((0.0,) * 3, (1.0,) * 3)
    for name, normalisation in (("integer", integer_normalisation(IMAGENET)), ("black", black)):
        copy = fold(model, normalisation)
        cut = keras.Model(copy.inputs[0], copy.get_layer("stem_conv").output)
        x = (pixels.astype(np.float32) - np.float32(normalisation.shift)) * np.float32(normalisation.scale)
        error = np.abs(cut(x).numpy()[0] - wanted)
        assert error[2:-2, 2:-2].max() < 1e-4 * np.abs(wanted).max()  # a 7x7 stem sees padding in two rows
        errors[name] = rms(error)
    assert integer_normalisation(IMAGENET).shift == (114.0, 114.0, 114.0)  # 255 times the mean of .485 .456 .406
    assert errors["integer"] < 0.1 * errors["black"]


def test_a_network_trained_in_mixed_precision_folds_to_float32() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network("basic")
    finally:
        keras.config.set_dtype_policy("float32")
    copy = fold(model, exact_normalisation(IMAGENET))
    assert {layer.compute_dtype for layer in copy.layers} == {"float32"}


QUICK = ("basic", "bottleneck", "pre-activation, stride last", "highway")  # int8 takes the whole family there too


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILY]
)
def test_float_files_of_every_family_answer_as_the_network_does(name: str, tmp_path: Path) -> None:
    model, pixels = network(name), photographs(4)
    to_tflite(model, tmp_path / "a.tflite", quantize="float32", data=images_of(pixels))
    file = TfliteFile(tmp_path / "a.tflite", "a")
    np.testing.assert_allclose(file.scores(pixels), scores_of(model)(pixels), atol=FLOAT_NOISE)


@pytest.mark.parametrize("name", FAMILY)
def test_int8_files_of_every_family_hold_integers_alone_and_take_raw_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pixels = network(name), photographs(8)
    # Random networks answer nearly alike on everything, so agreement of the best class says nothing about them.
    monkeypatch.setattr("keras_resnet.export.verification.MIN_AGREEMENT", 0.0)
    to_tflite(model, tmp_path / "a.tflite", quantize="int8", calibration=images_of(pixels))
    file = TfliteFile((tmp_path / "a.tflite").read_bytes(), "a")
    assert file.input["dtype"] is np.uint8
    assert file.output["dtype"] is np.uint8
    assert file.input["quantization"] == (1.0, 0)
    assert file.float_tensors == []
    wanted = scores_of(model)(pixels)
    assert rms(file.scores(pixels) - wanted) < 0.1 * max(rms(wanted), 0.1)
    graph, coverage = read_graph(file.content, "a"), probe(file.content, "a")
    assert coverage.partitions == 1
    assert [graph.operations[place].kind for place in coverage.outside] == ["QUANTIZE", "SOFTMAX", "QUANTIZE"]
    assert needless_pads(graph) == []
    # Nothing that is documented speaks against a network of ours on any target.
    assert all(finding.takes_whole for finding in by_rules(graph))


def test_a_file_that_takes_int8_answers_as_one_that_takes_bytes() -> None:
    model, pixels = network("basic"), photographs(4)
    form = FORMS["int8"]
    prepared = prepare(model, preprocessing_of(model), form, pixels, effort="low")
    files = [
        TfliteFile(build(prepared, dataclasses.replace(form, border=border)), border) for border in ("uint8", "int8")
    ]
    assert [file.input["dtype"] for file in files] == [np.uint8, np.int8]
    np.testing.assert_array_equal(files[0].scores(pixels), files[1].scores(pixels))
    noise = [layer_noise(file.content, model, pixels[:2]) for file in files]
    assert noise[0] == noise[1] != {}
    narrow = {"dtype": np.int8, "quantization": (0.5, -128)}  # which holds no more than 0 to 127.5
    np.testing.assert_array_equal(as_input(np.uint8([0, 1, 127, 128, 255]), narrow), [-128, -126, 126, 127, 127])


def needless_pads(graph: Graph) -> list[str]:
    """Paddings of rows and columns that each convolution that reads them could do by itself, as padding SAME."""
    found = []
    for pad in graph.operations:
        if pad.kind != "PAD" or (sides := pad.inputs[1].value) is None or sides[[0, 3]].any():
            continue
        readers = [one for one in graph.operations if pad.outputs[0] in one.inputs]
        if all(reader.kind in ("CONV_2D", "DEPTHWISE_CONV_2D") and is_same(pad, reader, sides) for reader in readers):
            found.append(str(pad))
    return found


def is_same(pad: Operation, reader: Operation, sides: np.ndarray) -> bool:
    before, padded, after = pad.inputs[0].shape, pad.outputs[0].shape, reader.outputs[0].shape
    kernel = reader.inputs[1].shape
    for axis in (1, 2):
        steps = [s for s in (1, 2) if (padded[axis] - kernel[axis]) // s + 1 == after[axis]]
        total = [max((after[axis] - 1) * s + kernel[axis] - before[axis], 0) for s in steps]
        same = [
            s
            for s, t in zip(steps, total, strict=True)
            if after[axis] == -(-before[axis] // s) and sides[axis].tolist() == [t // 2, t - t // 2]
        ]
        if not same:
            return False
    return True


STRUCTURE = ("block", "stem", "pool_padding", "padding", "stride_on", "stride_block", "shortcut", "preactivation")


@pytest.mark.parametrize("field", STRUCTURE)
def test_each_structure_of_the_table_is_in_the_family(field: str) -> None:
    family = {getattr(spec_of(row["variant"]), field) for row in FAMILY.values()}
    family |= {row[field] for row in FAMILY.values() if field in row}
    assert family >= {getattr(spec, field) for spec in VARIANTS.values()}


@pytest.mark.parametrize("quantize", ["float16", "dynamic"])
def test_other_forms_answer_nearly_as_the_network_does(quantize: str, tmp_path: Path) -> None:
    model, pixels = network("basic"), photographs(4)
    artifact = to_tflite(model, tmp_path / "a.tflite", quantize=quantize, data=images_of(pixels))
    whole = to_tflite(model, tmp_path / "b.tflite", quantize="float32", data=images_of(pixels))
    assert np.abs(TfliteFile(artifact.path, "a").scores(pixels) - scores_of(model)(pixels)).max() < 0.02
    assert size_of(artifact.path) < 0.8 * size_of(whole.path)


def test_an_artifact_is_a_file_with_its_labels_manifest_and_page(tmp_path: Path) -> None:
    pixels = photographs(10)
    artifact = to_tflite(network("basic"), tmp_path / "new" / "a.tflite", quantize="float32", data=images_of(pixels))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "a.html",
        "a.json",
        "a.labels.txt",
        "a.tflite",
    ]
    manifest = artifact.read()
    assert manifest["sha256"] == sha256_of(artifact.path)
    assert manifest["size_bytes"] == artifact.path.stat().st_size
    assert manifest["accuracy_verified"] is True
    assert manifest["verification"]["count"] == 10
    assert artifact.labels.read_text().splitlines() == [f"c{i}" for i in range(5)] == manifest["labels"]
    assert "a.tflite" in artifact.report.read_text()


def test_without_labelled_images_the_manifest_says_that_accuracy_is_not_verified(tmp_path: Path) -> None:
    artifact = to_tflite(network("basic"), tmp_path / "a.tflite", quantize="float32")
    assert artifact.read()["accuracy_verified"] is False
    assert "not verified" in artifact.report.read_text()


def test_a_network_is_opened_from_a_file_or_a_variant_with_weights(tmp_path: Path) -> None:
    model = keras_resnet.build("cifar_resnet8")
    model.save(tmp_path / "a.keras")
    model.save_weights(tmp_path / "a.weights.h5")
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    for source in (model, tmp_path / "a.keras", f"cifar_resnet8:{tmp_path / 'a.weights.h5'}"):
        assert np.array_equal(open_model(source).predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize(
    "source", ["resnet18", "nowhere.keras", "resnet18:nowhere.weights.h5", "resnet51:a.weights.h5"]
)
def test_a_model_that_is_not_there_is_refused(source: str) -> None:
    with pytest.raises((UsageError, InputError)):
        open_model(source)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"quantize": "int4"}, UsageError, "unknown number format 'int4'"),
        ({"quantize": "int8"}, UsageError, "needs calibration="),
        ({"quantize": "float32", "labels": ["a", "b"]}, UsageError, "2 given for a network of 5 classes"),
        ({"quantize": "float32", "labels": list("abcda")}, UsageError, "'a' stands twice"),
    ],
)
def test_wrong_options_of_an_export_are_refused_and_nothing_is_written(
    options: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        to_tflite(network("basic"), tmp_path / "a.tflite", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export", [to_tflite, to_coreml])
def test_an_output_of_another_suffix_or_below_a_file_is_refused(export: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    suffix = ".tflite" if export is to_tflite else ".mlpackage"
    for path, error in ((tmp_path / "a.bin", UsageError), (tmp_path / "file" / f"a{suffix}", InputError)):
        with pytest.raises(error):
            export("resnet18", path)


def test_a_network_of_no_fixed_size_is_refused_with_what_to_do(tmp_path: Path) -> None:
    model = network("basic", input_shape=(None, None, 3))
    with pytest.raises(UsageError, match="one static size"):
        to_tflite(model, tmp_path / "a.tflite", quantize="float32")


def test_a_foreign_network_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3), keras.layers.GlobalMaxPooling2D()])
    with pytest.raises(InputError, match="carries no preprocessing"):
        to_tflite(model, tmp_path / "a.tflite", quantize="float32")


def test_a_file_that_does_not_agree_with_its_network_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keras_resnet.export.verification.MIN_AGREEMENT", 1.01)  # which no file reaches
    with pytest.raises(ExportError, match="agrees with its model on 100.0% of 6 images"):
        to_tflite(network("basic"), tmp_path / "a.tflite", quantize="float32", data=images_of(photographs(6)))
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_counts_agreement_and_accuracy() -> None:
    file = np.eye(3)[[0, 1, 2, 0]]
    model = np.eye(3)[[0, 1, 1, 1]] * 0.5
    found = compare(file, model, np.array([0, 1, 2, 1]), "four", Latency(1.0, 1.0, 1))
    assert (found.agreement, found.file_top1, found.model_top1) == (0.5, 0.75, 0.75)
    assert found.largest_score_difference == 1.0


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "page", interrupted)  # the last thing that is made, when the others lie there already
    with pytest.raises(KeyboardInterrupt):
        to_tflite(network("basic"), tmp_path / "a.tflite", quantize="float32")
    with pytest.raises(KeyboardInterrupt):
        to_coreml(network("basic"), tmp_path / "a.mlpackage")
    assert list(tmp_path.iterdir()) == []


def test_calibration_images_are_the_same_each_time(tmp_path: Path) -> None:
    folder = colour_folder(tmp_path / "c", size=(SIDE, SIDE))
    fitting = Preprocessing(resize=0, crop=SIDE)
    (sample, pixels), (again, same) = (calibration_pixels(folder, fitting, (SIDE, SIDE)) for _ in range(2))
    assert sample.hash == again.hash
    assert np.array_equal(pixels, same)


def test_verify_compares_a_file_with_its_network(tmp_path: Path) -> None:
    model, pixels = network("basic"), photographs(10)
    artifact = to_tflite(model, tmp_path / "a.tflite", quantize="float32")
    found = verify(artifact.path, model, images_of(pixels))
    assert (found.agreement, found.count) == (1.0, 10)
    head = model.get_layer("head_dense")
    head.set_weights([-weight for weight in head.get_weights()])
    with pytest.raises(ExportError, match=r"agrees with its model on .* most noise in head_dense"):
        verify(artifact.path, model, images_of(pixels))


@pytest.mark.parametrize("content", [b"", b"no model", b"\x1c\0\0\0TFL3" + bytes(100)])
def test_a_foreign_or_damaged_tflite_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tflite"):
        TfliteFile(tmp_path / "a.tflite", "a.tflite")


def test_a_manifest_that_is_absent_or_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable manifest"):
        Artifact(tmp_path / "a.tflite").read()
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="no readable manifest"):
        Artifact(tmp_path / "a.tflite").read()


def test_labels_default_to_numbers() -> None:
    assert check_labels(None, 3) == ("0", "1", "2")


@pytest.mark.parametrize("package", ["ai_edge_litert.interpreter", "coremltools"])
def test_a_missing_package_is_said_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    model = network("basic")
    with pytest.raises(MissingExtraError, match=r"keras-resnet-edge\[(tflite|coreml)\]"):
        if package == "coremltools":
            to_coreml(model, tmp_path / "a.mlpackage")
        else:
            to_tflite(model, tmp_path / "a.tflite", quantize="float32")
    assert list(tmp_path.iterdir()) == []


def test_a_core_ml_package_declares_an_image_in_and_labels_out(tmp_path: Path) -> None:
    import coremltools

    artifact = to_coreml(network("basic"), tmp_path / "a.mlpackage", labels=list("vwxyz"))
    spec = coremltools.models.MLModel(str(artifact.path), skip_model_load=True).get_spec()
    (image,) = spec.description.input
    assert image.name == "image"
    assert (image.type.imageType.width, image.type.imageType.height) == (SIDE, SIDE)
    assert {output.name for output in spec.description.output} == {"classLabel", "classLabel_probs"}
    assert artifact.labels.read_text().split() == list("vwxyz")
    assert artifact.read()["verification"] is None
    assert not [path for path in artifact.path.rglob("*") if not os.stat(path).st_mode & 0o044]


def test_core_ml_normalises_as_the_network_was_trained(tmp_path: Path) -> None:
    import coremltools

    whole = exact_normalisation(IMAGENET)
    asked = Normalisation(whole.shift, (1 / 255,) * 3)
    model = network("basic")
    package = convert_to_coreml(
        coremltools, concrete_function(fold(model, asked), None), asked, list("vwxyz"), "FLOAT32"
    )
    program = package._mil_program.functions["main"]
    first = {op.op_type: op for op in list(program.operations)[:12] if op.op_type in ("mul", "add")}
    np.testing.assert_allclose(first["mul"].y.val, 1 / 255, rtol=1e-6)
    np.testing.assert_allclose(np.ravel(first["add"].y.val), [-0.485, -0.456, -0.406], rtol=1e-6)


class Page(html.parser.HTMLParser):
    """Collects what a page needs from elsewhere, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows() -> None:
    text = report.page(
        "<script>alert(1)</script>",
        report.section("a", report.table(["<b>"], [["<i>x"]])),
        report.answers(photographs(1), ["<u>"], ["&"], [0.5]),
        report.pictures({"drawing": b"<svg/>"}),
    )
    assert "<script" not in text
    page = Page(text)
    assert page.sources
    assert all(source.startswith("data:") for source in page.sources)
    assert "<i>x" in page.text


def test_a_manifest_is_plain_json(tmp_path: Path) -> None:
    artifact = to_tflite(network("basic"), tmp_path / "a.tflite", quantize="float32")
    assert json.loads(artifact.manifest.read_text()) == artifact.read()


def test_the_digits_open_for_calibration() -> None:
    digits = open_images("digits")
    _, pixels = calibration_pixels(digits, Preprocessing(resize=SIDE, crop=SIDE), (SIDE, SIDE))
    assert pixels.shape == (100, SIDE, SIDE, 3)


def test_sidecars_of_another_file_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    model = network("basic")
    to_tflite(model, tmp_path / "a.tflite", quantize="float32")
    with pytest.raises(InputError, match=r"is there already and does not belong"):
        to_coreml(model, tmp_path / "a.mlpackage")
    to_tflite(model, tmp_path / "a.tflite", quantize="float32")  # its own it renews
    (tmp_path / "b.html").write_text("years of work")
    (tmp_path / "c.tflite").mkdir()
    for name in ("b", "c"):
        with pytest.raises(InputError, match=r"is there already"):
            to_tflite(model, tmp_path / f"{name}.tflite", quantize="float32")
    assert (tmp_path / "b.html").read_text() == "years of work"


@pytest.mark.parametrize("export", [to_tflite, to_coreml])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"include_top": False}, "has no classifier"),
        ({"input_shape": (SIDE, SIDE, 1)}, "takes 1 channels"),
        ({"input_shape": (None, None, 3)}, "one static size"),
    ],
)
def test_what_cannot_become_a_phone_file_is_refused(
    export: Any, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    suffix = ".tflite" if export is to_tflite else ".mlpackage"
    with pytest.raises(UsageError, match=said):
        export(network("basic", **changes), tmp_path / f"a{suffix}", quantize="float32")
    assert list(tmp_path.iterdir()) == []


def test_images_of_other_classes_than_the_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 4 classes \\(c0, c1, c2, c3\\), but the network tells 5 apart"):
        to_tflite(network("basic"), tmp_path / "a.tflite", quantize="float32", data=images_of(photographs(8), 4))


@pytest.mark.parametrize("labels", [["a\nb", *"cdef"], ["", *"abcd"], [1, 2, 3, 4, 5]])
def test_labels_that_are_no_text_on_one_line_are_refused(labels: list[Any]) -> None:
    with pytest.raises(UsageError, match="is no text on one line"):
        check_labels(labels, 5)


def test_equal_weights_have_an_equal_hash_in_the_manifest(tmp_path: Path) -> None:
    model = network("basic")
    model.save(tmp_path / "m.keras")
    hashes = {
        to_tflite(source, tmp_path / f"{i}.tflite", quantize="float32").read()["model"]["weights_sha256"]
        for i, source in enumerate((model, tmp_path / "m.keras"))
    }
    assert len(hashes) == 1


def test_a_network_with_frozen_layers_is_exported_like_any_other(tmp_path: Path) -> None:
    model, pixels, answers = network("basic"), photographs(8), []
    for frozen in (False, True):
        if frozen:
            freeze(model, through="stage1_block1")
        path = tmp_path / f"{frozen}.tflite"
        to_tflite(model, path, calibration=images_of(pixels), min_agreement=0)
        answers.append(TfliteFile(path, "a").scores(pixels))
    np.testing.assert_array_equal(*answers)
