"""Residual networks in Keras: built, trained, exported to a phone, proved. The public names, loaded when touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_resnet import cores  # which counts them now
from keras_resnet.lazy import lazy

if TYPE_CHECKING:
    from keras_resnet import export as export
    from keras_resnet import training as training
    from keras_resnet.conversion import from_torch, save_weights_as
    from keras_resnet.labels import decode_predictions
    from keras_resnet.models import ResNet18, ResNet34, ResNet50, ResNet101, ResNet152, build, features, freeze
    from keras_resnet.preprocessing import Preprocessing, preprocess_image, preprocess_input, preprocessing_of
    from keras_resnet.profiling import profile
    from keras_resnet.publishing import save_hub_folder
    from keras_resnet.registry import WEIGHTS, list_weights
    from keras_resnet.rematerialisation import rematerialise
    from keras_resnet.specs import VARIANTS, Spec, cifar, list_variants
    from keras_resnet.weights import load_model, load_weights

__version__ = "0.1.0"

# Lazy, so that `keras-resnet --help` and `import keras_resnet` cost milliseconds: Keras comes with the first network.
__getattr__, __dir__ = lazy(
    __name__,
    {
        "conversion": ("from_torch", "save_weights_as"),
        "labels": ("decode_predictions",),
        "models": ("ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152", "build", "features", "freeze"),
        "preprocessing": ("Preprocessing", "preprocess_image", "preprocess_input", "preprocessing_of"),
        "profiling": ("profile",),
        "publishing": ("save_hub_folder",),
        "registry": ("WEIGHTS", "list_weights"),
        "rematerialisation": ("rematerialise",),
        "specs": ("VARIANTS", "Spec", "cifar", "list_variants"),
        "weights": ("load_model", "load_weights"),
        "export": (),
        "training": (),
    },
)

__all__ = [
    "VARIANTS",
    "WEIGHTS",
    "Preprocessing",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "Spec",
    "build",
    "cifar",
    "decode_predictions",
    "export",
    "features",
    "freeze",
    "from_torch",
    "list_variants",
    "list_weights",
    "load_model",
    "load_weights",
    "preprocess_image",
    "preprocess_input",
    "preprocessing_of",
    "profile",
    "rematerialise",
    "save_hub_folder",
    "save_weights_as",
    "training",
]
