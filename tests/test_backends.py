"""The networks on Keras' three backends: the same answers, and a training step on each. Needs JAX and torch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.layout import ROOT
from tests.references import FAMILIES, LOGITS_TOLERANCE, relative_difference

pytestmark = pytest.mark.slow

BACKENDS = ("tensorflow", "jax", "torch")
LOSS_TOLERANCE = 1e-4  # variances of a batch divide small differences by small numbers

# One process a backend: Keras chooses when it is imported.
ANSWER_AND_TRAIN = """
import sys
import keras, numpy as np
from keras_resnet import build
from tests.references import FAMILIES, fill, images
x, labels = images(32, 32, batch=4), np.array([0, 1, 2, 3])
found = {"backend": np.array(keras.backend.backend())}
for family, spec in FAMILIES.items():
    model = fill(build(spec, classifier_activation=None))
    found[f"{family} logits"] = keras.ops.convert_to_numpy(model(x, training=False))
    kernels = [weight for weight in model.trainable_weights if weight.name == "kernel"]
    before = [kernel.numpy() for kernel in kernels]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss)
    found[f"{family} loss"] = np.array(model.train_on_batch(x, labels))
    moved = [np.abs(kernel.numpy() - old).max() for kernel, old in zip(kernels, before)]
    found[f"{family} moved"] = np.array(moved)
np.savez(sys.argv[1], **found)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """What each backend answers; one that is not installed is left out."""
    folder = tmp_path_factory.mktemp("backends")
    return {name: ask(name, folder / f"{name}.npz") for name in BACKENDS if importlib.util.find_spec(name)}


def ask(backend: str, path: Path) -> dict[str, np.ndarray]:
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", ANSWER_AND_TRAIN, str(path)]
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    with np.load(path) as found:
        return dict(found)


@pytest.fixture(params=BACKENDS)
def backend(request, answers) -> str:
    if request.param not in answers:
        pytest.skip(f"{request.param} is not installed")
    assert str(answers[request.param]["backend"]) == request.param
    return request.param


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_tensorflow_backend(family, backend, answers):
    found, expected = answers[backend][f"{family} logits"], answers["tensorflow"][f"{family} logits"]
    assert relative_difference(found, expected) <= LOGITS_TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_moves_every_kernel(family, backend, answers):
    moved = answers[backend][f"{family} moved"]
    assert np.isfinite(moved).all()
    # A block that was dropped for the whole batch does not move: that is what dropping is for.
    assert (moved > 0).all() or (family == "drops" and (moved > 0).any())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "drops"])  # random on each backend
def test_the_loss_in_training_is_that_of_the_tensorflow_backend(family, backend, answers):
    found, expected = (float(answers[name][f"{family} loss"]) for name in (backend, "tensorflow"))
    assert found == pytest.approx(expected, rel=LOSS_TOLERANCE)
