"""How fast .tflite files answer on the machine at hand, what they need, and which of two is faster."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from keras_resnet.errors import InputError, UsageError
from keras_resnet.export.latency import WARM_UP, Latency, time_of
from keras_resnet.export.probe import probe
from keras_resnet.export.tflite_graph import read_graph
from keras_resnet.export.verification import TfliteFile

RUNS = 100
MOST_THREADS = 64


@dataclass(frozen=True)
class Speed:
    """One file. Times in milliseconds; memory in megabytes above the process that opens it, with one answer."""

    file: str
    size_bytes: int
    operations: Mapping[str, int]  # by kind, the most frequent first
    open_ms: float
    memory_mb: float
    latency: Latency


@dataclass(frozen=True)
class Benchmark:
    """One file, or two that answered in turn; ratio: the median of the first's time over the second's, run by run."""

    threads: int
    files: tuple[Speed, ...]
    ratio: float | None = None  # None: one file
    ratio_interval: tuple[float, float] | None = None  # 95 %, of the median


def benchmark(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str] | None = None,
    *,
    threads: int = 1,
    runs: int = RUNS,
) -> Benchmark:
    """Time one .tflite file, or two in alternation, so that what else the machine does harms both alike.

    first, second: files that take one image and give one score a class; threads: of the interpreter, 1 to 64; runs:
    answers that are timed, 10 or more. Opening and memory are those of a process of its own, on one thread.
    Raises UsageError, InputError for files that cannot be read or run.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"threads={threads} must be from 1 to {MOST_THREADS}")
    if runs < 10:
        raise UsageError(f"runs={runs} must be 10 or more: fewer say nothing about a median")
    paths = [Path(path) for path in (first, second) if path is not None]
    for path in paths:
        if path.suffix != ".tflite" or not path.is_file():
            raise InputError(f"file {str(path)!r} is no .tflite file: Core ML packages run on macOS alone")
    contents = [path.read_bytes() for path in paths]
    graphs = [read_graph(content, str(path)) for content, path in zip(contents, paths, strict=True)]
    costs = [probe(content, str(path)) for content, path in zip(contents, paths, strict=True)]
    files = [TfliteFile(content, str(path), threads) for content, path in zip(contents, paths, strict=True)]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*file.size, 3), dtype=np.uint8) for file in files]
    times = np.array(
        [
            [time_of(partial(file.answer, image)) for file, image in zip(files, images, strict=True)]
            for _ in range(WARM_UP + runs)
        ]
    )[WARM_UP:]
    found = tuple(
        Speed(
            str(path),
            len(content),
            dict(Counter(operation.kind for operation in graph.operations).most_common()),
            cost.open_ms,
            cost.memory_mb,
            Latency.of(times[:, i]),
        )
        for i, (path, content, graph, cost) in enumerate(zip(paths, contents, graphs, costs, strict=True))
    )
    if second is None:
        return Benchmark(threads, found)
    ratios = np.sort(times[:, 0] / times[:, 1])
    # The interval of a median by order statistics: between the binomial's 2.5 and 97.5 % places.
    half = 0.98 * np.sqrt(runs)
    low, high = max(int(runs / 2 - half), 0), min(int(np.ceil(runs / 2 + half)), runs - 1)
    return Benchmark(threads, found, float(np.median(ratios)), (float(ratios[low]), float(ratios[high])))
