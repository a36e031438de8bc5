"""Several exports of one network beside each other: one page that says what each costs and how well it answers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from keras_resnet.errors import InputError
from keras_resnet.export import report
from keras_resnet.export.artifact import Artifact
from keras_resnet.files import write_text

NAME = "report.html"
SUFFIXES = (".tflite", ".mlpackage")
HEADER = ("file", "format", "size", "accuracy", "of the network", "agreement", "latency")
UNKNOWN = "not verified"


def compare(folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a folder of exports: a table of all, and their sizes and latencies side by side.

    Returns the page. Raises InputError where no export lies there, or one has no manifest.
    """
    place = Path(folder)
    files = sorted(file for suffix in SUFFIXES for file in place.glob(f"*{suffix}"))
    if not files:
        raise InputError(f"folder {str(folder)!r} holds no export: give one that `keras-resnet export` wrote to")
    manifests = [Artifact(file).read() for file in sorted(files, key=lambda file: (file.suffix != ".tflite", file))]
    page = place / NAME
    write_text(page, comparison_page(manifests))
    return page


def comparison_page(manifests: Sequence[Mapping[str, Any]]) -> str:
    """The page of several manifests."""
    judged = sorted({found["data"] for one in manifests if (found := one["verification"])})
    on = f"Judged on {escape(', '.join(judged))}. " if judged else ""
    note = (
        f"<p>{on}Intervals are 95 %. Latency is the median of one image on one thread of the machine that made the "
        "files; Core ML packages were replayed, which says what they answer and not how fast.</p>"
    )
    rows = [_row(one) for one in manifests]
    sizes = {one["file"]: (one["size_bytes"], report.size(one["size_bytes"])) for one in manifests}
    latencies = {
        one["file"]: (found["latency"]["median_ms"], f"{found['latency']['median_ms']:.2f} ms")
        for one in manifests
        if (found := one["verification"]) and found["latency"]
    }
    names = sorted({one["model"]["name"] for one in manifests})
    return report.page(
        f"{', '.join(names)}: {len(manifests)} files",
        report.section("How well each answers", report.table(HEADER, rows, numbers=(2, 3, 4, 5, 6)) + note),
        report.section("Size", report.bars(sizes)),
        *([report.section("Latency", report.bars(latencies))] if latencies else []),
        report.section("Pages of the files", _links(manifests)),
    )


def _row(manifest: Mapping[str, Any]) -> list[str]:
    found = manifest["verification"]
    row = [manifest["file"], manifest["format"], report.size(manifest["size_bytes"])]
    if found is None:
        return [*row, UNKNOWN, UNKNOWN, UNKNOWN, "not run here"]
    latency = f"{found['latency']['median_ms']:.2f} ms" if found["latency"] else "not run here"
    if "mean_cosine" in found:
        return [*row, "", "", f"cosine {found['mean_cosine']:.5f}", latency]
    accuracy = [
        report.with_interval(found[f"{side}_top1"], found[f"{side}_interval"])
        if manifest["accuracy_verified"]
        else UNKNOWN
        for side in ("file", "model")
    ]
    return [*row, *accuracy, report.with_interval(found["agreement"], found["agreement_interval"]), latency]


def _links(manifests: Sequence[Mapping[str, Any]]) -> str:
    pages = [escape(Artifact(Path(one["file"])).report.name) for one in manifests]
    items = "".join(f'<li><a href="{page}">{page}</a></li>' for page in pages)
    return f"<ul>{items}</ul>"
