"""From a network to a .tflite file that takes raw pixels, in floating point or whole numbers."""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_resnet.errors import ExportError, UsageError, unknown
from keras_resnet.export import converter, golden, usage
from keras_resnet.export.answers import answering, check_scores
from keras_resnet.export.artifact import Artifact, check_target, write_artifact
from keras_resnet.export.calibration import EFFORTS, Calibration, calibrate
from keras_resnet.export.concrete import (
    EMBEDDING,
    Normalisation,
    answers_with,
    check_exportable,
    concrete_function,
    exact_normalisation,
    fold,
    integer_normalisation,
    open_model,
)
from keras_resnet.export.evidence import gather
from keras_resnet.export.graph import learned_ranges, quantised, simplify
from keras_resnet.export.latency import measure
from keras_resnet.export.metadata import describe, inside
from keras_resnet.export.sensitivity import check_parts, in_float, sensitivity
from keras_resnet.export.targets import targets_of_file
from keras_resnet.export.tflite_graph import read_graph
from keras_resnet.export.tflite_metadata import LABELS, embed
from keras_resnet.export.verification import (
    MANIFEST,
    TfliteFile,
    answer_own_pictures,
    check_share,
    verify_tflite,
)
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.data import Data, Images
from keras_resnet.training.evaluation import scores_of
from keras_resnet.training.runs import versions

AUTOMATIC_DROP = 0.3  # points of accuracy
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
    scores: str | None = None,
    calibration: Data | None = None,
    effort: str = "normal",
    labels: Sequence[str] | None = None,
    data: Data | None = None,
    author: str = "",
    licence: str = "",
    min_agreement: float | None = None,
    keep_float: str | Sequence[str] = (),
    max_drop: float | None = None,
) -> Artifact:
    """Export a network to TFLite and check that the file answers as the network does.

    source: a model, run folder, `.keras` file or "VARIANT:WEIGHTS"; without a head, such as build(include_top=False,
    pooling="avg"), the file's output is `embedding`, else `scores`: "softmax", "sigmoid" or "logits", default the
    network's own, softmax where that is logits. path: the .tflite file, with .labels.txt, .json and .html beside
    it. quantize: "float32", "float16", "dynamic", "int8" (full integer, uint8 [1, H, W, 3] in with scale 1 and zero
    point 0) or "int16x8" (activations of 16 bits, float32 in and out, slow); every form takes RGB pixels 0..255.
    calibration: images for int8 and int16x8, never those that it is judged on; int8 of a network that `compress`
    trained for it needs none, and takes the ranges and weights that it learned. effort: how long weights are
    rounded, "low", "normal" or "high". labels: a name a class; default those of the run, `data` or `calibration`,
    else numbers. data: labelled images to verify on; without, the calibration images serve, and the manifest says
    that accuracy is not verified. author, licence: go into the file's metadata, with the labels, the manifest and a
    few pictures with their scores, by which the file can be tested wherever it runs (`self_test`). min_agreement:
    below this fraction of images on which file and network give the same class nothing is written; default 0.9. For
    int8: keep_float: parts that stay in floating point ("stem", "stage3_block2", "head"); max_drop: points of
    accuracy on `data` that may be lost, for which as few parts as do stay in floating point, those that 8 bits harm
    most; the manifest says which, and what they cost. keep_float="auto": max_drop of 0.3. Embeddings need no
    labels; data may be of any classes, and min_agreement is the mean cosine similarity, default 0.98.

    Raises UsageError, InputError before the conversion starts, ExportError where the file is not what it must be;
    nothing is written then.
    """
    if quantize not in FORMS:
        raise unknown("number format", quantize, FORMS, where="quantize=")
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS, where="effort=")
    check_share(min_agreement)
    check_scores(scores)
    form, target = FORMS[quantize], check_target(path, ".tflite")
    keep_float, max_drop = _check_kept(keep_float, max_drop, form, quantize, data is not None)
    model = open_model(source)
    if form.activation_bits and calibration is None and not (form.activation_bits == 8 and learned_ranges(model)):
        raise UsageError(f"quantize={quantize!r} needs calibration=: a folder of images like those the app will see")
    preprocessing = check_exportable(model)
    model = answering(model, scores)
    answers = answers_with(model)
    if max_drop is not None and answers == EMBEDDING:
        raise UsageError(f"max_drop={max_drop} is of accuracy, and model {model.name!r} gives an embedding")
    check_parts(model, keep_float)
    found = gather(source, model, preprocessing, calibration, data, labels)
    judged, shown = found.judged, found.shown

    prepared = prepare(model, preprocessing, form, found.pixels, effort)
    kept = None
    if max_drop is not None and judged is not None and shown is not None:
        keep_float, kept = _keep_within(max_drop, prepared, form, model, shown, judged)
    content = build(prepared, form, keep_float)
    file = TfliteFile(content, str(path))
    _check_contract(file, form, mixed=bool(keep_float))
    verification = None
    if judged is not None and shown is not None:
        verification = verify_tflite(content, str(path), model, shown, judged.labels, judged.name, min_agreement)

    graph = read_graph(content, str(path))
    targets = targets_of_file(content, graph)

    def manifest(written: dict[str, Any]) -> dict[str, Any]:
        value = describe(
            written,
            format=f"tflite-{quantize}",
            model=model,
            input_type=f"{form.border} [1, {', '.join(map(str, model.inputs[0].shape[1:]))}], RGB, 0..255",
            labels=found.names,
            calibration=found.sample,
            verification=verification,
            accuracy_verified=found.is_labelled,
            targets=targets,
        )
        return {**value, "in_float": kept or {"parts": list(keep_float)}} if keep_float or kept else value

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
            **({LABELS: "".join(f"{name}\n" for name in found.names).encode()} if found.names else {}),
            MANIFEST: json.dumps(inside(manifest({}))).encode(),
            golden.NAME: golden.record(examples, file.scores, answers),
        },
        answers=answers,
    )
    if not answer_own_pictures(TfliteFile(content, str(path)), str(path)).passed:
        raise ExportError("the file does not repeat its own answers once its metadata is inside: please report this")
    operations = [(one.kind, one.name, ", ".join(map(str, one.outputs))) for one in graph.operations]
    return write_artifact(
        target,
        lambda scratch: _write(scratch, content),
        found.names,
        manifest,
        lambda value: usage.page(value, shown, operations),
    )


