"""Recipes: how a network is trained, as a row of values. Pure data; `trainer.py` carries a recipe out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from keras_resnet.errors import UsageError, unknown
from keras_resnet.specs import VARIANTS, is_number, is_positive, spec_of

if TYPE_CHECKING:
    from keras_resnet.preprocessing import Preprocessing

MOST_PIXELS = 2048  # a side


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
        if not isinstance(self.variant, str) or self.variant not in VARIANTS:
            raise unknown("variant", self.variant, VARIANTS, where="variant=", show_all="`keras-resnet list variants`")
        if not isinstance(self.network, Mapping):
            raise UsageError(f"network={self.network!r} must map fields of Spec to values")
        spec_of(self.variant, **self.network)
        if "classes" in self.network:
            raise UsageError("network={'classes': ...}: the number of classes is that of the data; leave it out")
        for name, most in (("image_size", MOST_PIXELS), ("epochs", None), ("batch_size", None)):
            if not is_positive(getattr(self, name)) or (most and getattr(self, name) > most):
                upper = f"to {most}" if most else "up"
                raise UsageError(f"{name}={getattr(self, name)!r} must be a whole number from 1 {upper}")
        if self.seed != 0 and not (is_positive(self.seed) and self.seed < 2**31):
            raise UsageError(f"seed={self.seed!r} must be a whole number from 0 to {2**31 - 1}")
        for name in ("learning_rate", "momentum", "label_smoothing", "weight_decay", "warmup_epochs"):
            if not is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)!r} must be a number of at least 0")
        if self.learning_rate == 0:
            raise UsageError(f"learning_rate={self.learning_rate!r} must be above 0")
        for name in ("momentum", "label_smoothing"):
            if getattr(self, name) >= 1:
                raise UsageError(f"{name}={getattr(self, name)!r} must be below 1")
        values = (*self.mean, *self.std)
        if (len(self.mean), len(self.std)) != (3, 3) or not all(map(is_number, values)) or min(self.std) <= 0:
            raise UsageError(f"mean={self.mean}, std={self.std} must have three numbers, images are RGB; std's above 0")

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network's images need: the short side resized to `image_size`, a square cut, `mean` and `std`."""
        from keras_resnet.preprocessing import Preprocessing  # with NumPy, which `--help` does without

        return Preprocessing(resize=self.image_size, crop=self.image_size, mean=self.mean, std=self.std)


RECIPES: Mapping[str, Recipe] = {
    # The embedded digits.  keras-resnet quickstart
    # Cost: about a minute on 2 cores. Result: 99.72, 99.44, 99.72 % of 360 test digits for seeds 0, 1, 2
    # (Intel Xeon, TensorFlow 2.21.0, Keras 3.15.1, 2026-11-21).
    "digits": Recipe("cifar_resnet8", network={"momentum": 0.9}, batch_size=32, augmentation="affine"),
    # A folder of small pictures.  keras-resnet quickstart --data FOLDER
    # Cost: 2 min on 2 busy cores for 1,800 images. Result: 53.67 % of 600 test images, 300 a class of CIFAR-10's
    # training set as JPEG, one run (same machine, versions and day).
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
    if changes.get("variant", recipe.variant) != recipe.variant:
        changes = {"network": {}, **changes}  # what was meant for the recipe's own network
    return replace(recipe, **changes)
