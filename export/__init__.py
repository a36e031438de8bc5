"""From a network to a file for a phone that proves what it answers. The public names, loaded when touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "keras_resnet.export":
    raise ImportError(f"import keras_resnet.export, not {__name__}: this folder is a part of that package")

from keras_resnet.lazy import lazy

if TYPE_CHECKING:
    from keras_resnet.export.artifact import Artifact
    from keras_resnet.export.coreml import to_coreml
    from keras_resnet.export.tflite import to_tflite
    from keras_resnet.export.verification import Verification, verify

__getattr__, __dir__ = lazy(
    __name__,
    {
        "artifact": ("Artifact",),
        "coreml": ("to_coreml",),
        "tflite": ("to_tflite",),
        "verification": ("Verification", "verify"),
    },
)

__all__ = ["Artifact", "Verification", "to_coreml", "to_tflite", "verify"]
