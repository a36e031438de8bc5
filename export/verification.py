"""Does an exported file answer as the model does: run both over the same images and compare."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.errors import ExportError, InputError, UsageError, missing_extra
from keras_resnet.export import golden
from keras_resnet.export.answers import answering
from keras_resnet.export.concrete import EMBEDDING, answers_with, labels_of, open_model
from keras_resnet.export.latency import Latency, measure
from keras_resnet.export.mil import Package, open_package
from keras_resnet.export.mil import layer_noise as package_noise
from keras_resnet.export.native import Native, run_here
from keras_resnet.export.noise import IMAGES, as_input, decibels, layer_noise, worst
from keras_resnet.export.probe import probe
from keras_resnet.export.tflite_graph import Graph, read_graph
from keras_resnet.export.tflite_metadata import associated_files
from keras_resnet.preprocessing import preprocessing_of
from keras_resnet.training.data import Data, open_images
from keras_resnet.training.evaluation import for_network, scores_of, summarise, wilson_interval

MIN_AGREEMENT = 0.9
MIN_COSINE = 0.98  # of embeddings, the mean; noise of a fifth of the signal has that
REFERENCE_IMAGES = 4  # reference kernels are some ten times slower
MANIFEST = "manifest.json"  # inside a .tflite file
SHOWN = 10  # disagreements that are told
BATCH = 16  # images that the network answers at once: an export takes no more memory than it must


@dataclass(frozen=True)
class Verification:
    """A file against its model on the same labelled images. Fractions are 0..1, intervals 95 %, scores as given out."""

    data: str
    count: int
    agreement: float
    agreement_interval: tuple[float, float]
    model_top1: float
    model_interval: tuple[float, float]
    file_top1: float
    file_interval: tuple[float, float]
    largest_score_difference: float
    latency: Latency | None  # None: a file that does not run here
    kernels: Kernels | None = None  # None: a format of one implementation
    layer_snr_db: Mapping[str, float] | None = None  # signal over noise of each layer, in the order of the file
    native: Native | None = None  # Core ML itself, on macOS alone
    disagreements: tuple[Disagreement, ...] = ()  # at most ten, those first of which the network was surest

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Disagreement:
    """An image, by its number, that file and network answer differently: their classes, and their scores of them."""

    image: int
    label: int
    by_network: int
    network_score: float
    by_file: int
    file_score: float


@dataclass(frozen=True)
class Similarity:
    """The embeddings of a file against those of its model on the same images: cosine similarity, -1..1."""

    data: str
    count: int
    mean_cosine: float
    worst_cosine: float
    largest_difference: float  # of one number
    latency: Latency | None
    kernels: Kernels | None = None
    layer_snr_db: Mapping[str, float] | None = None
    native: Native | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Kernels:
    """How the accelerated kernels that phones run compare with TFLite's reference kernels on the same images.

    agreeing: images of the same best class, of an embedding those of a cosine similarity of at least `MIN_COSINE`.
    """

    count: int
    agreeing: int
    largest_difference: float


class TfliteFile:
    """A .tflite file with one image in and one vector of scores out, run by ai-edge-litert on the CPU.

    source: bytes that were made in this process, or a path to a file that anybody made: such a file is checked, and
    opened in another process, before this one touches it. name: of the file, for messages.
    Raises MissingExtraError without the extra `tflite`, InputError where the file cannot be run.
    """

    def __init__(self, source: bytes | Path, name: str, threads: int = 1, *, reference: bool = False) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise missing_extra("running a .tflite file", "tflite", error) from error
        self.name = name
        self.content = source if isinstance(source, bytes) else source.read_bytes()
        if not isinstance(source, bytes):
            read_graph(self.content, name)
            probe(self.content, name)
        try:
            kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
            self.interpreter = Interpreter(
                model_content=self.content, num_threads=threads, experimental_op_resolver_type=kernels
            )
            self.interpreter.allocate_tensors()
            inputs, outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{name!r} cannot be run as a .tflite file: {str(error).splitlines()[0]}") from error
        if len(inputs) != 1 or len(outputs) != 1:
            raise InputError(f"{name!r} has {len(inputs)} inputs and {len(outputs)} outputs: one of each is expected")
        self.input, self.output = inputs[0], outputs[0]
        taken, given = self.input["shape"].tolist(), self.output["shape"].tolist()
        types = (np.uint8, np.int8, np.float32)
        if self.input["dtype"] not in types or len(taken) != 4 or taken[0] != 1 or taken[3] != 3:
            raise InputError(
                f"{name!r} takes {self.input['dtype'].__name__} {taken}: an image, uint8, int8 or float32 "
                "[1, height, width, 3], is expected"
            )
        if len(given) != 2 or given[0] != 1:
            raise InputError(f"{name!r} gives {given}: one score a class, or an embedding, [1, length], is expected")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image that it takes."""
        height, width = self.input["shape"][1:3]
        return int(height), int(width)

    @property
    def answers(self) -> str:
        """What its vector is: "softmax", "sigmoid" or "logits", or "embedding" where its output is called so."""
        return answers_of(read_graph(self.content, self.name))

    @property
    def float_tensors(self) -> list[str]:
        """Names of the tensors that hold floating-point numbers: none in a full-integer file."""
        details = self.interpreter.get_tensor_details()
        return [tensor["name"] for tensor in details if tensor["dtype"] in (np.float16, np.float32)]

    def answer(self, pixels: np.ndarray) -> np.ndarray:
        """Scores, float32 [classes], or embedding, of one image, uint8 [height, width, channels]."""
        try:
            self.interpreter.set_tensor(self.input["index"], as_input(pixels, self.input)[None])
            self.interpreter.invoke()
            raw = self.interpreter.get_tensor(self.output["index"])[0]
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{self.name!r} cannot answer an image: {str(error).splitlines()[0]}") from error
        scale, zero_point = self.output["quantization"]
        return (raw.astype(np.float32) - zero_point) * scale if scale else raw.astype(np.float32)

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """Scores, float32 [n, classes], of images, uint8 [n, height, width, channels]."""
        return np.stack([self.answer(image) for image in pixels])


