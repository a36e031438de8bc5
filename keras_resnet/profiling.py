"""What a Keras model costs and sees, layer by layer: parameters, multiply-accumulates, activations, receptive field.

Takes any Functional or Sequential model, gives a `Profile` that prints itself or writes CSV and JSON. Only shapes are
computed: no data runs and no weight is read. The rules of each kind of layer stand in `counting.py`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import keras

from keras_resnet import counting
from keras_resnet.counting import Shape, Span
from keras_resnet.errors import UsageError

WIDTH = 100  # columns of the table
TYPE_WIDTH = 13  # of which a layer's type takes so many at most
TOTALS = (  # of the JSON, in its order
    "parameters",
    "trainable_parameters",
    "macs",
    "activations",
    "activation_bytes",
    "peak_activation_bytes",
    "receptive_field",
    "stride",
)


@dataclass(frozen=True)
class LayerProfile:
    """One call of one layer, at batch 1. A layer that is called again has rows `name[2]`, ... with no parameters."""

    name: str  # layers of nested models: outer/inner
    type: str
    output_shape: Shape  # of the first output, without the batch axis
    parameters: int  # scalars, moving statistics included
    trainable_parameters: int
    macs: int  # multiply-accumulates of convolutions and dense layers
    activations: int  # scalars that convolutions and dense layers output
    activation_bytes: int  # of all its outputs, in their compute type
    receptive_field: int | None  # input pixels that one position sees along a side; None: all, or not known
    stride: float | None  # input pixels between neighbours
    counted: bool  # False: the layer multiplies in a way that no rule covers, and stands with 0 MACs


@dataclass(frozen=True)
class Profile:
    """The costs of a model at batch 1: a row a layer call, and what they add up to."""

    name: str
    input_shapes: tuple[Shape, ...]  # one an input, without the batch axis
    peak_activation_bytes: int  # largest set of tensors alive at once when layers run in graph order at inference
    receptive_field: int | None  # of the last feature map, in input pixels along a side; None: all, or not known
    stride: float | None  # of the last feature map
    layers: tuple[LayerProfile, ...] = field(repr=False)

    @property
    def parameters(self) -> int:
        """All scalars, moving statistics included: Keras' `count_params()`."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def trainable_parameters(self) -> int:
        return sum(layer.trainable_parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates; a FLOP count with add and multiply apart is twice as large."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activations(self) -> int:
        """Scalars that convolutions and dense layers output: timm's "activations"."""
        return sum(layer.activations for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """The outputs of all layers together: what a training step keeps, an image (without rematerialisation)."""
        return sum(layer.activation_bytes for layer in self.layers)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The layers that multiply in a way that no rule covers: the MACs are too low by theirs."""
        return tuple(layer.name for layer in self.layers if not layer.counted)

    def table(self, layers: bool = True) -> str:
        """Plain text of at most 100 columns: a line a layer (where `layers`), then the totals with their units."""
        rows = _layer_lines(self.layers) if layers else []
        return "\n".join([*rows, *_total_lines(self)])

    def __str__(self) -> str:
        return self.table()

    def csv(self) -> str:
        """A header and a line a layer call; shapes as "7x7x2048", and where all is seen "all" and no stride."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(column.name for column in fields(LayerProfile))
        for layer in self.layers:
            row = asdict(layer) | {"output_shape": _by(layer.output_shape)}
            if layer.receptive_field is None:
                row["receptive_field"] = "all"
            writer.writerow(row.values())
        return text.getvalue()

    def json(self) -> str:
        """The totals and all rows, under the names of the fields; a field of the whole image is null."""
        content = {
            "name": self.name,
            "input_shapes": self.input_shapes,
            "batch": 1,
            "totals": {name: getattr(self, name) for name in TOTALS},
            "uncounted": self.uncounted,
            "layers": [asdict(layer) for layer in self.layers],
        }
        return json.dumps(content, indent=1)


def profile(model: keras.Model, *, input_shape: Sequence[int] | None = None) -> Profile:
    """Parameters, MACs, activation memory and receptive field of any Keras model, in total and layer by layer.

    model: Functional or Sequential, from here, keras.applications or anywhere; nested models are taken apart.
    input_shape: (height, width) or (height, width, channels) instead of the model's own; needed where that has None.

    MACs are multiply-accumulates at batch 1 of convolutions and dense layers, nothing else, as the papers (their
    "FLOPs"), torchvision and timm count them. A layer called twice multiplies twice and has its parameters once.
    Layers with weights that no rule covers (attention, recurrent, custom) are in `Profile.uncounted` and marked "?".
    Bytes are of each layer's output, as if nothing were fused, shared or computed in place.
    The receptive field is the interval of inputs, padding included, that reach one output, the widest branch where
    several meet (distill.pub/2019/computing-receptive-fields); behind layers that upsample it is an upper bound.

    Raises UsageError for what is no graph of layers, for sizes left open and for an `input_shape` that does not fit.

    >>> profile(build("resnet50")).macs
    4089184256
    """
    if not isinstance(model, keras.Model):
        raise UsageError(
            f"model={model!r:.40} of type {type(model).__name__} is not a Keras model: build one first, as in "
            "profile(build('resnet50'))"
        )
    if not isinstance(model, (keras.Function, keras.Sequential)):
        raise UsageError(
            f"model {model.name!r} is a subclass with its own call, not a graph of layers: profile "
            "keras.Model(x, model.call(x)), where x = keras.Input((224, 224, 3))"
        )
    if getattr(model, "_functional", model) is None:  # a Sequential that knows no input yet
        raise UsageError(f"model {model.name!r} is not built: begin it with keras.Input((224, 224, 3))")
    channels = _channel_axis(model)
    sizes = _sizes(model, input_shape, channels)
    given = [keras.KerasTensor(shape, t.dtype) for t, shape in zip(model.inputs, sizes, strict=True)]
    calls = [_Call(t.name, None, (), (), (spec,)) for t, spec in zip(model.inputs, given, strict=True)]
    outputs = _walk(model, given, "", calls)
    rows = tuple(_rows(calls, channels))
    # Maps of one position with an unknown field are what a global pooling gives, not the last feature map.
    maps = [r for r in rows if r.receptive_field or math.prod(counting.map_size(r.output_shape, channels)) > 1]
    return Profile(
        name=model.name,
        input_shapes=tuple(spec.shape[1:] for spec in given),
        peak_activation_bytes=_peak_bytes(calls, outputs),
        receptive_field=maps[-1].receptive_field if maps else None,
        stride=maps[-1].stride if maps else None,
        layers=rows,
    )


@dataclass(frozen=True)
class _Call:
    """One call of a layer or operation (None: an input) with tensors of its own, which have shapes only."""

    name: str
    operation: Any
    arguments: tuple[Any, ...]
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]


def _layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else (layer,)


def _channel_axis(model: keras.Model) -> int:
    """0 or -1, as the first convolution says."""
    formats = (layer.data_format for layer in _layers(model) if hasattr(layer, "kernel_size"))
    return 0 if next(formats, keras.config.image_data_format()) == "channels_first" else -1


def _sizes(model: keras.Model, input_shape: Sequence[int] | None, channels: int) -> list[tuple[int | None, ...]]:
    """The shape of each input, batch axis in front: the model's own, or `input_shape`."""
    own = [tuple(t.shape) for t in model.inputs]
    if input_shape is None:
        for t, shape in zip(model.inputs, own, strict=True):
            if None in shape[1:]:
                raise UsageError(
                    f"input {t.name!r} of model {model.name!r} is {_by(shape[1:])}, with sizes left open: say which, "
                    "as in profile(model, input_shape=(224, 224))"
                )
        return own
    if len(own) != 1:
        raise UsageError(f"input_shape={input_shape} with {len(own)} inputs of model {model.name!r}: it takes one")
    batch, *sizes = own[0]
    depth = sizes.pop(channels) if sizes else None
    new = tuple(input_shape)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in new):
        raise UsageError(f"input_shape={input_shape} must be whole numbers from 1 up, as in (224, 224)")
    if len(new) == len(sizes) and depth is not None:
        new = (*new, depth)
    if len(new) != len(sizes) + 1 or depth not in (None, new[-1]):
        raise UsageError(
            f"input_shape={input_shape} does not fit model {model.name!r}, whose input is {_by(own[0][1:])}: give "
            f"{len(sizes)} sizes, then {'the channels' if depth is None else f'no channels or {depth}'}"
        )
    return [(batch, new[-1], *new[:-1]) if channels == 0 else (batch, *new)]


