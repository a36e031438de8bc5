"""Read and write weights and models: the room that touches their files.

Takes a model or a path; gives a model, filled whole or not at all. What the layers are called is `blocks.py`'s.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.depth import recursion_room
from keras_resnet.errors import InputError, UsageError

SUFFIXES = (".weights.h5", ".keras")


def check_path(path: str | os.PathLike[str]) -> Path:
    """A weights file that exists and is of a kind that we read. Raises UsageError (kind) or InputError (absent)."""
    if str(path) == "imagenet":
        raise UsageError(
            "weights='imagenet': published weights are not in this version; "
            "give weights=None for random ones, or the path of a .weights.h5 or .keras file"
        )
    found = Path(path)
    if not found.name.endswith(SUFFIXES):
        raise UsageError(f"weights={str(path)!r} is neither {' nor '.join(SUFFIXES)}: give such a file, or None")
    if not found.is_file():
        raise InputError(f"weights file {str(path)!r} does not exist or is not a file: check the path")
    return found


def load_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Fill a model from a `.weights.h5` file of the same network, or from the same layers of a `.keras` file.

    The file must hold every weight of the model, and nothing else; a model is filled whole or left as it was.
    Raises UsageError for another kind of file, InputError for one that is absent, damaged or does not fit.
    """
    found = check_path(path)
    before = [variable.numpy() for variable in model.variables] if _is_filled(model) else None
    try:
        if found.name.endswith(".keras"):
            _copy(load_model(found), model, found)
        else:
            model.load_weights(found)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if before is not None:
            for variable, value in zip(model.variables, before, strict=True):
                variable.assign(value)
        if isinstance(error, InputError):
            raise
        raise InputError(f"weights file {str(path)!r} does not fit {model.name!r}: {_first_line(error)}") from error


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """A model from a `.keras` file, however deep. Code in the file is never run.

    Raises UsageError for another kind of file, InputError for one that is absent, damaged or not safe to load.
    """
    found = check_path(path)
    if found.suffix != ".keras":
        raise UsageError(f"{str(path)!r} holds weights only: build the network and give it as weights=")
    try:
        with zipfile.ZipFile(found) as archive:
            config = json.loads(archive.read("config.json"))
        with recursion_room(len(config["config"].get("layers", ()))):
            return keras.models.load_model(found, compile=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, zipfile.BadZipFile) as error:
        raise InputError(f"{str(path)!r} cannot be loaded as a Keras model: {_first_line(error)}") from error


def _copy(source: keras.Model, target: keras.Model, path: Path) -> None:
    values = {layer.name: layer.get_weights() for layer in source.layers if layer.weights}
    wanted = {layer.name: layer for layer in target.layers if layer.weights}
    missing, unexpected = sorted(wanted.keys() - values.keys()), sorted(values.keys() - wanted.keys())
    if missing or unexpected:
        raise InputError(
            f"weights file {str(path)!r} does not fit {target.name!r}: "
            f"missing layers {_first(missing)}; unexpected layers {_first(unexpected)}"
        )
    for name, layer in wanted.items():
        have, want = [value.shape for value in values[name]], [tuple(weight.shape) for weight in layer.weights]
        if have != want:
            raise InputError(
                f"weights file {str(path)!r} does not fit {target.name!r}: layer {name!r} has shapes {have} "
                f"in the file and {want} in the network"
            )
    for name, layer in wanted.items():
        layer.set_weights(values[name])


def _is_filled(model: keras.Model) -> bool:
    """Whether the model holds values worth keeping: one fresh from the builder, all zeros, does not."""
    return any(np.any(layer.get_weights()[0]) for layer in model.layers if isinstance(layer, keras.layers.Conv2D))


def _first(names: list[str], count: int = 3) -> str:
    return (", ".join(names[:count]) + (", ..." if len(names) > count else "")) or "none"


def _first_line(error: Exception) -> str:
    lines: list[Any] = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
