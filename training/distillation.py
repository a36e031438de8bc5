"""A trained network as teacher: its softened scores become a part of the loss (Hinton et al., arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from keras_resnet import models
from keras_resnet.errors import InputError, KerasResnetError, UsageError
from keras_resnet.preprocessing import normalise_tensor, preprocessing_of
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.runs import Run
from keras_resnet.weights import load_model

_KINDS = "give a run folder, a .keras file or VARIANT:WEIGHTS (`--set teacher=runs/large`)"
LEAST = 1e-7  # probability, as Keras' cross-entropy has it


@dataclass(frozen=True)
class Teacher:
    """A network that answers the same classes; weight: its share of the loss, 0..1; temperature: of the softening."""

    network: keras.Model
    weight: float
    temperature: float

    def blend(self, losses: tf.Tensor, pixels: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
        """The pupil's losses on its own targets, [batch], blended with what it falls short of the teacher's answers.

        pixels: uint8, as the pupil got them; scores: the pupil's, [batch, classes], a softmax.
        """
        x = normalise_tensor(pixels, preprocessing_of(self.network))
        answers = tf.stop_gradient(self.network(x, training=False))
        short = shortfall(tf.cast(answers, scores.dtype), scores, self.temperature)
        return (1 - self.weight) * losses + self.weight * tf.cast(short, losses.dtype)


def shortfall(answers: tf.Tensor, scores: tf.Tensor, temperature: float) -> tf.Tensor:
    """Kullback-Leibler divergence of softened scores from softened answers, times temperature squared, [batch].

    Both are probabilities [batch, classes], of logits that are softened by division by the temperature; the square
    keeps the gradient's size at any temperature (section 2). It has the gradient of the paper's cross-entropy.
    """
    # Logits but for a constant, which a softmax does not see.
    taught, learned = (tf.math.log(tf.maximum(p, LEAST)) / temperature for p in (answers, scores))
    difference = tf.nn.log_softmax(taught) - tf.nn.log_softmax(learned)
    return temperature**2 * tf.reduce_sum(tf.nn.softmax(taught) * difference, axis=-1)


def open_teacher(recipe: Recipe, classes: Sequence[str]) -> Teacher | None:
    """The teacher that a recipe names: a run folder, a `.keras` file or VARIANT:WEIGHTS; None where it names none.

    Raises InputError where it is not there, UsageError where it answers other classes, gives no probabilities, or reads
    images of another size than the recipe trains on.
    """
    if not recipe.teacher:
        return None
    network = _open(recipe.teacher, classes)
    outputs, sides = network.outputs[0].shape[-1], network.inputs[0].shape[1:3]
    called = f"teacher {recipe.teacher!r}"
    if outputs != len(classes):
        raise UsageError(f"{called} answers {outputs} classes, the data has {len(classes)}: give one of the same")
    if any(side not in (None, recipe.image_size) for side in sides):
        raise UsageError(
            f"{called} reads {sides[1]}x{sides[0]} pixels, the recipe trains on image_size={recipe.image_size}: "
            "give one of the same size"
        )
    activation = network.layers[-1].activation
    if activation is not keras.activations.softmax:
        raise UsageError(f"{called} ends in {activation.__name__!r}: give one whose answers are a softmax")
    network.trainable = False
    return Teacher(network, recipe.teacher_weight, recipe.temperature)


def _open(source: str, classes: Sequence[str]) -> keras.Model:
    path, (variant, colon, weights) = Path(source), source.partition(":")
    if path.is_dir():
        run = Run(path)
        known = tuple(run.read().get("data", {}).get("classes", classes))
        if known != tuple(classes):
            raise UsageError(f"teacher {source!r} was trained on classes {known}, the data has {tuple(classes)}")
        path = run.model
    if not path.is_file() and not colon:
        raise InputError(f"teacher {source!r} is not there: {_KINDS}")
    try:
        return load_model(path) if path.is_file() or not colon else models.build(variant, weights=weights)
    except KerasResnetError as error:
        raise InputError(f"teacher {source!r} cannot be opened: {_KINDS} ({error})") from error
