"""What must be done to an image before a network sees it, as a value that travels with the network.

The value sits in the name of an inert Identity layer behind the input: of all places in a Keras file, the only one
that plain Keras keeps when it loads the file and writes it again.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from keras_resnet.errors import InputError, UsageError, unknown

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
ORDERS = ("rgb", "bgr")
MODES = {1: "L", 3: "RGB"}  # Pillow's names of the pictures that a network of so many channels reads


@dataclass(frozen=True)
class Preprocessing:
    """From pixels 0..255 to what the network reads: (pixels / scale - mean) / std, channel by channel.

    resize: short side in pixels before the crop, 0 for none; crop: side of the centre crop, 0 for none;
    scale: 255 (torchvision) or 1 (Caffe); mean, std: one a channel, in the units behind the scale, in the
    order `order`. Raises UsageError for values that cannot be.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    order: str = "rgb"
    scale: float = 255.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS, where="interpolation=")
        if self.order not in ORDERS:
            raise unknown("channel order", self.order, ORDERS, where="order=")
        if not (isinstance(self.resize, int) and isinstance(self.crop, int)):
            raise UsageError(f"resize={self.resize!r} and crop={self.crop!r} must be whole numbers of pixels")
        if self.resize < 0 or self.crop < 0 or (self.resize and self.resize < self.crop):
            raise UsageError(f"resize={self.resize} and crop={self.crop}: each 0 (none) or more, resize not below crop")
        if len(self.mean) != len(self.std) or not self.mean:
            raise UsageError(f"mean={self.mean} and std={self.std} must have one value a channel")
        if not np.all(np.isfinite((self.scale, *self.mean, *self.std))):
            raise UsageError(f"scale={self.scale}, mean={self.mean}, std={self.std} must be finite numbers")
        if self.scale <= 0 or min(self.std) <= 0:
            raise UsageError(f"scale={self.scale} and every std={self.std} must be above 0")

    @property
    def layer_name(self) -> str:
        """The name of the layer that carries this value; `parse` reads it back."""
        mean = "_".join(_number(value) for value in self.mean)
        std = "_".join(_number(value) for value in self.std)
        return (
            f"preprocessing1.r{self.resize}.c{self.crop}.{self.interpolation}.{self.order}"
            f".x{_number(self.scale)}.m{mean}.s{std}"
        )

    def normalise(self, images: Any) -> Any:
        """float32 of the same shape [..., channels] from RGB pixels 0..255: an array.

        A symbolic tensor of TensorFlow, as `tf.data.Dataset.map` gives, becomes one. Raises InputError for other
        channels.
        """
        is_symbolic = "tensorflow" in sys.modules and sys.modules["tensorflow"].is_symbolic_tensor(images)
        images = images if is_symbolic else np.asarray(images)
        if images.shape[-1:] != (len(self.mean),):
            raise InputError(
                f"images of shape {images.shape} do not have the network's {len(self.mean)} channels on the last axis"
            )
        if is_symbolic:
            return normalise_tensor(images, self)
        if self.order == "bgr":
            images = images[..., ::-1]
        x = images.astype(np.float32) / np.float32(self.scale)
        return (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def normalise_tensor(images: Any, preprocessing: Preprocessing) -> Any:
    """The formula of `Preprocessing.normalise` for a tensor of TensorFlow, wherever it is computed."""
    import tensorflow as tf

    x = tf.cast(images[..., ::-1] if preprocessing.order == "bgr" else images, tf.float32)
    return (x / preprocessing.scale - tf.constant(preprocessing.mean)) / tf.constant(preprocessing.std)


IMAGENET = Preprocessing()
CAFFE = Preprocessing(order="bgr", scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0))
SYMMETRIC = Preprocessing(scale=127.5, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0))  # -1..1

_PATTERN = re.compile(
    r"preprocessing1\.r(?P<resize>\d+)\.c(?P<crop>\d+)\.(?P<interpolation>[a-z]+)\.(?P<order>[a-z]+)"
    r"\.x(?P<scale>[-\d._]+)\.m(?P<mean>[-\d._]+)\.s(?P<std>[-\d._]+)"
)


def _number(value: float) -> str:
    """The shortest digits that read back as the same number, without an exponent, as a layer name allows them."""
    return np.format_float_positional(float(value), trim="-")


