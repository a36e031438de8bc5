"""Several processes train as one does, and end, with a message, where one of them does not go on."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_resnet.training import Run, checkpoint, open_images, train
from keras_resnet.training.recipes import recipe_of
from tests import replicas, workers

STEPS = 5
# Learning rates at which float32 can tell: at 0.05 a value of ReLU that falls on the other side of zero makes 2e-4 in
# five steps, at MIDDLE more than 1e-2 in thirty; at LOW rounding grows to 3e-4 in thirty.
MIDDLE, LOW = 1e-2, 1e-3
SMOOTH = {"synchronized": True, "ema": 0.9, "learning_rate": MIDDLE}
COMMAND = [sys.executable, "-m", "keras_resnet.cli", "train", "--recipe", "digits"]
SETTINGS = {"image_size": 16, "epochs": 12, "learning_rate": 1e-3, "checkpoint_every": 1, "synchronized": True}


def largest(values: dict[str, Any], others: dict[str, Any]) -> float:
    """The largest difference of the network's values, over the largest of them."""
    names = [name for name in values if name.startswith(("model", "average"))]
    scale = max(np.abs(values[name]).max() for name in names)
    return float(max(np.abs(np.subtract(values[name], others[name], dtype=float)).max() for name in names) / scale)


@pytest.mark.parametrize(
    ("count", "precision", "steps", "tolerance", "recipe"),
    [
        (3, "float64", STEPS, 1e-13, {"synchronized": True, "clip_norm": 1.0, "ema": 0.9, "accumulate": 2}),
        pytest.param(2, "float64", STEPS, 1e-13, {"synchronized": True}, marks=pytest.mark.slow),
        pytest.param(2, "float32", STEPS, 1e-4, {"synchronized": True, "ema": 0.9}, marks=pytest.mark.slow),
        pytest.param(2, "float32", STEPS, 1e-4, SMOOTH, marks=pytest.mark.slow),
        pytest.param(3, "float32", STEPS, 1e-4, {"synchronized": True, "clip_norm": 1.0}, marks=pytest.mark.slow),
        pytest.param(2, "float32", 30, 1e-2, {"synchronized": True, "learning_rate": MIDDLE}, marks=pytest.mark.slow),
        pytest.param(2, "float32", 30, 1e-2, {"synchronized": True, "learning_rate": LOW}, marks=pytest.mark.slow),
        pytest.param(3, "float32", 30, 1e-2, {"synchronized": True, "learning_rate": LOW}, marks=pytest.mark.slow),
    ],
)
def test_workers_train_as_one_process_does(
    tmp_path: Path, count: int, precision: str, steps: int, tolerance: float, recipe: dict[str, Any]
) -> None:
    """Uneven parts, and a last batch that neither the workers nor the parts of a batch divide."""
    (one,) = workers.trained(1, steps, tmp_path, precision, **recipe)
    many = workers.trained(count, steps, tmp_path, precision, **recipe)
    np.testing.assert_allclose(many[0]["losses"], one["losses"], rtol=tolerance)
    if precision == "float64":  # rounding of float32 grows with every step
        np.testing.assert_allclose(many[0]["figures"], one["figures"], rtol=1e-6)  # judged in float32
        assert largest(one, many[0]) < 100 * tolerance
    for other in many[1:]:
        assert all(np.array_equal(other[name], value) for name, value in many[0].items())


@pytest.mark.slow
def test_at_a_high_rate_workers_differ_by_what_the_last_bit_of_the_weights_makes(tmp_path: Path) -> None:
    """Training itself is as sensitive as that: rounding in another order cannot do less."""
    recipe = {"synchronized": True, "learning_rate": MIDDLE}
    (one,) = workers.trained(1, 30, tmp_path, **recipe)
    (nudged,) = workers.trained(1, 30, tmp_path, nudged=True, **recipe)
    many = workers.trained(2, 30, tmp_path, **recipe)
    parted, unstable = (np.abs(other["losses"] / one["losses"] - 1).max() for other in (many[0], nudged))
    assert parted <= max(1e-2, 2 * unstable), (parted, unstable)
    assert all(np.array_equal(many[1][name], value) for name, value in many[0].items())


Networks = tuple[list[str], list[list[str]], list[list[str]]]


@pytest.fixture
def networks() -> Iterator[Networks]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(workers.separate_networks())
        except OSError as error:
            pytest.skip(f"needs network namespaces, which root on Linux can make: {error}")
        yield made


