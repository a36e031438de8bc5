"""What travels inside a .tflite file: labels, manifest, and pictures that it was seen to answer."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest

from keras_resnet.errors import InputError
from keras_resnet.export import golden, self_test, to_tflite
from keras_resnet.export.tflite_metadata import associated_files
from keras_resnet.export.verification import TfliteFile
from tests.test_export import SIDE, converter_here, images_of, network, photographs  # noqa: F401

LABELS = ["cat", "dog", "cow", "Kuh", "hen"]
pytestmark = pytest.mark.usefixtures("converter_here")


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    quantize = getattr(request, "param", "float32")
    calibration = images_of(photographs(30))
    options: dict[str, Any] = {"author": "A. Nonymous", "licence": "Apache-2.0", "labels": LABELS}
    return to_tflite(
        network("basic"), tmp_path / "a.tflite", quantize=quantize, calibration=calibration, **options
    ).path


def metadata_of(content: bytes) -> flatbuffers.table.Table:
    """The root table of the metadata in a file, found by walking the model as the schema of TFLite says."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    [entry] = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    data = bytearray(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    return flatbuffers.table.Table(data, flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0))


def text(table: Any, place: int) -> str:
    return table.String(table.Offset(4 + 2 * place) + table.Pos).decode()


def part(table: Any, place: int, index: int = 0) -> Any:
    """The table at a place, or the one of a list there."""
    offset = table.Offset(4 + 2 * place)
    start = table.Vector(offset) + 4 * index if index is not None else offset + table.Pos
    return flatbuffers.table.Table(table.Bytes, table.Indirect(start))


@pytest.mark.parametrize("file", ["float32", "int8"], indirect=True)
def test_a_file_says_what_it_is_in_the_tables_of_the_public_schema(file: Path) -> None:
    model = metadata_of(file.read_bytes())
    # metadata_schema.fbs: ModelMetadata is name, description, version, subgraph_metadata, author, license, ...
    assert (text(model, 0), text(model, 4), text(model, 5)) == ("resnet18", "A. Nonymous", "Apache-2.0")
    graph = part(model, 3)
    image, scores = part(graph, 2), part(graph, 3)
    assert (text(image, 0), text(scores, 0)) == ("image", "scores")
    assert text(part(scores, 6), 0) == "labels.txt"


@pytest.mark.parametrize("file", ["float32", "int8"], indirect=True)
def test_labels_and_manifest_lie_inside_and_the_answers_are_as_before(file: Path) -> None:
    files = associated_files(file.read_bytes(), "a")
    assert files["labels.txt"].decode().splitlines() == LABELS
    manifest = json.loads(files["manifest.json"])
    assert manifest["labels"] == LABELS
    assert manifest["calibration"]["count"] == 30
    with zipfile.ZipFile(file) as archive:  # as any tool reads it
        assert archive.testzip() is None
    assert len(files[golden.NAME]) < 12_000


def test_mediapipe_names_the_class_that_the_interpreter_finds(file: Path) -> None:
    mediapipe = pytest.importorskip("mediapipe")
    vision = mediapipe.tasks.vision
    base = mediapipe.tasks.BaseOptions(model_asset_path=str(file))
    tflite = TfliteFile(file, "a")
    with vision.ImageClassifier.create_from_options(vision.ImageClassifierOptions(base_options=base)) as classifier:
        for pixels in photographs(10):
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
            best = classifier.classify(image).classifications[0].categories[0]
            assert best.category_name == LABELS[int(tflite.answer(pixels).argmax())]


@pytest.mark.parametrize("file", ["float32", "int8"], indirect=True)
def test_a_file_tests_itself_and_one_with_other_weights_fails(file: Path, tmp_path: Path) -> None:
    found = self_test(file)
    assert found.passed
    assert (found.count, found.agreeing) == (8, 8)
    other = to_tflite(network("bottleneck"), tmp_path / "b.tflite", quantize="float32").path.read_bytes()
    theirs = associated_files(file.read_bytes(), "a")[golden.NAME]
    strange = golden.replay(theirs, TfliteFile(other, "b").scores, (SIDE, SIDE), "b")
    assert not strange.passed


def test_a_file_that_was_made_without_pictures_tests_itself_too(tmp_path: Path) -> None:
    assert self_test(to_tflite(network("basic"), tmp_path / "a.tflite", quantize="float16").path).passed


@pytest.mark.parametrize(("size", "factor"), [((32, 32), 2), ((224, 224), 14), ((24, 48), 3), ((193, 257), 1)])
def test_a_picture_is_kept_coarse_and_comes_back_the_same_everywhere(size: tuple[int, int], factor: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    small = golden.coarse(pixels)
    assert small.shape == (2, size[0] // factor, size[1] // factor, 3)
    again = golden.spread(small, factor)
    assert again.shape == pixels.shape
    assert np.array_equal(golden.coarse(again), small)
    corner = pixels[0, :factor, :factor].reshape(-1, 3).mean(axis=0)
    assert np.abs(again[0, 0, 0] - corner).max() <= 0.5


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (193, 257)])
def test_pictures_made_up_have_the_size_and_differ(size: tuple[int, int]) -> None:
    pixels = golden.pictures(size, 5)
    assert pixels.shape == (5, *size, 3)
    assert len({image.tobytes() for image in pixels}) == 5


def test_a_file_without_a_test_or_with_a_damaged_one_says_so(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    bare = content[: content.index(b"PK\x03\x04")]
    (tmp_path / "bare.tflite").write_bytes(bare)
    with pytest.raises(InputError, match="holds no test of itself"):
        self_test(tmp_path / "bare.tflite")
    answers = TfliteFile(content, "a").scores
    whole = json.loads(associated_files(content, "a")[golden.NAME])
    for harm in (
        b"{",
        b"[]",
        json.dumps({**whole, "height": 7}).encode(),
        json.dumps({**whole, "pictures": []}).encode(),
        json.dumps({**whole, "factor": 3}).encode(),
        json.dumps({**whole, "pictures": [{**whole["pictures"][0], "classes": [99] * 5}]}).encode(),
    ):
        with pytest.raises(InputError, match="inside 'a'"):
            golden.replay(harm, answers, (SIDE, SIDE), "a")


def test_files_inside_that_are_compressed_are_refused(file: Path) -> None:
    whole = io.BytesIO(file.read_bytes())
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.bin", bytes(10_000_000))
    with pytest.raises(InputError, match="compressed"):
        associated_files(whole.getvalue(), "a")


def test_equal_networks_give_equal_files(tmp_path: Path) -> None:
    model = network("basic")
    contents = [to_tflite(model, tmp_path / name / "a.tflite", quantize="float32").path.read_bytes() for name in "ab"]
    assert contents[0] == contents[1]
