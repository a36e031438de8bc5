"""The training loop: from a recipe and images to a run folder that the same call goes on with, bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_resnet.errors import KerasResnetError, UsageError
from keras_resnet.files import check_space, replacing, write_json
from keras_resnet.training import checkpoint, plots
from keras_resnet.training.checkpoint import Checkpoint
from keras_resnet.training.data import Data, open_images
from keras_resnet.training.evaluation import Evaluation, evaluate_model
from keras_resnet.training.images import Images
from keras_resnet.training.interruption import Terminated, Termination, locked
from keras_resnet.training.recipes import Recipe, recipe_of
from keras_resnet.training.runs import Run, check_run_folder, open_run
from keras_resnet.training.session import Session, open_session
from keras_resnet.training.sources import check_cache, fitted_source
from keras_resnet.training.strategy import deterministic, open_place
from keras_resnet.weights import load_model

VALIDATION_FRACTION = 0.1
COPIES = checkpoint.KEPT + 2  # checkpoints kept, the one being written, and the model
COMPLETE = b"complete"
Row = dict[str, float]


class TrainingError(KerasResnetError, RuntimeError):
    """Training cannot go on: the loss is no number any more."""


def train(
    recipe: str | Recipe,
    data: Data,
    run: str | os.PathLike[str],
    *,
    validation: Data | None = None,
    test: Data | None = None,
    damaged: str = "error",
    cache: str = "auto",
    strategy: str = "auto",
    progress: bool = True,
) -> Run:
    """Train a network and evaluate its best epoch; the same call goes on with a run that was stopped.

    recipe: a name of `RECIPES` or a Recipe; data, validation, test: what `open_images` takes, or Images of the same
    classes; without `validation` a tenth of `data` serves; without `test` the evaluation is on the validation images.
    damaged: "error" or "skip", as for `open_images`; run.json lists what was skipped. cache: where pixels are kept
    between epochs, as for `training_source`. run: the folder to write. strategy: where it takes place, a name of
    `STRATEGIES`; with several workers, each makes this call and the first alone writes. progress: a bar with the time
    left on stderr.

    The best epoch is that of the highest validation accuracy, of those the lowest loss. A run that is complete is
    returned as it is. A run that was stopped, in the middle of an epoch too, ends with the weights and the history of
    one that was not, to the last bit on a CPU. SIGTERM writes a checkpoint and raises SystemExit(143). Raises
    UsageError, InputError before training starts; TrainingError where the loss is no number, WorkerError where another
    worker is lost, InputError where the disk is full: the last checkpoint stands.
    """
    recipe = recipe_of(recipe)
    check_cache(recipe, cache)
    opened = check_run_folder(run)
    plots.check_installed()
    place = open_place(strategy)  # before anything else of TensorFlow's, which several workers need
    with contextlib.ExitStack() as stack:
        termination = stack.enter_context(Termination().noticed())
        stack.enter_context(deterministic())
        training, held_out, tested = open_parts(data, validation, test, damaged)
        described = describe(training=training, validation=held_out, test=tested)
        place.check_equal("a recipe or data", _digest(recipe, described))
        session = open_session(recipe, training, held_out, place, cache)
        if tested is not held_out:  # what memory holds is decoded now: a damaged image shall not wait for the end
            fitted_source(tested, recipe.preprocessing, cache)

        def begin() -> bytes:
            check_space(opened.folder, session.size_bytes * COPIES)
            stack.enter_context(locked(opened.folder))
            sources = {"data": data, "validation": validation, "test": test}
            open_run(opened.folder, recipe, described, place.devices, sources)
            if opened.is_complete:
                return COMPLETE
            checkpoint.sweep(opened.folder)
            found = checkpoint.newest(opened.checkpoints)
            return b"" if found is None else checkpoint.packed(found)

        start = place.from_chief(begin)
        if start != COMPLETE:
            found = checkpoint.read(start) if start else None
            _go_on(session, opened, found, termination, progress and place.is_chief)
            if place.is_chief:
                _finish(opened, tested)
        place.wait_for_all()
    return opened


def evaluate(run: Run | str | os.PathLike[str], data: Data) -> Evaluation:
    """Evaluate a run's best model on labelled images. The run's own evaluation stays as it is.

    Raises UsageError where the classes are not the run's, InputError where it has no model yet.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    return evaluate_model(load_model(run.model), open_images(data), tuple(run.read()["data"]["classes"]))


def _finish(run: Run, tested: Images) -> None:
    """Draw the curves and evaluate the best model; evaluation.json comes last, for it says that the run is whole."""
    with replacing(run.curves) as (scratch,):
        scratch.write_bytes(plots.curves(run.read_history()))
    result = evaluate_model(load_model(run.model), tested, tested.classes)
    with replacing(run.confusion) as (scratch,):
        scratch.write_bytes(plots.confusion(result.confusion, result.classes))
    write_json(run.evaluation, {**asdict(result), "data_hash": tested.hash})


def open_parts(data: Any, validation: Any, test: Any, damaged: str) -> tuple[Images, Images, Images]:
    """The images that train, that choose the epoch, and that the evaluation is on, all of the same classes."""
    training = open_images(data, damaged=damaged)
    held_out, tested = (
        None if source is None else open_images(source, damaged=damaged) for source in (validation, test)
    )
    for part in (held_out, tested):
        if part is not None and part.classes != training.classes:
            raise UsageError(f"data {part.name!r} has classes {part.classes}, but {training.name!r} {training.classes}")
    if held_out is None:
        skipped = training.skipped
        held_out, training = training.split(VALIDATION_FRACTION, seed=0)
        training = replace(training, skipped=skipped)
    return training, held_out, tested or held_out


