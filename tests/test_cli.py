"""The command line: one line an error, exit codes, results on stdout."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from keras_resnet import cli
from keras_resnet.specs import VARIANTS
from keras_resnet.training.recipes import RECIPES
from tests.pictures import colour_folder

VERBS = "quickstart list inspect train data verify-run evaluate predict compress export verify benchmark".split()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keras_resnet.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_one_screen_and_ends_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([*([verb] if verb else []), "--help"])
    text = capsys.readouterr().out.rstrip().splitlines()
    assert left.value.code == 0
    assert len(text) <= 40
    assert text[-1].startswith("example: keras-resnet " + verb)


def test_help_loads_neither_keras_nor_numpy() -> None:
    heavy = "{'keras', 'tensorflow', 'numpy'}"
    program = f"import sys; from keras_resnet import cli; cli._parser(); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quikstart"], "unknown command 'quikstart': nearest are quickstart"),
        (["quickstart", "--epoch", "3"], "unknown option '--epoch': nearest are --epochs"),
        (["train", "--dat", "digits", "--run", "x"], "unknown option '--dat': nearest are --data"),
        (["export", "a.keras", "--out", "a.tflite", "--target", "iOS16"], "--target is for --format coreml"),
        (["quickstart", "--epochs", "three"], "invalid int value: 'three'"),
        (["quickstart", "--variant", "cifar_resnet9"], "unknown variant 'cifar_resnet9' (variant=): nearest are"),
        (["list", "variant"], "unknown list 'variant': nearest are variants"),
        (["list", "variants", "alexnet"], "no variants match 'alexnet'"),
        (["inspect", "resnet51"], "unknown variant 'resnet51': nearest are resnet50"),
        (["inspect"], "the following arguments are required: model"),
        (["train", "--data", "digits", "--run", "x", "--recipe", "digit"], "unknown recipe 'digit'"),
        (["train", "--data", "digits", "--run", "x", "--learning-rate", "0"], "learning_rate=0.0 must be above 0"),
        (["export", "a.keras", "--out", "a.tflite", "--format", "onyx"], "unknown format 'onyx' (--format)"),
        (["export", "a.keras", "--out", "a.tflite", "--quantize", "int9"], "unknown number format 'int9' (--quantize)"),
        (
            ["compress", "a.keras", "--data", "digits", "--out", "x", "--method", "quat"],
            "unknown method 'quat' (--method)",
        ),
        (["compress", "a.keras", "--data", "digits", "--out", "x", "--epochs", "0"], "epochs=0 must be a whole number"),
        (["compress", "a.keras", "--data", "digits", "--out", "x", "--augmentation", "flip"], "nearest are shift_flip"),
        (["verify", "a.tflite", "--model", "a.keras"], "--model and --data go together"),
        (["predict", "a.keras"], "the following arguments are required: IMAGE"),
        (["predict", "a.keras", "a.png", "--top", "0"], "--top 0 must be 1 or more"),
        (["predict", "a.keras", "a.png", "--grid", "a.jpg"], "output 'a.jpg' must end in '.png'"),
        (
            ["evaluate", "a.keras", "--data", "digits", "--resize", "large"],
            "--resize 'large' must be a number of pixels",
        ),
        (["evaluate", "a.keras", "--data", "digits", "--crop", "0"], "--crop '0' must be a number of pixels"),
        (["evaluate", "a.keras", "--data", "digits", "--per-class", "a.txt"], "output 'a.txt' must end in '.csv'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("keras-resnet: ")
    assert said in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--data", "nowhere/", "--run", "RUN"], "data 'nowhere/' is not there"),
        (["quickstart", "--data", "nowhere/", "--out", "RUN"], "data 'nowhere/' is not there"),
        (["evaluate", "nowhere.keras", "--data", "digits"], "'nowhere.keras' does not exist"),
        (
            ["export", "nowhere.keras", "--out", "RUN/a.tflite", "--quantize", "float32"],
            "'nowhere.keras' does not exist",
        ),
        (["compress", "nowhere.keras", "--data", "digits", "--out", "RUN"], "'nowhere.keras' does not exist"),
        (["verify", "nowhere.tflite", "--model", "x.keras", "--data", "digits"], "is no .tflite file"),
        (["verify", "nowhere.tflite"], "'nowhere.tflite' is no .tflite file"),
        (["predict", "nowhere.keras", __file__], "test_cli.py' is not an image that can be read"),
        (["predict", "nowhere.keras", "nowhere.png"], "'nowhere.png' is not an image that can be read"),
        (["predict", "nowhere.tflite", "RUN.png"], "'nowhere.tflite' does not exist"),
        (["predict", "nowhere.keras", "RUN.png", "--labels", "nowhere.txt"], "nowhere.txt"),
        (["predict", "nowhere.keras", "RUN.png", "--grid", "RUN.png/a.png"], "run.png' is a file"),
        (["evaluate", "nowhere.keras", "--data", "digits", "--per-class", "RUN.png/a.csv"], "run.png' is a file"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1_and_leaves_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "run.png")
    assert cli.main([argument.replace("RUN", str(tmp_path / "run")) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "run").exists()


def test_a_traceback_is_shown_with_debug_alone() -> None:
    quiet = run("inspect", "nowhere.keras")
    loud = run("--debug", "evaluate", "nowhere.keras", "--data", "digits")
    assert (quiet.returncode, loud.returncode) == (2, 1)
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr


def test_start_up_messages_of_the_libraries_are_not_shown() -> None:
    done = run("inspect", "cifar_resnet8")
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m keras_resnet.cli list variants | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("variant")
    assert done.stderr == ""


def test_list_shows_every_variant_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "variants", "--json"]) == 0
    assert [row["variant"] for row in json.loads(capsys.readouterr().out)] == list(VARIANTS)
    assert cli.main(["list", "recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in RECIPES)


# 12,501,632: mlcommons/tiny's network counted by hand; see tests/reference.py.
def test_inspect_prints_a_table_json_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "cifar_resnet8"]) == 0
    assert "12,501,632" in capsys.readouterr().out
    assert cli.main(["inspect", "cifar_resnet8", "--json"]) == 0
    assert "12501632" in capsys.readouterr().out
    assert cli.main(["inspect", "cifar_resnet8", "--csv"]) == 0
    assert list(csv.reader(io.StringIO(capsys.readouterr().out)))


def test_train_evaluate_export_and_verify_follow_one_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(colour_folder(tmp_path / "colours", count=30))
    folder, file = str(tmp_path / "runs" / "a"), str(tmp_path / "a.tflite")
    small = ["--image-size", "16", "--epochs", "6", "--batch-size", "8", "--learning-rate", "0.02"]
    assert cli.main(["train", "cifar_resnet8", "--data", data, "--run", folder, *small]) == 0
    assert "% of 9" in capsys.readouterr().out
    assert cli.main(["list", "runs", str(tmp_path / "runs")]) == 0
    assert "cifar_resnet8" in capsys.readouterr().out
    table = tmp_path / "classes.csv"
    assert cli.main(["evaluate", folder, "--data", data, "--json", "--per-class", str(table)]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["count"], found["resize"], found["crop"]) == (90, 16, 16)
    assert "evaluating: 100%" in shown.err
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    assert [row["class"] for row in rows] == ["blue", "green", "red"]
    assert sum(int(row["correct"]) for row in rows) == found["correct"]
    assert cli.main(["export", folder, "--calibration", data, "--out", file]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    package = str(tmp_path / "b.mlpackage")
    assert cli.main(["export", folder, "--format", "coreml", "--data", data, "--out", package]) == 0
    assert capsys.readouterr().out == f"{package}\n"
    assert cli.main(["verify", file]) == 0
    assert capsys.readouterr().out.startswith("8 of 8 agree; largest difference")
    for exported in (file, package):
        assert cli.main(["verify", exported, "--model", folder, "--data", data]) == 0
        assert capsys.readouterr().out.startswith("agreement ")
    images = [str(tmp_path / "colours" / name / "000.png") for name in ("blue", "red")]
    for model in (folder, file, package):
        assert cli.main(["predict", model, *images, "--json", "--grid", str(tmp_path / "grid.png")]) == 0
        blue, red = json.loads(capsys.readouterr().out)
        assert (blue["image"], blue["answers"][0]["name"]) == (images[0], "blue")
        assert red["answers"][0]["name"] == "red"
        with Image.open(tmp_path / "grid.png") as grid:
            assert grid.size[0] > 400
    assert cli.main(["predict", folder, *images, "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r" +\d+\.\d\d%  blue  \(0\)", lines[1])


def small_model(folder: Path) -> str:
    import keras_resnet

    path = folder / "a.keras"
    keras_resnet.build("cifar_resnet8").save(path)
    return str(path)


INTERRUPTED = """
import os, signal, sys
from keras_resnet import cli
from keras_resnet.export import coreml
convert = coreml.convert
def interrupted(*arguments):
    package = convert(*arguments)
    with open("seen", "w") as file:
        file.write(" ".join(os.listdir("out")))
    os.kill(os.getpid(), signal.SIGINT)
    return package
