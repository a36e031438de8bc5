"""What each form of a Core ML package costs, by replay: size, accuracy, agreement, beside coremltools' plain passes.

    python -m benchmarks.coreml_accuracy resnet18:FILE.safetensors --calibration calib200.tar --data val1000.tar \\
        --out resnet18.json

Images are read by their class folders' numbers and cropped at (1, 1), not resized. "plain int8" and the like are made
by coremltools alone with its settings for that form, and without calibration images; "plain w8a8" has the least and the
greatest value on them as ranges. Every finished row goes into --out, with its answers: the same command goes on where
it was stopped. Nothing is chosen here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import keras
import numpy as np
from PIL import Image

from benchmarks.quantisation import kept_in, paired_interval, read, uncropped
from keras_resnet.export import coreml, to_coreml
from keras_resnet.export.artifact import size_of
from keras_resnet.export.concrete import Normalisation, concrete_function, exact_normalisation, fold
from keras_resnet.export.metadata import hash_of
from keras_resnet.export.mil import open_package
from keras_resnet.export.mil_forms import DEFAULT_TARGET, FORMS, Form, packed
from keras_resnet.files import write_json
from keras_resnet.preprocessing import preprocessing_of
from keras_resnet.training import Images
from keras_resnet.training.evaluation import scores_of
from keras_resnet.training.runs import versions

SYMMETRIC, KMEANS = {"mode": "linear_symmetric"}, {"mode": "kmeans"}
LINEAR = ("linear_quantize_weights", "OpLinearQuantizerConfig")
PALETTE = ("palettize_weights", "OpPalettizerConfig")
BLOCKS = {"dtype": "int4", "granularity": "per_block", "block_size": 32}
PLAIN: Mapping[str, Form] = {  # as coremltools' guide has them
    "int8": Form(oldest="iOS16", compress=LINEAR, settings=SYMMETRIC),
    "w8a8": Form(oldest="iOS17", compress=LINEAR, settings=SYMMETRIC, activations=True),
    "int4": Form(oldest="iOS18", compress=LINEAR, settings={**SYMMETRIC, **BLOCKS}),
    **{f"palette{n}": Form(oldest="iOS16", compress=PALETTE, settings={**KMEANS, "nbits": n}) for n in (8, 6, 4)},
    "palette4 of 16 filters": Form(
        oldest="iOS18",
        compress=PALETTE,
        settings={**KMEANS, "nbits": 4, "granularity": "per_grouped_channel", "group_size": 16},
    ),
    "prune": Form(
        oldest="iOS16", compress=("prune_weights", "OpMagnitudePrunerConfig"), settings={"target_sparsity": 0.5}
    ),
}
ROWS = [
    name for form in FORMS for name in (form, *(f"plain {other}" for other in PLAIN if other.partition(" ")[0] == form))
]


def ours(model: keras.Model, form: str, calibration: np.ndarray, effort: str, path: Path) -> None:
    """A package as `to_coreml` makes it; calibration: uint8 [n, height, width, 3]."""
    classes = tuple(map(str, range(model.outputs[0].shape[-1])))
    images = Images("calibration", classes, np.zeros(len(calibration), int), list(calibration), Image.fromarray)
    with mock.patch.object(coreml, "verify_package", return_value=None):  # it is judged here
        to_coreml(model, path, quantize=form, calibration=images, effort=effort)


def plain(model: keras.Model, form: Form, calibration: np.ndarray, path: Path) -> None:
    """A package as coremltools makes it of the same network."""
    preprocessing = preprocessing_of(model)
    whole = exact_normalisation(preprocessing)
    normalisation = Normalisation(whole.shift, (1 / preprocessing.scale,) * len(whole.shift))
    labels = list(map(str, range(model.outputs[0].shape[-1])))
    graph = fold(model, normalisation)
    for layer in graph.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1:
            layer.convolution_op = coreml._plain_convolution(layer)
    system = max(DEFAULT_TARGET, form.oldest)
    with coreml._coremltools(path.parent) as coremltools:
        function = concrete_function(graph, None)
        package = coreml.convert(coremltools, function, normalisation, labels, form.precision, system)
        if form.activations:
            package = plain_activations(coremltools, package, calibration, path.with_name("a.mlpackage"), system)
        packed(coremltools, package, form).save(str(path))


def plain_activations(coremltools: Any, package: Any, pixels: np.ndarray, scratch: Path, system: str) -> Any:
    """What `coremltools.optimize.coreml.linear_quantize_activations` does, which runs on macOS alone.

    Its own passes, with the least and the greatest of each value as ranges, of which the replay learns.
    """
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil.passes.graph_pass import PassOption
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    package.save(str(scratch))
    seen: dict[str, dict[str, float]] = {}
    replayed = open_package(scratch)
    for image in pixels:
        for step, value in replayed.replay(image[None]):
            if step.dtype is not None and step.dtype.kind == "f":
                bounds = seen.setdefault(step.name, {"rmin": np.inf, "rmax": -np.inf})
                bounds["rmin"] = min(bounds["rmin"], float(value.min()))
                bounds["rmax"] = max(bounds["rmax"], float(value.max()))
    optimize = coremltools.optimize.coreml
    config = optimize.OptimizationConfig(global_config=optimize.OpLinearQuantizerConfig(**SYMMETRIC))
    passes = []
    for side in ("prefix", "suffix"):
        one = PASS_REGISTRY[f"compression::insert_{side}_quantize_dequantize_pair"]
        one.set_options([PassOption("config", config), PassOption("activation_stats", seen)])
        passes.append(one)
    passes.append(PASS_REGISTRY["common::dequantize_quantize_pair_elimination"])
    return coremltools.models.utils._apply_graph_pass(
        package,
        passes,
        spec_version=coremltools.target[system].value,
        pymil_load_func=load,
        skip_model_load=True,
    )


def measured(path: Path, pixels: np.ndarray) -> dict[str, Any]:
    """Size in bytes, answers and speed of a package."""
    package, start = open_package(path), time.perf_counter()
    answers = package.answer(pixels).argmax(axis=-1).tolist()
    return {"size_bytes": size_of(path), "answers": answers, "replay_s": time.perf_counter() - start}


def line(name: str, row: Mapping[str, Any], exact: np.ndarray, labels: np.ndarray) -> str:
    """A row of the table."""
    given = np.asarray(row["answers"])
    right, same = given == labels, given == exact
    low, high = paired_interval(exact == labels, right)
    lost = 100 * float((exact == labels).mean() - right.mean())
    return (
        f"| {name} | {row['size_bytes'] / 1e6:.2f} | {100 * right.mean():.1f} | {lost:.1f} ({low:.1f} to {high:.1f}) | "
        f"{100 * same.mean():.1f} | {row['seconds']:.0f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="VARIANT:WEIGHTS")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a .json, where finished rows are kept")
    parser.add_argument("--rows", nargs="*", default=ROWS, choices=ROWS, metavar="FORM", help=", ".join(ROWS))
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--every", type=int, default=1, help="judge on every n-th image alone")
    options = parser.parse_args()
    model, side = uncropped(options.model)
    calibration = read(options.calibration, side)[0][::2]
    pixels, labels = (part[:: options.every] for part in read(options.data, side))
    about = {
        "variant": options.model.partition(":")[0],
        "weights": hash_of(model),
        "data": options.data.name,
        "calibration": options.calibration.name,
        "every": options.every,
        "effort": options.effort,
        "versions": versions(),
    }
    kept = kept_in(options.out, about)
    rows = kept["rows"]
    if "Keras" not in rows:
        rows["Keras"] = {"answers": scores_of(model)(pixels).argmax(axis=-1).tolist()}
    exact = np.asarray(rows["Keras"]["answers"])
    right = 100 * (exact == labels).mean()
    print(f"{options.model}: {right:.1f} % of {len(labels)} in Keras; {len(calibration)} calibration images\n")
    print("| form | MB | top-1, % | loss, points (paired 95 %) | agreement, % | seconds to make |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in options.rows:
        if name not in rows:
            with tempfile.TemporaryDirectory() as folder:
                path, start = Path(folder) / "made.mlpackage", time.perf_counter()
                if name.startswith("plain "):
                    plain(model, PLAIN[name.removeprefix("plain ")], calibration, path)
                else:
                    ours(model, name, calibration, options.effort, path)
                seconds = time.perf_counter() - start
                rows[name] = {**measured(path, pixels), "seconds": seconds}
            write_json(options.out, kept)
        print(line(name, rows[name], exact, labels), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
