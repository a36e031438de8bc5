"""How a classifier is judged: each image once, views and networks averaged, figures by independent formulas."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnet import build, cifar, cli
from keras_resnet.errors import InputError, UsageError
from keras_resnet.preprocessing import Preprocessing, preprocessing_of
from keras_resnet.training import Images, evaluate_model, evaluation, plots
from keras_resnet.training.evaluation import at_any_size, conclude, scores_on, share, summarise, tally, wilson_interval
from keras_resnet.training.views import PAPER_SCALES, views_of
from tests.conftest import SEED

CLASSES = 7
NEEDS = Preprocessing(resize=20, crop=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))


def network(seed: int = SEED, *, preprocessing: Preprocessing = NEEDS, **options: Any) -> keras.Model:
    """Untrained, but with a head that is sure of itself."""
    keras.utils.set_random_seed(seed)
    model = build(cifar(8), classes=CLASSES, input_shape=(16, 16, 3), preprocessing=preprocessing, **options)
    kernel, bias = model.get_layer("head_dense").get_weights()
    model.get_layer("head_dense").set_weights([3 * kernel, bias])
    return model


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return network()


@pytest.fixture(scope="module")
def pictures() -> Images:
    """Eleven, upright and lying, of several sizes."""
    rng = np.random.default_rng(SEED)
    sizes = [(24, 30), (31, 22), (20, 20), (24, 30), (40, 21)] * 2 + [(25, 25)]
    items = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    labels = rng.integers(0, CLASSES, len(items))
    return Images("eleven", tuple("abcdefg"), labels, items, lambda item: item)


def answers(model: keras.Model, views: list[np.ndarray], needs: Preprocessing = NEEDS) -> np.ndarray:
    """The mean of a network's scores, by hand: float64 [classes]."""
    parts = []
    for pixels in views:
        x = (pixels.astype(np.float64) / 255 - needs.mean) / needs.std
        parts.append(np.asarray(model(x[None].astype(np.float32), training=False), np.float64)[0])
    return np.mean(parts, axis=0)


def resized(picture: Image.Image, side: int) -> Image.Image:
    factor = side / min(picture.size)
    size = tuple(side if n == min(picture.size) else int(n * factor) for n in picture.size)
    return picture.resize(size, Image.Resampling.BILINEAR)


def centre(picture: Image.Image, side: int = 16) -> np.ndarray:
    left, top = (round((n - side) / 2) for n in picture.size)
    return np.asarray(picture.crop((left, top, left + side, top + side)))


def hand_cut(picture: Image.Image) -> list[np.ndarray]:
    """AlexNet's ten, cut by Pillow."""
    whole = resized(picture, 20)
    width, height = whole.size
    corners = [(0, 0), (width - 16, 0), (0, height - 16), (width - 16, height - 16)]
    corners.append((round((width - 16) / 2), round((height - 16) / 2)))
    cut = [whole.crop((x, y, x + 16, y + 16)) for x, y in corners]
    mirrored = [one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in cut]
    return [np.asarray(one) for one in (*cut, *mirrored)]


def test_each_image_is_judged_once_and_in_order(
    model: keras.Model, pictures: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 4)  # 11 images: the last batch is not full
    expected = [answers(model, [centre(resized(item, 20))]).argmax() for item in pictures.items]
    found = evaluate_model(model, pictures)
    assert found.predictions == expected
    assert found.count == len(pictures) == np.sum(found.confusion)
    assert found.correct == np.sum(np.equal(expected, pictures.labels))


def test_ten_crops_are_the_mean_of_ten_cut_by_hand(model: keras.Model, pictures: Images) -> None:
    found = scores_on([model], pictures, [NEEDS], crops=10)
    expected = [answers(model, hand_cut(item)) for item in pictures.items]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - scores_on([model], pictures, [NEEDS])).max() > 1e-3


def test_scales_are_the_mean_over_whole_pictures_of_each_size(model: keras.Model, pictures: Images) -> None:
    scales = (18, 24, 33)
    free = build(cifar(8), classes=CLASSES, input_shape=(None, None, 3), preprocessing=NEEDS)
    free.set_weights(model.get_weights())
    found = scores_on([model], pictures, [NEEDS], scales=scales)
    expected = [answers(free, [np.asarray(resized(item, s)) for s in scales]) for item in pictures.items]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_head_on_the_mean_is_the_mean_of_the_head_over_all_positions(model: keras.Model) -> None:
    logits = network(classifier_activation=None)
    logits.set_weights(model.get_weights())
    free = at_any_size(logits)
    x = np.random.default_rng(SEED).normal(size=(1, 40, 24, 3)).astype("float32")
    maps = keras.Model(free.inputs[0], free.get_layer("head_pool").input)(x, training=False)
    kernel, bias = logits.get_layer("head_dense").get_weights()
    score_map = np.einsum("bhwc,ck->bhwk", maps, kernel) + bias
    np.testing.assert_allclose(free(x, training=False), score_map.mean(axis=(1, 2)), atol=1e-5)


