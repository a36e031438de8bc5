"""The main job, small: from images to verified files and a page. The whole job on the digits is the slow test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_resnet.errors import InputError, MissingExtraError
from keras_resnet.export.artifact import sha256_of
from keras_resnet.export.mil import open_package
from keras_resnet.export.verification import TfliteFile
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.quickstart import HEADER, NOT_RUN, SNIPPET, quickstart, text_table
from keras_resnet.training import Run, open_images
from tests.pictures import colour_folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    data = colour_folder(folder / "colours", count=20)
    quickstart(folder / "out", data, progress=False, image_size=16, epochs=4, batch_size=8, learning_rate=0.05)
    return folder


def test_it_leaves_a_run_two_files_with_their_sidecars_and_a_page(done: Path) -> None:
    assert sorted(path.name for path in (done / "out").iterdir()) == [
        "colours-int8.html",
        "colours-int8.json",
        "colours-int8.labels.txt",
        "colours-int8.tflite",
        "colours.html",
        "colours.json",
        "colours.labels.txt",
        "colours.mlpackage",
        "quickstart.json",
        "report.html",
        "run",
    ]
    assert Run(done / "out" / "run").is_complete


def test_the_table_says_of_each_form_what_was_measured_and_what_was_not(done: Path) -> None:
    keras_row, tflite, coreml = json.loads((done / "out" / "quickstart.json").read_text())["rows"]
    assert keras_row["accuracy"] == Run(done / "out" / "run").read_evaluation()["top1"]
    assert 0 <= tflite["agreement"] <= 1
    assert tflite["size_bytes"] == (done / "out" / tflite["file"]).stat().st_size
    package = open_package(done / "out" / coreml["file"])
    test = open_images(done / "colours").split(0.2, 0.2)[1]
    answers = package.answer(test.pixels(Preprocessing(resize=16, crop=16))).argmax(axis=1)
    assert coreml["accuracy"] == np.mean(answers == test.labels)
    assert (coreml["agreement"], coreml["latency_ms"]) == (1.0, None)


def test_the_accuracy_in_the_table_is_what_the_file_answers(done: Path) -> None:
    test = open_images(done / "colours").split(0.2, 0.2)[1]
    file = TfliteFile(done / "out" / "colours-int8.tflite", "file")
    pixels = np.stack([np.asarray(test.picture(i).resize((20, 16)).crop((2, 0, 18, 16))) for i in range(len(test))])
    given = file.scores(pixels).argmax(axis=1)
    row = json.loads((done / "out" / "quickstart.json").read_text())["rows"][1]
    assert row["accuracy"] == pytest.approx(np.mean(given == test.labels))


def test_calibration_saw_training_images_only(done: Path) -> None:
    manifest = json.loads((done / "out" / "colours-int8.json").read_text())
    assert manifest["calibration"]["data"].startswith("colours, training part")
    assert manifest["verification"]["data"] == "colours, test part"


def test_the_page_shows_the_table_and_is_whole_in_one_file(done: Path) -> None:
    text = (done / "out" / "report.html").read_text()
    assert all(f">{name}<" in text for name in HEADER)
    assert NOT_RUN in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert '<meta name="viewport"' in text


def test_running_it_again_keeps_the_run_and_renews_the_files(done: Path) -> None:
    before = (done / "out" / "run" / "history.csv").stat().st_mtime_ns
    old = sha256_of(done / "out" / "colours-int8.tflite")
    options = {"image_size": 16, "epochs": 4, "batch_size": 8, "learning_rate": 0.05}
    quickstart(done / "out", done / "colours", progress=False, **options)
    assert (done / "out" / "run" / "history.csv").stat().st_mtime_ns == before
    assert sha256_of(done / "out" / "colours-int8.tflite") == old


def test_the_snippet_on_the_page_runs(done: Path, tmp_path: Path) -> None:
    Image.open(done / "colours" / "red" / "000.png").save(tmp_path / "photo.png")
    for name in ("colours-int8.tflite", "colours-int8.labels.txt"):
        (tmp_path / name).write_bytes((done / "out" / name).read_bytes())
    program = SNIPPET.format(file="colours-int8.tflite", labels="colours-int8.labels.txt")
    answer = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() in ("blue", "green", "red")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        quickstart(tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_missing_extras_are_said_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"keras-resnet-edge\[tflite,coreml,viz\]"):
        quickstart(tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_the_text_table_is_aligned(done: Path) -> None:
    from keras_resnet.quickstart import Row

    lines = text_table([Row("a", "f", 10, 0.5, None, 1.0), Row("bb", "ff", 10**7, None, 1.0, None)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split("|")[2].strip() == "50.00 %"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_reach_98_and_a_half_percent_and_int8_stays_within_half_a_point(seed: int, tmp_path: Path) -> None:
    keras_row, tflite, _ = quickstart(tmp_path / "out", progress=False, seed=seed)
    assert Run(tmp_path / "out" / "run").read_evaluation()["count"] == 360
    assert keras_row.accuracy is not None
    assert tflite.accuracy is not None
    assert keras_row.accuracy >= 0.985
    assert abs(tflite.accuracy - keras_row.accuracy) <= 0.005
