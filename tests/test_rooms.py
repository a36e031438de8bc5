"""The direction of imports: the contracts of pyproject.toml hold, and each catches the wrong import it is there for."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.layout import ROOT, lay_out

PYPROJECT = ROOT / "pyproject.toml"


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "lint-imports", "--config", PYPROJECT, "--no-cache", "--no-logo"]
    wide = {"COLUMNS": "200", "PATH": ""}  # the tool wraps its report at the terminal's width
    return subprocess.run(command, cwd=tree, env=wide, capture_output=True, text=True, check=False)


def ruff(source: str, filename: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]
    command += ["--stdin-filename", filename, "-"]
    return subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return lay_out(tmp_path)


def plant(tree: Path, room: str, source: str) -> None:
    """Add a line to a room, a new room if there is none."""
    path = tree.joinpath(*room.split(".")).with_suffix(".py")
    before = path.read_text(encoding="utf-8") if path.exists() else '"""A new room."""\n'
    path.write_text(f"{before}\n{source}\n", encoding="utf-8")


def test_rooms_import_downwards_only(tree):
    result = lint_imports(tree)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("room", "source", "imported"),
    [
        ("keras_resnet.blocks", "import keras_resnet.training.data", "keras_resnet.training"),
        ("keras_resnet.specs", "from keras_resnet import export", "keras_resnet.export"),
        ("keras_resnet.specs", "from keras_resnet import blocks", "keras_resnet.blocks"),
        ("keras_resnet.errors", "import keras_resnet.specs", "keras_resnet.specs"),
        ("keras_resnet.training.data", "from keras_resnet.export import concrete", "keras_resnet.export"),
        ("keras_resnet.training.data", "def late():\n    import keras_resnet.export", "keras_resnet.export"),
        ("keras_resnet.training.augment", "import keras_resnet.training.trainer", "keras_resnet.training.trainer"),
        ("keras_resnet.export.concrete", "import keras_resnet.cli", "keras_resnet.cli"),
        (
            "keras_resnet.models",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import keras_resnet.export",
            "keras_resnet.export",
        ),
        ("keras_resnet.training.data", "from keras_resnet import ResNet50", "keras_resnet"),
    ],
    ids=[
        "core imports training",
        "core imports export by name",
        "a table imports a builder",
        "errors import a table",
        "training imports export",
        "training imports export inside a function",
        "a low room of training imports a high one",
        "export imports the command line",
        "core imports export for its types",
        "a room imports a lazily loaded name",
    ],
)
def test_an_import_that_points_up_is_reported_with_both_rooms(tree, room, source, imported):
    plant(tree, room, source)
    result = lint_imports(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    report = " ".join(result.stdout.split())
    assert f"{room} -> {imported}" in report


@pytest.mark.parametrize("package", ["keras_resnet", "keras_resnet.training", "keras_resnet.export"])
def test_a_room_that_is_in_no_layer_is_reported(tree, package):
    plant(tree, f"{package}.stray", "")
    result = lint_imports(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"- {package}.stray" in result.stdout


def test_every_layer_of_the_contracts_is_a_room_that_exists(tree):
    """An optional layer, in parentheses, would hide a misspelt name."""
    contracts = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        for package in contract.get("containers", []):
            folder = tree.joinpath(*package.split("."))
            rooms = {path.stem for path in folder.iterdir() if path.name != "__init__.py" and path.suffix != ".typed"}
            layers = {room.strip() for layer in contract["layers"] for room in layer.replace(":", "|").split("|")}
            assert layers == rooms


@pytest.mark.parametrize(
    "package",
    [
        "ai_edge_litert",
        "coremltools",
        "jax",
        "matplotlib.pyplot",
        "sklearn.datasets",
        "tensorflow_datasets",
        "tensorflow_model_optimization",
        "tf_keras",
        "torch",
    ],
)
@pytest.mark.parametrize("folder", ["keras_resnet", "training", "export"])
def test_an_optional_package_is_imported_inside_functions_only(package, folder):
    at_the_top = ruff(f'"""A room."""\n\nimport {package}\n\nprint({package})\n', f"{folder}/planted.py")
    assert at_the_top.returncode == 1
    assert f"{folder}/planted.py:3:8: TID253" in at_the_top.stdout
    inside = ruff(
        f'"""A room."""\n\n\ndef f():\n    import {package}\n\n    return {package}\n', f"{folder}/planted.py"
    )
    assert inside.returncode == 0, inside.stdout


@pytest.mark.parametrize(("folder", "allowed"), [("keras_resnet", False), ("training", True), ("export", True)])
def test_the_core_does_not_import_tensorflow_at_its_top(folder, allowed):
    result = ruff('"""A room."""\n\nimport tensorflow as tf\n\nprint(tf)\n', f"{folder}/planted.py")
    assert (result.returncode == 0) is allowed, result.stdout
    assert ("TID253" in result.stdout) is not allowed


@pytest.mark.parametrize("folder", ["keras_resnet", "training", "export"])
def test_a_relative_import_is_reported(folder):
    result = ruff('"""A room."""\n\nfrom . import data\n\nprint(data)\n', f"{folder}/planted.py")
    assert "TID252" in result.stdout