def describe(**parts: Images) -> dict[str, Any]:
    """What run.json says of the images of a run."""
    return {
        "classes": list(parts["training"].classes),
        **{part: _describe_part(images) for part, images in parts.items()},
    }


def _describe_part(images: Images) -> dict[str, Any]:
    skipped = {"skipped": list(images.skipped)} if images.skipped else {}
    return {"name": images.name, "count": len(images), "hash": images.hash, **skipped}


def _digest(recipe: Recipe, described: dict[str, Any]) -> bytes:
    """Of what must be equal in all workers: names of data may differ."""
    content = {part: value["hash"] for part, value in described.items() if part != "classes"}
    return hashlib.sha256(json.dumps([asdict(recipe), described["classes"], content]).encode()).digest()


def _go_on(session: Session, run: Run, start: Checkpoint | None, termination: Termination, progress: bool) -> None:
    """Train from a checkpoint, or from the beginning, to the end of the run; SIGTERM ends it at a step."""
    place, recipe, steps = session.place, session.recipe, session.steps
    step, rows = 0, []
    if start is not None:
        session.restore(start)
        step, rows = start.step, list(start.history)
    batches = session.batches(step)
    # Files are the chief's affair; what decides is equal in all workers, so that they do the same.
    recorder = _Recorder(run, session) if place.is_chief else None
    with session.progress(step, show=progress) as bar, termination.held_back():
        while True:
            if session.ends_epoch(step):
                if len(rows) < math.ceil(step / steps):
                    rows = _end_epoch(session, recorder, termination, step, rows)
                    bar.set_postfix_str(f"epoch {len(rows)}, validation accuracy {rows[-1]['val_accuracy']:.2%}")
                if step == session.total or _has_stalled(rows, recipe.early_stopping):
                    return
            if termination.requested:
                session.model.wishes.ask()
            loss = session.step(step, batches)
            step += 1
            bar.update(session.images_before(step) - bar.n)
            asked = session.model.wishes.asked_by()
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {step}, in epoch {math.ceil(step / steps)}: the last checkpoint in "
                    f"{str(run.folder)!r} stands; a lower learning_rate, now {recipe.learning_rate}, a longer warm-up "
                    "or clip_norm may help, in another folder"
                )
            if recorder and (asked or (recipe.checkpoint_every and step % recipe.checkpoint_every == 0)):
                recorder.save(step, rows)
            if asked:
                place.wait_for_all()
                _say_terminated(place.name_of(asked), step)
                raise Terminated


def _end_epoch(
    session: Session, recorder: _Recorder | None, termination: Termination, step: int, rows: list[Row]
) -> list[Row]:
    """The rows with that of the epoch that ends at `step`; a process alone leaves at once on SIGTERM."""
    alone = session.place.workers == 1
    try:
        with termination.held_back(not alone):
            row = end_of_epoch(session, rows)
            if recorder:
                recorder.record(step, rows, row)
    except Terminated:
        if recorder:
            recorder.save(step, rows)  # the epoch's end is done again
        _say_terminated("this process", step)
        raise
    return [*rows, row]


def end_of_epoch(session: Session, rows: Sequence[Row]) -> Row:
    """The row of an epoch that has been trained, behind the rows of those before it."""
    figures = {**session.figures(), **session.validate()}
    return {"epoch": len(rows) + 1, **figures, "learning_rate": session.learning_rate}


def _has_stalled(rows: Sequence[Row], patience: int) -> bool:
    """Whether the last `patience` epochs brought no better one."""
    best = max(range(len(rows)), key=lambda i: _rank(rows[i]))
    return bool(patience) and len(rows) - 1 - best >= patience


def _say_terminated(who: str, step: int) -> None:
    print(
        f"\nkeras-resnet: SIGTERM to {who}: the checkpoint of step {step} is written; the same command goes on",
        file=sys.stderr,
    )


class _Recorder:
    """Writes a run's files; the checkpoint last, for it says that what is before it is done."""

    def __init__(self, run: Run, session: Session) -> None:
        self.run, self.session = run, session
        self.events = tf.summary.create_file_writer(str(run.tensorboard))

    def save(self, step: int, rows: list[Row]) -> None:
        checkpoint.save(self.session.captured(step, rows), self.run.checkpoints)

    def record(self, step: int, before: list[Row], row: Row) -> None:
        """Write what an epoch gave, of which `row` tells, and `before` of those before it."""
        if all(_rank(row) > _rank(other) for other in before):
            with replacing(self.run.model) as (scratch,):
                self.session.plain.save(scratch)
        rows = [*before, row]
        self.run.write_history(rows)
        with self.run.log.open("a", encoding="utf-8") as log:
            figures = " ".join(f"{name}={value:.4g}" for name, value in row.items() if name != "epoch")
            log.write(f"{datetime.now().isoformat(timespec='seconds')} epoch {len(rows)}: {figures}\n")
        with self.events.as_default():
            for name, value in row.items():
                _write_scalar(name, value, len(rows))
        self.events.flush()
        self.save(step, rows)


def _rank(row: dict[str, float]) -> tuple[float, float]:
    return row["val_accuracy"], -row["val_loss"]


def _write_scalar(name: str, value: float, step: int) -> None:
    """An event that TensorBoard shows as a curve; tf.summary.scalar would need the tensorboard package."""
    proto = tf.compat.v1.SummaryMetadata
    metadata = proto(plugin_data=proto.PluginData(plugin_name="scalars"), data_class=1)
    tf.summary.write(name, tf.constant(value, tf.float32), step=step, metadata=metadata)
