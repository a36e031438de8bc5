"""From a network to a .tflite file that takes raw pixels: float32, float16, dynamic-range or full-integer int8."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.errors import ExportError, UsageError, unknown
from keras_resnet.export import report
from keras_resnet.export.artifact import Artifact, check_target, write_artifact
from keras_resnet.export.calibration import calibration_pixels
from keras_resnet.export.concrete import (
    check_exportable,
    concrete_function,
    exact_normalisation,
    fold,
    integer_normalisation,
    labels_of,
    open_model,
)
from keras_resnet.export.metadata import check_labels, describe
from keras_resnet.export.verification import TfliteFile, verify_tflite
from keras_resnet.training.data import Images, open_images
from keras_resnet.training.evaluation import check_classes, scores_of


@dataclass(frozen=True)
class Form:
    """One number format: how the converter is set, whether it needs calibration, what the input's type becomes."""

    optimize: bool
    calibrated: bool = False
    types: tuple[Any, ...] = ()
    input_type: str = "float32"


FORMS: Mapping[str, Form] = {
    "float32": Form(optimize=False),
    "float16": Form(optimize=True, types=(tf.float16,)),
    "dynamic": Form(optimize=True),  # int8 weights, float activations
    "int8": Form(optimize=True, calibrated=True, input_type="uint8"),
}


def to_tflite(
    source: keras.Model | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    quantize: str = "int8",
    calibration: str | os.PathLike[str] | Images | None = None,
    labels: Sequence[str] | None = None,
    data: str | os.PathLike[str] | Images | None = None,
) -> Artifact:
    """Export a network to TFLite and check that the file answers as the network does.

    source: a model, run folder, `.keras` file or "VARIANT:WEIGHTS"; path: the .tflite file, with .labels.txt, .json
    and .html beside it. quantize: "float32", "float16", "dynamic" or "int8" (full integer, uint8 [1, H, W, 3] in with
    scale 1 and zero point 0); every form takes RGB pixels 0..255. calibration: images for int8, never those that it is
    judged on. labels: a name a class; default those of the run, `data` or `calibration`, else numbers. data: labelled
    images to verify on; without, the calibration images serve, and the manifest says that accuracy is not verified.

    Raises UsageError, InputError before the conversion starts, ExportError where the file is not what it must be;
    nothing is written then.
    """
    if quantize not in FORMS:
        raise unknown("number format", quantize, FORMS, where="quantize=")
    form, target = FORMS[quantize], check_target(path, ".tflite")
    if form.calibrated and calibration is None:
        raise UsageError(f"quantize={quantize!r} needs calibration=: a folder of images like those the app will see")
    model = open_model(source)
    preprocessing = check_exportable(model)
    sample = pixels = None
    if calibration is not None:
        sample, pixels = calibration_pixels(calibration, preprocessing, model.inputs[0].shape[1:3])
    images = None if data is None else open_images(data)
    judged = images or sample
    if judged is not None:
        check_classes(judged, model.outputs[0].shape[-1], labels_of(source))
    known = labels_of(source) or (judged.classes if judged else None)
    names = check_labels(known if labels is None else labels, model.outputs[0].shape[-1])

    normalisation = integer_normalisation(preprocessing) if form.calibrated else exact_normalisation(preprocessing)
    folded = fold(model, normalisation)
    content = convert(concrete_function(folded, normalisation), folded, form, pixels)
    file = TfliteFile(content, str(path))
    _check_contract(file, form)
    verification = None
    if judged is not None:
        shown = judged.pixels(preprocessing)
        verification = verify_tflite(file, scores_of(model), shown, judged.labels, judged.name)

    def manifest(written: dict[str, Any]) -> dict[str, Any]:
        return describe(
            written,
            format=f"tflite-{quantize}",
            model=model,
            input_type=f"{form.input_type} [1, {', '.join(map(str, model.inputs[0].shape[1:]))}], RGB, 0..255",
            labels=names,
            calibration=sample,
            verification=verification,
            accuracy_verified=images is not None,
        )

    return write_artifact(target, lambda scratch: _write(scratch, content), names, manifest, report.artifact_page)


def convert(function: Any, folded: keras.Model, form: Form, pixels: np.ndarray | None) -> bytes:
    """Run TensorFlow's converter on a concrete function; pixels, uint8 [n, height, width, 3], set int8's ranges."""
    holder = tf.Module()
    # The variables themselves, not the Keras model: with that as trackable the converter writes a file of NaNs.
    holder.variables_ = [variable.value for variable in folded.variables]
    holder.function = function
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    if form.optimize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = list(form.types)
    if form.calibrated and pixels is not None:
        converter.representative_dataset = _representative(pixels)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    return bytes(converter.convert())


def _representative(pixels: np.ndarray) -> Callable[[], Any]:
    return lambda: ({"image": image[None].astype(np.float32)} for image in pixels)


def _check_contract(file: TfliteFile, form: Form) -> None:
    """An int8 file must hold integers alone and take raw bytes; the converter gives other things without a word."""
    if file.input["dtype"].__name__ != form.input_type:
        raise ExportError(f"the converter gave an input of {file.input['dtype'].__name__}, not {form.input_type}")
    if not form.calibrated:
        return
    if file.input["quantization"] != (1.0, 0):
        raise ExportError(
            f"the converter gave an input of scale and zero point {file.input['quantization']}, not (1, 0)"
        )
    if file.float_tensors:
        raise ExportError(f"the converter left floating-point tensors: {', '.join(file.float_tensors[:3])}")


def _write(path: Any, content: bytes) -> None:
    path.write_bytes(content)
