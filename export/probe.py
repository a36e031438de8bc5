"""A .tflite file opened and run once in a process of its own, for TFLite can end the process that opens a bad one.

This file is also that process: `python probe.py`, the file on its standard input. It imports nothing of ours, nor
TensorFlow, so that it starts quickly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

LIMIT_S = 120  # of opening and one answer; ResNet-152 takes some seconds where no kernel is fast
MOST_BYTES = 16 << 30  # of address space: a shape can ask for any amount


@dataclass(frozen=True)
class Coverage:
    """What XNNPACK, the fast kernels of TFLite on CPUs, takes of a graph."""

    partitions: int  # connected parts that it runs
    outside: tuple[int, ...]  # places of the operations that it leaves to others
    open_ms: float  # of opening the file, all its memory allocated
    memory_mb: float  # that opening it and one answer added to the process at most


def probe(content: bytes, name: str, limit_s: float = LIMIT_S) -> Coverage:
    """Open a .tflite file and let it answer zeros, in another process; what XNNPACK takes of it.

    name: of the file, for messages. Raises InputError where it cannot be opened or run, ends its process, or takes
    longer than `limit_s`.
    """
    from keras_resnet.errors import InputError

    command = [sys.executable, "-P", __file__]  # -P: modules beside this file hide no other's
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # NumPy's, which are not used: they cost start-up
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, env=environment, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{name!r} takes longer than {limit_s:g} s to open and answer once: it is too large for this machine, "
            "or damaged"
        ) from error
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        raise InputError(
            f"{name!r} ended the process that opened it ({how}): it is damaged, or made to do harm; export it anew, "
            "or fetch it again"
        ) from error
    if "error" in found:
        raise InputError(f"{name!r} cannot be run as a .tflite file: {found['error']}")
    return Coverage(found["partitions"], tuple(found["outside"]), found["open_ms"], found["memory_mb"])


def coverage(content: bytes) -> dict[str, Any]:
    """Open a file and run it once; may end the process."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    warnings.simplefilter("ignore")  # that keeping all tensors takes memory
    details, before = [], peak_mb()
    for keep in (False, True):
        start = time.perf_counter()
        interpreter = Interpreter(model_content=content, num_threads=1, experimental_preserve_all_tensors=keep)
        interpreter.allocate_tensors()
        details.append(interpreter._get_ops_details())
        if not keep:
            open_ms = 1000 * (time.perf_counter() - start)
            for given in interpreter.get_input_details():
                if given["dtype"] is not np.bytes_:
                    interpreter.set_tensor(given["index"], np.zeros(given["shape"], given["dtype"]))
            interpreter.invoke()
            for given in interpreter.get_output_details():
                interpreter.get_tensor(given["index"])
            memory_mb = peak_mb() - before
    joined, single = details
    # Where every tensor is kept, each operation that XNNPACK takes becomes a part of its own: its outputs say which.
    taken = {int(index) for node in single if node["op_name"] == "DELEGATE" for index in node["outputs"]}
    return {
        "partitions": sum(node["op_name"] == "DELEGATE" for node in joined),
        "outside": [
            place
            for place, node in enumerate(node for node in single if node["op_name"] != "DELEGATE")
            if not taken.intersection(map(int, node["outputs"]))
        ],
        "open_ms": open_ms,
        "memory_mb": memory_mb,
    }


def peak_mb() -> float:
    """The most memory that this process has held so far, in megabytes; 0 where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # getrusage begins with the parent's on Linux
            return next(float(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def main() -> None:
    try:
        import resource

        for limit, most in ((resource.RLIMIT_AS, MOST_BYTES), (resource.RLIMIT_CORE, 0)):
            resource.setrlimit(limit, (most, resource.getrlimit(limit)[1]))
    except (ImportError, ValueError, OSError):  # Windows has none, and a lower limit may be set already
        pass
    try:
        print(json.dumps(coverage(sys.stdin.buffer.read())))
    except (ValueError, RuntimeError, MemoryError) as error:
        print(json.dumps({"error": next(iter(str(error).splitlines()), type(error).__name__)}))


if __name__ == "__main__":
    main()