def answers_of(graph: Graph) -> str:
    """What the vector that a .tflite file gives is, by its output's name and its last operation."""
    if any(graph.names.get(tensor.name, tensor.name) == EMBEDDING for tensor in graph.outputs):
        return EMBEDDING
    kinds = [one.kind for one in graph.operations if one.kind not in ("QUANTIZE", "DEQUANTIZE")]
    return {"SOFTMAX": "softmax", "LOGISTIC": "sigmoid"}.get(kinds[-1] if kinds else "", "logits")


def compare(
    file_scores: np.ndarray, model_scores: np.ndarray, labels: np.ndarray, data: str, latency: Latency | None
) -> Verification:
    """The verification of given scores, each float [n, classes], against labels, int [n]."""
    classes = [str(i) for i in range(model_scores.shape[-1])]
    file, model = file_scores.argmax(axis=-1), model_scores.argmax(axis=-1)
    by_file, by_model = (summarise(labels, predictions, classes, data) for predictions in (file, model))
    agreeing = int(np.sum(file == model))
    return Verification(
        data=data,
        count=len(labels),
        agreement=agreeing / len(labels),
        agreement_interval=wilson_interval(agreeing, len(labels)),
        model_top1=by_model.top1,
        model_interval=by_model.interval,
        file_top1=by_file.top1,
        file_interval=by_file.interval,
        largest_score_difference=float(np.abs(file_scores - model_scores).max()),
        latency=latency,
        disagreements=_disagreements(file_scores, model_scores, labels),
    )


def _disagreements(file: np.ndarray, model: np.ndarray, labels: np.ndarray) -> tuple[Disagreement, ...]:
    """Images that two tables of scores, float [n, classes], answer differently."""
    by_file, by_model = file.argmax(axis=-1), model.argmax(axis=-1)
    differing = sorted(np.flatnonzero(by_file != by_model), key=lambda i: (-model[i].max(), i))
    return tuple(
        Disagreement(
            image=int(i),
            label=int(labels[i]),
            by_network=int(by_model[i]),
            network_score=float(model[i].max()),
            by_file=int(by_file[i]),
            file_score=float(file[i].max()),
        )
        for i in differing[:SHOWN]
    )


