"""The run folder: what lies in it, and how it is read and written.

run.json, history.csv, curves.png, checkpoints/, model.keras, tensorboard/, log.txt, confusion.png; evaluation.json
comes last: a run is complete when it is there.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from keras_resnet.errors import InputError, UsageError
from keras_resnet.files import write_csv, write_json
from keras_resnet.training.recipes import Recipe

COMPRESSION = "compression"  # in run.json, where `compress` made the folder of another run's network
PACKAGES = ("keras-resnet-edge", "keras", "tensorflow", "numpy", "pillow")


@dataclass(frozen=True)
class Run:
    """A run folder, by its path; every property names a place in it."""

    folder: Path

    @property
    def description(self) -> Path:
        return self.folder / "run.json"

    @property
    def history(self) -> Path:
        return self.folder / "history.csv"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        return self.folder / "model.keras"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.png"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.json"

    @property
    def confusion(self) -> Path:
        return self.folder / "confusion.png"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def is_complete(self) -> bool:
        return self.evaluation.is_file()

    def read(self) -> dict[str, Any]:
        """What run.json says. Raises InputError where this is no run folder."""
        try:
            return dict(json.loads(self.description.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"{str(self.folder)!r} is no run folder: its run.json cannot be read ({error})") from error

    def read_evaluation(self) -> dict[str, Any]:
        """What evaluation.json says. Raises InputError where the run is not complete."""
        try:
            return dict(json.loads(self.evaluation.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"run {str(self.folder)!r} has no readable evaluation.json: finish it first") from error

    @property
    def recipe(self) -> Recipe:
        """The recipe as run."""
        try:
            stored: dict[str, Any] = self.read()["recipe"]
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
            }
            return Recipe(**fields)
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise InputError(f"run {str(self.folder)!r} has a recipe of another version: {error}") from error

    def read_history(self) -> list[dict[str, float]]:
        """A row an epoch; empty where none is finished."""
        if not self.history.is_file():
            return []
        with self.history.open(encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    def write_history(self, rows: list[dict[str, float]]) -> None:
        write_csv(self.history, rows)


def check_run_folder(folder: str | os.PathLike[str]) -> Run:
    """The run of a folder that is new, empty or an earlier run. Raises InputError for any other."""
    run = Run(Path(folder))
    wanted = "give a folder that is new, empty or an earlier run"
    if run.folder.exists() and not run.folder.is_dir():
        raise InputError(f"output {str(folder)!r} is a file: {wanted}")
    if run.folder.is_dir() and any(run.folder.iterdir()) and not run.description.is_file():
        raise InputError(f"output {str(folder)!r} holds something else: {wanted}")
    return run


def open_run(
    folder: str | os.PathLike[str],
    recipe: Recipe,
    data: dict[str, Any],
    devices: Sequence[str] = (),
    sources: Mapping[str, Any] | None = None,
) -> Run:
    """A run folder for a recipe on some data: a new one, or the one that the same call began, wherever the data lies.

    sources: where the data came from, as it was said; what has no name there, such as Images, is left out.
    Raises InputError where the folder holds something else: other files, another recipe or other data.
    """
    run = check_run_folder(folder)
    if run.description.is_file():
        before = run.read()
        if COMPRESSION in before:
            raise InputError(f"output {str(folder)!r} holds a network that was compressed: give another folder")
        for part, now in (("recipe", _as_json(recipe)), ("data", data)):
            check_same(run, part, now, before.get(part, {}))
        return run
    write_json(
        run.description,
        {
            "recipe": _as_json(recipe),
            "data": data,
            "sources": {k: str(v) for k, v in (sources or {}).items() if isinstance(v, (str, os.PathLike))},
            "versions": versions(),
            "devices": list(devices),
            "machine": {"system": platform.platform(), "processor": platform.processor() or platform.machine()},
            "revision": _revision(),
        },
    )
    return run


def runs_in(folder: str | os.PathLike[str]) -> list[Run]:
    """The run folders in a folder, by name. Raises InputError where it does not exist."""
    if not Path(folder).is_dir():
        raise InputError(f"folder {str(folder)!r} of runs does not exist: give one that holds run folders")
    return [Run(description.parent) for description in sorted(Path(folder).glob("*/run.json"))]


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row a run: how far it is, its best validation accuracy, the accuracy it ended with, and what sets it apart.

    Accuracies are fractions; None stands for what is not there yet. differs: the fields of the recipe, besides those
    with a column, in which the runs are not all the same. A run that cannot be read hides no other.
    """
    rows, recipes = [], []
    for run in runs:
        row = dict.fromkeys(("run", "state", "variant", "epochs", "of", "val_accuracy", "top1", "low", "high"))
        row |= {"run": str(run.folder), "state": "complete" if run.is_complete else "not complete"}
        recipe: dict[str, Any] = {}
        try:
            recipe, history = dataclasses.asdict(run.recipe), run.read_history()
            row |= {"variant": recipe["variant"], "epochs": len(history), "of": recipe["epochs"]}
            row["val_accuracy"] = max((epoch["val_accuracy"] for epoch in history), default=None)
            if run.is_complete:
                found = run.read_evaluation()
                row |= {"top1": found["top1"], "low": found["interval"][0], "high": found["interval"][1]}
        except (InputError, KeyError, ValueError, TypeError, AttributeError):
            row |= {"state": "cannot be read", "epochs": None}
        rows.append(row)
        recipes.append(recipe)
    read = [recipe for recipe in recipes if recipe]
    other = [name for name in (read[0] if read else ()) if any(one[name] != read[0][name] for one in read)]
    for row, recipe in zip(rows, recipes, strict=True):
        named = [f"{name}={recipe[name]}" for name in other if recipe and name not in ("variant", "epochs")]
        row["differs"] = " ".join(named)
    return rows


def check_same(run: Run, part: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Raise InputError, which says what differs, where the recipe or data of a run is not what it was."""
    for key, value in now.items():
        if _content(then.get(key)) != _content(value):
            raise InputError(
                f"output {str(run.folder)!r} holds a run with another {part} ({key}: {then.get(key)!r} there, "
                f"{value!r} now): give another folder, or the same values to go on with it"
            )


def versions() -> dict[str, str]:
    """Of Python and of the packages whose versions decide what a run gives."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _content(value: Any) -> Any:
    """What of a description must be equal: of a data set its count and hash, not its name."""
    return {k: v for k, v in value.items() if k != "name"} if isinstance(value, dict) and "hash" in value else value


def _as_json(recipe: Recipe) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dataclasses.asdict(recipe))))


def _revision() -> str | None:
    """The git revision of this package's checkout; None where it is installed, or without git."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        here = Path(__file__).resolve().parent
        answer = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
