"""From images to a trained network in a run folder. The public names, loaded when touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "keras_resnet.training":
    raise ImportError(f"import keras_resnet.training, not {__name__}: this folder is a part of that package")

from keras_resnet.lazy import lazy

if TYPE_CHECKING:
    from keras_resnet.training.data import open_images
    from keras_resnet.training.evaluation import Evaluation, evaluate_model
    from keras_resnet.training.images import Images
    from keras_resnet.training.recipes import RECIPES, Recipe
    from keras_resnet.training.replay import Replay, verify_run
    from keras_resnet.training.runs import Run
    from keras_resnet.training.step import StepModel
    from keras_resnet.training.trainer import evaluate, train

__getattr__, __dir__ = lazy(
    __name__,
    {
        "data": ("open_images",),
        "evaluation": ("Evaluation", "evaluate_model"),
        "images": ("Images",),
        "recipes": ("RECIPES", "Recipe"),
        "replay": ("Replay", "verify_run"),
        "runs": ("Run",),
        "step": ("StepModel",),
        "trainer": ("evaluate", "train"),
    },
)

__all__ = [
    "RECIPES",
    "Evaluation",
    "Images",
    "Recipe",
    "Replay",
    "Run",
    "StepModel",
    "evaluate",
    "evaluate_model",
    "open_images",
    "train",
    "verify_run",
]
