"""What outputs are called, and which output a class folder stands for."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.errors import InputError, UsageError
from keras_resnet.labels import CIFAR10, decode_predictions, imagenet, positions, published
from keras_resnet.specs import cifar
from tests.references import import_torchvision

WNIDS, NAMES = list(imagenet()), list(imagenet().values())


def test_no_imagenet_class_is_called_twice_and_ids_are_in_the_order_of_the_outputs() -> None:
    assert len(set(NAMES)) == len(WNIDS) == 1000
    assert sorted(WNIDS) == WNIDS  # outputs are in the order of the sorted ids


@pytest.mark.slow
def test_imagenet_names_are_torchvisions() -> None:
    pytest.importorskip("torch")
    assert import_torchvision().models.ResNet18_Weights.DEFAULT.meta["categories"] == NAMES


def test_imagenet_ids_and_words_are_those_of_the_validation_sets_own_list(shared_data: Path) -> None:
    lines = (shared_data / "imagenet" / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == WNIDS
    different = [(line, name) for line, name in zip(lines, NAMES, strict=True) if line[10:].split(",")[0] != name]
    assert [name for _, name in different] == ["crane bird", "maillot tank suit"]


def test_every_published_weight_set_has_names_for_its_classes() -> None:
    for row in keras_resnet.WEIGHTS.values():
        names = published(row.classes)
        assert names is not None
        assert len(names) == row.classes, row.tag


def test_the_best_classes_come_first_with_id_name_and_score() -> None:
    scores = np.zeros((2, 1000), np.float32)
    scores[0, [1, 2]], scores[1, 999] = (0.25, 0.75), 1
    first, second = decode_predictions(scores, top=2)
    assert first == [("n01484850", "great white shark", 0.75), ("n01443537", "goldfish", 0.25)]
    assert second[0].name == "toilet tissue"
    assert second[1].id == WNIDS[0]  # of equal scores the first


@pytest.mark.parametrize(
    ("labels", "expected"), [(None, ("1", "1")), (["a", "b", "c"], ("1", "b")), (("0", "1", "2"), ("1", "1"))]
)
def test_other_networks_answer_with_their_labels_or_numbers(
    labels: list[str] | None, expected: tuple[str, str]
) -> None:
    [[best]] = decode_predictions([[0.1, 0.7, 0.2]], top=1, labels=labels)
    assert best[:2] == expected


@pytest.mark.parametrize("activation", ["softmax", None])
def test_logits_of_a_model_become_probabilities(activation: str | None) -> None:
    model = keras_resnet.build(cifar(8), classifier_activation=activation)
    x = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)
    answers = decode_predictions(model.predict(x, verbose=0), top=10, model=model)
    assert np.allclose([sum(answer.score for answer in one) for one in answers], 1, atol=1e-5)
    logits = keras_resnet.build(cifar(8), classifier_activation=None)
    logits.set_weights(model.get_weights())
    expected = np.asarray(keras.ops.softmax(logits.predict(x, verbose=0)))
    assert [int(one[0].id) for one in answers] == expected.argmax(-1).tolist()
    assert np.allclose([one[0].score for one in answers], expected.max(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("predictions", "options", "said"),
    [
        (np.zeros(10), {}, r"shape \(10,\) are not \[images, classes\]"),
        (np.zeros((1, 7, 7, 10)), {}, "are not"),
        (np.full((2, 10), np.nan), {}, "image 0 are not all numbers"),
        (np.zeros((1, 10)), {"labels": ["a"]}, "1 given for predictions of 10"),
        (np.zeros((1, 10)), {"top": 0}, "top=0"),
    ],
)
def test_predictions_that_cannot_be_read_are_refused(predictions: np.ndarray, options: dict, said: str) -> None:
    with pytest.raises((InputError, UsageError), match=said):
        decode_predictions(predictions, **options)


def test_predictions_of_another_network_are_refused() -> None:
    with pytest.raises(InputError, match="which tells 10 apart"):
        decode_predictions(np.zeros((1, 9)), model=keras_resnet.build(cifar(8)))


@pytest.mark.parametrize(
    ("names", "outputs", "labels", "expected"),
    [
        (["b", "c"], 3, ["a", "b", "c"], [1, 2]),
        (["n01443537", "n15075141"], 1000, None, [1, 999]),
        (["n01443537", "n15075141"], 1000, NAMES, [1, 999]),
        (["goldfish", "toilet tissue"], 1000, None, [1, 999]),
        (["0001", "0999"], 1000, NAMES, [1, 999]),
        (list(CIFAR10), 10, CIFAR10, list(range(10))),
        (["3", "7"], 10, None, [3, 7]),
        (["cat", "dog"], 2, None, [0, 1]),
        (["5", "7"], 2, None, [0, 1]),  # numbers past the outputs are names
        ([f"{i:02d}" for i in range(11)], 11, None, list(range(11))),
    ],
)
def test_classes_are_found_by_label_id_number_or_order(
    names: list[str], outputs: int, labels: list[str] | None, expected: list[int]
) -> None:
    assert positions(names, outputs, labels) == expected


@pytest.mark.parametrize(
    ("names", "outputs", "labels", "said"),
    [
        (["cat", "cow"], 2, ["cat", "dog"], "trained on"),
        (["0", "1"], 2, ["cat", "dog"], "trained on"),
        (["cat", "dog"], 3, None, "tells 3 apart"),
        (sorted(str(i) for i in range(11)), 11, None, "not in the order of the numbers"),
        (["cat", "dog"], 1000, None, "tells 1000 apart"),
    ],
)
def test_classes_that_could_mean_anything_are_refused(
    names: list[str], outputs: int, labels: list[str] | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        positions(names, outputs, labels)
