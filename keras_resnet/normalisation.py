"""BatchNormalization that trains in one kernel of TensorFlow, in a layer that stays Keras' own.

Keras' form computes a training step in a dozen element-wise operations, each of which reads and writes a whole feature
map. Only `call` of the instance is replaced: the class, the configuration and what is saved are those of the stock
layer, whose own code still runs in inference and wherever the kernel does not apply.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import layers, ops

from keras_resnet.errors import UsageError

Tensor = Any
KERNEL_TYPES = ("float16", "bfloat16", "float32")  # of the inputs; it computes in float32


def fuse(layer: keras.layers.Layer, *, synchronised: bool = False) -> keras.layers.Layer:
    """Let a BatchNormalization, or every one inside a model, train in one kernel; returns the layer that came in.

    synchronised: under a `tf.distribute` strategy of several replicas, the statistics are those of the global batch:
        one all-reduce a layer each way. Not written into files; the last call counts.

    Outputs, gradients and moving statistics are Keras' up to rounding. Keras' own code runs in inference, for frozen
    layers, masks, renormalisation, float64, inputs other than [batch, height, width, channels], layers with Keras'
    `synchronized=True`, and on other backends. What `clone_model`, `from_config`, `deepcopy` and plain Keras' loading
    give holds stock layers, which compute the same: `fuse` makes it fast again. Call it before the first training
    step is traced.

    Raises UsageError where `synchronised` does not apply: another backend, renormalisation.
    """
    tensorflow = keras.backend.backend() == "tensorflow"
    for norm in _normalisations(layer):
        if synchronised and (norm.renorm or not tensorflow):
            raise UsageError(
                f"synchronised=True for layer {norm.name!r} with renorm={norm.renorm} on backend "
                f"{keras.backend.backend()!r}: it needs renorm=False and backend 'tensorflow'"
            )
        if tensorflow:  # on the instance, not in a subclass: a saved file names Keras' class
            norm.call = functools.partial(_call, norm, synchronised)
    return layer


def _normalisations(layer: keras.layers.Layer) -> list[layers.BatchNormalization]:
    """Those of exactly that class: what a subclass computes is its own affair."""
    if type(layer) is layers.BatchNormalization:
        return [layer]
    return [norm for part in getattr(layer, "layers", ()) for norm in _normalisations(part)]


def _call(
    layer: layers.BatchNormalization,
    synchronised: bool,
    inputs: Tensor,
    training: bool | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """What stands for `BatchNormalization.call`."""
    trains = training and layer.trainable
    if trains and synchronised and _replicas() > 1:
        outputs, mean, variance = _over_replicas(layer, inputs, mask)
    elif trains and mask is None and _kernel_applies(layer, inputs):
        outputs, mean, variance = _in_one_kernel(layer, inputs)
    else:
        return layers.BatchNormalization.call(layer, inputs, training=training, mask=mask)
    for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(ops.cast(moving, value.dtype) * layer.momentum + value * (1.0 - layer.momentum))
    return ops.cast(outputs, layer.compute_dtype)


def _kernel_applies(layer: layers.BatchNormalization, inputs: Tensor) -> bool:
    return (
        len(inputs.shape) == 4
        and layer.axis in (-1, 3)
        and keras.backend.standardize_dtype(inputs.dtype) in KERNEL_TYPES
        and not (layer.renorm or layer.synchronized)
    )


def _in_one_kernel(layer: layers.BatchNormalization, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised inputs, and mean and variance of the batch, float32 [channels]."""
    import tensorflow as tf

    channels = inputs.shape[-1]
    outputs, mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.cast(layer.gamma, tf.float32) if layer.scale else tf.ones([channels]),
        offset=tf.cast(layer.beta, tf.float32) if layer.center else tf.zeros([channels]),
        mean=tf.constant([], tf.float32),
        variance=tf.constant([], tf.float32),
        epsilon=layer.epsilon,
        is_training=True,
    )
    # The kernel gives the variance of a sample, over n - 1 (over 1 where n is 1); Keras keeps that of the batch.
    count = tf.cast(tf.size(inputs, out_type=tf.int64) // channels, tf.float32)
    return outputs, mean, unbiased * ((count - 1) / count)


def _over_replicas(
    layer: layers.BatchNormalization, inputs: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with mean and variance of the global batch, which all replicas share."""
    import tensorflow as tf

    if mask is not None:
        raise UsageError(f"layer {layer.name!r} is called with a mask: synchronised=True takes none")
    inputs = tf.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
    axis = layer.axis % len(inputs.shape)
    axes = [i for i in range(len(inputs.shape)) if i != axis]
    channels = inputs.shape[axis]
    count = tf.cast(tf.size(inputs, out_type=tf.int64) // channels, inputs.dtype)
    sums = [tf.reduce_sum(inputs, axes), tf.reduce_sum(tf.square(inputs), axes), count[None]]
    context = tf.distribute.get_replica_context()
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.concat(sums, axis=0))
    mean, square, count = tf.split(total, [channels, channels, 1])
    mean, square = mean / count, square / count
    variance = tf.maximum(square - tf.square(mean), 0)
    outputs = ops.batch_normalization(
        inputs,
        mean,
        variance,
        layer.axis,
        offset=ops.cast(layer.beta, inputs.dtype) if layer.center else None,
        scale=ops.cast(layer.gamma, inputs.dtype) if layer.scale else None,
        epsilon=layer.epsilon,
    )
    return outputs, mean, variance


def _replicas() -> int:
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return 1 if context is None else int(context.num_replicas_in_sync)
