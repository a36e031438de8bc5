"""What an image needs before a network sees it: the value, its formula, and that it travels with the model."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnet import build, preprocess_input, preprocessing_of
from keras_resnet.errors import InputError, UsageError
from keras_resnet.preprocessing import CAFFE, IMAGENET, SYMMETRIC, Preprocessing, fit_image, parse, preprocess_image
from keras_resnet.specs import cifar
from tests.references import images, import_torchvision

# float32 arithmetic on values up to 255: one rounding in each of three operations.
ROUNDING = 1e-5

VALUES = {
    "torchvision": IMAGENET,
    "Caffe": CAFFE,
    "-1..1": SYMMETRIC,
    "no resize, no crop": Preprocessing(resize=0, crop=0),
    "resize only": Preprocessing(resize=232, crop=0, interpolation="bicubic"),
    "grey": Preprocessing(mean=(0.5,), std=(0.25,)),
    "five channels": Preprocessing(mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(1.0,) * 5),
    "negative": Preprocessing(mean=(-1.0, -0.25, -103.939), std=(0.5, 2.0, 127.5)),
    "awkward": Preprocessing(mean=(1 / 3, 0.1 + 0.2, -1e-7), std=(1e-12, 12345678.9, 2**0.5), scale=1e22),
    "NumPy's": Preprocessing(mean=tuple(np.float32([0.485, 0.456, 0.406]).tolist()), std=(0.229,) * 3),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_layer_name_reads_back_as_the_value_that_made_it(value):
    assert parse(value.layer_name) == value


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_layer_name_has_only_letters_that_every_keras_accepts(value):
    assert set(value.layer_name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")


def test_a_float32_number_reads_back_as_the_same_number():
    mean = tuple(np.float32([0.485, 0.456, 0.406]))
    assert parse(Preprocessing(mean=mean).layer_name).mean == mean


def test_the_form_of_version_1_stays_as_it_was_written_into_files():
    written = "preprocessing1.r256.c224.bilinear.rgb.x255.m0.485_0.456_0.406.s0.229_0.224_0.225"
    assert IMAGENET.layer_name == written
    assert parse("preprocessing1.r0.c0.nearest.bgr.x1.m-1_0.s0.5_2") == Preprocessing(
        resize=0, crop=0, interpolation="nearest", order="bgr", scale=1.0, mean=(-1.0, 0.0), std=(0.5, 2.0)
    )


@pytest.mark.parametrize("name", ["image", "stem_conv", "preprocessing", "preprocessing_layer", "preprocessing1"])
def test_names_of_other_layers_hold_no_preprocessing(name):
    assert parse(name) is None


@pytest.mark.parametrize("name", ["preprocessing2.r256.c224.bilinear.rgb.x255.m0.5.s0.5.new", "preprocessing12.r1.k3"])
def test_a_later_version_is_refused(name):
    with pytest.raises(InputError, match="written by a later version: upgrade"):
        parse(name)


@pytest.mark.parametrize(
    "name",
    [
        "preprocessing1.r256.c224.fractal.rgb.x255.m0.5.s0.5",
        "preprocessing1.r256.c224.bilinear.hsv.x255.m0.5.s0.5",
        "preprocessing1.r256.c224.bilinear.rgb.x255.m-.-.s0.5",
        "preprocessing1.r256.c224.bilinear.rgb.x255.m0.5_0.5.s0.5",
        "preprocessing1.r256.c224.bilinear.rgb.x0.m0.5.s0.5",
        f"preprocessing1.r{'9' * 5000}.c224.bilinear.rgb.x255.m0.5.s0.5",
    ],
)
def test_a_name_with_values_that_nobody_wrote_is_refused(name):
    with pytest.raises(InputError, match="does not name a preprocessing"):
        parse(name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'"),
        ({"order": "gbr"}, "unknown channel order 'gbr'"),
        ({"resize": 200, "crop": 224}, "resize not below crop"),
        ({"resize": -1}, "each 0 (none) or more"),
        ({"resize": 256.0}, "must be whole numbers of pixels"),
        ({"mean": (0.5,)}, "one value a channel"),
        ({"mean": (), "std": ()}, "one value a channel"),
        ({"std": (1.0, 0.0, 1.0)}, "must be above 0"),
        ({"scale": -255.0}, "must be above 0"),
        ({"scale": float("inf")}, "must be finite"),
        ({"mean": (float("nan"),) * 3}, "must be finite"),
    ],
)
def test_values_that_cannot_be_are_refused(changes, said):
    with pytest.raises(UsageError) as refused:
        Preprocessing(**changes)
    assert said in str(refused.value)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)


def test_torchvision_normalisation_is_its_formula(pixels):
    expected = np.empty(pixels.shape)
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected[..., channel] = (pixels[..., channel].astype(np.float64) / 255 - mean) / std
    assert np.abs(IMAGENET.normalise(pixels) - expected).max() <= ROUNDING


@pytest.mark.parametrize(
    ("value", "reference"),
    [(CAFFE, keras.applications.resnet.preprocess_input), (SYMMETRIC, keras.applications.resnet_v2.preprocess_input)],
    ids=["Caffe", "-1..1"],
)
def test_normalisation_is_that_of_keras_applications(value, reference, pixels):
    # Units of a pixel in Caffe's form, of 127.5 pixels in the other: the same relative rounding.
    expected = reference(pixels.astype(np.float32))
    assert np.abs(value.normalise(pixels) - expected).max() <= ROUNDING * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_normalised_images_are_float32_and_pixels_are_left_alone(pixels, dtype):
    given = pixels.astype(dtype)
    normalised = IMAGENET.normalise(given)
    assert (normalised.dtype, normalised.shape) == (np.float32, given.shape)
    assert np.array_equal(normalised, IMAGENET.normalise(pixels))
    assert np.array_equal(given, pixels)


def test_one_image_is_normalised_as_it_is_in_a_batch(pixels):
    assert np.array_equal(IMAGENET.normalise(pixels[0]), IMAGENET.normalise(pixels)[0])
    assert np.array_equal(IMAGENET.normalise(pixels[0].tolist()), IMAGENET.normalise(pixels)[0])


@pytest.mark.parametrize("channels", [1, 4])
def test_images_with_other_channels_are_refused(channels):
    with pytest.raises(InputError, match=rf"shape \(1, 4, 4, {channels}\) do not have the network's 3 channels"):
        IMAGENET.normalise(np.zeros((1, 4, 4, channels)))


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return build(cifar(8), preprocessing=VALUES["negative"])


def test_a_model_says_what_its_images_need(network, pixels):
    assert preprocessing_of(network) == VALUES["negative"]
    assert np.array_equal(preprocess_input(pixels, network), VALUES["negative"].normalise(pixels))


def test_preprocessing_survives_plain_keras_saving_loading_cloning_and_saving_again(network, tmp_path):
    network.save(tmp_path / "ours.keras")
    plain = keras.models.load_model(tmp_path / "ours.keras")
    keras.models.clone_model(plain).save(tmp_path / "theirs.keras")
    assert preprocessing_of(keras.models.load_model(tmp_path / "theirs.keras")) == VALUES["negative"]


def test_the_layer_that_carries_it_changes_nothing(network):
    x = images(32, 32)
    carrier = network.get_layer(VALUES["negative"].layer_name)
    assert np.array_equal(keras.ops.convert_to_numpy(carrier(x)), x)


def test_a_model_of_somebody_else_is_refused(pixels):
    foreign = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()], name="foreign")
    with pytest.raises(InputError, match="model 'foreign' carries no preprocessing"):
        preprocess_input(pixels, foreign)


@pytest.mark.parametrize(
    ("variant", "options", "expected"),
    [
        ("resnet18", {}, IMAGENET),
        ("resnet18", {"input_shape": (112, 112, 3)}, Preprocessing(resize=128, crop=112)),
        ("resnet18", {"input_shape": (None, None, 3)}, IMAGENET),
        ("resnet18", {"input_shape": (64, 96, 3)}, IMAGENET),
        ("resnet18", {"input_shape": (224, 224, 1)}, Preprocessing(mean=(0.5,), std=(0.5,))),
        ("cifar_resnet8", {}, Preprocessing(resize=0, crop=32)),
        ("cifar_resnet8", {"input_size": 48}, Preprocessing(resize=0, crop=48)),
    ],
)
def test_by_default_a_network_takes_torchvisions_values_at_the_size_of_its_input(variant, options, expected):
    short = {} if variant.startswith("cifar") else {"depths": (1, 1, 1, 1), "widths": (4, 4, 4, 4)}
    assert preprocessing_of(build(variant, **short, **options)) == expected


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(("size", "left", "top"), [((8, 8), 2, 2), ((9, 8), 2, 2), ((11, 4), 4, 0), ((7, 10), 2, 3)])
def test_a_crop_lies_in_the_middle_and_a_half_pixel_goes_to_the_even_side(size, left, top):
    # torchvision: int(round((n - crop) / 2.0)) with Python's rounding: 2.5 becomes 2, 3.5 becomes 4, 1.5 becomes 2.
    given = picture(*size)
    expected = np.asarray(given)[top : top + 4, left : left + 4]
    assert np.array_equal(fit_image(given, Preprocessing(resize=0, crop=4)), expected)


@pytest.mark.parametrize(("size", "expected"), [((30, 20), (15, 10)), ((20, 31), (10, 15)), ((10, 10), (10, 10))])
def test_resizing_brings_the_short_side_to_the_size_and_cuts_the_long_one_off(size, expected):
    width, height = expected
    assert fit_image(picture(*size), Preprocessing(resize=10, crop=0)).shape == (height, width, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_every_mode_become_rgb_pixels(mode):
    pixels = fit_image(picture(8, 8).convert(mode), Preprocessing(resize=0, crop=4))
    assert (pixels.shape, pixels.dtype) == ((4, 4, 3), np.uint8)


def test_a_picture_smaller_than_the_crop_is_refused_unless_it_is_resized():
    with pytest.raises(InputError, match="8x6 pixels is smaller than the crop of 7: set a resize"):
        fit_image(picture(8, 6), Preprocessing(resize=0, crop=7))
    assert fit_image(picture(8, 6), Preprocessing(resize=8, crop=7)).shape == (7, 7, 3)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth like a photograph: noise of 1/16 of the size, enlarged."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 333), (227, 227), (1023, 97)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (235, 224), (232, 224), (0, 96)])
def test_an_image_is_prepared_as_torchvision_does_it(size, interpolation, resize, crop):
    pytest.importorskip("torch")
    import_torchvision()
    from torchvision.transforms import v2

    ours = Preprocessing(resize=resize, crop=crop, interpolation=interpolation)
    steps = [v2.CenterCrop(crop), v2.PILToTensor()]
    if resize:
        steps.insert(0, v2.Resize(resize, v2.InterpolationMode(interpolation), antialias=True))
    given = photograph(*size)
    theirs = v2.Compose(steps)(given).permute(1, 2, 0).numpy()
    assert np.array_equal(fit_image(given, ours), theirs)
    normalised = v2.Normalize(IMAGENET.mean, IMAGENET.std)(v2.PILToTensor()(Image.fromarray(theirs)).float() / 255)
    difference = np.abs(preprocess_image(given, ours) - normalised.permute(1, 2, 0).numpy())
    assert difference.max() <= 1e-6 * 3


def test_a_path_a_picture_and_its_pixels_give_the_same(tmp_path, network):
    given = photograph(50, 40)
    given.save(tmp_path / "a.png")
    expected = preprocess_image(given, IMAGENET)
    assert expected.shape == (224, 224, 3)
    assert expected.dtype == np.float32
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), np.asarray(given)):
        assert np.array_equal(preprocess_image(same, IMAGENET), expected)
    assert np.array_equal(preprocess_image(given, network), preprocess_image(given, VALUES["negative"]))


def test_a_picture_that_a_camera_held_sideways_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    photograph(64, 48).save(tmp_path / "a.png", exif=exif)
    upright = photograph(64, 48).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(preprocess_image(tmp_path / "a.png", IMAGENET), preprocess_image(upright, IMAGENET))


def test_a_network_of_one_channel_gets_grey_and_one_of_two_no_picture():
    grey = Preprocessing(resize=0, crop=4, mean=(0.5,), std=(0.5,))
    given = photograph(8, 8)
    expected = np.asarray(given.convert("L"))[2:6, 2:6, None]
    assert np.array_equal(fit_image(given, grey), expected)
    with pytest.raises(InputError, match="gives 1 or 3 channels, the network reads 2"):
        fit_image(given, Preprocessing(mean=(0.5, 0.5), std=(0.5, 0.5)))


@pytest.mark.parametrize("name", ["absent.png", "text.png", "cut.png", "deep.png", "folder", "x\0.png"])
def test_what_is_no_picture_of_8_bits_is_refused_by_name(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    photograph(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=re.escape(name.partition("\0")[0])):
        preprocess_image(tmp_path / name, IMAGENET)


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_pixels_of_another_type_or_shape_are_refused(pixels):
    with pytest.raises(InputError, match="image of"):
        preprocess_image(pixels, IMAGENET)
