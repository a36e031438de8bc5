"""A .tflite file as plain values, read in Python with every offset checked before it is followed.

For files that anybody made: TFLite's own loader ends the process on some of them. Places of fields are those of the
public schema (schema.fbs, version 3); values are checked as far as the loader relies on them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_resnet.errors import InputError, missing_extra

IDENTIFIER, VERSION = b"TFL3", 3
MOST_READ_BYTES = 100_000_000  # of tables and lists, not weights: ResNet-50 has 1 MB, and shared ones have no end
MOST_ELEMENTS, MOST_AXES = 2**31 - 1, 16  # of a tensor: TFLite counts in 32 bits
# Types whose values have a size; the others (strings, resources) cannot be checked.
BITS: Mapping[str, int] = {
    **dict.fromkeys(("int2",), 2),
    **dict.fromkeys(("int4", "uint4"), 4),
    **dict.fromkeys(("int8", "uint8", "bool"), 8),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 16),
    **dict.fromkeys(("int32", "uint32", "float32"), 32),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 64),
    "complex128": 128,
}
BIASED = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": -1}  # the kernel's axis that a bias is as long as
ACTIVATIONS = {"AVERAGE_POOL_2D": 5, "MAX_POOL_2D": 5, "CONCATENATION": 1}  # places of the fused one in its options


@dataclass(frozen=True)
class Tensor:
    """A tensor: `type` is NumPy's name where there is one; scales are empty where it is not quantised."""

    name: str
    type: str
    shape: tuple[int, ...]
    is_dynamic: bool  # the file leaves a size open, which is 1 in `shape`
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int | None  # that has a scale a place; None: one scale or none
    data: memoryview | None = field(repr=False, compare=False)  # None: computed, or given from outside

    @property
    def is_constant(self) -> bool:
        return self.data is not None

    @property
    def value(self) -> np.ndarray | None:
        """A constant's numbers; None where it is none, or of a type that NumPy has not."""
        if self.data is None or BITS.get(self.type, 0) < 8 or self.type == "bfloat16":
            return None
        return np.frombuffer(self.data, self.type).reshape(self.shape)

    def __str__(self) -> str:
        steps = ""
        if len(self.scales) == 1:
            steps = f", scale {self.scales[0]:.6g}, zero point {(self.zero_points or (0,))[0]}"
        return f"{self.type} [{', '.join(map(str, self.shape))}]{' (dynamic)' if self.is_dynamic else ''}{steps}"


@dataclass(frozen=True)
class Operation:
    """One operation, in the order in which they run. Its name is that of its first output."""

    index: int
    kind: str  # CONV_2D; the own name of a custom one
    is_custom: bool
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    has_activation: bool  # fused into a pooling or a concatenation

    @property
    def name(self) -> str:
        return self.outputs[0].name if self.outputs else ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True)
class Graph:
    """The first graph of a file; those of branches and loops are checked but not kept.

    names: of tensors, as its signature, which an app uses, calls them.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    tensors: tuple[Tensor, ...]
    names: Mapping[str, str]
    metadata: Mapping[str, memoryview] = field(repr=False)


def read_graph(content: bytes, name: str) -> Graph:
    """The graph in the content of a .tflite file; name: of the file, for messages.

    Raises InputError for what is no such file or is damaged, MissingExtraError without the extra `tflite`.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise missing_extra("reading a .tflite file", "tflite", error) from error
    kinds = {number: kind for kind, number in vars(schema.BuiltinOperator).items() if not kind.startswith("_")}
    types = {number: kind.lower() for kind, number in vars(schema.TensorType).items() if not kind.startswith("_")}
    try:
        if content[4:8] != IDENTIFIER:
            raise ValueError("it does not begin as one")
        return _model(Flat(content).root(), kinds, types)
    except ValueError as error:
        raise InputError(f"{name!r} is no whole .tflite file: {error}; export it anew, or fetch it again") from error


