"""From a network to a Core ML package: image in, class label and probabilities or a vector out; made without a Mac.

coremltools converts anywhere but runs its packages on macOS alone: here they are replayed (`mil.py`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.errors import UsageError, missing_extra, unknown
from keras_resnet.export import usage
from keras_resnet.export.answers import answering, check_scores
from keras_resnet.export.artifact import Artifact, check_target, size_of, write_artifact
from keras_resnet.export.calibration import EFFORTS, calibrate
from keras_resnet.export.concrete import (
    EMBEDDING,
    Normalisation,
    answers_with,
    check_exportable,
    concrete_function,
    exact_normalisation,
    fold,
    name_of_answer,
    open_model,
)
from keras_resnet.export.evidence import gather
from keras_resnet.export.graph import learned_ranges, quantised, simplify
from keras_resnet.export.metadata import describe
from keras_resnet.export.mil import MANIFEST_KEY, ONE_AT_A_TIME, layer_of, open_package
from keras_resnet.export.mil_forms import DEFAULT_TARGET, Form, form_for, packed
from keras_resnet.export.sensitivity import check_parts, in_float, units
from keras_resnet.export.targets import targets_of_package
from keras_resnet.export.verification import Similarity, Verification, check_share, verify_package
from keras_resnet.training.data import Data
from keras_resnet.training.runs import versions

CLASSIFIER, VECTOR, ARRAYS = INTERFACES = ("classifier", "vector", "arrays")
OUTPUTS = {
    "classLabel": "the class that is most probable",
    "classLabel_probs": "the probability of each class, by its label",
    "scores": "a score a class, in the order of the labels",
    "embedding": "the features of the picture",
}


def to_coreml(
    source: keras.Model | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    quantize: str = "float16",
    interface: str | None = None,
    scores: str | None = None,
    target: str | None = None,
    calibration: Data | None = None,
    effort: str = "normal",
    labels: Sequence[str] | None = None,
    data: Data | None = None,
    author: str = "",
    licence: str = "",
    min_agreement: float | None = None,
    keep_float: Sequence[str] = (),
) -> Artifact:
    """Export a network to a Core ML package (ML program), and replay it where there are images to judge it on.

    source: a model, run folder, `.keras` file or "VARIANT:WEIGHTS"; path: the .mlpackage, with .labels.txt, .json
    and .html beside it. quantize: "float16", "float32", or weights of fewer bits under float16 arithmetic: "int8",
    "int4", "palette8", "palette6", "palette4", "prune" (half of them 0); "w8a8": activations of 8 bits too, which
    needs calibration images, or a network that `compress` trained for int8. interface: "classifier", image in,
    `classLabel` and `classLabel_probs` out; "vector", image in, `scores` or `embedding` out; "arrays", float32 [1,
    H, W, 3] in, RGB 0..255, the same out. Default the first, the second for what a classifier cannot give: logits,
    and the embedding of a network without a head. scores: "softmax", "sigmoid" or "logits", default the network's
    own, softmax where that is logits. target: the oldest system, "iOS15" to "iOS26"; default iOS16, or what the
    form needs; from iOS18 on palettes are of 16 filters each. calibration: images that weights are rounded and
    ranges measured with, never those that it is judged on; effort: how long, "low", "normal" or "high". labels: a
    distinct name a class; default those of the run or the images, else numbers. data: labelled images to replay the
    package on; without, the calibration images serve. author, licence: go into the package's metadata, with the
    manifest. min_agreement: below this fraction of images on which package and network give the same class nothing
    is written, default 0.9; of embeddings, which need no labels, the mean cosine similarity, default 0.98.
    keep_float: parts whose weights, and values of w8a8, stay in float16: "stem", "stage3_block2", "head".

    The package takes an RGB image `image` of the network's size, 0..255; the normalisation is inside, exact at the
    border. Core ML itself runs on macOS alone: what was measured is the replay's. Raises UsageError, InputError
    before the conversion starts, ExportError where the replay does not agree with the network; nothing is written
    then.
    """
    form, system = form_for(quantize, target)
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS, where="effort=")
    check_share(min_agreement)
    check_scores(scores)
    if interface is not None and interface not in INTERFACES:
        raise unknown("interface", interface, INTERFACES, where="interface=")
    place = check_target(path, ".mlpackage")
    _check_kept(keep_float, form, quantize)
    model = open_model(source)
    learned = learned_ranges(model)
    if form.activations and calibration is None and not learned:
        raise UsageError(f"quantize={quantize!r} needs calibration=: a folder of images like those the app will see")
    preprocessing = check_exportable(model)
    check_parts(model, keep_float)
    model = answering(model, scores)
    interface = _interface(interface, model)
    evidence = gather(source, model, preprocessing, calibration, data, labels)
    pixels, judged, shown, names = evidence.pixels, evidence.judged, evidence.shown, evidence.names
    # The image input of Core ML takes one scale for all channels, so each channel's own part goes into the stem.
    whole = exact_normalisation(preprocessing)
    normalisation = Normalisation(whole.shift, (1 / preprocessing.scale,) * len(whole.shift))
    graph, ranges = fold(model, normalisation), {}
    is_rounded = bool(form.grid and pixels is not None and not learned)
    layers = {layer.name for layer in graph.layers}
    kept = {layer for part in keep_float for layer in units(graph)[part]}
    if learned:  # its weights were trained for 8 bits, and stay
        graph = simplify(graph)
        ranges = {name: bounds for name, bounds in learned.items() if name not in kept}
    elif is_rounded and pixels is not None:
        graph, ranges = _rounded(graph, form, normalisation, pixels, effort, keep_float)
    in_bytes = {"ranges": ranges, "pixels": None if "stem" in keep_float else _range_of_pixels(normalisation)}
    for layer in graph.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1:
            layer.convolution_op = _plain_convolution(layer)
    output, length = name_of_answer(model), model.outputs[0].shape[-1]
    found: list[Verification | Similarity] = []
    operations: list[tuple[str, str, str]] = []
    targets: list[dict[str, Any]] = []

    def manifest(written: dict[str, Any]) -> dict[str, Any]:
        value = describe(
            written,
            format=f"coreml-{quantize}",
            model=model,
            input_type=_input_type(model, interface),
            labels=names,
            calibration=evidence.sample,
            verification=found[0] if found else None,
            accuracy_verified=evidence.is_labelled,
            targets=targets,
        )
        value["contract"]["output"] = {output: f"float32 [1, {length}]"}
        if interface == CLASSIFIER:
            probabilities = f"{len(names)} probabilities by label"
            value["contract"]["output"] = {"classLabel": "string", "classLabel_probs": probabilities}
        if keep_float:
            value["in_float"] = {"parts": list(keep_float)}
        return {**value, "oldest_system": system, "verified_by": _verified_by(found[0] if found else None)}

    def produce(scratch: Path) -> None:
        with _coremltools(scratch.parent) as coremltools:
            # Traced here, for tracing leaves files in the temporary folder, which goes away with this one.
            package = convert(
                coremltools,
                concrete_function(graph, normalisation if interface == ARRAYS else None),
                None if interface == ARRAYS else normalisation,
                names if interface == CLASSIFIER else None,
                form.precision,
                system,
                in_bytes if form.activations else None,
            )
            if form.compress is not None:
                stays = (lambda name: layer_of(name, layers) in kept) if kept else None
                package = packed(coremltools, package, form, stays, is_rounded=is_rounded)
            if interface != CLASSIFIER:
                package = _called(coremltools, package, output)
            _describe(package, model, quantize, author, licence, _unverified(manifest({})))
            package.save(str(scratch))
            replayed = open_package(scratch)
            operations.extend((step.kind, step.name, str(step.dtype)) for step in replayed.steps)
            targets.extend(targets_of_package(replayed, size_of(scratch), shown if pixels is None else pixels))
            if judged is not None and shown is not None:
                found.append(verify_package(replayed, model, shown, judged.labels, judged.name, min_agreement))
        for entry in [scratch, *scratch.rglob("*")]:  # the package writer leaves files that others cannot read
            entry.chmod(0o755 if entry.is_dir() else 0o644)

    return write_artifact(place, produce, names, manifest, lambda value: usage.page(value, shown, operations))


def _unverified(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest as a package carries it, which is verified once it is written: what is not known yet is left out."""
    later = ("verification", "accuracy_verified", "verified_by", "targets")
    return {name: value for name, value in manifest.items() if name not in later}


