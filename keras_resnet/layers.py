"""The few layers of ours that stock Keras cannot express; a `.keras` file that holds one needs this package."""

from __future__ import annotations

from typing import Any

import keras

PACKAGE = "keras_resnet"


@keras.saving.register_keras_serializable(PACKAGE)
class Bound(keras.layers.Layer):
    """Rounds to 255 steps of a range (low, high) with zero inside, as a file of whole numbers does.

    Exporters read the range off it.
    """

    def __init__(self, low: float, high: float, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.low, self.high = low, high

    def call(self, x: Any) -> Any:
        return keras.quantizers.fake_quant_with_min_max_vars(x, self.low, self.high)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "low": self.low, "high": self.high}


CUSTOM_OBJECTS = {f"{PACKAGE}>{Bound.__name__}": Bound}
