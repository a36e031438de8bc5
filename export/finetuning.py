"""A few more epochs for a network that is being compressed: the loop that native and tfmot's forms share.

No second trainer: no recipe, no checkpoint; the batches are the trainer's, the model is Keras' or tf_keras'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_resnet.errors import InputError
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.augment import Treatment
from keras_resnet.training.batches import evaluation_batches, normalised, training_batches
from keras_resnet.training.sources import held

# What a classifier is fine-tuned by: the name of a loss in both libraries, and its settings
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("CategoricalCrossentropy", {}),
    "sigmoid": ("BinaryCrossentropy", {}),
    "linear": ("CategoricalCrossentropy", {"from_logits": True}),
}


@dataclass(frozen=True)
class Material:
    """What a network is fine-tuned on: pixels, uint8 [n, height, width, 3], and labels, int [n], twice."""

    pixels: np.ndarray
    labels: np.ndarray
    held_out_pixels: np.ndarray  # these choose the epoch
    held_out_labels: np.ndarray
    classes: int
    augmentation: str = "none"  # a name of augment.AUGMENTATIONS
    batch_size: int = 64
    seed: int = 0

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, number: int, preprocessing: Preprocessing) -> tf.data.Dataset:
        """The batches of one epoch, the same for the same number."""
        batches = training_batches(
            held(self.pixels, self.labels, self.classes),
            Treatment(self.augmentation),
            batch_size=self.batch_size,
            seed=self.seed,
            first_step=number * self.steps,
            total_steps=(number + 1) * self.steps,
        )
        return normalised(batches, preprocessing)

    def held_out(self, preprocessing: Preprocessing) -> tf.data.Dataset:
        source = held(self.held_out_pixels, self.held_out_labels, self.classes)
        return normalised(evaluation_batches(source, batch_size=self.batch_size), preprocessing)


def loss_for(activation: str) -> tuple[str, dict[str, Any]]:
    """The row of `LOSSES` for a classifier. Raises InputError for one that no loss is known for."""
    if activation not in LOSSES:
        raise InputError(
            f"the network's classifier ends in {activation!r}: it can be fine-tuned where that is {', '.join(LOSSES)}"
        )
    return LOSSES[activation]


def fine_tune(
    library: Any,
    model: Any,
    material: Material,
    preprocessing: Preprocessing,
    *,
    activation: str,
    epochs: int,
    learning_rate: float,
    bar: tqdm[Any],
    callbacks: Sequence[Any] = (),
    keep_start: bool = False,
) -> list[dict[str, float]]:
    """Fit a model with Adam, a cosine from `learning_rate` to 0, and leave it with the weights of its best epoch.

    library: keras or tf_keras, whichever the model is of; activation: of its classifier; keep_start: what it was before
    the first epoch may be the best. The best epoch is that of the highest accuracy on the images held out, of those the
    lowest loss. Returns a row an epoch, epoch 0 for the start.
    """
    name, settings = loss_for(activation)
    schedule = library.optimizers.schedules.CosineDecay(learning_rate, epochs * material.steps)
    loss = getattr(library.losses, name)(**settings)
    model.compile(library.optimizers.Adam(schedule), loss, metrics=["accuracy"], jit_compile=False)
    ticking = library.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update())
    held_out = material.held_out(preprocessing)
    rows: list[dict[str, float]] = []
    best: tuple[tuple[float, float], list[np.ndarray]] | None = None
    for epoch in range(epochs + 1):
        row: dict[str, float] = {"epoch": epoch}
        if epoch:
            fitted = model.fit(
                material.epoch(epoch - 1, preprocessing),
                callbacks=[*callbacks, ticking],
                shuffle=False,
                verbose=0,
            )
            row |= {key: float(values[0]) for key, values in fitted.history.items()}
        judged = model.evaluate(held_out, verbose=0, return_dict=True)
        row |= {f"val_{key}": float(judged[key]) for key in ("accuracy", "loss")}
        rows.append(row)
        rank = (row["val_accuracy"], -row["val_loss"])
        if (epoch or keep_start) and (best is None or rank > best[0]):
            best = rank, model.get_weights()
        bar.set_postfix_str(f"validation accuracy {row['val_accuracy']:.2%}")
    if best is not None:
        model.set_weights(best[1])
    return rows
