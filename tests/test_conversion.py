"""PyTorch networks to Keras and back: readers, fitting, from_torch, save_weights_as."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import keras_resnet
from keras_resnet.conversion import from_torch, save_weights_as
from keras_resnet.errors import InputError, KerasResnetError, UsageError
from keras_resnet.fitting import adapt_channels, fit_tensors
from keras_resnet.introspection import spec_of_model
from keras_resnet.preprocessing import preprocess_input
from keras_resnet.readers import read_tensors, tensors_in

SMALL: dict[str, Any] = {"depths": (1, 2), "widths": (8, 16), "classes": 5, "input_shape": (64, 64, 3)}
CIFAR_FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}
LOGIT_NOISE = 1e-5  # of the largest logit


def small(variant: str = "resnet18", **changes: Any) -> Any:
    return keras_resnet.build(variant, **{**SMALL, **changes})


def tensors_of(path: Path, variant: str = "resnet18", **changes: Any) -> dict[str, np.ndarray]:
    save_weights_as(small(variant, **changes), path)
    return load_file(path)


def same_weights(a: Any, b: Any) -> bool:
    return all(np.array_equal(x.numpy(), y.numpy()) for x, y in zip(a.weights, b.weights, strict=True))


@pytest.mark.parametrize("variant", ["resnet18", "resnet50", "resnet34"])
def test_a_network_survives_the_way_to_torchvisions_names_and_back(variant: str, tmp_path: Path) -> None:
    model = small(variant)
    save_weights_as(model, tmp_path / "a.safetensors")
    again = from_torch(tmp_path / "a.safetensors", input_shape=(64, 64, 3))
    assert spec_of_model(again) == spec_of_model(model)
    assert same_weights(again, model)


def test_what_was_found_and_what_tensors_do_not_tell_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors_of(tmp_path / "a.safetensors", "resnet50")
    from_torch(tmp_path / "a.safetensors")
    text = capsys.readouterr().err
    assert "5 classes, 3 channels, stem 'imagenet', torchvision names" in text
    assert "stride taken on the 3x3" in text


def test_a_state_dict_of_arrays_is_taken_as_a_file_is(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path / "a.safetensors")
    from_file = from_torch(tmp_path / "a.safetensors")
    assert same_weights(from_torch({"state_dict": tensors}), from_file)


def test_float16_tensors_are_accepted(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path / "a.safetensors")
    half = {name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in tensors.items()}
    model = from_torch(half)
    kernel = tensors["conv1.weight"].astype(np.float16).astype(np.float32).transpose(2, 3, 1, 0)
    assert np.array_equal(model.get_layer("stem_conv").kernel.numpy(), kernel)


def test_another_number_of_classes_loads_the_backbone_and_leaves_the_head(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path / "a.safetensors")
    model = small(classes=3)
    before = model.get_layer("head_dense").kernel.numpy()
    notes = fit_tensors(model, tensors, where="the file")
    assert notes == ["the file has 5 classes, the network 3 classes: the backbone was loaded, the head was not"]
    assert np.array_equal(model.get_layer("head_dense").kernel.numpy(), before)
    kernel = tensors["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
    assert np.array_equal(model.get_layer("stage1_block1_conv1").kernel.numpy(), kernel)


def test_a_network_without_top_loads_without_the_head(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path / "a.safetensors")
    model = small(include_top=False)
    assert fit_tensors(model, tensors, where="the file") == []


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_an_adapted_stem_answers_a_grey_image_as_the_three_channels_do(channels: int) -> None:
    kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 4)).astype(np.float32)
    adapted = adapt_channels(kernel, channels, where="x")
    assert adapted.shape == (7, 7, channels, 4)
    if channels == 1:
        np.testing.assert_allclose(adapted[:, :, 0], kernel.sum(axis=2), rtol=1e-6)
    else:
        wanted = [kernel[:, :, i % 3] * 3 / channels for i in range(channels)]
        np.testing.assert_allclose(adapted, np.stack(wanted, axis=2), rtol=1e-6)


def test_a_stem_of_other_than_three_channels_is_not_adapted() -> None:
    with pytest.raises(InputError, match="reads 4 channels"):
        adapt_channels(np.zeros((7, 7, 4, 8), np.float32), 1, where="x")


def test_a_file_of_one_channel_makes_a_network_of_one_channel(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path / "a.safetensors")
    tensors["conv1.weight"] = tensors["conv1.weight"].sum(axis=1, keepdims=True)
    assert from_torch(tensors).input_shape == (None, 224, 224, 1)
    with pytest.raises(UsageError, match="reads 1 channels"):
        from_torch(tensors, input_shape=(64, 64, 3))


def remove(tensors: dict[str, np.ndarray]) -> None:
    del tensors["layer2.1.bn2.weight"]


def add(tensors: dict[str, np.ndarray]) -> None:
    tensors["layer1.0.se.fc.weight"] = np.zeros((4, 4), np.float32)


def reshape(tensors: dict[str, np.ndarray]) -> None:
    tensors["layer2.0.conv2.weight"] = np.zeros((16, 16, 1, 1), np.float32)


def rename(tensors: dict[str, np.ndarray]) -> None:
    for name in list(tensors):
        tensors[f"features.{name}"] = tensors.pop(name)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove, r"missing \(layer2\.1\.bn2\.weight\)"),
        (add, r"layer1\.0\.se\.fc\.weight.*squeeze-and-excitation"),
        (reshape, r"layer2\.0\.conv2\.weight \(16, 16, 1, 1\) instead of \(16, 16, 3, 3\)"),
        (rename, "names of no network that is known here"),
    ],
)
def test_tensors_that_do_not_make_the_network_are_refused_with_the_reason(
    damage: Any, said: str, tmp_path: Path
) -> None:
    tensors = tensors_of(tmp_path / "a.safetensors")
    damage(tensors)
    with pytest.raises(InputError, match=said):
        from_torch(tensors)


def test_a_model_keeps_its_weights_where_a_file_does_not_fit(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path / "a.safetensors")
    model, twin = small(depths=(1, 1)), None
    twin = [weight.numpy() for weight in model.weights]
    with pytest.raises(InputError):
        fit_tensors(model, tensors, where="the file")
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(twin, model.weights, strict=True))


def test_weights_of_a_network_that_strides_elsewhere_are_not_mixed_up(tmp_path: Path) -> None:
    tensors = tensors_of(tmp_path / "a.safetensors", "resnet50")
    with pytest.raises(InputError, match="computes otherwise.*stride_on='1x1'"):
        fit_tensors(small("resnet50_v1"), tensors, where="the file")
    with pytest.raises(UsageError, match="cannot carry this network"):
        save_weights_as(small("resnet50_v1"), tmp_path / "b.safetensors")


@pytest.mark.parametrize(("path", "naming"), [("a.bin5", "torchvision"), ("a.safetensors", "torchvison")])
def test_a_wrong_suffix_or_naming_is_refused_and_nothing_written(path: str, naming: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        save_weights_as(small(), tmp_path / path, naming=naming)
    assert list(tmp_path.iterdir()) == []


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not at all",
        safetensors_bytes({"a": F32}, b"1234"),
        safetensors_bytes({"a": F32}, b"12345678", length=2**62),
        safetensors_bytes({"a": {**F32, "shape": [2**40, 2**40]}}, b"12345678"),
        safetensors_bytes({"a": F32, "b": F32}, b"12345678"),
        safetensors_bytes({"a": {**F32, "dtype": "F99"}}, b"12345678"),
        safetensors_bytes(b"[" * 10_000),
    ],
    ids=["empty", "foreign", "truncated", "header length", "overflow", "overlap", "dtype", "nesting"],
)
def test_a_safetensors_file_that_lies_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        read_tensors(tmp_path / "a.safetensors")


def test_bfloat16_is_refused_with_what_to_do(tmp_path: Path) -> None:
    content = safetensors_bytes({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"1234")
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="bfloat16: save it as float32"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("seed", range(4))
def test_mutated_safetensors_files_give_tensors_or_one_of_our_errors(seed: int, tmp_path: Path) -> None:
    save_file({"conv1.weight": np.ones((2, 3), np.float32), "fc.bias": np.ones(3, np.float16)}, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(500):
        content = bytearray(good[: rng.integers(1, len(good) + 1)] if rng.random() < 0.3 else good)
        for position in rng.integers(0, len(content), rng.integers(1, 6)):
            content[position] = rng.integers(0, 256)
        (tmp_path / "a.safetensors").write_bytes(content)
        try:
            tensors = read_tensors(tmp_path / "a.safetensors")
            assert all(isinstance(tensors[name], np.ndarray) for name in tensors)
        except KerasResnetError:
            refused += 1
    assert 0 < refused < 500


class Bomb:
    """What a malicious pickle runs."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_code_in_a_pytorch_file_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch files need torch (make test-all)")
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": torch.ones(1), "x": Bomb()}, "a.pth")
    Path("b.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(InputError, match=name):
            read_tensors(name)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [b"", b"foreign", b"PK\x03\x04" + bytes(50), b"\x80\x02}q\x00."])
def test_a_foreign_pytorch_file_is_refused(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch files need torch (make test-all)")
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pth"):
        read_tensors(tmp_path / "a.pth")


def test_pytorch_files_without_torch_are_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(KerasResnetError, match="pip install torch, or save the weights as safetensors"):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"a": "b"}}])
def test_a_dictionary_without_tensors_is_refused(content: Any) -> None:
    with pytest.raises(InputError, match="save model.state_dict"):
        tensors_in(content, "x")


@pytest.mark.parametrize("depth", CIFAR_FILES)
def test_akamasters_networks_answer_as_in_pytorch(depth: int, shared_data: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch files need torch (make test-all)")
    reference = np.load(shared_data / "reference_logits.npz")
    model = from_torch(shared_data / "weights" / CIFAR_FILES[depth], classifier_activation=None)
    logits = model.predict(preprocess_input(reference["cifar_pixels"], model), verbose=0)
    wanted = reference[f"cifar_logits_resnet{depth}"]
    assert np.abs(logits - wanted).max() <= LOGIT_NOISE * np.abs(wanted).max()
