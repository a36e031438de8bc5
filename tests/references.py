"""Other people's networks to compare ours with, and the same random weights for both sides.

Every tensor is drawn from a generator that its name seeds, so two implementations fill themselves alike and nothing
but logits needs to be kept. `python -m tests.references` records torchvision's logits in tests/fixtures anew; it
needs torch and torchvision, which reading them does not.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.specs import CONVOLUTIONS, Spec, cifar
from tests.conftest import SEED

# float32 sums in another order: at most 2e-6 was seen; a wrong stride, epsilon or padding gives 1e-3 and more.
LOGITS_TOLERANCE = 1e-5

SIZES = ((224, 224), (193, 257))  # even and odd: they pad differently
NETWORKS = ("resnet18", "resnet50", "resnext50_32x4d")  # torchvision's names, and ours
CLASSES = 100
FIXTURE = Path(__file__).parent / "fixtures" / "torchvision_logits.npz"
FIXTURE_SEED = 2015

# One small network a family, 32 pixels: everything that a spec can ask for occurs in one of them.
_SMALL: dict[str, Any] = {"depths": (2, 2), "widths": (8, 16), "input_size": 32, "classes": 10}
_PREACTIVATION: dict[str, Any] = {"preactivation": True, "shortcut_bn": False}
FAMILIES = {
    "basic": Spec("basic", **_SMALL),
    "bottleneck": Spec("bottleneck", **_SMALL),
    "resnext": Spec("bottleneck", **_SMALL, groups=4, width_per_group=16),
    "wide": Spec("bottleneck", **_SMALL, width_per_group=128),
    "v1": Spec("bottleneck", **_SMALL, stride_on="1x1", epsilon=1.001e-5, momentum=0.99),
    "v2 of timm": Spec("bottleneck", **_SMALL, **_PREACTIVATION, pool_padding="infinite"),
    "v2 of Keras": Spec(
        "bottleneck",
        **_SMALL,
        **_PREACTIVATION,
        stride_block="last",
        conv_bias=("stem_conv", "shortcut_conv", "conv3"),
    ),
    "cifar": cifar(8),
    "cifar v2": cifar(8, **_PREACTIVATION),
    "MLPerf Tiny": cifar(8, shortcut="B", shortcut_bn=False, conv_bias=CONVOLUTIONS, padding="same", epsilon=1e-3),
    "highway": cifar(8, shortcut="highway", gate_bias=-1.0),
    "plain": cifar(8, shortcut="none"),
    "C": Spec("basic", **_SMALL, shortcut="C"),
    "drops": cifar(8, stochastic_depth=0.5, dropout=0.5, zero_last_gamma=True),
}


def draw(layer: str, weight: str, shape: tuple[int, ...], seed: int = SEED) -> np.ndarray:
    """Random values of one tensor in Keras' layout, the same wherever layer, weight, shape and seed are the same."""
    generator = np.random.default_rng([seed, zlib.crc32(f"{layer}/{weight}".encode())])
    if weight == "kernel":  # half of He's variance: the sum over many blocks stays moderate
        values = generator.standard_normal(shape) * np.sqrt(1 / np.prod(shape[:-1]))
    elif weight in ("gamma", "moving_variance"):
        values = generator.uniform(0.5, 1.5, shape)
    elif weight in ("bias", "beta", "moving_mean"):
        values = generator.normal(0, 0.1, shape)
    else:
        raise ValueError(f"no rule for {layer}/{weight}")
    return values.astype(np.float32)


def images(height: int, width: int, *, batch: int = 1, channels: int = 3, seed: int = SEED) -> np.ndarray:
    """Random normalised images, float32 [batch, height, width, channels]."""
    generator = np.random.default_rng([seed, height, width])
    return generator.standard_normal((batch, height, width, channels)).astype(np.float32)


def fill(model: Any, seed: int = SEED) -> Any:
    """Give one of our models its random weights; returns the model."""
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([draw(layer.name, weight.name, tuple(weight.shape), seed) for weight in layer.weights])
    return model


