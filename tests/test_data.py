"""From a source to images, and from images to batches."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnet.errors import InputError, UsageError
from keras_resnet.preprocessing import Preprocessing, normalise_tensor
from keras_resnet.training import open_images
from keras_resnet.training.augment import Treatment
from keras_resnet.training.batches import evaluation_batches, training_batches
from keras_resnet.training.images import Images
from keras_resnet.training.sources import held
from tests.pictures import COLOURS, colour_folder

PLAIN = Preprocessing(resize=0, crop=0, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return colour_folder(tmp_path / "colours")


def test_the_embedded_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    digits, source = open_images("digits"), load_digits()
    assert digits.classes == tuple(str(name) for name in source.target_names)
    assert np.array_equal(digits.labels, source.target)
    assert np.array_equal(np.stack(digits.items), source.images)


def test_a_digit_is_32_pixels_grey_in_three_channels_and_spans_the_whole_range() -> None:
    digits = open_images("digits")
    pixels = np.stack([digits[i][0] for i in range(200)])
    assert pixels.shape == (200, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_a_folder_gives_its_classes_in_order_and_its_pixels_unchanged(folder: Path) -> None:
    images = open_images(folder)
    assert images.classes == tuple(sorted(COLOURS))
    assert np.bincount(images.labels).tolist() == [12, 12, 12]
    assert np.array_equal(images[13][0], np.asarray(Image.open(folder / "green" / "001.png")))


def test_equal_data_has_an_equal_hash_wherever_it_lies_and_one_changed_pixel_another(tmp_path: Path) -> None:
    one, two = (open_images(colour_folder(tmp_path / name)) for name in ("one", "two"))
    assert one.hash == two.hash
    changed = tmp_path / "two" / "red" / "000.png"
    pixels = np.array(Image.open(changed))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(changed)
    assert open_images(tmp_path / "two").hash != one.hash


def test_an_npz_of_images_and_labels_opens(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.array([0, 1, 2, 0, 1, 2]), classes=["x", "y", "z"])
    images = open_images(tmp_path / "a.npz")
    assert images.classes == ("x", "y", "z")
    assert np.array_equal(np.stack([images[i][0] for i in range(6)]), pixels)


def test_one_image_alone_keeps_its_axis_in_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 1, 8, 3), np.uint8), labels=[0, 1])
    assert open_images(tmp_path / "a.npz")[0][0].shape == (1, 8, 3)


@pytest.mark.parametrize("fractions", [(0.5,), (0.2, 0.2), (0.1, 0.3, 0.6)])
def test_parts_of_a_split_are_disjoint_together_everything_and_of_each_class_alike(
    fractions: tuple[float, ...],
) -> None:
    digits = open_images("digits")
    numbered = Images("n", digits.classes, digits.labels, list(range(len(digits))), digits.decode)
    parts = numbered.split(*fractions, seed=3)
    together = [item for part in parts for item in part.items]
    assert sorted(together) == list(range(len(digits)))
    for part, fraction in zip(parts, fractions, strict=False):
        expected = fraction * np.bincount(digits.labels)
        assert np.abs(np.bincount(part.labels) - expected).max() <= 1


def test_a_split_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    digits = open_images("digits")
    assert digits.split(0.2, seed=1)[0].hash == digits.split(0.2, seed=1)[0].hash
    assert digits.split(0.2, seed=1)[0].hash != digits.split(0.2, seed=2)[0].hash


def test_the_quickstart_split_has_360_test_digits() -> None:
    assert [len(part) for part in open_images("digits").split(0.2, 0.2)] == [359, 360, 1078]


@pytest.mark.parametrize("fractions", [(0.0,), (-0.1,), (0.7, 0.7)])
def test_fractions_that_make_no_split_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="fractions"):
        open_images("digits").split(*fractions)


def test_images_too_few_to_split_are_refused(tmp_path: Path) -> None:
    few = open_images(colour_folder(tmp_path / "few", count=2))
    with pytest.raises(InputError, match="has 6 images of 3 classes, too few to set 10% of each class apart"):
        few.split(0.1)


def test_a_balanced_sample_has_as_many_of_each_class_as_can_be() -> None:
    digits = open_images("digits")
    assert np.bincount(digits.balanced_sample(50).labels).tolist() == [5] * 10
    assert len(digits.balanced_sample(10**6)) == len(digits)


def make_empty(path: Path) -> None:
    path.mkdir()


def make_one_class(path: Path) -> None:
    colour_folder(path)
    for name in ("green", "red"):
        for file in (path / name).iterdir():
            file.unlink()
        (path / name).rmdir()


def make_with_text_file(path: Path) -> None:
    (colour_folder(path) / "red" / "notes.txt").write_text("no image")


def make_with_truncated_image(path: Path) -> None:
    file = colour_folder(path) / "green" / "005.png"
    file.write_bytes(file.read_bytes()[:60])


def make_empty_class(path: Path) -> None:
    (colour_folder(path) / "violet").mkdir()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_empty, "is empty: it must hold a folder of images for each class"),
        (make_one_class, r"one class only \(blue\)"),
        (make_with_text_file, r"notes.txt' is not an image"),
        (make_with_truncated_image, r"005.png' is not an image"),
        (make_empty_class, r"violet' is empty"),
        (lambda path: None, "is not there"),
    ],
    ids=["empty", "one class", "text file", "truncated", "empty class", "absent"],
)
def test_a_folder_that_cannot_serve_is_refused_with_the_reason(tmp_path: Path, make: object, said: str) -> None:
    make(tmp_path / "data")  # type: ignore[operator]
    with pytest.raises(InputError, match=said):
        open_images(tmp_path / "data")


PIXELS = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": PIXELS.astype(np.float32), "labels": [0, 1]}, "'images' must be uint8"),
        ({"images": PIXELS, "labels": [0, 1, 2]}, "'labels' must be whole numbers, one an image"),
        ({"images": PIXELS, "labels": [0, 5], "classes": ["a", "b"]}, "labels go from 0 to 5 .* for 2 classes"),
        ({"images": PIXELS, "labels": [0, -1], "classes": ["a", "b"]}, "labels go from -1 to 0"),
        ({"images": PIXELS, "labels": [0, 5]}, "with 2 values for 6 classes"),
        ({"pictures": PIXELS}, "no .npz with arrays 'images' and 'labels'"),
    ],
)
def test_an_npz_that_cannot_serve_is_refused(tmp_path: Path, arrays: dict[str, object], said: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=said):
        open_images(tmp_path / "a.npz")


@pytest.mark.parametrize("label", [-1, 3, 10**9])
def test_images_of_a_label_outside_their_classes_are_refused_wherever_they_come_from(label: int) -> None:
    labels = np.array([0, 1, 2, label, label])
    with pytest.raises(InputError, match=f"image 3 has label {label}, but its classes are 0 to 2: 2 of 5 images"):
        Images("five", ("a", "b", "c"), labels, list(PIXELS[[0] * 5]), Image.fromarray)


@pytest.mark.parametrize(
    "preprocessing",
    [PLAIN, Preprocessing(), Preprocessing(order="bgr", scale=1.0, mean=(104.0, 117.0, 124.0), std=(1.0, 2.0, 3.0))],
)
def test_batches_are_normalised_as_the_preprocessing_says(preprocessing: Preprocessing) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    rounding = 1e-6 * 255  # float32, values up to 255
    np.testing.assert_allclose(normalise_tensor(pixels, preprocessing), preprocessing.normalise(pixels), atol=rounding)
    mapped = next(tf.data.Dataset.from_tensors(pixels).map(preprocessing.normalise).as_numpy_iterator())
    np.testing.assert_allclose(mapped, preprocessing.normalise(pixels), atol=rounding)


COUNT = 10


def batches(first_step: int, total_steps: int, *, seed: int = 1, shard: tuple[int, int] = (0, 1)) -> list[np.ndarray]:
    """Three steps an epoch, of 4, 4 and 2 pictures, each of the colour of its number."""
    pixels = np.arange(COUNT, dtype=np.uint8).reshape(COUNT, 1, 1, 1) * np.ones((1, 8, 8, 3), np.uint8)
    data = training_batches(
        held(pixels, np.arange(COUNT) % 3, 4),
        Treatment("none"),
        batch_size=4,
        seed=seed,
        first_step=first_step,
        total_steps=total_steps,
        shard=shard,
    )
    return [(x.numpy(), y.numpy()) for x, y in data]  # type: ignore[misc]


def test_an_epoch_shows_every_image_once_in_batches_with_the_rest_last() -> None:
    for x, y in batches(0, 3):
        assert x.dtype == np.uint8
        assert y.shape[1] == 4
        assert (y.argmax(axis=1) == x[:, 0, 0, 0].astype(int) % 3).all()
    shown = [int(value) for x, _ in batches(0, 3) for value in x[:, 0, 0, 0]]
    assert [len(x) for x, _ in batches(0, 3)] == [4, 4, 2]
    assert sorted(shown) == list(range(COUNT))


@pytest.mark.parametrize("first", [1, 6, 14])
def test_a_run_that_goes_on_at_any_step_sees_what_it_would_have_seen(first: int) -> None:
    whole, rest = batches(0, 15), batches(first, 15)
    assert len(rest) == 15 - first
    for (x, y), (x2, y2) in zip(whole[first:], rest, strict=True):
        assert np.array_equal(x, x2)
        assert np.array_equal(y, y2)


def test_epochs_and_seeds_differ_in_order() -> None:
    starts = ((0, 1), (3, 1), (0, 2))
    orders = [np.concatenate([x[:, 0, 0, 0] for x, _ in batches(e, e + 3, seed=s)]).tolist() for e, s in starts]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_evaluation_keeps_the_order_of_the_images() -> None:
    pixels = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1) * np.ones((1, 2, 2, 3), np.uint8)
    data = evaluation_batches(held(pixels, np.arange(7) % 2, 2), batch_size=3)
    assert np.concatenate([x[:, 0, 0, 0] for x, _ in data]).tolist() == list(range(7))
    assert np.concatenate([y.numpy().argmax(1) for _, y in data]).tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_a_class_name_of_two_lines_or_none_is_refused(tmp_path: Path) -> None:
    for i, classes in enumerate((["x", "x"], ["a\nb", "c"], ["", "c"])):
        path = tmp_path / f"{i}.npz"
        np.savez(path, images=np.zeros((2, 4, 4, 3), np.uint8), labels=[0, 1], classes=classes)
        with pytest.raises(InputError, match="give each one name, on one line"):
            open_images(path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"\x93NUMPY\x01\x00"])
def test_a_foreign_npz_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npz"):
        open_images(tmp_path / "a.npz")


@pytest.mark.parametrize("labels", [3, ["a", "b"], [0.5, 1.5], [[1, 0], [0, 1]], [0, 5], [-1, 0]])
def test_labels_that_are_no_class_numbers_are_refused(labels: object, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=labels)
    with pytest.raises(InputError, match=r"'labels' must be|labels go from"):
        open_images(tmp_path / "a.npz")


def test_pictures_of_more_than_8_bits_are_refused_and_not_cut(tmp_path: Path) -> None:
    folder = colour_folder(tmp_path / "c")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "red" / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png' has more than 8 bits"):
        open_images(folder)


def packed(folder: Path, target: Path, root: str = "photos") -> Path:
    """The folder in an archive, its entries in reverse order."""
    with tarfile.open(target, "w:gz" if target.suffix == ".gz" else "w") as tar:
        for path in sorted(folder.rglob("*"), reverse=True):
            tar.add(path, f"{root}/{path.relative_to(folder)}".lstrip("/"), recursive=False)
    return target


@pytest.mark.parametrize("root", ["photos", "", ".", "a/b"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_an_archive_gives_what_the_folder_in_it_gives(
    folder: Path, tmp_path: Path, suffix: str, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    images, expected = open_images(packed(folder, tmp_path / f"a{suffix}", root)), open_images(folder)
    assert images.name == "a"
    assert images.hash == expected.hash
    assert np.array_equal(images.pixels(PLAIN), expected.pixels(PLAIN))
    assert not (tmp_path / root / "red").exists() or root == ""


def test_a_zipped_archive_is_unzipped_once_and_anew_where_it_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    archive = packed(folder, tmp_path / "a.tar.gz")
    open_images(archive)
    assert "unzipped once" in capsys.readouterr().err
    open_images(archive)
    assert capsys.readouterr().err == ""
    (folder / "red" / "000.png").unlink()
    packed(folder, archive)
    assert len(open_images(archive)) == 35
    assert "unzipped once" in capsys.readouterr().err


@pytest.mark.parametrize("root", ["photos", "", ".", "a/b"])
def test_an_empty_class_folder_in_an_archive_is_refused_as_it_is_on_disk(
    folder: Path, tmp_path: Path, root: str
) -> None:
    (folder / "violet").mkdir()
    with pytest.raises(InputError, match=r"a\.tar': class folder 'violet' is empty"):
        open_images(packed(folder, tmp_path / "a.tar", root))


def wrong_archives(folder: Path, target: Path) -> dict[str, tuple[Path, str]]:
    """Archives that cannot serve, with what is said of them."""
    target.mkdir()
    whole = packed(folder, target / "whole.tar").read_bytes()
    found = {}

    def archive(name: str, said: str, *entries: tuple[str, bytes | str]) -> None:
        with tarfile.open(target / f"{name}.tar", "w") as tar:
            for entry, content in entries:
                info = tarfile.TarInfo(entry)
                if isinstance(content, str):
                    info.type, info.linkname = tarfile.SYMTYPE, content
                    tar.addfile(info)
                else:
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        found[name] = (target / f"{name}.tar", said)

    picture = (folder / "red" / "000.png").read_bytes()
    archive("empty", "is empty")
    archive("link", "is a link", ("a/x.png", picture), ("b/y.png", "/etc/passwd"))
    archive("loose", "is in no class folder", ("a/x.png", picture), ("y.png", picture))
    archive("two roots", "has class folders in", ("one/a/x.png", picture), ("two/b/y.png", picture))
    archive("no picture", "is not an image", ("a/x.png", picture), ("b/y.png", b"text"))
    archive("one class", "has one class only", ("a/x.png", picture), ("a/y.png", picture))
    for name, content, said in (
        ("cut", whole[: len(whole) // 2], "cut short|no archive that can be read|not an image"),
        ("foreign", b"no archive" * 100, "is no archive"),
        ("nothing", b"", "is no archive|is empty"),
    ):
        (target / f"{name}.tar").write_bytes(content)
        found[name] = (target / f"{name}.tar", said)
    for name, content in (("cut", gzip.compress(whole)[:-2000]), ("foreign", b"no archive")):
        (target / f"{name}.tar.gz").write_bytes(content)
        found[f"{name} zip"] = (target / f"{name}.tar.gz", "cannot be unzipped")
    return found


def test_archives_that_cannot_serve_are_refused_by_name_and_leave_no_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    for path, said in wrong_archives(folder, tmp_path / "wrong").values():
        with pytest.raises(InputError, match=said) as caught:
            open_images(path)
        assert path.name in str(caught.value)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_pictures_come_in_their_order_however_they_are_batched(folder: Path) -> None:
    images = open_images(folder)
    whole = np.stack([images[i][0] for i in range(len(images))])
    for size in (1, 5, 36, 100):
        parts = list(images.batches(PLAIN, size))
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert np.array_equal(np.concatenate(parts), whole)


def test_a_picture_of_another_size_is_named(folder: Path) -> None:
    Image.new("RGB", (9, 9)).save(folder / "red" / "005.png")
    with pytest.raises(InputError, match=r"005\.png' is 9x9 pixels, .*000\.png' 20x16: set a crop"):
        open_images(folder).pixels(PLAIN)
    with pytest.raises(InputError, match=r"005\.png': a picture of 9x9 pixels is smaller than the crop of 16"):
        open_images(folder).pixels(Preprocessing(resize=0, crop=16))


@pytest.mark.parametrize("label_mode", ["int", "categorical"])
def test_a_dataset_of_keras_is_the_images_of_its_folder(folder: Path, label_mode: str) -> None:
    data = keras.utils.image_dataset_from_directory(
        folder, image_size=(16, 20), batch_size=5, shuffle=False, label_mode=label_mode, verbose=0
    )
    images = open_images(folder)
    found = open_images(data)
    assert found.classes == images.classes
    assert np.array_equal(found.labels, images.labels)
    assert all(np.array_equal(found[i][0], images[i][0]) for i in range(len(images)))


def test_a_dataset_of_two_classes_may_have_one_number_a_picture() -> None:
    labels = np.array([[0.0], [1.0], [1.0], [0.0]], np.float32)
    found = open_images(tf.data.Dataset.from_tensor_slices((np.full((4, 4, 4, 3), 9, np.uint8), labels)).batch(3))
    assert (found.classes, found.labels.tolist()) == (("0", "1"), [0, 1, 1, 0])


def test_a_dataset_of_single_pictures_is_read_in_its_own_order() -> None:
    pixels, labels = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8), np.array([2, 0, 1, 1, 0, 2])
    found = open_images(tf.data.Dataset.from_tensor_slices((pixels, labels)))
    assert (found.classes, found.labels.tolist()) == (("0", "1", "2"), labels.tolist())
    assert np.array_equal(np.stack([found[i][0] for i in range(6)]), pixels)


PIXELS = np.zeros((4, 8, 8, 3), np.float32) + np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
LABELS = np.arange(4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: tf.data.Dataset.from_tensor_slices(PIXELS), "not one of pairs"),
        (lambda: tf.data.Dataset.from_tensor_slices((PIXELS, LABELS)).repeat(), "repeats without end"),
        (lambda: tf.data.Dataset.from_tensor_slices((PIXELS[..., :1], LABELS)), r"pictures of shape \(8, 8, 1\)"),
        (lambda: tf.data.Dataset.from_tensor_slices((PIXELS - 2, LABELS)).batch(4), "from -2 to 1: give pixels"),
        (lambda: tf.data.Dataset.from_tensor_slices((PIXELS / 4, LABELS)).batch(4), "from 0 to 0.75: give pixels"),
        (lambda: tf.data.Dataset.from_tensor_slices((PIXELS, LABELS)).take(0), "gives no picture"),
        (lambda: tf.data.Dataset.from_tensor_slices((PIXELS * 9, LABELS * 0)).batch(4), "one class only"),
    ],
)
def test_a_dataset_that_is_none_of_pictures_is_refused(data: Callable[[], tf.data.Dataset], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_images(data())
