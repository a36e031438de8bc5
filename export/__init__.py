"""From a network to a file for a phone that proves what it answers. The public names, loaded when touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "keras_resnet.export":
    raise ImportError(f"import keras_resnet.export, not {__name__}: this folder is a part of that package")

from keras_resnet.lazy import lazy

if TYPE_CHECKING:
    from keras_resnet.export.artifact import Artifact
    from keras_resnet.export.comparison import compare
    from keras_resnet.export.compression import compress
    from keras_resnet.export.coreml import to_coreml
    from keras_resnet.export.inspection import Inspection, inspect
    from keras_resnet.export.prediction import Prediction, predict
    from keras_resnet.export.speed import Benchmark, benchmark
    from keras_resnet.export.tflite import to_tflite
    from keras_resnet.export.verification import Similarity, Verification, self_test, verify

__getattr__, __dir__ = lazy(
    __name__,
    {
        "artifact": ("Artifact",),
        "comparison": ("compare",),
        "compression": ("compress",),
        "coreml": ("to_coreml",),
        "inspection": ("Inspection", "inspect"),
        "prediction": ("Prediction", "predict"),
        "speed": ("Benchmark", "benchmark"),
        "tflite": ("to_tflite",),
        "verification": ("Similarity", "Verification", "self_test", "verify"),
    },
)

__all__ = [
    "Artifact",
    "Benchmark",
    "Inspection",
    "Prediction",
    "Similarity",
    "Verification",
    "benchmark",
    "compare",
    "compress",
    "inspect",
    "predict",
    "self_test",
    "to_coreml",
    "to_tflite",
    "verify",
]