def pour(model: Any, weights: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
    """Give a Keras model weights by layer and variable, all of them."""
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    assert layers.keys() == weights.keys()
    for name, layer in layers.items():
        layer.set_weights([weights[name][weight.name] for weight in layer.weights])
    return model


def drain(model: Any) -> dict[str, dict[str, np.ndarray]]:
    """The weights of a Keras model by layer and variable, as `pour` takes them."""
    return {
        layer.name: {weight.name: value for weight, value in zip(layer.weights, layer.get_weights(), strict=True)}
        for layer in model.layers
        if layer.weights
    }


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference as a fraction of the largest value of the reference."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# torchvision -------------------------------------------------------------------------------------------------------

_TORCHVISION_LAYERS = {"conv1": "stem_conv", "bn1": "stem_bn", "fc": "head_dense"}
_TORCHVISION_PARTS = {"downsample.0": "shortcut_conv", "downsample.1": "shortcut_bn"}
_TORCHVISION_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def from_torchvision(name: str) -> tuple[str, str]:
    """The layer and weight of ours behind torchvision's `layer2.0.conv1.weight`: ("stage2_block1_conv1", "kernel")."""
    path, _, weight = name.rpartition(".")
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", path):
        stage, block, part = match.groups()
        layer = f"stage{stage}_block{int(block) + 1}_{_TORCHVISION_PARTS.get(part, part)}"
    else:
        layer = _TORCHVISION_LAYERS[path]
    if "bn" in layer:
        return layer, _TORCHVISION_NORM[weight]
    return layer, {"weight": "kernel", "bias": "bias"}[weight]


def import_torchvision() -> Any:
    """torchvision's models, also where its compiled operators cannot be loaded (a CPU build of torch beside it).

    Raises ImportError where torch or torchvision is not installed.
    """
    import torch

    try:
        import torchvision
    except RuntimeError:  # operator torchvision::nms does not exist
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_torchvision.library = library  # type: ignore[attr-defined]  # the operators live as long as it does
        import torchvision
    return torchvision


def torchvision_logits(name: str, batch: np.ndarray, *, classes: int = CLASSES, seed: int = SEED) -> np.ndarray:
    """What torchvision's network `name`, filled by `draw`, answers to images [batch, height, width, channels]."""
    network = getattr(import_torchvision().models, name)(weights=None, num_classes=classes).eval()
    import torch

    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                tensor.copy_(torch.from_numpy(_in_torch_layout(key, tuple(tensor.shape), seed)))
        return network(torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())).numpy()


def _in_torch_layout(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    layer, weight = from_torchvision(key)
    if len(shape) == 4:  # out, in, height, width -> height, width, in, out
        out, inner, height, width = shape
        return draw(layer, weight, (height, width, inner, out), seed).transpose(3, 2, 0, 1).copy()
    return draw(layer, weight, shape[::-1], seed).T.copy()


def record_torchvision_logits() -> None:
    """Write the fixture: logits of every network at every size, float32 [1, classes]."""
    logits = {
        f"{name}_{height}x{width}": torchvision_logits(
            name, images(height, width, seed=FIXTURE_SEED), seed=FIXTURE_SEED
        )
        for name in NETWORKS
        for height, width in SIZES
    }
    FIXTURE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURE, **logits)


# keras.applications -------------------------------------------------------------------------------------------------

_KERAS_LAYERS = {
    "conv1_conv": "stem_conv",
    "conv1_bn": "stem_bn",
    "post_bn": "head_bn",
    "post_relu": "head_relu",
    "predictions": "head_dense",
}
_KERAS_PARTS = {"0_conv": "shortcut_conv", "0_bn": "shortcut_bn", "preact_bn": "bn1", "preact_relu": "relu1"}


def from_keras_applications(name: str, *, v2: bool) -> str | None:
    """Our name of a layer of keras.applications' ResNets; None for one without weights."""
    if name in _KERAS_LAYERS:
        return _KERAS_LAYERS[name]
    match = re.fullmatch(r"conv(\d)_block(\d+)_(.+)", name)
    if match is None:
        return None
    stage, block, part = match.groups()
    if numbered := re.fullmatch(r"([1-3])_(conv|bn)", part):
        j, kind = int(numbered[1]), numbered[2]
        part = f"{kind}{j + 1 if v2 and kind == 'bn' else j}"  # bn1 of ours stands in front of a V2 block
    return f"stage{int(stage) - 1}_block{block}_{_KERAS_PARTS.get(part, part)}"


def fill_both(ours: Any, theirs: Any, *, v2: bool, seed: int = SEED) -> None:
    """Give our model and one of keras.applications the same function.

    A bias of theirs that ours does not have folds into the mean of the BatchNormalization behind it.
    """
    fill(ours, seed)
    wanted = {layer.name: layer for layer in ours.layers if layer.weights}
    for layer in theirs.layers:
        if not layer.weights:
            continue
        name = from_keras_applications(layer.name, v2=v2)
        assert name in wanted, (layer.name, name)
        values = {weight.name: draw(name, weight.name, tuple(weight.shape), seed) for weight in layer.weights}
        layer.set_weights(list(values.values()))
        missing = values.keys() - {weight.name for weight in wanted.pop(name).weights}
        if missing:
            assert missing == {"bias"}, (layer.name, missing)
            mean = ours.get_layer(name.replace("conv", "bn")).moving_mean
            mean.assign(mean.numpy() - values["bias"])
    assert not wanted, f"layers of ours that {theirs.name} does not have: {sorted(wanted)}"


if __name__ == "__main__":
    record_torchvision_logits()
