"""Core ML itself, where it is: a package answers through it, and its compute plan says which chips take what.

On macOS alone; elsewhere the replay (`mil.py`) is all there is. Source: coremltools 9.0, `MLModel.predict` and
`models.compute_plan`. Written without a Mac: its tests run these lines on one, and elsewhere with a stand-in.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from keras_resnet.export.golden import cosines
from keras_resnet.export.latency import Latency, measure
from keras_resnet.export.mil import Package

ENGINE = "NeuralEngine"


@dataclass(frozen=True)
class Native:
    """How Core ML answers the images that a package is judged on.

    agreement: with the network, share of the images of the same class, of embeddings the mean cosine similarity;
    largest_difference: of a score, from the replay's; devices: how many operations each chip is to run, None where the
    system does not say; left: those that the Neural Engine does not take; remark: why nothing was run, or empty.
    """

    agreement: float | None
    largest_difference: float | None
    latency: Latency | None
    devices: Mapping[str, int] | None = None
    left: tuple[str, ...] = ()
    remark: str = ""


def run_here(package: Package, pixels: np.ndarray, replayed: np.ndarray, expected: np.ndarray) -> Native | None:
    """Let Core ML answer images, uint8 RGB [n, height, width, 3]; None on other systems than macOS.

    replayed, expected: float [n, length], of the replay and of the network. What Core ML cannot load, such as a package
    for a newer system, is a remark.
    """
    if sys.platform != "darwin":
        return None
    import coremltools

    try:
        model = coremltools.models.MLModel(str(package.path))
        answered = np.stack([_answer(model, package, image) for image in pixels])
        latency = measure(lambda: _answer(model, package, pixels[0]))
    except Exception as error:  # what it raises for a package that this system cannot run is not documented
        return Native(None, None, None, remark=next(iter(str(error).splitlines()), type(error).__name__))
    devices, left = _plan(model)
    if package.answers == "embedding":
        agreement = float(cosines(answered, expected).mean())
    else:
        agreement = float(np.mean(answered.argmax(axis=-1) == expected.argmax(axis=-1)))
    return Native(agreement, float(np.abs(answered - replayed).max()), latency, devices, left)


def _answer(model: Any, package: Package, image: np.ndarray) -> np.ndarray:
    """Core ML's vector for one image, float32 [length]; of a classifier in the order of its labels."""
    given: Any = Image.fromarray(image)
    if not package.is_pixels:
        array = image[..., ::-1] if package.order == "bgr" else image
        array = array.transpose(2, 0, 1) if package.channels_first else array
        given = array[None].astype(np.float32)
    outputs = model.predict({package.image: given})
    for value in outputs.values():
        if isinstance(value, dict):
            by_label = {str(label): score for label, score in value.items()}
            return np.asarray([by_label[label] for label in package.labels or ()], np.float32)
    return np.asarray(outputs[package.scores], np.float32).reshape(-1)


def _plan(model: Any) -> tuple[dict[str, int] | None, tuple[str, ...]]:
    """Operations by the chip that Core ML prefers, and those that the Neural Engine does not take.

    Since macOS 14.4; None and nothing before.
    """
    from coremltools.models.compute_plan import MLComputePlan

    try:
        plan = MLComputePlan.load_from_path(model.get_compiled_path())
        program = plan.model_structure.program
        operations = program.functions["main"].block.operations
    except Exception:  # an older system has no such plan
        return None, ()
    devices: Counter[str] = Counter()
    left = []
    for operation in operations:
        found = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if found is None:  # a constant
            continue
        devices[_name(found.preferred_compute_device)] += 1
        if ENGINE not in map(_name, found.supported_compute_devices):
            left.append(operation.operator_name)
    return dict(devices), tuple(left)


def _name(device: Any) -> str:
    """CPU, GPU or NeuralEngine: coremltools' classes are called MLCPUComputeDevice and so on."""
    return type(device).__name__.removeprefix("ML").removesuffix("ComputeDevice")
