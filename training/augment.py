"""What is done to a batch in training: functions of (pixels, Draw) without state.

Each stage takes uint8 [batch, height, width, 3] and gives the same shape and type. Keras' own random layers keep a
counter, so what they do to an image depends on what they did before: they cannot serve here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_resnet.training import crops, rand_augment
from keras_resnet.training.draws import COLOUR, CUT, ERASE, FLIP, MIX, MIXING, Draw
from keras_resnet.training.pixels import to_uint8, warp

Stage = Callable[[tf.Tensor, Draw], tf.Tensor]

# Principal components of ImageNet's pixels, of AlexNet's code: standard deviations, and a column each, for RGB in 0..1.
PCA_DEVIATIONS = (0.2175, 0.0188, 0.0045)
PCA_AXES = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
PRESENT = 0.2  # share of a mixed image from which on a class is in it


@dataclass(frozen=True)
class Augmentation:
    """How a picture comes to the network's size (None: as in evaluation), and what is then done to the batch."""

    stages: tuple[Stage, ...] = ()
    crop: crops.Crop | None = None


@dataclass(frozen=True)
class Treatment:
    """Everything that is done to a batch; the fields are those of `Recipe`, which says what they mean."""

    augmentation: str = "none"
    rand_augment: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    label_smoothing: float = 0.0
    loss: str = "softmax"

    @classmethod
    def of(cls, recipe: Any) -> Treatment:
        """What a recipe says of it."""
        return cls(**{field.name: getattr(recipe, field.name) for field in dataclasses.fields(cls)})

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images: tf.Tensor, targets: tf.Tensor, draw: Draw) -> tuple[tf.Tensor, tf.Tensor]:
        """What training sees of images, uint8 [batch, height, width, 3], and one-hot targets, float32 [batch, classes].

        Where images are mixed, those of an even place and the next are partners: both must be there.
        """
        for stage in AUGMENTATIONS[self.augmentation].stages:
            images = stage(images, draw)
        if self.rand_augment:
            images = rand_augment.rand_augment(images, draw, self.rand_augment)
        if self.erasing:
            images = erase(images, draw, self.erasing)
        if self.mixes:
            images, targets = mix(images, targets, draw, self.mixup, self.cutmix)
        if self.loss == "bce" and self.mixes:
            targets = tf.cast(targets > PRESENT, tf.float32)
        return images, smooth(targets, self.label_smoothing)


def shift(images: tf.Tensor, draw: Draw) -> tf.Tensor:
    """Move each image by up to an eighth of its sides, black behind: CIFAR's pad-and-crop (arXiv:1512.03385, 4.2)."""
    count, height, width = tf.unstack(tf.shape(images)[:3])
    down, across = height // 8, width // 8
    ranges = tf.cast(tf.stack([2 * across + 1, 2 * down + 1]), tf.float32)
    starts = tf.cast(draw.uniform(2) * ranges, tf.int32)
    padded = tf.pad(images, [[0, 0], [down, down], [across, across], [0, 0]])
    # One gather of pixels by their number: 2.3 times as fast as a warp.
    rows = starts[:, 1:] + tf.range(height) + tf.range(count)[:, None] * (height + 2 * down)
    columns = starts[:, :1] + tf.range(width)
    numbers = rows[:, :, None] * (width + 2 * across) + columns[:, None]
    return tf.gather(tf.reshape(padded, [-1, images.shape[-1]]), numbers)


def flip(images: tf.Tensor, draw: Draw) -> tf.Tensor:
    """Half of the images mirrored left to right."""
    columns = tf.range(tf.shape(images)[2])
    return tf.gather(images, tf.where(draw.uniform(1, FLIP) < 0.5, columns[::-1], columns), axis=2, batch_dims=1)


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
    return warp(images, row_x + row_y, "BILINEAR")


def colour(images: tf.Tensor, draw: Draw) -> tf.Tensor:
    """Add to all pixels of an image one colour along ImageNet's principal components (AlexNet, NIPS 2012, 4.1)."""
    amounts = 0.1 * draw.normal(3, COLOUR) * tf.constant(PCA_DEVIATIONS)
    added = tf.cast(tf.round(255 * tf.linalg.matmul(amounts, tf.constant(PCA_AXES), transpose_b=True)), tf.int16)
    return tf.cast(tf.clip_by_value(tf.cast(images, tf.int16) + added[:, None, None], 0, 255), tf.uint8)


