"""What must be saved to go on as if nothing had happened, and how it is written.

Keras' own formats leave out the states of seed generators, and all formats those of metrics, so a checkpoint holds
every value by name and position, with the history so far, in one .npz whose zip checksums find a damaged file. The data
is a function of the step.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.files import replacing

KEPT = 2
Groups = Mapping[str, Sequence[keras.Variable]]
_NAME = re.compile(r"step-(\d{9})\.npz")
_HISTORY = "history"
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError)


@dataclass(frozen=True)
class Checkpoint:
    """A state behind `step` finished steps: the rows of the finished epochs, and values by group and position."""

    step: int
    history: list[dict[str, float]]
    values: Mapping[str, np.ndarray]

    def write(self, file: IO[bytes]) -> None:
        text = json.dumps({"step": self.step, "history": self.history}).encode()
        arrays: dict[str, Any] = {_HISTORY: np.frombuffer(text, np.uint8), **self.values}
        np.savez(file, **arrays)


def packed(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as the bytes of its file."""
    file = io.BytesIO()
    checkpoint.write(file)
    return file.getvalue()


def read(file: Path | bytes) -> Checkpoint:
    """A checkpoint from a file or its bytes. Raises InputError where one bit of it is not as it was written."""
    name = "from the chief" if isinstance(file, bytes) else repr(str(file))
    try:
        content = io.BytesIO(file if isinstance(file, bytes) else file.read_bytes())
        with zipfile.ZipFile(content) as archive:
            if damaged := archive.testzip():  # before NumPy believes a shape
                raise ValueError(f"{damaged} has another checksum")
        content.seek(0)
        with np.load(content, allow_pickle=False) as stored:
            values = {name: stored[name] for name in stored.files}
        said = json.loads(values.pop(_HISTORY).tobytes())
        return Checkpoint(int(said["step"]), list(said["history"]), values)
    except _DAMAGE as error:
        raise InputError(f"checkpoint {name} is damaged ({error})") from error


def captured(groups: Groups, step: int, history: Sequence[Mapping[str, float]]) -> Checkpoint:
    """The values of the variables of all groups as they are now."""
    values = {name: np.array(variable.numpy()) for name, variable in _named(groups)}
    return Checkpoint(step, [dict(row) for row in history], values)


def restore(checkpoint: Checkpoint, groups: Groups) -> None:
    """Put a state into the variables. Raises InputError, and changes nothing, where it is of other variables."""
    variables = dict(_named(groups))
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    if shapes != {name: value.shape for name, value in checkpoint.values.items()}:
        raise InputError(
            f"the checkpoint of step {checkpoint.step} has {len(checkpoint.values)} values, the run {len(shapes)} "
            "variables, or other shapes: it was written by another version; give another run folder"
        )
    for name, variable in variables.items():
        variable.assign(checkpoint.values[name])


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint, whole or not at all; the last two are kept. Raises InputError where the disk is full."""
    try:
        with replacing(folder / f"step-{checkpoint.step:09d}.npz") as (scratch,), scratch.open("wb") as file:
            checkpoint.write(file)
    except OSError as error:
        kept = written(folder)
        stands = f"that of step {step_of(kept[-1])} stands" if kept else "there is none yet"
        raise InputError(
            f"the checkpoint of step {checkpoint.step} cannot be written to {str(folder)!r} ({error}); {stands}: free "
            "some space and give the same command again"
        ) from error
    for path in written(folder)[:-KEPT]:
        path.unlink()


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; each damaged one that is passed over is named on stderr."""
    for path in reversed(written(folder)):
        try:
            return read(path)
        except InputError as error:
            print(f"{error}: passed over for the one before", file=sys.stderr)
    return None


def written(folder: Path) -> list[Path]:
    """The files of the checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*.npz") if _NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """The number of finished steps that a checkpoint's file name says."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left half-written in a folder that nobody else writes to."""
    for path in folder.rglob(".partial-*"):
        shutil.rmtree(path, ignore_errors=True)


def _named(groups: Groups) -> list[tuple[str, Any]]:
    return [(f"{group}{i:05d}", v) for group, variables in groups.items() for i, v in enumerate(variables)]
