"""Labelled images: from a source to `Images`, and from there to batches for training.

`open_images` checks everything that can be wrong before it returns; what it gives is the same for ever.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_resnet.errors import InputError, UsageError
from keras_resnet.preprocessing import Preprocessing, fit_image
from keras_resnet.training.augment import Augmentation

DIGITS_SIDE = 32


@dataclass(frozen=True)
class Images:
    """Indexed, immutable, labelled pictures: `images[i]` is (uint8 [height, width, 3], label), the same for ever.

    classes: names, in the order of the labels; labels: int64 [n]; items: what `decode` turns into a picture.
    """

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    items: Sequence[Any]
    decode: Callable[[Any], Image.Image]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.asarray(self.picture(index).convert("RGB")), int(self.labels[index])

    def picture(self, index: int) -> Image.Image:
        """One picture. Raises InputError, which names the file, where it cannot be decoded."""
        return self.decode(self.items[index])

    @cached_property
    def hash(self) -> str:
        """SHA-256 over classes, labels and the bytes of every item: equal for equal data, wherever it lies."""
        digest = hashlib.sha256("\n".join(self.classes).encode() + self.labels.astype("<i8").tobytes())
        for item in self.items:
            digest.update(_bytes_of(item))
        return digest.hexdigest()

    def take(self, indices: Sequence[int], name: str) -> Images:
        """Those images alone, in that order, with the same classes."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Images(name, self.classes, self.labels[chosen], [self.items[i] for i in chosen], self.decode)

    def split(self, *fractions: float, seed: int = 0) -> list[Images]:
        """Disjoint parts in the given fractions, of each class alike; what the fractions leave over comes last.

        The same seed gives the same parts. Raises UsageError for fractions that are not above 0 or pass 1, InputError
        where the images are too few for each part to get one.
        """
        whole = sum(fractions) > 1 - 1e-9  # 0.7 + 0.2 + 0.1 is a little less than 1
        if min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
            raise UsageError(f"fractions {fractions} must each be above 0, and together at most 1")
        rng = np.random.default_rng(seed)
        parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
        for label in range(len(self.classes)):
            members = rng.permutation(np.flatnonzero(self.labels == label))
            ends = [*np.round(np.cumsum([0, *fractions]) * len(members)).astype(int).tolist(), len(members)]
            for part, start, end in zip(parts, ends[:-1], ends[1:], strict=True):
                part.extend(members[start:end])
        if not all(parts[: len(fractions)]) or not (whole or parts[-1]):
            raise InputError(
                f"data {self.name!r} has {len(self)} images of {len(self.classes)} classes, too few to set "
                f"{', '.join(f'{fraction:.0%}' for fraction in fractions)} of each class apart: give more"
            )
        return [self.take(sorted(part), f"{self.name}[{i}]") for i, part in enumerate(parts) if part]

    def balanced_sample(self, count: int, seed: int = 0) -> Images:
        """At most `count` images, as many of each class as can be, the same for the same seed."""
        rng = np.random.default_rng(seed)
        shuffled = [rng.permutation(np.flatnonzero(self.labels == label)) for label in range(len(self.classes))]
        turns = [members[turn] for turn in range(len(self)) for members in shuffled if turn < len(members)]
        return self.take(sorted(turns[:count]), f"{self.name}[sample {count}]")

    def pixels(self, preprocessing: Preprocessing) -> np.ndarray:
        """All pictures at the network's size, uint8 [n, height, width, 3]; decoded here, so errors appear here."""
        return np.stack([fit_image(self.picture(i), preprocessing) for i in range(len(self))])


