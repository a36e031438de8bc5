"""LAMB as published: weight decay inside the trust ratio."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class Lamb(keras.optimizers.Lamb):
    """Algorithm 2 of arXiv:1904.00962, which adds weight decay to a layer's update before it takes the update's norm.

    Keras' own (3.15) shrinks the weights beside it: for a large kernel, whose trust ratio is some hundredths, by that
    much more. Variables that are left out of weight decay get Adam's step, as in timm's LAMB.
    """

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing here: `update_step` does it."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One variable's step; the moments are those of Keras' own."""
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        index = self._get_variable_index(variable)
        mean, square = self._momentums[index], self._velocities[index]
        self.assign_add(mean, (gradient - mean) * (1 - self.beta_1))
        self.assign_add(square, (ops.square(gradient) - square) * (1 - self.beta_2))
        size = ops.sqrt(square / (1 - ops.power(ops.cast(self.beta_2, variable.dtype), step))) + self.epsilon
        update = mean / (1 - ops.power(ops.cast(self.beta_1, variable.dtype), step)) / size
        if self.weight_decay and self._use_weight_decay(variable):
            update += self.weight_decay * variable
            weight_norm, norm = (ops.sqrt(ops.sum(ops.square(v))) for v in (variable, update))
            trust = ops.where(ops.logical_and(weight_norm > 0, norm > 0), weight_norm / norm, 1.0)
            update *= ops.cast(trust, variable.dtype)
        self.assign_sub(variable, rate * update)
