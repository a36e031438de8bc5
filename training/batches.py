"""From images to batches: a pure function of (seed, epoch, step), whoever asks for whichever part of it.

Nothing here has a state that a restart would lose: the order of an epoch is a permutation drawn from its number, and
what happens to an image is drawn from its place in the global step, the same for one process and for many.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from keras_resnet.preprocessing import Preprocessing, normalise_tensor
from keras_resnet.training.augment import Treatment
from keras_resnet.training.draws import CROP, Draw
from keras_resnet.training.images import Images
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.sources import Source, naming_damaged_images, training_source


def normalised(batches: tf.data.Dataset, preprocessing: Preprocessing) -> tf.data.Dataset:
    """The batches with their pixels normalised in the pipeline, for a plain `fit`, which does not do it itself."""
    return batches.map(lambda x, y: (normalise_tensor(x, preprocessing), y)).prefetch(tf.data.AUTOTUNE)


def training_batches(
    source: Source,
    treatment: Treatment,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    total_steps: int,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Batches (uint8 pixels, float32 targets [batch, classes]) of the global steps `first_step` to `total_steps` - 1.

    A pure function of (seed, epoch, step): a run that goes on at step 700 sees what it would have seen. Each epoch
    shows every image once (with `repeats`, some of them so often); its last batch may be smaller. batch_size: of the
    global batch, of which shard=(i, n) gets the i-th of n consecutive parts, uneven where n does not divide it (none
    for some, where it has fewer images than there are parts): the parts together are the batch of one process.
    """
    count, targets = len(source), tf.constant(source.labels)
    steps, (index, parts) = -(-count // batch_size), shard

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        epoch, begin = step // steps, step % steps * batch_size
        size = tf.minimum(begin + batch_size, count) - begin
        start, stop = size * index // parts, size * (index + 1) // parts
        # Partners that are mixed stand side by side; one that another worker has is made here too, and left out below.
        first, last = (start // 2 * 2, tf.minimum((stop + 1) // 2 * 2, size)) if treatment.mixes else (start, stop)
        # Repeats of an image stand apart, so that it is not mixed with itself. Of the whole batch: shuffling takes no
        # empty part.
        different = -(-size // treatment.repeats)
        order = tf.random.experimental.index_shuffle(
            begin // treatment.repeats + tf.range(size) % different,
            seed=tf.stack([tf.constant(seed, tf.int64), epoch]),
            max_index=count - 1,
        )
        chosen = order[first:last]
        draw = Draw(seed, step, size, first, last)
        y = tf.one_hot(tf.gather(targets, chosen), source.classes)
        x, y = treatment(source.read(chosen, draw.uniform(source.numbers, CROP)), y, draw)
        return x[start - first : stop - first], y[start - first : stop - first]

    data = tf.data.Dataset.range(first_step, total_steps)
    return data.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def batch_of(images: Images, recipe: Recipe, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What a recipe trains on at one global step: uint8 pixels and float32 targets. Raises InputError."""
    batches = training_batches(
        training_source(images, recipe, "none"),
        Treatment.of(recipe),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        first_step=step,
        total_steps=step + 1,
    )
    with naming_damaged_images():
        pixels, targets = next(batches.as_numpy_iterator())
    return pixels, targets


def evaluation_batches(source: Source, *, batch_size: int) -> tf.data.Dataset:
    """Batches (uint8 pixels, one-hot targets) in the images' own order, each image once."""
    count, targets = len(source), tf.constant(source.labels)

    def batch(start: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        places = tf.range(start, tf.minimum(start + batch_size, count))
        numbers = tf.zeros([tf.size(places), source.numbers])
        return source.read(places, numbers), tf.one_hot(tf.gather(targets, places), source.classes)

    data = tf.data.Dataset.range(0, count, batch_size)
    return data.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def batches_of(pixels: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive slices of at most `size` images."""
    return (pixels[start : start + size] for start in range(0, len(pixels), size))
