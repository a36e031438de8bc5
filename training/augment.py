"""What is done to images in training: functions of (pixels, seed) without state, on whole batches.

Takes uint8 [batch, height, width, channels], gives the same shape and type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

Augmentation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def unchanged(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """The images as they are."""
    return images


def shift(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Move each image by up to an eighth of its sides, black behind: CIFAR's pad-and-crop (arXiv:1512.03385, 4.2)."""
    count, limits = tf.shape(images)[0], tf.shape(images)[2:0:-1] // 8
    moves = tf.random.stateless_uniform([count, 2], seed, 0.0, 1.0)
    moves = tf.floor(moves * tf.cast(2 * limits + 1, tf.float32)) - tf.cast(limits, tf.float32)
    one, zero = tf.ones([count]), tf.zeros([count])
    return _warp(images, [one, zero, moves[:, 0], zero, one, moves[:, 1]], "NEAREST")


def shift_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """`shift`, and half of the images mirrored left to right."""
    mirrored = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed + 1) < 0.5
    return shift(tf.where(mirrored, images[:, :, ::-1], images), seed)


def affine(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Turn by up to 0.2 radians, scale and shear by up to a tenth, move by up to a sixteenth: for handwriting."""
    sides = tf.cast(tf.shape(images)[2:0:-1], tf.float32)
    draws = tf.random.stateless_uniform([tf.shape(images)[0], 5], seed, -1.0, 1.0)
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