def _walk(model: Any, given: Sequence[Any], prefix: str, calls: list[_Call]) -> list[keras.KerasTensor]:
    """Append the calls of a graph, in the order that Keras runs them, nested models taken apart; give its outputs.

    Goes through nodes, not layers: a shared layer has one a call, and `x + y` makes one without any layer.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    known = {id(t): spec for t, spec in zip(graph.inputs, given, strict=True)}
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if node.is_input:
                continue
            name = prefix + node.operation.name
            inputs = tuple(known[id(t)] for t in node.input_tensors)
            if isinstance(node.operation, (keras.Function, keras.Sequential)):
                outputs = _walk(node.operation, inputs, f"{name}/", calls)
            else:
                args, kwargs = keras.tree.map_structure(
                    lambda value: known.get(id(value), value), (node.arguments.args, node.arguments.kwargs)
                )
                outputs = _outputs(node, name, inputs, args, kwargs)
                calls.append(_Call(name, node.operation, args, inputs, tuple(outputs)))
            known.update(zip(map(id, node.outputs), outputs, strict=True))
    return [known[id(t)] for t in graph.outputs]


def _outputs(node: Any, name: str, inputs: Sequence[Any], args: Any, kwargs: Any) -> list[keras.KerasTensor]:
    """New tensors for what a call gives: as recorded where its inputs are as recorded, else its shapes computed."""
    operation, found = node.operation, node.outputs
    as_recorded = all(spec.shape == t.shape for spec, t in zip(inputs, node.input_tensors, strict=True))
    if not as_recorded or _is_open(found):
        _check_built_for(operation, name, inputs)
        try:
            found = keras.tree.flatten(operation.compute_output_spec(*args, **kwargs))
            if _is_open(found):  # EinsumDense says None for an axis whose size it was not told; its `call` knows
                found = keras.tree.flatten(keras.Operation.compute_output_spec(operation, *args, **kwargs))
        except (ValueError, TypeError) as error:
            shapes = ", ".join(_by(spec.shape[1:]) for spec in inputs)
            raise UsageError(f"layer {name!r} does not take {shapes}: choose another input_shape") from error
    for t in found:
        if None in t.shape[1:]:
            raise UsageError(f"layer {name!r} gives {_by(t.shape[1:])}: a profile needs sizes known before data runs")
        if min(t.shape[1:], default=1) < 1:
            raise UsageError(f"layer {name!r} gives {_by(t.shape[1:])}: choose an input_shape that leaves pixels there")
    return [keras.KerasTensor(t.shape, t.dtype) for t in found]


def _is_open(tensors: Sequence[Any]) -> bool:
    return any(None in t.shape[1:] for t in tensors)


def _check_built_for(operation: Any, name: str, inputs: Sequence[Any]) -> None:
    """Dense computes a shape for any input; what its weights were built for stands in `input_spec`."""
    specs = keras.tree.flatten(getattr(operation, "input_spec", None))
    for spec, tensor in zip(specs, inputs, strict=False):
        for axis, size in (getattr(spec, "axes", None) or {}).items():
            if size is not None and tensor.shape[axis] != size:
                raise UsageError(
                    f"layer {name!r} was built for {size:,} inputs and would get {tensor.shape[axis]:,}: this model is "
                    "not fully convolutional, so build it at the size of input_shape"
                )


def _rows(calls: Sequence[_Call], channels: int) -> Iterator[LayerProfile]:
    fields_of: dict[int, counting.Field] = {}
    seen: set[int] = set()  # variables, so that shared and tied ones count once
    times: dict[str, int] = {}
    for call in calls:
        shapes = [t.shape[1:] for t in call.inputs]
        output = call.outputs[0].shape[1:] if call.outputs else ()
        macs: int | None = 0
        if call.operation is None:
            seeing = (Span(0, 0, 1),) * len(output) if len(output) > 1 else None
        else:
            macs = counting.count_macs(call.operation, shapes[0], output)
            below = [fields_of[id(t)] for t in call.inputs]
            see = counting.see(call.operation, below, shapes, output, channels=channels, arguments=call.arguments)
            seeing = None if macs is None else see
        fields_of.update((id(t), seeing) for t in call.outputs)
        new = [v for v in getattr(call.operation, "weights", ()) if id(v) not in seen]
        seen.update(map(id, new))
        trainable = {id(v) for v in getattr(call.operation, "trainable_weights", ())}
        times[call.name] = times.get(call.name, 0) + 1
        pixels, stride = counting.extent(seeing, channels)
        yield LayerProfile(
            name=call.name if times[call.name] == 1 else f"{call.name}[{times[call.name]}]",
            type="InputLayer" if call.operation is None else type(call.operation).__name__,
            output_shape=output,
            parameters=sum(math.prod(v.shape) for v in new),
            trainable_parameters=sum(math.prod(v.shape) for v in new if id(v) in trainable),
            macs=macs or 0,
            activations=sum(math.prod(t.shape[1:]) for t in call.outputs) if macs else 0,
            activation_bytes=sum(map(_bytes, call.outputs)),
            receptive_field=pixels,
            stride=stride,
            counted=macs is not None,
        )


def _bytes(tensor: keras.KerasTensor) -> int:
    """Of one image. The bits stand in the type's name (bfloat16, float8_e4m3fn, int4); bool and string have none."""
    digits = re.search(r"\d+", tensor.dtype)
    bits = int(digits[0]) if digits else 8
    return math.ceil(math.prod(tensor.shape[1:]) * bits / 8)


