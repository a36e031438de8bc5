"""Whether Apple's Neural Engine takes a Core ML package, by what is documented: nothing was run.

Each rule stands with its source; what no first-hand source says is "unverified".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from keras_resnet.export.mil import Package
from keras_resnet.export.mil_ops import OPERATIONS
from keras_resnet.export.npu import DOCUMENTED, Finding, Remark

APPLE = "https://apple.github.io/coremltools"
TYPED, SHAPES, SIZES, PERFORMANCE, FORMAT = ENGINE_SOURCES = (
    f"{APPLE}/docs-guides/source/typed-execution.html",
    f"{APPLE}/docs-guides/source/faqs.html",
    f"{APPLE}/docs-guides/source/mlmodel-utilities.html",
    f"{APPLE}/docs-guides/source/opt-quantization-perf.html",
    f"{APPLE}/mlmodel/Format/Model.html",
)
IOS_OF = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18", 10: "iOS 26"}  # by the version of the format
LAYERS = ("conv", "linear", "matmul", "batch_norm")
BIG = 1_000_000_000  # bytes
MOST_SHAPES = 128
HALF = np.finfo(np.float16)


def by_neural_engine(package: Package, size_bytes: int, peaks: Mapping[str, float] | None = None) -> Finding:
    """What Apple's guide says of a package on the Neural Engine.

    peaks: the largest magnitude of each value, see `peaks_of`; None where no images were given.
    """
    reasons: list[Remark] = []
    remarks: list[Remark] = []
    wide = [step for step in package.steps if step.kind in LAYERS and step.dtype == np.float32]
    if wide:
        reasons.append(
            Remark(
                f"{len(wide)} layers compute in float32, such as {wide[0].name!r}: the engine computes in float16",
                TYPED,
            )
        )
    if not 1 <= package.shapes <= MOST_SHAPES:
        many = package.shapes or "a range of"
        reasons.append(Remark(f"it takes {many} sizes: at most {MOST_SHAPES}, named ones", SHAPES))
    for text in _half_range(package):
        reasons.append(Remark(text, TYPED))
    for name, peak in (peaks or {}).items():
        if not peak <= float(HALF.max):
            reasons.append(Remark(f"{name!r} reaches {peak:g}, float16 ends at 65504", TYPED))
    if size_bytes > BIG:
        reasons.append(Remark("larger than 1 GB, which an iPhone wants split", SIZES))

    system = IOS_OF.get(package.specification, f"version {package.specification} of the format")
    kinds = {step.kind for step in package.steps}
    remarks.append(Remark(f"runs from {system} on", FORMAT))
    if "quantize" in kinds:
        remarks.append(
            Remark("8-bit activations are faster from A17 Pro and M4 on; older ones may be slower", PERFORMANCE)
        )
    elif any(kind.startswith("constexpr_") for kind in kinds):
        remarks.append(
            Remark("compressed weights save memory; the engine computes in float16 all the same", PERFORMANCE)
        )
    blocks = [
        step for step in package.steps if step.kind == "constexpr_blockwise_shift_scale" and _in_blocks(step.inputs)
    ]
    if blocks:
        remarks.append(
            Remark("weights in blocks suit the GPU; the engine wants a scale a channel or a palette", PERFORMANCE)
        )
    if peaks is None:
        remarks.append(Remark("values on images were not looked at: give some as calibration"))
    if any(step.dtype == np.float32 and step.kind not in (*LAYERS, "cast") for step in package.steps):
        remarks.append(Remark("whether it takes the float32 arithmetic at the border is not known"))
    remarks += [
        Remark(f"{text}: said second-hand (github.com/hollance/neural-engine)") for text in _second_hand(package)
    ]
    unknown = sorted(kinds - OPERATIONS.keys() - {"classify"})
    remarks += [Remark(f"whether it takes the operation {kind!r} is not known") for kind in unknown]
    remarks.append(Remark("limits of axes, of channel counts and of alignment: no first-hand source is known"))
    whole = False if reasons else None if unknown else True
    return Finding("Apple Neural Engine", whole, DOCUMENTED, tuple(reasons), tuple(remarks), ENGINE_SOURCES)


def peaks_of(package: Package, pixels: np.ndarray) -> dict[str, float]:
    """The largest magnitude of each floating-point value on images, uint8 [n, height, width, 3]."""
    found: dict[str, float] = {}
    for step, value in package.replay(pixels):
        if step.dtype is not None and step.dtype.kind == "f" and value.size:
            found[step.name] = float(np.abs(value.astype(np.float32)).max())  # NaN stays NaN
    return found


def _half_range(package: Package) -> Iterator[str]:
    """Constants that float16 cannot hold."""
    for step in package.steps:
        for key, given in step.inputs.items():
            if isinstance(given, np.ndarray) and given.dtype.kind == "f" and given.size:
                peak = float(np.abs(given.astype(np.float32)).max())
                if not peak <= float(HALF.max):
                    yield f"{key} of {step.kind} {step.name!r} reaches {peak:g}, float16 ends at 65504"


def _in_blocks(inputs: Mapping[str, object]) -> bool:
    """Whether weights have several scales along their input channels."""
    scale = inputs.get("scale")
    return isinstance(scale, np.ndarray) and scale.ndim > 1 and max(scale.shape[1:]) > 1


def _second_hand(package: Package) -> Iterator[str]:
    for step in package.steps:
        if step.kind == "conv" and np.max(step.inputs.get("dilations", 1)) > 1:
            yield f"no dilated convolution ({step.name!r})"
        if step.kind in ("max_pool", "avg_pool"):
            sides, strides = step.inputs.get("kernel_sizes", 1), step.inputs.get("strides", 1)
            if np.max(sides) > 13 or np.max(strides) > 2:
                yield f"pooling of at most 13 pixels, in steps of at most 2 ({step.name!r})"
        if step.kind.startswith("gather"):
            yield f"no {step.kind} ({step.name!r})"
