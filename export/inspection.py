"""What a .tflite file or a Core ML package is, whoever made it, and which targets take the whole of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.export import neural_engine, npu
from keras_resnet.export.artifact import Artifact, made_of, manifest_within, size_of
from keras_resnet.export.calibration import calibration_pixels
from keras_resnet.export.mil import Package, open_package
from keras_resnet.export.probe import probe
from keras_resnet.export.report import size as readable
from keras_resnet.export.tflite_graph import Flat, Graph, Table, Tensor, read_graph
from keras_resnet.export.tflite_metadata import BUFFER, LABELS, associated_files
from keras_resnet.export.verification import MANIFEST
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.data import Data

SUFFIXES = (".tflite", ".mlpackage")
UNKNOWN = "not said in the file: ask who made it what it wants to be given"


@dataclass(frozen=True)
class Inspection:
    """What a file is. pixels: what it wants to be given, in words; labels: how many; manifest: ours, None without."""

    file: str
    format: str
    size_bytes: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    pixels: str
    numbers: str  # what its weights and its values are kept in
    operations: Mapping[str, int]
    labels: int
    has_metadata: bool
    manifest: Mapping[str, Any] | None
    targets: tuple[npu.Finding, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        about = {
            "file": f"{self.file}, {self.format}, {readable(self.size_bytes)}",
            **{f"input {name}": what for name, what in self.inputs.items()},
            **{f"output {name}": what for name, what in self.outputs.items()},
            "pixels": self.pixels,
            "numbers": self.numbers,
            "operations": ", ".join(f"{kind} {count}" for kind, count in self.operations.items()),
            "labels": f"{self.labels:,}" if self.labels else "none",
            "metadata": "inside" if self.has_metadata else "none",
            "manifest": "none" if self.manifest is None else made_of(self.manifest),
        }
        width = max(map(len, about))
        lines = [f"{name:{width}}  {value}" for name, value in about.items()]
        lines += ["", f"{'target':30}  {'takes all':9}  how that is known"]
        for finding in self.targets:
            lines += npu.summary(finding)
        lines += ["", "sources of the rules"]
        lines += [f"{finding.target:30}  {source}" for finding in self.targets for source in finding.sources]
        return "\n".join(lines)


def inspect(path: str | os.PathLike[str], *, calibration: Data | None = None) -> Inspection:
    """What a .tflite file or a .mlpackage is, and whether each target takes the whole graph.

    The file may be anybody's: a .tflite file is checked, and opened in another process. calibration: images on which a
    package's values are compared with what float16 holds.
    Raises InputError for what is no such file or is damaged, MissingExtraError without the extra that reads it.
    """
    file = Path(path)
    if file.suffix == ".tflite" and file.is_file():
        return _inspect_tflite(file, str(path))
    if file.suffix == ".mlpackage":
        return _inspect_package(file, calibration)
    raise InputError(f"file {str(path)!r} is no .tflite file and no .mlpackage: check the path")


def _inspect_tflite(file: Path, name: str) -> Inspection:
    content = file.read_bytes()
    graph = read_graph(content, name)
    is_custom = any(one.is_custom for one in graph.operations)  # which the interpreter here cannot run
    coverage = None if is_custom else probe(content, name)
    files = associated_files(content, name)
    manifest = manifest_within(files.get(MANIFEST), name)
    return Inspection(
        file=file.name,
        format="TFLite",
        size_bytes=len(content),
        inputs={graph.names.get(tensor.name, tensor.name): str(tensor) for tensor in graph.inputs},
        outputs={graph.names.get(tensor.name, tensor.name): str(tensor) for tensor in graph.outputs},
        pixels=_pixels(graph, manifest, name),
        numbers=_numbers(graph),
        operations=dict(Counter(one.kind for one in graph.operations).most_common()),
        labels=len(files.get(LABELS, b"").splitlines()),
        has_metadata=BUFFER in graph.metadata,
        manifest=manifest,
        targets=(npu.by_xnnpack(graph, coverage), *npu.by_vela(content, graph, name), *npu.by_rules(graph)),
    )


def _inspect_package(file: Path, calibration: Data | None) -> Inspection:
    package = open_package(file, replayable=calibration is not None)
    peaks, bytes_ = None, size_of(file)
    if calibration is not None:
        side = min(package.size)
        preprocessing = replace(Preprocessing(), resize=round(side * 256 / 224), crop=side)
        peaks = neural_engine.peaks_of(package, calibration_pixels(calibration, preprocessing, package.size)[1])
    # The one beside it says more: what was measured once the package was there.
    manifest = Artifact(file).read() if Artifact(file).manifest.is_file() else package.manifest
    height, width = package.size
    kind = f"image, {package.order.upper()}" if package.is_pixels else "array"
    return Inspection(
        file=file.name,
        format="Core ML",
        size_bytes=bytes_,
        inputs={package.image: f"{kind} {height} x {width}"},
        outputs=_package_outputs(package),
        pixels="raw, 0 to 255, as an image holds them"
        if package.is_pixels
        else UNKNOWN
        if manifest is None
        else "raw, 0 to 255: it normalises by itself",
        numbers=_package_numbers(package),
        operations=dict(Counter({id(step.inputs): step.kind for step in package.steps}.values()).most_common()),
        labels=len(package.labels or ()),
        has_metadata=package.labels is not None,
        manifest=manifest,
        targets=(neural_engine.by_neural_engine(package, bytes_, peaks),),
    )


def _pixels(graph: Graph, manifest: Mapping[str, Any] | None, name: str) -> str:
    """What the input wants: as the manifest says it, or the metadata, or the input's own scale."""
    if manifest is not None:
        return "raw, 0 to 255: it normalises by itself"
    stated = _normalisation(graph, name)
    if stated is not None:
        mean, std = stated
        if set(mean) == {0.0} and set(std) == {1.0}:
            return "raw, 0 to 255: it normalises by itself, its metadata says"
        return f"(pixels - {list(mean)}) / {list(std)}, its metadata says"
    [given] = graph.inputs if len(graph.inputs) == 1 else [None]
    if given is not None and given.type == "uint8" and given.scales == (1.0,) and given.zero_points in ((), (0,)):
        return "raw, 0 to 255, as bytes: its scale of 1 says"
    return UNKNOWN


