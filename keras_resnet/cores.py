"""The cores that this process may use, counted before a library that it imports takes some of them away."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

CORES = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None  # None: macOS, Windows
THREADS = "/proc/self/task"


def use_all_cores() -> None:
    """Undo what libgomp does where OMP_PROC_BIND is set: it pins the main thread, and all that it starts, to one core.

    It comes with scikit-learn, which Keras imports where it is installed. TensorFlow's threads are freed too, where it
    has made them before.
    """
    if CORES is None or len(os.sched_getaffinity(0)) > 1:
        return
    if len(CORES) > 1:
        _free(CORES)
    elif os.environ.get("OMP_PROC_BIND", "false").lower() not in ("false", "0", ""):
        # Keras was there before us, so nobody knows: the system leaves out the cores that this process may not use.
        _free(range(os.cpu_count() or 1))


def _free(cores: Iterable[int]) -> None:
    """Let this thread, and those that have inherited its one core, run on all of `cores`."""
    pinned = os.sched_getaffinity(0)
    threads = [int(name) for name in os.listdir(THREADS)] if os.path.isdir(THREADS) else []
    for thread in (*threads, 0):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            if os.sched_getaffinity(thread) == pinned:
                os.sched_setaffinity(thread, cores)