def erase(images: tf.Tensor, draw: Draw, probability: float) -> tf.Tensor:
    """Fill a rectangle of some images with one random colour (arXiv:1708.04896).

    It covers 2 to 33 % of the image, its sides are as 0.3 to 3.3.
    """
    draws, (height, width) = draw.uniform(8, ERASE), _sides(images)
    area = (0.02 + (1 / 3 - 0.02) * draws[:, 1]) * height * width
    ratio = tf.exp(tf.math.log(3.3) * (2 * draws[:, 2] - 1))
    high, wide = tf.sqrt(area * ratio), tf.sqrt(area / ratio)
    inside = _box(height, draws[:, 3] * (height - high), high)[:, :, None]
    inside &= _box(width, draws[:, 4] * (width - wide), wide)[:, None, :]
    chosen = inside & (draws[:, 0] < probability)[:, None, None]
    return tf.where(chosen[..., None], to_uint8(255 * draws[:, None, None, 5:]), images)


def mix(images: tf.Tensor, targets: tf.Tensor, draw: Draw, mixup: float, cutmix: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Images and targets of partners mixed: by mixup (arXiv:1710.09412), cutmix (arXiv:1905.04899), or one of both.

    mixup, cutmix: alpha of the beta distribution that the share is drawn from, 0 for not at all; where both are above
    0, each pair takes one of them. An image of an even place and the next are partners, mixed in the same share; the
    last of an odd number stays as it is.
    """
    count, (height, width) = tf.shape(images)[0], _sides(images)
    partner = tf.minimum(tf.bitwise.bitwise_xor(tf.range(count), 1), count - 1)
    first = tf.range(count) // 2 * 2  # both of a pair take the numbers of the first
    draws = tf.gather(draw.uniform(3, MIXING), first)
    cuts = tf.fill([count], cutmix > 0) if not (mixup and cutmix) else draws[:, 0] < 0.5
    share = tf.ones([count])
    if mixup:
        share = tf.where(cuts, share, tf.gather(draw.beta(mixup, MIX), first))
    blend = share[:, None, None, None]
    others = tf.gather(images, partner)
    if mixup:
        mean = blend * tf.cast(images, tf.float32) + (1 - blend) * tf.cast(others, tf.float32)
        mixed = to_uint8(mean)
    else:
        mixed = images
    if cutmix:
        side = tf.sqrt(1 - tf.gather(draw.beta(cutmix, CUT), first))
        high, wide = side * height, side * width
        inside = _box(height, draws[:, 1] * height - high / 2, high)[:, :, None]
        inside &= _box(width, draws[:, 2] * width - wide / 2, wide)[:, None, :] & cuts[:, None, None]
        mixed = tf.where(inside[..., None], others, mixed)
        kept = 1 - tf.reduce_mean(tf.cast(inside, tf.float32), axis=(1, 2))  # what lies outside the image is no share
        share = tf.where(cuts, kept, share)
    return mixed, share[:, None] * targets + (1 - share[:, None]) * tf.gather(targets, partner)


def smooth(targets: tf.Tensor, amount: float) -> tf.Tensor:
    """Targets with `amount` of their sum spread over all classes (arXiv:1512.00567, section 7)."""
    return targets * (1 - amount) + amount / targets.shape[-1] if amount else targets


def _sides(images: tf.Tensor) -> list[tf.Tensor]:
    return tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float32))


def _box(side: tf.Tensor, start: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Which of `side` pixels have their middle between `start` and `start + length`, each [batch]."""
    middles = tf.range(side)[None] + 0.5
    return (middles >= start[:, None]) & (middles < (start + length)[:, None])


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "none": Augmentation(),
    "shift": Augmentation((shift,)),
    "shift_flip": Augmentation((flip, shift)),
    "affine": Augmentation((affine,)),
    "inception": Augmentation((flip,), crops.inception),
    "scale": Augmentation((flip, colour), crops.scale),
}
