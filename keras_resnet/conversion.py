"""A PyTorch network to Keras in one line, and a Keras network back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.errors import UsageError, unknown
from keras_resnet.files import replacing
from keras_resnet.fitting import fit_tensors
from keras_resnet.introspection import spec_of_model
from keras_resnet.models import build
from keras_resnet.naming import from_ours
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.readers import read_tensors, tensors_in
from keras_resnet.recognition import spec_from
from keras_resnet.schemes import SCHEMES
from keras_resnet.specs import Spec

TENSOR_SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin")


def from_torch(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    input_shape: tuple[int | None, int | None, int] | None = None,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    preprocessing: Preprocessing | None = None,
    name: str | None = None,
) -> keras.Model:
    """A Keras network from a PyTorch one, everything found from its tensors: variant, stem, classes, channels, naming.

    source: a `.pth`, `.pt`, `.th` or `.safetensors` file of torchvision, timm, transformers or akamaster's names, or a
    state dict. input_shape: default the variant's size with the tensors' channels. preprocessing: what the images
    need; tensors do not tell, so torchvision's stands where none is given.

    What was found, and what tensors cannot tell, is printed to stderr. Raises InputError for a file that is absent,
    damaged or unsafe, for names of no known scheme, and for tensors of no network that this package builds.
    """
    where = f"{str(source)!r}" if isinstance(source, (str, os.PathLike)) else "the state dict"
    tensors = read_tensors(source) if isinstance(source, (str, os.PathLike)) else tensors_in(source, where)
    found = spec_from(tensors, where=where)
    size = found.spec.input_size
    shape = input_shape or (size, size, found.channels)
    if shape[2] != found.channels:
        raise UsageError(f"input_shape={shape}: {where} reads {found.channels} channels, so the last must be that")
    model = build(
        found.spec,
        include_top=found.classes is not None,
        input_shape=shape,
        classifier_activation=classifier_activation,
        preprocessing=preprocessing,
        name=name or found.variant,
    )
    notes = fit_tensors(model, tensors, where=where)
    for line in (f"{where}: {found}", *found.notes, *notes):
        print(line, file=sys.stderr)
    return model


def save_weights_as(model: keras.Model, path: str | os.PathLike[str], *, naming: str = "torchvision") -> None:
    """Write a network's weights under another library's names, for its own loader; logits are equal there.

    path: a `.safetensors` file, or `.pth` (a state dict; needs torch). naming: "torchvision", "timm" (its `resnet*` or
    `resnetv2_*`, as the network is), "transformers", "akamaster", ... : the keys of `schemes.SCHEMES`.
    Raises UsageError for an unknown naming or suffix, and where that library would compute another function.
    """
    target = Path(path)
    if target.suffix not in TENSOR_SUFFIXES:
        raise UsageError(f"path {str(path)!r} must end in .safetensors or .pth")
    tensors = tensors_as(model, naming)
    with replacing(target) as (scratch,):
        write_tensors(tensors, scratch)


def tensors_as(model: keras.Model, naming: str) -> dict[str, np.ndarray]:
    """A network's weights as another library's tensors; arguments and errors as those of `save_weights_as`."""
    spec = spec_of_model(model)
    weights = {
        layer.name: {variable.name: np.asarray(variable.value, np.float32) for variable in layer.weights}
        for layer in model.layers
        if layer.weights
    }
    return from_ours(weights, spec, scheme_for(naming, spec))


def scheme_for(naming: str, spec: Spec) -> str:
    """The key of `schemes.SCHEMES` that a naming means for a network. Raises UsageError for an unknown one."""
    if naming == "timm":
        return "timm_v2" if spec.preactivation else "torchvision"
    if naming not in SCHEMES:
        raise unknown("naming", naming, ("timm", *SCHEMES), where="naming=")
    return naming


def write_tensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a `.safetensors` file, or by any other suffix a state dict of PyTorch. Raises UsageError without torch."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(dict(tensors), path, metadata={"format": "pt"})
        return
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"writing {path.suffix} needs torch: pip install torch, or write .safetensors") from error
    torch.save({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}, path)
