"""A folder that can be pushed to the hub as it is: weights, config and model card, as timm or transformers read them.

Takes a network that carries its preprocessing. Names of tensors are left to `conversion`, pushing to the hub's client.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from PIL import Image

from keras_resnet.conversion import scheme_for, tensors_as, write_tensors
from keras_resnet.errors import UsageError, unknown
from keras_resnet.files import replacing, write_json, write_text
from keras_resnet.introspection import spec_of_model
from keras_resnet.preprocessing import Preprocessing, preprocessing_of
from keras_resnet.recognition import variant_of
from keras_resnet.schemes import name_of, scheme_of
from keras_resnet.specs import EXPANSION, VARIANTS, Spec

Configs = dict[str, dict[str, Any]]  # what stands in each JSON file of a folder


@dataclass(frozen=True)
class _Network:
    """What the files of a folder are made of."""

    spec: Spec
    variant: str | None  # its row of specs.VARIANTS, classes apart
    scheme: str
    channels: int
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class _Library:
    """What a library reads in a folder besides the tensors."""

    configs: Callable[[_Network], Configs]
    usage: str  # Python, {name}: of the folder


def save_hub_folder(
    model: keras.Model,
    folder: str | os.PathLike[str],
    *,
    naming: str = "timm",
    labels: Sequence[str] | None = None,
    licence: str | None = None,
    datasets: Sequence[str] = (),
) -> Path:
    """Write a folder to push to the hub: `model.safetensors`, `config.json` and a model card; whole or not at all.

    It loads with `hf://owner/name` here, and with equal logits in timm (`timm.create_model("local-dir:FOLDER",
    pretrained=True)`) or transformers (`from_pretrained(FOLDER)`, where `preprocessor_config.json` is there too).

    folder: new or empty, or an earlier one of these; its name is the card's title. naming: "timm" (or "torchvision",
    "timm_v2", its two forms) or "transformers". labels: names of the classes, in their order. licence: the hub's word
    for it ("apache-2.0"); datasets: the hub's names of what it was trained on ("imagenet-1k").

    Returns the folder. Raises UsageError where that library cannot build the network or say what its images need, for
    labels that do not fit, and for a folder that holds anything else; InputError for a model that is not ours.
    """
    target, spec = Path(folder), spec_of_model(model)
    scheme = scheme_for(naming, spec)
    if scheme not in LIBRARIES:
        raise unknown("naming of a hub folder", naming, ("timm", *LIBRARIES), where="naming=")
    if "head_dense" not in {layer.name for layer in model.layers}:
        raise UsageError(f"model {model.name!r} has no classifier, and a hub folder is of one: build it with the top")
    names = tuple(map(str, labels or ()))
    if labels is not None and len(names) != spec.classes:
        raise UsageError(f"labels has {len(names)} names and the network {spec.classes} classes: give one a class")
    foreign = sorted({path.name for path in target.iterdir()} - FILES) if target.is_dir() else []
    if foreign or (target.exists() and not target.is_dir()):
        raise UsageError(f"folder {str(folder)!r} holds other things ({', '.join(foreign[:3])}): name a new folder")
    network = _Network(
        spec,
        variant_of(spec),
        scheme,
        model.inputs[0].shape[-1],
        preprocessing_of(model),
        names,
        sum(math.prod(weight.shape) for weight in model.trainable_weights + model.non_trainable_weights),
    )
    configs = LIBRARIES[scheme].configs(network)
    tensors = tensors_as(model, naming)
    with replacing(target) as (scratch,):
        scratch.mkdir()
        for file, content in configs.items():
            write_json(scratch / file, content)
        write_text(scratch / "README.md", _card(network, target.resolve().name, licence, datasets))
        write_tensors(tensors, scratch / "model.safetensors")
    return target


# timm ----------------------------------------------------------------------------------------------------------------


def _for_timm(network: _Network) -> Configs:
    """Source: timm 1.0.31, models/_hub.py, `save_config_for_hf`; data/transforms_factory.py for the resize."""
    spec, pixels, scheme = network.spec, network.preprocessing, scheme_of(network.scheme)
    if network.variant is None or spec.stem != VARIANTS[network.variant].stem:
        raise UsageError(
            f"timm has no network of block={spec.block!r}, depths={spec.depths}, widths={spec.widths}, "
            f"stem={spec.stem!r}: use naming='transformers', or save_weights_as for the tensors alone"
        )
    if not pixels.crop or not pixels.resize or pixels.order != "rgb":
        raise UsageError(
            f"timm resizes, crops and takes RGB: it cannot say {pixels} of the model; build it with another "
            "preprocessing=, or use naming='transformers'"
        )
    unit = pixels.scale / 255  # timm's mean and std are of pixels / 255
    pretrained = {
        "input_size": [network.channels, pixels.crop, pixels.crop],
        "fixed_input_size": False,
        "interpolation": pixels.interpolation,
        "crop_pct": _crop_pct(pixels),
        "crop_mode": "center",
        "mean": [value * unit for value in pixels.mean],
        "std": [value * unit for value in pixels.std],
        "num_classes": spec.classes,
        "pool_size": [-(-pixels.crop // spec.output_stride)] * 2,
        "first_conv": name_of(scheme, "stem_conv", "kernel").removesuffix(".weight"),
        "classifier": name_of(scheme, "head_dense", "kernel").removesuffix(".weight"),
    }
    config: dict[str, Any] = {
        "architecture": network.variant,
        "num_classes": spec.classes,
        "num_features": spec.widths[-1] * EXPANSION[spec.block],
        "pretrained_cfg": pretrained,
    }
    if network.channels != 3:
        config["model_args"] = {"in_chans": network.channels}
    if network.labels:
        config["label_names"] = list(network.labels)
    return {"config.json": config}


def _crop_pct(pixels: Preprocessing) -> float:
    """The shortest fraction of which timm's floor(crop / fraction) gives the resize again."""
    exact = pixels.crop / pixels.resize
    cut = (math.floor(exact * 10**digits - less) / 10**digits for digits in range(3, 16) for less in (0, 1))
    return next(kept for kept in cut if kept and math.floor(pixels.crop / kept) == pixels.resize)