def _peak_bytes(calls: Sequence[_Call], outputs: Sequence[keras.KerasTensor]) -> int:
    """The largest sum of tensors alive at once: inputs from the start, any other from its call to its last use."""
    last_use = {id(t): index for index, call in enumerate(calls) for t in (*call.outputs, *call.inputs)}
    last_use |= {id(t): len(calls) for t in outputs}
    alive = peak = 0
    for index, call in enumerate(calls):
        alive += sum(map(_bytes, call.outputs))
        peak = max(peak, alive)
        touched = {id(t): t for t in (*call.inputs, *call.outputs)}
        alive -= sum(_bytes(t) for key, t in touched.items() if last_use[key] == index)
    return peak


def _by(shape: Sequence[int | None]) -> str:
    return "x".join(map(str, shape))


def _cut(text: str, width: int) -> str:
    """The end of a name that is too long: in nested models the beginning is the same everywhere."""
    return text if len(text) <= width else ".." + text[2 - width :]


def _layer_lines(rows: Sequence[LayerProfile]) -> list[str]:
    cells = [("layer", "type", "output", "parameters", "MACs", "bytes", "field", "stride")]
    for row in rows:
        seen = ("all", "") if row.receptive_field is None else (f"{row.receptive_field:,}", f"{row.stride:g}")
        macs = f"{row.macs:,}" if row.counted else "?"
        kind = row.type if len(row.type) <= TYPE_WIDTH else row.type[: TYPE_WIDTH - 2] + ".."
        numbers = (f"{row.parameters:,}", macs, f"{row.activation_bytes:,}", *seen)
        cells.append((row.name, kind, _by(row.output_shape), *numbers))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths[0] = max(8, min(widths[0], WIDTH - sum(widths[1:]) - len(widths) + 1))
    lines = []
    for name, *others in cells:
        texts = zip([_cut(name, widths[0]), *others[:2]], widths[:3], strict=True)
        right = zip(others[2:], widths[3:], strict=True)
        line = " ".join([*(text.ljust(width) for text, width in texts), *(n.rjust(width) for n, width in right)])
        lines.append(line.rstrip()[:WIDTH])
    rule = "-" * max(map(len, lines))
    return [lines[0], rule, *lines[1:], rule]


def _total_lines(total: Profile) -> list[str]:
    pixels = "all" if total.receptive_field is None else f"{total.receptive_field:,}"
    at = "" if total.stride is None else f", at stride {total.stride:g}"
    lines = [
        ("parameters", total.parameters, f"scalars, of which {total.trainable_parameters:,} trainable"),
        ("MACs", total.macs, "multiply-accumulates of convolutions and dense layers"),
        ("activations", total.activations, "scalars that these output"),
        ("activation bytes", total.activation_bytes, "outputs of all layers: what a training step keeps"),
        ("peak bytes", total.peak_activation_bytes, "most that is alive at once at inference, layer after layer"),
    ]
    inputs = ", ".join(map(_by, total.input_shapes))
    return [
        f"{_cut(total.name, 40)}, input {inputs}, batch 1"[:WIDTH],
        *(f"{what:<16} {number:>15,}  {meaning}" for what, number, meaning in lines),
        f"{'receptive field':<16} {pixels:>15}  pixels of the input that the last feature map sees{at}",
        *_uncounted_lines(total.uncounted),
    ]


def _uncounted_lines(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return textwrap.wrap(f"not counted, so the MACs are too low by these layers' (marked ?): {shown}", WIDTH)