coreml.convert = interrupted
sys.exit(cli.main(sys.argv[1:]))
"""


def test_ctrl_c_while_exporting_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["export", small_model(tmp_path), "--format", "coreml", "--out", str(out / "a.mlpackage")]
    command = [sys.executable, "-c", INTERRUPTED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    assert (tmp_path / "seen").read_text().startswith(".partial-")
    assert "Traceback" not in done.stderr
    assert list(out.iterdir()) == []


def test_a_disk_that_fills_up_while_exporting_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["export", small_model(tmp_path), "--quantize", "float32", "--out", str(out / "a.tflite")]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"  # an OSError in the middle
    program = f"import sys; {limit}; from keras_resnet.cli import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists() or list(out.iterdir()) == []


def test_a_file_of_pytorchs_names_is_exported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import keras_resnet

    source, out = tmp_path / "a.safetensors", tmp_path / "a.tflite"
    network = keras_resnet.build("resnet18", depths=(1, 1), widths=(8, 16), classes=5, input_shape=(224, 224, 3))
    keras_resnet.save_weights_as(network, source)
    assert cli.main(["export", str(source), "--quantize", "float32", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"


def test_list_weights_shows_accuracy_at_its_crop_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "weights", "timm/resnet50.a1_in1k"]) == 0
    assert "81.24 % at 288" in capsys.readouterr().out  # timm, results-imagenet.csv
