"""What a user sees of runs: curves, and several of them side by side."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_resnet import cli
from keras_resnet.files import write_json
from keras_resnet.training import RECIPES, Run, plots
from keras_resnet.training.runs import compare, open_run, runs_in

DATA = {"classes": ["a", "b"], "training": {"name": "some", "count": 2, "hash": "0"}}


def history(accuracies: list[float], **more: float) -> list[dict[str, float]]:
    return [
        {"epoch": i, "loss": 1 / i, "accuracy": a, "val_loss": 2 / i, "val_accuracy": a, **more}
        for i, a in enumerate(accuracies, start=1)
    ]


def made(folder: Path, accuracies: list[float], top1: float | None = None, **changes: object) -> Run:
    run = open_run(folder, dataclasses.replace(RECIPES["digits"], epochs=3, **changes), DATA)
    if accuracies:
        run.write_history(history(accuracies))
    if top1 is not None:
        write_json(run.evaluation, {"top1": top1, "interval": [top1 - 0.1, top1 + 0.1]})
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    made(tmp_path / "a", [0.5, 0.7, 0.6], 0.65)
    made(tmp_path / "b", [0.4], seed=1)
    made(tmp_path / "c$", [], learning_rate=0.2)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "run.json").write_text("{")
    made(tmp_path / "e", [0.5]).history.write_text("epoch,val_accuracy\n1,none\n")
    (tmp_path / "no run").mkdir()
    return tmp_path


def test_runs_side_by_side_say_how_far_they_are_and_what_sets_them_apart(runs: Path) -> None:
    rows = {Path(row["run"]).name: row for row in compare(runs_in(runs))}
    assert list(rows) == ["a", "b", "c$", "d", "e"]
    assert {name: row["state"] for name, row in rows.items()} == {
        "a": "complete",
        "b": "not complete",
        "c$": "not complete",
        "d": "cannot be read",
        "e": "cannot be read",
    }
    assert (rows["a"]["epochs"], rows["a"]["of"], rows["a"]["val_accuracy"]) == (3, 3, 0.7)
    assert [rows["a"][name] for name in ("top1", "low", "high")] == pytest.approx([0.65, 0.55, 0.75])
    assert (rows["b"]["epochs"], rows["b"]["val_accuracy"], rows["b"]["top1"]) == (1, 0.4, None)
    assert (rows["c$"]["epochs"], rows["c$"]["val_accuracy"]) == (0, None)
    assert rows["a"]["differs"] == "learning_rate=0.1 seed=0"
    assert rows["c$"]["differs"] == "learning_rate=0.2 seed=0"
    assert rows["d"]["differs"] == ""


def test_runs_of_one_recipe_differ_in_nothing(tmp_path: Path) -> None:
    made(tmp_path / "a", [0.5])
    made(tmp_path / "b", [0.5])
    assert [row["differs"] for row in compare(runs_in(tmp_path))] == ["", ""]


def test_the_command_shows_a_table_and_draws_one_picture(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = runs / "runs.png"
    assert cli.main(["list", "runs", str(runs), "--plot", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "70.00%" in lines[1]
    assert "65.00%" in lines[1]
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
    assert cli.main(["list", "runs", str(runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["val_accuracy"] == 0.7


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["variants", "--plot", "a.png"], 2, "--plot is for runs"),
        (["runs", "RUNS", "--plot", "a.csv"], 2, "must end in '.png'"),
        (["runs", "RUNS/no", "--plot", "a.png"], 1, "does not exist"),
        (["runs", "RUNS/no run"], 2, "no runs match"),
        (["runs", "RUNS/no run", "--json", "--plot", "RUNS/a.png"], 1, "nothing to draw"),
    ],
)
def test_what_cannot_be_listed_is_refused(
    arguments: list[str], code: int, message: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["list", *(word.replace("RUNS", str(runs)) for word in arguments)]) == code
    assert message in capsys.readouterr().err


def panels(picture: bytes) -> int:
    """How many frames stand side by side: dark columns of more than half the height come in pairs."""
    with Image.open(io.BytesIO(picture)) as opened:
        dark = np.asarray(opened.convert("L")) < 60
    tall = dark.mean(axis=0) > 0.5
    return int(np.sum(tall & ~np.roll(tall, 1))) // 2


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves_show_the_learning_rate_where_the_history_has_it(epochs: int) -> None:
    rows = [0.5, 0.6, 0.7][:epochs]
    assert panels(plots.curves(history(rows))) == 2
    assert panels(plots.curves(history(rows, learning_rate=0.1))) == 3
    assert panels(plots.curves(history(rows), ("loss",))) == 1