def test_the_papers_scales_are_the_papers() -> None:
    assert PAPER_SCALES == (224, 256, 384, 480, 640)
    shapes = [view.shape for view in views_of(NEEDS, scales=PAPER_SCALES)(Image.new("RGB", (500, 400)))]
    assert shapes == [(side, int(side * 500 / 400), 3) for side in PAPER_SCALES]


def test_an_ensemble_averages_probabilities_and_each_network_has_its_own_preprocessing(pictures: Images) -> None:
    other = Preprocessing(resize=16, crop=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    one, two = network(1), network(2, preprocessing=other)
    expected = np.mean(
        [
            [answers(one, [centre(resized(item, 20))]) for item in pictures.items],
            [answers(two, [centre(resized(item, 16))], other) for item in pictures.items],
        ],
        axis=0,
    )
    needs = [preprocessing_of(one), preprocessing_of(two)]
    np.testing.assert_allclose(scores_on([one, two], pictures, needs), expected, atol=1e-6)
    found = evaluate_model([one, two], pictures)
    assert found.predictions == expected.argmax(axis=-1).tolist()


def test_logits_are_made_probabilities(model: keras.Model, pictures: Images) -> None:
    logits = network(classifier_activation=None)
    logits.set_weights(model.get_weights())
    found = scores_on([logits], pictures, [NEEDS])
    np.testing.assert_allclose(found, scores_on([model], pictures, [NEEDS]), atol=1e-6)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "crops": ({"crops": 5}, "crops=5 must be 1"),
    "crops as truth": ({"crops": True}, "crops=True must be 1"),
    "both": ({"crops": 10, "scales": [20]}, "give one"),
    "scale 0": ({"scales": [0]}, "whole numbers of pixels"),
    "scale twice": ({"scales": [20, 20]}, "different"),
    "half a scale": ({"scales": [20.5]}, "whole numbers of pixels"),
    "ten of nothing": ({"crops": 10, "preprocessing": Preprocessing(resize=16, crop=0)}, "set a crop"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_views_that_cannot_be_are_refused(case: str, model: keras.Model, pictures: Images) -> None:
    options, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        evaluate_model(model, pictures, **options)


def test_ten_crops_of_a_picture_that_is_too_small_name_it(model: keras.Model, pictures: Images) -> None:
    with pytest.raises(InputError, match=r"image 2 of 'eleven': .* smaller than the crop"):
        evaluate_model(model, pictures, preprocessing=Preprocessing(resize=0, crop=21), crops=10)


def test_networks_of_other_classes_make_no_ensemble(model: keras.Model, pictures: Images) -> None:
    other = build(cifar(8), classes=5, input_shape=(16, 16, 3))
    with pytest.raises(UsageError, match="have 7 and 5"):
        evaluate_model([model, other], pictures)
    with pytest.raises(UsageError, match="have none"):
        evaluate_model([], pictures)
    with pytest.raises(UsageError, match="2 models and 1 preprocessings"):
        evaluate_model([model, model], pictures, preprocessing=NEEDS)


# Figures


def scored(count: int = 200, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(SEED)
    powers = np.exp(3 * rng.normal(size=(count, classes)))
    return powers / powers.sum(axis=-1, keepdims=True), rng.integers(0, classes, count)


def test_figures_are_those_of_scikit_learn() -> None:
    from sklearn import calibration, metrics

    scores, labels = scored()
    found = conclude(tally(scores, labels), list("abcdefg"), "some")
    best, confidence = scores.argmax(axis=-1), scores.max(axis=-1)
    assert found.confusion == metrics.confusion_matrix(labels, best, labels=range(CLASSES)).tolist()
    assert found.top1 == metrics.accuracy_score(labels, best)
    assert found.top5 == metrics.top_k_accuracy_score(labels, scores, k=5)
    assert found.top5_interval == wilson_interval(round(found.top5 * 200), 200)
    accuracy, sure = calibration.calibration_curve(labels == best, confidence, n_bins=evaluation.BINS)
    np.testing.assert_allclose([row[1:] for row in found.reliability], np.stack([sure, accuracy], axis=-1))


def test_the_calibration_error_is_the_mean_distance_of_confidence_from_accuracy() -> None:
    scores, labels = scored()
    confidence, right = scores.max(axis=-1), scores.argmax(axis=-1) == labels
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert conclude(tally(scores, labels), list("abcdefg"), "some").calibration_error == pytest.approx(error)


@pytest.mark.parametrize(
    ("scores", "labels", "error"),
    [
        ([[1.0, 0.0]] * 4, [0, 0, 0, 0], 0.0),  # sure and right
        ([[1.0, 0.0]] * 4, [0, 0, 0, 1], 0.25),
        ([[0.5, 0.5]] * 4, [0, 1, 0, 1], 0.0),  # unsure, and right half of the time
        ([[0.0, 0.0]] * 2, [0, 1], 0.5),  # a head of sigmoids that sees nothing
        ([[np.nan, np.nan]] * 2, [0, 1], 0.5),  # a network that diverged
    ],
)
def test_calibration_by_hand(scores: list[list[float]], labels: list[int], error: float) -> None:
    found = conclude(tally(np.array(scores), np.array(labels)), ["a", "b"], "some")
    assert found.calibration_error == pytest.approx(error)
    assert found.top5 is None


def test_answers_without_scores_have_no_calibration() -> None:
    found = summarise(np.array([0, 1]), np.array([0, 0]), list("abcdefg"), "some")
    assert (found.top1, found.top5, found.calibration_error, found.reliability) == (0.5, None, None, ())


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 250])
def test_the_sum_of_the_workers_tallies_is_that_of_one(workers: int) -> None:
    scores, labels = scored()
    shares = [share(len(labels), worker, workers) for worker in range(workers)]
    assert np.concatenate(shares).tolist() == list(range(len(labels)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    parts = [tally(scores[part], labels[part], part, len(labels)) for part in shares]
    together = conclude(type(parts[0])(*map(sum, zip(*parts, strict=True))), list("abcdefg"), "some")
    alone = conclude(tally(scores, labels), list("abcdefg"), "some")
    assert together.calibration_error == pytest.approx(alone.calibration_error)
    for name in ("count", "correct", "top1", "top5", "confusion", "predictions", "interval", "top5_interval"):
        assert getattr(together, name) == getattr(alone, name)


PICTURES: dict[str, Callable[[], bytes]] = {
    "reliability": lambda: plots.reliability(conclude(tally(*scored()), list("abcdefg"), "some").reliability),
    "one bin": lambda: plots.reliability([(3, 1.0, 1.0)]),
    "confusion": lambda: plots.confusion([[3, 0], [1, 2]], ["a", "$b"]),
}


@pytest.mark.parametrize("picture", PICTURES)
def test_pictures_are_drawn(picture: str) -> None:
    with Image.open(io.BytesIO(PICTURES[picture]())) as opened:
        assert opened.format == "PNG"
        assert len(opened.convert("L").getcolors(256) or ()) > 3


def test_the_command_judges_an_ensemble_by_ten_crops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(SEED)
    images, labels = rng.integers(0, 256, (9, 24, 20, 3), dtype=np.uint8), np.arange(9) % CLASSES
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    models = [network(seed) for seed in (1, 2)]
    sources = [str(tmp_path / f"{i}.keras") for i in range(2)]
    for one, source in zip(models, sources, strict=True):
        one.save(source)
    written = [str(tmp_path / name) for name in ("confusion.png", "reliability.png")]
    common = ["evaluate", *sources, "--data", str(tmp_path / "data.npz"), "--json"]
    assert cli.main([*common, "--crops", "10", "--confusion", written[0], "--reliability", written[1]]) == 0
    found = json.loads(capsys.readouterr().out)
    by_hand = np.mean([[answers(one, hand_cut(Image.fromarray(x))) for x in images] for one in models], axis=0)
    assert found["top1"] == np.mean(by_hand.argmax(axis=-1) == labels)
    assert found["crops"] == 10
    assert all(Path(path).stat().st_size > 1000 for path in written)
    assert cli.main([*common[:-1], "--scales", "18,24"]) == 0
    assert "scales 18,24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crops", "3"], "invalid choice: 3"),
        (["--scales", "a"], "--scales 'a' must be a number of pixels"),
        (["--crops", "10", "--scales", "24"], "not allowed with"),
        (["--reliability", "a.csv"], "must end in '.png'"),
    ],
)
def test_the_command_says_what_is_wrong(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: keras.Model
) -> None:
    model.save(tmp_path / "a.keras")
    rng = np.random.default_rng(SEED)
    np.savez(tmp_path / "data.npz", images=rng.integers(0, 256, (4, 20, 20, 3), dtype=np.uint8), labels=[0, 1, 2, 3])
    command = ["evaluate", str(tmp_path / "a.keras"), "--data", str(tmp_path / "data.npz"), *options]
    assert cli.main(command) == 2
    assert message in capsys.readouterr().err
