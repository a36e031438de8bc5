"""A run that is stopped at any moment, by whatever, ends as one that never was."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_resnet import cli
from keras_resnet.errors import InputError
from keras_resnet.training import Recipe, Run, checkpoint, replay, session, train, trainer, verify_run
from keras_resnet.training.interruption import locked
from keras_resnet.training.session import Session
from keras_resnet.training.trainer import TrainingError
from keras_resnet.weights import load_model
from tests.conftest import SEED
from tests.pictures import colour_folder

# Everything that has a state: momentum, a moving average, stochastic depth's generators, checkpoints inside an epoch
RECIPE = Recipe(
    "cifar_resnet8",
    network={"momentum": 0.5, "stochastic_depth": 0.3},
    image_size=16,
    epochs=5,
    batch_size=5,
    learning_rate=0.05,
    ema=0.9,
    checkpoint_every=3,
)
STEPS = 7  # an epoch: 33 of 36 pictures train

# Trains, and kills itself: a while after the first step, or in the middle of writing the nth checkpoint.
PROGRAM = """
import os, signal, sys, threading
from keras_resnet.training import checkpoint, session, train
from tests.test_resume import RECIPE

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

data, run, kind, number = *sys.argv[1:4], float(sys.argv[4])
step, write, written = session.Session.step, checkpoint.Checkpoint.write, []

def killed_after_a_while(self, *arguments):
    if not written:
        written.append(threading.Timer(number, kill))
        written[0].start()
    return step(self, *arguments)

def killed_while_writing(self, file):
    written.append(self)
    if len(written) == number:
        file.write(checkpoint.packed(self)[:10_000])
        file.flush()
        kill()
    write(self, file)

if kind == "moment":
    session.Session.step = killed_after_a_while
elif kind == "write":
    checkpoint.Checkpoint.write = killed_while_writing
