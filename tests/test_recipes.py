"""Recipes: what they hold, what they refuse, and how they are changed; and LAMB, which two of them need."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import keras
import numpy as np
import pytest

from keras_resnet import build
from keras_resnet.errors import UsageError
from keras_resnet.training import recipes
from keras_resnet.training.augment import AUGMENTATIONS, Treatment
from keras_resnet.training.lamb import Lamb
from keras_resnet.training.recipes import RECIPES, Recipe, parse_settings, recipe_of


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_its_command_its_cost_and_its_result(name: str) -> None:
    source = inspect.getsource(recipes).split("\n")
    # A recipe that others derive from stands before the table.
    constants = [key for key, value in vars(recipes).items() if value is RECIPES[name]]
    beginnings = tuple(f"{constant} = " for constant in constants) or (f'"{name}": ',)
    row = next(i for i, line in enumerate(source) if line.strip().startswith(beginnings))
    comment = []
    while source[row - 1].strip().startswith("#"):
        row -= 1
        comment.insert(0, source[row].strip("# "))
    text = " ".join(comment)
    assert "keras-resnet train" in text or "keras-resnet quickstart" in text
    assert f"--recipe {name}" in text or "quickstart" in text
    assert "Cost: " in text
    assert "Result: " in text


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_an_augmentation_and_a_network_that_exist(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.augmentation in AUGMENTATIONS
    assert Treatment.of(recipe).augmentation == recipe.augmentation
    side = recipe.image_size
    if recipe.variant.startswith("cifar"):
        build(
            recipe.variant, classes=3, input_shape=(side, side, 3), preprocessing=recipe.preprocessing, **recipe.network
        )


# Of arXiv:1512.03385, 3.4 and 4.2, and arXiv:2110.00476, table 2.
PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10-paper": {"steps": 64_000, "batch_size": 128, "learning_rate": 0.1, "momentum": 0.9, "nesterov": False},
    "imagenet-paper": {"epochs": 90, "batch_size": 256, "learning_rate": 0.1, "momentum": 0.9, "image_size": 224},
    "imagenet-a2": {
        "epochs": 300, "batch_size": 2048, "learning_rate": 5e-3, "weight_decay": 0.02, "warmup_epochs": 5,
        "image_size": 224, "label_smoothing": 0, "repeats": 3, "rand_augment": 7, "mixup": 0.1, "cutmix": 1.0,
        "loss": "bce", "optimizer": "lamb", "schedule": "cosine", "crop_fraction": 0.95,
        "network": {"stochastic_depth": 0.05},
    },
    "imagenet-a3": {
        "epochs": 100, "batch_size": 2048, "learning_rate": 8e-3, "weight_decay": 0.02, "warmup_epochs": 5,
        "image_size": 160, "test_size": 224, "label_smoothing": 0, "repeats": 1, "rand_augment": 6, "mixup": 0.1,
        "cutmix": 1.0, "loss": "bce", "optimizer": "lamb", "schedule": "cosine", "crop_fraction": 0.95, "network": {},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_of_a_paper_has_the_papers_values(name: str) -> None:
    assert {field: getattr(RECIPES[name], field) for field in PUBLISHED[name]} == PUBLISHED[name]


def test_the_learning_rate_falls_at_the_papers_steps() -> None:
    paper = RECIPES["cifar10-paper"]
    assert [d * paper.total_steps(45_000) for d in paper.drops] == [32_000, 48_000]
    paper = RECIPES["imagenet-paper"]
    assert [round(d * paper.epochs) for d in paper.drops] == [30, 60]


@pytest.mark.parametrize("name", ["cifar10-paper", "imagenet-paper"])
def test_weight_decay_beside_the_gradient_is_that_of_the_paper_within_it(name: str) -> None:
    """A kernel without gradient shrinks, step by step, as with the paper's L2 term under momentum."""
    recipe = RECIPES[name]
    paper, ours, velocity = 1.0, 1.0, 0.0
    for _ in range(2000):
        velocity = recipe.momentum * velocity + 1e-4 * paper
        paper -= recipe.learning_rate * velocity
        ours -= recipe.learning_rate * recipe.weight_decay * ours
    assert 1 - ours == pytest.approx(1 - paper, rel=0.01)


def test_the_learning_rate_grows_with_the_batch_where_a_reference_says_so() -> None:
    assert recipe_of("imagenet-paper").peak_learning_rate == pytest.approx(0.1)
    assert recipe_of("imagenet-paper", batch_size=8192).peak_learning_rate == pytest.approx(3.2)  # arXiv:1706.02677
    assert recipe_of("digits", batch_size=64).peak_learning_rate == RECIPES["digits"].learning_rate


def test_a_finished_network_is_judged_at_its_own_size() -> None:
    assert RECIPES["imagenet-a3"].preprocessing.crop == 224
    assert RECIPES["imagenet-a3"].preprocessing.resize == 235  # timm: the whole part of 224 / 0.95
    assert RECIPES["imagenet-a3"].training_preprocessing.crop == 160
    assert (RECIPES["imagenet-paper"].preprocessing.resize, RECIPES["imagenet-paper"].preprocessing.crop) == (256, 224)


