"""Whether a target takes the whole graph of a file, and why not; of Core ML packages `neural_engine` says so.

Every answer says what it rests on: XNNPACK is measured, Arm Ethos-U compiled by Arm's own compiler; for all others
documented rules are looked at, each with its source, and nothing was run; what no first-hand source says is
"unverified".
"""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.export.probe import Coverage
from keras_resnet.export.tflite_graph import Graph, Operation, Tensor, read_graph, uses

MEASURED, COMPILED, NOT_RUN = "measured here", "compiled here, estimates of vela", "not run here"
DOCUMENTED, UNVERIFIED = "documented, not run", "unverified"
VELA_LIMIT_S = 600
ETHOS_U = ("ethos-u55-256", "ethos-u85-512")

LITERT = "https://github.com/google-ai-edge/LiteRT/blob"
GPU_SOURCE = f"{LITERT}/34ec5badbbbfd4d2147d1362f299f58843f84dfc/tflite/delegates/gpu/common/model_builder.cc"
EDGE_TPU_SOURCE = "https://coral.ai/docs/edgetpu/models-intro"
QUALCOMM_SOURCE = (
    f"{LITERT}/8c7e6a8058f0815c25fa0129c309a04da6860dff/litert/vendors/qualcomm/compiler/qnn_compose_graph.cc, "
    f"{LITERT}/d87a6c85c54632eaa18d88de2cdf4e69a1c626d7/litert/vendors/qualcomm/compiler/qnn_compiler_plugin_test.cc"
)
MEDIATEK = f"{LITERT}/07d751eb0ab1d165ee0838d613d2f66d80c0b7ad/litert/vendors/mediatek/compiler"
MEDIATEK_TYPES = (
    f"{LITERT}/0d204b19b9c1172c094f54f8fb95deadfcbc32f1/litert/vendors/mediatek/compiler/legalizations/neuron_utils.cc"
)
TENSOR_SOURCE = (
    f"{LITERT}/067f39fdc4b99d65bff7ec64b9f9b79e1cc4b4ab/litert/vendors/google_tensor/compiler/compiler_plugin.cc"
)


@dataclass(frozen=True)
class Remark:
    """Something that speaks against a target, or is to be known; no source: no first-hand one is known."""

    text: str
    source: str = ""


