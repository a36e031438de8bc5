"""Tensor files of other libraries, read without running anything that is in them: a file becomes names and arrays.

`naming` says what the names mean; nothing here does. Files are untrusted: limits first, no code, no link followed.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.errors import InputError, MissingExtraError

Tensors = Mapping[str, np.ndarray]
# Under these keys training scripts put the tensors beside other things; averaged ones come first: they are better.
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "net", "weights")

MOST_RATIO = 100  # of what a file unpacks to and its size: weights hardly shrink
MOST_HELD_BYTES = 1 << 24  # of a mapped file: pages that were read count as memory of this process while it is open
HARMLESS_BYTES = 1 << 24  # of what is unpacked, however small it was


class _Lazy(Mapping[str, np.ndarray]):
    """Tensors that are read when they are asked for, so that a file is never in memory twice."""

    def __init__(self, names: list[str], read: Callable[[str], np.ndarray]) -> None:
        self._names = dict.fromkeys(names)
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_tensors(path: str | os.PathLike[str]) -> Tensors:
    """The tensors of a `.safetensors`, PyTorch (`.pth`, `.pt`, `.th`, `.bin`) or keras.applications `.h5` file.

    Returns arrays by the file's own names; floating-point ones in the file's type. PyTorch files need torch, and are
    read with `weights_only=True`: pickled code in them is refused. Raises InputError for a file that is absent,
    damaged or unsafe, MissingExtraError without torch.
    """
    found = Path(path)
    if not found.is_file():
        raise InputError(f"weights file {str(path)!r} does not exist or is not a file: check the path")
    for suffix, read in READERS.items():
        if found.name.endswith(suffix):
            return read(found)
    raise InputError(f"weights file {str(path)!r} is of no kind that holds tensors: {', '.join(READERS)}")


def _read_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="numpy")
        names = list(file.keys())
        for name in names:
            if file.get_slice(name).get_dtype() == "BF16":  # a type that NumPy has not
                raise InputError(
                    f"tensor {name!r} of {str(path)!r} is bfloat16: save it as float32 or float16, as in "
                    "save_file({k: v.float() for k, v in tensors.items()}, path)"
                )
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights file {str(path)!r} is no whole safetensors file: {error}") from error
    held_bytes = 0

    def read(name: str) -> np.ndarray:
        nonlocal file, held_bytes
        if held_bytes > MOST_HELD_BYTES:
            file, held_bytes = safe_open(path, framework="numpy"), 0
        values: np.ndarray = file.get_tensor(name)
        held_bytes += values.nbytes
        return values

    return _Lazy(names, read)


def _read_torch(path: Path) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            f"{str(path)!r} is a PyTorch file, and torch is not installed: pip install torch, or save the weights as "
            "safetensors where it is: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        ) from error
    import pickle

    try:
        if zipfile.is_zipfile(path):  # torch's own form since 1.6, which stores and does not pack
            with zipfile.ZipFile(path) as archive:
                check_ratio(archive)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights file {str(path)!r} holds more than tensors, and code in it could do anything: not loaded. Where "
            "you trust it, save its tensors alone: torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # foreign bytes bring up anything
        raise InputError(f"weights file {str(path)!r} is no PyTorch file that can be read: {_line(error)}") from error
    tensors = tensors_in(content, str(path))
    # A tensor can repeat one number for ever (stride 0), and a network of its shape would take all memory.
    if sum(value.nbytes for value in tensors.values()) > max(HARMLESS_BYTES, MOST_RATIO * path.stat().st_size):
        raise InputError(f"weights file {str(path)!r} claims to hold more than {MOST_RATIO} times its size: not loaded")
    return tensors


def check_ratio(archive: zipfile.ZipFile) -> None:
    """Raise ValueError for a zip bomb, before anything is unpacked; Keras does so from 4 GiB up only."""
    for member in archive.infolist():
        if member.file_size > max(HARMLESS_BYTES, MOST_RATIO * member.compress_size):
            raise ValueError(
                f"{member.filename} unpacks from {member.compress_size:,} to {member.file_size:,} bytes: a zip bomb"
            )


def tensors_in(content: Any, where: str) -> Tensors:
    """The tensors of what PyTorch gives: a state dict, or a dictionary with one in it under a usual key.

    where: what the content came from, for messages. Raises InputError for anything else.
    """
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{where!r} holds no state dict but {type(content).__name__}: save model.state_dict()")
    strange = [str(name) for name, value in content.items() if not hasattr(value, "shape")]
    if strange:
        raise InputError(
            f"{where!r} holds things that are no tensors ({', '.join(strange[:3])}): save model.state_dict()"
        )
    return {str(name): _as_array(value) for name, value in content.items()}


def _as_array(value: Any) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    return np.asarray(value.float() if "bfloat16" in str(value.dtype) else value)


def _read_keras_applications(path: Path) -> Tensors:
    """The old HDF5 form: a group a layer, the names of the weights below it.

    Attributes repeat the names, and are not looked at: of a damaged file HDF5 1.14 reads them in an endless loop.
    """
    import h5py

    try:
        with h5py.File(path) as file:
            seen: set[int] = set()
            parts = members(file, seen)
            if "model_weights" in parts:  # a whole model's, beside those of its optimizer
                parts = members(parts["model_weights"], seen)
            found = dict(_datasets(parts, seen))
            size = sum(dataset.nbytes for dataset in found.values())
            if size > max(HARMLESS_BYTES, MOST_RATIO * path.stat().st_size):
                raise ValueError(f"it claims to hold more than {MOST_RATIO} times its size")
            tensors = {name.removesuffix(":0"): dataset[()] for name, dataset in found.items()}
    except Exception as error:  # foreign bytes bring up anything
        raise InputError(f"weights file {str(path)!r} is no file of keras.applications: {_line(error)}") from error
    return tensors


def _datasets(parts: Mapping[str, Any], seen: set[int], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every array in the members of a group, by its path. Raises ValueError for one that lies outside the file."""
    for key, member in parts.items():
        if hasattr(member, "keys"):
            yield from _datasets(members(member, seen), seen, f"{prefix}{key}/")
        elif member.external or member.is_virtual:
            raise ValueError(f"{member.name} lies in another file")
        else:
            yield prefix + key, member


def members(group: Any, seen: set[int]) -> dict[str, Any]:
    """What an HDF5 group holds; seen: the addresses of what was met in the file before, to which these are added.

    Raises ValueError for a link, which could lead out of the file, before it is followed, and for what is in two
    places, so that a walk through a file ends.
    """
    import h5py

    found = {}
    for key in group:
        info = group.id.links.get_info(key.encode())
        if info.type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{group.name}/{key} is a link, which Keras never writes")
        if info.u in seen:
            raise ValueError(f"{group.name}/{key} is in two places, which Keras never writes")
        seen.add(info.u)
        found[key] = group[key]
    return found


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


READERS: Mapping[str, Callable[[Path], Tensors]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".th": _read_torch,
    ".bin": _read_torch,
    ".h5": _read_keras_applications,
}
