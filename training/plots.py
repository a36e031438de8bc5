"""Pictures of a run, drawn by matplotlib (extra `viz`) without a display; each is returned as the bytes of its file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import ImageOps

from keras_resnet.errors import missing_extra
from keras_resnet.preprocessing import open_image

GRID_PIXELS = 280


def check_installed() -> None:
    """Raise MissingExtraError where pictures cannot be drawn, before there is anything to draw."""
    _figure(1, 1)


def curves(history: list[dict[str, float]], names: Sequence[str] = (), kind: str = "png") -> bytes:
    """The named quantities over the epochs, in training and validation, side by side; kind: "png" or "svg".

    Default: loss, accuracy, and the learning rate where the history has it.
    """
    names = names or ["loss", "accuracy", *(name for name in history[0] if name == "learning_rate")]
    figure = _figure(4.5 * len(names), 3.2)
    epochs = [int(row["epoch"]) for row in history]
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), place)
        for column, label in ((name, "training"), (f"val_{name}", "validation")):
            if column in history[0]:
                axes.plot(epochs, [row[column] for row in history], label=label)
        axes.set(xlabel="epoch", ylabel=name.replace("_", " "))
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        if f"val_{name}" in history[0]:
            axes.legend(frameon=False)
    return _bytes(figure, kind)


def together(histories: Mapping[str, list[dict[str, float]]], name: str = "val_accuracy") -> bytes:
    """PNG: one quantity over the epochs of several runs, by name, each with an epoch or more."""
    figure = _figure(7.5, 4.5)
    axes = figure.add_subplot()
    for run, history in histories.items():
        label = run.replace("$", r"\$").lstrip("_")  # which would hide it
        epochs, values = [int(row["epoch"]) for row in history], [row[name] for row in history]
        axes.plot(epochs, values, label=label, marker="." if len(values) == 1 else None)
    axes.set(xlabel="epoch", ylabel=name.replace("val_", "validation "))
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return _bytes(figure, "png")


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], kind: str = "png") -> bytes:
    """A confusion matrix, counts[truth][answer]; the counts are printed where there is room for them."""
    matrix = np.asarray(counts)
    size = min(10.0, 3 + 0.3 * len(classes))
    figure = _figure(size, size)
    axes = figure.add_subplot()
    axes.imshow(np.log1p(matrix), cmap="Blues")
    if len(classes) <= 30:
        names = [name.replace("$", r"\$") for name in classes]  # a dollar would begin a formula
        axes.set_xticks(range(len(classes)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(classes)), names)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                dark = np.log1p(count) > 0.6 * np.log1p(matrix.max())
                axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black", size=8)
    axes.set(xlabel="answer", ylabel="truth")
    return _bytes(figure, kind)


def reliability(bins: Sequence[tuple[int, float, float]]) -> bytes:
    """PNG: accuracy over confidence, bins as `Evaluation.reliability` has them, and how many images each holds."""
    counts, confidence, accuracy = np.asarray(bins, np.float64).T
    error = float(np.average(np.abs(confidence - accuracy), weights=counts))
    figure = _figure(4.5, 5.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
    above.plot(confidence, accuracy, marker="o", label=f"observed, error {error:.2%}")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    above.grid(alpha=0.3)
    above.legend(frameon=False, loc="upper left")
    below.bar(confidence, counts, width=0.04)
    below.set(xlabel="confidence", ylabel="images", yscale="log")
    return _bytes(figure, "png")


def grid(pictures: Sequence[Any], captions: Sequence[str], columns: int = 5) -> bytes:
    """PNG: pictures (Pillow's, files or pixels) side by side, as they are seen, each above its caption."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = _figure(2.6 * columns, 3.1 * rows)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        shown = ImageOps.exif_transpose(open_image(picture)).convert("RGB")
        shown.thumbnail((GRID_PIXELS, GRID_PIXELS))
        axes.imshow(np.asarray(shown))
        axes.set_axis_off()
        under = {"xytext": (0, -4), "textcoords": "offset points", "ha": "center", "va": "top", "size": 8}
        axes.annotate(caption.replace("$", r"\$"), (0.5, 0), xycoords="axes fraction", **under)
    return _bytes(figure, "png")


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure  # without pyplot: no display, no global state
    except ImportError as error:
        raise missing_extra("drawing curves", "viz", error) from error
    return Figure(figsize=(width, height), layout="constrained")


def _bytes(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
