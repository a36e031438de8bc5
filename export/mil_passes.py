"""What coremltools leaves undone for a residual network: two rewrites of its program, each exact.

Imported where coremltools is, and nowhere else: importing registers the rewrites under their names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder, Operation
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.helper import block_context_manager
from coremltools.converters.mil.mil.passes.pass_registry import register_pass

NAMES = ("keras_resnet::pads_into_convolutions", "keras_resnet::pool_without_transpose")
NEVER_NEGATIVE = ("relu", "relu6", "sigmoid")
TO_CHANNELS_LAST = [0, 2, 3, 1]


@register_pass(namespace="keras_resnet")
class pads_into_convolutions(AbstractGraphPass):  # a rewrite is called by its class
    """A pad of zeros that only convolutions and maximum pools read becomes their own padding.

    Given: y = pad(x, [0, 0, 0, 0, t, b, l, r]); z = conv(y, pad_type="valid")
    Result: z = conv(x, pad_type="custom", pad=[t, b, l, r])
    A pool pads with minus infinity, which is the same where nothing below zero comes in.
    """

    def apply(self, program: Any) -> None:
        for function in program.functions.values():
            self._rewrite(function)

    @block_context_manager
    def _rewrite(self, block: Any) -> None:
        for pad in [operation for operation in block.operations if operation.op_type == "pad"]:
            readers = list(pad.outputs[0].child_ops)
            if pad.outputs[0] in block.outputs or not _pads_with_zeros(pad):
                continue
            if not readers or not all(_can_pad(reader, pad.x) for reader in readers):
                continue
            for reader in readers:
                settings = {name: var for name, var in reader.inputs.items() if var is not None}
                settings |= {"x": pad.x, "pad_type": "custom", "pad": np.asarray(pad.pad.val[-4:], np.int32)}
                made = getattr(Builder, reader.op_type)(**settings, before_op=reader, name=reader.name)
                block.replace_uses_of_var_after_op(anchor_op=reader, old_var=reader.outputs[0], new_var=made)
                block.remove_ops([reader])
            block.remove_ops([pad])


def _pads_with_zeros(pad: Operation) -> bool:
    sides = pad.pad.val
    return (
        pad.mode.val == "constant"
        and float(pad.constant_val.val) == 0.0
        and len(sides) >= 4
        and not np.any(sides[:-4])
        and pad.x.rank == 4
    )


def _can_pad(reader: Operation, x: Any) -> bool:
    if reader.op_type not in ("conv", "max_pool") or reader.pad_type.val != "valid":
        return False
    return reader.op_type == "conv" or (x.op is not None and x.op.op_type in NEVER_NEGATIVE)


@register_pass(namespace="keras_resnet")
class pool_without_transpose(AbstractGraphPass):
    """The global average is taken where the channels are, not behind a transposition of the whole map.

    Given: y = transpose(x, [0, 2, 3, 1]); perhaps z = relu(y); m = reduce_mean(z, axes=[1, 2])
    Result: perhaps z = relu(x); m = reduce_mean(z, axes=[2, 3])
    """

    def apply(self, program: Any) -> None:
        for function in program.functions.values():
            self._rewrite(function)

    @block_context_manager
    def _rewrite(self, block: Any) -> None:
        for mean in [operation for operation in block.operations if operation.op_type == "reduce_mean"]:
            if sorted(mean.axes.val.tolist()) != [1, 2] or mean.keep_dims.val:
                continue
            between, transposition = [], mean.x.op
            while transposition is not None and transposition.op_type in NEVER_NEGATIVE:
                between.append(transposition)
                transposition = transposition.x.op
            if transposition is None or transposition.op_type != "transpose":
                continue
            if transposition.perm.val.tolist() != TO_CHANNELS_LAST:
                continue
            x = transposition.x
            for unary in reversed(between):
                x = getattr(Builder, unary.op_type)(x=x, before_op=mean, name=f"{unary.name}_channels_first")
            made = Builder.reduce_mean(
                x=x, axes=np.asarray([2, 3], np.int32), keep_dims=False, before_op=mean, name=mean.name
            )
            block.replace_uses_of_var_after_op(anchor_op=mean, old_var=mean.outputs[0], new_var=made)
            block.remove_ops([mean])
            for unread in [*between, transposition]:
                if not unread.outputs[0].child_ops and unread.outputs[0] not in block.outputs:
                    block.remove_ops([unread])
