"""Data sets that have a name: the digits of this package, keras.datasets', tensorflow-datasets'."""

from __future__ import annotations

import importlib.resources
import io
from collections.abc import Callable, Mapping

import keras
import numpy as np
from PIL import Image

from keras_resnet.errors import InputError, UsageError, missing_extra
from keras_resnet.training.images import Images

DIGITS_SIDE = 32
TFDS = "tfds:"
PARTS = ("train", "test")

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
    shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()


def open_digits(name: str, part: str) -> Images:
    """The digits that come with the package: 1,797 of ten classes, 32 pixels a side. They are not parted."""
    if part:
        raise UsageError(f"data '{name}@{part}': the digits are not parted; leave the part out")
    with (
        importlib.resources.files("keras_resnet").joinpath("assets/digits.npz").open("rb") as file,
        np.load(file) as data,
    ):
        images, labels = data["images"], data["labels"]

    def decode(small: np.ndarray) -> Image.Image:
        grey = np.round(small * (255 / 16)).astype(np.uint8)
        return Image.fromarray(grey).resize((DIGITS_SIDE, DIGITS_SIDE), Image.Resampling.BICUBIC).convert("RGB")

    return Images(name, tuple("0123456789"), labels.astype(np.int64), list(images), decode)


def open_cifar(name: str, part: str) -> Images:
    """CIFAR-10 or CIFAR-100 as keras.datasets fetches it, the training or the test images."""
    part = part or PARTS[0]
    if part not in PARTS:
        raise UsageError(f"data '{name}@{part}': parts of {name} are {' and '.join(PARTS)}")
    try:
        images, labels = getattr(keras.datasets, name).load_data()[PARTS.index(part)]
    except Exception as error:  # keras raises a bare Exception where a download fails
        raise InputError(f"data {name!r} cannot be fetched by keras.datasets: {error}") from error
    classes = CIFAR10 if name == "cifar10" else CIFAR100
    return Images(f"{name}@{part}", tuple(classes), labels.reshape(-1).astype(np.int64), list(images), Image.fromarray)


def open_tfds(name: str, part: str) -> Images:
    """A data set of tensorflow-datasets with features `image` and `label`, its files held in memory as they are.

    Raises MissingExtraError where that package is not installed, InputError where there is no such data set or part.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise missing_extra(f"data 'tfds:{name}'", "tfds", error) from error
    try:
        builder = tfds.builder(name)
        builder.download_and_prepare()
        classes = tuple(builder.info.features["label"].names)
        undecoded = {"image": tfds.decode.SkipDecoding()}
        rows = list(
            builder.as_dataset(split=part or PARTS[0], decoders=undecoded, shuffle_files=False).as_numpy_iterator()
        )
    except Exception as error:
        raise InputError(f"data 'tfds:{name}' cannot be read by tensorflow-datasets: {_first_line(error)}") from error
    labels = np.array([row["label"] for row in rows], np.int64)
    return Images(f"{name}@{part or PARTS[0]}", classes, labels, [row["image"] for row in rows], _decoded)


def _first_line(error: Exception) -> str:
    """Behind it tensorflow-datasets lists every name that it knows."""
    return str(error).partition("\n")[0]


def _decoded(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


BY_NAME: Mapping[str, Callable[[str, str], Images]] = {
    "digits": open_digits,
    "cifar10": open_cifar,
    "cifar100": open_cifar,
}
