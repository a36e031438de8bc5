"""What a file answers with: softmax, sigmoid, logits, or an embedding, in both formats and every verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnet
from keras_resnet.errors import ExportError, InputError, UsageError
from keras_resnet.export import Similarity, compress, inspect, predict, self_test, to_coreml, to_tflite, usage, verify
from keras_resnet.export.answers import answering
from keras_resnet.export.calibration import PROBABILITIES
from keras_resnet.export.concrete import answers_with
from keras_resnet.export.golden import cosines, record, replay
from keras_resnet.export.graph import simplify
from keras_resnet.export.mil import open_package
from keras_resnet.export.prediction import open_answerer
from keras_resnet.export.tflite_metadata import associated_files
from keras_resnet.export.verification import TfliteFile, check_agreement, compare_embeddings
from keras_resnet.layers import Bound
from keras_resnet.preprocessing import preprocessing_of
from keras_resnet.training.evaluation import scores_of
from tests.test_export import SIDE, converter_here, images_of, network, photographs, rms  # noqa: F401

pytestmark = pytest.mark.usefixtures("converter_here")
FORMS = ("softmax", "sigmoid", "logits")
LAST_OPERATION = {"softmax": "SOFTMAX", "sigmoid": "LOGISTIC", "logits": "FULLY_CONNECTED"}


def embedding(name: str = "basic", **changes: Any) -> keras.Model:
    return network(name, include_top=False, pooling="avg", **changes)


def logits_of(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    head = model.get_layer("head_dense")
    pooled = scores_of(keras.Model(model.input, head.input))(pixels)
    return np.asarray(pooled @ head.kernel.numpy() + head.bias.numpy())


def expected(form: str, logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return {"logits": logits, "sigmoid": 1 / (1 + np.exp(-logits)), "softmax": powers / powers.sum(-1, keepdims=True)}[
        form
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("own", ["softmax", "sigmoid", None])
def test_a_classifier_answers_in_any_form_whatever_its_own_is(own: str | None, form: str) -> None:
    model, pixels = network("basic", classifier_activation=own), photographs(4)
    changed = answering(model, form)
    assert answers_with(changed) == form
    np.testing.assert_allclose(scores_of(changed)(pixels), expected(form, logits_of(model, pixels)), atol=1e-5)
    simple = simplify(keras.models.clone_model(changed))
    assert answers_with(simple) == form
    assert answers_with(answering(model, None)) == (own or "softmax")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("own", ["softmax", "linear"])
def test_a_network_that_was_trained_for_whole_numbers_keeps_its_ranges_in_any_form(own: str, form: str) -> None:
    pooled = keras.layers.GlobalAveragePooling2D()(image := keras.Input((4, 4, 3)))
    x = Bound(-3.0, 4.0, name="head_dense_bound")(keras.layers.Dense(5, name="head_dense")(pooled))
    if own == "softmax":
        x = keras.layers.Activation("softmax", name="head_dense_activation")(x)
        x = Bound(*PROBABILITIES, name="head_dense_activation_bound")(x)
    found = answering(keras.Model(image, x), form)
    bounds = [(layer.low, layer.high) for layer in found.layers if isinstance(layer, Bound)]
    assert bounds == [(-3.0, 4.0), *([] if form == "logits" else [PROBABILITIES])]
    assert answers_with(found) == form


def test_a_file_moved_alone_still_knows_its_labels_and_what_its_images_need(tmp_path: Path) -> None:
    model = network("basic")
    path = to_tflite(model, tmp_path / "a.tflite", quantize="float16", labels=list("vwxyz")).path
    (tmp_path / "alone").mkdir()
    answerer = open_answerer(path.rename(tmp_path / "alone" / "b.tflite"))
    assert answerer.labels == tuple("vwxyz")
    assert answerer.preprocessing == preprocessing_of(model)


@pytest.mark.parametrize("form", FORMS)
def test_an_int8_file_gives_what_was_asked_for_and_tests_itself(form: str, tmp_path: Path) -> None:
    model, pixels = network("basic", preprocessing=None), photographs(16)
    path = to_tflite(
        model, tmp_path / "a.tflite", scores=form, calibration=images_of(pixels), min_agreement=0, effort="low"
    ).path
    file = TfliteFile(path, "a")
    wanted = expected(form, logits_of(model, pixels))
    assert rms(file.scores(pixels) - wanted) < 0.1 * rms(wanted)
    assert file.answers == form
    assert list(inspect(path).operations)[-1:] == ["QUANTIZE"] or LAST_OPERATION[form] in inspect(path).operations
    assert self_test(path).passed
    manifest = json.loads(associated_files(path.read_bytes(), "a")["manifest.json"])
    assert (manifest["answers"], manifest["contract"]["output"]) == (form, {"scores": "[1, 5]"})
    # `verify` brings the network, which ends in softmax, to the form of the file.
    found = verify(path, model, images_of(photographs(6, seed=2)), min_agreement=0)
    assert found.largest_score_difference < 0.25 * max(np.ptp(wanted), 0.2)  # logits reach 4, probabilities 1
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    best = predict(path, [tmp_path / "a.png"])[0].answers
    assert 0 < best[0].score <= 1
    if form != "sigmoid":
        assert sum(answer.score for answer in best) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("form", "interface"),
    [("softmax", "vector"), ("softmax", "arrays"), ("sigmoid", "classifier"), ("logits", "vector")],
)
def test_a_package_gives_what_was_asked_for(form: str, interface: str, tmp_path: Path) -> None:
    import coremltools

    model, pixels = network("basic"), photographs(6)
    path = tmp_path / "a.mlpackage"
    manifest = to_coreml(model, path, scores=form, interface=interface, data=images_of(pixels), min_agreement=0).read()
    package = open_package(path)
    np.testing.assert_allclose(package.answer(pixels), expected(form, logits_of(model, pixels)), atol=0.01)
    assert (package.answers, package.is_pixels) == (form, interface != "arrays")
    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    outputs = {output.name for output in spec.description.output}
    assert outputs == ({"classLabel", "classLabel_probs"} if interface == "classifier" else {"scores"})
    assert outputs == set(manifest["contract"]["output"])
    (given,) = spec.description.input
    assert given.name == "image"
    assert given.type.WhichOneof("Type") == ("multiArrayType" if interface == "arrays" else "imageType")
    # What is done to pixels is done in float32, whatever the rest is computed in.
    assert all(step.dtype == np.float32 for step in package.steps[:2])
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    best = predict(path, [tmp_path / "a.png"])[0].answers[0]
    assert best.name.startswith("c")  # of the labels: inside a classifier, beside the others
    assert 0 < best.score <= 1


@pytest.mark.parametrize("quantize", ["float16", "int8"])
def test_an_embedding_file_is_near_its_network_and_needs_no_labels(quantize: str, tmp_path: Path) -> None:
    model, pixels = embedding(), photographs(16)
    artifact = to_tflite(model, tmp_path / "a.tflite", quantize=quantize, calibration=images_of(pixels), effort="low")
    manifest, file = artifact.read(), TfliteFile(artifact.path, "a")
    assert manifest["contract"]["output"] == {"embedding": "[1, 16]"}
    assert (manifest["labels"], artifact.labels.exists(), manifest["accuracy_verified"]) == ([], False, False)
    assert "labels.txt" not in associated_files(file.content, "a")
    assert list(inspect(artifact.path).outputs) == ["embedding"]
    assert (quantize == "int8") == (file.float_tensors == [])
    assert cosines(file.scores(pixels), scores_of(model)(pixels)).min() > 0.99
    found = verify(artifact.path, model, images_of(photographs(9, seed=2), classes=3))  # of any classes
    assert isinstance(found, Similarity)
    assert found.worst_cosine <= found.mean_cosine <= 1
    assert self_test(artifact.path).passed
    assert "cosine similarity, worst" in artifact.report.read_text()


@pytest.mark.parametrize("interface", [None, "arrays"])
def test_an_embedding_package_gives_the_features(interface: str | None, tmp_path: Path) -> None:
    model, pixels = embedding("bottleneck"), photographs(6)
    artifact = to_coreml(model, tmp_path / "a.mlpackage", interface=interface, data=images_of(pixels, classes=2))
    package = open_package(artifact.path)
    assert (package.answers, package.labels) == ("embedding", None)
    assert cosines(package.answer(pixels), scores_of(model)(pixels)).min() > 0.9999
    assert artifact.read()["verification"]["worst_cosine"] > 0.9999
    assert list(inspect(artifact.path).outputs) == ["embedding"]
    with pytest.raises(UsageError, match="gives probabilities, not an embedding"):
        to_coreml(model, tmp_path / "b.mlpackage", interface="classifier")


def test_an_embedding_in_place_of_a_classifier_leaves_no_labels(tmp_path: Path) -> None:
    for model in (network("basic"), embedding()):
        artifact = to_tflite(model, tmp_path / "a.tflite", quantize="float32")
    assert not artifact.labels.exists()
    assert artifact.read()["answers"] == "embedding"


def test_features_of_a_classifier_are_an_embedding_however_the_model_was_cut(tmp_path: Path) -> None:
    whole, pixels = network("basic"), photographs(8)
    projected = keras.layers.Dense(7, name="projection")(whole.get_layer("head_pool").output)
    model = keras.Model(whole.inputs, projected)
    path = to_tflite(model, tmp_path / "a.tflite", calibration=images_of(pixels), effort="low").path
    assert TfliteFile(path, "a").answers == "embedding"
    assert (
        cosines(
            TfliteFile(path, "a").scores(pixels), model.predict(keras_resnet.preprocess_input(pixels, model), verbose=0)
        ).min()
        > 0.98
    )


def test_a_file_of_other_features_is_refused_by_its_cosine(tmp_path: Path) -> None:
    model, pixels = embedding(), photographs(8)
    path = to_tflite(model, tmp_path / "a.tflite", quantize="float32").path
    last = model.get_layer("stage2_block1_bn2")
    gamma, beta, *rest = last.get_weights()
    last.set_weights([-gamma, beta, *rest])
    with pytest.raises(ExportError, match=r"cosine similarity of 0\.\d+ to its model's .* below 0\.980; most noise in"):
        verify(path, model, images_of(pixels))
    assert verify(path, model, images_of(pixels), min_agreement=0.0).mean_cosine < 0.98
    result = compare_embeddings(np.zeros((2, 4)), np.ones((2, 4)), "nothing", None)
    assert result.mean_cosine == 0
    with pytest.raises(ExportError):
        check_agreement(result, np.zeros((2, 4)))


def test_a_file_and_a_network_of_another_kind_are_not_compared(tmp_path: Path) -> None:
    scores, features = network("basic"), embedding()
    path = to_tflite(features, tmp_path / "a.tflite", quantize="float32").path
    with pytest.raises(InputError, match="gives scores, file .* an embedding"):
        verify(path, scores, images_of(photographs(4)))
    Image.fromarray(photographs(1)[0]).save(tmp_path / "a.png")
    for source in (path, features):
        with pytest.raises(UsageError, match="gives an embedding, not classes"):
            predict(source, [tmp_path / "a.png"])


@pytest.mark.parametrize("export", [to_tflite, to_coreml])
@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("basic", {"scores": "softmix"}, "unknown form of scores 'softmix'"),
        ("embedding", {"scores": "softmax"}, "gives an embedding, not a score a class"),
        ("embedding", {"labels": ["a"]}, "labels: 1 given, but model .* gives an embedding"),
        ("tanh", {}, "ends in 'tanh'"),
    ],
)
def test_forms_that_do_not_fit_are_refused(export: Any, model: str, options: Any, said: str, tmp_path: Path) -> None:
    given = {
        "basic": network,
        "embedding": lambda _: embedding(),
        "tanh": lambda _: network("basic", classifier_activation="tanh"),
    }[model]("basic")
    suffix = ".tflite" if export is to_tflite else ".mlpackage"
    with pytest.raises(UsageError, match=said):
        export(given, tmp_path / f"a{suffix}", quantize="float32", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_embedding_has_no_accuracy_to_lose_and_none_to_train_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gives an embedding"):
        to_tflite(
            embedding(),
            tmp_path / "a.tflite",
            calibration=images_of(photographs(8)),
            max_drop=0.3,
            data=images_of(photographs(8, seed=3)),
        )
    with pytest.raises(UsageError, match="has no classifier"):
        compress(embedding(), images_of(photographs(8)), tmp_path / "out")


def test_a_wrong_interface_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown interface 'vectors'.*vector"):
        to_coreml(network("basic"), tmp_path / "a.mlpackage", interface="vectors")
    with pytest.raises(UsageError, match="gives probabilities, not logits"):
        to_coreml(network("basic"), tmp_path / "a.mlpackage", scores="logits", interface="classifier")


@pytest.mark.parametrize("kind", ["logits", "embedding"])
def test_the_test_inside_a_file_finds_other_answers(kind: str) -> None:
    pixels = photographs(10)
    mixing = np.random.default_rng(0).standard_normal((SIDE * SIDE * 3, 12)) / 1000

    def answer(images: np.ndarray, turned: float = 0.0) -> np.ndarray:
        found = images.reshape(len(images), -1).astype(np.float32) @ mixing
        return np.asarray(found + turned * np.ptp(found) * np.roll(found, 1, axis=-1) / np.abs(found).max())

    test = record(pixels, answer, kind)
    assert replay(test, answer, (SIDE, SIDE), "a").passed
    assert not replay(test, lambda images: answer(images, 1.0), (SIDE, SIDE), "a").passed
    assert len(test) < 40_000


def test_cosines_are_numpys() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 5, 7))
    reference = [np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(cosines(a, b), reference, rtol=1e-12)
    assert cosines(np.zeros((1, 3)), np.ones((1, 3))) == 0


@pytest.mark.parametrize(
    ("resize", "crop", "said", "not_said"),
    [
        (256, 224, "0.875 * CGFloat(min(photo.width, photo.height))", "= .centerCrop"),
        (224, 224, "imageCropAndScaleOption = .centerCrop", "regionOfInterest ="),
        (0, 32, "takes pictures of its own size", "imageCropAndScaleOption ="),
    ],
)
def test_the_swift_of_a_package_asks_vision_for_what_the_network_was_trained_on(
    resize: int, crop: int, said: str, not_said: str
) -> None:
    manifest = {
        "format": "coreml-float16",
        "answers": "softmax",
        "file": "a.mlpackage",
        "preprocessing_inside": {"resize": resize, "crop": crop},
        "contract": {"input": {"image": "image, 224 x 224"}, "output": {"classLabel": "string"}},
    }
    (section,) = usage.in_an_app(manifest)
    assert said in section
    assert not_said not in section
    arrays = {"input": {"image": "float32 [1, 224, 224, 3]"}, "output": {"scores": "x"}}
    assert "Vision does not" in usage.in_an_app({**manifest, "contract": arrays})[0]