@pytest.mark.slow
def test_workers_in_networks_of_their_own_train_as_one_process_does(networks: Networks, tmp_path: Path) -> None:
    hosts, inside, _ = networks
    recipe = {"synchronized": True, "clip_norm": 1.0, "ema": 0.9}
    (one,) = workers.trained(1, STEPS, tmp_path, "float64", **recipe)
    chief, other = workers.trained(2, STEPS, tmp_path, "float64", (hosts, inside), **recipe)
    np.testing.assert_allclose(chief["losses"], one["losses"], rtol=1e-13)
    assert largest(one, chief) < 1e-11
    assert all(np.array_equal(other[name], value) for name, value in chief.items())


@pytest.mark.slow
def test_statistics_that_are_not_synchronised_are_equal_in_all_workers(tmp_path: Path) -> None:
    one, other = workers.trained(2, STEPS, tmp_path)
    assert all(np.array_equal(other[name], value) for name, value in one.items())


@pytest.mark.parametrize(
    "name", ["all", *(pytest.param(name, marks=pytest.mark.slow) for name in replicas.CASES if name != "all")]
)
def test_devices_of_one_machine_train_as_one_device_does(name: str) -> None:
    command = [sys.executable, "-m", "tests.replicas", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])[name]
    assert found["loss"] < 1e-13
    assert found["weights"] < 1e-10  # Adam divides by what is next to nothing
    assert found["val_loss"] < 1e-6  # float32
    assert found["val_accuracy"] < 1e-12


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 digits, of which 90 train."""
    images = open_images("digits").balanced_sample(100)
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, images=np.stack([images[i][0] for i in range(len(images))]), labels=images.labels)
    return path


def command(data: Path, run: Path, **changes: Any) -> list[str]:
    settings = [word for k, v in {**SETTINGS, **changes}.items() for word in ("--set", f"{k}={v}")]
    return [*COMMAND, "--data", str(data), "--run", str(run), *settings]


def wait_for_a_checkpoint(run: Run) -> None:
    end = time.monotonic() + workers.SECONDS
    while not checkpoint.written(run.checkpoints):
        assert time.monotonic() < end, "training did not begin"
        time.sleep(0.05)


def test_sigterm_to_one_worker_stops_all_and_another_number_of_them_goes_on(digits: Path, tmp_path: Path) -> None:
    stopped, alone = Run(tmp_path / "a"), Run(tmp_path / "b")
    hosts = workers.addresses(2)
    processes = workers.start([command(digits, stopped.folder)] * 2, hosts)
    wait_for_a_checkpoint(stopped)
    processes[1].send_signal(signal.SIGTERM)
    for code, error in workers.ended(processes):
        assert code == 143, error
        assert f"SIGTERM to {hosts[1]}: the checkpoint of step" in error
    assert not stopped.is_complete
    for run in (stopped, alone):
        train(recipe_of("digits", **SETTINGS), digits, run.folder, progress=False)
    losses = [[row["loss"] for row in run.read_history()] for run in (stopped, alone)]
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-4)  # of six steps
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "victim", "blow"), [(2, 1, signal.SIGKILL), (3, 0, signal.SIGKILL), (2, 1, signal.SIGSTOP)]
)
def test_a_worker_that_is_lost_is_named_and_the_others_end_within_a_minute(
    digits: Path, tmp_path: Path, count: int, victim: int, blow: signal.Signals
) -> None:
    run, hosts = Run(tmp_path / "a"), workers.addresses(count)
    processes = workers.start([command(digits, run.folder, epochs=2000)] * count, hosts)
    wait_for_a_checkpoint(run)
    processes[victim].send_signal(blow)
    others = [p for i, p in enumerate(processes) if i != victim]
    try:
        for code, error in workers.ended(others, 60):
            assert code == 1
            assert f"keras-resnet: {hosts[victim]} does not answer any more" in error
    finally:
        processes[victim].kill()
        processes[victim].communicate()
    assert checkpoint.newest(run.checkpoints) is not None


@pytest.mark.slow
def test_workers_that_are_started_again_end_as_if_none_had_been_lost(digits: Path, tmp_path: Path) -> None:
    runs = [Run(tmp_path / name) for name in "ab"]
    lost = workers.start([command(digits, runs[0].folder)] * 2, workers.addresses(2))
    wait_for_a_checkpoint(runs[0])
    lost[1].kill()
    workers.ended(lost)
    assert not runs[0].is_complete
    for run in runs:
        for code, error in workers.ended(workers.start([command(digits, run.folder)] * 2, workers.addresses(2))):
            assert code == 0, error
    assert runs[0].history.read_bytes() == runs[1].history.read_bytes()
    states = [checkpoint.written(run.checkpoints)[-1] for run in runs]
    assert states[0].name == states[1].name
    assert states[0].read_bytes() == states[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_workers_whose_cable_is_pulled_name_each_other_and_end_within_a_minute(
    networks: Networks, digits: Path, tmp_path: Path, victim: int
) -> None:
    """No connection is closed here, as it is where a process ends: nothing answers any more."""
    run, (hosts, inside, pulled) = Run(tmp_path / "a"), networks
    processes = workers.start([[*before, *command(digits, run.folder, epochs=2000)] for before in inside], hosts)
    wait_for_a_checkpoint(run)
    subprocess.run(pulled[victim], check=True)
    for i, (code, error) in enumerate(workers.ended(processes, 60)):
        assert code == 1
        assert f"keras-resnet: {hosts[1 - i]} does not answer any more" in error
    assert checkpoint.newest(run.checkpoints) is not None


@pytest.mark.slow
def test_a_worker_that_never_starts_is_named_within_a_minute(digits: Path, tmp_path: Path) -> None:
    hosts = workers.addresses(2)
    processes = workers.start([command(digits, tmp_path / "a")], hosts)
    ((code, error),) = workers.ended(processes, 75)  # with the imports
    assert code == -signal.SIGKILL
    assert f"{hosts[1]} did not start within" in error


@pytest.mark.slow
@pytest.mark.parametrize("other", ["recipe", "pixel", "label"])
def test_a_worker_with_other_data_or_another_recipe_is_named(digits: Path, tmp_path: Path, other: str) -> None:
    hosts, changes = workers.addresses(2), {"seed": 1} if other == "recipe" else {}
    with np.load(digits) as stored:
        images, labels = stored["images"], stored["labels"]
    images[0, 0, 0] ^= other == "pixel"
    labels[[0, -1]] = labels[[-1, 0]] if other == "label" else labels[[0, -1]]
    theirs = tmp_path / "other" / digits.name  # of the same name, number and classes
    theirs.parent.mkdir()
    np.savez(theirs, images=images, labels=labels)
    commands = [command(digits, tmp_path / "a"), command(theirs, tmp_path / "a", **changes)]
    for code, error in workers.ended(workers.start(commands, hosts)):
        assert code == 1
        assert f"{hosts[1]} has a recipe or data other than {hosts[0]}" in error
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_an_error_of_the_first_worker_is_that_of_all(digits: Path, tmp_path: Path) -> None:
    train(recipe_of("digits", **{**SETTINGS, "epochs": 1}), digits, tmp_path / "a", progress=False)
    for code, error in workers.ended(workers.start([command(digits, tmp_path / "a")] * 2, workers.addresses(2))):
        assert code == 1
        assert "holds a run with another recipe" in error


# With plain Keras: what our own StepModel repairs.
PLAIN_KERAS = """
import os, sys
import keras, numpy as np, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
data = tf.data.Dataset.from_tensors((np.ones((4, 4)), np.ones((4, 2)))).repeat()
model.fit(data, steps_per_epoch=2, verbose=0)
"""


@pytest.mark.slow
def test_keras_still_needs_the_repair_of_its_fit_among_workers() -> None:
    """Where this fails, Keras' `fit` works: take `_symbolic_build` and `_maybe_symbolic_build` out of StepModel, and
    the leading axis of its logs."""
    done = workers.ended(workers.start([[sys.executable, "-c", PLAIN_KERAS]] * 2, workers.addresses(2)))
    assert all(code != 0 for code, _ in done)
    assert any("PerReplica" in error or "Invalid reduction dimension" in error for _, error in done)


OURS = PLAIN_KERAS.replace(
    "keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])",
    "keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])\n"
    "    from keras_resnet.training.step import StepModel, Wishes, reduced\n"
    "    model = StepModel(model.inputs, model.outputs)",
).replace(
    'model.compile("sgd", "mse")',
    "model.prepare(keras.losses.mean_squared_error, reduced(keras.optimizers.SGD)(0.1), batch_size=4)",
)


@pytest.mark.slow
def test_fit_of_a_step_model_works_among_workers() -> None:
    for code, error in workers.ended(workers.start([[sys.executable, "-c", OURS]] * 2, workers.addresses(2))):
        assert code == 0, error
