"""The pyramid C2 to C5 of a network: what detectors and segmenters build on.

    python examples/pyramid.py [VARIANT] [HEIGHT WIDTH]

Each map has half the sides of the one before it. The model that gives them shares layers and weights with the
network, so it trains with it; the last lines put a neck of top-down sums on it, as a feature pyramid network has.
"""

from __future__ import annotations

import sys

import keras
from keras import layers

import keras_resnet


def pyramid(variant: str = "resnet50", height: int = 224, width: int = 224) -> keras.Model:
    """The maps of a network that reads images of one size; weights="imagenet" would bring published weights."""
    return keras_resnet.features(
        keras_resnet.build(variant, weights=None, include_top=False, input_shape=(height, width, 3))
    )


def with_neck(backbone: keras.Model, channels: int = 256) -> keras.Model:
    """P2 to P5 of arXiv:1612.03144, Figure 3: each map narrowed, and the one above it added at twice its size.

    Height and width must be multiples of 32, so that the maps fit each other.
    """
    narrow = [layers.Conv2D(channels, 1, name=f"narrow{i}")(c) for i, c in enumerate(backbone.outputs, 2)]
    summed = [narrow.pop()]
    while narrow:
        summed.insert(0, layers.Add()([narrow.pop(), layers.UpSampling2D(2)(summed[0])]))
    outputs = [layers.Conv2D(channels, 3, padding="same", name=f"p{i}")(x) for i, x in enumerate(summed, 2)]
    return keras.Model(backbone.input, outputs, name=f"{backbone.name}_fpn")


def main(variant: str = "resnet50", height: str = "224", width: str = "224") -> None:
    backbone = pyramid(variant, int(height), int(width))
    for kind, model in (("C", backbone), ("P", with_neck(backbone))):
        for level, output in enumerate(model.outputs, 2):
            print(f"{kind}{level}  {' x '.join(map(str, output.shape[1:]))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
