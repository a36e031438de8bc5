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

    @classmethod
    def of(cls, times: np.ndarray) -> Latency:
        """Of times in milliseconds."""
        return cls(float(np.median(times)), float(np.percentile(times, 95)), len(times))


def time_of(answer: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    answer()
    return 1000 * (time.perf_counter() - start)


def measure(answer: Callable[[], Any], runs: int = 50) -> Latency:
    """Time a call that answers one image, after a few calls that are not counted."""
    return Latency.of(np.array([time_of(answer) for _ in range(WARM_UP + runs)])[WARM_UP:])
