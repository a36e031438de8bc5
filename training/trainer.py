"""The training loop: Keras' `fit`, from a recipe and images to a run folder that the same call goes on with."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tqdm import tqdm

from keras_resnet import models
from keras_resnet.errors import UsageError, unknown
from keras_resnet.files import check_space, replacing, write_json
from keras_resnet.training import checkpoint, plots
from keras_resnet.training.augment import AUGMENTATIONS, Treatment
from keras_resnet.training.batches import evaluation_batches, normalised, training_batches
from keras_resnet.training.data import open_images
from keras_resnet.training.evaluation import Evaluation, evaluate_model
from keras_resnet.training.images import Images
from keras_resnet.training.recipes import Recipe, recipe_of
from keras_resnet.training.runs import Run, check_run_folder, open_run
from keras_resnet.training.sources import fitted_source, naming_damaged_images, training_source
from keras_resnet.weights import load_model

VALIDATION_FRACTION = 0.1
VARIABLES_A_WEIGHT = 2  # the weight itself and its momentum
COPIES = checkpoint.KEPT + 2  # checkpoints kept, the one being written, and the model


def train(
    recipe: str | Recipe,
    data: str | os.PathLike[str] | Images,
    run: str | os.PathLike[str],
    *,
    validation: str | os.PathLike[str] | Images | None = None,
    test: str | os.PathLike[str] | Images | None = None,
    damaged: str = "error",
    cache: str = "auto",
    progress: bool = True,
) -> Run:
    """Train a network and evaluate its best epoch; the same call goes on with a run that was stopped.

    recipe: a name of `RECIPES` or a Recipe; data, validation, test: what `open_images` takes, or Images of the same
    classes; without `validation` a tenth of `data` serves; without `test` the evaluation is on the validation images.
    damaged: "error" or "skip", as for `open_images`; run.json lists what was skipped. cache: where pixels are kept
    between epochs, as for `training_source`. run: the folder to write. progress: a bar with the time left on stderr.

    The best epoch is that of the highest validation accuracy, of those the lowest loss. A run that is complete is
    returned as it is. Raises UsageError, InputError before training starts.
    """
    recipe = recipe_of(recipe)
    if recipe.augmentation not in AUGMENTATIONS:
        raise unknown("augmentation", recipe.augmentation, AUGMENTATIONS, where="augmentation=")
    check_run_folder(run)
    plots.check_installed()
    training, held_out, tested = _open_parts(data, validation, test, damaged)
    preprocessing = recipe.preprocessing
    keras.utils.set_random_seed(recipe.seed)
    side = recipe.image_size if recipe.evaluation_size == recipe.image_size else None
    model = models.build(
        recipe.variant,
        classes=len(training.classes),
        input_shape=(side, side, 3),
        preprocessing=preprocessing,
        weights=recipe.weights or None,
        **recipe.network,
    )
    check_space(run, model.count_params() * 4 * VARIABLES_A_WEIGHT * COPIES)
    # What memory holds is decoded now, the test images too: a damaged one shall not wait for the end of the training.
    source, judged = training_source(training, recipe, cache), fitted_source(held_out, preprocessing, cache)
    if tested is not held_out:
        fitted_source(tested, preprocessing, cache)
    devices = [device.name for device in tf.config.get_visible_devices()]
    opened = open_run(run, recipe, _describe(training=training, validation=held_out, test=tested), devices)
    if opened.is_complete:
        return opened

    steps = math.ceil(len(training) / recipe.batch_size)
    _compile(model, recipe, steps)
    finished = checkpoint.restore(model, opened.checkpoints)
    history = opened.read_history()[:finished]
    if finished < recipe.epochs:
        batches = training_batches(
            source,
            Treatment.of(recipe),
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            first_step=finished * steps,
            total_steps=recipe.epochs * steps,
        )
        with naming_damaged_images():
            model.fit(
                normalised(batches, preprocessing),
                validation_data=normalised(evaluation_batches(judged, batch_size=recipe.batch_size), preprocessing),
                initial_epoch=finished,
                epochs=recipe.epochs,
                steps_per_epoch=steps,
                callbacks=[_Recorder(opened, history), *([_Progress(steps)] if progress else [])],
                shuffle=False,
                verbose=0,
            )
    _finish(opened, tested)
    return opened


def evaluate(run: Run | str | os.PathLike[str], data: str | os.PathLike[str] | Images) -> Evaluation:
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


def _open_parts(data: Any, validation: Any, test: Any, damaged: str) -> tuple[Images, Images, Images]:
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


def _describe(**parts: Images) -> dict[str, Any]:
    return {
        "classes": list(parts["training"].classes),
        **{part: _describe_part(images) for part, images in parts.items()},
    }


def _describe_part(images: Images) -> dict[str, Any]:
    skipped = {"skipped": list(images.skipped)} if images.skipped else {}
    return {"name": images.name, "count": len(images), "hash": images.hash, **skipped}


def _compile(model: keras.Model, recipe: Recipe, steps: int) -> None:
    warmup = round(min(recipe.warmup_epochs, recipe.epochs / 2) * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(1, recipe.epochs * steps - warmup),
        warmup_target=recipe.learning_rate,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.SGD(
        schedule, momentum=recipe.momentum, nesterov=recipe.momentum > 0, weight_decay=recipe.weight_decay or None
    )
    # Normalisation and biases have no scale to shrink (arXiv:1706.02677, section 5.3).
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    loss = keras.losses.CategoricalCrossentropy()
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)


class _Recorder(keras.callbacks.Callback):
    """Writes a run's files behind each epoch; the checkpoint last, for it says that the epoch is whole."""

    def __init__(self, run: Run, history: Sequence[dict[str, float]]) -> None:
        super().__init__()
        self.run = run
        self.rows = list(history)
        self.events = tf.summary.create_file_writer(str(run.tensorboard))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        row = {"epoch": epoch + 1, **{name: float(value) for name, value in (logs or {}).items()}}
        if all(_rank(row) > _rank(other) for other in self.rows):
            with replacing(self.run.model) as (scratch,):
                self.model.save(scratch)
        self.rows.append(row)
        self.run.write_history(self.rows)
        with self.run.log.open("a", encoding="utf-8") as log:
            figures = " ".join(f"{name}={value:.4f}" for name, value in row.items() if name != "epoch")
            log.write(f"{datetime.now().isoformat(timespec='seconds')} epoch {epoch + 1}: {figures}\n")
        with self.events.as_default():
            for name, value in row.items():
                _write_scalar(name, value, epoch + 1)
        self.events.flush()
        checkpoint.save(self.model, self.run.checkpoints, epoch + 1)


def _rank(row: dict[str, float]) -> tuple[float, float]:
    return row["val_accuracy"], -row["val_loss"]


def _write_scalar(name: str, value: float, step: int) -> None:
    """An event that TensorBoard shows as a curve; tf.summary.scalar would need the tensorboard package."""
    proto = tf.compat.v1.SummaryMetadata
    metadata = proto(plugin_data=proto.PluginData(plugin_name="scalars"), data_class=1)
    tf.summary.write(name, tf.constant(value, tf.float32), step=step, metadata=metadata)


class _Progress(keras.callbacks.Callback):
    """One bar over all steps of the run, on stderr, with the time left."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.bar = tqdm(total=self.params["epochs"] * self.steps, desc="training", unit="step", mininterval=0.5)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.bar.n < epoch * self.steps:  # a run that goes on
            self.bar.n = self.bar.initial = epoch * self.steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.bar.update()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs:
            self.bar.set_postfix_str(f"epoch {epoch + 1}, validation accuracy {logs['val_accuracy']:.2%}")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.bar.close()
