"""How long one answer takes, on the machine at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

WARM_UP = 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one image: median and 95th percentile over `runs`."""

    median_ms: float
    p95_ms: float
    runs: int


def measure(answer: Callable[[], Any], runs: int = 50) -> Latency:
    """Time a call that answers one image, after a few calls that are not counted."""
    for _ in range(WARM_UP):
        answer()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        answer()
        times.append(1000 * (time.perf_counter() - start))
    return Latency(float(np.median(times)), float(np.percentile(times, 95)), runs)
