"""Networks against the code that published them: logits and the maps C2 to C5, of random weights and random statistics.

keras.applications' ResNet-50s are compared in `test_models.py` in every run, akamaster's files in `test_naming.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_resnet import build, features
from keras_resnet.naming import differences, from_ours, to_ours
from keras_resnet.specs import VARIANTS, spec_of
from tests.references import CLASSES, LOGITS_TOLERANCE, SIZES, drain, draw, fill, images, pour, relative_difference
from tests.references import import_torchvision as torchvision_or_error

pytestmark = pytest.mark.slow

Answers = list[np.ndarray]  # logits, C2, C3, C4, C5; [batch, height, width, channels]


def answers_of_ours(variant: str, weights: dict[str, dict[str, np.ndarray]], batch: np.ndarray) -> Answers:
    model = build(variant, classes=CLASSES, input_shape=(None, None, 3), classifier_activation=None)
    both = keras.Model(model.input, [model.output, *features(pour(model, weights)).outputs])
    return [ops.convert_to_numpy(value) for value in both(batch, training=False)]


def largest_difference(ours: Answers, theirs: Answers) -> float:
    """Of the logits and of each map, as a fraction of the largest value there."""
    return max(relative_difference(*pair) for pair in zip(ours, theirs, strict=True))


# PyTorch's -----------------------------------------------------------------------------------------------------------


def torchvision(name: str) -> tuple[Any, list[Any]]:
    """A network of theirs, and the modules whose outputs are C2 to C5."""
    network = getattr(torchvision_or_error().models, name)(weights=None, num_classes=CLASSES)
    return network, [network.layer1, network.layer2, network.layer3, network.layer4]


def timm(name: str) -> tuple[Any, list[Any]]:
    torchvision_or_error()  # which timm imports
    from timm import create_model

    network = create_model(name, num_classes=CLASSES)
    return network, list(getattr(network, "stages", ())) or [getattr(network, f"layer{s}") for s in (1, 2, 3, 4)]


def transformers(name: str) -> tuple[Any, list[Any]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    forms = {
        "resnet18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
        "resnet50": {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"},
    }
    depth, _, old = name.partition("_")
    network = ResNetForImageClassification(
        ResNetConfig(**forms[depth], num_labels=CLASSES, downsample_in_bottleneck=bool(old))
    )
    return network, list(network.resnet.encoder.stages)


def random_tensors(network: Any) -> dict[str, np.ndarray]:
    """Random values for a state dict, by shape and ending alone: no name map has a hand in it."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        shape = tuple(tensor.shape)
        if len(shape) > 1:
            values = draw(name, "kernel", shape[::-1]).transpose()  # out last in Keras, first in PyTorch
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            values = draw(name, "gamma", shape)
        elif shape:
            values = draw(name, "bias", shape)
        else:
            values = np.zeros((), np.int64)
        tensors[name] = np.ascontiguousarray(values) if shape else values
    return tensors


def answers_of_torch(network: Any, stages: list[Any], batch: np.ndarray) -> Answers:
    import torch

    maps: list[Any] = []
    hooks = [stage.register_forward_hook(lambda _, __, output: maps.append(output)) for stage in stages]
    with torch.no_grad():
        answer = network(torch.from_numpy(batch.transpose(0, 3, 1, 2).copy()))
    for hook in hooks:
        hook.remove()
    return [getattr(answer, "logits", answer).numpy(), *(value.numpy().transpose(0, 2, 3, 1) for value in maps)]


@pytest.mark.parametrize(
    ("library", "name", "scheme"),
    [
        (torchvision, "resnet18", "torchvision"),
        (torchvision, "resnet34", "torchvision"),
        (torchvision, "resnet50", "torchvision"),
        (torchvision, "resnet101", "torchvision"),
        (torchvision, "resnet152", "torchvision"),
        (torchvision, "resnext50_32x4d", "torchvision"),
        (torchvision, "wide_resnet50_2", "torchvision"),
        (timm, "resnet18", "torchvision"),
        (timm, "resnet50", "torchvision"),
        (timm, "resnetv2_18", "timm_v2"),
        (timm, "resnetv2_50", "timm_v2"),
        (transformers, "resnet18", "transformers"),
        (transformers, "resnet50", "transformers"),
        (transformers, "resnet50_v1", "transformers"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value,
)
def test_logits_and_maps_are_those_of_the_pytorch_implementation_there_and_back(
    library: Callable[[str], tuple[Any, list[Any]]], name: str, scheme: str
) -> None:
    try:
        network, stages = library(name)
    except ImportError as error:
        pytest.skip(f"needs {error.name}: requirements-reference.txt")
    import torch

    network.eval()
    tensors = random_tensors(network)
    network.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in tensors.items()}, strict=True)
    spec = spec_of(name, classes=CLASSES)
    weights = to_ours(tensors, spec, scheme)
    for size in SIZES:
        batch = images(*size)
        found = largest_difference(answers_of_ours(name, weights, batch), answers_of_torch(network, stages, batch))
        print(f"{library.__name__} {name} {size}: {found:.1e} of the largest value")  # shown by -rP
        assert found <= LOGITS_TOLERANCE, size

    if not differences(spec, scheme):
        back = from_ours(weights, spec, scheme)
        assert back.keys() == tensors.keys()
        for key, array in tensors.items():
            np.testing.assert_array_equal(back[key], array, key)
        network.load_state_dict({key: torch.from_numpy(array) for key, array in back.items()}, strict=True)


# keras.applications' -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variant", "scheme"),
    [
        ("ResNet50", "resnet50_v1", "keras_v1"),
        ("ResNet101", "resnet101_v1", "keras_v1"),
        ("ResNet152", "resnet152_v1", "keras_v1"),
        ("ResNet50V2", "resnet50_v2", "keras_v2"),
        ("ResNet101V2", "resnet101_v2", "keras_v2"),
        ("ResNet152V2", "resnet152_v2", "keras_v2"),
    ],
)
def test_logits_and_maps_are_those_of_keras_applications(name: str, variant: str, scheme: str) -> None:
    depths = VARIANTS[variant].depths
    ends = ["preact_relu"] * 3 if scheme == "keras_v2" else ["out"] * 4  # in front of the stride, as detectors take
    taps = [f"conv{s}_block{b}_{end}" for s, b, end in zip((2, 3, 4, 5), depths, ends, strict=False)]
    taps += ["post_relu"] * (scheme == "keras_v2")
    for size in SIZES:
        theirs = getattr(keras.applications, name)(
            weights=None, input_shape=(*size, 3), classes=CLASSES, classifier_activation=None
        )
        fill(theirs)  # biases, means and variances too
        tensors = {f"{layer}/{variable}": array for layer, w in drain(theirs).items() for variable, array in w.items()}
        weights = to_ours(tensors, spec_of(variant, classes=CLASSES), scheme)
        both = keras.Model(theirs.input, [theirs.output, *(theirs.get_layer(tap).output for tap in taps)])
        expected = [ops.convert_to_numpy(value) for value in both(images(*size), training=False)]
        found = largest_difference(answers_of_ours(variant, weights, images(*size)), expected)
        print(f"{name} {size}: {found:.1e} of the largest value")  # shown by -rP
        assert found <= LOGITS_TOLERANCE, size
