"""The main job, from images to a verified phone file: train, evaluate, export, run the files, say how they answer."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.console import silenced
from keras_resnet.errors import InputError, MissingExtraError
from keras_resnet.export import report
from keras_resnet.export.artifact import Artifact, check_target, size_of
from keras_resnet.export.coreml import to_coreml
from keras_resnet.export.latency import measure
from keras_resnet.export.tflite import to_tflite
from keras_resnet.export.verification import TfliteFile
from keras_resnet.files import write_json, write_text
from keras_resnet.preprocessing import preprocess_input, preprocessing_of
from keras_resnet.training import plots
from keras_resnet.training.data import open_images
from keras_resnet.training.images import Images
from keras_resnet.training.recipes import RECIPES, Recipe, recipe_of
from keras_resnet.training.runs import Run, versions
from keras_resnet.training.trainer import train
from keras_resnet.weights import load_model

VALIDATION, TEST = 0.2, 0.2  # of the images; the rest trains
NEEDED = {"ai_edge_litert": "tflite", "coremltools": "coreml", "matplotlib": "viz"}
SHOWN, SHOWN_WRONG = 24, 12  # answers on the page, and the wrong ones among them at most
NOT_RUN = "not run here"


@dataclass(frozen=True)
class Row:
    """One line of the table: a form of the network, and what was measured of it; None where it cannot run here."""

    form: str
    file: str
    size_bytes: int
    accuracy: float | None
    agreement: float | None
    latency_ms: float | None

    @property
    def cells(self) -> list[str]:
        measured = (self.accuracy, self.agreement)
        fractions = [NOT_RUN if value is None else report.percent(value) for value in measured]
        latency = NOT_RUN if self.latency_ms is None else f"{self.latency_ms:.2f} ms"
        return [self.form, *fractions, latency, report.size(self.size_bytes), self.file]


HEADER = ("form", "accuracy", "agreement", "latency", "size", "file")
NUMBERS = (1, 2, 3, 4)  # the columns of figures


def quickstart(
    out: str | os.PathLike[str] = "quickstart",
    data: str | os.PathLike[str] = "digits",
    *,
    progress: bool = True,
    debug: bool = False,
    **changes: Any,
) -> list[Row]:
    """Train on a data set, export to TFLite int8 and Core ML, verify, and write a page that says how well it went.

    out: a folder that is new, empty, or an earlier quickstart, which goes on; data: what `open_images` takes: three
    fifths train, a fifth validates, a fifth tests. changes: fields of the recipe. progress, debug: what is shown on
    stderr. Returns the rows of the table that the page shows.
    Raises MissingExtraError, UsageError, InputError before training starts.
    """
    _check_extras()
    folder = _check_folder(Path(out))
    recipe = recipe_of(RECIPES["digits" if str(data) == "digits" else "small-images"], **changes)
    images = open_images(data)
    names = ("validation", "test", "training")
    parts = images.split(VALIDATION, TEST)
    validation, test, training = (
        replace(p, name=f"{images.name}, {n} part") for p, n in zip(parts, names, strict=True)
    )
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in images.name)
    targets = folder / f"{stem}-int8.tflite", folder / f"{stem}.mlpackage"
    for target in targets:
        check_target(target, target.suffix)
    run = train(recipe, training, folder / "run", validation=validation, test=test, progress=progress)

    with silenced(not debug):
        tflite = to_tflite(run.folder, targets[0], calibration=training, data=test)
        coreml = to_coreml(run.folder, targets[1], data=test)
    rows = _rows(run, tflite, coreml, test)
    write_json(folder / "quickstart.json", {"rows": [asdict(row) for row in rows], "versions": versions()})
    write_text(folder / "report.html", _page(images, recipe, run, tflite, test, rows))
    return rows


def text_table(rows: list[Row]) -> str:
    """The rows as aligned plain text, readable as a Markdown table too."""
    lines = [list(HEADER), *(row.cells for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def _check_extras() -> None:
    missing = {package: extra for package, extra in NEEDED.items() if importlib.util.find_spec(package) is None}
    if missing:
        extras = ",".join(missing.values())
        raise MissingExtraError(
            f"quickstart needs packages that are not installed ({', '.join(missing)}): "
            f'pip install "keras-resnet-edge[{extras}]"'
        )


def _check_folder(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {str(folder)!r} is a file: give a folder that is new, empty or an earlier quickstart")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "run" / "run.json").is_file():
        raise InputError(
            f"output {str(folder)!r} holds something else: give a folder that is new, empty or an earlier quickstart"
        )
    return folder


def _rows(run: Run, tflite: Artifact, coreml: Artifact, test: Images) -> list[Row]:
    model = load_model(run.model)
    image = preprocess_input(test.pixels(preprocessing_of(model))[:1], model)
    found, replayed = tflite.read()["verification"], coreml.read()["verification"]
    return [
        Row(
            "Keras float32",
            f"run/{run.model.name}",
            size_of(run.model),
            found["model_top1"],
            1.0,
            measure(lambda: model.predict_on_batch(image)).median_ms,
        ),
        Row(
            "TFLite int8",
            tflite.path.name,
            size_of(tflite.path),
            found["file_top1"],
            found["agreement"],
            found["latency"]["median_ms"],
        ),
        Row(
            "Core ML float16",
            coreml.path.name,
            size_of(coreml.path),
            replayed["file_top1"],
            replayed["agreement"],
            None,
        ),
    ]


def _page(images: Images, recipe: Recipe, run: Run, tflite: Artifact, test: Images, rows: list[Row]) -> str:
    evaluation: Mapping[str, Any] = run.read_evaluation()
    confusion = plots.confusion(evaluation["confusion"], evaluation["classes"], kind="svg")
    curves = {f"{n} over the epochs": plots.curves(run.read_history(), (n,), kind="svg") for n in ("loss", "accuracy")}
    name = tflite.path.name
    count = {part: run.read()["data"][part]["count"] for part in ("training", "validation", "test")}
    intro = (
        f"<p>{recipe.variant}; epochs: {recipe.epochs}; trained on {count['training']:,} images of "
        f"{escape(images.name)} ({count['validation']:,} chose the epoch, {count['test']:,} were kept for this page), "
        "exported and run.</p>"
    )
    note = (
        "<p>Accuracy and agreement with the Keras network are those on the test images. Latency is that of one image "
        "on the machine that made this page: TFLite on one thread, Keras on all. Core ML runs on macOS alone: the "
        "package was read back and replayed, which says what it answers and not how fast.</p>"
    )
    return report.page(
        f"{images.name}: from images to a phone",
        intro,
        report.section(
            "How well each form answers", report.table(HEADER, [r.cells for r in rows], numbers=NUMBERS) + note
        ),
        report.section(
            f"The int8 file against the network, on {count['test']:,} test images",
            report.verification_table(tflite.read()["verification"], accuracy_verified=True),
        ),
        report.section("Answers of the int8 file", _answers(tflite, run, test)),
        report.section("Training", report.pictures(curves)),
        report.section("Confusion of the network", report.pictures({"truth against answer": confusion})),
        report.section("Use it", f"<pre>{SNIPPET.format(file=name, labels=tflite.labels.name)}</pre>"),
        report.section("Made with", report.facts(versions())),
    )


def _answers(tflite: Artifact, run: Run, test: Images) -> str:
    model = load_model(run.model)
    pixels = test.pixels(preprocessing_of(model))
    scores = TfliteFile(tflite.path.read_bytes(), tflite.path.name).scores(pixels)
    given = scores.argmax(axis=-1)
    shuffled = np.random.default_rng(0).permutation(len(test))  # the images stand in order of their classes
    is_right = (given == test.labels)[shuffled]
    wrong, right = shuffled[~is_right], shuffled[is_right]
    order = [*wrong[:SHOWN_WRONG], *right][:SHOWN]
    shown = report.answers(
        pixels[order],
        [test.classes[test.labels[i]] for i in order],
        [test.classes[given[i]] for i in order],
        [float(scores[i].max()) for i in order],
    )
    return f"<p>{len(wrong)} of {len(test):,} are wrong; some of them come first, then a few that are right.</p>{shown}"


SNIPPET = """\
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

labels = open("{labels}", encoding="utf-8").read().splitlines()
interpreter = Interpreter("{file}")
interpreter.allocate_tensors()
image, scores = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
height, width = image["shape"][1:3]
pixels = np.asarray(Image.open("photo.png").convert("RGB").resize((width, height)))   # raw pixels, no arithmetic
interpreter.set_tensor(image["index"], pixels[None])
interpreter.invoke()
print(labels[interpreter.get_tensor(scores["index"])[0].argmax()])"""