def compare_embeddings(file: np.ndarray, model: np.ndarray, data: str, latency: Latency | None) -> Similarity:
    """The verification of given embeddings, each float [n, length]."""
    found = golden.cosines(file, model)
    return Similarity(
        data=data,
        count=len(found),
        mean_cosine=float(found.mean()),
        worst_cosine=float(found.min()),
        largest_difference=float(np.abs(file - model).max()),
        latency=latency,
    )


def _judged(
    scores: np.ndarray,
    expected: np.ndarray,
    model: keras.Model,
    labels: np.ndarray,
    data: str,
    latency: Latency | None,
    noise: Mapping[str, float],
    kernels: Kernels | None = None,
) -> Verification | Similarity:
    """What a file answers, against what its model does."""
    more: dict[str, Any] = {
        "kernels": kernels,
        "layer_snr_db": {layer: round(decibels(ratio), 2) for layer, ratio in noise.items()},
    }
    if answers_with(model) == EMBEDDING:
        return replace(compare_embeddings(scores, expected, data, latency), **more)
    return replace(compare(scores, expected, labels, data, latency), **more)


def verify_tflite(
    content: bytes,
    name: str,
    model: keras.Model,
    pixels: np.ndarray,
    labels: np.ndarray,
    data: str,
    min_agreement: float | None = None,
) -> Verification | Similarity:
    """Run a .tflite file and its model over the same pixels, and a few layer by layer and with reference kernels.

    Raises ExportError where they agree on too few.
    """
    file = TfliteFile(content, name)
    latency = measure(lambda: file.answer(pixels[0]))
    scores = file.scores(pixels)
    few = min(REFERENCE_IMAGES, len(pixels))
    plain = TfliteFile(content, name, reference=True).scores(pixels[:few])
    if answers_with(model) == EMBEDDING:
        alike = golden.cosines(plain, scores[:few]) >= MIN_COSINE
    else:
        alike = plain.argmax(axis=-1) == scores[:few].argmax(axis=-1)
    kernels = Kernels(few, int(np.sum(alike)), float(np.abs(plain - scores[:few]).max()))
    noise = layer_noise(content, model, pixels[:IMAGES])
    expected = scores_of(model, BATCH)(pixels)
    result = _judged(scores, expected, model, labels, data, latency, noise, kernels)
    check_agreement(result, scores, min_agreement)
    return result


def check_share(least: float | None) -> None:
    """Raise UsageError where a least agreement is no fraction."""
    if least is not None and not 0 <= least <= 1:
        raise UsageError(f"min_agreement={least} must be a fraction from 0 to 1: 0.98 for 98 % of the images")


def check_agreement(result: Verification | Similarity, scores: np.ndarray, least: float | None = None) -> None:
    """Raise ExportError where a file and its model agree on too few images.

    scores: the file's; least: fraction of the images, default `MIN_AGREEMENT`; of embeddings the mean of their cosine
    similarities, default `MIN_COSINE`.
    """
    is_embedding = isinstance(result, Similarity)
    reached = result.mean_cosine if isinstance(result, Similarity) else result.agreement
    if least is None:
        least = MIN_COSINE if is_embedding else MIN_AGREEMENT
    if reached >= least:
        return
    images = f"{result.count} images of {result.data!r}"
    given = np.unique(scores.argmax(axis=-1))
    if is_embedding:
        how = f"the embeddings of the file have a cosine similarity of {reached:.3f} to its model's on {images}"
        one, limit = "", f"{least:.3f}"
    else:
        how, limit = f"the file agrees with its model on {reached:.1%} of {images}", f"{least:.0%}"
        one = f" (it answers class {given[0]} to every one)" if len(given) == 1 and result.count > 1 else ""
    noisy = worst({layer: -level for layer, level in (result.layer_snr_db or {}).items()})
    layers = f"; most noise in {', '.join(f'{k} ({-v:.0f} dB)' for k, v in noisy.items())}" if noisy else ""
    raise ExportError(
        f"{how}{one}, below {limit}{layers}: calibrate on images like those it will see, or use quantize='float16'"
    )


def self_test(path: str | os.PathLike[str]) -> golden.SelfTest:
    """Let a .tflite file answer the pictures inside it, and compare with what it gave when it was made.

    Raises InputError where it cannot be run, or holds no such pictures.
    """
    file = Path(path)
    if file.suffix != ".tflite" or not file.is_file():
        raise InputError(f"file {str(path)!r} is no .tflite file: the others hold no test of themselves")
    return answer_own_pictures(TfliteFile(file, str(path)), str(path))


