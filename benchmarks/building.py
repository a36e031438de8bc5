"""How long building takes: ResNet-152 beside keras.applications', and the network of 1202 layers.

    python -m benchmarks.building --rounds 7

A ratio is the median over rounds, in each of which every form is built once, so that what else the machine does
falls on all of them. Processor seconds count, wall seconds stand beside them. Ends with 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from keras_resnet import blocks, build, models
from keras_resnet.preprocessing import IMAGENET
from keras_resnet.specs import VARIANTS

THEIRS, OURS, OURS_FOR_WEIGHTS = "keras.applications", "ours", "ours, weights to follow"
LIMITS = {OURS: 1.6, OURS_FOR_WEIGHTS: 0.8}  # of keras.applications' processor seconds
LIMIT_1202_S = 60.0


class Seconds(NamedTuple):
    """What one build took."""

    processor: float
    wall: float


def for_weights() -> keras.Model:
    """ResNet-152 as `build` makes it where a file of weights is given, before that file is read."""
    image = keras.Input((224, 224, 3))
    parts = blocks.Parts(VARIANTS["resnet152"], keras.initializers.Zeros)
    return keras.Model(image, models.connect(parts, image, IMAGENET))


FORMS: dict[str, Callable[[], keras.Model]] = {
    THEIRS: lambda: keras.applications.ResNet152(weights=None),
    OURS: lambda: build("resnet152"),
    OURS_FOR_WEIGHTS: for_weights,
}


def measure(form: Callable[[], keras.Model]) -> Seconds:
    """Build once, and free what was built before the next."""
    processor, wall = time.process_time(), time.perf_counter()
    model = form()
    taken = Seconds(time.process_time() - processor, time.perf_counter() - wall)
    del model
    gc.collect()
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip-1202", action="store_true", help="leave the network of 1202 layers out")
    options = parser.parse_args()
    for form in FORMS.values():  # what only the first build pays: kernels, caches
        measure(form)
    rounds = [{name: measure(form) for name, form in FORMS.items()} for _ in range(options.rounds)]
    print("| ResNet-152 | processor, s | wall, s | processor ratio | wall ratio | limit |\n|---|---|---|---|---|---|")
    passed = [_row(name, rounds) for name in FORMS]
    if not options.skip_1202:
        taken = measure(lambda: build("cifar_resnet1202"))
        passed.append(taken.processor <= LIMIT_1202_S)
        print(
            f"\ncifar_resnet1202: {taken.processor:.1f} s processor, {taken.wall:.1f} s wall (limit {LIMIT_1202_S:g})"
        )
    return 0 if all(passed) else 1


def _row(name: str, rounds: list[dict[str, Seconds]]) -> bool:
    """Print one row; whether its ratio is within its limit."""
    cells = [statistics.median(taken[name][i] for taken in rounds) for i in range(2)]
    ratios = [statistics.median(taken[name][i] / taken[THEIRS][i] for taken in rounds) for i in range(2)]
    limit = LIMITS.get(name)
    print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in [*cells, *ratios]) + f" | {limit or ''} |")
    return limit is None or ratios[0] <= limit


if __name__ == "__main__":
    sys.exit(main())
