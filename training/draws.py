"""Random numbers of a batch, drawn from (seed, step) alone: no state that a restart would lose."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

PLACE, FLIP, CROP, COLOUR, RAND, LEVEL, ERASE, MIXING, MIX, CUT = range(10)  # purposes


@dataclass(frozen=True)
class Draw:
    """Random numbers for the images `start` to `stop` - 1 of a global batch of `size`.

    They are those that the whole batch would get, so an image is treated in the same way whoever holds it. Another
    purpose gives independent numbers.
    """

    seed: int
    step: tf.Tensor | int
    size: tf.Tensor | int
    start: tf.Tensor | int
    stop: tf.Tensor | int

    def uniform(self, count: int, purpose: int = PLACE) -> tf.Tensor:
        """float32 [images, count], 0 to below 1."""
        return tf.random.stateless_uniform([self.size, count], self._key(purpose))[self.start : self.stop]

    def normal(self, count: int, purpose: int) -> tf.Tensor:
        """float32 [images, count], mean 0, deviation 1."""
        return tf.random.stateless_normal([self.size, count], self._key(purpose))[self.start : self.stop]

    def beta(self, alpha: float, purpose: int) -> tf.Tensor:
        """float32 [images], of the distribution Beta(alpha, alpha)."""
        # In float64: small alphas give numbers that float32 would take for 0.
        parts = tf.random.stateless_gamma([self.size, 2], self._key(purpose), alpha, dtype=tf.float64)
        parts = parts[self.start : self.stop]
        return tf.cast(parts[:, 0] / tf.reduce_sum(parts, axis=1), tf.float32)

    def _key(self, purpose: int) -> tf.Tensor:
        # Seeds are below 2 ** 31, so no two purposes share one.
        return tf.stack([tf.constant(self.seed + (purpose << 32), tf.int64), tf.cast(self.step, tf.int64)])
