"""Recipes: how a network is trained, as a row of values. Pure data; `trainer.py` carries a recipe out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from keras_resnet.errors import UsageError, unknown
from keras_resnet.specs import VARIANTS, spec_of


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, but the data.

    The learning rate climbs linearly from 0 over `warmup_epochs` and falls as a cosine to 0 at the end.
    Raises UsageError for values that cannot be.
    """

    variant: str
    network: Mapping[str, Any] = field(default_factory=dict)  # fields of the variant's Spec that differ
    image_size: int = 32  # pixels: short side resized, then centre crop
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.1  # at its peak, for this batch size
    warmup_epochs: float = 5.0
    momentum: float = 0.9  # Nesterov's
    weight_decay: float = 5e-4  # a step shrinks the kernels by learning_rate * weight_decay
    label_smoothing: float = 0.0
    augmentation: str = "shift"  # a name of augment.AUGMENTATIONS
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of pixels / 255
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise unknown("variant", self.variant, VARIANTS, where="variant=", show_all="`keras-resnet list variants`")
        spec_of(self.variant, **self.network)
        for name in ("image_size", "epochs", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)!r} must be a whole number from 1 up")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise UsageError(f"seed={self.seed!r} must be a whole number from 0 to {2**31 - 1}")
        if not self.learning_rate > 0:
            raise UsageError(f"learning_rate={self.learning_rate!r} must be above 0")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)!r} must be at least 0 and below 1")
        for name in ("weight_decay", "warmup_epochs"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name}={getattr(self, name)!r} must be at least 0")


RECIPES: Mapping[str, Recipe] = {
    "digits": Recipe("cifar_resnet8", network={"momentum": 0.9}, batch_size=32, augmentation="affine"),
    "small-images": Recipe("cifar_resnet8", network={"momentum": 0.9}, augmentation="shift_flip"),
}


def recipe_of(recipe: str | Recipe, **changes: Any) -> Recipe:
    """A recipe by name, or one itself, with some fields replaced.

    Raises UsageError for an unknown recipe or field (the nearest names are offered) and for values that cannot be.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise unknown("recipe", recipe, RECIPES, where="recipe=")
        recipe = RECIPES[recipe]
    names = [field.name for field in dataclasses.fields(Recipe)]
    for name, value in changes.items():
        if name not in names:
            raise unknown("option", name, names, where=f"{name}={value!r}")
    return replace(recipe, **changes)