class Flat:
    """A flatbuffer of which every place is checked: raises ValueError for one outside, and for endless tables."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = memoryview(data)
        self.left = MOST_READ_BYTES

    def root(self) -> Table:
        return Table(self, self.number("I", 0))

    def number(self, form: str, at: int) -> Any:
        self.check(at, struct.calcsize(form))
        return struct.unpack_from(f"<{form}", self.data, at)[0]

    def check(self, at: int, size: int) -> None:
        if at < 0 or at + size > len(self.data):
            raise ValueError(f"it points to byte {at + size:,} of {len(self.data):,}")

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"its tables are larger than {MOST_READ_BYTES:,} bytes")


class Table:
    """A table of a flatbuffer; a field is named by its place, and absent ones have their default."""

    def __init__(self, flat: Flat, at: int) -> None:
        flat.spend(256)  # more than most have: it stands for the time of reading one
        self.flat, self.at = flat, at
        self.fields = at - flat.number("i", at)
        self.size = flat.number("H", self.fields)
        flat.check(self.fields, self.size)

    def place(self, place: int) -> int | None:
        """Where a field stands."""
        at = 4 + 2 * place
        offset = self.flat.number("H", self.fields + at) if at + 2 <= self.size else 0
        return self.at + offset if offset else None

    def number(self, place: int, form: str, default: int = 0) -> Any:
        at = self.place(place)
        return default if at is None else self.flat.number(form, at)

    def table(self, place: int) -> Table | None:
        at = self.place(place)
        return None if at is None else Table(self.flat, at + self.flat.number("I", at))

    def tables(self, place: int) -> list[Table]:
        start, count = self._list(place, 4)
        self.flat.spend(4 * count)
        places = range(start, start + 4 * count, 4)
        return [Table(self.flat, at + self.flat.number("I", at)) for at in places]

    def numbers(self, place: int, form: str) -> tuple[Any, ...]:
        size = struct.calcsize(form)
        start, count = self._list(place, size)
        self.flat.spend(size * count)
        return struct.unpack_from(f"<{count}{form}", self.flat.data, start)

    def bytes(self, place: int) -> memoryview:
        start, count = self._list(place, 1)
        return self.flat.data[start : start + count]

    def text(self, place: int) -> str:
        found = self.bytes(place)
        self.flat.spend(len(found))
        return bytes(found).decode("utf-8", "replace")

    def _list(self, place: int, size: int) -> tuple[int, int]:
        """Where a list starts, and how many there are."""
        at = self.place(place)
        if at is None:
            return 0, 0
        start = at + self.flat.number("I", at)
        count = self.flat.number("I", start)
        self.flat.check(start + 4, size * count)
        return start + 4, count


def _model(model: Table, kinds: Mapping[int, str], types: Mapping[int, str]) -> Graph:
    version = model.number(0, "I")
    if version != VERSION:
        raise ValueError(f"it is of version {version}, only {VERSION} is known")
    codes = [_kind(code, kinds) for code in model.tables(1)]
    buffers = [_buffer(table) for table in model.tables(4)]
    graphs = [_graph(table, codes, buffers, types) for table in model.tables(2)]
    if not graphs:
        raise ValueError("it holds no graph")
    names: dict[str, str] = {}
    for table in model.tables(7):
        graph = _at(graphs, table.number(4, "I"), "graph")
        for entry in (*table.tables(0), *table.tables(1)):
            tensor = _at(graph.tensors, entry.number(1, "I"), "tensor")
            if graph is graphs[0]:
                names.setdefault(tensor.name, entry.text(0))
    metadata = {
        table.text(0): data
        for table in model.tables(6)
        for data in [_at(buffers, table.number(1, "I"), "buffer")]
        if data is not None
    }
    first = graphs[0]
    return Graph(first.inputs, first.outputs, first.operations, first.tensors, names, metadata)


def _kind(code: Table, kinds: Mapping[int, str]) -> tuple[str, bool]:
    """The kind of an operation, and whether it is a custom one. Kinds from 127 on are in the newer, wider field."""
    number = max(code.number(0, "b"), code.number(3, "i"))
    kind = kinds.get(number, f"operation {number}")
    return (code.text(1) or "CUSTOM", True) if kind == "CUSTOM" else (kind, False)


def _buffer(table: Table) -> memoryview | None:
    """A constant's bytes; large files keep them behind the flatbuffer."""
    offset, size = table.number(1, "Q"), table.number(2, "Q")
    if offset > 1:  # 1 marks a place that a writer was still to fill
        table.flat.check(offset, size)
        return table.flat.data[offset : offset + size]
    return table.bytes(0) or None


