"""Where pictures come from: packed shards, files decoded as they are needed, caches, damaged files, named data sets."""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_resnet
from keras_resnet.errors import InputError, MissingExtraError, UsageError
from keras_resnet.preprocessing import Preprocessing, preprocess_input, preprocessing_of
from keras_resnet.training import evaluate_model, open_images, packing, train
from keras_resnet.training.augment import Treatment
from keras_resnet.training.batches import evaluation_batches, training_batches
from keras_resnet.training.checking import check
from keras_resnet.training.images import Images
from keras_resnet.training.packing import check_shards, pack
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.sources import Source, fitted_source, held, naming_damaged_images, training_source
from tests.pictures import COLOURS, colour_folder

SQUARE = Preprocessing(resize=16, crop=16, mean=(0.5,) * 3, std=(0.5,) * 3)
CROPPED = Recipe("cifar_resnet8", image_size=16, augmentation="inception", batch_size=7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return colour_folder(tmp_path / "colours", size=(30, 24))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def damage(folder: Path, names: tuple[str, ...] = ("red/003.png",)) -> None:
    """Make files into JPEGs that are cut short, which only decoding finds."""
    for name in names:
        path, buffer = folder / name, io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
        Image.fromarray(noise).save(buffer, "jpeg")
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def shown(source: Source, recipe: Recipe, first: int, last: int, shard: tuple[int, int] = (0, 1)) -> list[np.ndarray]:
    data = training_batches(
        source,
        Treatment.of(recipe),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        first_step=first,
        total_steps=last,
        shard=shard,
    )
    return [(x.numpy(), y.numpy()) for x, y in data]  # type: ignore[misc]


RECIPES: dict[str, Recipe] = {
    "fitted": Recipe("cifar_resnet8", image_size=16, augmentation="shift_flip", batch_size=7, seed=3),
    "cropped": CROPPED,
    "mixed": Recipe(
        "cifar_resnet8", image_size=16, augmentation="scale", mixup=0.2, cutmix=1.0, erasing=0.5, batch_size=7
    ),
    "repeated": Recipe("cifar_resnet8", image_size=16, augmentation="inception", repeats=3, batch_size=7),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_any_step_of_any_epoch_has_the_same_bytes_from_wherever_one_begins(folder: Path, recipe: Recipe) -> None:
    source = training_source(open_images(folder), recipe)
    steps = recipe.steps_per_epoch(36)
    assert steps == 6
    run = shown(source, recipe, 0, 2 * steps)
    for first in (1, steps, steps + 4):
        again = shown(training_source(open_images(folder), recipe), recipe, first, first + 2)
        for (x, y), (x2, y2) in zip(run[first : first + 2], again, strict=True):
            assert np.array_equal(x, x2)
            assert np.array_equal(y, y2)
    assert not np.array_equal(run[0][0], run[steps][0])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_the_parts_of_the_workers_are_together_the_batch_of_one_process(
    folder: Path, recipe: Recipe, workers: int
) -> None:
    source = training_source(open_images(folder), recipe)
    parts = [shown(source, recipe, 4, 8, (i, workers)) for i in range(workers)]
    for step, (x, y) in enumerate(shown(source, recipe, 4, 8)):  # over the end of an epoch, whose last batch has 1
        assert np.array_equal(np.concatenate([part[step][0] for part in parts]), x)
        assert np.array_equal(np.concatenate([part[step][1] for part in parts]), y)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_the_workers_show_every_image_of_an_epoch_exactly_once(workers: int) -> None:
    pixels = np.arange(50, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 2, 2, 3), np.uint8)
    source = held(pixels, np.arange(50) % 2, 2)
    recipe = Recipe("cifar_resnet8", augmentation="none", batch_size=8)
    for epoch in (0, 3):
        seen = [x for i in range(workers) for x, _ in shown(source, recipe, 7 * epoch, 7 * epoch + 7, (i, workers))]
        assert sorted(np.concatenate(seen)[:, 0, 0, 0].tolist()) == list(range(50))


def test_repeated_images_are_in_one_batch_apart_from_one_another_and_cut_anew(folder: Path) -> None:
    recipe = replace(RECIPES["repeated"], batch_size=6)
    images = open_images(folder)
    numbered = Images("n", tuple(map(str, range(36))), np.arange(36), images.items, images.decode)
    seen = set()
    for x, y in shown(training_source(numbered, recipe), recipe, 0, 6):
        classes = y.argmax(axis=1)
        assert sorted(np.bincount(classes)[np.unique(classes)]) == [3, 3]
        assert (classes[::2] != classes[1::2]).all()  # partners, where images are mixed
        assert len({picture.tobytes() for picture in x}) == 6
        seen |= set(classes.tolist())
    assert len(seen) == 12


def test_pixels_of_an_epoch_are_the_same_from_memory_from_disk_and_decoded_anew(folder: Path, cache: Path) -> None:
    images, recipe = open_images(folder), RECIPES["fitted"]
    ways = [
        shown(training_source(images, recipe, way), recipe, 0, 6) for way in ("memory", "disk", "disk", "none", "auto")
    ]
    assert len(list(cache.rglob("*.npy"))) == 1
    for other in ways[1:]:
        for (x, _), (x2, _) in zip(ways[0], other, strict=True):
            assert np.array_equal(x, x2)


@pytest.mark.parametrize("way", ["memory", "disk", "none"])
def test_evaluation_reads_every_image_once_in_order_exactly_decoded(folder: Path, way: str) -> None:
    images = open_images(folder)
    batches = list(evaluation_batches(fitted_source(images, SQUARE, way), batch_size=10))
    assert [len(x) for x, _ in batches] == [10, 10, 10, 6]
    assert np.array_equal(
        np.concatenate([x for x, _ in batches]), np.stack([images.fitted(i, SQUARE) for i in range(36)])
    )
    assert np.array_equal(np.concatenate([y.numpy().argmax(1) for _, y in batches]), images.labels)


def test_a_jpeg_is_decoded_as_by_tensorflows_accurate_decoder(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "j" / label).mkdir(parents=True)
        noise = np.random.default_rng(1).integers(0, 256, (3, 4, 3), np.uint8)
        Image.fromarray(noise).resize((40, 32)).save(tmp_path / "j" / label / "0.jpg", quality=75)
    images = open_images(tmp_path / "j")
    exact = tf.io.decode_jpeg((tmp_path / "j" / "a" / "0.jpg").read_bytes(), dct_method="INTEGER_ACCURATE").numpy()
    assert np.array_equal(images[0][0], exact)


def test_pixels_too_many_for_memory_are_decoded_as_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras_resnet.training.sources.HELD_BYTES", 1000)
    monkeypatch.setattr(Images, "pixels", lambda *arguments: pytest.fail("all were decoded at once"))
    (x, _), *_ = evaluation_batches(fitted_source(open_images(folder), SQUARE), batch_size=4)
    assert x.shape == (4, 16, 16, 3)


def test_a_cache_of_pixels_that_are_cut_anew_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"cache='disk' does not go with augmentation='inception'"):
        training_source(open_images(folder), CROPPED, "disk")
    with pytest.raises(UsageError, match="unknown cache 'dsik'"):
        training_source(open_images(folder), RECIPES["fitted"], "dsik")


