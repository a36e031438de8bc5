"""What is done to images in training: functions of (pixels, Draw) without state, on whole batches.

Each takes uint8 [batch, height, width, channels] and gives the same shape and type. Keras' own random layers keep a
counter, so what they do to an image depends on what they did before: they cannot serve here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import tensorflow as tf

FLIP = 1  # purposes of a Draw

Augmentation = Callable[[tf.Tensor, "Draw"], tf.Tensor]


@dataclass(frozen=True)
class Draw:
    """Random numbers for the images `start` to `stop` - 1 of a global batch of `size`, drawn from (seed, step) alone.

    They are those that the whole batch would get, so an image is treated in the same way whoever holds it.
    """

    seed: int
    step: tf.Tensor | int
    size: tf.Tensor | int
    start: tf.Tensor | int
    stop: tf.Tensor | int

    def uniform(self, count: int, purpose: int = 0) -> tf.Tensor:
        """float32 [images, count] in 0..1; another purpose gives independent numbers."""
        # Seeds are below 2 ** 31, so no two purposes share one.
        key = tf.stack([tf.constant(self.seed + (purpose << 32), tf.int64), tf.cast(self.step, tf.int64)])
        return tf.random.stateless_uniform([self.size, count], key)[self.start : self.stop]


def unchanged(images: tf.Tensor, draw: Draw) -> tf.Tensor:
    """The images as they are."""
    return images


def shift(images: tf.Tensor, draw: Draw) -> tf.Tensor:
    """Move each image by up to an eighth of its sides, black behind: CIFAR's pad-and-crop (arXiv:1512.03385, 4.2)."""
    count, limits = tf.shape(images)[0], tf.shape(images)[2:0:-1] // 8
    moves = tf.floor(draw.uniform(2) * tf.cast(2 * limits + 1, tf.float32)) - tf.cast(limits, tf.float32)
    one, zero = tf.ones([count]), tf.zeros([count])
    return _warp(images, [one, zero, moves[:, 0], zero, one, moves[:, 1]], "NEAREST")


def shift_flip(images: tf.Tensor, draw: Draw) -> tf.Tensor:
    """`shift`, and half of the images mirrored left to right."""
    mirrored = draw.uniform(1, FLIP)[:, :, None, None] < 0.5
    return shift(tf.where(mirrored, images[:, :, ::-1], images), draw)


def affine(images: tf.Tensor, draw: Draw) -> tf.Tensor:
    """Turn by up to 0.2 radians, scale and shear by up to a tenth, move by up to a sixteenth: for handwriting."""
    sides = tf.cast(tf.shape(images)[2:0:-1], tf.float32)
    draws = 2 * draw.uniform(5) - 1
    angle, scale, shear = 0.2 * draws[:, 0], 1 + 0.1 * draws[:, 1], 0.1 * draws[:, 2]
    cosine, sine = scale * tf.cos(angle), scale * tf.sin(angle)
    # Rows of the map from an output position to the input's, about the middle of the image.
    (x, y), (dx, dy) = tf.unstack((sides - 1) / 2), tf.unstack(draws[:, 3:] * sides / 16, axis=1)
    row_x = [cosine, shear - sine, x - cosine * x - (shear - sine) * y + dx]
    row_y = [sine, cosine, y - sine * x - cosine * y + dy]
    return _warp(images, row_x + row_y, "BILINEAR")


def _warp(images: tf.Tensor, rows: list[tf.Tensor], interpolation: str) -> tf.Tensor:
    """Each image under its own map, the six numbers of which are `rows`, each [batch]; black where nothing was."""
    zero = tf.zeros_like(rows[0])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([*rows, zero, zero], axis=1),
        output_shape=tf.shape(images)[1:3],
        interpolation=interpolation,
        fill_mode="CONSTANT",
        fill_value=0.0,
    )


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "none": unchanged,
    "shift": shift,
    "shift_flip": shift_flip,
    "affine": affine,
}
