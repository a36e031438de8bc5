"""Tensor files of other libraries, read without running anything that is in them: a file becomes names and arrays.

`naming` says what the names mean; nothing here does. Files are untrusted: limits first, no code, no link followed.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.errors import InputError, MissingExtraError

Tensors = Mapping[str, np.ndarray]
# Under these keys training scripts put the tensors beside other things; averaged ones come first: they are better.
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "net", "weights")


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
    return _Lazy(names, file.get_tensor)


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
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights file {str(path)!r} holds more than tensors, and code in it could do anything: not loaded. Where "
            "you trust it, save its tensors alone: torch.save(model.state_dict(), path)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"weights file {str(path)!r} is no PyTorch file that can be read: {_line(error)}") from error
    return tensors_in(content, str(path))


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
    """The old HDF5 form: groups of layers with the names of their weights in attributes."""
    import h5py

    tensors: dict[str, np.ndarray] = {}
    try:
        with h5py.File(path) as file:
            _refuse_links(file)
            root = file.get("model_weights", file)
            for layer in root.attrs["layer_names"]:
                group = root[_text(layer)]
                for name in map(_text, group.attrs["weight_names"]):
                    value = group[name]
                    if value.external:
                        raise ValueError(f"{name} lies in another file")
                    tensors[name.removesuffix(":0")] = value[()]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, zlib.error) as error:
        raise InputError(f"weights file {str(path)!r} is no file of keras.applications: {_line(error)}") from error
    return tensors


def _refuse_links(group: Any) -> None:
    """A link could lead out of the file; Keras writes none."""
    import h5py

    for key in group:
        if group.id.links.get_info(key.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{group.name}/{key} is a link, which Keras never writes")
        if isinstance(group[key], h5py.Group):
            _refuse_links(group[key])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


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
