"""Where the pictures of a batch come from: pixels held in memory or on disk, or files decoded as they are needed."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from huggingface_hub import constants

from keras_resnet.errors import InputError, UsageError, unknown
from keras_resnet.files import check_space, replacing
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.augment import AUGMENTATIONS
from keras_resnet.training.crops import Crop
from keras_resnet.training.images import DECODERS, Images
from keras_resnet.training.recipes import Recipe

HELD_BYTES = 2 << 30  # up to so many pixels stay in memory where nobody says otherwise
CACHES = ("auto", "memory", "disk", "none")
DECODED_AT_ONCE = 256


@dataclass(frozen=True)
class Source:
    """Where the pictures of a batch come from.

    labels: int64 [n], below `classes`; read: from places int64 [batch] and random numbers float32 [batch, `numbers`]
    in 0..1 to uint8 [batch, height, width, channels], all of one size.
    """

    labels: np.ndarray
    classes: int
    read: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    numbers: int = 0

    def __len__(self) -> int:
        return len(self.labels)


def training_source(images: Images, recipe: Recipe, cache: str = "auto") -> Source:
    """Pictures as a recipe trains on them, before its augmentation: cut anew each time, or fitted to one size.

    cache: where pixels stay between epochs: "memory", "disk" (a folder of caches; said once), "none" (decoded anew each
    time), "auto" (memory up to 2 GiB, else none). Raises UsageError where the recipe's crop leaves nothing to keep,
    InputError for a damaged image, where all are decoded at once.
    """
    check_cache(recipe, cache)
    crop = AUGMENTATIONS[recipe.augmentation].crop
    if crop is None:
        return fitted_source(images, recipe.training_preprocessing, cache)
    return _cutting(images, crop, recipe.image_size)


def check_cache(recipe: Recipe, cache: str) -> None:
    """Raise UsageError for an augmentation or a cache that is unknown, or where both do not go together."""
    if recipe.augmentation not in AUGMENTATIONS:
        raise unknown("augmentation", recipe.augmentation, AUGMENTATIONS, where="augmentation=")
    if cache not in CACHES:
        raise unknown("cache", cache, CACHES, where="cache=")
    if AUGMENTATIONS[recipe.augmentation].crop and cache in ("memory", "disk"):
        raise UsageError(
            f"cache={cache!r} does not go with augmentation={recipe.augmentation!r}, which cuts each picture anew: "
            "leave it out; `keras-resnet data pack` makes files quick to read"
        )


def fitted_source(images: Images, preprocessing: Preprocessing, cache: str = "auto") -> Source:
    """Pictures as in evaluation, exactly decoded; cache: as for `training_source`."""
    if cache not in CACHES:
        raise unknown("cache", cache, CACHES, where="cache=")
    if cache == "disk":
        return _on_disk(images, preprocessing)
    first = images.fitted(0, preprocessing)
    if cache == "memory" or (cache == "auto" and len(images) * first.nbytes <= HELD_BYTES):
        return held(images.pixels(preprocessing), images.labels, len(images.classes))
    return _decoding(images, first.shape, lambda place, numbers: images.fitted(place, preprocessing))


def held(pixels: np.ndarray, labels: np.ndarray, classes: int) -> Source:
    """Pictures that are in memory already, uint8 [n, height, width, channels]."""
    pictures = tf.constant(pixels)
    return Source(np.asarray(labels, np.int64), classes, lambda places, numbers: tf.gather(pictures, places))


def _cutting(images: Images, crop: Crop, size: int) -> Source:
    def one(place: int, numbers: np.ndarray) -> np.ndarray:
        return images.cropped(place, crop, numbers.tolist(), size)

    return _decoding(images, (size, size, 3), one, crop.numbers)


def _decoding(
    images: Images, shape: tuple[int, ...], one: Callable[[int, np.ndarray], np.ndarray], numbers: int = 0
) -> Source:
    """Pictures decoded as they are needed, as many at once as there are cores."""
    pool = ThreadPoolExecutor(DECODERS)

    def decode(places: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        pictures = np.empty((len(places), *shape), np.uint8)
        for i, picture in enumerate(pool.map(one, places.tolist(), numbers)):
            if picture.shape != shape:
                raise InputError(f"{images.name_of(places[i])} has another size than {images.name_of(0)}: set a crop")
            pictures[i] = picture
        return pictures

    def read(places: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        # Stateless: a stateful one would run one batch at a time where TensorFlow is to be deterministic.
        found = tf.numpy_function(decode, [places, numbers], tf.uint8, stateful=False)
        return tf.ensure_shape(found, [None, *shape])

    return Source(images.labels, len(images.classes), read, numbers)


def _on_disk(images: Images, preprocessing: Preprocessing) -> Source:
    """Pixels in a file of the cache whose name the images and their size decide; written once, mapped, not read."""
    key = hashlib.sha256(f"{images.hash} {preprocessing.layer_name}".encode()).hexdigest()[:16]
    target = Path(constants.HF_ASSETS_CACHE, "keras_resnet", "pixels", f"{key}.npy")
    if not target.is_file():
        shape = (len(images), *images.fitted(0, preprocessing).shape)
        print(f"{images.name}: decoded once, to {target}", file=sys.stderr)
        check_space(target.parent, int(np.prod(shape)))
        with replacing(target) as (scratch,):
            written = np.lib.format.open_memmap(scratch, "w+", np.uint8, shape)
            start = 0
            for pictures in images.batches(preprocessing, DECODED_AT_ONCE):
                written[start : start + len(pictures)] = pictures
                start += len(pictures)
            written.flush()
            del written
    pixels = np.load(target, mmap_mode="r")

    def read(places: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        found = tf.numpy_function(lambda chosen: pixels[chosen], [places], tf.uint8, stateful=False)
        return tf.ensure_shape(found, [None, *pixels.shape[1:]])

    return Source(images.labels, len(images.classes), read)


@contextlib.contextmanager
def naming_damaged_images() -> Iterator[None]:
    """An image that cannot be decoded in the middle of training is the InputError that names it, not TensorFlow's."""
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(r"InputError: (.*)", error.message)
        if found is None:
            raise
        raise InputError(found[1]) from None