def _verified_by(found: Verification | Similarity | None) -> str:
    if found is None:
        return "nothing: no images were given"
    if found.native is not None and not found.native.remark:
        return "replay on the CPU, and Core ML on macOS"
    return "replay on the CPU; Core ML itself was not run"


def _interface(asked: str | None, model: keras.Model) -> str:
    """What goes in and out; UsageError for a classifier of what are no probabilities."""
    answers = answers_with(model)
    is_classifier = answers in ("softmax", "sigmoid")
    if asked == CLASSIFIER and not is_classifier:
        gives = "an embedding" if answers == EMBEDDING else answers
        raise UsageError(f"interface={asked!r} gives probabilities, not {gives}: take {VECTOR!r} or {ARRAYS!r}")
    return asked or (CLASSIFIER if is_classifier else VECTOR)


def _input_type(model: keras.Model, interface: str) -> str:
    height, width = model.inputs[0].shape[1:3]
    return (
        f"float32 [1, {height}, {width}, 3], RGB, 0..255"
        if interface == ARRAYS
        else f"image, {height} x {width}, RGB, 0..255"
    )


def _rounded(
    graph: keras.Model,
    form: Form,
    normalisation: Normalisation,
    pixels: np.ndarray,
    effort: str,
    keep_float: Collection[str],
) -> tuple[keras.Model, dict[str, tuple[float, float]]]:
    """The graph with weights that a form can hold, and the ranges of its values where they are to be of 8 bits."""
    inputs = (pixels - np.asarray(normalisation.shift, np.float32)) * np.asarray(normalisation.scale, np.float32)
    simple = simplify(graph)
    measured = calibrate(simple, inputs, bits=8 if form.activations else 16, effort=effort, grid=form.grid)
    kept = {layer for part in keep_float for layer in units(simple)[part]}
    weights = {name: own for name, own in measured.weights.items() if name not in kept}
    return quantised(simple, {}, weights), dict(in_float(simple, measured, keep_float).ranges)


