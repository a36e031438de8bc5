"""Recipes: how a network is trained, as a row of values. Pure data; `trainer.py` carries a recipe out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from keras_resnet.errors import UsageError, unknown
from keras_resnet.specs import VARIANTS, is_number, is_positive, spec_of

if TYPE_CHECKING:
    from keras_resnet.preprocessing import Preprocessing

MOST_PIXELS = 2048  # a side
OPTIMIZERS = ("sgd", "adamw", "lamb")
LOSSES = ("softmax", "bce")
SCHEDULES = ("cosine", "step", "one_cycle")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, but the data.

    The learning rate climbs linearly over `warmup_epochs` to its peak, `learning_rate` for `reference_batch` images a
    step and in proportion for more or fewer, and falls as `schedule` says: "cosine" to 0; "step" to a tenth at each of
    `drops`; "one_cycle" starts at a 25th and ends next to 0 (arXiv:1708.07120). Raises UsageError for values that
    cannot be.
    """

    variant: str
    network: Mapping[str, Any] = field(default_factory=dict)  # fields of the variant's Spec that differ
    weights: str = ""  # what training starts from: a tag, hf:// or a file, as `build` takes them; "" for random
    image_size: int = 32  # pixels a side, in training
    test_size: int = 0  # pixels a side, of the centre crop in evaluation and of the finished network; 0 for image_size
    crop_fraction: float = 1.0  # of the resized short side that the centre crop keeps
    epochs: int = 30
    steps: int = 0  # how long to train, where a paper counts in steps: in place of epochs; 0 for epochs
    batch_size: int = 64  # images a step, over all devices
    accumulate: int = 1  # parts of a batch that are computed one behind the other, where it does not fit at once
    optimizer: str = "sgd"
    learning_rate: float = 0.1  # at its peak
    reference_batch: int = 0  # images a step that learning_rate is for (arXiv:1706.02677, 2.1); 0: it is as given
    schedule: str = "cosine"
    drops: tuple[float, ...] = ()  # of "step": fractions of the run, 0.5 for its middle
    warmup_epochs: float = 5.0
    momentum: float = 0.9  # of SGD
    nesterov: bool = True
    weight_decay: float = 5e-4  # an update shrinks the kernels by learning_rate * weight_decay
    clip_norm: float = 0.0  # most that the norm of all gradients together may be; 0 for any
    ema: float = 0.0  # decay of the weights' moving average, which is what is evaluated and kept; 0 for none
    early_stopping: int = 0  # epochs without a better validation accuracy after which training ends; 0 for never
    loss: str = "softmax"  # or "bce": each class by itself, a mixed image being of both (arXiv:2110.00476, 3.1)
    label_smoothing: float = 0.0
    teacher: str = ""  # a trained network whose softened scores are learned too (arXiv:1503.02531); "" for none
    teacher_weight: float = 0.5  # share of the teacher in the loss
    temperature: float = 4.0  # of the softened scores
    augmentation: str = "shift"  # a name of augment.AUGMENTATIONS
    rand_augment: float = 0.0  # magnitude 0 to 10 of two operations an image (arXiv:1909.13719); 0 for none
    erasing: float = 0.0  # probability that a rectangle is filled (arXiv:1708.04896)
    mixup: float = 0.0  # alpha (arXiv:1710.09412); with cutmix too, each batch takes one of both
    cutmix: float = 0.0  # alpha (arXiv:1905.04899)
    repeats: int = 1  # times that an image is in its batch, each augmented anew (arXiv:1901.09335)
    precision: str = "float32"
    synchronized: bool = False  # batch statistics over all devices
    checkpoint_every: int = 0  # steps between checkpoints, besides those of each epoch; 0 for none
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
        for name, valid in _WORDS.items():
            if getattr(self, name) not in valid:
                raise unknown(name, getattr(self, name), valid, where=f"{name}=")
        for name in ("weights", "teacher", "augmentation"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{name}={getattr(self, name)!r} must be a word")
        for name in ("nesterov", "synchronized"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r} must be True or False")
        for name, (low, high) in _WHOLE.items():
            value = getattr(self, name)
            if not (is_positive(value) or (value == 0 and value is not False)) or not low <= value <= high:
                upper = "up" if high == math.inf else f"to {high}"
                raise UsageError(f"{name}={value!r} must be a whole number from {low} {upper}")
        for name, (least, below) in _NUMBERS.items():
            value = getattr(self, name)
            if not is_number(value) or not least <= value < below:
                upper = "" if below == math.inf else f" and below {below}"
                raise UsageError(f"{name}={value!r} must be a number of at least {least}{upper}")
        for name in ("learning_rate", "crop_fraction", "temperature"):
            if getattr(self, name) == 0:
                raise UsageError(f"{name}={getattr(self, name)!r} must be above 0")
        if max(self.crop_fraction, self.teacher_weight, self.erasing) > 1 or self.rand_augment > 10:
            raise UsageError(
                f"crop_fraction={self.crop_fraction}, teacher_weight={self.teacher_weight}, erasing={self.erasing} "
                f"must be at most 1, rand_augment={self.rand_augment} at most 10"
            )
        if self.teacher and self.loss != "softmax":
            raise UsageError(
                f"loss={self.loss!r} does not go with a teacher, whose scores are a softmax: leave one out"
            )
        self._check_tuples()

    def _check_tuples(self) -> None:
        values = (*self.mean, *self.std)
        if (len(self.mean), len(self.std)) != (3, 3) or not all(map(is_number, values)) or min(self.std) <= 0:
            raise UsageError(f"mean={self.mean}, std={self.std} must have three numbers, images are RGB; std's above 0")
        drops = self.drops
        if not (isinstance(drops, tuple) and all(is_number(d) and 0 < d < 1 for d in drops)):
            raise UsageError(f"drops={drops!r} must be fractions of the run between 0 and 1: (0.5, 0.75)")
        if list(drops) != sorted(set(drops)) or bool(drops) != (self.schedule == "step"):
            raise UsageError(f"drops={drops!r} must rise, and go with schedule='step' alone, which needs them")

    @property
    def evaluation_size(self) -> int:
        """Pixels a side that the finished network is judged at."""
        return self.test_size or self.image_size

    @property
    def preprocessing(self) -> Preprocessing:
        """What the finished network's images need: resized, a square of `evaluation_size` cut, `mean` and `std`."""
        return self._fitted_to(self.evaluation_size)

    @property
    def training_preprocessing(self) -> Preprocessing:
        """The same at the size of training, for augmentations that begin with pictures of one size."""
        return self._fitted_to(self.image_size)

    def _fitted_to(self, size: int) -> Preprocessing:
        from keras_resnet.preprocessing import Preprocessing  # with NumPy, which `--help` does without

        return Preprocessing(resize=int(size / self.crop_fraction), crop=size, mean=self.mean, std=self.std)

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at its peak, for this number of images a step."""
        return self.learning_rate * (self.batch_size / self.reference_batch if self.reference_batch else 1.0)

    def total_steps(self, images: int) -> int:
        """Steps of the whole run on so many training images; the last epoch of a run in `steps` may be cut short."""
        return self.steps or self.epochs * self.steps_per_epoch(images)

    def steps_per_epoch(self, images: int) -> int:
        """Batches that show each of so many images once; the last of them may be smaller."""
        return -(-images // self.batch_size)


_WORDS = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "loss": LOSSES, "precision": PRECISIONS}
_WHOLE: Mapping[str, tuple[int, float]] = {
    "image_size": (1, MOST_PIXELS),
    "test_size": (0, MOST_PIXELS),
    "epochs": (1, math.inf),
    "steps": (0, math.inf),
    "batch_size": (1, math.inf),
    "accumulate": (1, math.inf),
    "reference_batch": (0, math.inf),
    "early_stopping": (0, math.inf),
    "repeats": (1, math.inf),
    "checkpoint_every": (0, math.inf),
    "seed": (0, 2**31 - 1),
}
_NUMBERS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_epochs", "clip_norm", "crop_fraction"), (0, math.inf)),
    **dict.fromkeys(("teacher_weight", "temperature", "rand_augment", "erasing", "mixup", "cutmix"), (0, math.inf)),
    **dict.fromkeys(("momentum", "ema", "label_smoothing"), (0, 1)),
}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Papers add weight decay to the gradient, which acts 1 / (1 - momentum) times through momentum; here it is beside it.
THROUGH_MOMENTUM = 1 / (1 - 0.9)

# CIFAR-10 on a CPU.  keras-resnet train --recipe cifar10-fast --data cifar10 --test cifar10@test --run runs/fast
# Cost: 46 min on 2 cores of an AMD EPYC (Zen 4) by its first epoch, 516 images/s. With --precision mixed_bfloat16 it
# was run: 37 and 40 min beside other work; alone, at 900 to 1,000 images/s, it would be 26.
# Result: 86.70 and 86.93 % of the 10,000 test images for seeds 0, 1, all images JPEG of quality 75, 45,000 to train on
# and 5,000 to choose by (TensorFlow 2.21.0, Keras 3.15.1, 2026-11-30). Twice as wide, --set network.widths=32,64,128:
# 89.23 % for seed 0; 41 min at the 590 images/s that it has alone.
_CIFAR10_FAST = Recipe(
    "cifar_resnet20",
    epochs=32,
    batch_size=128,
    learning_rate=0.2,
    schedule="one_cycle",
    warmup_epochs=6,
    weight_decay=5e-4 * THROUGH_MOMENTUM,
    augmentation="shift_flip",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.2435, 0.2616),
)
# ResNet strikes back (arXiv:2110.00476), table 2, procedure A2; clipping is that of timm's LAMB.
# keras-resnet train --recipe imagenet-a2 --data imagenet/train --test imagenet/val --run runs/a2
# Cost: 300 epochs of 1.28 M images. Result: not run here; the paper has 79.8 %.
_A2 = Recipe(
    "resnet50",
    network={"stochastic_depth": 0.05},
    image_size=224,
    crop_fraction=0.95,
    epochs=300,
    batch_size=2048,
    optimizer="lamb",
    learning_rate=5e-3,
    weight_decay=0.02,
    clip_norm=1.0,
    loss="bce",
    augmentation="inception",
    rand_augment=7.0,
    mixup=0.1,
    cutmix=1.0,
    repeats=3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

RECIPES: Mapping[str, Recipe] = {
    # The embedded digits.  keras-resnet quickstart
    # Cost: about a minute on 2 cores. Result: 99.72, 99.44, 99.72 % of 360 test digits for seeds 0, 1, 2
    # (Intel Xeon, TensorFlow 2.21.0, Keras 3.15.1, 2026-11-21).
    "digits": Recipe("cifar_resnet8", network={"momentum": 0.9}, batch_size=32, augmentation="affine"),
    # A folder of small pictures.  keras-resnet quickstart --data FOLDER
    # Cost: 2 min on 2 busy cores for 1,800 images. Result: 53.67 % of 600 test images, 300 a class of CIFAR-10's
    # training set as JPEG, one run (same machine, versions and day).
    "small-images": Recipe("cifar_resnet8", network={"momentum": 0.9}, augmentation="shift_flip"),
    "cifar10-fast": _CIFAR10_FAST,
    # Deep Residual Learning, section 4.2: 64k steps, 45,000 images to train on and 5,000 to choose by.
    # keras-resnet train cifar_resnet56 --recipe cifar10-paper --data cifar10 --test cifar10@test --run runs/paper
    # Cost: 182 epochs. Result: not run here; the paper has 91.25 % for 20 layers, 93.03 % for 56.
    "cifar10-paper": Recipe(
        "cifar_resnet20",
        steps=64_000,
        batch_size=128,
        learning_rate=0.1,
        schedule="step",
        drops=(0.5, 0.75),
        warmup_epochs=0,
        nesterov=False,
        weight_decay=1e-4 * THROUGH_MOMENTUM,
        augmentation="shift_flip",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
    ),
    # Deep Residual Learning, section 3.4, for 90 epochs.
    # keras-resnet train --recipe imagenet-paper --data imagenet/train --test imagenet/val --run runs/resnet50
    # Cost: 90 epochs of 1.28 M images. Result: not run here; the authors' published network has 75.3 % (one crop).
    "imagenet-paper": Recipe(
        "resnet50_v1",
        image_size=224,
        crop_fraction=0.875,
        epochs=90,
        batch_size=256,
        learning_rate=0.1,
        reference_batch=256,
        schedule="step",
        drops=(1 / 3, 2 / 3),
        warmup_epochs=0,
        nesterov=False,
        weight_decay=1e-4 * THROUGH_MOMENTUM,
        augmentation="scale",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "imagenet-a2": _A2,
    # The same, procedure A3: trained at 160 pixels, judged at 224.
    # keras-resnet train --recipe imagenet-a3 --data imagenet/train --test imagenet/val --run runs/a3
    # Cost: 100 epochs of 1.28 M images. Result: not run here; the paper has 78.1 %.
    "imagenet-a3": replace(
        _A2, network={}, image_size=160, test_size=224, epochs=100, learning_rate=8e-3, rand_augment=6.0, repeats=1
    ),
    # Photographs of your own, from ImageNet's weights.
    # keras-resnet train --recipe finetune --data photos --run runs/mine
    # Cost: 10 epochs. Result: run at 96 pixels on 2,000 images of CIFAR-10, 15 epochs, 5.5 min on 2 busy cores: 67.11 %
    # of the test images, against 48.56 % from random weights (the README has the command).
    "finetune": Recipe(
        "resnet18",
        weights="imagenet",
        image_size=224,
        crop_fraction=0.875,
        epochs=10,
        learning_rate=0.01,
        warmup_epochs=0.5,
        weight_decay=1e-4 * THROUGH_MOMENTUM,
        augmentation="inception",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    # A run that was trained on the same classes teaches a smaller network: `cifar10-fast`, but for its loss.
    # keras-resnet train --recipe distill --set teacher=runs/paper --data cifar10 --test cifar10@test --run runs/pupil
    # Cost: that of cifar10-fast and the teacher's forward passes. Result: not run here yet.
    "distill": replace(_CIFAR10_FAST, teacher="runs/teacher", teacher_weight=0.9),
}


def recipe_of(recipe: str | Recipe, **changes: Any) -> Recipe:
    """A recipe by name, or one itself, with some fields replaced; those of `network` are added to the recipe's own.

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
        changes = {"network": {}, **changes}  # what was there was meant for the recipe's own network
    elif isinstance(changes.get("network"), Mapping):
        changes = {**changes, "network": {**recipe.network, **changes["network"]}}
    return replace(recipe, **changes)


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Changes of a recipe from words such as "learning_rate=0.2", "drops=0.5,0.75" or "network.shortcut=C".

    Raises UsageError for a word without "=", an unknown field (the nearest are offered) or another kind of value.
    """
    fields = {field.name: str(field.type) for field in dataclasses.fields(Recipe)}
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name, _, inner = name.partition(".")
        if not equals:
            raise UsageError(f"--set {setting!r} must be a field and its value: learning_rate=0.2")
        if name not in fields:
            raise unknown("option", name, fields, where=f"--set {setting}")
        if (name == "network") != bool(inner):
            raise UsageError(f"--set {setting!r}: only fields of the network have two words: network.shortcut=C")
        if inner:
            changes.setdefault("network", {})[inner] = _several(text) if "," in text else _literal(text)
        elif fields[name] == "str":
            changes[name] = text
        elif fields[name].startswith("tuple"):
            changes[name] = _several(text)
        else:
            changes[name] = _literal(text)
    return changes


def _several(text: str) -> tuple[Any, ...]:
    return tuple(_literal(part) for part in text.split(",") if part.strip())


def _literal(text: str) -> Any:
    """A number, a truth value, or the word itself, which the checks of its field judge."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False}.get(text.strip().lower(), text)
