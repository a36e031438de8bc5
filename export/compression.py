"""From a trained network to a smaller one, by a few more epochs: trained for whole numbers, pruned, clustered.

Takes what the exporters take, leaves a folder that they take: a network of Keras 3 in `model.keras`. A network trained
for whole numbers carries its ranges, and becomes an int8 file without calibration images.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from keras_resnet.errors import InputError, UsageError, unknown
from keras_resnet.export import tfmot
from keras_resnet.export.calibration import calibrate, calibration_pixels
from keras_resnet.export.concrete import (
    EMBEDDING,
    Normalisation,
    answers_with,
    check_exportable,
    fold,
    integer_normalisation,
    labels_of,
    open_model,
)
from keras_resnet.export.finetuning import Material, fine_tune, loss_for
from keras_resnet.export.graph import learned_ranges, quantised, simplify
from keras_resnet.export.metadata import hash_of
from keras_resnet.export.quantisation import learnable, learned
from keras_resnet.files import replacing
from keras_resnet.preprocessing import Preprocessing, preprocessing_of
from keras_resnet.specs import is_number, is_positive
from keras_resnet.training.augment import AUGMENTATIONS
from keras_resnet.training.data import Data, Images, open_images
from keras_resnet.training.evaluation import evaluate_model, for_network
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.runs import COMPRESSION, Run, check_run_folder, versions
from keras_resnet.training.trainer import VALIDATION_FRACTION

NATIVE = "quantise in Keras"
LEARNING_RATE = 1e-4  # of training for whole numbers
# Pixels are trained on in units of 64: a stem that reads bytes would have weights, and steps, of another size than the
# layers behind it. A power of two, so that the file, whose stem does read bytes, computes the same to the last bit.
UNIT = 64.0


# A method, as the steps that it takes: `NATIVE`, or a name of `tfmot.STEPS`
METHODS: Mapping[str, tuple[str, ...]] = {
    "qat": (NATIVE,),
    "prune": ("prune",),
    "prune-2:4": ("prune-2:4",),
    "cluster": ("cluster",),
    "pqat": ("prune", NATIVE),
    "qat-tfmot": ("quantise",),
    "pqat-tfmot": ("prune", "quantise, zeros kept"),
    "cqat": ("cluster", "quantise, clusters kept"),
    "pcqat": ("prune", "cluster, zeros kept", "quantise, both kept"),
}


def compress(
    source: keras.Model | str | os.PathLike[str],
    data: Data,
    out: str | os.PathLike[str],
    *,
    method: str = "qat",
    validation: Data | None = None,
    epochs: int = 10,
    learning_rate: float | None = None,
    augmentation: str | None = None,
    progress: bool = True,
) -> Run:
    """Fine-tune a trained network so that it stays good when it is made smaller.

    source: a model, run folder, `.keras` file or "VARIANT:WEIGHTS"; data: the images that it was trained on;
    validation: labelled images that choose the epoch, without them a tenth of `data`, the one that `train` sets apart.
    out: a folder to write, new, empty or an earlier result; everything takes it that takes a run.

    method: "qat", for int8: kernels and activations are rounded in training as the file will round them, pruned weights
    stay 0, and `to_tflite` needs no calibration images; "prune", half of each kernel's weights are 0; "prune-2:4", two
    of each four; "cluster", 16 values a kernel; "pqat", pruned and then for int8. With TensorFlow's model optimisation
    toolkit also in the last step: "qat-tfmot", "pqat-tfmot", "cqat" (clusters kept), "pcqat" (zeros too).
    epochs: of each step; learning_rate: at the start of each, falling to 0; default the method's. augmentation: how
    images are varied, such as "shift_flip"; default that of the run's recipe, which also says how many images make a
    batch, and "none" for a network that has no recipe. progress: a bar with the time left on stderr.

    Pruned and clustered networks are stock Keras, as `source` was; one for int8 holds `layers.Bound`, has its
    normalisations in its convolutions, and takes pixels less a whole number (its preprocessing says so).
    Raises MissingExtraError, UsageError, InputError before anything is trained.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS, where="method=")
    if not is_positive(epochs):
        raise UsageError(f"epochs={epochs!r} must be a whole number from 1 up")
    if learning_rate is not None and not (is_number(learning_rate) and learning_rate > 0):
        raise UsageError(f"learning_rate={learning_rate!r} must be a number above 0")
    if augmentation is not None and augmentation not in AUGMENTATIONS:
        raise unknown("augmentation", augmentation, AUGMENTATIONS, where="augmentation=")
    steps = METHODS[method]
    folder = _check_out(out, source)
    model = open_model(source)
    preprocessing = check_exportable(model)
    if answers_with(model) == EMBEDDING:
        raise UsageError(f"model {model.name!r} has no classifier, by which it would be trained: give the one it has")
    if learned_ranges(model):
        raise UsageError(f"model {model.name!r} is trained for whole numbers already: give the network it was made of")
    activation = model.get_layer("head_dense").activation.__name__
    loss_for(activation)
    for step in steps:
        if step != NATIVE:
            tfmot.load(f"method {method!r}")
            tfmot.check_takes(model, step)
    known, classes = labels_of(source), model.outputs[0].shape[-1]
    images = open_images(data)
    held_out = None if validation is None else for_network(open_images(validation), classes, known)
    images = for_network(images, classes, known)
    if held_out is None:
        held_out, images = images.split(VALIDATION_FRACTION, seed=0)
    sample = calibration_pixels(images, preprocessing, model.inputs[0].shape[1:3])[1]
    recipe = _recipe_of(source)
    material = material_of(source, preprocessing, images, held_out, augmentation)
    before = evaluate_model(model, held_out, known)
    small, rows = model, []
    with tqdm(total=len(steps) * epochs * material.steps, desc=f"{method}", unit="step", disable=not progress) as bar:
        for step in steps:
            is_native = step == NATIVE
            treat = _trained_here if is_native else _trained_in_tfmot
            rate = learning_rate or (LEARNING_RATE if is_native else tfmot.STEPS[step].learning_rate)
            common = {"activation": activation, "epochs": epochs, "learning_rate": rate, "bar": bar}
            small, history = treat(small, step, material, sample, common)
            rows += [{"step": step, **row} for row in history]
    after = evaluate_model(small, held_out, known)
    description = {
        COMPRESSION: {
            "method": method,
            "epochs": epochs,
            "learning_rate": rate,
            "augmentation": material.augmentation,
            "before": before.top1,
            "weights_sha256": hash_of(model),
            "history": rows,
        },
        "recipe": None if recipe is None else asdict(recipe),
        "data": {
            "classes": list(held_out.classes),
            **{
                name: {"name": part.name, "count": len(part), "hash": part.hash}
                for name, part in (("training", images), ("validation", held_out), ("test", held_out))
            },
        },
        "versions": versions(),
    }
    with replacing(folder) as (scratch,):
        scratch.mkdir()
        run = Run(scratch)
        small.save(run.model)
        run.description.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        evaluation = {**asdict(after), "data_hash": held_out.hash}
        run.evaluation.write_text(json.dumps(evaluation, indent=2) + "\n", encoding="utf-8")
    return Run(folder)