def test_a_damaged_image_in_the_middle_of_training_is_named(folder: Path) -> None:
    damage(folder)
    source = training_source(open_images(folder), CROPPED)
    said = r"^'.*003\.png' cannot be decoded: remove or repair it \(.*truncated"
    with pytest.raises(InputError, match=said), naming_damaged_images():
        shown(source, CROPPED, 0, 6)


def test_one_damaged_image_among_thousands_is_an_error_or_is_skipped_counted_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = colour_folder(tmp_path / "many", count=700, size=(4, 4))
    damage(folder)
    with pytest.raises(InputError, match=r"red/003\.png' cannot be decoded: remove or repair it"):
        open_images(folder).pixels(Preprocessing(resize=4, crop=4))
    images = open_images(folder, damaged="skip")
    assert len(images) == 2099
    assert len(images.skipped) == 1
    assert images.skipped[0].startswith("red/003.png is not an image that can be read")
    assert "1 of 2100 images are damaged and left out" in capsys.readouterr().err
    assert images.pixels(Preprocessing(resize=4, crop=4)).shape == (2099, 4, 4, 3)


def test_a_class_whose_every_image_is_damaged_is_an_error_under_both_policies(folder: Path) -> None:
    damage(folder, tuple(f"red/{i:03d}.png" for i in range(12)))
    with pytest.raises(InputError, match="every image of class 'red' is damaged"):
        open_images(folder, damaged="skip")
    with pytest.raises(UsageError, match="unknown policy 'ignore'"):
        open_images(folder, damaged="ignore")


