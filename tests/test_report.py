"""The page of a file: what it shows of the images that file and network answer differently."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from keras_resnet.export.report import disagreement_section, graph_section
from keras_resnet.export.verification import SHOWN, compare

LABELS = ("cat", "dog", "<bird>")


def test_images_that_are_answered_differently_are_told_the_surest_first() -> None:
    network = np.array([[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.2, 0.1, 0.7], [0.1, 0.8, 0.1]])
    file = np.array([[0.9, 0.1, 0.0], [0.4, 0.5, 0.1], [0.6, 0.1, 0.3], [0.1, 0.8, 0.1]])
    found = compare(file, network, np.array([0, 1, 2, 0]), "four", None)
    assert [asdict(one) for one in found.disagreements] == [
        {"image": 2, "label": 2, "by_network": 2, "network_score": 0.7, "by_file": 0, "file_score": 0.6},
        {"image": 1, "label": 1, "by_network": 0, "network_score": 0.5, "by_file": 1, "file_score": 0.5},
    ]
    assert found.agreement == 0.5
    many = compare(np.eye(2)[np.ones(50, int)], np.eye(2)[np.zeros(50, int)], np.zeros(50, int), "many", None)
    assert len(many.disagreements) == SHOWN


def test_a_page_shows_their_pictures_and_names_nothing_that_is_not_text() -> None:
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    found = asdict(compare(np.eye(3)[[0, 2, 0]], np.eye(3)[[0, 1, 2]], np.array([0, 1, 2]), "three", None))
    (section,) = disagreement_section(found, pixels, LABELS)
    assert section.count("<img ") == 2
    assert "network: &lt;bird&gt; 1.00" in section
    assert "<bird>" not in section
    assert disagreement_section(found, None, LABELS) == []
    agreeing = asdict(compare(np.eye(3), np.eye(3), np.arange(3), "three", None))
    assert disagreement_section(agreeing, pixels, LABELS) == []


def test_a_graph_is_listed_in_its_order() -> None:
    (section,) = graph_section([("CONV_2D", "stem", "int8 [1, 2]"), ("SOFTMAX", "<head>", "uint8 [1, 5]")])
    assert section.index("CONV_2D") < section.index("SOFTMAX")
    assert "&lt;head&gt;" in section
    assert graph_section([]) == []
