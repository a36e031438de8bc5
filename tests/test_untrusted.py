"""Files that lie, in every form that is read: refused with one of our errors, and nothing in them runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from keras_resnet import load_model, load_weights
from keras_resnet.errors import InputError
from keras_resnet.readers import read_tensors
from tests.fuzzing import WRITERS, network
from tests.layout import ROOT

HAS_TORCH = importlib.util.find_spec("torch") is not None
KINDS = [kind for kind in WRITERS if kind != "pth" or HAS_TORCH]


def fuzz(count: int, *kinds: str, limit_s: float) -> list[dict[str, Any]]:
    """What a process over damaged files found, by kind; a crash or an endless loop ends it with another code than 0."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzzing", "0", str(count), *kinds],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [result["kind"] for result in found] == list(kinds)
    return found


def is_sound(result: dict[str, Any], count: int) -> bool:
    """Whether damaged files were refused by our own errors or loaded, a good part of them refused."""
    all_told = result["refused"] + result["loaded"] == count
    return result["others"] == {} and result["good file loads"] and all_told and result["refused"] > count / 3


def test_hundreds_of_damaged_files_load_or_are_refused() -> None:
    assert [result for result in fuzz(60, *KINDS, limit_s=600) if not is_sound(result, 60)] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_damaged_files_load_or_are_refused(kind: str) -> None:
    assert [result for result in fuzz(3000, kind, limit_s=3600) if not is_sound(result, 3000)] == []


# Files that were made to do harm -------------------------------------------------------------------------------------


def saved(kind: str, folder: Path) -> Path:
    path = folder / f"net.{kind}"
    WRITERS[kind](network(kind), path)
    return path


def repacked(path: Path, change: Callable[[str, bytes], bytes], **extra: bytes) -> None:
    """Rewrite a zip file, its members changed, packed as hard as can be."""
    with zipfile.ZipFile(path) as archive:
        content = {name: change(name, archive.read(name)) for name in archive.namelist()} | extra
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


BOMB = bytes(1 << 28)