def _check_kept(keep_float: Sequence[str], form: Form, quantize: str) -> None:
    if keep_float and form.compress is None:
        raise UsageError(f"keep_float= is for weights of fewer bits, not for {quantize!r}")
    if isinstance(keep_float, str):
        raise UsageError(f"keep_float={keep_float!r} must be a list of parts of the network: ['stem', 'head']")


def _range_of_pixels(normalisation: Normalisation) -> tuple[float, float]:
    """Of 0..255 in every channel, once normalised."""
    shift, scale = np.asarray(normalisation.shift), np.asarray(normalisation.scale)
    return float((-shift * scale).min()), float(((255 - shift) * scale).max())


def convert(
    coremltools: Any,
    function: Any,
    normalisation: Normalisation | None,
    labels: Sequence[str] | None,
    precision: str,
    system: str = DEFAULT_TARGET,
    in_bytes: Mapping[str, Any] | None = None,
) -> Any:
    """Run coremltools on a concrete function that reads (pixels - shift) * scale; returns its MLModel.

    normalisation: None for one that reads pixels, from an array; labels: None for a vector out; in_bytes: the options
    of `mil_passes.values_in_bytes`, None for values in floating point.
    """
    from keras_resnet.export import mil_passes  # registers them

    pipeline = coremltools.PassPipeline.DEFAULT
    for name in mil_passes.NAMES:
        pipeline.append_pass(name)
    if in_bytes is not None:
        pipeline.append_pass(mil_passes.IN_BYTES)
        pipeline.set_options(mil_passes.IN_BYTES, in_bytes)
    shape = tuple(function.structured_input_signature[0][0].shape)
    numbers: Any = coremltools.precision[precision]
    if normalisation is None:
        image = coremltools.TensorType(name="image", shape=shape, dtype=np.float32)
        if precision == "FLOAT16":  # what is done to pixels stays exact, as behind an image
            numbers = coremltools.transform.FP16ComputePrecision(lambda operation: not _reads_pixels(operation))
    else:
        scale = normalisation.scale[0]
        image = coremltools.ImageType(
            name="image",
            shape=shape,
            scale=scale,
            bias=[-shift * scale for shift in normalisation.shift],
            color_layout=coremltools.colorlayout.RGB,
        )
    outputs = {
        "classifier_config": None if labels is None else coremltools.ClassifierConfig(list(labels)),
        "outputs": [coremltools.TensorType(dtype=np.float32)] if labels is None else None,
    }
    return coremltools.convert(
        [function],
        source="tensorflow",
        convert_to="mlprogram",
        inputs=[image],
        **outputs,
        compute_precision=numbers,
        minimum_deployment_target=coremltools.target[system],
        pass_pipeline=pipeline,
        skip_model_load=True,
    )


def _reads_pixels(operation: Any) -> bool:
    """Whether an operation is a step of the normalisation of an array: nothing but those lies before it."""
    while operation is not None and operation.op_type in ("sub", "mul", "transpose"):
        operation = operation.x.op
        if operation is None:
            return True
    return False


def _called(coremltools: Any, package: Any, output: str) -> Any:
    """The package with its only output under a name."""
    spec = package.get_spec()
    (given,) = spec.description.output
    coremltools.utils.rename_feature(spec, given.name, output)
    return coremltools.models.MLModel(spec, weights_dir=package.weights_dir, skip_model_load=True)


def _describe(
    package: Any, model: keras.Model, quantize: str, author: str, licence: str, manifest: dict[str, Any]
) -> None:
    """What Xcode shows of a package."""
    package.short_description = f"{model.name} as {quantize}, exported by keras-resnet-edge"
    package.author, package.license, package.version = author, licence, versions()["keras-resnet-edge"]
    package.input_description["image"] = "an RGB picture, 0 to 255; the normalisation is inside"
    for output in package.get_spec().description.output:
        package.output_description[output.name] = OUTPUTS[output.name]
    package.user_defined_metadata[MANIFEST_KEY] = json.dumps(manifest)


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
    with ONE_AT_A_TIME:
        before = tempfile.tempdir
        tempfile.tempdir = str(scratch)
        try:
            yield coremltools
        finally:
            tempfile.tempdir = before
