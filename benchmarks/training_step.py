"""How fast a training step is: ours beside keras.applications' ResNet-50 and torchvision's.

    python -m benchmarks.training_step --rounds 5

Each network lives in a process of its own, whose peak memory stands beside its speed; the processes of a pair take
turns of a few steps, so that what else the machine does falls on both. Random images, SGD with momentum, softmax
cross-entropy. torchvision's runs as its users run it fastest on a processor: eager, channels_last, autocast for
bfloat16, glibc told to keep large blocks of memory. Give nothing else to the machine meanwhile. A ratio is the median
over rounds. Ends with 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.rematerialisation import peak_bytes

PRECISIONS = ("float32", "bfloat16")
# glibc gives blocks above these back to the system, which clears the pages of each anew.
LARGE_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
TRIES, BUSY = 40, 0.8  # turns, and the share of the cores' time that the network must have had
WARM_UP = 2  # steps: the first one traces and compiles


class Pair(NamedTuple):
    """Two networks to compare, and what ours must reach: its images a second over theirs, by precision."""

    ours: str
    theirs: str
    limits: dict[str, float]
    less_memory: bool  # whether ours may not need more


PAIRS = (
    Pair("resnet50_v1", "keras.applications", {"float32": 1.4, "bfloat16": 1.6}, less_memory=True),
    Pair("resnet50", "torchvision", {"float32": 1.0, "bfloat16": 0.95}, less_memory=False),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of one turn")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--beside", nargs="+", choices=[pair.theirs for pair in PAIRS], help="default: both")
    parser.add_argument("--child", nargs=2, metavar=("NETWORK", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        serve(*options.child, options)
        return 0
    print(
        "| precision | network | images/s | peak, MB | ours / theirs | limit |\n|---|---|---|---|---|---|", flush=True
    )
    missed = []
    for pair in PAIRS:
        for precision in options.precisions:
            if pair.theirs in (options.beside or pair.theirs):
                missed += compare(pair, precision, options)
    print("\n" + ("Missed: " + "; ".join(missed) if missed else "All limits are met."))
    return 1 if missed else 0


def compare(pair: Pair, precision: str, options: argparse.Namespace) -> list[str]:
    """Measure a pair in turns and print its rows; returns what missed its limit."""
    names = (pair.ours, pair.theirs)
    children = {name: start(name, precision, options) for name in names}
    try:
        for child in children.values():
            ask(child, WARM_UP)
        rounds: list[dict[str, float]] = []
        for number in range(options.rounds):
            order = names if number % 2 == 0 else names[::-1]  # who comes second finds a warmer processor
            rounds.append({name: on_all_cores(children[name], options) for name in order})
            print(f"{precision}, round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
        peaks = {name: ask(child, 0)["peak_mb"] for name, child in children.items()}
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    ratio = statistics.median(taken[pair.theirs] / taken[pair.ours] for taken in rounds)
    images = options.batch * options.steps
    for name in names:
        speed = images / statistics.median(taken[name] for taken in rounds)
        end = f"{ratio:.2f} | {pair.limits[precision]:g}" if name == pair.ours else "|"
        print(f"| {precision} | {name} | {speed:.1f} | {peaks[name]:.0f} | {end} |", flush=True)
    missed = []
    if ratio < pair.limits[precision]:
        missed.append(f"{pair.ours} / {pair.theirs}, {precision}: {ratio:.2f} < {pair.limits[precision]:g}")
    if pair.less_memory and peaks[pair.ours] > peaks[pair.theirs]:
        missed.append(f"peak memory, {precision}: {peaks[pair.ours]:.0f} > {peaks[pair.theirs]:.0f} MB")
    return missed


def on_all_cores(child: subprocess.Popen[str], options: argparse.Namespace) -> float:
    """Wall seconds of a turn in which the network had as many cores as threads.

    Some systems leave the threads of a process that wakes up on one core, and give it half of its speed for seconds:
    such a turn says nothing of the network and is taken again.
    """
    for _ in range(TRIES):
        turn = ask(child, options.steps)
        if turn["cpu_seconds"] >= BUSY * options.threads * turn["seconds"]:
            return turn["seconds"]
    raise SystemExit(f"in {TRIES} turns the threads never had {options.threads} cores: is the machine busy?")


def start(name: str, precision: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """A process that holds one network and trains it when told so."""
    command = [sys.executable, "-m", "benchmarks.training_step", "--child", name, precision]
    for option in ("batch", "side", "threads"):
        command += [f"--{option}", str(getattr(options, option))]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}  # no pinned threads
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3"} | (LARGE_BLOCKS if name == "torchvision" else {})
    return subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def ask(child: subprocess.Popen[str], steps: int) -> dict[str, float]:
    """Let a process train so many steps: wall seconds, and its peak memory so far."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{steps}\n")
    child.stdin.flush()
    for line in child.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
    raise RuntimeError(f"{' '.join(map(str, child.args))} ended with code {child.wait()}")  # type: ignore[arg-type]


def serve(name: str, precision: str, options: argparse.Namespace) -> None:
    """Train as many steps as each line of the standard input says."""
    train = (torchvision_trainer if name == "torchvision" else keras_trainer)(name, precision, options)
    for line in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        if steps := int(line):
            train(steps)
        turn = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps({**turn, "peak_mb": peak_bytes() / 2**20}), flush=True)


def keras_trainer(name: str, precision: str, options: argparse.Namespace) -> Callable[[int], Any]:
    """keras.applications' ResNet50, or a variant of ours, in Keras' own `fit`."""
    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else precision)
    shape = (options.side, options.side, 3)
    if name == "keras.applications":
        model = keras.applications.ResNet50(weights=None, input_shape=shape)
    else:
        from keras_resnet import build

        model = build(name, input_shape=shape)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.batch, *shape)).astype("float32")
    batches = tf.data.Dataset.from_tensors((images, rng.integers(0, 1000, options.batch))).cache().repeat()
    return lambda steps: model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)


def torchvision_trainer(name: str, precision: str, options: argparse.Namespace) -> Callable[[int], Any]:
    """torchvision's resnet50, stepped as its reference script does."""
    import torch

    from tests.references import import_torchvision

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = import_torchvision().models.resnet50(weights=None).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    images = torch.randn(options.batch, 3, options.side, options.side).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (options.batch,))

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

    return train


if __name__ == "__main__":
    sys.exit(main())
