"""What coremltools leaves undone for a residual network: two exact rewrites of its program, and one into bytes.

Imported where coremltools is, and nowhere else: importing registers the rewrites under their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder, Operation, Var
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.helper import block_context_manager
from coremltools.converters.mil.mil.passes.pass_registry import register_pass
from coremltools.converters.mil.mil.types import nptype_from_builtin

from keras_resnet.export.mil import layer_of

NAMES = ("keras_resnet::pads_into_convolutions", "keras_resnet::pool_without_transpose")
IN_BYTES = "keras_resnet::values_in_bytes"
COMPUTING = ("conv", "linear", "add", "sub", "mul", "max_pool", "avg_pool", "reduce_mean")
MOVING = ("max_pool", "avg_pool", "pad", "quantize", "dequantize")  # what they give lies in the range of what they read
OF_PIXELS = ("mul", "add", "sub", "cast", "transpose")
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


@register_pass(namespace="keras_resnet")
class values_in_bytes(AbstractGraphPass):
    """Every value that a convolution, sum or pool reads is rounded to 8 bits, in the range of the layer that gives it.

    Given: y = relu(x); z = conv(y)
    Result: y = relu(x); b = dequantize(quantize(y)); z = conv(b)
    Zero is byte 0 in all of them, as in what Apple's own training gives (coremltools.optimize.torch, 9.0: "we want to
    fix zero point to 0"): values that are never negative are unsigned, with 255 steps, the others signed and symmetric.
    Scores stay as they are: nothing reads them that computes in bytes, and equal ones could not be told apart.
    """

    ranges: Mapping[str, tuple[float, float]] = MappingProxyType({})  # by layer
    pixels: tuple[float, float] | None = None  # of normalised pixels; None: they stay in floating point

    def apply(self, program: Any) -> None:
        for function in program.functions.values():
            self._rewrite(function)

    @block_context_manager
    def _rewrite(self, block: Any) -> None:
        image = next(iter(block.inputs))
        read: dict[Any, None] = {}  # in order
        for operation in block.operations:
            if operation.op_type in COMPUTING and not _reads_pixels(operation, image):
                read |= dict.fromkeys(v for v in operation.inputs.values() if isinstance(v, Var) and v.val is None)
        place = {operation: i for i, operation in enumerate(block.operations)}
        for var in read:
            bounds = self._range_of(var, image)
            if bounds is None:
                continue
            settings = _in_bytes(bounds, nptype_from_builtin(var.dtype))
            # One pair for all who read the value, as one tensor of bytes serves them all.
            first = min(var.child_ops, key=place.__getitem__)
            packed = Builder.quantize(input=var, before_op=first, **settings)
            given = Builder.dequantize(input=packed, scale=settings["scale"], before_op=first)
            block.replace_uses_of_var_after_op(anchor_op=given.op, old_var=var, new_var=given)

    def _range_of(self, var: Any, image: str) -> tuple[float, float] | None:
        operation = var.op
        if operation is None or _reads_pixels(operation, image):
            return self.pixels
        name = layer_of(var.name, self.ranges)
        if name is not None:
            return self.ranges[name]
        if operation.op_type in MOVING:
            return self._range_of(operation.inputs.get("x") or operation.inputs["input"], image)
        return None


def _reads_pixels(operation: Operation | None, image: str) -> bool:
    """Whether an operation is a step of the normalisation: nothing but such lies between it and the input."""
    while operation is not None and operation.op_type in OF_PIXELS:
        if operation.x.op is None:
            return bool(operation.x.name == image)
        operation = operation.x.op
    return False


def _in_bytes(bounds: tuple[float, float], dtype: Callable[[float], Any]) -> dict[str, Any]:
    low, high = bounds
    if low >= 0:
        return {"output_dtype": "uint8", "scale": dtype(high / 255)}
    return {"output_dtype": "int8", "scale": dtype(max(-low, high) / 127)}