def parse(layer_name: str) -> Preprocessing | None:
    """The value in a layer's name; None where the name is not one of ours.

    Raises InputError for a later version, and for numbers or words that no version of this package writes.
    """
    match = _PATTERN.fullmatch(layer_name)
    if match is None:
        if re.match(r"preprocessing\d+\.r", layer_name):
            raise InputError(f"layer {layer_name!r} was written by a later version: upgrade keras-resnet-edge")
        return None
    try:
        return Preprocessing(
            resize=int(match["resize"]),
            crop=int(match["crop"]),
            interpolation=match["interpolation"],
            order=match["order"],
            scale=float(match["scale"]),
            mean=tuple(float(value) for value in match["mean"].split("_")),
            std=tuple(float(value) for value in match["std"].split("_")),
        )
    except ValueError as error:
        raise InputError(f"layer {layer_name!r} does not name a preprocessing: {error}") from error


def preprocessing_of(model: Any) -> Preprocessing:
    """What a model's images need, read from the model itself. Raises InputError where it does not say."""
    for layer in model.layers:
        found = parse(layer.name)
        if found is not None:
            return found
    raise InputError(
        f"model {model.name!r} carries no preprocessing: it was not built by keras_resnet; "
        "normalise its images yourself"
    )


def preprocess_input(images: Any, model: Any) -> Any:
    """Pixels to what `model` reads: RGB 0..255, any dtype, [..., channels] in; float32 of the same shape out.

    An array, or inside `tf.data.Dataset.map` a tensor, as it came in.
    Raises InputError where the channels differ or the model does not carry its preprocessing.
    """
    return preprocessing_of(model).normalise(images)


def preprocess_image(
    image: str | os.PathLike[str] | Image.Image | np.ndarray, preprocessing: Preprocessing | Any
) -> np.ndarray:
    """One image as the network reads it: decoded, resized, cropped, normalised; float32 [height, width, channels].

    image: a file, a Pillow image, or uint8 pixels [height, width] or [height, width, 1, 3 or 4]; preprocessing: a
    Preprocessing, or the model that carries one. EXIF orientation is applied. `model.predict(x[None])` answers.
    Raises InputError for what is absent, no image, of more than 8 bits, or smaller than a crop without a resize.
    """
    chosen = preprocessing if isinstance(preprocessing, Preprocessing) else preprocessing_of(preprocessing)
    return chosen.normalise(fit_image(open_image(image), chosen))


def open_image(image: str | os.PathLike[str] | Image.Image | np.ndarray) -> Image.Image:
    """A Pillow image from a file, from itself or from uint8 pixels. Raises InputError for what is none of these."""
    if isinstance(image, Image.Image):
        opened = image
    elif isinstance(image, (str, os.PathLike)):
        try:
            with Image.open(image) as opened:
                opened.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{str(image)!r} is not an image that can be read ({error})") from error
    else:
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))):
            raise InputError(
                f"an image of {pixels.dtype} {pixels.shape} is not uint8 [height, width] or [height, width, 1, 3 or 4]"
            )
        if not pixels.size:
            raise InputError(f"an image of shape {pixels.shape} has no pixels")
        opened = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    if opened.mode.startswith(("I", "F")):  # Pillow would cut what is above 255
        raise InputError(f"{_called(image)} has more than 8 bits a channel (mode {opened.mode}): save it with 8 bits")
    return opened


def _called(image: Any) -> str:
    return repr(str(image)) if isinstance(image, (str, os.PathLike)) else "an image"


def fit_image(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """A picture as pixels at the network's size: short side resized, centre cropped, as torchvision does both.

    Returns uint8 [height, width, 3], for a network of one channel [height, width, 1]; the crop's size where one is
    set. EXIF orientation is applied; grey, palette and transparent pictures become RGB.
    Source: torchvision.transforms.functional, `resize` and `center_crop`.
    Raises InputError where a picture without resize is smaller than the crop, or the network reads other channels.
    """
    channels = len(preprocessing.mean)
    if channels not in MODES:
        raise InputError(f"a picture gives 1 or 3 channels, the network reads {channels}: normalise arrays yourself")
    image = ImageOps.exif_transpose(image).convert(MODES[channels])
    if preprocessing.resize:
        width, height = image.size
        short, long = min(width, height), max(width, height)
        other = int(preprocessing.resize * long / short)
        size = (preprocessing.resize, other) if width <= height else (other, preprocessing.resize)
        image = image.resize(size, Image.Resampling[preprocessing.interpolation.upper()])
    if preprocessing.crop:
        crop, (width, height) = preprocessing.crop, image.size
        if min(width, height) < crop:
            raise InputError(f"a picture of {width}x{height} pixels is smaller than the crop of {crop}: set a resize")
        left, top = round((width - crop) / 2.0), round((height - crop) / 2.0)
        image = image.crop((left, top, left + crop, top + crop))
    return np.asarray(image).reshape(*image.size[::-1], channels)