def test_packed_images_are_those_that_were_packed_in_their_order(folder: Path, tmp_path: Path) -> None:
    images = open_images(folder)
    pack(images, tmp_path / "p", images_per_shard=10)
    packed = open_images(tmp_path / "p")
    assert len(list((tmp_path / "p").glob("*.tfrecord"))) == 4
    assert packed.hash == images.hash
    assert packed.classes == images.classes
    assert np.array_equal(packed.labels, images.labels)
    assert all(np.array_equal(packed[i][0], images[i][0]) for i in range(36))
    assert Images(*(getattr(packed, n) for n in ("name", "classes", "labels", "items", "decode"))).hash == images.hash


def test_any_reader_of_tfrecords_takes_the_shards(folder: Path, tmp_path: Path) -> None:
    images = open_images(folder)
    pack(images, tmp_path / "p", images_per_shard=10)
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
        "image/class/text": tf.io.FixedLenFeature([], tf.string),
        "image/filename": tf.io.FixedLenFeature([], tf.string),
    }
    found = {}
    for record in tf.data.TFRecordDataset(sorted(map(str, (tmp_path / "p").glob("*.tfrecord")))):
        row = tf.io.parse_single_example(record, features)
        assert images.classes[row["image/class/label"]] == row["image/class/text"].numpy().decode()
        found[row["image/filename"].numpy().decode()] = tf.io.decode_image(row["image/encoded"]).numpy()
    assert sorted(found) == sorted(f"{path.parent.name}/{path.name}" for path in images.items)
    assert all(np.array_equal(found[f"{p.parent.name}/{p.name}"], np.asarray(Image.open(p))) for p in images.items)


def test_a_packing_that_was_stopped_goes_on_and_writes_nothing_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, target = open_images(folder), tmp_path / "p"
    encoded, calls = packing._encoded, []

    def stopping(images: Images, place: int) -> bytes:
        calls.append(place)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return encoded(images, place)

    monkeypatch.setattr(packing, "DECODERS", 1)
    monkeypatch.setattr(packing, "_encoded", stopping)
    with pytest.raises(KeyboardInterrupt):
        pack(images, target, images_per_shard=6)
    with pytest.raises(InputError):
        open_images(target)  # no index yet: not a folder of class folders either
    before = {path.name: path.stat().st_mtime_ns for path in target.glob("*.tfrecord")}
    assert 1 <= len(before) < 6
    monkeypatch.setattr(packing, "_encoded", encoded)
    pack(images, target, images_per_shard=6)
    after = {path.name: path.stat().st_mtime_ns for path in target.glob("*.tfrecord")}
    assert len(after) == 6
    assert before.items() <= after.items()
    assert not [path for path in target.iterdir() if path.name.startswith(".partial")]
    assert open_images(target).hash == images.hash
    assert check_shards(target) == []


def test_a_folder_of_another_packing_or_of_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    pack(open_images(folder), tmp_path / "p")
    (folder / "red" / "000.png").unlink()
    with pytest.raises(UsageError, match="holds other images or shards of another size"):
        pack(open_images(folder), tmp_path / "p")
    with pytest.raises(UsageError, match="holds something else"):
        pack(open_images(folder), folder)