@pytest.mark.parametrize("member", ["model.weights.h5", "config.json"])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(member: str, tmp_path: Path) -> None:
    path = saved("keras", tmp_path)
    repacked(path, lambda name, data: BOMB if name == member else data)
    assert path.stat().st_size < 1_000_000
    before = time.process_time()
    with pytest.raises(InputError, match=f"{member} unpacks from .* a zip bomb"):
        load_model(path)
    assert time.process_time() - before < 0.5


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch files need torch (make test-all)")
def test_a_zip_bomb_in_a_pytorch_file_is_refused(tmp_path: Path) -> None:
    path = saved("pth", tmp_path)
    repacked(path, lambda name, data: BOMB if name.endswith("data/0") else data)
    with pytest.raises(InputError, match="a zip bomb"):
        read_tensors(path)


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch files need torch (make test-all)")
def test_a_tensor_that_repeats_one_number_without_end_is_refused(tmp_path: Path) -> None:
    import torch

    torch.save({"fc.weight": torch.zeros(1).expand(10**9, 512)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="claims to hold more than 100 times its size"):
        read_tensors(tmp_path / "a.pth")


def test_a_packed_keras_file_is_no_bomb(tmp_path: Path) -> None:
    path = saved("keras", tmp_path)
    repacked(path, lambda _, data: data)
    filled = network("keras")
    load_weights(filled, path)
    for given, stored in zip(filled.get_weights(), load_model(path).get_weights(), strict=True):
        np.testing.assert_array_equal(given, stored)


def test_a_member_that_leads_out_of_the_archive_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = saved("keras", tmp_path / "in")
    repacked(path, lambda _, data: data, **{"../../escaped": b"x", "/escaped": b"x"})
    load_model(path)
    assert not list(tmp_path.rglob("escaped"))
    assert not Path("/escaped").exists()


RAN = "RAN.txt"


def config_with(layer: dict[str, Any]) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        if name != "config.json":
            return data
        config = json.loads(data)
        config["config"]["layers"][1] |= layer
        return json.dumps(config).encode()

    return change


def call(module: str, function: str, *arguments: Any) -> dict[str, Any]:
    return {
        "module": module,
        "class_name": function,
        "config": {"name": function, "args": list(arguments), "command": arguments[0], "cmd": arguments[0]},
        "registered_name": None,
    }


@pytest.mark.parametrize(
    "layer",
    [
        call("os", "system", f"touch {RAN}"),
        call("builtins", "exec", f"open({RAN!r}, 'w')"),
        call("builtins", "open", RAN, "w"),
        call("subprocess", "Popen", ["touch", RAN]),
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "."}, "registered_name": None},
    ],
    ids=lambda layer: layer["class_name"],
)
def test_a_config_that_names_code_runs_none(layer: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved("keras", tmp_path)
    repacked(path, config_with(layer))
    for load in (load_model, lambda path: load_weights(network("keras"), path)):
        with pytest.raises(InputError, match=r"net\.keras"):
            load(path)
    assert not Path(RAN).exists()


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_lambda_is_not_run(suffix: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    given = keras.Input((2,))
    keras.Model(given, layers.Lambda(lambda x: (open("RAN.txt", "w").close(), x)[1])(given)).save(f"a.{suffix}")
    Path(RAN).unlink()
    with pytest.raises(InputError):
        load_weights(network("keras"), f"a.{suffix}")
    assert not Path(RAN).exists()


@pytest.mark.parametrize("opened", ["[", '{"config":{"layers":['], ids=["lists", "models"])
def test_a_config_nested_without_end_is_refused(opened: str, tmp_path: Path) -> None:
    path = saved("keras", tmp_path)
    closing = "".join({"[": "]", "{": "}"}[c] for c in reversed(opened) if c in "[{")
    text = opened * 5000 + closing * 5000
    repacked(path, lambda name, data: text.encode() if name == "config.json" else data)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(path)


# HDF5 that leads elsewhere, or nowhere; a layer of each form, and the array in it


def external_link(file: h5py.File, array: str) -> None:
    del file[array]
    file[array] = h5py.ExternalLink("/etc/other.h5", "/")


def soft_link(file: h5py.File, array: str) -> None:
    del file[array]
    file[array] = h5py.SoftLink("/")


def external_storage(file: h5py.File, array: str) -> None:
    shape = file[array].shape
    del file[array]
    file.create_dataset(array, shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, array: str) -> None:
    shape = file[array].shape
    del file[array]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource("/etc/other.h5", "x", shape)
    file.create_virtual_dataset(array, layout)


def endless_walk(file: h5py.File, array: str) -> None:
    group = file[array].parent
    group["again"] = group


def shared(file: h5py.File, array: str) -> None:
    for i in range(100):
        file[f"{Path(array).parent}/{i + 10}"] = file[array]


def enormous(file: h5py.File, array: str) -> None:
    del file[array]
    file.create_dataset(array, (10**6, 10**6), "f4", chunks=(1000, 1000), compression="gzip")


ARRAYS = {"h5": "conv1_conv/conv1_conv/kernel:0", "weights.h5": "layers/conv2d/vars/0"}


@pytest.mark.parametrize("kind", [*ARRAYS, "keras"])
@pytest.mark.parametrize("harm", [external_link, soft_link, external_storage, virtual, endless_walk, shared, enormous])
def test_hdf5_that_leads_elsewhere_is_refused(harm: Callable[..., None], kind: str, tmp_path: Path) -> None:
    path = inner = saved(kind, tmp_path)
    if kind == "keras":
        inner = tmp_path / "model.weights.h5"
        inner.write_bytes(zipfile.ZipFile(path).read(inner.name))
    with h5py.File(inner, "a") as file:
        harm(file, ARRAYS.get(kind, ARRAYS["weights.h5"]))
    if kind == "keras":
        repacked(path, lambda name, data: inner.read_bytes() if name == inner.name else data)
    model = network(kind)
    before = [weight.numpy() for weight in model.weights]
    with pytest.raises(InputError, match=path.name):
        load_weights(model, path)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.weights, strict=True))