def answer_own_pictures(file: TfliteFile, name: str) -> golden.SelfTest:
    """The test inside an opened file."""
    files = associated_files(file.content, name)
    if golden.NAME not in files:
        raise InputError(f"{name!r} holds no test of itself: give the network and images to compare it with")
    return golden.replay(files[golden.NAME], file.scores, file.size, name)


def verify(
    path: str | os.PathLike[str],
    source: keras.Model | str | os.PathLike[str],
    data: Data,
    *,
    min_agreement: float | None = None,
) -> Verification | Similarity:
    """Compare a .tflite file, or a .mlpackage by replay, with the network that it was made from, on labelled images.

    path: the file; source: a model, run folder, `.keras` file or "VARIANT:WEIGHTS", whose scores are taken in the form
    that the file gives; data: what `open_images` takes, for an embedding of any classes. min_agreement: fraction of the
    images, default 0.9; of embeddings the mean cosine similarity, default 0.98.
    Raises UsageError, InputError for what cannot be read, ExportError where the two agree on too few images.
    """
    check_share(min_agreement)
    file = Path(path)
    if file.suffix == ".mlpackage":
        package = open_package(file)
    elif file.suffix != ".tflite" or not file.is_file():
        raise InputError(f"file {str(path)!r} is no .tflite file and no .mlpackage: give one that `export` wrote")
    else:
        package = None
    images = open_images(data)
    model = open_model(source)
    opened = package or TfliteFile(file, str(path))
    preprocessing = preprocessing_of(model)
    is_embedding = answers_with(model) == EMBEDDING
    if (opened.answers == EMBEDDING) != is_embedding:
        gives = ("an embedding", "scores") if is_embedding else ("scores", "an embedding")
        raise InputError(f"model {model.name!r} gives {gives[0]}, file {str(path)!r} {gives[1]}: it is another's")
    model = answering(model, None if is_embedding else opened.answers)
    if not is_embedding:
        images = for_network(images, model.outputs[0].shape[-1], labels_of(source))
    judged = (model, images.pixels(preprocessing), images.labels, images.name, min_agreement)
    if isinstance(opened, TfliteFile):
        return verify_tflite(opened.content, str(path), *judged)
    return verify_package(opened, *judged)


def verify_package(
    package: Package,
    model: keras.Model,
    pixels: np.ndarray,
    labels: np.ndarray,
    data: str,
    min_agreement: float | None = None,
) -> Verification | Similarity:
    """Replay a package and run its model over the same pixels; on macOS let Core ML answer them too.

    Raises ExportError where they agree on too few.
    """
    scores = package.answer(pixels)
    if scores.shape[1:] != model.outputs[0].shape[1:]:
        raise InputError(
            f"{package.path.name!r} gives {scores.shape[-1]} numbers, model {model.name!r} "
            f"{model.outputs[0].shape[-1]}: it is another's"
        )
    if not np.isfinite(scores).all():
        raise ExportError("the package gives scores that are no numbers: look for NaN weights, or use 'float32'")
    noise = package_noise(package, model, pixels[:IMAGES])
    expected = scores_of(model, BATCH)(pixels)
    result = _judged(scores, expected, model, labels, data, None, noise)
    check_agreement(result, scores, min_agreement)
    found = run_here(package, pixels, scores, expected)
    return _with_native(result, found, min_agreement)


def _with_native(
    result: Verification | Similarity, found: Native | None, least: float | None
) -> Verification | Similarity:
    """A verification with what Core ML itself answered. Raises ExportError where that is not what the network does."""
    if least is None:
        least = MIN_COSINE if isinstance(result, Similarity) else MIN_AGREEMENT
    if found is not None and found.agreement is not None and found.agreement < least:
        measure = (
            f"gives embeddings of a mean cosine similarity of {found.agreement:.3f}, below {least},"
            if isinstance(result, Similarity)
            else f"agrees with the network on {found.agreement:.1%} of {result.count} images, below {least:.0%},"
        )
        raise ExportError(
            f"Core ML itself {measure} though the replay of the package does not: please report this, with "
            "`keras-resnet verify --json`"
        )
    return replace(result, native=found)
