"""Recipes, runs, checkpoints, the trainer and what it evaluates."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_resnet import cli
from keras_resnet.errors import InputError, UsageError
from keras_resnet.preprocessing import Preprocessing, preprocessing_of
from keras_resnet.training import RECIPES, Recipe, Run, evaluate, open_images, train, trainer
from keras_resnet.training.augment import AUGMENTATIONS
from keras_resnet.training.evaluation import (
    confusion_matrix,
    evaluate_model,
    summarise,
    top_k_accuracy,
    wilson_interval,
)
from keras_resnet.training.optimisation import optimizer_of, schedule_of
from keras_resnet.training.recipes import recipe_of
from keras_resnet.weights import load_model
from tests.pictures import COLOURS, colour_folder

SMALL = Recipe("cifar_resnet8", network={"momentum": 0.5}, image_size=16, epochs=4, batch_size=8, learning_rate=0.05)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_folder(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def finished(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(SMALL, colours, tmp_path_factory.mktemp("runs") / "a", progress=False)


def contents(run: Run) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_an_augmentation_that_exists(name: str) -> None:
    assert RECIPES[name].augmentation in AUGMENTATIONS


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "resnet51"},
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": -1},
        {"image_size": 0},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"seed": -1},
        {"network": {"shortcutt": "A"}},
        {"epoch": 3},
    ],
)
def test_a_recipe_with_an_impossible_value_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        recipe_of("digits", **change)


def test_a_misspelt_field_of_a_recipe_is_offered_the_nearest() -> None:
    with pytest.raises(UsageError, match="'epoch'.*nearest are epochs"):
        recipe_of("digits", epoch=3)


def test_a_finished_run_holds_everything_that_it_should(finished: Run) -> None:
    there = {path.name for path in finished.folder.iterdir()}
    assert there == {
        "run.json",
        "history.csv",
        "curves.png",
        "checkpoints",
        "model.keras",
        "evaluation.json",
        "confusion.png",
        "tensorboard",
        "log.txt",
    }
    assert finished.is_complete
    assert finished.recipe == SMALL
    assert len(finished.log.read_text().splitlines()) == SMALL.epochs
    assert sorted(p.name for p in finished.checkpoints.iterdir()) == ["step-000000015.npz", "step-000000020.npz"]


def test_colours_are_learned(finished: Run) -> None:
    assert finished.read_evaluation()["top1"] == 1.0


def test_the_history_has_a_row_an_epoch(finished: Run) -> None:
    with finished.history.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert set(rows[0]) == {"epoch", "accuracy", "loss", "val_accuracy", "val_loss", "learning_rate"}
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in finished.read_history()]


def test_run_json_says_what_was_run_on_what_with_which_versions(finished: Run, colours: Path) -> None:
    value = json.loads(finished.description.read_text())
    assert value["recipe"]["variant"] == "cifar_resnet8"
    assert value["data"]["classes"] == sorted(COLOURS)
    count = value["data"]["training"]["count"] + value["data"]["validation"]["count"]
    assert count == len(open_images(colours))
    assert value["versions"]["keras"] == keras.version()


def test_the_saved_model_is_that_of_the_best_epoch_and_knows_its_preprocessing(finished: Run, colours: Path) -> None:
    model = load_model(finished.model)
    assert preprocessing_of(model).crop == SMALL.image_size
    held_out = open_images(colours).split(trainer.VALIDATION_FRACTION, seed=0)[0]
    best = max(finished.read_history(), key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    x = preprocessing_of(model).normalise(held_out.pixels(preprocessing_of(model)))
    one_hot = np.eye(len(COLOURS))[held_out.labels]
    scores = np.clip(model.predict(x, verbose=0), keras.config.epsilon(), 1)
    loss = -np.mean(np.sum(one_hot * np.log(scores), axis=1))
    assert loss == pytest.approx(best["val_loss"], rel=1e-4)  # float32 sums in another order


def test_tensorboard_events_hold_the_same_curve(finished: Run) -> None:
    import tensorflow as tf

    (file,) = finished.tensorboard.iterdir()
    found = {}
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            if value.tag == "val_loss":
                found[event.step] = tf.make_ndarray(value.tensor).item()
    assert found == {int(r["epoch"]): pytest.approx(r["val_loss"], rel=1e-6) for r in finished.read_history()}


def test_the_same_call_on_a_complete_run_trains_nothing(finished: Run, colours: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    train(SMALL, colours, finished.folder, progress=False)
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 5}, r"\(epochs: 4 there, 5 now\)"),
        ({"seed": 1}, r"\(seed: 0 there, 1 now\)"),
        ({"image_size": 20}, r"\(image_size: 16 there, 20 now\)"),
        ({"network": {"momentum": 0.6}}, r"\(network: {'momentum': 0.5} there, {'momentum': 0.6} now\)"),
    ],
)
def test_a_run_of_another_recipe_is_not_overwritten_and_what_differs_is_said(
    finished: Run, colours: Path, change: dict[str, Any], said: str
) -> None:
    before = contents(finished)
    with pytest.raises(InputError, match=f"holds a run with another recipe {said}"):
        train(dataclasses.replace(SMALL, **change), colours, finished.folder, progress=False)
    assert contents(finished) == before


def test_a_run_on_other_data_is_not_overwritten_and_what_differs_is_said(finished: Run, tmp_path: Path) -> None:
    other = colour_folder(tmp_path / "colours", seed=1)  # as many pictures of the same names and classes
    before, there = contents(finished), finished.read()["data"]["training"]["hash"]
    with pytest.raises(InputError, match=f"holds a run with another data .*'hash': '{there}'}} there, .* now"):
        train(SMALL, other, finished.folder, progress=False)
    assert contents(finished) == before


@pytest.mark.parametrize("part", ["validation", "test"])
def test_images_of_other_classes_than_those_that_train_are_refused(colours: Path, tmp_path: Path, part: str) -> None:
    other = colour_folder(tmp_path / "other")
    (other / "red").rename(other / "violet")
    with pytest.raises(UsageError, match=r"'other' has classes .*'violet'.*, but 'colours' .*'red'"):
        train(SMALL, colours, tmp_path / "a", **{part: other}, progress=False)
    assert not (tmp_path / "a").exists()


def test_pictures_of_any_size_are_brought_to_that_of_the_recipe(colours: Path, tmp_path: Path) -> None:
    for size in (8, 40):
        recipe = dataclasses.replace(SMALL, image_size=size, epochs=1)
        run = train(recipe, colours, tmp_path / str(size), progress=False)
        assert load_model(run.model).input_shape == (None, size, size, 3)


def test_nonsense_in_tf_config_is_said_before_anything_is_written(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["host1"]}, "task": {"type": "worker", "index": 0}}')
    command = ["train", "--data", str(colours), "--run", str(tmp_path / "a")]
    assert cli.main(command) == 2
    assert capsys.readouterr().err.startswith("keras-resnet: TF_CONFIG has worker 'host1': it must be host:port")
    assert not (tmp_path / "a").exists()
    assert cli.main([*command, "--strategy", "single", "--epochs", "1", "--image-size", "16"]) == 0  # which asks nobody


def test_a_run_whose_epochs_bring_nothing_ends_early_and_is_whole(colours: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALL, learning_rate=1e-12, epochs=60, early_stopping=3)  # statistics alone still move
    run = train(recipe, colours, tmp_path / "a", progress=False)
    ranks = [(row["val_accuracy"], -row["val_loss"]) for row in run.read_history()]
    assert 4 <= len(ranks) < 60
    assert ranks.index(max(ranks)) == len(ranks) - 4
    assert run.is_complete
    assert len(train(recipe, colours, run.folder, progress=False).read_history()) == len(ranks)


def test_a_folder_that_holds_something_else_is_left_alone(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        train(SMALL, colours, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_no_disk_space_is_said_before_training(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(InputError, match="no disk space"):
        train(SMALL, colours, tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_images_smaller_than_the_stride_are_refused_before_anything_is_written(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="smaller than the network's stride"):
        train(dataclasses.replace(SMALL, variant="resnet18", network={}), colours, tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_an_unknown_augmentation_is_offered_the_nearest(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'shfit'"):
        train(dataclasses.replace(SMALL, augmentation="shfit"), colours, tmp_path / "a", progress=False)


def test_evaluating_on_other_classes_is_refused(finished: Run) -> None:
    with pytest.raises(UsageError, match="trained on"):
        evaluate(finished, "digits")


def test_data_with_some_of_a_runs_classes_is_judged_under_the_runs_labels(finished: Run, tmp_path: Path) -> None:
    some = colour_folder(tmp_path / "some")
    shutil.rmtree(some / "blue")
    found = evaluate(finished, some)
    assert (found.count, found.correct) == (24, 24)
    assert found.classes == tuple(sorted(COLOURS))
    assert [row["class"] for row in found.per_class()] == ["green", "red"]


def test_top_5_counts_the_five_best_and_of_equal_ones_the_first() -> None:
    scores = np.array([[6, 5, 4, 3, 2, 1, 0], [0, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7.0]])
    for labels, expected in (([4, 4, 2], 1.0), ([5, 4, 2], 2 / 3), ([5, 5, 1], 0.0)):
        assert top_k_accuracy(scores, np.array(labels)) == pytest.approx(expected)
    assert top_k_accuracy(scores[:, :5], np.array([0, 0, 0])) is None


def test_a_row_a_class_says_how_many_were_right_and_what_the_others_were_taken_for() -> None:
    found = summarise(np.array([0, 0, 0, 0, 1]), np.array([0, 2, 2, 1, 1]), ["a", "b", "c"], "some")
    one, two = found.per_class()  # of class c there is no image
    low, high = wilson_interval(1, 4)
    expected = {"class": "a", "count": 4, "correct": 1, "top1": 0.25, "low": low, "high": high}
    assert one == {**expected, "mostly_mistaken_for": "c"}
    assert (two["top1"], two["mostly_mistaken_for"]) == (1.0, "")


def test_images_at_another_size_than_the_network_reads_are_refused(finished: Run, colours: Path) -> None:
    other = Preprocessing(resize=0, crop=12)
    with pytest.raises(UsageError, match=r"come at 12x12 pixels, .* reads 16x16"):
        evaluate_model(load_model(finished.model), open_images(colours), preprocessing=other)


def test_weight_decay_leaves_normalisation_and_biases_alone(finished: Run) -> None:
    model = load_model(finished.model)
    optimizer = optimizer_of(dataclasses.replace(SMALL, weight_decay=0.1), 1, 1)
    optimizer.build(model.trainable_variables)
    decayed = {v.path.split("/")[-1] for v in model.trainable_variables if optimizer._use_weight_decay(v)}
    assert decayed == {"kernel"}


def rates(recipe: Recipe, steps: list[int]) -> list[float]:
    """The learning rate at some steps of a run of 20 epochs of 10 steps, of which 5 epochs warm up."""
    schedule = schedule_of(dataclasses.replace(recipe, warmup_epochs=5, learning_rate=0.4), 200, 10)
    return [float(schedule(step)) for step in steps]


def test_the_learning_rate_climbs_to_its_peak_and_falls_to_nothing() -> None:
    middle = 125  # of the cosine
    assert rates(SMALL, [0, 25, 50, middle, 200]) == pytest.approx([0.0, 0.2, 0.4, 0.2, 0.0], abs=1e-7)


def test_the_learning_rate_falls_to_a_tenth_at_each_drop() -> None:
    recipe = dataclasses.replace(SMALL, schedule="step", drops=(0.5, 0.75))
    assert rates(recipe, [50, 99, 100, 149, 150, 199]) == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_one_cycle_is_pytorchs() -> None:
    """torch.optim.lr_scheduler.OneCycleLR(max_lr=0.4, total_steps=201, pct_start=0.25, anneal_strategy="cos"), but that
    its climb is a cosine too: from 0.4 / 25 to 0.4 and to 0.4 / 25 / 1e4."""
    expected = [0.4 / 25, 0.4, (0.4 + 0.4 / 25e4) / 2, 0.4 / 25e4]
    assert rates(dataclasses.replace(SMALL, schedule="one_cycle"), [0, 50, 125, 200]) == pytest.approx(expected)


# Published values: Newcombe 1998, Table I, method 3 (Wilson without continuity correction).
@pytest.mark.parametrize(
    ("correct", "count", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_the_interval_is_wilsons(correct: int, count: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(correct, count) == pytest.approx(interval, abs=5e-5)


def test_a_summary_counts_what_is_right_and_what_was_taken_for_what() -> None:
    labels, predictions = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
    result = summarise(labels, predictions, ("a", "b", "c"), "six")
    assert (result.correct, result.count) == (4, 6)
    assert result.confusion == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert confusion_matrix(labels, predictions, 3).sum() == 6


def test_ctrl_c_while_training_ends_with_130_and_the_same_command_finishes(colours: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "keras_resnet.cli", "train", "--data", str(colours), "--run", str(tmp_path / "a")]
    command += ["--epochs", "20", "--image-size", "16", "--batch-size", "8"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stderr is not None
    shown = ""
    while "epoch 2," not in shown and (more := process.stderr.read(1)):  # the progress bar's own words
        shown += more
    assert re.search(r"\d+:\d\d<\d+:\d\d, +[\d.]+image/s", shown)  # the time left, and how fast
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted" in errors
    stopped = Run(tmp_path / "a")
    assert not [path for path in stopped.folder.rglob("*") if path.name.startswith(".partial")]
    assert 2 <= len(stopped.read_history()) < 20
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(stopped.read_history()) == 20
    assert stopped.is_complete


def test_evaluating_a_run_that_was_stopped_does_not_make_it_whole(colours: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    one = dataclasses.replace(SMALL, epochs=1)
    train(one, colours, run.folder, progress=False)
    run.evaluation.unlink()
    assert evaluate(run, colours).count == len(open_images(colours))
    assert not run.is_complete


def test_equal_data_under_another_name_goes_on(finished: Run, tmp_path: Path) -> None:
    again = colour_folder(tmp_path / "renamed")
    assert train(SMALL, again, finished.folder, progress=False).is_complete


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.5,)},
        {"std": (0.5, 0.5, 0.0)},
        {"network": {"classes": 3}},
        {"network": None},
        {"learning_rate": float("inf")},
        {"learning_rate": "a"},
        {"epochs": True},
        {"image_size": 10**6},
        {"variant": ["a"]},
    ],
)
def test_a_recipe_of_nonsense_is_refused_at_once(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        recipe_of("digits", **change)


def test_another_variant_drops_what_was_meant_for_the_recipes_own() -> None:
    assert recipe_of("digits", variant="cifar_resnet20").network == {}
    assert recipe_of("digits", variant="cifar_resnet8").network == RECIPES["digits"].network


def test_training_without_matplotlib_is_refused_before_it_starts(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"keras-resnet-edge\[viz\]"):
        train(SMALL, colours, tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_a_damaged_test_image_is_found_before_training(colours: Path, tmp_path: Path) -> None:
    from PIL import Image

    test = colour_folder(tmp_path / "test")
    file = test / "red" / "000.png"
    Image.open(file).resize((200, 200)).save(test / "red" / "big.jpg")
    file.unlink()
    content = (test / "red" / "big.jpg").read_bytes()
    (test / "red" / "big.jpg").write_bytes(content[: len(content) // 2])  # which only decoding finds
    with pytest.raises(InputError, match=r"big\.jpg"):
        train(SMALL, colours, tmp_path / "a", test=test, progress=False)
    assert not (tmp_path / "a").exists()