def material_of(
    source: Any, preprocessing: Preprocessing, images: Images, held_out: Images, augmentation: str | None
) -> Material:
    """What a source is fine-tuned on: as its recipe has it, but for an augmentation that is asked for."""
    material = Material(
        images.pixels(preprocessing),
        images.labels,
        held_out.pixels(preprocessing),
        held_out.labels,
        len(images.classes),
        augmentation or "none",
    )
    recipe = _recipe_of(source)
    if recipe is None:
        return material
    return replace(material, augmentation=augmentation or recipe.augmentation, batch_size=recipe.batch_size)


def _trained_here(
    model: keras.Model, step: str, material: Material, sample: np.ndarray, common: Mapping[str, Any]
) -> tuple[keras.Model, list[dict[str, float]]]:
    carried, graph, inputs = _for_integers(model, sample)
    network = learnable(graph, calibrate(graph, inputs))
    rows = fine_tune(keras, network, material, carried, keep_start=True, **common)
    found = learned(network)
    return quantised(graph, found.ranges, found.weights, carried.layer_name), rows


def _trained_in_tfmot(
    model: keras.Model, step: str, material: Material, sample: np.ndarray, common: Mapping[str, Any]
) -> tuple[keras.Model, list[dict[str, float]]]:
    tf_keras, toolkit = tfmot.load(f"step {step!r}")
    preprocessing = preprocessing_of(model)
    twin = tfmot.twin_of(model, preprocessing.normalise(sample[:16]))
    is_quantising = tfmot.STEPS[step].strip is None
    start: Mapping[str, tuple[float, float]] = {}
    if is_quantising:
        _, graph, inputs = _for_integers(model, sample)
        start = calibrate(graph, inputs, effort="low").ranges
    trained = tfmot.wrapped(toolkit, twin, step, tfmot.by_own_names(model, start))
    callbacks = tfmot.STEPS[step].callbacks(toolkit)
    rows = fine_tune(tf_keras, trained, material, preprocessing, callbacks=callbacks, **common)
    back = tfmot.brought_back(model, toolkit, trained, step)
    if not is_quantising:
        return back, rows
    carried, graph, inputs = _for_integers(back, sample)
    measured = calibrate(graph, inputs, effort="low")  # what tfmot gives no range, such as the classifier's answers
    ranges = {**measured.ranges, **tfmot.learned_ranges(model, trained)}
    return quantised(graph, ranges, measured.weights, carried.layer_name), rows


def _for_integers(model: keras.Model, sample: np.ndarray) -> tuple[Preprocessing, keras.Model, np.ndarray]:
    """What a network trained for whole numbers reads, its simplified graph for that, and images as that reads them."""
    shift = integer_normalisation(preprocessing_of(model)).shift
    own = preprocessing_of(model)
    carried = Preprocessing(
        own.resize,
        own.crop,
        own.interpolation,
        scale=UNIT,
        mean=tuple(s / UNIT for s in shift),
        std=(1.0,) * len(shift),
    )
    graph = simplify(fold(model, Normalisation(shift, (1 / UNIT,) * len(shift))))
    return carried, graph, carried.normalise(sample)


def _check_out(out: str | os.PathLike[str], source: Any) -> Path:
    """The folder to write. Raises InputError where something else lies there, or the source."""
    run = check_run_folder(out)
    if run.description.is_file() and COMPRESSION not in run.read():
        raise InputError(f"output {str(out)!r} is a run that was trained: give another folder")
    if not isinstance(source, keras.Model) and Path(source).resolve() == run.folder.resolve():
        raise InputError(f"output {str(out)!r} is the network that is to be compressed: give another folder")
    return run.folder


def _recipe_of(source: Any) -> Recipe | None:
    """The recipe that a network was trained by; None where nobody knows."""
    if not isinstance(source, keras.Model) and Path(source).is_dir():
        with contextlib.suppress(InputError):
            return Run(Path(source)).recipe
    return None