# transformers --------------------------------------------------------------------------------------------------------


def _for_transformers(network: _Network) -> Configs:
    """Source: transformers 5.23.0, models/resnet/configuration_resnet.py; CLIP's image processor resizes and crops."""
    spec, pixels = network.spec, network.preprocessing
    if pixels.order != "rgb":
        raise UsageError(f"transformers takes RGB: it cannot say {pixels} of the model; give another preprocessing=")
    names = network.labels or tuple(f"LABEL_{i}" for i in range(spec.classes))
    config = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": network.channels,
        "embedding_size": spec.widths[0],
        "hidden_sizes": [width * EXPANSION[spec.block] for width in spec.widths],
        "depths": list(spec.depths),
        "layer_type": spec.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": spec.stride_on == "1x1",
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "dtype": "float32",
    }
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": network.channels == 3,
        "do_resize": bool(pixels.resize),
        "size": {"shortest_edge": pixels.resize or pixels.crop or spec.input_size},
        "resample": int(Image.Resampling[pixels.interpolation.upper()]),
        "do_center_crop": bool(pixels.crop),
        "crop_size": {"height": pixels.crop or spec.input_size, "width": pixels.crop or spec.input_size},
        "do_rescale": True,
        "rescale_factor": 1 / pixels.scale,
        "do_normalize": True,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
    }
    return {"config.json": config, "preprocessor_config.json": processor}


# The card ------------------------------------------------------------------------------------------------------------

_TIMM = _Library(
    _for_timm,
    'import timm\n\nmodel = timm.create_model("hf-hub:OWNER/{name}", pretrained=True).eval()\n'
    "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
)
LIBRARIES: Mapping[str, _Library] = {
    "torchvision": _TIMM,
    "timm_v2": _TIMM,
    "transformers": _Library(
        _for_transformers,
        "from transformers import AutoImageProcessor, AutoModelForImageClassification\n\n"
        'model = AutoModelForImageClassification.from_pretrained("OWNER/{name}")\n'
        'transform = AutoImageProcessor.from_pretrained("OWNER/{name}")',
    ),
}
FILES = {"config.json", "preprocessor_config.json", "model.safetensors", "README.md"}


def _card(network: _Network, name: str, licence: str | None, datasets: Sequence[str]) -> str:
    """The model card: what the hub reads in its front matter, then what a person wants to know."""
    spec, library = network.spec, "transformers" if network.scheme == "transformers" else "timm"
    front: dict[str, Any] = {
        "pipeline_tag": "image-classification",
        "library_name": library,
        "tags": ["image-classification", library, "resnet", "keras", "keras-resnet-edge"],
    }
    if licence:
        front["license"] = licence
    if datasets:
        front["datasets"] = list(datasets)
    # JSON is YAML, so that no name in it can be taken for anything else.
    matter = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    what = network.variant or f"residual network of {spec.block} blocks, depths {spec.depths}, widths {spec.widths}"
    options = f", classes={spec.classes}" if spec.classes != 1000 else ""
    options += f", input_shape=(None, None, {network.channels})" if network.channels != 3 else ""
    ours = f'keras_resnet.build("{network.variant}", weights="hf://OWNER/{name}"{options})'
    if network.variant is None or spec.stem != VARIANTS[network.variant].stem:
        ours = 'keras_resnet.from_torch("model.safetensors")'
    return f"""---
{matter}
---

# {name}

A {what} with {spec.classes:,} classes and {network.parameters:,} parameters, statistics of BatchNormalization
included, written by keras-resnet-edge. Its output are logits.

Images: {_in_words(network.preprocessing)}.

## Use

```python
{LIBRARIES[network.scheme].usage.format(name=name)}
```

In Keras:

```python
import keras_resnet

model = {ours}
```
"""


def _in_words(pixels: Preprocessing) -> str:
    steps = [f"short side resized to {pixels.resize} pixels ({pixels.interpolation})"] if pixels.resize else []
    steps += [f"centre crop of {pixels.crop}"] if pixels.crop else []
    numbers = f"mean {list(pixels.mean)}, std {list(pixels.std)}"
    return ", ".join([*steps, f"(pixels / {pixels.scale:g} - mean) / std with {numbers}, {pixels.order.upper()}"])