def flip_byte(target: Path) -> None:
    path = sorted(target.glob("*.tfrecord"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_shard(target: Path) -> None:
    path = sorted(target.glob("*.tfrecord"))[0]
    path.write_bytes(path.read_bytes()[:-7])


def edit_index(old: str, new: str) -> Callable[[Path], None]:
    def edit(target: Path) -> None:
        path = target / packing.INDEX
        path.write_text(path.read_text().replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut_shard, "not there or not whole"),
        (lambda target: sorted(target.glob("*.tfrecord"))[0].unlink(), "not there or not whole"),
        (lambda target: sorted(target.glob("*.npz"))[0].write_bytes(b"nothing"), "index of shard .* cannot be read"),
        (edit_index('"version": 1', '"version": 2'), "no index of packed images of version"),
        (edit_index('"file": "', '"file": "../'), "no index of packed images"),
        (edit_index('"red"', "7"), "no index of packed images"),
        (edit_index('"count": 36', '"count": 37'), "does not fit its shards"),
        (lambda target: (target / packing.INDEX).write_text("{"), "no index of packed images"),
    ],
)
def test_packed_images_that_are_not_whole_are_refused(
    folder: Path, tmp_path: Path, harm: Callable[[Path], None], said: str
) -> None:
    target = pack(open_images(folder), tmp_path / "p")
    harm(target)
    with pytest.raises(InputError, match=said):
        open_images(target)


def test_a_flipped_bit_in_a_shard_is_found_by_its_checksum(folder: Path, tmp_path: Path) -> None:
    target = pack(open_images(folder), tmp_path / "p", images_per_shard=10)
    flip_byte(target)
    assert check_shards(target) == [str(sorted(target.glob("*.tfrecord"))[0])]
    assert any(f.kind == "damaged" and "shard" in f.detail for f in check([target])[1])


def test_pixels_without_files_are_packed_without_loss(tmp_path: Path) -> None:
    digits = open_images("digits").balanced_sample(40)
    packed = open_images(pack(digits, tmp_path / "p"))
    assert all(np.array_equal(packed[i][0], digits[i][0]) for i in range(40))


def test_a_damaged_image_is_not_packed(folder: Path, tmp_path: Path) -> None:
    damage(folder)
    with pytest.raises(InputError, match=r"003\.png' cannot be decoded"):
        pack(open_images(folder), tmp_path / "p")
    assert not (tmp_path / "p" / packing.INDEX).exists()


def test_a_check_finds_damaged_equal_and_unplaced_files_and_leaves_good_data_alone(
    folder: Path, tmp_path: Path
) -> None:
    assert check([folder]) == (36, [])
    damage(folder)
    shutil.copy(folder / "red" / "000.png", folder / "green" / "copy.png")
    Image.open(folder / "blue" / "000.png").save(folder / "blue" / "again.tiff")  # other bytes, the same pixels
    (folder / "stray.png").write_bytes((folder / "red" / "001.png").read_bytes())
    (folder / "red" / "deeper").mkdir()
    shutil.copy(folder / "red" / "002.png", folder / "red" / "deeper" / "x.png")
    (folder / "violet").mkdir()
    count, findings = check([folder])
    assert count == 38
    assert {(Path(f.file.split(": ")[-1]).name, f.kind) for f in findings} == {
        ("003.png", "damaged"),
        ("000.png", "duplicate"),
        ("again.tiff", "duplicate"),
        ("stray.png", "unknown class"),
        ("x.png", "unknown class"),
        ("violet", "empty class"),
    }
    assert "of another class (green)" in next(f.detail for f in findings if f.file.endswith("red/000.png"))


def test_a_check_of_two_sources_finds_test_images_that_were_trained_on_and_classes_that_were_not(
    folder: Path, tmp_path: Path
) -> None:
    test = colour_folder(tmp_path / "test", count=3, size=(30, 24), seed=9)
    (test / "blue").rename(test / "mauve")
    shutil.copy(folder / "red" / "004.png", test / "red" / "leak.png")
    for file in (test / "green").iterdir():
        file.unlink()
    with tarfile.open(tmp_path / "test.tar", "w") as tar:
        tar.add(test, "test")
    for source in (test, tmp_path / "test.tar"):
        _, findings = check([folder, source])
        assert sorted((f.kind, f.file.split("/")[-1].split(": ")[-1]) for f in findings) == [
            ("duplicate", "leak.png"),
            ("empty class", "green"),
            ("unknown class", "mauve"),
        ]
        assert "same pixels as" in next(f.detail for f in findings if f.kind == "duplicate")


