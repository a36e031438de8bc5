"""Find weights, wherever they live, and fill models with them: the room that touches their files.

Takes a model and a tag, an address on the hub or a path; the model is filled whole or not at all. What layers are
called is `blocks.py`'s, what other libraries call them `naming.py`'s.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras

from keras_resnet import hub, readers, registry
from keras_resnet.configs import classes_from_config, preprocessing_from_config
from keras_resnet.depth import recursion_room
from keras_resnet.errors import InputError, UsageError
from keras_resnet.fitting import fit_tensors
from keras_resnet.layers import CUSTOM_OBJECTS
from keras_resnet.normalisation import fuse
from keras_resnet.pointwise import guard
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.registry import WeightSet

SUFFIXES = (".weights.h5", ".keras")  # Keras' own; `readers.READERS` has the others
HUB = "hf://"
Shapes = tuple[tuple[int, ...], ...]  # of the weights of one layer


@dataclass(frozen=True)
class Located:
    """A weights file on disk, and what is known of it besides."""

    path: Path
    name: str  # what messages call it
    weight_set: WeightSet | None = None
    preprocessing: Preprocessing | None = None
    classes: int | None = None  # where a config says how many

    def preprocessing_at(self, size: int) -> Preprocessing | None:
        """What images need where the network reads `size` pixels; None where the source does not say."""
        return self.weight_set.preprocessing_at(size) if self.weight_set else self.preprocessing


def locate(weights: str | os.PathLike[str], variant: str | None = None, *, include_top: bool = True) -> Located:
    """The file behind `weights`: a tag of `registry.WEIGHTS` or "imagenet" for a variant, hf://..., or a path.

    What is not on disk is fetched, and proved whole. Raises UsageError for an unknown tag (the nearest are offered), a
    set of another variant or another kind of file, InputError for what is absent or cannot be fetched.
    """
    if not isinstance(weights, (str, os.PathLike)):
        raise UsageError(
            f"weights={weights!r} must be a tag, an hf:// address, the path of a file, or None for random ones"
        )
    text = str(weights)
    if text.startswith(HUB):
        path, config = hub.fetch_address(text)
        classes = None if config is None else classes_from_config(config)
        if config is None or not config.keys() & {"pretrained_cfg", "preprocessor_config", "input_size"}:
            print(f"{text}: says nothing of images; they are taken to need what torchvision's do", file=sys.stderr)
            return Located(path, text, classes=classes)
        return Located(path, text, preprocessing=preprocessing_from_config(config), classes=classes)
    kinds = (*SUFFIXES, *readers.READERS)
    if text in registry.WEIGHTS or text == "imagenet" or not (text.endswith(kinds) or Path(text).exists()):
        row = registry.resolve(text, variant)
        return Located(hub.fetch(row, include_top=include_top), row.tag, row)
    return Located(check_path(weights, kinds), text)


def check_path(path: str | os.PathLike[str], kinds: Sequence[str] = SUFFIXES) -> Path:
    """A weights file that exists and is of one of the kinds. Raises UsageError (kind) or InputError (absent)."""
    found = Path(path)
    if not found.name.endswith(tuple(kinds)):
        raise UsageError(f"weights={str(path)!r} is of none of the kinds {', '.join(kinds)}: give such a file, or None")
    if not found.is_file():
        raise InputError(f"weights file {str(path)!r} does not exist or is not a file: check the path")
    return found


def load_weights(model: keras.Model, weights: str | os.PathLike[str] | Located) -> None:
    """Fill a model with weights from anywhere, under any naming that is known.

    weights: a tag of `list_weights()`; `hf://owner/name[@revision][/file]`; a `.safetensors`, PyTorch or
    keras.applications file; a `.weights.h5` file of the same network, or a `.keras` file with the same layers.

    Every tensor is used and every weight filled, or the model is left as it was. Of a network with another number of
    classes the backbone is loaded, and a line on stderr says so; a stem of three channels is adapted to others.
    Raises UsageError for an unknown tag or kind of file, InputError for what is absent, damaged or does not fit.
    """
    located = weights if isinstance(weights, Located) else locate(weights)
    path = found = located.path
    if not found.name.endswith(SUFFIXES):
        for note in fit_tensors(model, readers.read_tensors(found), where=f"{located.name!r}"):
            print(f"{model.name}: {note}", file=sys.stderr)
        return
    before = [variable.numpy() for variable in model.variables]
    try:
        if found.suffix == ".keras":
            _copy(load_model(found), model, found)
        else:
            _check_h5(found, model)
            model.load_weights(found)
    except InputError:
        raise  # found before anything was written
    except Exception as error:  # foreign bytes bring up anything
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
        raise InputError(f"weights file {str(path)!r} cannot be read: {_first_line(error)}") from error


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """A model from a `.keras` file, however deep. Code in the file is never run.

    Raises UsageError for another kind of file, InputError for one that is absent, damaged or not safe to load.
    """
    found = check_path(path)
    if found.suffix != ".keras":
        raise UsageError(f"{str(path)!r} holds weights only: build the network and give it as weights=")
    try:
        with zipfile.ZipFile(found) as archive:
            readers.check_ratio(archive)
            config = json.loads(archive.read("config.json"))
        with recursion_room(_count_layers(config)):
            return guard(fuse(keras.models.load_model(found, custom_objects=CUSTOM_OBJECTS, compile=False)))
    except Exception as error:  # foreign bytes bring up anything
        raise InputError(f"{str(path)!r} cannot be loaded as a Keras model: {_first_line(error)}") from error


def _count_layers(config: Any) -> int:
    """Layers in a model's config, those of models within it included."""
    inner = config["config"].get("layers", ())
    return len(inner) + sum(map(_count_layers, inner))