def open_images(source: str | os.PathLike[str] | Images) -> Images:
    """Labelled images from "digits" (embedded), a folder of class folders, or a `.npz` with `images` and `labels`.

    Images come back as they are. Raises InputError where the source is absent, empty, has one class only, names of
    classes that cannot be told apart, or something that is no image.
    """
    if isinstance(source, Images):
        return source
    path = Path(source)
    if not str(source):
        raise InputError("data '' is empty: give 'digits', a folder of class folders, or a .npz file")
    if str(source) == "digits":
        images = _open_digits()
    elif path.is_dir():
        images = _open_folder(path)
    elif path.suffix == ".npz" and path.is_file():
        images = _open_npz(path)
    else:
        raise InputError(f"data {str(source)!r} is not there: give 'digits', a folder of class folders, or a .npz file")
    wrong = [c for c in images.classes if not c.strip() or len(c.splitlines()) > 1 or images.classes.count(c) > 1]
    if wrong:
        raise InputError(f"data {str(source)!r} has a class named {wrong[0]!r}: give each one name, on one line")
    if len(images.classes) < 2 or len(np.unique(images.labels)) < 2:
        raise InputError(
            f"data {str(source)!r} has one class only ({', '.join(images.classes)}): "
            "a classifier needs at least two, one folder each"
        )
    return images


def _open_digits() -> Images:
    with (
        importlib.resources.files("keras_resnet").joinpath("assets/digits.npz").open("rb") as file,
        np.load(file) as data,
    ):
        images, labels = data["images"], data["labels"]

    def decode(small: np.ndarray) -> Image.Image:
        grey = np.round(small * (255 / 16)).astype(np.uint8)
        return Image.fromarray(grey).resize((DIGITS_SIDE, DIGITS_SIDE), Image.Resampling.BICUBIC).convert("RGB")

    return Images("digits", tuple("0123456789"), labels.astype(np.int64), list(images), decode)


def _open_folder(folder: Path) -> Images:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError(f"data folder {str(folder)!r} is empty: it must hold a folder of images for each class")
    files, labels = [], []
    for label, name in enumerate(classes):
        members = sorted(path for path in (folder / name).iterdir() if not path.name.startswith("."))
        if not members:
            raise InputError(f"class folder {str(folder / name)!r} is empty: put images in it or remove it")
        for path in members:
            _check_image(path)
            files.append(path)
            labels.append(label)
    return Images(folder.resolve().name, tuple(classes), np.asarray(labels, np.int64), files, _read)


def _open_npz(path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as data:
            images, labels = data["images"], data["labels"]
            classes = tuple(map(str, data["classes"])) if "classes" in data else ()
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"data {str(path)!r} is no .npz with arrays 'images' and 'labels': {error}") from error
    is_picture = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
    if images.dtype != np.uint8 or not is_picture or not len(images):
        raise InputError(
            f"data {str(path)!r}: 'images' must be uint8 [n, height, width] or [n, height, width, 1, 3 or 4]; "
            f"it has {images.dtype} {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
        raise InputError(
            f"data {str(path)!r}: 'labels' must be whole numbers, one an image; it has {labels.dtype} {labels.shape} "
            f"for {len(images)} images"
        )
    images = images[..., 0] if images.shape[3:] == (1,) else images  # grey
    labels = labels.reshape(-1).astype(np.int64)
    classes = classes or tuple(str(i) for i in range(int(labels.max()) + 1))
    if labels.min() < 0 or labels.max() >= len(classes) or len(np.unique(labels)) < len(classes):
        raise InputError(
            f"data {str(path)!r}: labels go from {labels.min()} to {labels.max()} with {len(np.unique(labels))} values "
            f"for {len(classes)} classes: every class must be there"
        )
    return Images(path.stem, classes, labels, list(images), Image.fromarray)


def _check_image(path: Path) -> None:
    try:
        with Image.open(path) as image:
            mode = image.mode
            image.verify()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{str(path)!r} is not an image that can be read: remove or repair it ({error})") from error
    if mode.startswith(("I", "F")):  # Pillow would cut what is above 255
        raise InputError(f"{str(path)!r} has more than 8 bits a channel (mode {mode}): save it with 8 bits")


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError) as error:
        raise InputError(f"{str(path)!r} cannot be decoded: remove or repair it ({error})") from error


def _bytes_of(item: Any) -> bytes:
    return item.read_bytes() if isinstance(item, Path) else item.tobytes()


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
