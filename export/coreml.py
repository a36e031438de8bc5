"""From a network to a Core ML package: image in, class label and probabilities out, made without a Mac.

coremltools converts anywhere but runs its packages on macOS alone: what is written here is not run here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_resnet.errors import missing_extra, unknown
from keras_resnet.export import report
from keras_resnet.export.artifact import Artifact, check_target, write_artifact
from keras_resnet.export.concrete import (
    Normalisation,
    check_exportable,
    concrete_function,
    exact_normalisation,
    fold,
    labels_of,
    open_model,
)
from keras_resnet.export.metadata import check_labels, describe

PRECISIONS: Mapping[str, str] = {"float16": "FLOAT16", "float32": "FLOAT32"}
_ONE_AT_A_TIME = threading.Lock()  # coremltools keeps the program that it builds in globals


def to_coreml(
    source: keras.Model | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    quantize: str = "float16",
    labels: Sequence[str] | None = None,
) -> Artifact:
    """Export a network to a Core ML package (ML program, iOS 16 up).

    source: a model, run folder, `.keras` file or "VARIANT:WEIGHTS"; path: the .mlpackage, with .labels.txt, .json and
    .html beside it. quantize: "float16" or "float32". labels: a distinct name a class; default those of the run, else
    numbers.

    The package takes an RGB image `image` of the network's size, 0..255, and gives `classLabel` and
    `classLabel_probs`; the normalisation is inside, exact at the border. Not verified: Core ML runs on macOS alone.
    Raises UsageError, InputError before the conversion starts; nothing is written then.
    """
    if quantize not in PRECISIONS:
        raise unknown("number format", quantize, PRECISIONS, where="quantize=")
    target = check_target(path, ".mlpackage")
    model = open_model(source)
    preprocessing = check_exportable(model)
    names = check_labels(labels_of(source) if labels is None else labels, model.outputs[0].shape[-1])
    # The image input of Core ML takes one scale for all channels, so each channel's own part goes into the stem.
    whole = exact_normalisation(preprocessing)
    normalisation = Normalisation(whole.shift, (1 / preprocessing.scale,) * len(whole.shift))
    folded = fold(model, normalisation)
    for layer in folded.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1:
            layer.convolution_op = _plain_convolution(layer)

    def manifest(written: dict[str, Any]) -> dict[str, Any]:
        value = describe(
            written,
            format=f"coreml-{quantize}",
            model=model,
            input_type=f"image, {model.inputs[0].shape[1]} x {model.inputs[0].shape[2]}, RGB, 0..255",
            labels=names,
            calibration=None,
            verification=None,
            accuracy_verified=False,
        )
        value["contract"]["output"] = {
            "classLabel": "string",
            "classLabel_probs": f"{len(names)} probabilities by label",
        }
        return value

    def produce(scratch: Path) -> None:
        with _coremltools(scratch.parent) as coremltools:
            package = convert(coremltools, concrete_function(folded, None), normalisation, names, PRECISIONS[quantize])
            package.short_description = f"{model.name}, exported by keras-resnet-edge"
            package.save(str(scratch))
        for entry in [scratch, *scratch.rglob("*")]:  # the package writer leaves files that others cannot read
            entry.chmod(0o755 if entry.is_dir() else 0o644)

    return write_artifact(target, produce, names, manifest, report.artifact_page)


def convert(
    coremltools: Any, function: Any, normalisation: Normalisation, labels: Sequence[str], precision: str
) -> Any:
    """Run coremltools on a concrete function that reads (pixels - shift) * scale; returns its MLModel."""
    shape = tuple(function.structured_input_signature[0][0].shape)
    scale = normalisation.scale[0]
    image = coremltools.ImageType(
        name="image",
        shape=shape,
        scale=scale,
        bias=[-shift * scale for shift in normalisation.shift],
        color_layout=coremltools.colorlayout.RGB,
    )
    from keras_resnet.export import mil_passes  # registers them

    pipeline = coremltools.PassPipeline.DEFAULT
    for name in mil_passes.NAMES:
        pipeline.append_pass(name)
    return coremltools.convert(
        [function],
        source="tensorflow",
        convert_to="mlprogram",
        inputs=[image],
        classifier_config=coremltools.ClassifierConfig(list(labels)),
        compute_precision=coremltools.precision[precision],
        minimum_deployment_target=coremltools.target.iOS16,
        pass_pipeline=pipeline,
        skip_model_load=True,
    )


def _plain_convolution(layer: keras.layers.Conv2D) -> Callable[..., tf.Tensor]:
    """Keras compiles a grouped convolution by XLA, which coremltools cannot read; the plain operation it can."""
    return lambda x, kernel: tf.nn.conv2d(x, kernel, layer.strides, layer.padding.upper())


@contextlib.contextmanager
def _coremltools(scratch: Path) -> Iterator[Any]:
    """coremltools, with its temporary packages in a folder that goes away, and without warnings at its import.

    Its progress bars are shown; the command line keeps them off the screen with everything else.
    """
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # newer TensorFlow than it was tested with, no runtime
    try:
        import coremltools
    except ImportError as error:
        raise missing_extra("exporting to Core ML", "coreml", error) from error
    with _ONE_AT_A_TIME:
        before = tempfile.tempdir
        tempfile.tempdir = str(scratch)
        try:
            yield coremltools
        finally:
            tempfile.tempdir = before