def _graph(
    table: Table, codes: list[tuple[str, bool]], buffers: list[memoryview | None], types: Mapping[int, str]
) -> Graph:
    parts = table.tables(0)
    tensors = tuple(_tensor(part, buffers, types) for part in parts)
    variable = {index for index, part in enumerate(parts) if part.number(5, "B")}
    inputs, outputs = table.numbers(1, "i"), table.numbers(2, "i")
    for index in (*inputs, *outputs):
        _at(tensors, index, "tensor")
    if constant := [index for index in inputs if tensors[index].is_constant]:
        raise ValueError(f"its input {tensors[constant[0]].name!r} is a constant")
    ready = {*inputs, *variable}
    operations = []
    for number, part in enumerate(table.tables(3)):
        kind, is_custom = _at(codes, part.number(0, "I"), "kind of operation")
        given, made = part.numbers(1, "i"), part.numbers(2, "i")
        for index in (*(index for index in given if index != -1), *made):  # -1: an input that is left out
            _at(tensors, index, "tensor")
        for index in given:
            early = index not in ready and index != -1 and not tensors[index].is_constant
            if early and not is_custom and math.prod(tensors[index].shape):  # compilers give their own scratch memory
                raise ValueError(f"{kind} reads {tensors[index].name!r} before anything gives it")
        for index in made:
            if tensors[index].is_constant or (index in ready and index not in variable):
                raise ValueError(f"{kind} writes {tensors[index].name!r}, which is there already")
        ready.update(made)
        options = part.table(4)
        fused = options.number(ACTIVATIONS[kind], "b") if options and kind in ACTIVATIONS else 0
        read = tuple(None if index == -1 else tensors[index] for index in given)
        _check_layer(kind, number, read)
        operations.append(Operation(number, kind, is_custom, read, tuple(tensors[i] for i in made), fused != 0))
    for index in outputs:
        if index not in ready and not tensors[index].is_constant:
            raise ValueError(f"nothing gives its output {tensors[index].name!r}")
    return Graph(
        tuple(tensors[i] for i in inputs), tuple(tensors[i] for i in outputs), tuple(operations), tensors, {}, {}
    )


def _check_layer(kind: str, number: int, read: Sequence[Tensor | None]) -> None:
    """A layer's kernel is there, and its bias is as long as it has filters: the loader takes both for granted."""
    if kind not in BIASED:
        return
    kernel, bias = (*read[1:3], None, None)[:2]
    if kernel is None or not kernel.shape:
        raise ValueError(f"{kind} number {number} has no kernel")
    if bias is not None and math.prod(bias.shape) != kernel.shape[BIASED[kind]]:
        raise ValueError(f"{kind} has a bias of {list(bias.shape)} and a kernel of {list(kernel.shape)}")


def _tensor(table: Table, buffers: list[memoryview | None], types: Mapping[int, str]) -> Tensor:
    name, number = table.text(3), table.number(1, "b")
    if number not in types:
        raise ValueError(f"tensor {name!r} is of type {number}, which is not known")
    kind, shape = types[number], table.numbers(0, "i")
    if len(shape) > MOST_AXES or any(size < 0 for size in shape) or math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"tensor {name!r} has the shape {list(shape[:MOST_AXES])}")
    data = _at(buffers, table.number(2, "I"), "buffer")
    needed = (math.prod(shape) * BITS.get(kind, 0) + 7) // 8
    is_sparse = table.place(6) is not None
    if data is not None and kind in BITS and not is_sparse and len(data) != needed:
        raise ValueError(f"tensor {name!r} of {kind} {list(shape)} needs {needed:,} bytes and has {len(data):,}")
    scales, zero_points, axis = _quantisation(table.table(4), name, shape)
    limits = np.iinfo(kind) if kind in ("int8", "uint8", "int16", "uint16", "int32") else None
    if limits is not None and not all(limits.min <= point <= limits.max for point in zero_points):
        raise ValueError(f"tensor {name!r} of {kind} has the zero point {max(zero_points, key=abs):,}")
    is_dynamic = -1 in table.numbers(7, "i")
    return Tensor(name, kind, shape, is_dynamic, scales, zero_points, axis, data)


def _quantisation(
    table: Table | None, name: str, shape: tuple[int, ...]
) -> tuple[tuple[float, ...], tuple[int, ...], int | None]:
    """Scales, zero points, and the axis that has one of each a place."""
    if table is None:
        return (), (), None
    scales, zero_points, axis = table.numbers(2, "f"), table.numbers(3, "q"), table.number(6, "i")
    if not all(math.isfinite(scale) and scale >= 0 for scale in scales):
        raise ValueError(f"tensor {name!r} has a scale that is no number of 0 or more")
    if len(scales) <= 1 and len(zero_points) <= 1:
        return scales, zero_points, None
    if not 0 <= axis < len(shape) or len(scales) != shape[axis] or len(zero_points) not in (0, 1, len(scales)):
        raise ValueError(
            f"tensor {name!r} of shape {list(shape)} has {len(scales)} scales and {len(zero_points)} zero points "
            f"on axis {axis}"
        )
    return scales, zero_points, axis


def _at(values: Any, index: int, what: str) -> Any:
    if not 0 <= index < len(values):
        raise ValueError(f"it names {what} {index:,} of {len(values):,}")
    return values[index]


def uses(graph: Graph) -> Iterator[tuple[Operation, Tensor]]:
    """Every operation with each tensor that it reads or gives."""
    for operation in graph.operations:
        for tensor in (*operation.inputs, *operation.outputs):
            if tensor is not None:
                yield operation, tensor
