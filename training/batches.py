"""From images to batches on the device: what order they come in is a pure function of (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.augment import Augmentation


def normalise(images: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """uint8 pixels to what the network reads, on the device that trains; the formula of `Preprocessing.normalise`."""
    x = tf.cast(images[..., ::-1] if preprocessing.order == "bgr" else images, tf.float32)
    return (x / preprocessing.scale - tf.constant(preprocessing.mean)) / tf.constant(preprocessing.std)


def training_batches(
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    first_epoch: int,
    epochs: int,
) -> tf.data.Dataset:
    """Batches (x, one-hot labels) of epochs `first_epoch` to `epochs`: a pure function of (seed, epoch, step).

    So a run that goes on in epoch 7 sees what it would have seen. The last batch of an epoch may be smaller.
    """
    count, images, targets = len(pixels), tf.constant(pixels), tf.constant(labels)
    steps = -(-count // batch_size)

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        epoch, start = step // steps, step % steps * batch_size
        positions = tf.range(start, tf.minimum(start + batch_size, count))
        # The order of an epoch is a permutation drawn from its number, not from a state that a restart would lose.
        order = tf.random.experimental.index_shuffle(
            positions, seed=tf.cast(tf.stack([tf.cast(seed, tf.int64), epoch]), tf.int64), max_index=count - 1
        )
        x = augmentation(tf.gather(images, order), tf.stack([tf.cast(seed, tf.int64), step]))
        return normalise(x, preprocessing), tf.one_hot(tf.gather(targets, order), classes)

    data = tf.data.Dataset.range(first_epoch * steps, epochs * steps)
    return data.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(
    pixels: np.ndarray, labels: np.ndarray, *, classes: int, preprocessing: Preprocessing, batch_size: int
) -> tf.data.Dataset:
    """Batches (x, one-hot labels) in the images' own order, each image once."""
    data = tf.data.Dataset.from_tensor_slices((pixels, labels)).batch(batch_size)
    return data.map(lambda x, y: (normalise(x, preprocessing), tf.one_hot(y, classes)))


def batches_of(pixels: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive slices of at most `size` images."""
    return (pixels[start : start + size] for start in range(0, len(pixels), size))
