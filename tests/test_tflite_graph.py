"""Anybody's .tflite file: read right, refused where it is damaged, and opened in another process first."""

from __future__ import annotations

import functools
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import keras
import numpy as np
import pytest

from keras_resnet.errors import InputError
from keras_resnet.export import converter, inspect, predict, self_test, to_tflite, verify
from keras_resnet.export.golden import replay
from keras_resnet.export.probe import probe
from keras_resnet.export.tflite_graph import Graph, read_graph
from keras_resnet.export.verification import TfliteFile
from tests.fuzzing import fuzz_file
from tests.test_export import convert_here, images_of, network, photographs

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")


@pytest.fixture(scope="module", params=["int8", "float32"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    model, images = network("basic"), images_of(photographs(8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(converter, "run", convert_here)
        patch.setattr("keras_resnet.export.verification.MIN_AGREEMENT", 0.0)
        return to_tflite(model, folder / "a.tflite", quantize=request.param, calibration=images, effort="low").path


def test_a_graph_is_what_the_interpreter_itself_says(path: Path) -> None:
    content = path.read_bytes()
    graph, interpreter = read_graph(content, "a"), TfliteFile(content, "a").interpreter
    nodes = [node for node in interpreter._get_ops_details() if node["op_name"] != "DELEGATE"]
    assert [one.kind for one in graph.operations] == [node["op_name"] for node in nodes]
    assert not any(one.is_custom for one in graph.operations)
    details = {one["index"]: one for one in interpreter.get_tensor_details()}
    for index, tensor in enumerate(graph.tensors):
        theirs = details[index]
        assert (tensor.name, tensor.type) == (theirs["name"], np.dtype(theirs["dtype"]).name)
        assert list(tensor.shape) == theirs["shape"].tolist()
        np.testing.assert_allclose(tensor.scales, theirs["quantization_parameters"]["scales"])
        np.testing.assert_array_equal(tensor.zero_points, theirs["quantization_parameters"]["zero_points"])
        assert not tensor.is_dynamic
    for one, node in zip(graph.operations, nodes, strict=True):
        assert [graph.tensors.index(tensor) for tensor in one.outputs] == node["outputs"].tolist()
        for tensor, index in zip(one.inputs, node["inputs"], strict=True):
            if tensor is not None and tensor.is_constant:
                np.testing.assert_array_equal(tensor.value, interpreter.get_tensor(index))
    assert (graph.names[graph.inputs[0].name], graph.names[graph.outputs[0].name]) == ("image", "scores")


def test_a_graph_has_the_layers_of_its_network(path: Path) -> None:
    kinds = Counter(one.kind for one in read_graph(path.read_bytes(), "a").operations)
    layers = Counter(type(layer) for layer in network("basic").layers)
    assert kinds["CONV_2D"] == layers[keras.layers.Conv2D]
    assert kinds["ADD"] == layers[keras.layers.Add]
    assert kinds["MAX_POOL_2D"] == kinds["MEAN"] == kinds["FULLY_CONNECTED"] == kinds["SOFTMAX"] == 1


# Damage ---------------------------------------------------------------------------------------------------------------


def edited(content: bytes, change: Callable[[Any], None]) -> bytes:
    """The file with its tables changed, written anew by the schema's own code."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    change(model)
    builder = flatbuffers.Builder(len(content) + 4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operation(model: Any, kind: str) -> Any:
    """The first operation of a kind."""
    wanted = getattr(schema.BuiltinOperator, kind)
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return next(one for one in model.subgraphs[0].operators if codes[one.opcodeIndex] == wanted)


def tensor(model: Any, kind: str, place: int) -> Any:
    """An input of the first operation of a kind."""
    return model.subgraphs[0].tensors[operation(model, kind).inputs[place]]


def version(model: Any) -> None:
    model.version = 2


def no_graph(model: Any) -> None:
    model.subgraphs, model.signatureDefs = [], []


def short_weights(model: Any) -> None:
    buffer = model.buffers[tensor(model, "CONV_2D", 1).buffer]
    buffer.data = buffer.data[:-4]


def far_buffer(model: Any) -> None:
    tensor(model, "CONV_2D", 1).buffer = 10_000


def strange_type(model: Any) -> None:
    tensor(model, "ADD", 0).type = 99


def negative_shape(model: Any) -> None:
    tensor(model, "ADD", 0).shape = np.array([1, -8, 8, 8], np.int32)


def huge_shape(model: Any) -> None:
    tensor(model, "ADD", 0).shape = np.array([1, 1 << 20, 1 << 20, 8], np.int32)


def far_tensor(model: Any) -> None:
    one = operation(model, "ADD")
    one.inputs = np.array([10_000, one.inputs[1]], np.int32)


def far_kind(model: Any) -> None:
    operation(model, "ADD").opcodeIndex = 77


def circle(model: Any) -> None:
    one = operation(model, "ADD")
    one.inputs = np.array([model.subgraphs[0].outputs[0], one.inputs[1]], np.int32)


def constant_written(model: Any) -> None:
    operation(model, "ADD").outputs = operation(model, "CONV_2D").inputs[1:2]


def written_twice(model: Any) -> None:
    operation(model, "ADD").outputs = operation(model, "CONV_2D").outputs


def constant_input(model: Any) -> None:
    model.subgraphs[0].inputs = operation(model, "CONV_2D").inputs[1:2]


def far_output(model: Any) -> None:
    model.subgraphs[0].outputs = np.array([-5], np.int32)


def output_of_nothing(model: Any) -> None:
    operation(model, "SOFTMAX").outputs = np.array([], np.int32)
    model.subgraphs[0].operators = [operation(model, "SOFTMAX")]
    operation(model, "SOFTMAX").inputs = model.subgraphs[0].inputs


def no_kernel(model: Any) -> None:
    one = operation(model, "CONV_2D")
    one.inputs = np.array([one.inputs[0], -1, -1], np.int32)


def short_bias(model: Any) -> None:
    bias = tensor(model, "CONV_2D", 2)
    bias.shape, bias.quantization = np.array([1], np.int32), None
    model.buffers[bias.buffer].data = model.buffers[bias.buffer].data[:4]


def endless_scale(model: Any) -> None:
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.array([np.inf], np.float32), np.array([0], np.int64)
    tensor(model, "ADD", 0).quantization = quantization


def too_many_scales(model: Any) -> None:
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.ones(3, np.float32), np.zeros(3, np.int64)
    tensor(model, "CONV_2D", 1).quantization = quantization


def far_zero_point(model: Any) -> None:
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.ones(1, np.float32), np.array([11_599_872], np.int64)
    tensor(model, "PAD", 1).quantization = quantization
    tensor(model, "PAD", 1).quantization.zeroPoint[0] <<= 20


def far_signature(model: Any) -> None:
    model.signatureDefs[0].subgraphIndex = 3


def far_metadata(model: Any) -> None:
    model.metadata[0].buffer = 10_000


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (version, "is of version 2"),
        (no_graph, "holds no graph"),
        (short_weights, r"needs [\d,]+ bytes and has"),
        (far_buffer, "names buffer 10,000 of"),
        (strange_type, "is of type 99"),
        (negative_shape, r"has the shape \[1, -8, 8, 8\]"),
        (huge_shape, "has the shape"),
        (far_tensor, "names tensor 10,000 of"),
        (far_kind, "names kind of operation 77"),
        (circle, "ADD reads .* before anything gives it"),
        (constant_written, "ADD writes .* which is there already"),
        (written_twice, "writes .* which is there already"),
        (constant_input, "its input .* is a constant"),
        (far_output, "names tensor -5 of"),
        (output_of_nothing, "nothing gives its output"),
        (no_kernel, "CONV_2D number \\d has no kernel"),
        (short_bias, r"CONV_2D has a bias of \[1\]"),
        (endless_scale, "has a scale that is no number"),
        (too_many_scales, "has 3 scales and 3 zero points on axis 0"),
        (far_zero_point, "has the zero point 12,163,"),
        (far_signature, "names graph 3 of 1"),
        (far_metadata, "names buffer 10,000 of"),
    ],
)
def test_a_damaged_table_is_refused_with_what_is_wrong(harm: Callable[[Any], None], said: str, path: Path) -> None:
    content = path.read_bytes()
    assert isinstance(read_graph(edited(content, lambda model: None), "a"), Graph)
    with pytest.raises(InputError, match=f"'a.tflite' is no whole .tflite file: .*{said}"):
        read_graph(edited(content, harm), "a.tflite")


def test_every_truncation_is_refused(path: Path) -> None:
    content = path.read_bytes()
    bare = content[: content.index(b"PK\x03\x04")]  # without the files behind the tables
    read_graph(bare, "a")
    for length in (*range(200), *range(200, len(bare) - 8, 97)):
        with pytest.raises(InputError, match="'a' is no whole .tflite file"):
            read_graph(bare[:length], "a")


def test_tables_that_share_one_another_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 times the same graph, which has 20,000 times the same tensor: 400 million in 0.2 MB."""
    builder, count = flatbuffers.Builder(1 << 20), 20_000

    def table(fields: dict[int, int]) -> int:
        builder.StartObject(8)
        for place, offset in fields.items():
            builder.PrependUOffsetTRelativeSlot(place, offset, 0)
        return builder.EndObject()

    def times(one: int) -> int:
        builder.StartVector(4, count, 4)
        for _ in range(count):
            builder.PrependUOffsetTRelative(one)
        return builder.EndVector()

    empty = table({})
    graphs = times(table({0: times(empty)}))
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(empty)
    buffers = builder.EndVector()
    builder.StartObject(8)
    builder.PrependUint32Slot(0, 3, 0)
    builder.PrependUOffsetTRelativeSlot(2, graphs, 0)
    builder.PrependUOffsetTRelativeSlot(4, buffers, 0)
    builder.Finish(builder.EndObject(), b"TFL3")
    monkeypatch.setattr("keras_resnet.export.tflite_graph.MOST_READ_BYTES", 1_000_000)
    with pytest.raises(InputError, match="its tables are larger than"):
        read_graph(bytes(builder.Output()), "a")


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4", b"\x1c\0\0\0TFL3" + bytes(100), struct.pack("<I4s", 2**31, b"TFL3")]
)
def test_a_foreign_file_is_one_clean_error_for_every_verb(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(content)
    keras.utils.save_img(tmp_path / "a.png", photographs(1)[0])
    model, images = network("basic"), images_of(photographs(2))
    for call in (
        lambda: inspect(tmp_path / "a.tflite"),
        lambda: self_test(tmp_path / "a.tflite"),
        lambda: verify(tmp_path / "a.tflite", model, images),
        lambda: predict(tmp_path / "a.tflite", [tmp_path / "a.png"]),
    ):
        with pytest.raises(InputError, match=r"a\.tflite' is no whole \.tflite file"):
            call()


# Another process ------------------------------------------------------------------------------------------------------


def test_a_file_that_ends_the_process_that_opens_it_is_an_error_here(path: Path) -> None:
    # TFLite of ai-edge-litert 2.3.0 follows the kernel that is left out; read_graph would have refused it.
    with pytest.raises(InputError, match=r"'a' ended the process that opened it \(signal 11\)"):
        probe(edited(path.read_bytes(), no_kernel), "a")


def test_a_file_that_takes_too_long_is_an_error(path: Path) -> None:
    with pytest.raises(InputError, match="'a' takes longer than 0.001 s"):
        probe(path.read_bytes(), "a", limit_s=0.001)


def test_an_operation_that_is_not_known_is_an_error_of_the_other_process(path: Path) -> None:
    def custom(model: Any) -> None:
        code = model.operatorCodes[operation(model, "SOFTMAX").opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = "FlexErf"

    content = edited(path.read_bytes(), custom)
    assert [one.kind for one in read_graph(content, "a").operations if one.is_custom] == ["FlexErf"]
    with pytest.raises(InputError, match="'a' cannot be run as a .tflite file: .*FlexErf"):
        probe(content, "a")


def test_a_test_inside_a_file_that_asks_for_endless_memory_is_refused() -> None:
    pixels = "A" * 256  # of 8 x 8 pixels in base64
    picture = f'{{"pixels": "{pixels}", "classes": [0], "scores": [1.0]}}'
    test = f'{{"factor": 100000000, "height": 8, "width": 8, "pictures": [{picture}]}}'.encode()
    with pytest.raises(InputError, match="of another size"):
        replay(test, lambda pixels: np.ones((1, 1), np.float32), (8, 8), "a")
    for wrong in (b'"factor": Infinity', b'"factor": 1, "tolerance": ' + b"9" * 400):
        with pytest.raises(InputError, match="is damaged"):
            replay(test.replace(b'"factor": 100000000', wrong), lambda pixels: np.ones((1, 1), np.float32), (8, 8), "a")
    with pytest.raises(InputError, match="is damaged"):
        replay(b"[" * 100_000, lambda pixels: np.ones((1, 1), np.float32), (8, 8), "a")


@pytest.mark.parametrize("path", ["int8"], indirect=True)
@pytest.mark.parametrize("count", [12, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_answer_in_every_verb(
    count: int, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Opening a file in another process is most of the time, and tells all four verbs the same of the same bytes.
    remembered = functools.lru_cache(maxsize=1)(probe)
    for room in ("inspection", "verification"):
        monkeypatch.setattr(f"keras_resnet.export.{room}.probe", remembered)
    model, images = network("basic"), images_of(photographs(2))
    keras.utils.save_img(tmp_path / "a.png", photographs(1)[0])
    verbs = {
        "inspect": inspect,
        "self_test": self_test,
        "verify": lambda file: verify(file, model, images),
        "predict": lambda file: predict(file, [tmp_path / "a.png"]),
    }
    refused = fuzz_file(path, range(count), verbs, tmp_path)
    assert all(times > count / 3 for times in refused.values()), refused
