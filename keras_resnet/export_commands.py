"""`keras-resnet export`: one file for a phone, or several number formats into a folder with a page about all."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_resnet.console import load_keras, silenced
from keras_resnet.errors import UsageError, unknown
from keras_resnet.files import read_labels

MODEL = "a run folder, a .keras, .safetensors or .pth file, or VARIANT:WEIGHTS"
AGREEMENT = "least agreement (0.9); of embeddings cosine (0.98)"
SCORES = ("softmax", "sigmoid", "logits")
FORMATS = {  # the first is the default
    "tflite": ("int8", "int16x8", "dynamic", "float16", "float32"),
    "coreml": ("float16", "float32", "int8", "w8a8", "int4", "palette8", "palette6", "palette4", "prune"),
}
SUFFIXES = {"tflite": ".tflite", "coreml": ".mlpackage"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    one = parser.add_argument
    one("model", help=MODEL)
    one("--format", default="tflite", help=f"one of: {', '.join(FORMATS)} (default: tflite)")
    one(
        "--quantize",
        metavar="FORM",
        help="tflite: int8 (default), int16x8, dynamic, float16, float32; coreml: float16 (default), float32, int8, "
        "w8a8, int4, palette8, 6, 4, prune; or several: a,b",
    )
    one("--scores", metavar="FORM", help="softmax, sigmoid or logits (default: its own)")
    one("--interface", metavar="FORM", help="coreml: classifier (default), vector or arrays")
    one("--target", metavar="SYSTEM", help="coreml: the oldest, iOS15 to iOS26 (default: iOS16)")
    one("--calibration", metavar="IMAGES", help="images that set ranges; not those of --data")
    one("--effort", default="normal", help="of rounding weights: low, normal (default) or high")
    one("--data", metavar="IMAGES", help="labelled images to verify the file on")
    one("--max-drop", type=float, metavar="POINTS", help="int8: keep parts in float to lose no more")
    one("--keep-float", metavar="PARTS", help="parts in float: stem,stage4_block2,head; of tflite int8 also auto")
    one("--labels", metavar="FILE", help="a text file with a label a line")
    one("--author", default="", help="for the file's metadata")
    one("--licence", default="", help="for the file's metadata")
    one("--min-agreement", type=float, metavar="SHARE", help=AGREEMENT)
    one("--out", required=True, metavar="PATH", help="the file to write, or a folder for several")


def run(options: argparse.Namespace) -> None:
    """Carry out the verb. Raises UsageError for what does not go together, before anything is loaded."""
    forms = _forms(options)
    load_keras(debug=options.debug)
    from keras_resnet.export import compare
    from keras_resnet.export.concrete import labels_of, open_model

    labels = read_labels(options.labels) or labels_of(options.model)
    # Weights of other libraries are loaded here, for what is said of them is to be seen.
    model = options.model if labels_of(options.model) else open_model(options.model)
    if Path(options.out).suffix:
        print(_export(options, model, forms[0], Path(options.out), labels))
        return
    folder, mark = Path(options.out), "coreml-" if options.format == "coreml" else ""
    name = open_model(options.model).name if isinstance(model, str) else model.name
    for form in forms:
        place = folder / f"{name}-{mark}{form}{SUFFIXES[options.format]}"
        print(_export(options, model, form, place, labels), flush=True)
    print(compare(folder))


def _forms(options: argparse.Namespace) -> list[str]:
    """The number formats that are asked for."""
    if options.format not in FORMATS:
        raise unknown("format", options.format, FORMATS, where="--format")
    known = FORMATS[options.format]
    forms = [known[0]] if options.quantize is None else options.quantize.split(",")
    for form in forms:
        if form not in known:
            raise unknown("number format", form, known, where="--quantize")
    if len(forms) > 1 and Path(options.out).suffix:
        raise UsageError(f"--quantize {options.quantize} makes {len(forms)} files: give a folder as --out")
    if options.scores is not None and options.scores not in SCORES:
        raise unknown("form of scores", options.scores, SCORES, where="--scores")
    if options.format != "coreml" and options.target:
        raise UsageError("--target is for --format coreml: a .tflite file asks for no system")
    if options.format != "coreml" and options.interface:
        raise UsageError("--interface is for --format coreml: a .tflite file takes an array and gives a vector")
    if options.format != "tflite" and (options.keep_float == "auto" or options.max_drop is not None):
        raise UsageError("--keep-float auto and --max-drop are for --format tflite")
    return forms


def _export(options: argparse.Namespace, model: Any, form: str, place: Path, labels: Sequence[str] | None) -> Path:
    """One file; returns where it lies."""
    from keras_resnet.export import to_coreml, to_tflite

    same = ("scores", "calibration", "effort", "data", "author", "licence", "min_agreement")
    common: dict[str, Any] = {"quantize": form, "labels": labels, **{name: getattr(options, name) for name in same}}
    is_alone = bool(Path(options.out).suffix)
    packed = form not in ("float16", "float32") if options.format == "coreml" else form == "int8"
    kept = (options.keep_float or "") if is_alone or packed else ""
    parts = kept if kept == "auto" else [part for part in kept.split(",") if part]
    drop = options.max_drop if is_alone or packed else None
    with silenced(not options.debug):
        if options.format == "coreml":
            system = {"target": options.target, "interface": options.interface}
            return to_coreml(model, place, keep_float=parts, **system, **common).path
        return to_tflite(model, place, keep_float=parts, max_drop=drop, **common).path
