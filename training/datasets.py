"""Data sets that have a name: the digits of this package, keras.datasets', tensorflow-datasets'."""

from __future__ import annotations

import importlib.resources
import io
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf
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


def open_dataset(data: tf.data.Dataset) -> Images:
    """The images of a `tf.data.Dataset` of pairs, held in memory, in the order that it gives them in once.

    Each is (picture, label), or a batch of both: pictures of three channels, 0..255 and not normalised, uint8 or
    floating point, which is rounded; labels whole numbers, or one number a class. Their names are `data.class_names`,
    as `keras.utils.image_dataset_from_directory` sets them, else numbers.
    Raises InputError for another kind of element, for pictures that are normalised already, and for endless data.
    """
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or any(not isinstance(one, tf.TensorSpec) for one in spec):
        raise InputError(f"a tf.data.Dataset of {spec} is not one of pairs (picture, label): map it to those")
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InputError("a tf.data.Dataset that repeats without end is no data set: leave `repeat` out")
    picture = spec[0].shape
    if picture.rank not in (3, 4) or picture[-1] != 3:
        raise InputError(f"a tf.data.Dataset of pictures of shape {picture}: [height, width, 3], or batches, expected")
    items: list[np.ndarray] = []
    labels: list[int] = []
    brightest = 0.0
    for pixels, answers in (data if picture.rank == 4 else data.batch(1)).as_numpy_iterator():
        if not (pixels.min() >= 0 and pixels.max() <= 255):
            raise _normalised(pixels.min(), pixels.max())
        brightest = max(brightest, float(pixels.max()))
        items += list(np.rint(pixels).astype(np.uint8))
        one_each = answers.ndim == 1 or answers.shape[-1] == 1  # the latter of two classes, as Keras' "binary" is
        labels += (answers.ravel() if one_each else answers.argmax(axis=-1)).astype(int).tolist()
    if not items:
        raise InputError("a tf.data.Dataset that gives no picture: check what it is made of")
    if spec[0].dtype != tf.uint8 and brightest <= 1:
        raise _normalised(0, brightest)
    width = spec[1].shape[-1] if spec[1].shape.rank == picture.rank - 2 else 0  # of one number a class
    classes = getattr(data, "class_names", None) or map(str, range(max(width or 0, max(labels) + 1)))
    return Images("dataset", tuple(classes), np.asarray(labels, np.int64), items, Image.fromarray)


def _normalised(low: float, high: float) -> InputError:
    return InputError(
        f"a tf.data.Dataset of pictures from {low:g} to {high:g}: give pixels, 0 to 255, as they are before "
        "`preprocess_input`"
    )


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
