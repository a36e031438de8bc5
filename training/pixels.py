"""Arithmetic on batches of pixels, uint8 [batch, height, width, 3], that more than one augmentation needs."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def to_uint8(values: tf.Tensor) -> tf.Tensor:
    """Rounded and cut to 0..255."""
    return tf.cast(tf.clip_by_value(tf.round(values), 0, 255), tf.uint8)


def warp(images: tf.Tensor, rows: Sequence[tf.Tensor], interpolation: str, fill: float = 0.0) -> tf.Tensor:
    """Each image under its own map from places in the output, (x, y) from 0, to the input; `fill` where nothing was.

    rows: a, b, c, d, e, f, each [batch], of (a x + b y + c, d x + e y + f).
    """
    zero = tf.zeros_like(rows[0])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([*rows, zero, zero], axis=1),
        output_shape=tf.shape(images)[1:3],
        interpolation=interpolation,
        fill_mode="CONSTANT",
        fill_value=fill,
    )


def look_up(images: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Each value replaced by that of its image's and channel's table, uint8 [batch, 3, 256]."""
    count = tf.shape(images)[0]
    rows = 3 * tf.range(count)[:, None, None, None] + tf.range(3)
    return tf.gather(tf.reshape(tables, [-1]), tf.cast(images, tf.int32) + 256 * rows)


def histograms(images: tf.Tensor) -> tf.Tensor:
    """How often each value is in each channel of each image, int32 [batch, 3, 256]."""
    count = tf.shape(images)[0]
    channels = tf.reshape(tf.transpose(images, [0, 3, 1, 2]), [3 * count, -1])
    counts = tf.math.bincount(tf.cast(channels, tf.int32), minlength=256, maxlength=256, axis=-1)
    return tf.reshape(counts, [count, 3, 256])


def grey(images: tf.Tensor) -> tf.Tensor:
    """int32 [batch, height, width, 1]: luma in Pillow's whole numbers (ITU-R 601-2)."""
    red, green, blue = tf.unstack(tf.cast(images, tf.int32), axis=-1)
    return tf.bitwise.right_shift(red * 19595 + green * 38470 + blue * 7471 + 0x8000, 16)[..., None]


def blend(images: tf.Tensor, others: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """`others` + factor * (`images` - `others`), cut to whole numbers 0..255 as Pillow does it; factors: [batch]."""
    base = tf.cast(others, tf.float32)
    values = base + factors[:, None, None, None] * (tf.cast(images, tf.float32) - base)
    return tf.cast(tf.clip_by_value(values, 0, 255), tf.uint8)