def _copy(source: keras.Model, target: keras.Model, path: Path) -> None:
    """Fill a model from the layers of the same names, after checking that all of them fit."""
    have, want = dict(_layers_of(source)), dict(_layers_of(target))
    missing, unexpected = [name for name in want if name not in have], [name for name in have if name not in want]
    if missing or unexpected:
        raise InputError(
            f"weights file {str(path)!r} does not fit {target.name!r}: "
            f"missing layers {_first(missing)}; unexpected layers {_first(unexpected)}"
        )
    for name, layer in want.items():
        if _shapes(have[name]) != _shapes(layer):
            raise InputError(
                f"weights file {str(path)!r} does not fit {target.name!r}: layer {name!r} has shapes "
                f"{_shapes(have[name])} in the file and {_shapes(layer)} in the network"
            )
    for name, layer in want.items():
        layer.set_weights(have[name].get_weights())


def _shapes(layer: keras.layers.Layer) -> Shapes:
    return tuple(tuple(weight.shape) for weight in layer.weights)


def _layers_of(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """The layers that hold weights, by name; those of a model within the model are called base/stem_conv."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _layers_of(layer, f"{prefix}{layer.name}/")
        elif layer.weights:
            yield prefix + layer.name, layer


def _check_h5(path: Path, target: keras.Model) -> None:
    """Raise InputError unless the weights of a `.weights.h5` file are, layer by layer, of the shapes of the model's.

    Keras fills by position and would leave what is over. The names in such files are not looked at: they lie where a
    damaged file sends HDF5 1.14 into an endless loop.
    """
    with h5py.File(path) as file:
        seen: set[int] = set()
        have = dict(_shapes_in(readers.members(file, seen), seen))
    want = {name: _shapes(layer) for name, layer in _layers_of(target)}
    missing = Counter(want.values()) - Counter(have.values())
    unexpected = Counter(have.values()) - Counter(want.values())
    if missing or unexpected:
        raise InputError(
            f"weights file {str(path)!r} does not fit {target.name!r}: "
            f"no weights of the shapes of {_first([name for name in want if want[name] in missing])}; "
            f"left over {_first([name for name in have if have[name] in unexpected])}"
        )


def _shapes_in(parts: Mapping[str, Any], seen: set[int], prefix: str = "") -> Iterator[tuple[str, Shapes]]:
    """The layers in the members of a `.weights.h5` file: Keras' numbered name (conv2d_3), the shapes of the weights."""
    layers = parts.get("layers")
    for key, layer in readers.members(layers, seen).items() if layers else ():
        inner = readers.members(layer, seen)
        if "layers" in inner:
            yield from _shapes_in(inner, seen, f"{prefix}{key}/")
        elif values := readers.members(inner["vars"], seen):
            yield prefix + key, tuple(values[index].shape for index in sorted(values))


def _first(names: list[str], count: int = 3) -> str:
    return (", ".join(names[:count]) + (", ..." if len(names) > count else "")) or "none"


def _first_line(error: Exception) -> str:
    lines: list[Any] = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
