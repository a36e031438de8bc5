"""The examples run as they stand, in a process of their own, and give what their text says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keras_resnet import build, save_weights_as
from keras_resnet.export.artifact import Artifact
from tests.layout import ROOT
from tests.references import fill

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MOST_SECONDS = 900  # of a notebook that takes one or two minutes on a quiet machine


def run(arguments: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_one_of_format_4_without_outputs_and_its_code_compiles(notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile("".join(cell["source"]), notebook.name, "exec")


def weights_of_a_stand_in(tmp_path: Path) -> Path:
    """A file of 1,000 classes with torchvision's names and random weights."""
    save_weights_as(fill(build("resnet18", input_shape=(64, 64, 3))), tmp_path / "stand-in.safetensors")
    return tmp_path / "stand-in.safetensors"


def run_finetune(weights: Path, folder: Path) -> float:
    """Run the notebook from top to bottom as a program; its top-1 on the test part, as it wrote it down."""
    code = [
        "".join(cell["source"]) for cell in cells(ROOT / "examples" / "finetune.ipynb") if cell["cell_type"] == "code"
    ]
    (folder / "finetune.py").write_text("\n\n".join(code), encoding="utf-8")
    printed = run(["finetune.py"], folder, WEIGHTS=str(weights), TF_CPP_MIN_LOG_LEVEL="3")
    assert (folder / "finetuned.keras").is_file()
    manifest = Artifact(folder / "finetuned-int8.tflite").read()
    assert manifest["verification"]["agreement"] > 0.9
    line = next(line for line in printed.splitlines() if " images are right" in line)
    return float(line.split("%")[0]) / 100


@pytest.mark.slow
def test_the_notebook_fine_tunes_and_exports_whatever_the_weights(tmp_path: Path) -> None:
    assert run_finetune(weights_of_a_stand_in(tmp_path), tmp_path) > 0.3  # chance is 0.1


@pytest.mark.slow
def test_the_notebook_fine_tunes_published_weights_to_a_good_accuracy(shared_data: Path, tmp_path: Path) -> None:
    # The README of that folder says how its compressed ImageNet weights become a file with torchvision's names.
    run([str(shared_data / "weights" / "decode_weights.py"), "imagenet_resnet18_pqf"], tmp_path)
    assert run_finetune(tmp_path / "imagenet_resnet18_pqf.safetensors", tmp_path) > 0.93


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        ([], ["56 x 56 x 256", "28 x 28 x 512", "14 x 14 x 1024", "7 x 7 x 2048"]),
        (["resnet18", "64", "96"], ["16 x 24 x 64", "8 x 12 x 128", "4 x 6 x 256", "2 x 3 x 512"]),
    ],
)
def test_the_pyramid_has_the_published_shapes(arguments: list[str], shapes: list[str], tmp_path: Path) -> None:
    # Strides 4, 8, 16, 32 and the widths of arXiv:1512.03385, Table 1.
    lines = run([str(ROOT / "examples" / "pyramid.py"), *arguments], tmp_path).splitlines()
    assert lines[:4] == [f"C{level}  {shape}" for level, shape in enumerate(shapes, 2)]
    sides = [shape.rsplit(" x ", 1)[0] for shape in shapes]
    assert lines[4:] == [f"P{level}  {side} x 256" for level, side in enumerate(sides, 2)]
