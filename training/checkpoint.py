"""What must be saved to go on as if nothing had happened, and how it is written.

Keras' own formats leave out the states of seed generators, so a checkpoint holds every variable of the model and of
the optimizer by position, in one .npz whose zip checksums find a damaged file. The data is a function of the epoch.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_resnet.files import replacing

KEPT = 2
_NAME = re.compile(r"epoch-(\d{5})\.npz")


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.variables, *model.optimizer.variables]


def save(model: keras.Model, folder: Path, epoch: int) -> None:
    """Write the state behind `epoch` finished epochs; the last two are kept."""
    values = {f"v{i:05d}": variable.numpy() for i, variable in enumerate(_variables(model))}
    with replacing(folder / f"epoch-{epoch:05d}.npz") as (scratch,):
        np.savez(scratch, **values)
    for path in _written(folder)[:-KEPT]:
        path.unlink()


def restore(model: keras.Model, folder: Path) -> int:
    """Put the newest whole state into a compiled model; returns how many epochs are finished, 0 where none is there.

    A checkpoint that is damaged, or of another network, is passed over for the one before it.
    """
    model.optimizer.build(model.trainable_variables)
    variables = _variables(model)
    for path in reversed(_written(folder)):
        try:
            with np.load(path, allow_pickle=False) as stored:
                values = [stored[f"v{i:05d}"] for i in range(len(stored.files))]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            continue
        if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
            continue
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return int(_NAME.fullmatch(path.name)[1])  # type: ignore[index]
    return 0


def _written(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("epoch-*.npz") if _NAME.fullmatch(path.name))
