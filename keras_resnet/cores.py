"""The cores that this process may use, counted before a library that it imports takes some of them away."""

from __future__ import annotations

import os

CORES = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None  # None: macOS, Windows


def use_all_cores() -> None:
    """Undo what libgomp does where OMP_PROC_BIND is set: it pins the main thread, and all that it starts, to one core.

    It comes with scikit-learn, which Keras imports where it is installed. Call it before TensorFlow makes its threads.
    """
    if CORES is None or len(os.sched_getaffinity(0)) > 1:
        return
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES)
    elif os.environ.get("OMP_PROC_BIND", "false").lower() not in ("false", "0", ""):
        # Keras was there before us, so nobody knows: the system leaves out the cores that this process may not use.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
