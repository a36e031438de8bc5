"""Core ML packages: what operations they are of, and that they answer as their networks do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from keras_resnet.export import to_coreml
from keras_resnet.export.mil import layer_noise, open_package
from keras_resnet.training.evaluation import scores_of
from tests.test_export import FAMILY, network, photographs

pytest.importorskip("coremltools")

# float16 has 11 bits, and a probability moves by about as much as its logit
HALF, SINGLE = 3e-3, 1e-5
PADS = {"pre-activation, stride last": 1, "shortcut A": 1, "highway": 1}  # a pool below zero; channels of a shortcut
BATCH_NORMS = {"pre-activation": 3, "pre-activation, stride last": 5}  # which no convolution stands before


@pytest.mark.parametrize("quantize", ["float16", "float32"])
@pytest.mark.parametrize("name", FAMILY)
def test_a_package_answers_as_its_network_and_holds_no_needless_operation(
    name: str, quantize: str, tmp_path: Path
) -> None:
    model, pixels = network(name), photographs(20)
    package = open_package(to_coreml(model, tmp_path / "a.mlpackage", quantize=quantize).path)
    scores, expected = package.answer(pixels), scores_of(model)(pixels)
    assert np.abs(scores - expected).max() <= (HALF if quantize == "float16" else SINGLE)
    assert np.mean(scores.argmax(-1) == expected.argmax(-1)) >= 0.95
    kinds = Counter(step.kind for step in package.steps)
    assert kinds["transpose"] == 0
    assert kinds["pad"] == PADS.get(name, 0)
    assert kinds["batch_norm"] == BATCH_NORMS.get(name, 0)
    assert kinds["cast"] == (2 if quantize == "float16" else 0)
    if quantize == "float32":
        assert max(layer_noise(package, model, pixels).values()) <= 1e-4


def test_a_package_made_twice_holds_the_same_program(tmp_path: Path) -> None:
    model, files = network("basic"), []
    for name in ("a", "b"):
        folder = to_coreml(model, tmp_path / f"{name}.mlpackage").path / "Data" / "com.apple.CoreML"
        files.append((folder / "weights" / "weight.bin").read_bytes())
    assert files[0] == files[1]