def test_cifar_is_keras_datasets_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n)[:, None] % 10) for n in (20, 10)]
    monkeypatch.setattr("keras.datasets.cifar10.load_data", lambda: tuple(parts))
    train, test = open_images("cifar10"), open_images("cifar10@test")
    assert (len(train), len(test)) == (20, 10)
    assert train.classes[3] == "cat"
    assert np.array_equal(test[4][0], parts[1][0][4])
    with pytest.raises(UsageError, match="parts of cifar10 are train and test"):
        open_images("cifar10@validation")


def test_the_classes_of_cifar_are_as_many_as_they_say_in_alphabetical_order() -> None:
    from keras_resnet.training.datasets import CIFAR10, CIFAR100

    assert (len(CIFAR10), len(CIFAR100), len(set(CIFAR100))) == (10, 100, 100)
    assert sorted(CIFAR100) == CIFAR100
    assert sorted(CIFAR10) == CIFAR10


def test_a_download_that_fails_is_an_error_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise Exception("URL fetch failure")

    monkeypatch.setattr("keras.datasets.cifar100.load_data", fail)
    with pytest.raises(InputError, match="'cifar100' cannot be fetched by keras.datasets: URL fetch failure"):
        open_images("cifar100")


def test_a_data_set_of_tensorflow_datasets_keeps_its_files_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for colour in COLOURS.values():
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(buffer, "jpeg")
        files.append(buffer.getvalue())
    asked = []

    class Builder:
        info = types.SimpleNamespace(features={"label": types.SimpleNamespace(names=sorted(COLOURS))})

        def download_and_prepare(self) -> None:
            pass

        def as_dataset(self, split: str, decoders: object, shuffle_files: bool) -> tf.data.Dataset:
            asked.append(split)
            return tf.data.Dataset.from_tensor_slices({"image": files, "label": np.arange(3)})

    decode = types.SimpleNamespace(SkipDecoding=lambda: None)
    module = types.SimpleNamespace(builder=lambda name: Builder(), decode=decode)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    images = open_images("tfds:colours@validation")
    assert asked == ["validation"]
    assert images.items == files
    assert np.abs(images[2][0].astype(int) - COLOURS["red"]).max() < 8
    assert len(images.hash) == 64
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(MissingExtraError, match=r"keras-resnet-edge\[tfds\]"):
        open_images("tfds:colours")


def test_a_run_lists_what_it_skipped_and_stops_at_a_damaged_image_where_it_is_not_to(
    folder: Path, tmp_path: Path
) -> None:
    damage(folder, ("red/003.png", "blue/007.png"))
    recipe = replace(CROPPED, epochs=1, batch_size=11)
    with pytest.raises(InputError, match=r"(red/003|blue/007)\.png' cannot be decoded: remove or repair it"):
        train(recipe, folder, tmp_path / "stopped", progress=False)
    run = train(recipe, folder, tmp_path / "whole", damaged="skip", progress=False)
    found = run.read()["data"]["training"]
    assert [line.split(" is not")[0] for line in found["skipped"]] == ["blue/007.png", "red/003.png"]
    assert found["count"] + run.read()["data"]["validation"]["count"] == 34
    assert run.is_complete


def test_a_plain_fit_on_a_dataset_of_ones_own_gives_a_network_that_is_judged_and_saved(
    folder: Path, tmp_path: Path
) -> None:
    images = open_images(folder)
    model = keras_resnet.build("cifar_resnet8", classes=3, input_shape=(16, 16, 3))
    pixels = images.pixels(preprocessing_of(model))
    x = preprocess_input(pixels, model)
    data = tf.data.Dataset.from_tensor_slices((pixels, images.labels)).shuffle(36, seed=0).batch(12)
    data = data.map(lambda x, y: (preprocess_input(x, model), y))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data, epochs=2, verbose=0)
    raw = tf.data.Dataset.from_tensor_slices(
        (np.stack([picture for picture, _ in map(images.__getitem__, range(36))]), images.labels)
    )
    expected = evaluate_model(model, images)
    assert expected.count == 36
    assert evaluate_model(model, open_images(raw)).confusion == expected.confusion
    model.save(tmp_path / "a.keras")
    assert np.allclose(keras_resnet.load_model(tmp_path / "a.keras")(x[:4]), model(x[:4]), atol=1e-6)