def _normalisation(graph: Graph, name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation that the metadata asks for: NormalizationOptions of its first input."""
    data = graph.metadata.get(BUFFER)
    if data is None:
        return None
    try:
        table: Table | None = Flat(data).root()
        for place in (3, 2):  # the first graph's, then the first input's
            parts = table.tables(place) if table is not None else []
            table = parts[0] if parts else None
        for unit in table.tables(4) if table is not None else []:
            options = unit.table(1)
            if unit.number(0, "B") == 1 and options is not None:
                return options.numbers(0, "f"), options.numbers(1, "f")
    except ValueError as error:
        raise InputError(f"the metadata inside {name!r} is damaged: {error}") from error
    return None


def _numbers(graph: Graph) -> str:
    """Types of weights and of computed values, most bytes first."""

    def types(tensors: list[Tensor]) -> str:
        sizes: Counter[str] = Counter()
        for tensor in tensors:
            sizes[tensor.type] += int(np.prod(tensor.shape, dtype=np.int64))
        return " and ".join(kind for kind, _ in sizes.most_common(2)) or "none"

    weights = [
        tensor
        for tensor in graph.tensors
        if tensor.is_constant and len(tensor.shape) > 1 and tensor.type not in ("int32", "int64")  # widths, axes
    ]
    computed = [tensor for tensor in graph.tensors if not tensor.is_constant]
    scales = ", a scale a channel" if any(tensor.axis is not None for tensor in weights) else ""
    return f"weights {types(weights)}{scales}; values {types(computed)}"


def _package_outputs(package: Package) -> dict[str, str]:
    given = [step.name for step in package.steps if step.kind == "classify"]
    if not given:
        return {package.scores: package.answers}
    return dict(zip(given, ("the best label", "a score a label"), strict=False))


def _package_numbers(package: Package) -> str:
    layers = {step.dtype.name for step in package.steps if step.kind in neural_engine.LAYERS and step.dtype is not None}
    packed = sorted({step.kind for step in package.steps if step.kind.startswith("constexpr_")})
    values = "int8 between layers" if any(step.kind == "quantize" for step in package.steps) else "not quantised"
    return f"layers {' and '.join(sorted(layers)) or 'none'}; weights {', '.join(packed) or 'plain'}; values {values}"
