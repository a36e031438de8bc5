"""The command line: verbs of a few lines that call a public function. Heavy imports stand inside the verb.

Results go to stdout, progress and errors to stderr. Exit codes: 0; 1 a failure; 2 wrong usage; 130 Ctrl-C; 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from keras_resnet import __version__, data_commands, export_commands
from keras_resnet.console import load_keras
from keras_resnet.errors import ExportError, InputError, KerasResnetError, UsageError, nearest, unknown
from keras_resnet.export_commands import AGREEMENT, MODEL
from keras_resnet.files import check_file, read_labels, write_bytes, write_csv
from keras_resnet.specs import VARIANTS, list_variants, spec_of
from keras_resnet.training.recipes import RECIPES, Recipe

INTERRUPTED = 130
MOST_PIXELS = 10_000
DATA = "'digits', 'cifar10', a folder or .tar of class folders, packed shards, or a .npz"
METHODS = ("qat", "prune", "prune-2:4", "cluster", "pqat", "qat-tfmot", "pqat-tfmot", "cqat", "pcqat")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in given  # wherever it stands
    try:
        options = _parse([word for word in given if word != "--debug"])
        options.debug = debug
        options.run(options)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print(
            "\nkeras-resnet: interrupted; nothing half-written was left. Give the same command again.", file=sys.stderr
        )
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KerasResnetError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"keras-resnet: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code if isinstance(error, KerasResnetError) else 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        detail = " ".join(str(error).split()) or type(error).__name__
        print(f"keras-resnet: {type(error).__name__}: {detail} (--debug shows where)", file=sys.stderr)
        return 1


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are UsageErrors that offer the nearest valid names."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **keywords)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` shows how")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser, verbs = _parser()
    words = [word for word in arguments if not word.startswith("-")]
    if words and words[0] not in verbs:
        raise unknown("command", words[0], verbs)
    if words:  # before argparse, which would miss a required option first
        valid = [name for name in verbs[words[0]]._option_string_actions if name.startswith("--")]
        for wrong in (word.partition("=")[0] for word in arguments if word.startswith("--")):
            if wrong not in valid and arguments.index(words[0]) == 0:
                near = ", ".join(nearest(wrong, valid))
                raise UsageError(
                    f"unknown option {wrong!r}: nearest are {near}; `keras-resnet {words[0]} --help` shows all"
                )
    return parser.parse_args(arguments)


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="keras-resnet",
        description="Residual networks in Keras, from training to a verified file for a phone.",
        epilog="example: keras-resnet quickstart --out quickstart",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND", parser_class=_Parser)
    verbs: dict[str, _Parser] = {}

    def verb(name: str, run: Any, purpose: str, example: str) -> _Parser:
        one = subparsers.add_parser(name, help=purpose, description=f"{purpose}.", epilog=f"example: {example}")
        one.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' own messages")
        one.set_defaults(run=run)
        verbs[name] = one
        return one

    one = verb(
        "quickstart",
        _quickstart,
        "train, export, verify: from images to a phone file with a page that says how well it answers",
        "keras-resnet quickstart --data photos/ --out photos-quickstart",
    )
    one.add_argument("--data", default="digits", help=f"{DATA} (default: digits)")
    one.add_argument("--out", default="quickstart", metavar="FOLDER", help="where to write (default: quickstart)")
    _recipe_options(one, ("variant", "image_size", "epochs", "batch_size", "learning_rate", "seed"))

    one = verb("list", _list, "list variants, weights, recipes or runs", "keras-resnet list weights resnet50")
    one.add_argument("what", help="variants, weights, recipes or runs")
    one.add_argument("pattern", nargs="?", default="", help="part of a name; for runs: the folder that holds them")
    one.add_argument("--plot", metavar="FILE", help="runs: a .png to write, the validation accuracy of all of them")
    one.add_argument("--json", action="store_true")

    one = verb(
        "inspect",
        _inspect,
        "what a network costs and sees; or what a .tflite or .mlpackage file is, and which targets take all of it",
        "keras-resnet inspect resnet50.tflite",
    )
    one.add_argument("model", help="a variant, a .keras file or a run folder; or anybody's .tflite or .mlpackage")
    one.add_argument("--calibration", help=".mlpackage: images, to see whether float16 holds what is computed on them")
    one.add_argument("--size", type=int, help="height and width in pixels, where not the network's own")
    one.add_argument("--layers", action="store_true", help="a row a layer, not the totals alone")
    form = one.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true")
    form.add_argument("--json", action="store_true")

    one = verb(
        "train",
        _train,
        "train a network into a run folder; the same command goes on with a run that was stopped",
        "keras-resnet train cifar_resnet20 --recipe small-images --data photos/ --run runs/a",
    )
    one.add_argument("variant", nargs="?", help="the network (default: the recipe's)")
    one.add_argument("--recipe", default="digits", help="see `keras-resnet list recipes` (default: digits)")
    one.add_argument("--data", required=True, help=DATA)
    one.add_argument("--validation", help="images that choose the epoch (default: a tenth of --data)")
    one.add_argument("--test", help="images that the evaluation is on (default: those of --validation)")
    one.add_argument("--damaged", default="error", help="error (default), or skip: leave damaged images out, list them")
    one.add_argument("--cache", default="auto", help="keep pixels in memory, on disk, or none (default: auto)")
    one.add_argument("--run", required=True, metavar="FOLDER", dest="folder", help="the run folder to write")
    one.add_argument(
        "--strategy",
        default="auto",
        help="auto (default), single, mirrored, workers or tpu",
    )
    one.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any field of the recipe: mixup=0.2, ema=0.999",
    )
    _recipe_options(one, ("image_size", "epochs", "batch_size", "learning_rate", "precision", "seed"))

    one = verb(
        "data",
        data_commands.run,
        "pack images into shards, check them for faults, or show what a network sees of them in training",
        "keras-resnet data show photos/ --recipe finetune --out seen.png",
    )
    data_commands.add_options(one)

    one = verb(
        "verify-run",
        _verify_run,
        "take the last steps of a run again, and prove that they give what it has stored, to the last bit",
        "keras-resnet verify-run runs/a",
    )
    one.add_argument("folder", metavar="RUN", help="a run folder")
    one.add_argument("--data", help="where its images lie now (default: where run.json says)")
    one.add_argument("--validation", help="the same for the images that choose the epoch")
    one.add_argument("--json", action="store_true")

    one = verb(
        "evaluate",
        _evaluate,
        "accuracy of a network, or of several together, on labelled images, with its interval",
        "keras-resnet evaluate resnet50:imagenet resnet101:imagenet --data imagenet-val/ --crops 10",
    )
    one.add_argument("models", nargs="+", metavar="MODEL", help=f"{MODEL}; several: their probabilities are averaged")
    one.add_argument("--data", required=True, help=f"{DATA}; classes by name, ImageNet id or number")
    one.add_argument("--resize", metavar="PIXELS", help="short side before the crop, or none (default: the network's)")
    one.add_argument("--crop", metavar="PIXELS", help="side of the centre crop, or none (default: the network's)")
    one.add_argument("--labels", metavar="FILE", help="a text file with the network's classes, a name a line")
    shown = one.add_mutually_exclusive_group()
    shown.add_argument(
        "--crops", type=int, choices=(1, 10), default=1, help="1: the centre (default); 10: corners too, and mirrored"
    )
    shown.add_argument("--scales", metavar="PIXELS", help="whole pictures, short sides 224,256,384,480,640 or as given")
    one.add_argument("--per-class", metavar="FILE", help="a .csv to write: a row a class")
    one.add_argument("--confusion", metavar="FILE", help="a .png to write: what is taken for what")
    one.add_argument("--reliability", metavar="FILE", help="a .png to write: accuracy over confidence")
    one.add_argument("--json", action="store_true")

    one = verb(
        "predict",
        _predict,
        "what a network sees in images: the best classes with their probabilities",
        "keras-resnet predict resnet50:imagenet cat.jpg dog.jpg --grid answers.png",
    )
    one.add_argument("model", help=f"{MODEL}, or a .tflite or .mlpackage file")
    one.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    one.add_argument("--top", type=int, default=5, help="how many classes (default: 5)")
    one.add_argument("--labels", metavar="FILE", help="a text file with a class a line (default: what is known)")
    one.add_argument("--grid", metavar="FILE", help="a .png to write: the images with their answers")
    one.add_argument("--json", action="store_true")

    one = verb(
        "compress",
        _compress,
        "fine-tune a trained network so that it stays good in int8, pruned or clustered",
        "keras-resnet compress runs/a --data photos/ --out runs/a-qat",
    )
    one.add_argument("model", help=MODEL)
    one.add_argument(
        "--method",
        default="qat",
        help="qat (default): for int8; prune: half of the weights 0; prune-2:4: two of each four; cluster: 16 values a "
        "kernel; pqat: pruned, for int8; qat-tfmot, pqat-tfmot, cqat, pcqat: for int8 by TensorFlow's toolkit",
    )
    one.add_argument("--data", required=True, help=f"the images that it was trained on: {DATA}")
    one.add_argument("--validation", help="images that choose the epoch (default: a tenth of --data)")
    one.add_argument("--epochs", type=int, default=10, help="of each step of the method (default: 10)")
    one.add_argument("--learning-rate", type=float, help="at the start of each step (default: the step's)")
    one.add_argument("--augmentation", metavar="NAME", help="how images are varied (default: the recipe's, or none)")
    one.add_argument("--out", required=True, metavar="FOLDER", help="what to write; `export` and the others take it")

    one = verb(
        "export",
        export_commands.run,
        "write a file for a phone, with its labels, manifest and report beside it",
        "keras-resnet export runs/a --format tflite --quantize int8 --calibration photos/ --out a.tflite",
    )
    export_commands.add_options(one)

    one = verb(
        "benchmark",
        _benchmark,
        "time a .tflite file here, or two in turn: which is faster, what they need",
        "keras-resnet benchmark resnet50-int8.tflite resnet50-float16.tflite --threads 2",
    )
    one.add_argument("first", metavar="FILE", help="a .tflite file")
    one.add_argument("second", metavar="OTHER", nargs="?", help="another, which answers in turn with the first")
    one.add_argument("--threads", type=int, default=1, metavar="N", help="of the interpreter (default: 1)")
    one.add_argument("--runs", type=int, default=100, metavar="N", help="answers that are timed (default: 100)")
    one.add_argument("--json", action="store_true")

    one = verb(
        "verify",
        _verify,
        "compare a .tflite file, or a .mlpackage by replay, with its network; or let a .tflite file test itself",
        "keras-resnet verify a.tflite --model runs/a --data photos-test/",
    )
    one.add_argument("file", help="a .tflite or .mlpackage file; alone, a .tflite file answers the pictures inside it")
    one.add_argument("--model", help=MODEL)
    one.add_argument("--data", help=DATA)
    one.add_argument("--min-agreement", type=float, metavar="SHARE", help=AGREEMENT)
    one.add_argument("--json", action="store_true")
    return parser, verbs


def _recipe_options(parser: _Parser, names: Sequence[str]) -> None:
    """An option for each named field of a recipe that is one number or word."""
    types = {"int": int, "float": float, "str": str}
    for field in dataclasses.fields(Recipe):
        if field.name in names and field.type in types:
            option = f"--{field.name.replace('_', '-')}"
            parser.add_argument(option, type=types[str(field.type)], dest=f"recipe_{field.name}", metavar="VALUE")


def _recipe_changes(options: argparse.Namespace) -> dict[str, Any]:
    given = vars(options).items()
    return {k.removeprefix("recipe_"): v for k, v in given if k.startswith("recipe_") and v is not None}


def _quickstart(options: argparse.Namespace) -> None:
    load_keras(debug=options.debug)
    from keras_resnet.quickstart import quickstart, text_table

    rows = quickstart(options.out, options.data, debug=options.debug, **_recipe_changes(options))
    print(text_table(rows))
    print(f"\npage: {os.path.join(options.out, 'report.html')}")


def _list(options: argparse.Namespace) -> None:
    tables = {"variants": _variant_rows, "weights": _weight_rows, "recipes": _recipe_rows, "runs": _run_rows}
    if options.what not in tables:
        raise unknown("list", options.what, tables)
    if options.plot is not None:
        if options.what != "runs":
            raise UsageError(f"--plot is for runs: {options.what} have no curves")
        check_file(options.plot, (".png",))
    rows = tables[options.what](options.pattern)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows, options)
    if options.plot is not None:
        _plot_runs(options.plot, [row["run"] for row in rows if row["epochs"]])


def _print_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    if not rows:
        raise UsageError(f"no {options.what} match {options.pattern!r}: `keras-resnet list {options.what}` shows all")
    lines = [list(rows[0]), *([_cell(*item) for item in row.items()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _plot_runs(path: str, folders: Sequence[str]) -> None:
    from pathlib import Path

    from keras_resnet.training import plots
    from keras_resnet.training.runs import Run

    if not folders:
        raise InputError(f"no run has finished an epoch: there is nothing to draw into {path!r}")
    runs = [Run(Path(folder)) for folder in folders]
    write_bytes(path, plots.together({run.folder.name: run.read_history() for run in runs}))


def _cell(name: str, value: Any) -> str:
    if name in ("val_accuracy", "top1", "low", "high") and isinstance(value, float):
        return f"{value:.2%}"
    return "" if value is None else str(value)


def _variant_rows(pattern: str) -> list[dict[str, Any]]:
    rows = []
    for name in list_variants(pattern):
        spec = spec_of(name)
        depths = ",".join(map(str, spec.depths))
        form = "pre-activation" if spec.preactivation else "original"
        rows.append(
            {
                "variant": name,
                "block": spec.block,
                "depths": depths,
                "form": form,
                "shortcut": spec.shortcut,
                "groups": spec.groups,
                "size": spec.input_size,
                "classes": spec.classes,
            }
        )
    return rows


def _weight_rows(pattern: str) -> list[dict[str, Any]]:
    from keras_resnet.registry import WEIGHTS, list_weights

    rows = []
    for tag in list_weights(pattern):
        row = WEIGHTS[tag]
        best = row.accuracy[0]
        top1 = f"{best.top1:.2f} % at {best.crop}"
        rows.append(
            {"weights": tag, "variant": row.variant, "classes": row.classes, "top1": top1, "licence": row.licence}
        )
    return rows


def _recipe_rows(pattern: str) -> list[dict[str, Any]]:
    shown = ("variant", "image_size", "epochs", "batch_size", "learning_rate", "augmentation")
    return [
        {"recipe": name, **{field: getattr(recipe, field) for field in shown}}
        for name, recipe in RECIPES.items()
        if pattern in name
    ]


def _run_rows(folder: str) -> list[dict[str, Any]]:
    from keras_resnet.training.runs import compare, runs_in

    return compare(runs_in(folder or "."))


def _inspect(options: argparse.Namespace) -> None:
    if options.model.endswith((".tflite", ".mlpackage")):
        _inspect_file(options)
        return
    if options.calibration is not None:
        raise UsageError("--calibration is for a .mlpackage: a network's own values are not looked at")
    shape = None if options.size is None else (options.size, options.size)
    if not os.path.exists(options.model) and options.model not in VARIANTS:
        raise unknown("variant", options.model, VARIANTS, show_all="`keras-resnet list variants`")
    load_keras(debug=options.debug)
    from keras_resnet import build, profile
    from keras_resnet.export.concrete import open_model

    if options.model in VARIANTS:
        side = VARIANTS[options.model].input_size if options.size is None else options.size
        found = profile(build(options.model, input_shape=(side, side, 3)))
    else:
        found = profile(open_model(options.model), input_shape=shape)
    print(found.json() if options.json else found.csv() if options.csv else found.table(layers=options.layers))


def _inspect_file(options: argparse.Namespace) -> None:
    for name in ("size", "layers", "csv"):
        if getattr(options, name):
            raise UsageError(f"--{name} is for a network: {options.model!r} is an exported file")
    if options.calibration is not None and not options.model.endswith(".mlpackage"):
        raise UsageError("--calibration is for a .mlpackage: a .tflite file holds its ranges")
    load_keras(debug=options.debug)
    from keras_resnet.export import inspect

    found = inspect(options.model, calibration=options.calibration)
    print(json.dumps(found.as_json(), indent=2) if options.json else found)


def _train(options: argparse.Namespace) -> None:
    from keras_resnet.training.recipes import parse_settings, recipe_of

    changes = {**parse_settings(options.set), **_recipe_changes(options)}
    if options.variant is not None:
        changes["variant"] = options.variant
    recipe = recipe_of(options.recipe, **changes)
    load_keras(debug=options.debug)
    from keras_resnet.training import train

    parts = {name: getattr(options, name) for name in ("validation", "test", "damaged", "cache", "strategy")}
    run = train(recipe, options.data, options.folder, **parts)
    if not run.is_complete:  # the chief's, on another machine
        return
    found = run.read_evaluation()
    low, high = found["interval"]
    kind = "validation" if options.test is None else "test"
    print(
        f"{found['top1']:.2%} of {found['count']:,} {kind} images ({found['data']}; 95 %: {low:.2%} to {high:.2%}), "
        f"{run.folder}"
    )


def _verify_run(options: argparse.Namespace) -> None:
    load_keras(debug=options.debug)
    from keras_resnet.training import verify_run

    found = verify_run(options.folder, options.data, validation=options.validation)
    said = f"steps {found.first} to {found.last} of {options.folder} taken again: {found.compared} values"
    if options.json:
        print(json.dumps({**dataclasses.asdict(found), "is_equal": found.is_equal}))
    elif found.is_equal:
        print(f"{said}, all equal to the last bit")
    if not found.is_equal:
        shown = ", ".join(found.differing[:5])
        raise InputError(f"{said}, {len(found.differing)} differ ({shown}): another kind of processor rounds otherwise")


def _evaluate(options: argparse.Namespace) -> None:
    given = {name: _pixels(name, getattr(options, name)) for name in ("resize", "crop")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    scales = [_pixels("scales", side) or 0 for side in options.scales.split(",")] if options.scales else []
    labels = read_labels(options.labels)
    for path, suffix in ((options.per_class, ".csv"), (options.confusion, ".png"), (options.reliability, ".png")):
        if path is not None:
            check_file(path, (suffix,))
    load_keras(debug=options.debug)
    from keras_resnet.export.concrete import open_model
    from keras_resnet.export.prediction import names_of
    from keras_resnet.preprocessing import preprocessing_of
    from keras_resnet.training import evaluate_model, open_images, plots

    if options.confusion or options.reliability:
        plots.check_installed()
    images = open_images(options.data)
    models = [open_model(source) for source in options.models]
    names = {names_of(source, model.outputs[0].shape[-1]) for source, model in zip(options.models, models, strict=True)}
    if len(names) > 1 and labels is None:
        raise UsageError(
            f"{' and '.join(options.models)} have different classes: give --labels where they mean the same"
        )
    known = labels or next(iter(names))
    needs = [dataclasses.replace(preprocessing_of(model), **changes) for model in models]
    start = time.perf_counter()
    found = evaluate_model(
        models, images, known, preprocessing=needs, crops=options.crops, scales=scales, progress=True
    )
    rate = found.count / (time.perf_counter() - start)
    if options.per_class is not None:
        write_csv(options.per_class, found.per_class())
    if options.confusion is not None:
        write_bytes(options.confusion, plots.confusion(found.confusion, found.classes))
    if options.reliability is not None:
        write_bytes(options.reliability, plots.reliability(found.reliability))
    resize, crop = ([getattr(one, name) for one in needs] for name in ("resize", "crop"))
    if options.json:
        shown = {k: v for k, v in dataclasses.asdict(found).items() if k not in ("confusion", "predictions", "classes")}
        alone = len(models) == 1
        views = {"resize": resize[0] if alone else resize, "crop": crop[0] if alone else crop}
        print(json.dumps({**shown, **views, "crops": options.crops, "scales": scales, "images_per_s": rate}))
        return
    low, high = found.interval
    top5 = "" if found.top5 is None else f", top-5 {found.top5:.2%}"
    sizes = [" and ".join(str(side or "none") for side in sorted(set(sides))) for sides in (resize, crop)]
    seen = f"scales {options.scales}" if scales else f"resize {sizes[0]}, crop {sizes[1]}"
    print(
        f"top-1 {found.top1:.2%} ({found.correct:,} of {found.count:,} of {found.data}; 95 %: {low:.2%} to {high:.2%})"
        f"{top5}, calibration error {found.calibration_error:.2%}, {seen}{' x 10' * (options.crops == 10)}, "
        f"{rate:.0f} images/s"
    )


def _predict(options: argparse.Namespace) -> None:
    labels = read_labels(options.labels)
    if options.top < 1:
        raise UsageError(f"--top {options.top} must be 1 or more")
    if options.grid is not None:
        check_file(options.grid, (".png",))
    load_keras(debug=options.debug)
    from keras_resnet.export import predict

    found = predict(options.model, options.images, top=options.top, labels=labels)
    if options.grid is not None:
        from keras_resnet.training import plots

        lines = ["\n".join(f"{a.score:.1%} {textwrap.shorten(a.name, 28)}" for a in one.answers[:3]) for one in found]
        write_bytes(options.grid, plots.grid([one.image for one in found], lines))
    if options.json:
        rows = [{"image": one.image, "answers": [answer._asdict() for answer in one.answers]} for one in found]
        print(json.dumps(rows, indent=2))
        return
    for one in found:
        print(one.image)
        for answer in one.answers:
            print(f"  {answer.score:7.2%}  {answer.name}" + (f"  ({answer.id})" if answer.id != answer.name else ""))


def _pixels(name: str, given: str | None) -> int | None:
    """A number of pixels, 0 for "none"; None where nothing was given."""
    if given is None or given == "none":
        return None if given is None else 0
    if not given.isdecimal() or not 1 <= int(given) <= MOST_PIXELS:
        raise UsageError(f"--{name} {given!r} must be a number of pixels from 1 to {MOST_PIXELS:,}, or none")
    return int(given)


def _compress(options: argparse.Namespace) -> None:
    if options.method not in METHODS:
        raise unknown("method", options.method, METHODS, where="--method")
    load_keras(debug=options.debug)
    from keras_resnet.export import compress
    from keras_resnet.training.runs import COMPRESSION

    run = compress(
        options.model,
        options.data,
        options.out,
        method=options.method,
        validation=options.validation,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        augmentation=options.augmentation,
    )
    found = run.read_evaluation()
    print(
        f"{found['top1']:.2%} of {found['count']:,} validation images ({found['data']}), before "
        f"{run.read()[COMPRESSION]['before']:.2%}, {run.folder}"
    )


def _benchmark(options: argparse.Namespace) -> None:
    load_keras(debug=options.debug)
    from keras_resnet.export import benchmark

    found = benchmark(options.first, options.second, threads=options.threads, runs=options.runs)
    if options.json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    for one in found.files:
        print(
            f"{one.file}: median {one.latency.median_ms:.3f} ms, 95 % below {one.latency.p95_ms:.3f} ms "
            f"({found.threads} thread{'s' * (found.threads > 1)}, {one.latency.runs} runs); opens in "
            f"{one.open_ms:.1f} ms, {one.memory_mb:.1f} MB of memory, {one.size_bytes / 1e6:.2f} MB"
        )
        print(f"  {', '.join(f'{kind} {count}' for kind, count in one.operations.items())}")
    if found.ratio is not None and found.ratio_interval is not None:
        low, high = found.ratio_interval
        print(f"the first takes {found.ratio:.3f} times as long as the second (95 %: {low:.3f} to {high:.3f})")


def _verify(options: argparse.Namespace) -> None:
    if (options.model is None) != (options.data is None):
        raise UsageError("--model and --data go together: the network, and images to compare it and the file on")
    load_keras(debug=options.debug)
    from keras_resnet.export import Similarity, self_test, verify

    if options.model is None:
        test = self_test(options.file)
        if options.json:
            print(json.dumps({**dataclasses.asdict(test), "passed": test.passed}))
        else:
            print(f"{test.agreeing} of {test.count} agree; largest difference {test.largest_difference:.4f}")
        if not test.passed:
            raise ExportError(f"{options.file!r} does not answer here as it did when it was made")
        return
    found = verify(options.file, options.model, options.data, min_agreement=options.min_agreement)
    if options.json:
        print(json.dumps(found.as_json()))
    elif isinstance(found, Similarity):
        print(
            f"cosine similarity {found.mean_cosine:.5f}, at worst {found.worst_cosine:.5f}, on {found.count:,} images "
            f"of {found.data}"
        )
    else:
        print(
            f"agreement {found.agreement:.2%} on {found.count:,} images of {found.data}; "
            f"accuracy {found.file_top1:.2%}, of the network {found.model_top1:.2%}"
        )


if __name__ == "__main__":
    sys.exit(main())
