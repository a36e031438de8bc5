"""What loading costs: ResNet-50 from a safetensors file, beside reading that file and building the network.

    python -m benchmarks.loading --rounds 7

A ratio is the median over rounds, in each of which every form runs once, so that what else the machine does falls on
all of them; the file is in the cache of the system. Memory is the peak of a fresh process over what it held before it
loads. Ends with 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from keras_resnet import blocks, build, models, save_weights_as
from keras_resnet.preprocessing import IMAGENET
from keras_resnet.specs import VARIANTS

VARIANT = "resnet50"
LIMIT_TIME = 3.0  # of reading and building together
LIMIT_MEMORY = 2.2  # of the weights
PROCESSES = 3  # of which the median is taken for memory


def for_weights() -> keras.Model:
    """The network as `build` makes it where a file of weights is given, before that file is read."""
    image = keras.Input((224, 224, 3))
    zeros = keras.initializers.Zeros()
    return keras.Model(image, models.connect(blocks.Parts(VARIANTS[VARIANT], lambda: zeros), image, IMAGENET))


def seconds(form: Callable[[], object]) -> float:
    """Wall seconds of running once; what was made is freed before the next."""
    start = time.perf_counter()
    made = form()
    taken = time.perf_counter() - start
    del made
    gc.collect()
    return taken


def memory(path: Path) -> float:
    """The peak of this process while it loads, over what it held before, as a multiple of the weights."""
    build("resnet18", depths=(1,), widths=(8,), weights=None)  # what only the first network brings: kernels, caches
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * os.sysconf("SC_PAGE_SIZE")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    model = build(VARIANT, weights=path)
    peak = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return (peak - before) / sum(weight.numpy().nbytes for weight in model.weights)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(memory(options.memory_of))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{VARIANT}.safetensors"
        save_weights_as(build(VARIANT), path)
        forms: dict[str, Callable[[], object]] = {
            "reading the file": path.read_bytes,
            "building, weights to follow": for_weights,
            "loading": lambda: build(VARIANT, weights=path),
        }
        for form in forms.values():  # what only the first run pays: kernels, caches
            seconds(form)
        rounds = [{name: seconds(form) for name, form in forms.items()} for _ in range(options.rounds)]
        command = [sys.executable, "-m", "benchmarks.loading", "--memory-of", str(path)]
        peaks = [
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(PROCESSES)
        ]
    ratios = [taken["loading"] / (sum(taken.values()) - taken["loading"]) for taken in rounds]
    time_ratio, memory_ratio = statistics.median(ratios), statistics.median(peaks)
    print(f"| {VARIANT} from safetensors | median, s |\n|---|---|")
    for name in forms:
        print(f"| {name} | {statistics.median(taken[name] for taken in rounds):.2f} |")
    print(f"\nloading / (reading + building): {time_ratio:.2f}, limit {LIMIT_TIME:g}")
    print(f"extra peak memory / weights: {memory_ratio:.2f}, limit {LIMIT_MEMORY:g}")
    return 0 if time_ratio <= LIMIT_TIME and memory_ratio <= LIMIT_MEMORY else 1


if __name__ == "__main__":
    sys.exit(main())
