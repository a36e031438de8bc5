"""From a recipe to the optimizer, with its schedule, and to the loss. Functions of values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from keras_resnet.training.lamb import Lamb
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.step import Loss, reduced

WITHOUT_DECAY = ["gamma", "beta", "bias"]  # they have no scale to shrink (arXiv:1706.02677, section 5.3)
CYCLE_START = 1 / 25  # of the peak, as fast.ai's and PyTorch's one-cycle begin ...
CYCLE_END = CYCLE_START / 1e4  # ... and end

# The loss of each image, [batch], of targets and scores; the scores are of the activation of `ACTIVATIONS`.
LOSSES: Mapping[str, Loss] = {
    "softmax": keras.losses.categorical_crossentropy,
    "bce": keras.losses.binary_crossentropy,
}
ACTIVATIONS: Mapping[str, str] = {"softmax": "softmax", "bce": "sigmoid"}
OPTIMIZERS: Mapping[str, Callable[[Recipe], tuple[type[keras.optimizers.Optimizer], dict[str, Any]]]] = {
    "sgd": lambda r: (
        keras.optimizers.SGD,
        {"momentum": r.momentum, "nesterov": r.nesterov and r.momentum > 0},
    ),
    "adamw": lambda r: (keras.optimizers.AdamW, {}),
    "lamb": lambda r: (Lamb, {"epsilon": 1e-6}),  # as timm's
}


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate at each step: a straight climb to `peak` over `warmup` steps, then the fall of a recipe.

    kind: "cosine" to 0 at `total`; "step" to a tenth at each fraction `drops` of `total`; "one_cycle", a cosine from
    and to nearly 0 (arXiv:1708.07120).
    """

    def __init__(self, kind: str, peak: float, warmup: int, total: int, drops: tuple[float, ...] = ()) -> None:
        self.kind, self.peak, self.warmup, self.total, self.drops = kind, peak, warmup, total, drops

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        start = CYCLE_START if self.kind == "one_cycle" else 0.0
        end = CYCLE_END if self.kind == "one_cycle" else 0.0
        climb = start + (1 - start) * step / max(1, self.warmup)
        if self.kind == "step":
            fall = ops.ones(())
            for drop in self.drops:
                fall = fall * ops.where(step >= drop * self.total, 0.1, 1.0)
        else:
            done = ops.clip((step - self.warmup) / max(1, self.total - self.warmup), 0.0, 1.0)
            fall = end + (1 - end) * (1 + ops.cos(math.pi * done)) / 2
        return self.peak * ops.where(step < self.warmup, climb, fall)

    def get_config(self) -> dict[str, Any]:
        return dict(vars(self))


def schedule_of(recipe: Recipe, total: int, steps: int) -> Schedule:
    """The schedule of a run of `total` steps, `steps` an epoch; the warm-up takes at most half of it."""
    warmup = round(min(recipe.warmup_epochs * steps, total / 2))
    return Schedule(recipe.schedule, recipe.peak_learning_rate, warmup, total, recipe.drops)


def optimizer_of(recipe: Recipe, total: int, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of a recipe for a `StepModel`, which adds up gradients itself; made in the strategy's scope."""
    kind, settings = OPTIMIZERS[recipe.optimizer](recipe)
    optimizer = reduced(kind)(
        schedule_of(recipe, total, steps),
        weight_decay=recipe.weight_decay or None,
        global_clipnorm=recipe.clip_norm or None,
        **settings,
    )
    optimizer.exclude_from_weight_decay(var_names=WITHOUT_DECAY)
    if recipe.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
