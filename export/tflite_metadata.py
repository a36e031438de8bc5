"""TFLite metadata: what travels inside a .tflite file, for MediaPipe, for an app, and for the file's own test.

The tables are those of the public schema (`metadata_schema.fbs` of TensorFlow Lite, identifier M001); a field is named
by its place in its table. Associated files stand behind the model as a zip archive that is stored, not compressed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np

from keras_resnet.errors import InputError, missing_extra

IDENTIFIER, BUFFER = b"M001", "TFLITE_METADATA"
PARSER = "1.0.0"  # the oldest that reads all fields that are written here
LABELS = "labels.txt"  # the associated file that names the classes
RGB, AXIS_LABELS, IMAGE, FEATURE, NORMALISATION = 1, 2, 2, 1, 1  # of the schema's enumerations and unions
MOST_BYTES = 64_000_000  # of one associated file
OUTPUTS = {  # by what a file answers with: name and description of its output
    "softmax": {0: "scores", 1: "one score a class"},
    "sigmoid": {0: "scores", 1: "one score a class, each by itself"},
    "logits": {0: "scores", 1: "one logit a class"},
    "embedding": {0: "embedding", 1: "the features of the image"},
}


@dataclass(frozen=True)
class Byte:
    """A number of one byte, such as an enumeration's."""

    value: int


@dataclass(frozen=True)
class Unsigned:
    """A number of four bytes."""

    value: int


Table = Mapping[int, Any]  # place of a field: str, Byte, Unsigned, Table, or a list of str, float or Table


def embed(
    content: bytes,
    *,
    name: str,
    description: str,
    version: str,
    author: str,
    licence: str,
    size: tuple[int, int],
    files: Mapping[str, bytes],
    answers: str = "softmax",
) -> bytes:
    """A .tflite file with metadata and files inside: what `content` was, and answers as it did.

    size: (height, width) of the image that it takes, raw RGB pixels 0..255; files: by name; `labels.txt`, a label a
    line, is one of them where there are classes. answers: what `concrete.answers_with` says. licence and author may
    be empty.
    Raises MissingExtraError without the extra `tflite`.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise missing_extra("writing metadata into a .tflite file", "tflite", error) from error
    height, width = size
    image: Table = {
        0: "image",
        1: "RGB pixels as they are, 0 to 255",
        3: {0: Byte(IMAGE), 1: {0: Byte(RGB), 1: {0: Unsigned(width), 1: Unsigned(height)}}},
        4: [{0: Byte(NORMALISATION), 1: {0: [0.0], 1: [1.0]}}],  # the file normalises by itself
        5: {0: [255.0], 1: [0.0]},
    }
    names = {0: LABELS, 1: "a label a line, in the order of the scores", 2: Byte(AXIS_LABELS)}
    scores: Table = {
        **OUTPUTS[answers],
        3: {0: Byte(FEATURE), 1: {}},
        **({5: {0: [1.0], 1: [0.0]}} if answers in ("softmax", "sigmoid") else {}),
        **({6: [names]} if LABELS in files else {}),
    }
    others = [{0: file} for file in files if file != LABELS]
    model: Table = {
        0: name,
        1: description,
        2: version,
        3: [{0: name, 2: [image], 3: [scores]}],
        4: author,
        5: licence,
        6: others,
        7: PARSER,
    }
    builder = flatbuffers.Builder(1024)
    builder.Finish(_table(builder, model), IDENTIFIER)

    flat = schema.ModelT.InitFromPackedBuf(content, 0)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(bytes(builder.Output()), np.uint8)
    entry.name, entry.buffer = BUFFER.encode(), len(flat.buffers)
    flat.buffers.append(buffer)
    flat.metadata = [*(flat.metadata or []), entry]
    packed = flatbuffers.Builder(len(content) + 4096)
    packed.Finish(flat.Pack(packed), b"TFL3")

    whole = io.BytesIO()
    whole.write(packed.Output())
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_STORED) as archive:
        for file, value in files.items():
            archive.writestr(zipfile.ZipInfo(file), value)  # without a date: equal content, equal file
    return whole.getvalue()


def associated_files(content: bytes, name: str) -> dict[str, bytes]:
    """The files inside a .tflite file; none where it has no metadata. Raises InputError where they are damaged."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > MOST_BYTES for entry in entries):
                raise zipfile.BadZipFile("they are compressed, or larger than metadata is")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"the files inside {name!r} are damaged: {error}") from error


def _table(builder: Any, fields: Table) -> int:
    """Write a table, what it holds first, and return its place."""
    places = {key: _place(builder, value) for key, value in fields.items() if not isinstance(value, (Byte, Unsigned))}
    builder.StartObject(max(fields, default=-1) + 1)
    for key, value in fields.items():
        if isinstance(value, Byte):
            builder.PrependInt8Slot(key, value.value, 0)
        elif isinstance(value, Unsigned):
            builder.PrependUint32Slot(key, value.value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(key, places[key], 0)
    return int(builder.EndObject())


def _place(builder: Any, value: str | Table | Sequence[Any]) -> int:
    """Write a text, a table or a list, and return its place."""
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, Mapping):
        return _table(builder, value)
    if value and isinstance(value[0], float):
        return int(builder.CreateNumpyVector(np.asarray(value, np.float32)))
    places = [_place(builder, one) for one in value]
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    return int(builder.EndVector())
