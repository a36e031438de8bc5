"""From a network to a .tflite file that takes raw pixels, in floating point or whole numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from keras_resnet.errors import ExportError, UsageError, unknown
from keras_resnet.export import converter, golden, report
from keras_resnet.export.artifact import Artifact, check_target, write_artifact
from keras_resnet.export.calibration import EFFORTS, calibrate, calibration_pixels, check_apart
from keras_resnet.export.concrete import (
    check_exportable,
    concrete_function,
    exact_normalisation,
    fold,
    integer_normalisation,
    labels_of,
    open_model,
)
from keras_resnet.export.graph import learned_ranges, quantised, simplify
from keras_resnet.export.metadata import check_labels, describe, inside
from keras_resnet.export.tflite_metadata import embed
from keras_resnet.export.verification import MANIFEST, TfliteFile, answer_own_pictures, verify_tflite
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.data import Images, open_images
from keras_resnet.training.evaluation import for_network, scores_of
from keras_resnet.training.runs import versions

EXAMPLES = 40  # pictures that those of the file's own test are chosen from


@dataclass(frozen=True)
class Form:
    """One number format.

    activation_bits: of whole numbers, 0 for floating point; the others are what TensorFlow's converter is told: whether
    to quantise, types it may use, the set of operations that it must keep to, the type of the file's input and output.
    """

    activation_bits: int = 0
    optimize: bool = True
    types: tuple[str, ...] = ()
    operations: str = ""
    border: str = "float32"

    @property
    def settings(self) -> dict[str, Any]:
        """What `converter.convert` is given."""
        return {name: value for name, value in asdict(self).items() if name != "activation_bits"}


FORMS: Mapping[str, Form] = {
    "float32": Form(optimize=False),
    "float16": Form(types=("float16",)),
    "dynamic": Form(),  # int8 weights, float activations
    "int8": Form(activation_bits=8, border="uint8"),
    "int16x8": Form(
        activation_bits=16, operations="EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8"
    ),  # the converter knows no bytes at the border of these
}


def to_tflite(
    source: keras.Model | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    quantize: str = "int8",
    calibration: str | os.PathLike[str] | Images | None = None,
    effort: str = "normal",
    labels: Sequence[str] | None = None,
    data: str | os.PathLike[str] | Images | None = None,
    author: str = "",
    licence: str = "",
) -> Artifact:
    """Export a network to TFLite and check that the file answers as the network does.

    source: a model, run folder, `.keras` file or "VARIANT:WEIGHTS"; path: the .tflite file, with .labels.txt, .json
    and .html beside it. quantize: "float32", "float16", "dynamic", "int8" (full integer, uint8 [1, H, W, 3] in with
    scale 1 and zero point 0) or "int16x8" (activations of 16 bits, float32 in and out, slow); every form takes RGB
    pixels 0..255. calibration: images for int8 and int16x8, never those that it is judged on; int8 of a network that
    `compress` trained for it needs none, and takes the ranges and weights that it learned. effort: how long weights
    are rounded, "low", "normal" or "high". labels: a name a class; default those of the run, `data` or `calibration`,
    else numbers. data: labelled images to verify on; without, the calibration images serve, and the manifest says that
    accuracy is not verified. author, licence: go into the file's metadata, with the labels, the manifest and a few
    pictures with their scores, by which the file can be tested wherever it runs (`self_test`).

    Raises UsageError, InputError before the conversion starts, ExportError where the file is not what it must be;
    nothing is written then.
    """
    if quantize not in FORMS:
        raise unknown("number format", quantize, FORMS, where="quantize=")
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS, where="effort=")
    form, target = FORMS[quantize], check_target(path, ".tflite")
    model = open_model(source)
    if form.activation_bits and calibration is None and not (form.activation_bits == 8 and learned_ranges(model)):
        raise UsageError(f"quantize={quantize!r} needs calibration=: a folder of images like those the app will see")
    preprocessing = check_exportable(model)
    sample = pixels = None
    if calibration is not None:
        sample, pixels = calibration_pixels(calibration, preprocessing, model.inputs[0].shape[1:3])
    images = None if data is None else open_images(data)
    judged = images or sample
    shown = pixels if images is None else images.pixels(preprocessing)
    if images is not None and pixels is not None and shown is not None:
        check_apart(pixels, shown, images.name)
    if judged is not None:
        judged = for_network(judged, model.outputs[0].shape[-1], labels_of(source))
    known = labels_of(source) or (judged.classes if judged else None)
    names = check_labels(known if labels is None else labels, model.outputs[0].shape[-1])

    content = convert(model, preprocessing, form, pixels, effort)
    file = TfliteFile(content, str(path))
    _check_contract(file, form)
    verification = None
    if judged is not None and shown is not None:
        verification = verify_tflite(file, scores_of(model), shown, judged.labels, judged.name)

    def manifest(written: dict[str, Any]) -> dict[str, Any]:
        return describe(
            written,
            format=f"tflite-{quantize}",
            model=model,
            input_type=f"{form.border} [1, {', '.join(map(str, model.inputs[0].shape[1:]))}], RGB, 0..255",
            labels=names,
            calibration=sample,
            verification=verification,
            accuracy_verified=images is not None,
        )

    size = tuple(model.inputs[0].shape[1:3])
    examples = golden.pictures(size) if shown is None else shown[:EXAMPLES]
    content = embed(
        content,
        name=model.name,
        description=f"{model.name} as {quantize}; takes raw RGB pixels, 0 to 255",
        version=versions()["keras-resnet-edge"],
        author=author,
        licence=licence,
        size=size,
        files={
            "labels.txt": "".join(f"{name}\n" for name in names).encode(),
            MANIFEST: json.dumps(inside(manifest({}))).encode(),
            golden.NAME: golden.record(examples, file.scores),
        },
    )
    if not answer_own_pictures(TfliteFile(content, str(path)), content, str(path)).passed:
        raise ExportError("the file does not repeat its own answers once its metadata is inside: please report this")
    return write_artifact(target, lambda scratch: _write(scratch, content), names, manifest, report.artifact_page)


def convert(
    model: keras.Model,
    preprocessing: Preprocessing,
    form: Form,
    pixels: np.ndarray | None = None,
    effort: str = "normal",
) -> bytes:
    """The content of a file in a number format; pixels, uint8 [n, height, width, 3], are what whole numbers need."""
    in_bytes = form.activation_bits == 8
    normalisation = integer_normalisation(preprocessing) if in_bytes else exact_normalisation(preprocessing)
    graph = simplify(fold(model, normalisation))
    images = None
    if in_bytes and (ranges := learned_ranges(model)):
        graph = quantised(graph, ranges, {})
    elif pixels is not None and form.activation_bits:
        inputs = (pixels - np.asarray(normalisation.shift, np.float32)) * np.asarray(normalisation.scale, np.float32)
        measured = calibrate(graph, inputs, bits=form.activation_bits, effort=effort)
        graph = quantised(graph, measured.ranges, measured.weights)
        if not measured.ranges:  # the converter measures them, and the pixels' must be 0..255
            images = pixels.astype(np.float32)
            images[0, 0, 0], images[0, -1, -1] = 0, 255
    function = concrete_function(graph, normalisation, whole_numbers=in_bytes)
    return converter.convert(function, [variable.value for variable in graph.variables], form.settings, images)


def _check_contract(file: TfliteFile, form: Form) -> None:
    """An int8 file must hold integers alone and take raw bytes; the converter gives other things without a word."""
    if file.input["dtype"].__name__ != form.border:
        raise ExportError(f"the converter gave an input of {file.input['dtype'].__name__}, not {form.border}")
    if form.border != "uint8":
        return
    if file.input["quantization"] != (1.0, 0):
        raise ExportError(
            f"the converter gave an input of scale and zero point {file.input['quantization']}, not (1, 0)"
        )
    if file.float_tensors:
        raise ExportError(f"the converter left floating-point tensors: {', '.join(file.float_tensors[:3])}")


def _write(path: Any, content: bytes) -> None:
    path.write_bytes(content)