def test_steps_take_the_place_of_epochs() -> None:
    recipe = Recipe("cifar_resnet8", batch_size=32, epochs=3)
    assert (recipe.steps_per_epoch(100), recipe.total_steps(100)) == (4, 12)
    assert dataclasses.replace(recipe, steps=5).total_steps(100) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam'.*valid are sgd, adamw, lamb"),
        ({"loss": "mse"}, "unknown loss"),
        ({"schedule": "one-cycle"}, "unknown schedule"),
        ({"precision": "bfloat16"}, "unknown precision"),
        ({"steps": -1}, "steps=-1 must be a whole number from 0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"test_size": 10**6}, "test_size=1000000 must be a whole number from 0 to 2048"),
        ({"seed": 2**31}, "seed="),
        ({"ema": 1.0}, "ema=1.0 must be a number of at least 0 and below 1"),
        ({"mixup": float("nan")}, "mixup=nan"),
        ({"cutmix": -1.0}, "cutmix=-1.0"),
        ({"erasing": 1.5}, "erasing=1.5 must be at most 1"),
        ({"rand_augment": 11.0}, "rand_augment=11.0 at most 10"),
        ({"crop_fraction": 0.0}, "crop_fraction=0.0 must be above 0"),
        ({"temperature": 0}, "temperature=0 must be above 0"),
        ({"drops": (0.5,)}, "go with schedule='step' alone"),
        ({"schedule": "step"}, "which needs them"),
        ({"schedule": "step", "drops": (0.75, 0.5)}, "must rise"),
        ({"schedule": "step", "drops": (0.5, 1.5)}, "between 0 and 1"),
        ({"schedule": "step", "drops": [0.5]}, "between 0 and 1"),
        ({"nesterov": 1}, "nesterov=1 must be True or False"),
        ({"weights": None}, "weights=None must be a word"),
        ({"teacher": "runs/a", "loss": "bce"}, "does not go with a teacher"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe_of("digits", **change)


def test_settings_of_the_command_line_become_values_of_their_kinds() -> None:
    found = parse_settings(
        (
            "learning_rate=0.2 epochs=3 schedule=step drops=0.5,0.75 nesterov=false weights=hf://a/b=c "
            "network.shortcut=C network.dropout=0.1 network.widths=8,16,32"
        ).split()
    )
    assert found == {
        "learning_rate": 0.2,
        "epochs": 3,
        "schedule": "step",
        "drops": (0.5, 0.75),
        "nesterov": False,
        "weights": "hf://a/b=c",
        "network": {"shortcut": "C", "dropout": 0.1, "widths": (8, 16, 32)},
    }
    recipe = recipe_of("digits", **found)
    assert recipe.network == {"momentum": 0.9, "shortcut": "C", "dropout": 0.1, "widths": (8, 16, 32)}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learning_rate", "must be a field and its value"),
        ("learning_rat=1", "nearest are learning_rate"),
        ("network=C", "two words"),
        ("epochs.x=3", "two words"),
        ("epochs=many", "epochs='many' must be a whole number"),
        ("epochs=", "epochs='' must be a whole number"),
        ("network.shortcutt=C", "shortcutt"),
        ("mean=0.5,x,0.5", "mean="),
        ("drops=", "drops=|schedule"),
    ],
)
def test_a_setting_of_nonsense_is_refused(setting: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe_of(dataclasses.replace(RECIPES["cifar10-paper"]), **parse_settings([setting]))


def test_lamb_is_the_papers_and_leaves_what_does_not_decay_to_adam() -> None:
    rng = np.random.default_rng(0)
    kernel, bias = keras.Variable(rng.normal(0, 1, (4, 3)), name="kernel"), keras.Variable(np.ones(3), name="bias")
    optimizer = Lamb(0.05, weight_decay=0.3, epsilon=1e-6)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    x, b = kernel.numpy().astype(np.float64), bias.numpy().astype(np.float64)
    moments = {"x": [np.zeros((4, 3)), np.zeros((4, 3))], "b": [np.zeros(3), np.zeros(3)]}

    def ratio(name: str, gradient: np.ndarray, step: int) -> np.ndarray:
        m, v = moments[name]
        m[:], v[:] = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        return (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-6)

    for step in range(1, 6):
        g, h = rng.normal(0, 1, (4, 3)), rng.normal(0, 1, 3)
        optimizer.apply([keras.ops.convert_to_tensor(v, "float32") for v in (g, h)], [kernel, bias])
        update = ratio("x", g, step) + 0.3 * x
        x = x - 0.05 * np.linalg.norm(x) / np.linalg.norm(update) * update
        b = b - 0.05 * ratio("b", h, step)
        np.testing.assert_allclose(kernel.numpy(), x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(bias.numpy(), b, rtol=1e-4, atol=1e-5)
