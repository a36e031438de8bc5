"""Train deep networks in less memory: activations are computed again in the backward pass instead of kept.

Takes a network of `models.build` (its block outputs are the places to cut), gives one with the same layers, weights
and file format whose training step is the same to the last bit. What a network is made of stays with `blocks.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_resnet.depth import recursion_room
from keras_resnet.errors import InputError, UsageError

Tensor = Any
Run = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, list[Tensor]]]  # x, weights, state
BLOCK_OUT = re.compile(r"stage(\d+)_block(\d+)_out")
BACKENDS = ("tensorflow", "jax", "torch")


def rematerialise(model: keras.Model, *, segments: int | None = None) -> keras.Model:
    """The same network, whose training recomputes activations segment by segment (arXiv:1604.06174, section 4).

    model: a Functional model with layers named stage1_block1_out, ...: from `build`, or loaded from its file; one
        input, one output. It stays as it is; the new model shares its layers and weights, and is not compiled.
    segments: into how many runs of blocks to cut, 2 to the number of blocks; default about the number that keeps
        least. What crosses the cuts is kept; the last run is used at once and not computed again.

    Input and output shapes are those of `model`. With `training=False` the plain graph runs. The model saves as a
    plain one: after loading, call `rematerialise` again. A training step costs about one more forward pass.

    On TensorFlow and torch, loss, gradients, moving statistics and dropout masks are bit-identical to the plain
    model's; tested on TensorFlow also in mixed precision and under MirroredStrategy. With `jit_compile=True` and on
    JAX they are equal within rounding: XLA compiles two programs, and fuses each in its own way. On JAX nothing is
    saved on a CPU, because XLA keeps the activations there. A GPU was not tried.

    Raises InputError for a model without such layers, UsageError for a number of segments that does not fit, several
    inputs or outputs, an activity regulariser, or a backend that does not train.

    >>> rematerialise(build("cifar_resnet20"), segments=3).count_params()
    271098
    """
    cuts = _cuts(model, segments)
    with recursion_room(len(model.layers)):
        # `Model` over existing tensors shares their layers; this one is what the user sees and what is saved.
        twin = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        entry = keras.Model(model.inputs[0], model.inputs[0])  # converts what the user passes, as any model does
        recomputed = [_Recomputed(piece) for piece in map(keras.Model, [model.inputs[0], *cuts[:-1]], cuts)]
        tail = keras.Model(cuts[-1], model.outputs[0])
    plain = twin.call

    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Tensor:
        if not training:
            return plain(inputs, training=training, mask=mask)
        x = entry(inputs)
        for segment in recomputed:
            x = segment(x)
        return tail(x, training=True)

    # On the instance, not in a subclass: the class, and with it the saved file, stays Keras' own Functional.
    twin.call = call
    return twin


def _cuts(model: keras.Model, segments: int | None) -> list[Tensor]:
    """The tensors between segments, after checking that the model can be cut into so many."""
    if keras.backend.backend() not in BACKENDS:
        raise UsageError(f"rematerialise on backend {keras.backend.backend()!r}: it needs one of {', '.join(BACKENDS)}")
    found = {tuple(map(int, m.groups())): layer for layer in model.layers if (m := BLOCK_OUT.fullmatch(layer.name))}
    blocks = [found[key] for key in sorted(found)]
    if not blocks:
        raise InputError(
            f"model {model.name!r} has no layers named stage1_block1_out, ...: build it with keras_resnet, "
            "and where such a network is a layer of your model, rematerialise that network before nesting it"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UsageError(
            f"model {model.name!r} has {len(model.inputs)} input(s) and {len(model.outputs)} output(s): "
            "rematerialise takes a network with one of each"
        )
    for layer in model.layers:
        if getattr(layer, "activity_regularizer", None) is not None:
            raise UsageError(f"layer {layer.name!r} has an activity_regularizer, which a recomputed segment would lose")
    if segments is None:
        # Kept at once: the tensor at each cut, and one segment, whose blocks hold about ten such tensors each.
        segments = min(len(blocks), max(2, round(math.sqrt(10 * len(blocks)))))
    if isinstance(segments, bool) or not isinstance(segments, int) or not 2 <= segments <= len(blocks):
        raise UsageError(
            f"segments={segments!r} does not fit {model.name!r}, which has {len(blocks)} blocks: "
            f"give a whole number from 2 to {len(blocks)}, or None for the best guess"
        )
    return [blocks[len(blocks) * i // segments - 1].output for i in range(1, segments)]


class _Recomputed(keras.layers.Layer):
    """A segment whose activations are computed again in the backward pass.

    A layer only for `autocast=False`: its weights must be read as they are, not rounded to the compute type.
    """

    def __init__(self, body: keras.Model) -> None:
        super().__init__(autocast=False, name=f"{body.name}_recomputed")
        self.body = body

    def call(self, x: Tensor) -> Tensor:
        weights = [v.value for v in self.body.trainable_variables]
        # Copies, because torch moves a variable in place and would recompute with the next dropout seed.
        state = [ops.copy(v.value) for v in self.body.non_trainable_variables]
        on_tensorflow = keras.backend.backend() == "tensorflow"
        recompute = _recompute_on_tensorflow if on_tensorflow else keras.remat
        moving: list[Any] = []

        def run(x: Tensor, weights: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
            y, moved = self._run(x, weights, state)
            moving[:] = [variable for variable, _ in moved]
            return y, [value for _, value in moved]

        y, values = recompute(run)(x, weights, state)
        for variable, value in zip(moving, values, strict=True):
            variable.assign(ops.stop_gradient(value))
        return y

    def _run(self, x: Tensor, weights: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[Tensor, list[Any]]:
        """The segment as a pure function: its output, and (variable, new value) of each statistic and seed it moved."""
        variables = self.body.non_trainable_variables
        mapping = [*zip(self.body.trainable_variables, weights, strict=True), *zip(variables, state, strict=True)]
        with keras.StatelessScope(mapping) as scope:
            before = [scope.get_current_value(v) for v in variables]
            y = self.body(x, training=True)
            after = [scope.get_current_value(v) for v in variables]
        # The weights of frozen layers stand among these variables; what nothing assigned is still the same object.
        return y, [(v, new) for v, old, new in zip(variables, before, after, strict=True) if new is not old]


def _recompute_on_tensorflow(run: Run) -> Run:
    """`run` with a gradient that runs it again.

    Not `tf.recompute_grad` (nor `keras.remat`, which is the same): TensorFlow puts the weight gradients off to the end
    of the step, and until then they keep every recomputed activation alive. Measured at depth 110 it saved nothing.
    """
    import tensorflow as tf

    def recomputed(x: Tensor, weights: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        count = len(weights)

        # Every tensor comes in as an argument: in others TensorFlow looks for variables, and wants their gradients.
        @tf.custom_gradient
        def forward(x: Tensor, *values: Tensor) -> Any:
            weights, state = values[:count], values[count:]

            def gradient(dy: Tensor, *_: Tensor) -> list[Tensor | None]:
                # Zero, but not before the backward pass has come here. As a sum, because XLA ignores control edges and
                # would find that the recomputation repeats the forward pass, and drop it.
                zero = tf.minimum(tf.abs(tf.reduce_max(tf.reshape(dy, [-1])[:1])), 0)
                x_again = x + tf.cast(zero, x.dtype)
                with tf.GradientTape() as tape:
                    tape.watch([x_again, *weights])
                    y, _moved = run(x_again, weights, state)
                dx, *dw = tape.gradient(y, [x_again, *weights], output_gradients=dy)
                # The next segment waits for the kernels' gradients, which hold the activations. Not for the vectors':
                # dx needs their sums anyhow, and an edge there would keep TensorFlow's graph optimiser from moving the
                # learning rate into the gradient of gamma, as it does in the plain model, and change its last bit.
                with tf.control_dependencies([g for g in dw if len(g.shape) > 1]):
                    return [tf.identity(dx), *dw, *[None] * len(state)]

            y, moved = run(x, weights, state)
            return (y, *moved), gradient

        y, *moved = forward(x, *weights, *state)
        return y, moved

    return recomputed
