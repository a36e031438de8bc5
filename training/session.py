"""Everything that one run needs in memory: networks, optimizer, batches, and what of them a checkpoint holds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_resnet import models
from keras_resnet.errors import UsageError
from keras_resnet.normalisation import fuse
from keras_resnet.training.augment import Treatment
from keras_resnet.training.batches import evaluation_batches, training_batches
from keras_resnet.training.checkpoint import Checkpoint, Groups, captured, restore
from keras_resnet.training.distillation import open_teacher
from keras_resnet.training.images import Images
from keras_resnet.training.optimisation import ACTIVATIONS, LOSSES, optimizer_of
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.sources import Source, fitted_source, naming_damaged_images, training_source
from keras_resnet.training.step import StepModel, Wishes
from keras_resnet.training.strategy import Place


@dataclass(frozen=True)
class Session:
    """A run as it stands: `model` trains; `judge` runs the float32 network `plain`, which is what a run gives."""

    recipe: Recipe
    place: Place
    source: Source
    held_out: Source
    model: StepModel
    judge: StepModel
    plain: keras.Model

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.recipe.steps_per_epoch(len(self.source))

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.recipe.total_steps(len(self.source))

    @property
    def groups(self) -> Groups:
        """What a checkpoint holds. The states of seed generators are among the model's variables."""
        return {
            "model": self.model.variables,
            "optimizer": self.model.optimizer.variables,
            "average": self.model.state.averages,
            "totals": [self.model.state.totals],
        }

    def batches(self, first_step: int) -> Iterator[Any]:
        """The batches from a step on, parted among the replicas."""
        recipe = self.recipe
        return iter(
            self.place.batches(
                lambda index, count: training_batches(
                    self.source,
                    Treatment.of(recipe),
                    batch_size=recipe.batch_size,
                    seed=recipe.seed,
                    first_step=first_step,
                    total_steps=self.total,
                    shard=(index, count),
                )
            )
        )

    def step(self, number: int, batches: Iterator[Any]) -> float:
        """Train on the next batch, the one of step `number`; returns the mean loss of the epoch so far."""
        if number % self.steps == 0:
            self.model.reset_metrics()
        self.model.make_train_function()
        with self.place.watched(), naming_damaged_images():
            return float(np.asarray(self.model.train_function(batches)["loss"]))

    def figures(self) -> dict[str, float]:
        """Loss and accuracy of training over the epoch so far, on the replicas together."""
        loss, correct, count = self.model.state.totals.numpy().tolist()
        return {"accuracy": correct / count, "loss": loss / count} if count else {}

    def validate(self) -> dict[str, float]:
        """Loss and accuracy, on the images held out, of the network that a run gives as it is now."""
        values = self.model.state.averages or self.model.averaged
        for variable, value in zip(self.judge.averaged, values, strict=True):
            variable.assign(value.numpy())
        batch_size = self.recipe.batch_size
        data = self.place.batches(lambda i, n: part_of(evaluation_batches(self.held_out, batch_size=batch_size), i, n))
        with self.place.watched(), naming_damaged_images():
            found = self.judge.evaluate(data, steps=-(-len(self.held_out) // batch_size), verbose=0, return_dict=True)
        return {f"val_{name}": float(found[name]) for name in ("accuracy", "loss")}

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    @property
    def size_bytes(self) -> int:
        """Of a checkpoint, about."""
        groups = (variable for group in self.groups.values() for variable in group)
        return sum(4 * math.prod(variable.shape) for variable in groups)  # nearly all is float32

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch, perhaps cut short by the end of the run, ends behind so many steps."""
        return step > 0 and (step % self.steps == 0 or step == self.total)

    def images_before(self, step: int) -> int:
        """How many images the steps before this one show."""
        epochs, rest = divmod(step, self.steps)
        return epochs * len(self.source) + min(rest * self.recipe.batch_size, len(self.source))

    def progress(self, step: int, show: bool) -> tqdm[Any]:
        """A bar over the images of the whole run, on stderr, with their rate and the time left."""
        return tqdm(
            total=self.images_before(self.total),
            initial=self.images_before(step),
            desc="training",
            unit="image",
            mininterval=0.5,
            disable=not show,
        )

    def captured(self, step: int, history: list[dict[str, float]]) -> Checkpoint:
        return captured(self.groups, step, history)

    def restore(self, checkpoint: Checkpoint) -> None:
        restore(checkpoint, self.groups)


def open_session(recipe: Recipe, training: Images, held_out: Images, place: Place, cache: str = "auto") -> Session:
    """The networks of a run, freshly initialised, and its images; cache as for `training_source`.

    Raises UsageError, InputError.
    """
    _check_batches(recipe, len(training), place.replicas)
    classes = len(training.classes)
    keras.utils.set_random_seed(recipe.seed)
    loss = LOSSES[recipe.loss]
    shared: dict[str, Any] = {
        "classes": classes,
        "preprocessing": recipe.preprocessing,
        "classifier_activation": ACTIVATIONS[recipe.loss],
        **recipe.network,
    }
    wishes = Wishes(place.workers, place.worker)
    with place.scope():
        side = recipe.image_size
        with _precision(recipe.precision):
            network = models.build(
                recipe.variant, weights=recipe.weights or None, input_shape=(side, side, 3), **shared
            )
        teacher = open_teacher(recipe, training.classes)
        if recipe.synchronized:
            fuse(network, synchronised=True)
        model = StepModel(network.inputs, network.outputs).prepare(
            loss,
            optimizer_of(recipe, recipe.total_steps(len(training)), recipe.steps_per_epoch(len(training))),
            preprocessing=recipe.preprocessing,
            batch_size=recipe.batch_size,
            accumulate=recipe.accumulate,
            average=recipe.ema,
            synchronized=recipe.synchronized,
            wishes=wishes,
            teaching=None if teacher is None else teacher.blend,
        )
        side = recipe.evaluation_size
        with _precision("float32"):
            plain = models.build(recipe.variant, input_shape=(side, side, 3), **shared)
        judge = StepModel(plain.inputs, plain.outputs).prepare(loss, preprocessing=recipe.preprocessing)
    source, judged = training_source(training, recipe, cache), fitted_source(held_out, recipe.preprocessing, cache)
    return Session(recipe, place, source, judged, model, judge, plain)


def part_of(batches: tf.data.Dataset, index: int, count: int) -> tf.data.Dataset:
    """(x, y, weight) of the part `index` of `count` of each batch (x, y), consecutive and uneven where it must be.

    A part that would be empty, which kernels cannot take, gets an image of weight 0.
    """

    def cut(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        size = tf.shape(y)[0]
        start, stop = size * index // count, size * (index + 1) // count
        end = tf.maximum(stop, start + 1)
        return x[start:end], y[start:end], tf.cast(tf.range(start, end) < stop, tf.float32)

    return batches.map(cut)


def _check_batches(recipe: Recipe, images: int, replicas: int) -> None:
    """Every replica needs an image in every part of every batch, the last and smallest of an epoch too."""
    parts = replicas * recipe.accumulate
    smallest = images % recipe.batch_size or recipe.batch_size
    smallest = min(smallest, images)
    if smallest < parts:
        raise UsageError(
            f"batch_size={recipe.batch_size} leaves {smallest} of {images} images for the last batch of an epoch, "
            f"which {replicas} devices times accumulate={recipe.accumulate} cannot share: choose another batch_size"
        )


@contextlib.contextmanager
def _precision(policy: str) -> Iterator[None]:
    """The types that layers are made with."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
