"""One training step that gives the same on one device, on many, and on many machines, in every precision.

Keras' own step under `tf.distribute` clips before the gradients are added up, weights a last batch that does not divide
wrongly, decides on an overflow by what one replica alone has seen, and cannot gather gradients at all (Keras 3.15).
Here everything that decides is added up over the replicas first, in one all-reduce, so that each of them does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from keras_resnet.preprocessing import Preprocessing, normalise_tensor

Tensor = Any
Loss = Callable[[Tensor, Tensor], Tensor]  # targets and scores, [batch, classes], to a loss an image, [batch]
Teaching = Callable[[Tensor, Tensor, Tensor], Tensor]  # losses, pixels and scores to losses, as a teacher blends them
Logs = dict[str, Tensor]

LOSS, CORRECT, COUNT = range(3)  # places in `State.totals`; behind them, one a worker, who asked to stop


class Wishes:
    """Who wants to stop: this process as it says, and all of them as known behind a step, in every process alike.

    Its variables belong to this process and not to a strategy: make it outside the strategy's scope.
    """

    def __init__(self, workers: int = 1, worker: int = 0) -> None:
        self.worker = worker
        self.own = tf.Variable(tf.zeros([workers], tf.float64), trainable=False)
        self.known = tf.Variable(tf.zeros([workers], tf.float64), trainable=False)

    def ask(self) -> None:
        """Tell every process at its next step that this one wants to stop."""
        self.own.scatter_nd_update([[self.worker]], [1.0])

    def asked_by(self) -> list[int]:
        """The workers that want to stop, as known behind the last step."""
        return [i for i, asked in enumerate(self.known.numpy()) if asked]


@dataclass
class State:
    """What a step leaves behind besides weights and the optimizer's variables, equal on every replica.

    totals: float64, the sums of the epoch so far; averages: of the weights and statistics, in the order of `averaged`.
    """

    totals: keras.Variable
    averages: list[keras.Variable] = field(default_factory=list)


def reduced(optimizer: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """An optimizer of that class which takes gradients that are added up over the replicas already."""

    class Reduced(optimizer):
        def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
            return grads_and_vars

    return Reduced


class StepModel(keras.Model):
    """A Functional network, `StepModel(network.inputs, network.outputs)`, that shares its layers and trains exactly.

    It is for training and judging alone: save the network that it was made of, which plain Keras loads.
    """

    def prepare(
        self,
        loss: Loss,
        optimizer: keras.optimizers.Optimizer | None = None,
        *,
        preprocessing: Preprocessing | None = None,
        batch_size: int = 1,
        accumulate: int = 1,
        average: float = 0.0,
        synchronized: bool = False,
        wishes: Wishes | None = None,
        teaching: Teaching | None = None,
    ) -> StepModel:
        """Make it ready for `fit` and `evaluate`; call it, as the constructor, in the strategy's scope.

        optimizer: of a class from `reduced`, `LossScaleOptimizer` around one for float16; None to judge only.
        preprocessing: how pixels are normalised, None where the data is. batch_size: images of a whole global batch,
            to which gradients are scaled in between. accumulate: parts of a batch that are computed one behind the
            other. average: decay of the moving average of weights and statistics, 0 for none (as
            tf.train.ExponentialMovingAverage with num_updates). synchronized: batch statistics are global, and equal
            without help. wishes: of the processes to stop. teaching: what a teacher makes of the losses in training.
        """
        self._image_loss, self._preprocessing, self._teaching = loss, preprocessing, teaching
        self._batch_size, self._accumulate, self._decay = batch_size, accumulate, average
        self._synchronized = synchronized
        self.compile(optimizer or "sgd", jit_compile=False)
        if optimizer is not None:
            self.optimizer.build(self.trainable_variables)
        # A plain object: Keras would count variables in attributes of the model among its weights.
        self.state = State(_variable("totals", tf.zeros([3], tf.float64)))
        if average:
            self.state.averages = [_variable("average", tf.identity(v.value)) for v in self.averaged]
        self.wishes = wishes or Wishes()
        return self

    @property
    def statistics(self) -> list[keras.Variable]:
        """The moving statistics of the batch normalisations."""
        return [v for v in self.non_trainable_variables if v.name.startswith("moving_")]

    @property
    def averaged(self) -> list[keras.Variable]:
        """What the moving average is of."""
        return list(self.weights)

    def train_step(self, data: Any) -> Logs:
        """One update from a replica's part of a global batch (x, y), or (x, y, weight)."""
        x, y, weight = _unpacked(data)
        context = tf.distribute.get_replica_context()
        weights = self.trainable_variables
        gradients: list[Tensor] = []
        sums = tf.zeros([3], tf.float64)
        before = self._images_before(y, context)
        for part in range(self._accumulate):
            # Of the global batch each part has every nth image, the same however many replicas share it. One part
            # behind the other, or their activations would be in memory together.
            first = (part - before) % self._accumulate
            with tf.control_dependencies(gradients):
                taken = [tf.identity(value[first :: self._accumulate]) for value in (x, y, weight)]
            with tf.GradientTape() as tape:
                losses, measured = self._measure(*taken, training=True)
                scaled = self.optimizer.scale_loss(tf.reduce_sum(losses) / self._batch_size)
            found = tape.gradient(scaled, weights)
            gradients = [a + b for a, b in zip(gradients, found, strict=True)] if gradients else found
            sums += measured
        mixed = [] if self._synchronized or context.num_replicas_in_sync == 1 else self.statistics
        shares = [v * tf.cast(sums[COUNT], v.dtype) for v in mixed]
        wishes = tf.cast(tf.concat([sums, self.wishes.own], axis=0), gradients[0].dtype)  # one type, one all-reduce
        *everything, wishes = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, *shares, wishes])
        wishes = tf.cast(wishes, tf.float64)
        sums = wishes[:3]
        # 1 but in an epoch's last batch, when that is smaller.
        factor = self._batch_size / sums[COUNT]
        gradients = [g * tf.cast(factor, g.dtype) for g in everything[: len(weights)]]
        for variable, total in zip(mixed, everything[len(weights) :], strict=True):
            variable.assign(total / tf.cast(sums[COUNT], total.dtype))
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        self._move_averages()
        self.wishes.known.assign(wishes[3:])
        return self._logs(sums)

    def test_step(self, data: Any) -> Logs:
        """Judge a replica's part of a global batch; an image of weight 0 does not count."""
        context = tf.distribute.get_replica_context()
        _, sums = self._measure(*_unpacked(data), training=False)
        return self._logs(context.all_reduce(tf.distribute.ReduceOp.SUM, sums))

    def reset_metrics(self) -> None:
        """Begin the sums of an epoch anew."""
        super().reset_metrics()
        self.state.totals.assign([0.0, 0.0, 0.0])

    def _images_before(self, y: Tensor, context: Any) -> Tensor:
        """How many images of the global batch the replicas before this one have, where that matters."""
        replicas = context.num_replicas_in_sync
        if self._accumulate == 1 or replicas == 1:
            return 0
        own = tf.one_hot(context.replica_id_in_sync_group, replicas, dtype=tf.int32) * tf.shape(y)[0]
        counts = context.all_reduce(tf.distribute.ReduceOp.SUM, own)
        return tf.reduce_sum(counts[: context.replica_id_in_sync_group])

    def _measure(self, x: Tensor, y: Tensor, weight: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
        """The weighted loss of each image, and the sums of losses, of right answers and of images."""
        scores = self(
            x if self._preprocessing is None else normalise_tensor(x, self._preprocessing),
            training=training,
        )
        weight = tf.cast(weight, scores.dtype)
        losses = self._image_loss(tf.cast(y, scores.dtype), scores)
        if training and self._teaching is not None:
            losses = self._teaching(losses, x, scores)
        losses *= weight
        is_right = tf.cast(tf.argmax(scores, axis=-1) == tf.argmax(y, axis=-1), scores.dtype)
        sums = [tf.reduce_sum(tf.cast(value, tf.float64)) for value in (losses, is_right * weight, weight)]
        return losses, tf.stack(sums)

    def _move_averages(self) -> None:
        step = tf.cast(self.optimizer.iterations, tf.float64)
        decay = tf.minimum(tf.constant(self._decay, tf.float64), (1 + step) / (10 + step))
        for average, variable in zip(self.state.averages, self.averaged, strict=bool(self.state.averages)):
            average.assign_sub((average - variable) * tf.cast(1 - decay, variable.dtype))

    def _logs(self, sums: Tensor) -> Logs:
        """The means of the epoch so far."""
        self.state.totals.assign_add(sums)
        totals = tf.convert_to_tensor(self.state.totals)
        logs = {"loss": totals[LOSS] / totals[COUNT], "accuracy": totals[CORRECT] / totals[COUNT]}
        # Keras takes the mean of the replicas' logs, between processes over an axis that scalars do not have.
        return {k: v[None] for k, v in logs.items()} if _among_processes(self.distribute_strategy) else logs

    def _symbolic_build(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing to build. Keras would run the network on a mean of the replicas' batches, which fails."""

    def _maybe_symbolic_build(self, *arguments: Any, **keywords: Any) -> None:
        """As `_symbolic_build`; Keras takes the batch for it from the data, which is one batch short then."""


def _variable(name: str, value: Any) -> keras.Variable:
    return keras.Variable(value, trainable=False, dtype=value.dtype.name, name=name, autocast=False)


def _unpacked(data: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    return x, y, tf.ones([tf.shape(y)[0]]) if weight is None else weight


def _among_processes(strategy: tf.distribute.Strategy) -> bool:
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return several and bool(strategy.extended._in_multi_worker_mode())
