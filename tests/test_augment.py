"""What is done to images in training, against Pillow, the papers' formulas and NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from keras_resnet.training import crops
from keras_resnet.training.augment import AUGMENTATIONS, Treatment, colour, erase, mix, smooth
from keras_resnet.training.draws import MIX, Draw
from keras_resnet.training.rand_augment import OPERATIONS, rand_augment


def whole(seed: int, step: int, count: int) -> Draw:
    """The draws of a batch that is not parted."""
    return Draw(seed, step, count, 0, count)


def treated(name: str, images: tf.Tensor, draw: Draw) -> tf.Tensor:
    return Treatment(name)(images, tf.zeros([len(images), 2]), draw)[0]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_is_a_function_of_its_seed_and_keeps_shape_and_type(name: str) -> None:
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (16, 24, 32, 3), dtype=np.uint8))
    results = [treated(name, images, whole(1, step, 16)).numpy() for step in (2, 2, 3)]
    assert results[0].shape == images.shape
    assert results[0].dtype == np.uint8
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2]) == (name == "none")


def test_a_shift_moves_by_whole_pixels_up_to_an_eighth_and_fills_with_black() -> None:
    images = np.zeros((300, 16, 32, 3), np.uint8)
    images[:, 8, 16] = 255
    moved = treated("shift", tf.constant(images), whole(0, 0, 300)).numpy()
    rows, columns = np.nonzero(moved[..., 0])[1:]
    assert len(rows) == 300
    assert set(rows - 8) == set(range(-2, 3))
    assert set(columns - 16) == set(range(-4, 5))


def test_half_of_the_images_are_mirrored() -> None:
    images = np.zeros((400, 8, 32, 3), np.uint8)
    images[:, :, :8] = 255
    flipped = treated("shift_flip", tf.constant(images), whole(5, 0, 400)).numpy()
    on_the_right = (flipped[:, 4, 24:, 0].astype(int).sum(axis=1) > 0).mean()
    assert 0.4 < on_the_right < 0.6  # binomial(400, 0.5): four standard deviations


def test_an_affine_change_keeps_the_middle_where_it_was_on_average() -> None:
    images = np.zeros((500, 33, 33, 3), np.uint8)
    images[:, 14:19, 14:19] = 255
    moved = treated("affine", tf.constant(images), whole(7, 0, 500)).numpy()[..., 0].astype(float)
    grid = np.arange(33)
    mass = moved.sum(axis=(1, 2))
    for axis in (1, 2):
        centres = (moved.sum(axis=3 - axis) * grid).sum(axis=1) / mass
        assert abs(centres.mean() - 16) < 0.25  # uniform within 2 pixels: four standard errors
        assert np.abs(centres - 16).max() < 3


def pictures(count: int, height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth pictures of differing contrast, uint8."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 4, 4, 3)) * rng.uniform(0.3, 1, (count, 1, 1, 1))
    return np.stack([np.asarray(Image.fromarray(p.astype(np.uint8)).resize((width, height))) for p in small])


STAGES: dict[str, Callable[[tf.Tensor, Draw], tf.Tensor]] = {
    **{name: lambda x, draw, name=name: treated(name, x, draw) for name in AUGMENTATIONS},
    "rand_augment": lambda x, draw: rand_augment(x, draw, 7.0),
    "erase": lambda x, draw: erase(x, draw, 0.5),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_part_of_a_batch_is_treated_as_in_the_whole(name: str) -> None:
    images = pictures(11)
    together = STAGES[name](tf.constant(images), Draw(3, 5, 11, 0, 11)).numpy()
    for start, stop in ((0, 4), (4, 5), (5, 11), (3, 3)):
        alone = STAGES[name](tf.constant(images[start:stop]), Draw(3, 5, 11, start, stop)).numpy()
        assert np.array_equal(alone, together[start:stop])


def test_two_purposes_give_independent_numbers() -> None:
    draw = whole(1, 2, 4000)
    one, two = draw.uniform(1, 1).numpy().ravel(), draw.uniform(1, 2).numpy().ravel()
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / math.sqrt(4000)


def pillow_colour(image: Image.Image, level: float, sign: float, kind: str) -> Image.Image:
    return getattr(ImageEnhance, kind)(image).enhance(max(0.1, 1 + 0.9 * level * sign))


def pillow_map(image: Image.Image, numbers: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
    )


def pillow_solarize_add(image: Image.Image, added: int) -> Image.Image:
    return image.point([min(255, i + added) if i < 128 else i for i in range(256)] * 3)


# What timm's "increasing" operations do at a level of 0 to 1, in Pillow's words.
PILLOW: dict[str, Callable[[Image.Image, float, float], Image.Image]] = {
    "auto_contrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, level, sign: ImageOps.equalize(image),
    "invert": lambda image, level, sign: ImageOps.invert(image),
    "rotate": lambda image, level, sign: image.rotate(
        30 * level * sign, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
    ),
    "posterize": lambda image, level, sign: ImageOps.posterize(image, 4 - int(4 * level)),
    "solarize": lambda image, level, sign: ImageOps.solarize(image, 256 - int(256 * level)),
    "solarize_add": lambda image, level, sign: pillow_solarize_add(image, min(128, int(110 * level))),
    "colour": lambda image, level, sign: pillow_colour(image, level, sign, "Color"),
    "contrast": lambda image, level, sign: pillow_colour(image, level, sign, "Contrast"),
    "brightness": lambda image, level, sign: pillow_colour(image, level, sign, "Brightness"),
    "sharpness": lambda image, level, sign: pillow_colour(image, level, sign, "Sharpness"),
    "shear_x": lambda image, level, sign: pillow_map(image, (1, 0.3 * level * sign, 0, 0, 1, 0)),
    "shear_y": lambda image, level, sign: pillow_map(image, (1, 0, 0, 0.3 * level * sign, 1, 0)),
    "translate_x": lambda image, level, sign: pillow_map(image, (1, 0, 0.45 * level * sign * image.width, 0, 1, 0)),
    "translate_y": lambda image, level, sign: pillow_map(image, (1, 0, 0, 0, 1, 0.45 * level * sign * image.height)),
}
MAPS = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_of_rand_augment_is_pillows(name: str) -> None:
    images = np.concatenate([pictures(6, 60, 80), np.full((1, 60, 80, 3), 90, np.uint8)])  # one of a single value
    levels, signs = np.linspace(0.05, 0.95, 7, dtype=np.float32), np.array([1, -1, 1, -1, 1, -1, 1], np.float32)
    ours = OPERATIONS[name](tf.constant(images), tf.constant(levels), tf.constant(signs)).numpy()
    for picture, level, sign, found in zip(images, levels, signs, ours, strict=True):
        expected = np.asarray(PILLOW[name](Image.fromarray(picture), float(level), float(sign)))
        off = np.abs(expected.astype(int) - found.astype(int)).max(axis=-1)
        if name in MAPS:  # Pillow does not blend the border with what lies outside: a line of pixels differs
            assert (off <= 1).mean() > 0.95
        else:
            assert off.max() <= 1  # float32 here, float64 there, then cut to a whole number
            assert (off == 0).mean() > 0.99


def test_rand_augment_leaves_a_quarter_of_the_images_alone_and_draws_every_operation() -> None:
    images = pictures(1200, 8, 8)
    changed = rand_augment(tf.constant(images), whole(0, 0, 1200), 9.0).numpy()
    same = (changed == images).all(axis=(1, 2, 3)).mean()
    assert 0.2 < same < 0.36  # a quarter, and what an operation does not change


def test_the_magnitude_of_rand_augment_is_that_of_its_level() -> None:
    images = pictures(600, 16, 16)
    means = [
        np.abs(rand_augment(tf.constant(images), whole(0, 0, 600), m).numpy().astype(int) - images).mean()
        for m in (1.0, 5.0, 9.0)
    ]
    assert means[0] < means[1] < means[2]


def test_colour_adds_one_colour_an_image_with_the_covariance_of_imagenet() -> None:
    count = 6000
    grey = np.full((count, 1, 2, 3), 128, np.uint8)
    added = colour(tf.constant(grey), whole(1, 1, count)).numpy().astype(float) - 128
    assert (added[:, :, :1] == added).all()
    # Of AlexNet: the covariance of RGB is P diag(lambda^2) P', here with alpha of deviation 0.1.
    axes = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = (0.1 * 255) ** 2 * axes @ np.diag(np.square([0.2175, 0.0188, 0.0045])) @ axes.T
    found = np.cov(added[:, 0, 0].T)
    rounding = 1 / 12 * np.eye(3)
    np.testing.assert_allclose(found, expected + rounding, atol=0.05 * expected.max())


def test_erasing_fills_one_rectangle_of_the_papers_size_in_as_many_images_as_asked() -> None:
    count = 800
    images = np.zeros((count, 40, 40, 3), np.uint8)
    erased = erase(tf.constant(images), whole(2, 0, count), 0.4).numpy().any(axis=-1)
    areas = erased.mean(axis=(1, 2))
    assert abs((areas > 0).mean() - 0.4) < 4 * math.sqrt(0.24 / count)
    assert areas[areas > 0].min() > 0.005
    assert areas.max() < 0.4
    for mask in erased[areas > 0]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 0.2 < (np.ptp(rows) + 1) / (np.ptp(columns) + 1) < 5


def test_mixup_mixes_neighbours_and_their_targets_in_one_share() -> None:
    images, targets = np.zeros((101, 2, 2, 3), np.uint8), tf.eye(101)
    images[::2] = 255
    x, y = (value.numpy() for value in mix(tf.constant(images), targets, whole(0, 1, 101), 0.4, 0.0))
    for place in range(100):
        share = y[place, place]
        assert y[place, place ^ 1] == pytest.approx(1 - share)
        assert np.abs(x[place] - 255 * (share if place % 2 == 0 else 1 - share)).max() <= 0.5 + 1e-3
    assert np.array_equal(x[100], images[100])
    assert y[100, 100] == 1
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)


def test_shares_have_the_moments_of_the_beta_distribution() -> None:
    for alpha in (0.1, 0.4, 1.0):
        shares = whole(0, 3, 20_000).beta(alpha, MIX).numpy()
        assert np.isfinite(shares).all()
        assert shares.mean() == pytest.approx(0.5, abs=0.015)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)  # of Beta(a, a)


def test_cutmix_pastes_a_box_of_the_neighbour_and_shares_the_target_by_its_true_area() -> None:
    count, side = 200, 20
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, side, side, 3), np.uint8)
    x, y = (value.numpy() for value in mix(tf.constant(images), tf.eye(count), whole(4, 9, count), 0.0, 1.0))
    for place in range(count):
        pasted = x[place, :, :, 0] == (place ^ 1)
        assert (x[place, :, :, 0][~pasted] == place).all()
        assert y[place, place ^ 1] == pytest.approx(pasted.mean(), abs=1e-6)
        if pasted.any():
            rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
            assert pasted.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_the_shares_of_cutmix_are_those_of_the_papers_algorithm() -> None:
    pairs, side = 600, 32
    images, targets = tf.zeros([2 * pairs, side, side, 3], tf.uint8), tf.tile(tf.eye(2), [pairs, 1])
    y = mix(images, targets, whole(4, 9, 2 * pairs), 0.0, 1.0)[1].numpy()
    rng = np.random.default_rng(0)
    centres, half = rng.random((2, 20_000)), np.sqrt(1 - rng.random(20_000)) / 2  # Beta(1, 1) is uniform
    across, down = (np.clip(c + half, 0, 1) - np.clip(c - half, 0, 1) for c in centres)
    expected, found = 1 - across * down, y[::2, 0]
    assert found.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / math.sqrt(pairs))
    assert found.std() == pytest.approx(expected.std(), rel=0.15)


def test_with_both_kinds_of_mixing_each_pair_takes_one() -> None:
    images = np.zeros((400, 16, 16, 3), np.uint8)
    images[::2] = 255
    x, y = (value.numpy() for value in mix(tf.constant(images), tf.eye(400), whole(0, 1, 400), 1.0, 1.0))
    is_cut = np.array([set(np.unique(picture)) <= {0, 255} for picture in x])
    assert 0.4 < is_cut.mean() < 0.6 + 0.05
    assert (is_cut[::2] == is_cut[1::2]).all()
    np.testing.assert_allclose(
        x[::2].mean(axis=(1, 2, 3)) / 255, y[np.arange(0, 400, 2), np.arange(0, 400, 2)], atol=3e-3
    )


def test_smoothed_targets_are_the_papers() -> None:
    found = smooth(tf.eye(4), 0.1).numpy()
    np.testing.assert_allclose(found, 0.9 * np.eye(4) + 0.1 / 4, rtol=1e-6)


def test_a_mixed_image_is_of_both_classes_where_each_class_is_judged_by_itself() -> None:
    images = tf.zeros([60, 8, 8, 3], tf.uint8)
    draw = whole(0, 0, 60)
    shares = Treatment(mixup=1.0)(images, tf.eye(60), draw)[1].numpy()
    found = Treatment(mixup=1.0, loss="bce")(images, tf.eye(60), draw)[1].numpy()
    assert np.array_equal(found, (shares > 0.2).astype(np.float32))
    assert (found.sum(axis=1) == 2).any()


@pytest.mark.parametrize("size", [(500, 375), (224, 224), (100, 1000), (1000, 100), (3, 7), (1, 1)])
@pytest.mark.parametrize("crop", [crops.inception, crops.scale])
def test_a_box_lies_in_its_picture(crop: crops.Crop, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for numbers in [*rng.random((200, crop.numbers)), np.zeros(crop.numbers), np.full(crop.numbers, 1 - 2**-24)]:
        left, top, right, bottom = crop.box(*size, numbers)
        assert 0 <= left < right <= size[0] + 1e-9
        assert 0 <= top < bottom <= size[1] + 1e-9


def test_inception_boxes_have_the_areas_and_ratios_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([crops.inception_box(600, 500, n) for n in rng.random((4000, crops.inception.numbers))])
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    ratios, areas = wide / tall, wide * tall / 300_000
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35
    assert 0.079 < areas.min() < 0.1
    assert areas.max() > 0.9
    middle = (boxes[:, 0] + boxes[:, 2]) / 2
    assert abs(middle.mean() - 300) < 4 * middle.std() / math.sqrt(4000)


def test_scale_boxes_resize_the_short_side_to_256_up_to_480_for_crops_of_224() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([crops.scale_box(640, 480, n) for n in rng.random((2000, 3))])
    short = 224 * 480 / (boxes[:, 2] - boxes[:, 0])
    assert short.min() == pytest.approx(256, abs=1)
    assert short.max() == pytest.approx(480, abs=1)
    assert short.mean() == pytest.approx(368, abs=4 * 224 / math.sqrt(12 * 2000))
    np.testing.assert_allclose(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])


WHOLE = crops.Crop(lambda width, height, numbers: (0, 0, width, height), 0)


def test_a_cut_of_everything_is_pillows_resize_and_stands_upright() -> None:
    picture = Image.fromarray(pictures(1, 60, 80)[0])
    expected = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(crops.cut(picture, WHOLE, (), 32), expected)
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[crops.ORIENTATION] = 6  # "turn by 90 degrees clockwise to see it"
    assert np.array_equal(crops.cut(turned, WHOLE, (), 32), expected)


def test_a_jpeg_that_is_decoded_at_a_half_shows_the_same_picture(tmp_path) -> None:  # type: ignore[no-untyped-def]
    picture = Image.fromarray(pictures(1, 600, 800)[0])
    picture.save(tmp_path / "a.jpg", quality=95)
    crop = crops.Crop(lambda width, height, numbers: (100, 50, 500, 450), 0)
    expected = np.asarray(picture.resize((100, 100), Image.Resampling.BILINEAR, box=(100, 50, 500, 450))).astype(int)
    with Image.open(tmp_path / "a.jpg") as opened:
        found = crops.cut(opened, crop, (), 100)
        assert opened.size == (200, 150)
    assert np.abs(found - expected).mean() < 2
