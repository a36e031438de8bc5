"""What recomputing activations saves: peak memory of two training steps of a CIFAR network, with and without.

    python -m benchmarks.rematerialisation --depths 110 542 --batches 4 16 32 64

Every figure is the peak resident memory of a fresh process that imports, builds, traces and trains (float32, 32x32
pixels, random data, SGD with momentum). The table goes to stdout row by row, progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Run(NamedTuple):
    """One measured process; `peak_mb` is None where it did not end well, and `remark` says how it ended."""

    peak_mb: int | None
    remark: str

    def __str__(self) -> str:
        return self.remark if self.peak_mb is None else str(self.peak_mb)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[110, 542, 1202], help="6n + 2")
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 4, 16, 32, 64])
    parser.add_argument("--segments", type=int, help="default: about the square root of the number of blocks")
    parser.add_argument("--timeout-s", type=int, default=600, help="of one process")
    parser.add_argument("--child", nargs=2, metavar=("FORM", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        form, steps = options.child
        print(json.dumps(train(options.depths[0], options.batches[0], form == "with", options.segments, int(steps))))
        return
    print("| depth | batch | without, MB | with, MB | saved, MB |\n|---|---|---|---|---|", flush=True)
    pays = [f"depth {depth}: {_rows(depth, options)}" for depth in options.depths]
    print("\nIt pays from: " + "; ".join(pays))


def _rows(depth: int, options: argparse.Namespace) -> str:
    """Measure and print the rows of one depth; say from which batch size on recomputation takes less memory."""
    saving: dict[int, int] = {}
    for batch in sorted(options.batches):
        without, with_ = (_measure(form, depth, batch, options) for form in ("without", "with"))
        if without.peak_mb is not None and with_.peak_mb is not None:
            saving[batch] = without.peak_mb - with_.peak_mb
        print(f"| {depth} | {batch} | {without} | {with_} | {saving.get(batch, '')} |", flush=True)
    paying: int | None = None
    for batch in sorted(saving, reverse=True):
        if saving[batch] <= 0:
            break
        paying = batch
    return f"batch {paying}" if paying is not None else "no batch size measured here"


def _measure(form: str, depth: int, batch: int, options: argparse.Namespace) -> Run:
    command = [sys.executable, "-m", "benchmarks.rematerialisation", "--child", form, "2"]
    command += ["--depths", str(depth), "--batches", str(batch)]
    if options.segments is not None:
        command += ["--segments", str(options.segments)]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout_s, check=False)
    except subprocess.TimeoutExpired:
        run = Run(None, f"over {options.timeout_s} s")
    else:
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            print(f"{last[:200]}", file=sys.stderr)
            run = Run(None, f"ended with code {done.returncode}")
        else:
            run = Run(json.loads(done.stdout.strip().splitlines()[-1])["peak_mb"], "")
    seconds = time.monotonic() - began
    print(f"depth {depth}, batch {batch}, {form}: {run} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    return run


def train(depth: int, batch: int, recomputed: bool, segments: int | None, steps: int) -> dict[str, int]:
    """Build, compile and train in this process; the peak of its resident memory in MB."""
    import keras
    import numpy as np

    from keras_resnet import build, cifar, rematerialise

    keras.utils.set_random_seed(0)
    model = build(cifar(depth))
    if recomputed:
        model = rematerialise(model, segments=segments)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch * steps, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, 10, batch * steps)
    model.fit(images, labels, batch_size=batch, epochs=1, verbose=0)
    return {"peak_mb": peak_bytes() // 2**20}


def peak_bytes() -> int:
    """The most resident memory that this process has had."""
    if sys.platform == "linux":  # where ru_maxrss begins with that of the process that started this one
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


if __name__ == "__main__":
    main()
