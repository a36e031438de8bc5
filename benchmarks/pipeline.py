"""How many images a second the pipeline gives, beside the decoder's own limit, and how long a training step waits.

    python -m benchmarks.pipeline --photos photos100/
    python -m benchmarks.pipeline --cifar train.tar.gz --recipe cifar10-fast

photos: a folder of pictures, in class folders or loose; each ImageNet recipe's whole pipeline, on all cores, beside
decoding the same files and nothing else. A recipe may be quicker than the decoder: it decodes no more of a picture than
its crop needs. cifar: the recipe's pipeline alone, and the trainer's own step fed by it; the share of its time that the
step stands still for the next batch, and of its processor time that goes into batches. Every figure is the median over
rounds, with the smallest and the largest where something else may run beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from keras_resnet.training import open_images
from keras_resnet.training.augment import Treatment
from keras_resnet.training.batches import training_batches
from keras_resnet.training.images import DECODERS, Images, open_file
from keras_resnet.training.recipes import Recipe, recipe_of
from keras_resnet.training.session import Session, open_session
from keras_resnet.training.sources import Source, training_source
from keras_resnet.training.strategy import deterministic, open_place
from keras_resnet.training.trainer import VALIDATION_FRACTION

PHOTO_RECIPES = ("imagenet-paper", "imagenet-a3", "imagenet-a2", "finetune")
PHOTO_BATCH = 32  # the recipes' own are more than there are pictures
WARM_UP = 3  # steps that are not timed


class Turn(NamedTuple):
    """What some steps of training gave."""

    images: float  # a second
    step_ms: float
    waited: float  # share of the time that no step was computed, for want of a batch
    in_pipeline: float  # share of the processor time that batches took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", help="a folder of pictures")
    parser.add_argument("--cifar", help="CIFAR-10, as for `keras-resnet train --data`")
    parser.add_argument("--recipe", default="cifar10-fast", help="of the training on CIFAR (default: cifar10-fast)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=10, help=f"of photos, a round (default: 10, of {PHOTO_BATCH})")
    parser.add_argument("--steps", type=int, default=100, help="of training on CIFAR, a round (default: 100)")
    options = parser.parse_args()
    if not (options.photos or options.cifar):
        parser.error("nothing to measure: give --photos, --cifar or both")
    place = open_place("single")
    with deterministic():  # as the trainer does; TensorFlow then runs some parts of a pipeline in another way
        if options.photos:
            print_photos(photos_of(options.photos), options)
        if options.cifar:
            recipe = recipe_of(options.recipe)
            held_out, training = open_images(options.cifar).split(VALIDATION_FRACTION, seed=0)
            print_training(open_session(recipe, training, held_out, place), options)
    return 0


def print_photos(photos: Images, options: argparse.Namespace) -> None:
    """A row a decoder and a recipe; the last column compares with what decodes exactly, as the pipeline does."""
    print("| what | images/s | images/processor s | of the decoder's limit |\n|---|---:|---:|---:|", flush=True)
    decoders: dict[str, Callable[[Path], object]] = {
        "Pillow decodes the files": lambda path: open_file(path).load(),
        "TensorFlow decodes the files": lambda path: tf.io.decode_jpeg(
            path.read_bytes(), channels=3, dct_method="INTEGER_ACCURATE"
        ),
    }
    limit = 0.0
    for name, decode in decoders.items():
        wall, processor = rate(lambda decode=decode: decode_all(photos, decode), options.rounds)
        limit = max(limit, wall)
        print(f"| {name} | {wall:.0f} | {processor:.0f} | |", flush=True)
    for name in PHOTO_RECIPES:
        recipe = recipe_of(name, batch_size=PHOTO_BATCH)
        wall, processor = flow(training_source(photos, recipe), recipe, options.batches, options.rounds)
        print(f"| pipeline of {name} | {wall:.0f} | {processor:.0f} | {wall / limit:.2f} |", flush=True)


def print_training(session: Session, options: argparse.Namespace) -> None:
    """The pipeline alone, and training that it feeds."""
    wall, processor = flow(session.source, session.recipe, options.steps, options.rounds)
    print("\n| what | images/s | images/processor s |\n|---|---:|---:|")
    print(f"| pipeline of {options.recipe} | {wall:.0f} | {processor:.0f} |", flush=True)
    turns = list(training(session, options.rounds, options.steps, processor))
    print(f"| training | {middle(turn.images for turn in turns)} | |\n")
    print(f"a step takes {middle(turn.step_ms for turn in turns)} ms, and then a batch is there:")
    print(f"training waits for data {middle((100 * turn.waited for turn in turns), 2)} % of its time, and batches take")
    print(f"{middle((100 * turn.in_pipeline for turn in turns), 2)} % of its processor time")


def photos_of(folder: str) -> Images:
    """The pictures of a folder, whatever their classes."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return Images("photos", ("a", "b"), np.arange(len(files)) % 2, files, open_file)


def flow(source: Source, recipe: Recipe, batches: int, rounds: int) -> tuple[float, float]:
    """What `rate` says of a recipe's batches, drawn without a pause: so many a round, behind a first round of them."""
    data = training_batches(
        source, Treatment.of(recipe), batch_size=recipe.batch_size, seed=recipe.seed, total_steps=10**9
    )
    iterator = iter(data)

    def draw() -> int:
        return sum(len(next(iterator)[0]) for _ in range(batches))

    draw()  # as many as were made ahead while nobody drew
    return rate(draw, rounds)


def decode_all(images: Images, decode: Callable[[Path], object]) -> int:
    with ThreadPoolExecutor(DECODERS) as pool:
        return sum(1 for _ in pool.map(decode, images.items))


def rate(job: Callable[[], int], rounds: int) -> tuple[float, float]:
    """Images a second, and a processor second, of a job that returns how many it did."""
    walls, processors = [], []
    for _ in range(rounds):
        wall, processor = time.perf_counter(), time.process_time()
        count = job()
        walls.append(count / (time.perf_counter() - wall))
        processors.append(count / (time.process_time() - processor))
    return statistics.median(walls), statistics.median(processors)


def training(session: Session, rounds: int, steps: int, alone: float) -> Iterator[Turn]:
    """Train by the trainer's own step on its own batches; alone: images a processor second of the pipeline by itself.

    Keras fetches a batch inside its compiled function. Here it is fetched in front of the step, so that the clock
    stands between them.
    """
    step = tf.function(session.model.train_step, reduce_retracing=True)
    batches = session.batches(0)
    for _ in range(WARM_UP):
        step(next(batches))
    for _ in range(rounds):
        waited, count = 0.0, 0
        start, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            float(step(batch)["loss"])  # waits until it is computed
            count += len(batch[0])
        wall, used = time.perf_counter() - start, time.process_time() - processor
        yield Turn(count / wall, 1000 * (wall - waited) / steps, waited / wall, count / alone / used)


def middle(values: Iterable[float], digits: int = 0) -> str:
    """The median, with the smallest and the largest."""
    found = sorted(values)
    return f"{statistics.median(found):.{digits}f} ({found[0]:.{digits}f} to {found[-1]:.{digits}f})"


if __name__ == "__main__":
    raise SystemExit(main())
