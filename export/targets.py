"""Which chips take a file that was just made: the answers of `npu` in a few words each, for its manifest and page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_resnet.export import neural_engine, npu
from keras_resnet.export.mil import Package
from keras_resnet.export.probe import Coverage, coverage
from keras_resnet.export.tflite_graph import Graph

SHOWN = 3  # reasons of a target
LOOKED_AT = 8  # images


def targets_of_file(content: bytes, graph: Graph) -> list[dict[str, Any]]:
    """What is known of each target for the bytes of a .tflite file that was made in this process.

    Arm's compiler takes its time: `inspect` runs it.
    """
    measured = npu.by_xnnpack(graph, Coverage(**coverage(content)))
    return _told([measured, *npu.by_rules(graph)])


def targets_of_package(package: Package, size_bytes: int, pixels: np.ndarray | None = None) -> list[dict[str, Any]]:
    """What is known of each target for a Core ML package.

    pixels: uint8 [n, height, width, 3], of which some are looked at for values that float16 cannot hold.
    """
    peaks = None if pixels is None else neural_engine.peaks_of(package, pixels[:LOOKED_AT])
    return _told([neural_engine.by_neural_engine(package, size_bytes, peaks)])


def _told(findings: Sequence[npu.Finding]) -> list[dict[str, Any]]:
    return [
        {
            "target": one.target,
            "takes_whole": one.takes_whole,
            "basis": one.basis,
            "reasons": [reason.text for reason in one.reasons[:SHOWN]],
            "more_reasons": max(0, len(one.reasons) - SHOWN),
            "remarks": [npu.said(remark, one) for remark in one.remarks],
            "figures": dict(one.figures),
        }
        for one in findings
    ]
