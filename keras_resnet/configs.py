"""What the config of a hub repository says of a network: timm's and transformers' forms, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from PIL import Image

from keras_resnet.errors import InputError
from keras_resnet.preprocessing import IMAGENET, Preprocessing

MOST_PIXELS = 10_000  # a side


def preprocessing_from_config(config: Mapping[str, Any]) -> Preprocessing:
    """What images need at test, from a config of timm's or transformers' form, as `fetch_address` gives it.

    Sources: timm data/config.py and transforms_factory.py, whose defaults hold for what timm leaves out; transformers
    image_processing_convnext.py, and its processors that resize the short side.
    Raises InputError where the config does not say, or says what this package does not do.
    """
    pixels = config.get("preprocessor_config")
    file, content = ("preprocessor_config.json", pixels) if pixels else ("config.json", config)
    try:
        found = _of_transformers(content) if pixels else _of_timm(content.get("pretrained_cfg", content))
        if max(found.resize, found.crop) > MOST_PIXELS:
            raise ValueError(f"images of {max(found.resize, found.crop)} pixels a side")
        return found
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{file} does not say what images need ({detail}): give preprocessing= yourself") from error


def _of_timm(config: Mapping[str, Any]) -> Preprocessing:
    shape = config.get("test_input_size") or config["input_size"]
    kept = config.get("test_crop_pct") or config.get("crop_pct") or 0.875
    mean, std = config.get("mean") or IMAGENET.mean, config.get("std") or IMAGENET.std
    channels, height, width = shape
    if height != width or len(mean) != channels or not 0 < kept <= 1 or config.get("crop_mode", "center") != "center":
        raise ValueError(f"input {shape}, mean {mean}, crop_pct {kept}, crop_mode {config.get('crop_mode')}")
    return Preprocessing(
        resize=math.floor(height / kept),
        crop=height,
        interpolation=config.get("interpolation") or "bicubic",
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
    )


def _of_transformers(config: Mapping[str, Any]) -> Preprocessing:
    size, crop = config["size"], config.get("crop_size") or 0
    size = size if isinstance(size, int) else size["shortest_edge"]
    crop = (crop if isinstance(crop, int) else crop["height"]) if config.get("do_center_crop", True) else 0
    if "ConvNext" in (config.get("image_processor_type") or config.get("feature_extractor_type") or ""):
        if size >= 384:
            raise ValueError(f"ConvNext's processor stretches pictures to a square at size {size}")
        size, crop = math.floor(size / config.get("crop_pct", 0.875)), size
    normalised = config.get("do_normalize", True)
    return Preprocessing(
        resize=size if config.get("do_resize", True) else 0,
        crop=crop,
        interpolation=Image.Resampling(config["resample"]).name.lower(),
        scale=1 / config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
        mean=tuple(map(float, config["image_mean"])) if normalised else (0.0, 0.0, 0.0),
        std=tuple(map(float, config["image_std"])) if normalised else (1.0, 1.0, 1.0),
    )


def classes_from_config(config: Mapping[str, Any]) -> int | None:
    """How many classes the network of a config of timm's or transformers' form tells apart; None: it does not say."""
    inner, labels = config.get("pretrained_cfg"), config.get("id2label")
    for found in (
        config.get("num_classes"),
        inner.get("num_classes") if isinstance(inner, Mapping) else None,
        len(labels) if isinstance(labels, Mapping) else None,
        config.get("num_labels"),
    ):
        if isinstance(found, int) and found > 0:
            return int(found)
    return None
