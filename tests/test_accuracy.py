"""Published weights on real images: the counts of right answers that PyTorch gave on the same pixels.

The counts were measured with torch 2.13.0, torchvision 0.29.2 and Pillow 13.0.0, float32, with the sources' own code;
the two best logits of an image never lie so close that float32 rounding could swap them.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_resnet
from keras_resnet.labels import CIFAR10, imagenet
from keras_resnet.preprocessing import preprocessing_of
from keras_resnet.training import Images, evaluate_model, open_images

pytestmark = pytest.mark.slow

CIFAR_TEST = {20: 8103, 32: 8256, 44: 8267, 56: 8320}  # of 10,000 JPEGs of the test set
CIFAR_LOSSLESS = {20: 3992, 32: 4000, 44: 3999, 56: 4000}  # of 4,000 training images
CIFAR_LOSSLESS_TEST = {20: 47, 32: 48, 44: 47, 56: 48}  # of 50
TOP5_ROUNDING = 1  # fifth and sixth logit lie close


@pytest.fixture(scope="module")
def decoded(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two compressed ImageNet networks as safetensors."""
    folder = tmp_path_factory.mktemp("decoded")
    script = shared_data / "weights" / "decode_weights.py"
    subprocess.run([sys.executable, str(script), "--out", str(folder)], check=True, capture_output=True)
    return folder


def cropped_at(images: Images, offset: int, side: int = 224) -> Images:
    """The images cut to a square whose upper left corner lies at (offset, offset)."""

    def decode(item: object) -> Image.Image:
        return images.decode(item).crop((offset, offset, offset + side, offset + side))

    return replace(images, decode=decode)


@pytest.mark.parametrize(
    ("network", "offset", "top1", "top5"),
    [
        ("resnet18", 1, 749, 937),
        ("resnet50", 1, 786, 942),
        ("resnet18", 2, 741, 933),  # where torchvision's CenterCrop of 227 pixels begins
        ("resnet50", 2, 784, 935),
    ],
)
def test_imagenet_networks_answer_as_in_torchvision(
    network: str, offset: int, top1: int, top5: int, decoded: Path, shared_data: Path
) -> None:
    model = keras_resnet.build(network, weights=decoded / f"imagenet_{network}_pqf.safetensors")
    images = open_images(shared_data / "imagenet" / "val1000.tar")
    preprocessing = replace(preprocessing_of(model), resize=0)
    images = cropped_at(images, offset) if offset != 2 else images
    found = evaluate_model(model, images, list(imagenet().values()), preprocessing=preprocessing)
    assert (found.count, found.correct) == (1000, top1)
    assert found.top5 is not None
    assert abs(found.top5 * 1000 - top5) <= TOP5_ROUNDING + 1e-6


@pytest.mark.parametrize(
    ("network", "photographs", "resized"),
    [("resnet18", (77, 96), (761, 941)), ("resnet50", (84, 98), (809, 956))],
)
def test_imagenet_networks_answer_as_in_torchvision_behind_resizing(
    network: str, photographs: tuple[int, int], resized: tuple[int, int], decoded: Path, shared_data: Path
) -> None:
    model = keras_resnet.build(network, weights=decoded / f"imagenet_{network}_pqf.safetensors")
    files = sorted((shared_data / "imagenet" / "photos100").iterdir())
    labels = np.array([int(file.name[:4]) for file in files])
    photos = Images("photos", tuple(imagenet()), labels, files, Image.open)
    val = open_images(shared_data / "imagenet" / "val1000.tar")
    for images, (top1, top5) in ((photos, photographs), (val, resized)):
        found = evaluate_model(model, images)
        assert found.correct == top1
        assert found.top5 is not None
        assert abs(found.top5 * found.count - top5) <= TOP5_ROUNDING + 1e-6


@pytest.mark.parametrize("depth", CIFAR_TEST)
def test_akamasters_networks_answer_as_in_pytorch(
    depth: int, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    [file] = (shared_data / "weights").glob(f"resnet{depth}-*.th")
    model = keras_resnet.from_torch(file)
    for archive, counts in (
        ("test", CIFAR_TEST),
        ("lossless_train4000", CIFAR_LOSSLESS),
        ("lossless_test50", CIFAR_LOSSLESS_TEST),
    ):
        images = open_images(shared_data / "cifar10" / f"{archive}.tar.gz")
        assert evaluate_model(model, images, CIFAR10).correct == counts[depth]
