"""`keras-resnet data`: pack, check and show labelled images. Each action is a few lines on a public function."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from keras_resnet.console import load_keras
from keras_resnet.errors import InputError, UsageError, unknown
from keras_resnet.files import check_file, replacing
from keras_resnet.training.recipes import RECIPES, parse_settings, recipe_of

MOST_SHOWN = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("action", help=f"one of: {', '.join(ACTIONS)}")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="as for --data of train; check takes several")
    parser.add_argument("--out", metavar="PATH", help="pack: the folder of shards; show: the .png to write")
    parser.add_argument("--damaged", default="error", help="pack, show: error (default) or skip damaged images")
    parser.add_argument("--images-per-shard", type=int, metavar="N", help="pack (default: 1000)")
    parser.add_argument(
        "--classes", metavar="FILE", help="check: a text file of the classes that there may be, one a line"
    )
    parser.add_argument("--recipe", help=f"show: one of {', '.join(RECIPES)} (default: digits)")
    parser.add_argument("--set", action="append", metavar="FIELD=VALUE", help="show: any field of the recipe")
    parser.add_argument("--step", type=int, metavar="N", help="show: the step whose batch it is (default: 0)")
    parser.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="show: how many images (default: 25); pack: at most so many, of each class alike (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="check: findings as JSON")


def run(options: argparse.Namespace) -> None:
    """Carry out one action. Raises UsageError for options of another; InputError where a check finds something."""
    if options.action not in ACTIONS:
        raise unknown("action", options.action, ACTIONS, where="data")
    action, names = ACTIONS[options.action]
    for name, default in OPTIONS.items():
        if name not in names and getattr(options, name) != default:
            raise UsageError(f"--{name.replace('_', '-')} is not for `data {options.action}`")
    if options.action != "check" and len(options.sources) > 1:
        raise UsageError(f"`data {options.action}` takes one source, not {len(options.sources)}")
    if "out" in names and options.out is None:
        raise UsageError(f"`data {options.action}` needs --out PATH")
    action(options)


def _pack(options: argparse.Namespace) -> None:
    load_keras(debug=options.debug)
    from keras_resnet.training import open_images
    from keras_resnet.training.packing import IMAGES_PER_SHARD, pack

    images = open_images(options.sources[0], damaged=options.damaged)
    if options.count is not None:
        if options.count < len(images.classes):
            raise UsageError(f"--count {options.count} must be {len(images.classes)} or more: an image of each class")
        images = images.balanced_sample(options.count)
    number = IMAGES_PER_SHARD if options.images_per_shard is None else options.images_per_shard
    folder = pack(images, options.out, images_per_shard=number, progress=True)
    print(f"{folder}: {len(images):,} images of {len(images.classes)} classes in {-(-len(images) // number)} shards")


def _check(options: argparse.Namespace) -> None:
    load_keras(debug=options.debug)
    from keras_resnet.training.checking import check

    classes = None
    if options.classes is not None:
        with open(options.classes, encoding="utf-8") as file:
            classes = file.read().splitlines()
    count, findings = check(options.sources, classes=classes, progress=True)
    if options.json:
        print(json.dumps({"files": count, "findings": [finding._asdict() for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(f"{finding.kind}\t{finding.file}\t{finding.detail}")
    if findings:
        kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(f.kind for f in findings).items())
        raise InputError(f"{count:,} files in class folders: {kinds}")
    if not options.json:
        print(f"{count:,} files in class folders: nothing found")


def _show(options: argparse.Namespace) -> None:
    step, count = options.step or 0, 25 if options.count is None else options.count
    if step < 0 or not 1 <= count <= MOST_SHOWN:
        raise UsageError(f"--step {step} must be 0 or more, --count {count} from 1 to {MOST_SHOWN}")
    recipe = recipe_of(options.recipe or "digits", **parse_settings(options.set or []))
    check_file(options.out, (".png",))
    load_keras(debug=options.debug)
    from keras_resnet.training import open_images, plots
    from keras_resnet.training.batches import batch_of

    plots.check_installed()
    images = open_images(options.sources[0], damaged=options.damaged)
    pixels, targets = batch_of(images, recipe, step)
    captions = [_caption(images.classes, target) for target in targets[:count]]
    with replacing(options.out) as (scratch,):
        scratch.write_bytes(plots.grid(list(pixels[:count]), captions))
    print(f"{options.out}: {len(captions)} images of step {step} as {options.recipe or 'digits'} sees them")


def _caption(classes: Any, target: Any) -> str:
    """The classes that a target holds more of than smoothing gives to all."""
    present = [i for i in sorted(range(len(classes)), key=lambda i: -target[i])[:2] if target[i] > 1.5 / len(classes)]
    return "\n".join(f"{classes[i]} {target[i]:.2f}" for i in present)


OPTIONS: Mapping[str, Any] = {
    "out": None,
    "damaged": "error",
    "images_per_shard": None,
    "classes": None,
    "recipe": None,
    "set": None,
    "step": None,
    "count": None,
    "json": False,
}
ACTIONS: Mapping[str, tuple[Callable[[argparse.Namespace], None], tuple[str, ...]]] = {
    "pack": (_pack, ("out", "damaged", "images_per_shard", "count")),
    "check": (_check, ("classes", "json")),
    "show": (_show, ("out", "damaged", "recipe", "set", "step", "count")),
}
