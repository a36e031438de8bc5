"""How many images a second the pipeline gives, beside the decoder's own limit, and how long a training step waits.

    python -m benchmarks.pipeline --photos photos100/ --cifar train.tar.gz

photos: a folder of pictures, in class folders or loose; each ImageNet recipe's whole pipeline, on all cores, beside
decoding the same files and nothing else. cifar: the recipe's pipeline alone, and training with it; the share of time
that training stands still for the next batch. Every figure is the median over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import build
from keras_resnet.training import open_images
from keras_resnet.training.augment import Treatment
from keras_resnet.training.batches import normalised, training_batches
from keras_resnet.training.images import DECODERS, Images, open_file
from keras_resnet.training.recipes import Recipe, recipe_of
from keras_resnet.training.sources import training_source

PHOTO_RECIPES = ("imagenet-paper", "imagenet-a3", "imagenet-a2", "finetune")
WARM_UP = 3  # batches that are not timed


def photos_of(folder: str) -> Images:
    """The pictures of a folder, whatever their classes."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return Images("photos", ("a", "b"), np.arange(len(files)) % 2, files, open_file)


def rate(job: Callable[[], int], rounds: int) -> tuple[float, float]:
    """Images a second, and a processor second, of a job that returns how many it did."""
    walls, processors = [], []
    for _ in range(rounds):
        wall, processor = time.perf_counter(), time.process_time()
        count = job()
        walls.append(count / (time.perf_counter() - wall))
        processors.append(count / (time.process_time() - processor))
    return statistics.median(walls), statistics.median(processors)


def pipeline(images: Images, recipe: Recipe, batches: int) -> Callable[[], int]:
    """Goes on through the recipe's batches, so many at a time."""
    data = training_batches(
        training_source(images, recipe),
        Treatment.of(recipe),
        batch_size=recipe.batch_size,
        seed=0,
        total_steps=10**9,
    )
    iterator = iter(data)

    def job() -> int:
        return sum(len(next(iterator)[0]) for _ in range(batches))

    for _ in range(WARM_UP):
        next(iterator)
    return job


def decode_all(images: Images, decode: Callable[[Path], object]) -> int:
    with ThreadPoolExecutor(DECODERS) as pool:
        return sum(1 for _ in pool.map(decode, images.items))


def waiting(images: Images, recipe: Recipe, batches: int) -> tuple[float, float, float]:
    """Images a second in training; the shares of its time spent waiting for data, and of its processor time in it."""
    keras.utils.set_random_seed(0)
    shape = (recipe.image_size, recipe.image_size, 3)
    model = build(recipe.variant, classes=len(images.classes), input_shape=shape, preprocessing=recipe.preprocessing)
    model.compile(keras.optimizers.SGD(0.01, 0.9), "categorical_crossentropy", jit_compile=False)
    data = normalised(
        training_batches(
            training_source(images, recipe),
            Treatment.of(recipe),
            batch_size=recipe.batch_size,
            seed=0,
            total_steps=10**9,
        ),
        recipe.preprocessing,
    )
    iterator = iter(data)
    for _ in range(WARM_UP):
        model.train_on_batch(*next(iterator))
    waited, count = 0.0, 0
    start, processor = time.perf_counter(), time.process_time()
    for _ in range(batches):
        before = time.perf_counter()
        x, y = next(iterator)
        waited += time.perf_counter() - before
        model.train_on_batch(x, y)
        count += len(x)
    wall, used = time.perf_counter() - start, time.process_time() - processor
    _, alone = rate(pipeline(images, recipe, batches), 1)
    return count / wall, waited / wall, count / alone / used


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", help="a folder of pictures")
    parser.add_argument("--cifar", help="CIFAR-10, as for `keras-resnet train --data`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=4, help="of photos, a round (default: 4, of 64)")
    parser.add_argument("--steps", type=int, default=100, help="of training on CIFAR (default: 100)")
    options = parser.parse_args()
    print("| what | images/s | images/processor s |\n|---|---|---|")
    if options.photos:
        photos = photos_of(options.photos)
        decoders = {
            "Pillow decodes the files": lambda path: open_file(path).load(),
            "TensorFlow decodes the files, fast": lambda path: tf.io.decode_jpeg(path.read_bytes()),
        }
        for name, decode in decoders.items():
            wall, processor = rate(lambda decode=decode: decode_all(photos, decode), options.rounds)
            print(f"| {name} | {wall:.0f} | {processor:.0f} |")
        for name in PHOTO_RECIPES:
            wall, processor = rate(pipeline(photos, recipe_of(name, batch_size=64), options.batches), options.rounds)
            print(f"| pipeline of {name} | {wall:.0f} | {processor:.0f} |")
    if options.cifar:
        images, recipe = open_images(options.cifar), recipe_of("cifar10-fast")
        wall, processor = rate(pipeline(images, recipe, options.steps), options.rounds)
        print(f"| pipeline of cifar10-fast | {wall:.0f} | {processor:.0f} |")
        found = [waiting(images, recipe, options.steps) for _ in range(options.rounds)]
        speed, waited, share = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"| training of cifar10-fast | {speed:.0f} | |")
        print(
            f"\ntraining waits for data {waited:.2%} of its time; the pipeline takes {share:.2%} of its processor time"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