@dataclass(frozen=True)
class Finding:
    """What is known of one target. takes_whole: None where nothing was found out; figures: measured, units in names."""

    target: str
    takes_whole: bool | None
    basis: str
    reasons: tuple[Remark, ...] = ()  # why not
    remarks: tuple[Remark, ...] = ()
    sources: tuple[str, ...] = ()  # of the rules that were looked at
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A demand of a target: what of a graph does not meet it, in words; source: where it is documented."""

    broken_by: Callable[[Graph], Iterator[str]]
    source: str = ""


def only_operations(names: str) -> Callable[[Graph], Iterator[str]]:
    known = frozenset(names.split())
    return lambda graph: (
        f"{one} is not in its list" for one in graph.operations if one.is_custom or one.kind not in known
    )


def no_operations(names: str) -> Callable[[Graph], Iterator[str]]:
    refused = frozenset(names.split())
    return lambda graph: (f"{one} is refused" for one in graph.operations if one.is_custom or one.kind in refused)


def only_types(names: str, constants: str) -> Callable[[Graph], Iterator[str]]:
    """Types that computed tensors may have, and those that constants may have besides."""
    computed, constant = frozenset(names.split()), frozenset(f"{names} {constants}".split())

    def broken(graph: Graph) -> Iterator[str]:
        for operation, tensor in uses(graph):
            if tensor.type not in (constant if tensor.is_constant else computed):
                yield f"{operation} works on {tensor.type}"

    return broken


def static_shapes(graph: Graph) -> Iterator[str]:
    yield from (f"{tensor.name!r} has a dynamic shape" for tensor in graph.tensors if tensor.is_dynamic)


def at_most_axes(most: int) -> Callable[[Graph], Iterator[str]]:
    def broken(graph: Graph) -> Iterator[str]:
        for operation, tensor in uses(graph):
            if len(tensor.shape) > most:
                yield f"{operation} works on {len(tensor.shape)} axes"

    return broken


def three_inner_axes(graph: Graph) -> Iterator[str]:
    for operation, tensor in uses(graph):
        if not tensor.is_constant and math.prod(tensor.shape[:-3]) > 1:
            yield f"{operation} has more than 1 outside the three inner axes: {list(tensor.shape)}"


def no_activation(graph: Graph) -> Iterator[str]:
    yield from (f"{one} has a fused activation" for one in graph.operations if one.has_activation)


def short_softmax(graph: Graph) -> Iterator[str]:
    for one, given in _of_kind(graph, "SOFTMAX"):
        shape = given.shape
        if math.prod(shape) != shape[-1] or shape[-1] > 16_000:
            yield f"{one} is over {list(shape)}: one axis of 16,000 at most"


def unit_strides(graph: Graph) -> Iterator[str]:
    for one, _ in _of_kind(graph, "STRIDED_SLICE"):
        strides = _constant(one, 3)
        if strides is None or (strides != 1).any():
            yield f"{one} steps over values"


def no_batch_padding(graph: Graph) -> Iterator[str]:
    for one, _ in _of_kind(graph, "PAD"):
        widths = _constant(one, 1)
        if widths is None or widths.ravel()[:2].any():
            yield f"{one} pads the batch, or by what it computes"


def mean_over_image(graph: Graph) -> Iterator[str]:
    for one, given in _of_kind(graph, "MEAN"):
        axes, shape = _constant(one, 1), given.shape
        places = set() if axes is None else {int(axis) % len(shape) for axis in axes.ravel()}
        if axes is None or 0 in places or (len(shape) - 1 in places and shape[-1] % 4):
            yield f"{one} is over the batch, over channels that are no multiple of 4, or over axes that it computes"


def grouped_convolutions(graph: Graph) -> Iterator[str]:
    for one, given in _of_kind(graph, "CONV_2D"):
        kernel = one.inputs[1]
        if kernel is not None and given.shape[-1] != kernel.shape[-1]:
            yield f"{one} is in groups"


def per_channel_weights(graph: Graph) -> Iterator[str]:
    found = [tensor for tensor in graph.tensors if tensor.axis is not None and len(tensor.shape) > 1]
    if found:
        yield f"{len(found)} tensors of weights have a scale a channel"


def _of_kind(graph: Graph, kind: str) -> Iterator[tuple[Operation, Tensor]]:
    """The operations of a kind, each with what it works on. Those of no shape say nothing: it is computed later."""
    for one in graph.operations:
        given = one.inputs[0] if one.inputs else None
        if one.kind == kind and given is not None and given.shape and one.outputs:
            yield one, given


def _constant(operation: Operation, place: int) -> np.ndarray | None:
    given: Tensor | None = operation.inputs[place] if place < len(operation.inputs) else None
    return None if given is None else given.value


# A target, and its rules. Operations are in the order of the sources, so that they can be compared.
TARGETS: Mapping[str, tuple[Rule, ...]] = {
    "GPU (LiteRT delegate)": (
        Rule(
            only_operations(
                "ABS ADD ADD_N AVERAGE_POOL_2D BATCH_MATMUL CAST CONCATENATION CONV_2D COS CUMSUM DENSIFY "
                "DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV EQUAL ELU EXP FLOOR FLOOR_DIV FLOOR_MOD "
                "FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL HARD_SWISH LESS LESS_EQUAL LOGISTIC LOG LOGICAL_AND "
                "LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL ONE_HOT PACK PAD PADV2 POW "
                "REDUCE_MAX REDUCE_MIN REDUCE_PROD QUANTIZE RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 LEAKY_RELU PRELU "
                "RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SELECT_V2 SIGN SIN SLICE SOFTMAX "
                "SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE "
                "TRANSPOSE_CONV UNPACK"
            ),
            GPU_SOURCE,
        ),
        Rule(only_types("float32 float16 int8 uint8 bool", "int32 int64"), GPU_SOURCE),
        Rule(at_most_axes(4), GPU_SOURCE),
        Rule(static_shapes),
    ),
    "Qualcomm (LiteRT, Hexagon)": (
        Rule(
            only_operations(
                "ABS ADD ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL BROADCAST_TO CAST CONCATENATION CONV_2D CONV_3D "
                "COS CUMSUM DEPTH_TO_SPACE DEPTHWISE_CONV_2D DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE EMBEDDING_LOOKUP "
                "EQUAL EXP FLOOR_DIV FULLY_CONNECTED GATHER GATHER_ND GELU GREATER HARD_SWISH L2_NORMALIZATION "
                "LEAKY_RELU LESS LOG LOG_SOFTMAX LOGICAL_AND LOGISTIC MAX_POOL_2D MAXIMUM MEAN MINIMUM MUL NEG "
                "NOT_EQUAL PACK PAD PADV2 POW PRELU QUANTIZE REDUCE_MAX RELU RELU6 RESHAPE RESIZE_BILINEAR "
                "RESIZE_NEAREST_NEIGHBOR REVERSE_V2 RSQRT SCATTER_ND SELECT SELECT_V2 SIN SLICE SOFTMAX SPACE_TO_DEPTH "
                "SPLIT SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE TRANSPOSE_CONV UNPACK"
            ),
            QUALCOMM_SOURCE,
        ),
        Rule(static_shapes),
        Rule(grouped_convolutions),
        Rule(per_channel_weights),
    ),
    "MediaTek (LiteRT, NeuroPilot)": (
        Rule(
            only_operations(
                "ADD MUL BATCH_MATMUL FULLY_CONNECTED RESHAPE TRANSPOSE RSQRT CONCATENATION QUANTIZE SLICE "
                "STRIDED_SLICE SPLIT SUB TANH SOFTMAX MEAN GELU PAD LOGISTIC SUM CONV_2D DEPTHWISE_CONV_2D "
                "SQUARED_DIFFERENCE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR TRANSPOSE_CONV MAX_POOL_2D DEQUANTIZE "
                "PADV2 HARD_SWISH AVERAGE_POOL_2D REDUCE_MAX SQRT DIV CAST PRELU LEAKY_RELU MAXIMUM RELU ABS GREATER "
                "MINIMUM TILE UNPACK L2_NORMALIZATION"
            ),
            f"{MEDIATEK}/compiler_plugin.cc",
        ),
        Rule(only_types("float32 float16 int32 int16 uint16 int8 uint8 int4 int2 bool", "int64"), MEDIATEK_TYPES),
        Rule(static_shapes),
        Rule(grouped_convolutions),
    ),
    "Google Tensor (LiteRT)": (
        Rule(
            no_operations(
                "ASSIGN_VARIABLE BIDIRECTIONAL_SEQUENCE_LSTM BROADCAST_ARGS BUCKETIZE CALL_ONCE COMPLEX_ABS CONV_3D "
                "CONV_3D_TRANSPOSE DENSIFY FAKE_QUANT HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE IMAG "
                "LOCAL_RESPONSE_NORMALIZATION MATRIX_DIAG MATRIX_SET_DIAG MULTINOMIAL NON_MAX_SUPPRESSION_V4 "
                "NON_MAX_SUPPRESSION_V5 RANDOM_STANDARD_NORMAL RANDOM_UNIFORM RANK READ_VARIABLE REAL REDUCE_PROD "
                "REVERSE_SEQUENCE RFFT2D SEGMENT_SUM SHAPE SPARSE_TO_DENSE SVDF UNIDIRECTIONAL_SEQUENCE_RNN UNIQUE "
                "UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_MIN UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_SUM VAR_HANDLE WHERE"
            ),
            TENSOR_SOURCE,
        ),
        Rule(static_shapes),
        Rule(grouped_convolutions),
        Rule(per_channel_weights),
    ),
    "Edge TPU (Coral)": (
        Rule(
            only_operations(
                "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXPAND_DIMS FULLY_CONNECTED "
                "L2_NORMALIZATION LOGISTIC UNIDIRECTIONAL_SEQUENCE_LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PACK PAD "
                "PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR "
                "RESIZE_NEAREST_NEIGHBOR RSQRT SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SQUEEZE STRIDED_SLICE SUB SUM "
                "SQUARED_DIFFERENCE TANH TRANSPOSE TRANSPOSE_CONV"
            ),
            EDGE_TPU_SOURCE,
        ),
        Rule(only_types("int8 uint8", "int32 int64"), EDGE_TPU_SOURCE),
        Rule(static_shapes, EDGE_TPU_SOURCE),
        Rule(three_inner_axes, EDGE_TPU_SOURCE),
        Rule(no_activation, EDGE_TPU_SOURCE),
        Rule(short_softmax, EDGE_TPU_SOURCE),
        Rule(unit_strides, EDGE_TPU_SOURCE),
        Rule(no_batch_padding, EDGE_TPU_SOURCE),
        Rule(mean_over_image, EDGE_TPU_SOURCE),
        Rule(grouped_convolutions),
        Rule(per_channel_weights),
    ),
}


def by_rules(graph: Graph) -> list[Finding]:
    """What the documented rules of every target in TARGETS say of a graph."""
    found = []
    for target, rules in TARGETS.items():
        remarks = [Remark(text, rule.source) for rule in rules for text in dict.fromkeys(rule.broken_by(graph))]
        reasons = tuple(remark for remark in remarks if remark.source)
        open_ = tuple(
            Remark(f"no first-hand source says whether it takes this: {remark.text}")
            for remark in remarks
            if not remark.source
        )
        sources = tuple(dict.fromkeys(one for rule in rules for one in rule.source.split(", ") if one))
        found.append(Finding(target, not reasons, DOCUMENTED, reasons, open_, sources))
    return found


def by_xnnpack(graph: Graph, coverage: Coverage | None) -> Finding:
    """What the CPU's fast kernels take of a graph. coverage: None where it holds operations that TFLite has not."""
    if coverage is None:
        reasons = tuple(Remark(f"{one} needs a runtime of its own") for one in graph.operations if one.is_custom)
        return Finding("XNNPACK (CPU)", False, NOT_RUN, reasons)
    outside = tuple(Remark(f"{graph.operations[place]} is left to slower kernels") for place in coverage.outside)
    inside = len(graph.operations) - len(outside)
    figures = {"partitions": coverage.partitions, "operations_inside": inside, "operations": len(graph.operations)}
    return Finding("XNNPACK (CPU)", not outside, MEASURED, outside, figures=figures)


