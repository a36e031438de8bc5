"""What is shipped: the packages, the wheel, the lock, and what an import costs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import keras_resnet
from tests.layout import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
NOT_SOURCE = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs")


def python(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def locked() -> list[tuple[Requirement, list[str]]]:
    """The pins of the lock, each with its hashes."""
    entries = re.split(r"\n(?=\S)", "\n".join(line for line in LOCK.splitlines() if not line.startswith("#")))
    return [(Requirement(e.split("\\")[0]), re.findall(r"--hash=(\S+)", e)) for e in entries if e.strip()]


def declared() -> list[Requirement]:
    """What pyproject.toml asks for, extras included; the package's mentions of itself left out."""
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    requirements = [Requirement(text) for text in [*PROJECT["dependencies"], *extras]]
    return [r for r in requirements if r.name != PROJECT["name"]]


def modules() -> dict[Path, str]:
    """Every module of the checkout that is shipped, with its name in the wheel."""
    return {
        path: f"{package.replace('.', '/')}/{path.name}"
        for package, folder in SETUPTOOLS["package-dir"].items()
        for path in (ROOT / folder).glob("*.py")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """The names in a wheel, built from a copy of the checkout in which an earlier build left a module since deleted."""
    tree = tmp_path_factory.mktemp("checkout") / "copy"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    stale = tree / "build/lib/keras_resnet/deleted_room.py"
    stale.parent.mkdir(parents=True)
    stale.write_text('"""Deleted since."""\n', encoding="utf-8")
    result = python("-m", "build", "--no-isolation", cwd=tree)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_every_folder_with_an_init_is_in_the_list_of_packages():
    folders = {"keras_resnet": "keras_resnet", "keras_resnet.export": "export", "keras_resnet.training": "training"}
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for package, folder in folders.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(SETUPTOOLS["packages"])
    assert SETUPTOOLS["package-dir"] == folders


def test_every_package_that_the_code_imports_is_declared():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in modules()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    tops = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) - {"keras_resnet"}
    brought_by = packages_distributions()
    needed = {name: {canonicalize_name(found) for found in brought_by.get(name, [name])} for name in tops}
    # PyTorch's own files are read where the user has torch; as an extra it would be gigabytes in the lock.
    known = {canonicalize_name(requirement.name) for requirement in declared()} | {"torch"}
    assert not {name for name, distributions in needed.items() if not distributions & known}


@pytest.mark.parametrize("folder", ["export", "training"])
def test_the_folders_at_the_root_cannot_be_imported_as_packages_of_their_own(folder):
    result = python("-c", f"import {folder}", cwd=ROOT)
    assert result.returncode == 1
    assert f"ImportError: import keras_resnet.{folder}" in result.stderr


def test_the_wheel_holds_no_module_that_was_deleted(wheel):
    assert not [name for name in wheel if "deleted_room" in name]


def test_pips_own_wheel_holds_no_module_that_was_deleted_either(tmp_path):
    tree = tmp_path / "copy"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    stale = tree / "build/lib/keras_resnet/deleted_room.py"
    stale.parent.mkdir(parents=True)
    stale.write_text('"""Deleted since."""\n', encoding="utf-8")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path)
    result = python("-m", "pip", "wheel", *options, ".", cwd=tree)  # unlike `build`, in the tree itself
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(built).namelist()
    assert "keras_resnet/models.py" in names
    assert "keras_resnet/deleted_room.py" not in names


def test_the_wheel_holds_the_packages_as_they_stand_and_nothing_else(wheel):
    assets = {f"keras_resnet/assets/{path.name}" for path in (ROOT / "keras_resnet/assets").iterdir()}
    assert assets
    shipped = {name for name in wheel if ".dist-info/" not in name}
    assert shipped == {*modules().values(), *assets, "keras_resnet/py.typed"}


def test_the_wheel_holds_the_licences(wheel):
    licences = {name.split(".dist-info/licenses/")[1] for name in wheel if ".dist-info/licenses/" in name}
    assert licences == set(PROJECT["license-files"])
    assert "LICENSE" in licences


def test_every_pin_of_the_lock_is_exact_and_has_a_hash():
    pins = locked()
    assert len(pins) > 80
    for pin, hashes in pins:
        assert [s.operator for s in pin.specifier] == ["=="], pin
        assert hashes, pin
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), pin


def test_the_lock_names_no_index():
    assert "://" not in LOCK
    assert not re.findall(r"^\s*(?:-i|-f|--(?!hash)\S+)", LOCK, flags=re.MULTILINE)


def test_the_lock_holds_none_of_the_reference_implementations():
    lines = (ROOT / "requirements-reference.txt").read_text(encoding="utf-8").splitlines()
    reference = {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")}
    assert reference >= {"torch", "torchvision", "jax"}
    assert not reference & {canonicalize_name(pin.name) for pin, _ in locked()}


# The compiler of the extra `npu` is a program that we start, and `tfds` serves one source of images: the lock does
# without them, and so do the tests.
NOT_LOCKED = {"ethos-u-vela", "tensorflow-datasets"}


@pytest.mark.parametrize("requirement", [r for r in declared() if r.name not in NOT_LOCKED], ids=str)
def test_the_lock_satisfies_what_the_project_asks_for(requirement):
    name = canonicalize_name(requirement.name)
    versions = [next(iter(pin.specifier)).version for pin, _ in locked() if canonicalize_name(pin.name) == name]
    assert versions
    assert all(requirement.specifier.contains(version) for version in versions)


def test_pre_commit_runs_the_ruff_of_the_lock():
    config = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (version,) = re.findall(r"ruff-pre-commit\n\s+rev: v(\S+)", config)
    assert re.search(rf"^ruff=={re.escape(version)} ", LOCK, flags=re.MULTILINE)


@pytest.mark.parametrize("module", ["keras_resnet", "keras_resnet.cli"])
def test_importing_the_package_loads_neither_keras_nor_tensorflow(module, tmp_path):
    heavy = "{'keras', 'tensorflow', 'numpy', 'PIL', 'coremltools', 'matplotlib'}"
    code = f"import sys, {module}; sys.exit(', '.join({heavy} & sys.modules.keys()) or None)"
    result = python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (cited,) = re.findall(r"^version: (\S+)$", citation, flags=re.MULTILINE)
    assert keras_resnet.__version__ == PROJECT["version"] == cited
