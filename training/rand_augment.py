"""RandAugment (arXiv:1909.13719) on whole batches, without state, with the operations and ranges of timm's.

Source: timm 1.0.31, data/auto_augment.py, "rand-m7-mstd0.5-inc1": the operations are Pillow's, and the stronger the
higher the magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from keras_resnet.training.draws import LEVEL, RAND, Draw
from keras_resnet.training.pixels import blend, grey, histograms, look_up, warp

LAYERS = 2  # operations an image
PROBABILITY = 0.5  # of each
DEVIATION = 0.5  # of the magnitude, about the one asked for
MOST = 10.0  # magnitude
FILL = 128.0  # grey, where a map finds no pixel

# Takes uint8 [n, height, width, 3], and levels 0..1 and signs -1 or 1, float32 [n].
Operation = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def rand_augment(images: tf.Tensor, draw: Draw, magnitude: float) -> tf.Tensor:
    """Two operations of `OPERATIONS` an image, each done with probability 1/2, of `magnitude` 0 to 10."""
    levels = tf.clip_by_value(magnitude + DEVIATION * draw.normal(LAYERS, LEVEL), 0, MOST) / MOST
    draws = tf.reshape(draw.uniform(3 * LAYERS, RAND), [-1, LAYERS, 3])
    for layer in range(LAYERS):
        which, done, side = tf.unstack(draws[:, layer], axis=1)
        kinds = tf.cast(which * len(OPERATIONS), tf.int32)
        kinds = tf.where(done < PROBABILITY, kinds, len(OPERATIONS))  # the last part stays as it is
        images = _each_its_own(images, kinds, levels[:, layer], tf.where(side < 0.5, -1.0, 1.0))
    return images


def _each_its_own(images: tf.Tensor, kinds: tf.Tensor, levels: tf.Tensor, signs: tf.Tensor) -> tf.Tensor:
    parts = len(OPERATIONS) + 1
    split = [tf.dynamic_partition(part, kinds, parts) for part in (tf.range(tf.size(kinds)), images, levels, signs)]
    places, pictures, strengths, sides = split
    done = [
        tf.cond(tf.size(at) > 0, lambda f=f, x=x, s=s, d=d: f(x, s, d), lambda x=x: x)
        for f, at, x, s, d in zip(OPERATIONS.values(), places, pictures, strengths, sides, strict=False)
    ]
    return tf.reshape(tf.dynamic_stitch(places, [*done, pictures[-1]]), tf.shape(images))


def _auto_contrast(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    low = tf.cast(tf.reduce_min(images, axis=(1, 2)), tf.float64)[..., None]
    high = tf.cast(tf.reduce_max(images, axis=(1, 2)), tf.float64)[..., None]
    values = tf.range(256, dtype=tf.float64)
    scale = 255 / tf.maximum(high - low, 1)
    tables = tf.where(high > low, values * scale - low * scale, values)
    return look_up(images, tf.cast(tf.clip_by_value(tables, 0, 255), tf.uint8))


def _equalize(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    counts = histograms(images)
    highest = tf.cast(tf.reduce_max(images, axis=(1, 2)), tf.int32)
    step = (tf.reduce_sum(counts, axis=-1) - tf.gather(counts, highest, batch_dims=2)) // 255
    step = step[..., None]
    tables = (step // 2 + tf.cumsum(counts, axis=-1, exclusive=True)) // tf.maximum(step, 1)
    return look_up(images, tf.cast(tf.where(step > 0, tf.minimum(tables, 255), tf.range(256)), tf.uint8))


def _invert(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    return 255 - images


def _posterize(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    dropped = 4 + tf.cast(4 * level, tf.int32)  # of the eight bits
    masks = 256 - tf.bitwise.left_shift(tf.ones_like(dropped), dropped)
    return tf.bitwise.bitwise_and(images, tf.cast(masks, tf.uint8)[:, None, None, None])


def _solarize(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    threshold = 256 - tf.cast(256 * level, tf.int32)[:, None, None, None]
    return tf.where(tf.cast(images, tf.int32) < threshold, images, 255 - images)


def _solarize_add(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    values = tf.cast(images, tf.int32)
    added = tf.minimum(values + tf.cast(110 * level, tf.int32)[:, None, None, None], 255)
    return tf.cast(tf.where(values < 128, added, values), tf.uint8)


def _factor(level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    return tf.maximum(0.1, 1 + 0.9 * level * sign)


def _colour(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    return blend(images, grey(images), _factor(level, sign))


def _contrast(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(tf.cast(grey(images), tf.float64), axis=(1, 2, 3), keepdims=True)
    return blend(images, tf.floor(mean + 0.5), _factor(level, sign))


def _brightness(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    return blend(images, tf.zeros_like(images), _factor(level, sign))


def _sharpness(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    values, (height, width) = tf.cast(images, tf.float32), tf.unstack(tf.shape(images)[1:3])
    kernel = tf.constant([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13
    kernel = tf.tile(kernel[..., None, None], [1, 1, 3, 1])
    smoothed = tf.floor(tf.nn.depthwise_conv2d(values, kernel, [1, 1, 1, 1], "SAME") + 0.5)
    rows, columns = tf.range(height), tf.range(width)
    inside = ((rows > 0) & (rows < height - 1))[:, None] & ((columns > 0) & (columns < width - 1))
    return blend(images, tf.where(inside[..., None], smoothed, values), _factor(level, sign))


def _mapped(images: tf.Tensor, *rows: tf.Tensor | float) -> tf.Tensor:
    """Under Pillow's map, which is between the middles of pixels, half a pixel off their numbers."""
    a, b, c, d, e, f = (tf.zeros(tf.shape(images)[:1]) + value for value in rows)
    return warp(images, [a, b, c + (a + b - 1) / 2, d, e, f + (d + e - 1) / 2], "BILINEAR", FILL)


def _rotate(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    angle = -sign * level * math.radians(30)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    y, x = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float32) / 2)
    return _mapped(images, cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)


def _shear_x(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    return _mapped(images, 1.0, 0.3 * level * sign, 0.0, 0.0, 1.0, 0.0)


def _shear_y(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    return _mapped(images, 1.0, 0.0, 0.0, 0.3 * level * sign, 1.0, 0.0)


def _translate_x(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    pixels = 0.45 * level * sign * tf.cast(tf.shape(images)[2], tf.float32)
    return _mapped(images, 1.0, 0.0, pixels, 0.0, 1.0, 0.0)


def _translate_y(images: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    pixels = 0.45 * level * sign * tf.cast(tf.shape(images)[1], tf.float32)
    return _mapped(images, 1.0, 0.0, 0.0, 0.0, 1.0, pixels)


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "colour": _colour,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