def by_vela(content: bytes, graph: Graph, name: str) -> list[Finding]:
    """What Arm's compiler takes of a file for some of its NPUs, with its estimates; content: of the .tflite file.

    Needs `vela`, which the extra `npu` brings; without, the findings say so.
    """
    beside = Path(sys.executable).with_name("vela")
    vela = str(beside) if beside.is_file() else shutil.which("vela")
    if vela is None:
        absent = Remark('pip install "keras-resnet-edge[npu]" brings its compiler')
        return [Finding(f"Arm {config}", None, NOT_RUN, remarks=(absent,)) for config in ETHOS_U]
    return [_compiled(vela, config, content, graph, name) for config in ETHOS_U]


def _compiled(vela: str, config: str, content: bytes, graph: Graph, name: str) -> Finding:
    target = f"Arm {config}"
    with tempfile.TemporaryDirectory(prefix="keras-resnet-") as scratch:
        folder = Path(scratch)
        (folder / "net.tflite").write_bytes(content)
        command = [vela, "--accelerator-config", config, "--output-dir", scratch, str(folder / "net.tflite")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=VELA_LIMIT_S, check=False)
            compiled = read_graph((folder / "net_vela.tflite").read_bytes(), name)
            [summary] = folder.glob("net_summary_*.csv")
            [row] = csv.DictReader(summary.read_text(encoding="utf-8").splitlines())
        except subprocess.TimeoutExpired:
            return Finding(target, None, NOT_RUN, remarks=(Remark(f"vela took longer than {VELA_LIMIT_S} s"),))
        except (OSError, ValueError, InputError):
            said = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
            failed = Remark(f"vela failed with code {done.returncode}: {said[-1] if said else 'it said nothing'}")
            return Finding(target, None, COMPILED, remarks=(failed,))
    left = tuple(Remark(f"{one} is left to the CPU") for one in compiled.operations if one.kind != "ethos-u")
    figures = {
        "cycles": float(row["cycles_total"]),
        "estimated_ms": 1000 * float(row["inference_time"]),
        "sram_kib": float(row["sram_memory_used"]),
        "flash_kib": float(row["off_chip_flash_memory_used"]) + float(row["on_chip_flash_memory_used"]),
        "dram_kib": float(row["dram_memory_used"]),
    }
    return Finding(target, not left, COMPILED, left, figures={} if len(left) == len(graph.operations) else figures)


def said(remark: Remark, finding: Finding) -> str:
    """A remark in words, which say where no first-hand source is known."""
    is_known = remark.source or finding.basis != DOCUMENTED
    return remark.text if is_known else f"{UNVERIFIED}: {remark.text}"


def summary(finding: Finding, shown: int = 3) -> Sequence[str]:
    """One finding in lines: the answer, then why."""
    yes = {True: "yes", False: "no", None: "not known"}[finding.takes_whole]
    figures = ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in finding.figures.items())
    lines = [f"{finding.target:30}  {yes:9}  {finding.basis}{f': {figures}' if figures else ''}"]
    reasons = [remark.text for remark in finding.reasons]
    remarks = [said(one, finding) for one in finding.remarks]
    for texts in (reasons, remarks):
        lines += [f"    {text}" for text in texts[:shown]]
        if len(texts) > shown:
            lines.append(f"    and {len(texts) - shown} more")
    return lines


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.4g}"
