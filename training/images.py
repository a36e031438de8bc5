"""Labelled images as a value: indexed, immutable, the same for ever, wherever their bytes lie."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from keras_resnet.errors import InputError, UsageError
from keras_resnet.preprocessing import Preprocessing, fit_image
from keras_resnet.training.crops import Crop, cut

DECODERS = min(32, os.cpu_count() or 1)  # threads: Pillow decodes outside Python's lock
WINDOW = 1024
# What Pillow raises for files that are damaged, or no pictures at all
DAMAGE = (
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Member(NamedTuple):
    """A file inside an uncompressed archive."""

    archive: Path
    name: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


def in_parallel(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """function(item) of each, in order, as many at a time as there are cores, and no more than a window ahead."""
    with ThreadPoolExecutor(DECODERS) as pool:
        for start in range(0, len(items), WINDOW):
            yield from pool.map(function, items[start : start + WINDOW])


def open_file(item: Path | Member) -> Image.Image:
    """A picture of a file, not loaded yet. Raises what Pillow raises."""
    return Image.open(item if isinstance(item, Path) else io.BytesIO(item.read_bytes()))


@dataclass(frozen=True)
class Images:
    """Indexed, immutable, labelled pictures: `images[i]` is (uint8 [height, width, 3], label), the same for ever.

    classes: names, in the order of the labels; labels: int64 [n]; items: what `decode` makes a Pillow image of, which
    need not be loaded; skipped: the files that were left out because they are damaged, and why.
    """

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    items: Sequence[Any]
    decode: Callable[[Any], Image.Image]
    skipped: tuple[str, ...] = ()
    known_hash: str = ""  # where it was computed before, and the files are proved to be the same

    def __post_init__(self) -> None:
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if len(outside):
            raise InputError(
                f"data {self.name!r}: image {outside[0]} has label {self.labels[outside[0]]}, but its classes are 0 to "
                f"{len(self.classes) - 1}: {len(outside)} of {len(self.items)} images are of no class"
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.asarray(self.picture(index).convert("RGB")), int(self.labels[index])

    def picture(self, index: int) -> Image.Image:
        """One picture, loaded. Raises InputError, which names the file, where it cannot be decoded."""
        with self._opened(index) as image:
            image.load()
            return image

    def cropped(self, index: int, crop: Crop, numbers: Sequence[float], size: int) -> np.ndarray:
        """A part of one picture, uint8 [size, size, 3]; no more of it is decoded than that needs. Raises InputError."""
        with self._opened(index) as image:
            return cut(image, crop, numbers, size)

    @contextlib.contextmanager
    def _opened(self, index: int) -> Iterator[Image.Image]:
        try:
            with self.decode(self.items[index]) as image:
                yield image
        except InputError:
            raise
        except DAMAGE as error:
            raise InputError(f"{self.name_of(index)} cannot be decoded: remove or repair it ({error})") from error

    @cached_property
    def hash(self) -> str:
        """SHA-256 over classes, labels and the bytes of every item: equal for equal data, wherever it lies."""
        if self.known_hash:
            return self.known_hash
        digest = hashlib.sha256("\n".join(self.classes).encode() + self.labels.astype("<i8").tobytes())
        for item in self.items:
            digest.update(_bytes_of(item))
        return digest.hexdigest()

    def relabelled(self, positions: Sequence[int], classes: Sequence[str]) -> Images:
        """The same pictures under other classes: those of class i become class `positions[i]` of `classes`."""
        labels = np.asarray(positions, np.int64)[self.labels]
        return replace(self, classes=tuple(classes), labels=labels, known_hash="")

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

    def fitted(self, index: int, preprocessing: Preprocessing) -> np.ndarray:
        """One picture at the network's size, uint8 [height, width, channels]. Raises InputError, which names it."""
        try:
            return fit_image(self.picture(index), preprocessing)
        except InputError as error:
            raise InputError(f"{self.name_of(index)}: {error}") from error

    def batches(self, preprocessing: Preprocessing, size: int) -> Iterator[np.ndarray]:
        """The pictures in their own order, uint8 [at most size, height, width, channels] at a time, decoded ahead.

        Raises InputError where one cannot be decoded, is too small, or has another size than those before it.
        """
        shape = None
        with ThreadPoolExecutor(DECODERS) as pool:
            ahead = self._submit(pool, 0, size, preprocessing)
            for start in range(0, len(self), size):
                decoding, ahead = ahead, self._submit(pool, start + size, size, preprocessing)
                pictures = [future.result() for future in decoding]
                shape = shape or pictures[0].shape
                for index, picture in enumerate(pictures, start):
                    if picture.shape != shape:
                        raise InputError(
                            f"{self.name_of(index)} is {picture.shape[1]}x{picture.shape[0]} pixels, "
                            f"{self.name_of(0)} {shape[1]}x{shape[0]}: set a crop, so that all are of one size"
                        )
                yield np.stack(pictures)

    def _submit(self, pool: ThreadPoolExecutor, start: int, size: int, preprocessing: Preprocessing) -> list[Any]:
        return [pool.submit(self.fitted, i, preprocessing) for i in range(start, min(start + size, len(self)))]

    def name_of(self, index: int) -> str:
        """What a message calls one picture: its path, or its place where it has none."""
        item = self.items[index]
        return repr(str(item)) if isinstance(item, (Path, Member)) else f"image {index} of {self.name!r}"

    def pixels(self, preprocessing: Preprocessing) -> np.ndarray:
        """All pictures at the network's size, uint8 [n, height, width, 3]; decoded here, so errors appear here."""
        return np.concatenate(list(self.batches(preprocessing, 256)))


def _bytes_of(item: Any) -> bytes:
    if isinstance(item, bytes):
        return item
    return bytes(item.read_bytes() if isinstance(item, (Path, Member)) else item.tobytes())
