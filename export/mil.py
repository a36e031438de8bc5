"""A Core ML package read back and replayed: its operations one by one, in NumPy, with the rounding that it declares.

Core ML itself runs on macOS alone. The replay is a verifier: coremltools reads the package that was written, weights
are decompressed by arithmetic of our own, and what the program says is computed.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError, missing_extra
from keras_resnet.export.artifact import manifest_within
from keras_resnet.export.graph import sole_readers
from keras_resnet.export.mil_ops import OPERATIONS, rounded
from keras_resnet.export.noise import relative
from keras_resnet.preprocessing import preprocess_input

BATCH_SIZE = 16
MANIFEST_KEY = "keras_resnet.manifest"
ONE_AT_A_TIME = threading.RLock()  # coremltools keeps the program that it builds, or reads, in globals
HANDING_ON = ("cast", "identity", "quantize", "dequantize", "reshape", "squeeze")
COLOURS = {20: "rgb", 30: "bgr"}  # of an image input, FeatureTypes.proto


@dataclass(frozen=True)
class Step:
    """One operation: its kind, what it reads (the name of a value, a tuple of names, or a constant), what it gives."""

    kind: str
    inputs: dict[str, Any]
    name: str
    dtype: np.dtype | None  # None: a label or a dictionary


@dataclass(frozen=True)
class Name:
    """A value that another step gives."""

    name: str


@dataclass(frozen=True)
class Package:
    """A program of one image in, one vector of scores out, ready to be replayed.

    image: its input's name; size: (height, width); order: of the colours, "rgb" or "bgr"; channels_first: how the
    input lies; is_pixels: whether it is declared as an image, so raw pixels; scores: the name of the value that is the
    answer; labels: None where it is no classifier; specification: the version of the format; shapes: how many sizes of
    input it takes, 0 for any in a range; manifest: what an export of ours says of it, None in others.
    """

    path: Path
    image: str
    size: tuple[int, int]
    order: str
    channels_first: bool
    is_pixels: bool
    steps: tuple[Step, ...]
    scores: str
    labels: tuple[str, ...] | None
    specification: int
    shapes: int
    manifest: Mapping[str, Any] | None

    @property
    def answers(self) -> str:
        """What its vector is: "softmax", "sigmoid" or "logits", or "embedding" where its output is called so."""
        if self.scores == "embedding":
            return "embedding"
        by_name, name = {step.name: step for step in self.steps}, self.scores
        while name in by_name and by_name[name].kind in HANDING_ON:
            name = next(_names(by_name[name]), "")  # none: it hands a constant on
        last = by_name[name].kind if name in by_name else ""
        return last if last in ("softmax", "sigmoid") else "logits"

    def answer(self, pixels: np.ndarray) -> np.ndarray:
        """Scores, float32 [n, classes], of images, uint8 RGB [n, height, width, 3]."""
        parts = []
        for start in range(0, len(pixels), BATCH_SIZE):
            for step, value in self.replay(pixels[start : start + BATCH_SIZE]):
                if step.name == self.scores:
                    parts.append(value.astype(np.float32))
        return np.concatenate(parts)

    def replay(self, pixels: np.ndarray) -> Iterator[tuple[Step, np.ndarray]]:
        """Every step with the value that it gives for a batch of images, in the order of the program.

        A value of float16 comes as float32 that holds no more than that. Raises InputError, which names the operation,
        for one that is not known or that does not fit its inputs.
        """
        if pixels.shape[1:3] != self.size:
            raise InputError(f"images of {pixels.shape[1:3]} pixels, {self.path.name!r} reads {self.size}")
        x = pixels[..., ::-1] if self.order == "bgr" else pixels
        x = x.transpose(0, 3, 1, 2) if self.channels_first else x
        values: dict[str, np.ndarray] = {self.image: x.astype(np.float32)}
        left = Counter(name for step in self.steps for name in _names(step))
        for step in self.steps:
            if step.dtype is None:
                continue
            result = self._weights[step.name] if step.name in self._weights else self._computed(step, values)
            values[step.name] = result
            yield step, result
            for name in _names(step):
                left[name] -= 1
                if not left[name] and name != self.scores:
                    values.pop(name, None)

    @cached_property
    def _weights(self) -> dict[str, np.ndarray]:
        """What is decompressed, once for all batches."""
        packed = [step for step in self.steps if step.kind.startswith("constexpr_") and step.dtype is not None]
        return {step.name: self._computed(step, {}) for step in packed}

    def _computed(self, step: Step, values: dict[str, np.ndarray]) -> np.ndarray:
        try:
            inputs = {key: _value(given, values) for key, given in step.inputs.items()}
            with np.errstate(over="ignore", invalid="ignore"):
                return rounded(OPERATIONS[step.kind](inputs), step.dtype or np.dtype(np.float32))
        except KeyError as error:
            raise InputError(f"{self.path.name!r}: operation {step.name!r} ({step.kind}) lacks {error}") from error
        except (ValueError, TypeError, IndexError, AttributeError, tf.errors.OpError) as error:
            said = _first_line(error)
            raise InputError(
                f"{self.path.name!r}: operation {step.name!r} ({step.kind}) cannot be replayed: {said}"
            ) from error


def open_package(path: str | os.PathLike[str], *, replayable: bool = True) -> Package:
    """Read a `.mlpackage` that holds an ML program with one image or array in.

    replayable: refuse one that holds an operation that the replay does not know.
    Raises InputError for what is no such package or is damaged, MissingExtraError without the extra `coreml`.
    """
    folder = Path(path)
    if folder.suffix != ".mlpackage" or not folder.is_dir():
        raise InputError(f"{str(path)!r} is no .mlpackage folder: give one that `export --format coreml` wrote")
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # that there is no runtime here is known
    try:
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load
    except ImportError as error:
        raise missing_extra("reading a Core ML package", "coreml", error) from error
    try:
        with ONE_AT_A_TIME:
            model = coremltools.models.MLModel(str(folder), skip_model_load=True)
            spec = model.get_spec()
            if spec.WhichOneof("Type") != "mlProgram":
                raise ValueError("it holds no ML program but an older kind of model")
            program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
            function = program.functions["main"]
            image, size, order, channels_first = _input_of(spec)
            steps = tuple(_steps(function))
        manifest = manifest_within(spec.description.metadata.userDefined.get(MANIFEST_KEY), str(path))
        scores, labels = _output_of(function, steps)
        if scores not in {step.name for step in steps}:
            raise ValueError(f"its output {scores!r} is not computed")
    except InputError:
        raise
    except Exception as error:  # foreign bytes bring up anything
        raise InputError(f"{str(path)!r} cannot be read as a Core ML package: {_first_line(error)}") from error
    unknown = [step for step in steps if step.dtype is not None and step.kind not in OPERATIONS]
    if unknown and replayable:
        raise InputError(
            f"{str(path)!r} holds the operation {unknown[0].kind!r} ({unknown[0].name!r}), which is not known here"
        )
    is_pixels = spec.description.input[0].type.WhichOneof("Type") == "imageType"
    return Package(
        folder,
        image,
        size,
        order,
        channels_first,
        is_pixels,
        steps,
        scores,
        labels,
        spec.specificationVersion,
        _shapes(spec.description.input[0].type),
        manifest,
    )


def _shapes(kind: Any) -> int:
    """How many sizes an input may have; 0: any in a range."""
    if kind.WhichOneof("Type") == "imageType":
        flexible = kind.imageType.WhichOneof("SizeFlexibility")
        return {None: 1, "enumeratedSizes": len(kind.imageType.enumeratedSizes.sizes)}.get(flexible, 0)
    flexible = kind.multiArrayType.WhichOneof("ShapeFlexibility")
    return {None: 1, "enumeratedShapes": len(kind.multiArrayType.enumeratedShapes.shapes)}.get(flexible, 0)


def _input_of(spec: Any) -> tuple[str, tuple[int, int], str, bool]:
    """Name, (height, width), order of the colours, and whether the channels come first."""
    features = list(spec.description.input)
    if len(features) != 1:
        raise ValueError(f"it has {len(features)} inputs, one image is expected")
    [feature] = features
    if feature.type.WhichOneof("Type") == "imageType":
        kind = feature.type.imageType
        if kind.colorSpace not in COLOURS:
            raise ValueError(f"its image {feature.name!r} is not in colour")
        return feature.name, (kind.height, kind.width), COLOURS[kind.colorSpace], True
    shape = list(feature.type.multiArrayType.shape)
    if len(shape) != 4 or shape[0] != 1:
        raise ValueError(f"its input {feature.name!r} of shape {shape} is no image [1, height, width, channels]")
    if shape[1] in (1, 3) and shape[3] not in (1, 3):
        return feature.name, (shape[2], shape[3]), "rgb", True
    return feature.name, (shape[1], shape[2]), "rgb", False


def _steps(function: Any) -> Iterator[Step]:
    from coremltools.converters.mil.mil import types

    for operation in function.operations:
        if operation.op_type == "const":
            continue
        inputs = {key: _given(var) for key, var in operation.inputs.items() if var is not None}
        for output in operation.outputs:
            is_number = types.is_tensor(output.sym_type) or types.is_scalar(output.sym_type)
            is_number = is_number and not types.is_str(output.dtype)
            dtype = np.dtype(types.nptype_from_builtin(output.dtype)) if is_number else None
            yield Step(operation.op_type, inputs, output.name, dtype)


def _given(var: Any) -> Any:
    """A constant, the name of a value, or a tuple of both; constants of float16 as float32, which is computed with."""
    if isinstance(var, (tuple, list)):
        return tuple(_given(one) for one in var)
    is_constant = var.op is not None and var.op.op_type == "const"
    if not is_constant:
        return Name(var.name)
    half = isinstance(var.val, np.ndarray) and var.val.dtype == np.float16
    return var.val.astype(np.float32) if half else var.val


def _value(given: Any, values: dict[str, np.ndarray]) -> Any:
    if isinstance(given, tuple):
        return tuple(_value(one, values) for one in given)
    return values[given.name] if isinstance(given, Name) else given


def _names(step: Step) -> Iterator[str]:
    for given in step.inputs.values():
        for one in given if isinstance(given, tuple) else (given,):
            if isinstance(one, Name):
                yield one.name


def _output_of(function: Any, steps: Sequence[Step]) -> tuple[str, tuple[str, ...] | None]:
    """The value that is the answer, and the labels of its numbers."""
    for step in steps:
        if step.kind == "classify":
            labels = tuple(str(label) for label in step.inputs["classes"])
            return step.inputs["probabilities"].name, labels
    if len(function.outputs) != 1:
        raise ValueError(f"it has {len(function.outputs)} outputs, one is expected")
    return function.outputs[0].name, None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def layer_noise(package: Package, model: keras.Model, pixels: np.ndarray) -> dict[str, float]:
    """How far each layer's values are from the Keras model's, in the order of the program: noise over signal, rms.

    pixels: uint8 [n, height, width, 3]. A layer is found by its name, which coremltools keeps within its own; layers
    that became a part of another are not there: a convolution is what its normalisation gives where that went into it.
    "scores" comes last, and alone where coremltools has divided values inside a residual sum by a scale, which then is
    1.
    """
    layers = {layer.name for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)}
    found = {name: value for step, value in package.replay(pixels) if (name := layer_of(step.name, layers))}
    scores = package.answer(pixels)
    scaled = any(step.kind == "dequantize" and np.all(step.inputs["scale"] == 1) for step in package.steps)
    watched = [] if scaled else [name for name in found if name != model.layers[-1].name]
    normalised = {
        name: reader.output
        for name, reader in sole_readers(model).items()
        if isinstance(reader, keras.layers.BatchNormalization) and reader.name not in found
    }
    outputs = [normalised.get(name, model.get_layer(name).output) for name in watched]
    network = keras.Model(model.inputs[0], [*outputs, model.outputs[0]])
    answered = network(preprocess_input(pixels, model), training=False)
    values = [np.asarray(value) for value in keras.tree.flatten(answered)]
    noise = {}
    for name, expected in zip(watched, values[:-1], strict=True):
        value = found[name].astype(np.float32)
        value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        if value.shape == expected.shape:
            noise[name] = relative(value, np.asarray(expected))
    return {**noise, "scores": relative(scores, np.asarray(values[-1]))}


def layer_of(name: str, layers: Collection[str]) -> str | None:
    """The longest name of a layer that stands in that of a value: resnet18_1_stage1_block1_out_1_Relu_cast_fp16."""
    words = re.split("[_/]", name)
    for length in range(len(words) - 1, 0, -1):
        for start in range(len(words) - length):  # what the layer computes stands behind its name
            if (found := "_".join(words[start : start + length])) in layers:
                return found
    return None