def _check_kept(
    keep_float: str | Sequence[str], max_drop: float | None, form: Form, quantize: str, is_labelled: bool
) -> tuple[Sequence[str], float | None]:
    """What stays in floating point by name, and the drop that it is to be found for; one of them at most."""
    if keep_float == "auto":
        keep_float, max_drop = (), AUTOMATIC_DROP if max_drop is None else max_drop
    if (keep_float or max_drop is not None) and form.activation_bits != 8:
        raise UsageError(f"keep_float= and max_drop= are for quantize='int8', not {quantize!r}")
    if max_drop is not None and (not is_labelled or keep_float or not 0 <= max_drop <= 100):
        raise UsageError(
            f"max_drop={max_drop} must be points of accuracy from 0 to 100, measured on data=: labelled images; and it "
            "finds out itself what keep_float= would say"
        )
    if isinstance(keep_float, str):
        raise UsageError(f"keep_float={keep_float!r} must be a list of parts of the network, or 'auto'")
    return keep_float, max_drop


@dataclass(frozen=True)
class Prepared:
    """A network ready for the converter: its simplified graph, and for whole numbers what was measured on pixels."""

    graph: keras.Model
    normalisation: Normalisation
    pixels: np.ndarray | None = None  # uint8 [n, height, width, 3]
    measured: Calibration | None = None

    def inputs(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels as the graph takes them, float32."""
        shift, scale = (np.asarray(v, np.float32) for v in (self.normalisation.shift, self.normalisation.scale))
        return (pixels - shift) * scale


def prepare(
    model: keras.Model,
    preprocessing: Preprocessing,
    form: Form,
    pixels: np.ndarray | None = None,
    effort: str = "normal",
) -> Prepared:
    """Simplify a network, and measure it where the form needs that; pixels, uint8 [n, height, width, 3]."""
    in_bytes = form.activation_bits == 8
    normalisation = integer_normalisation(preprocessing) if in_bytes else exact_normalisation(preprocessing)
    prepared = Prepared(simplify(fold(model, normalisation)), normalisation, pixels)
    if in_bytes and (ranges := learned_ranges(model)):
        return replace(prepared, measured=Calibration(ranges, {}))
    if pixels is None or not form.activation_bits:
        return prepared
    measured = calibrate(prepared.graph, prepared.inputs(pixels), bits=form.activation_bits, effort=effort)
    return replace(prepared, measured=measured)


def build(prepared: Prepared, form: Form, keep_float: Collection[str] = ()) -> bytes:
    """The content of a file in a number format; keep_float: parts of it that stay in floating point."""
    graph, measured, images = prepared.graph, prepared.measured, None
    if measured is not None:
        measured = in_float(graph, measured, keep_float)
        graph = quantised(graph, measured.ranges, measured.weights)
        if form.activation_bits > 8 and prepared.pixels is not None:
            # The converter measures the ranges of these, and that of the pixels must be 0..255.
            images = prepared.pixels.astype(np.float32)
            images[0, 0, 0], images[0, -1, -1] = 0, 255
    function = concrete_function(graph, prepared.normalisation, whole_numbers=form.activation_bits == 8)
    return converter.convert(function, [variable.value for variable in graph.variables], form.settings, images)


def _keep_within(
    max_drop: float, prepared: Prepared, form: Form, model: keras.Model, pixels: np.ndarray, judged: Images
) -> tuple[list[str], dict[str, Any]]:
    """The fewest parts, noisiest first, that must stay in floating point for a drop; and what that costs.

    Raises ExportError where even all of them do not do.
    """
    assert prepared.measured is not None
    given = pixels if prepared.pixels is None else prepared.pixels
    noise = sensitivity(prepared.graph, prepared.measured, prepared.inputs(given))
    ranked = list(noise)
    truth = float(np.mean(scores_of(model)(pixels).argmax(axis=-1) == judged.labels))
    tried: dict[int, dict[str, Any]] = {}

    def is_enough(count: int) -> bool:
        content = build(prepared, form, ranked[:count])
        file = TfliteFile(content, f"with {count} parts in float")
        top1 = float(np.mean(file.scores(pixels).argmax(axis=-1) == judged.labels))
        latency = measure(lambda: file.answer(pixels[0]))
        tried[count] = {"drop": 100 * (truth - top1), "size_bytes": len(content), "median_ms": latency.median_ms}
        return tried[count]["drop"] <= max_drop + 1e-9

    count = bisect.bisect_left(range(len(ranked) + 1), True, key=is_enough)
    if count > len(ranked):
        raise ExportError(
            f"max_drop={max_drop}: with everything in floating point the file still loses "
            f"{tried[len(ranked)]['drop']:.2f} points on {judged.name!r}: use quantize='float16'"
        )
    if 0 not in tried:
        is_enough(0)  # what the price is compared with
    return ranked[:count], {
        "parts": ranked[:count],
        "max_drop": max_drop,
        "chosen_on": judged.name,
        "noise": noise,
        "tried": {str(parts): tried[parts] for parts in sorted(tried)},
    }


def _check_contract(file: TfliteFile, form: Form, *, mixed: bool) -> None:
    """An int8 file must hold integers alone and take raw bytes; the converter gives other things without a word.

    mixed: some parts are to be in floating point.
    """
    if file.input["dtype"].__name__ != form.border:
        raise ExportError(f"the converter gave an input of {file.input['dtype'].__name__}, not {form.border}")
    if form.border != "uint8":
        return
    if file.input["quantization"] != (1.0, 0):
        raise ExportError(
            f"the converter gave an input of scale and zero point {file.input['quantization']}, not (1, 0)"
        )
    if file.float_tensors and not mixed:
        raise ExportError(f"the converter left floating-point tensors: {', '.join(file.float_tensors[:3])}")


def _write(path: Any, content: bytes) -> None:
    path.write_bytes(content)