train(RECIPE, data, run, progress=False)
"""


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_folder(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def finished(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(RECIPE, colours, tmp_path_factory.mktemp("runs") / "a", progress=False)


def assert_equal(run: Run, other: Run) -> None:
    """History, weights, and all that the last checkpoint holds, to the last bit."""
    assert run.history.read_bytes() == other.history.read_bytes()
    ours, theirs = (checkpoint.written(r.checkpoints)[-1] for r in (run, other))
    assert ours.name == theirs.name
    assert ours.read_bytes() == theirs.read_bytes()
    for one, two in zip(load_model(run.model).weights, load_model(other.model).weights, strict=True):
        assert np.array_equal(one.numpy(), two.numpy())
    assert run.read_evaluation() == other.read_evaluation()


def killed(kinds: list[tuple[str, float]], colours: Path, folder: Path) -> Run:
    """A run that was killed in those ways, one behind the other, and then left alone."""
    for kind, number in [*kinds, ("", 0)]:
        command = [sys.executable, "-c", PROGRAM, str(colours), str(folder), kind, str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if Run(folder).is_complete:  # the moment was behind the end
            assert done.returncode == 0, done.stderr
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    return Run(folder)


def test_a_run_killed_at_a_moment_and_in_a_write_ends_as_one_that_was_not(
    finished: Run, colours: Path, tmp_path: Path
) -> None:
    run = killed([("write", 2), ("moment", random.uniform(0.1, 1.0))], colours, tmp_path / "a")
    assert_equal(run, finished)
    assert not list(run.folder.rglob(".partial*"))


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(3))
def test_a_run_killed_many_times_ends_as_one_that_was_not(
    finished: Run, colours: Path, tmp_path: Path, round_: int
) -> None:
    draw = random.Random(f"{SEED} {round_}")
    ways = [("write", draw.randint(1, 3)) if i % 3 == 0 else ("moment", draw.uniform(0, 0.5)) for i in range(8)]
    assert_equal(killed(ways, colours, tmp_path / "a"), finished)


def stopping_at(step: int, error: BaseException) -> Callable[..., Any]:
    """`Session.step`, but that it raises in place of one step."""
    take = Session.step

    def stopped(self: Session, number: int, batches: Any) -> float:
        if number == step:
            raise error
        return take(self, number, batches)

    return stopped


@pytest.mark.parametrize("step", [1, 3 * STEPS + 4])
def test_a_run_stopped_at_a_step_goes_on_from_the_last_checkpoint(
    finished: Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Session, "step", stopping_at(step, KeyboardInterrupt()))
        train(RECIPE, colours, tmp_path / "a", progress=False)
    taken: list[int] = []
    take = Session.step
    monkeypatch.setattr(Session, "step", lambda s, n, b: (taken.append(n), take(s, n, b))[1])
    assert_equal(train(RECIPE, colours, tmp_path / "a", progress=False), finished)
    assert taken[0] == step - step % RECIPE.checkpoint_every  # nothing is lost but the steps since


def test_a_damaged_checkpoint_is_said_and_passed_over(
    finished: Run, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.folder, tmp_path / "a")
    run = Run(tmp_path / "a")
    run.evaluation.unlink()
    newest = checkpoint.written(run.checkpoints)[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert_equal(train(RECIPE, colours, run.folder, progress=False), finished)
    assert f"checkpoint {str(newest)!r} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("place", range(0, 1000, 37))
def test_a_checkpoint_with_one_byte_changed_is_the_same_or_refused(finished: Run, place: int) -> None:
    content = bytearray(checkpoint.written(finished.checkpoints)[-1].read_bytes())
    good = checkpoint.read(bytes(content))
    content[len(content) * place // 1000] ^= 0x10
    try:
        found = checkpoint.read(bytes(content))
    except InputError:
        return
    assert found.step == good.step  # a byte that means nothing, as a date
    assert found.history == good.history
    assert all(np.array_equal(found.values[name], value) for name, value in good.values.items())


def test_a_checkpoint_of_another_network_changes_nothing(finished: Run) -> None:
    import keras

    found = checkpoint.newest(finished.checkpoints)
    assert found is not None
    variable = keras.Variable(np.ones(3))
    with pytest.raises(InputError, match="other shapes"):
        checkpoint.restore(found, {"model": [variable]})
    assert variable.numpy().tolist() == [1, 1, 1]


def test_the_states_of_seed_generators_are_in_a_checkpoint(finished: Run) -> None:
    found = checkpoint.newest(finished.checkpoints)
    assert found is not None
    generators = [v for v in found.values.values() if v.dtype.kind in "iu" and v.shape == (2,)]
    assert len(generators) == 3  # one a block
    assert len({v.tobytes() for v in generators}) == 3


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_its_checkpoint(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = session.StepModel.train_step

    def spoilt(self: Any, data: Any) -> Any:
        import tensorflow as tf

        logs = train_step(self, data)
        is_late = tf.equal(tf.convert_to_tensor(self.optimizer.iterations), STEPS + 2)
        return {name: tf.where(is_late, value * np.nan, value) for name, value in logs.items()}

    monkeypatch.setattr(session.StepModel, "train_step", spoilt)
    with pytest.raises(TrainingError, match=f"the loss is nan at step {STEPS + 2}, in epoch 2"):
        train(RECIPE, colours, tmp_path / "a", progress=False)
    found = checkpoint.newest(tmp_path / "a" / "checkpoints")
    assert found is not None
    assert found.step == STEPS  # and not that of step 9, which is due at the same time
    assert all(np.isfinite(value).all() for value in found.values.values())


def test_a_full_disk_in_the_middle_of_a_checkpoint_leaves_the_one_before(
    finished: Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.Checkpoint.write

    def full(self: Any, file: Any) -> None:
        if self.step == 2 * RECIPE.checkpoint_every:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, file)

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"step 6 .*No space.* step 3 stands"):
        patch.setattr(checkpoint.Checkpoint, "write", full)
        train(RECIPE, colours, tmp_path / "a", progress=False)
    folder = tmp_path / "a" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-000000003.npz"]
    assert_equal(train(RECIPE, colours, tmp_path / "a", progress=False), finished)


def test_a_second_trainer_on_a_folder_is_refused_and_a_lock_ends_with_its_process(
    colours: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    program = (
        "import sys, time; from pathlib import Path; from keras_resnet.training.interruption import locked\n"
        "with locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match="is being trained by another process"):
        train(RECIPE, colours, folder, progress=False)
    other.kill()
    other.communicate()
    with locked(folder):
        assert list(folder.iterdir()) == []  # the lock is no file


def test_sigterm_writes_a_checkpoint_and_ends_with_143(finished: Run, colours: Path, tmp_path: Path) -> None:
    program = PROGRAM.replace("signal.SIGKILL", "signal.SIGTERM")
    command = [sys.executable, "-c", program, str(colours), str(tmp_path / "a"), "moment", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr
    assert "SIGTERM to this process: the checkpoint of step" in done.stderr
    assert "Traceback" not in done.stderr
    assert_equal(train(RECIPE, colours, tmp_path / "a", progress=False), finished)


def test_sigterm_at_the_end_of_an_epoch_loses_no_step(
    finished: Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validate(self: Session) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("SIGTERM came late")

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(Session, "validate", validate)
        train(RECIPE, colours, tmp_path / "a", progress=False)
    assert left.value.code == 143
    found = checkpoint.newest(tmp_path / "a" / "checkpoints")
    assert found is not None
    assert (found.step, found.history) == (STEPS, [])
    assert_equal(train(RECIPE, colours, tmp_path / "a", progress=False), finished)


def test_steps_of_a_run_taken_again_give_what_it_has_stored(finished: Run) -> None:
    found = verify_run(finished)
    assert found.is_equal
    assert (found.first, found.last) == (33, 5 * STEPS)


def test_the_command_says_whether_a_run_can_be_taken_again(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify-run", str(finished.folder)]) == 0
    assert f"steps 33 to {5 * STEPS} of {finished.folder} taken again" in capsys.readouterr().out
    shutil.copytree(finished.folder, tmp_path / "a")
    stored = checkpoint.newest(tmp_path / "a" / "checkpoints")
    assert stored is not None
    values = {**stored.values, "model00001": stored.values["model00001"] + 1e-3}
    checkpoint.save(dataclasses.replace(stored, values=values), tmp_path / "a" / "checkpoints")
    assert cli.main(["verify-run", str(tmp_path / "a"), "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["differing"] == ["model00001"]
    assert "1 differ (model00001)" in shown.err


def test_a_run_that_was_tampered_with_is_found_out(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "a")
    stored = checkpoint.newest(tmp_path / "a" / "checkpoints")
    assert stored is not None
    values = {**stored.values, "model00000": np.nextafter(stored.values["model00000"], np.inf, dtype=np.float32)}
    history = [*stored.history[:-1], {**stored.history[-1], "val_accuracy": 1.5}]
    checkpoint.save(dataclasses.replace(stored, values=values, history=history), tmp_path / "a" / "checkpoints")
    assert replay.verify_run(tmp_path / "a").differing == ("model00000", "history[5]")


def test_taking_steps_again_on_other_data_is_refused(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another data"):
        verify_run(finished, data=colour_folder(tmp_path / "other", seed=1))


def test_a_run_in_steps_ends_in_the_middle_of_an_epoch(colours: Path, tmp_path: Path) -> None:
    run = train(dataclasses.replace(RECIPE, steps=STEPS + 4), colours, tmp_path / "a", progress=False)
    assert len(run.read_history()) == 2
    assert checkpoint.step_of(checkpoint.written(run.checkpoints)[-1]) == STEPS + 4
    assert verify_run(run).is_equal


def test_training_ends_early_where_epochs_bring_nothing() -> None:
    rows = [{"val_accuracy": a, "val_loss": 1.0} for a in (0.1, 0.3, 0.2, 0.3, 0.4)]
    assert [trainer._has_stalled(rows[:n], 2) for n in range(1, 6)] == [False, False, False, True, False]
    assert not any(trainer._has_stalled(rows[:n], 0) for n in range(1, 6))
